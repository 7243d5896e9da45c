"""What a policy chose and what it earned, from its rollouts.

A rollout is one trial: a proposed strategy, whether it was valid, and what it did on D_val. All functions take a frame
with a row a trial, of any tasks, iterations and methods, and count them together. All raise ResultsError where columns
are missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
from scipy.stats import entropy

from degaml_kedro.results.formatting import markdown_table, two_digits, with_interval
from degaml_kedro.results.measures import ResultsError, wilson_interval

# iterations of training count from 1
TEST_TIME = 0
NOT_VALID = "not valid"

_TYPES = {
    **dict.fromkeys(("task", "method", "source", "action", "family", "error"), "object"),
    **dict.fromkeys(("iteration", "round"), "int64"),
    **dict.fromkeys(("reward", "accuracy_before", "accuracy_after", "seconds"), "float64"),
    **dict.fromkeys(("valid", "executed"), "bool"),
}
_ITERATION_LEGEND = (
    "Reward rate: share of trials with a reward above 0, with its 95 % Wilson interval. Entropies are of valid "
    "proposals, in nats; in parentheses as a share of the most that so many families allow. A small n alone makes them "
    "small. 'test' is test time."
)
_FAMILY_LEGEND = (
    "Share of the task's trials, and how many of them were rewarded; * was executed at least once."
)


def iteration_measures(rollouts: pd.DataFrame) -> pd.DataFrame:
    """How well and how variedly each iteration chose.

    Returns:
        A row an iteration (test time last) and source (``policy``, ``uniform``, and ``all``), where there is any:
        ``n``, ``valid`` (share), ``reward_rate`` (share of rewards above 0) with its 95 % Wilson interval
        ``reward_rate_low`` and ``reward_rate_high``, ``family_entropy`` of the shares among valid proposals, in nats
        (at most ln n, so that rows of like n compare), ``family_entropy_share`` (the same divided by ln of the number
        of families in the whole frame; NaN for a single one), ``action_entropy`` (of whole actions), ``seconds``
        (mean) and ``errors`` (count). Entropies are NaN where nothing was valid.
    """
    frame = prepared(rollouts)
    most = math.log(max(1, frame["family"].nunique()))
    rows = []
    for iteration, source, part in _by_source(frame):
        valid = part[part["valid"]]
        earned = int((part["reward"] > 0).sum())
        low, high = wilson_interval(earned, len(part))
        of_families = _entropy(valid["family"])
        rows.append(
            {
                "iteration": iteration,
                "source": source,
                "n": len(part),
                "valid": float(part["valid"].mean()),
                "reward_rate": earned / len(part),
                "reward_rate_low": low,
                "reward_rate_high": high,
                "family_entropy": of_families,
                "family_entropy_share": of_families / most if most > 0 else math.nan,
                "action_entropy": _entropy(valid["action"]),
                "seconds": float(part["seconds"].mean()),
                "errors": int(part["error"].notna().sum()),
            }
        )
    return pd.DataFrame(rows)


def family_shares(rollouts: pd.DataFrame) -> pd.DataFrame:
    """How often each iteration chose each family.

    Returns:
        A row an iteration, source (as in :func:`iteration_measures`) and family, 0 included: ``n`` and ``share``.
        Proposals that were not valid are the family ``not valid``, if there is any in the frame; an iteration's shares
        are 1 together.
    """
    frame = prepared(rollouts)
    names = [*families_of(frame), *([NOT_VALID] if frame["family"].isna().any() else [])]
    frame["family"] = frame["family"].fillna(NOT_VALID)
    rows = [
        (iteration, source, family, int(n), n / len(part))
        for iteration, source, part in _by_source(frame)
        for family, n in part["family"].value_counts().reindex(names, fill_value=0).items()
    ]
    return pd.DataFrame(rows, columns=["iteration", "source", "family", "n", "share"])


def family_measures(rollouts: pd.DataFrame) -> pd.DataFrame:
    """What each family did for each task.

    Returns:
        A row a task (as they come) and family (by name) that was proposed for it: ``n``, ``share`` (of all the task's
        proposals; what is missing to 1 was not valid), ``reward_rate``, ``accuracy_gain`` (mean of after less before,
        of those that have both; NaN where there is none) and ``executed`` (count).
    """
    frame = prepared(rollouts)
    frame["rewarded"] = frame["reward"] > 0
    frame["gain"] = frame["accuracy_after"] - frame["accuracy_before"]
    frame["of_task"] = frame.groupby("task")["task"].transform("size").astype("int64")
    # tasks as they come
    frame["place"] = frame["task"].map({task: n for n, task in enumerate(frame["task"].unique())})
    found = frame.groupby(["place", "task", "family"]).agg(
        n=("task", "size"),
        share=("of_task", "first"),
        reward_rate=("rewarded", "mean"),
        accuracy_gain=("gain", "mean"),
        executed=("executed", "sum"),
    )
    return found.assign(share=found["n"] / found["share"]).droplevel("place").reset_index()


def policy_text(rollouts: pd.DataFrame) -> str:
    """Rollouts in Markdown: how it went by iteration, then which families each task was given."""
    frame = prepared(rollouts)
    if frame.empty:
        return "There are no rollouts.\n"
    rows = [
        {
            "iteration": iteration_name(row["iteration"]),
            "source": str(row["source"]),
            "rollouts": str(row["n"]),
            "valid": two_digits(row["valid"]),
            "reward rate": with_interval(
                *(row[f"reward_rate{end}"] for end in ("", "_low", "_high"))
            ),
            "entropy of families": _with_share(row["family_entropy"], row["family_entropy_share"]),
            "entropy of actions": two_digits(row["action_entropy"]),
            "seconds": two_digits(row["seconds"]),
            "errors": str(row["errors"]),
        }
        for row in iteration_measures(frame).to_dict("records")
    ]
    methods = list(dict.fromkeys(frame["method"]))
    text = [markdown_table(pd.DataFrame(rows)), _ITERATION_LEGEND]
    if len(methods) > 1:
        text.append(f"Counted together: {', '.join(map(str, methods))}.")
    text += ["### Families", markdown_table(_share_rows(frame)), _FAMILY_LEGEND]
    return "\n\n".join(text) + "\n"


def prepared(rollouts: pd.DataFrame) -> pd.DataFrame:
    """A copy of the columns that are measured here, with one type each whatever stored them, and rows numbered.

    What is not valid has no family.
    """
    missing = [column for column in _TYPES if column not in rollouts]
    if missing and len(rollouts):
        raise ResultsError(
            f"the rollouts have no column {', '.join(missing)}; give the rows as they were recorded"
        )
    kept = [*_TYPES, *(["run"] if "run" in rollouts else [])]
    frame = rollouts.reindex(columns=kept).reset_index(drop=True)
    for column, kind in _TYPES.items():
        # a column may hold None, NaN or NA where nothing was measured
        if kind == "float64":
            frame[column] = frame[column].astype("Float64")
        elif kind == "bool":
            frame[column] = frame[column].astype("boolean").fillna(False)
    frame = frame.astype(_TYPES)
    frame["family"] = frame["family"].where(frame["valid"])
    return frame


def families_of(rollouts: pd.DataFrame) -> list[str]:
    """The families that were proposed at all, by name."""
    return sorted(str(family) for family in rollouts["family"].dropna().unique())


def iterations_of(rollouts: pd.DataFrame) -> list[int]:
    """The iterations of training in their order, then test time."""
    return sorted(map(int, rollouts["iteration"].unique()), key=lambda i: (i == TEST_TIME, i))


def iteration_name(iteration: Any) -> str:
    """``3``, or ``test`` for test time."""
    return "test" if iteration == TEST_TIME else f"{iteration}"


def _by_source(frame: pd.DataFrame) -> Iterator[tuple[int, str, pd.DataFrame]]:
    for iteration in iterations_of(frame):
        of_iteration = frame[frame["iteration"] == iteration]
        for source in ("policy", "uniform"):
            part = of_iteration[of_iteration["source"] == source]
            if len(part):
                yield iteration, source, part
        yield iteration, "all", of_iteration


def _entropy(chosen: pd.Series[Any]) -> float:
    counts = chosen.value_counts().to_numpy()
    return float(entropy(counts)) if len(counts) else math.nan


def _share_rows(frame: pd.DataFrame) -> pd.DataFrame:
    names = families_of(frame)
    parts = [part for _, part in frame.groupby("task", sort=False)]
    if len(parts) > 1:
        # which task a family was executed for has no meaning for all of them
        parts.append(frame.assign(task="**all**", executed=False))
    rows = []
    for part in parts:
        cells = dict.fromkeys(names, "0.00")
        for found in family_measures(part).to_dict("records"):
            rewarded = round(found["reward_rate"] * found["n"])
            star = "*" if found["executed"] else ""
            cells[str(found["family"])] = f"{star}{found['share']:.2f} ({rewarded}/{found['n']})"
        invalid = f"{1 - part['valid'].mean():.2f}"
        rows.append([str(part["task"].iloc[0]), str(len(part)), *cells.values(), invalid])
    return pd.DataFrame(rows, columns=["task", "rollouts", *names, NOT_VALID])


def _with_share(value: Any, share: Any) -> str:
    return two_digits(value) + ("" if pd.isna(share) else f" ({share:.2f})")
