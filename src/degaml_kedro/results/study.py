"""Several runs with different seeds put together: ``python -m degaml_kedro.results.study FOLDER``.

The folder holds one data folder a seed. Methods are compared question by question: within every task and seed the
questions are drawn again with replacement, tasks and seeds stay (a paired bootstrap with tasks and seeds as strata).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import bootstrap

from degaml_kedro.errors import DegamlError
from degaml_kedro.parameters import ADAPTED, GENERATED
from degaml_kedro.results.policy_measures import policy_text, reward_rate_ratio
from degaml_kedro.results.table import POOLS, markdown

RESAMPLES = 5000


class StudyError(DegamlError):
    """Runs that cannot be put together."""


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another.

    Attributes:
        mean: mean accuracy of the first less that of the second, tasks and seeds weighing alike.
        low: lower end of the 95 % interval.
        high: upper end.
        strata: tasks times seeds.
    """

    mean: float
    low: float
    high: float
    strata: int


def paired_difference(
    pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> Difference:
    """A paired bootstrap over questions, within strata.

    Args:
        pairs: for every task and seed, how right both methods were on each question, [n] in [0, 1] each: a mean over
            draws where a method draws several adapters.

    Raises:
        StudyError: there is no stratum, or the methods answered different numbers of questions.
    """
    if not pairs:
        raise StudyError("there is nothing to compare: no task has both methods")
    if any(len(a) != len(b) for a, b in pairs):
        raise StudyError(
            "the methods answered different numbers of questions; score them on the same split"
        )
    differences = [a - b for a, b in pairs]
    mean = float(np.mean([d.mean() for d in differences]))
    if all(np.ptp(d) == 0 for d in differences):
        return Difference(mean, mean, mean, len(pairs))

    def statistic(*strata: NDArray[np.float64], axis: int = -1) -> NDArray[Any]:
        means: NDArray[Any] = np.stack([s.mean(axis=axis) for s in strata]).mean(axis=0)
        return means

    interval = bootstrap(
        tuple(differences),
        statistic,
        n_resamples=RESAMPLES,
        batch=100,
        vectorized=True,
        paired=False,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high), len(pairs))


def read_runs(folder: Path) -> dict[str, pd.DataFrame]:
    """Results of every seed's run, by the folder's name.

    Args:
        folder: holds one data folder a seed, ``seed_999``.

    Raises:
        StudyError: there is none.
    """
    found = {
        path.parents[1].name: pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["results"])
        for path in sorted(folder.glob("*/08_reporting/results.json"))
    }
    if not found:
        raise StudyError(f"{folder} holds no finished run; `make study` makes them")
    return found


def rightness(data: Path, result: Mapping[str, Any]) -> NDArray[np.float64]:
    """How right a method was on each question of a task: 0 or 1, or a mean over draws.

    Args:
        data: a run's data folder.
        result: its row of the results.
    """
    task, method = result["task"], result["method"]
    name = f"{task}.{method}.parquet"
    path = data / "07_model_output" / name
    if result["pool"] == "left_out" and method not in ("base", "no_meta_train"):
        # the group that leaves the task out has it in its name
        (path,) = (data / "07_model_output").glob(f"without_*.{name}")
    frame = pd.read_parquet(path)
    right = (frame["predicted"].fillna(-1).astype(int) == frame["gold"]).astype(float)
    return np.asarray(right.groupby(frame["index"]).mean(), dtype=np.float64)


AGAINST = ("base", "mean_adapter", "pooled", "generalization_only", "random_policy")


def study_report(folder: Path, against: Sequence[str] = AGAINST) -> str:
    """Tables of mean accuracies over seeds, and of differences with their intervals.

    Args:
        folder: holds one data folder a seed.
        against: the methods that the others are compared with.
    """
    runs = read_runs(folder)
    frame = pd.concat([results.assign(run=run) for run, results in runs.items()])
    methods = list(dict.fromkeys(frame["method"]))
    text = [f"Seeds: {', '.join(run.removeprefix('seed_') for run in runs)}.", ""]
    for pool in POOLS:
        of_pool = frame[frame["pool"] == pool]
        if of_pool.empty:
            continue
        rows = [["task", pool, *methods]]
        for task in [*dict.fromkeys(of_pool["task"]), None]:
            part = of_pool if task is None else of_pool[of_pool["task"] == task]
            cells = [_over_seeds(part[part["method"] == method]) for method in methods]
            rows.append(["**mean**" if task is None else task, str(part["run"].nunique()), *cells])
        rows[0][1] = "seeds"
        text += [f"### {pool}", "", markdown(rows), ""]
        text += [_differences(folder, of_pool, methods, against), ""]
        text += _by_task(folder, of_pool, [name for name in methods if name in ADAPTED])
    return "\n".join([*text, *_policies(folder, list(runs))])


def _by_task(folder: Path, results: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    """What refining added on each task, with its interval over questions and seeds."""
    start = GENERATED[0]
    if not methods or start not in set(results["method"]):
        return []
    rows = [["task", "seeds", *(f"{method} less {start}" for method in methods)]]
    for task, part in results.groupby("task", sort=False):
        cells = []
        for method in methods:
            pairs = []
            for run, own in part.groupby("run"):
                by_method = {str(row["method"]): row for row in own.to_dict("records")}
                if method in by_method and start in by_method:
                    both = (by_method[method], by_method[start])
                    a, b = (
                        rightness(folder / str(run), {str(k): v for k, v in row.items()})
                        for row in both
                    )
                    pairs.append((a, b))
            found = paired_difference(pairs) if pairs else None
            cells.append("" if found is None else _interval(found))
        rows.append([str(task), str(part["run"].nunique()), *cells])
    return [markdown(rows), ""]


def _interval(difference: Difference) -> str:
    return f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def _policies(folder: Path, runs: Sequence[str]) -> list[str]:
    """What the policies of all runs did, where there are any: in training, and on new tasks."""
    text = []
    for file, title in (
        ("policy_rollouts", "The policy in training"),
        ("strategies", "Strategies on new tasks"),
    ):
        paths = [folder / run / "08_reporting" / f"{file}.parquet" for run in runs]
        frames = [
            pd.read_parquet(path).assign(run=run)
            for path, run in zip(paths, runs, strict=True)
            if path.is_file()
        ]
        if not frames:
            continue
        rollouts = pd.concat(frames, ignore_index=True)
        text += [f"### {title}", ""]
        for method, own in rollouts.groupby("method", sort=False):
            text += [f"#### {method}", "", policy_text(own), ""]
        if rollouts["method"].nunique() > 1:
            found = reward_rate_ratio(rollouts, "degaml", "random_policy")
            text += [
                (
                    f"Share of first-round proposals that were rewarded: degaml {_decimals(found['rate_a'])} "
                    f"(n = {found['n_a']}), random_policy {_decimals(found['rate_b'])} (n = {found['n_b']}), ratio "
                    f"{_decimals(found['ratio'])} ({_decimals(found['low'])} to {_decimals(found['high'])}), "
                    f"{found['strata']} tasks x seeds."
                ),
                "",
            ]
    return text


def _decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _over_seeds(part: pd.DataFrame) -> str:
    if part.empty:
        return ""
    by_run = part.groupby("run")["accuracy"].mean()
    spread = f" ±{by_run.std():.2f}" if len(by_run) > 1 else ""
    return f"{by_run.mean():.2f}{spread}"


def _differences(
    folder: Path, results: pd.DataFrame, methods: Sequence[str], against: Sequence[str]
) -> str:
    right: dict[tuple[str, str, str], NDArray[np.float64]] = {}
    for row in results.to_dict("records"):
        key = (str(row["run"]), str(row["task"]), str(row["method"]))
        right[key] = rightness(folder / key[0], {str(k): v for k, v in row.items()})
    others = [name for name in against if name in methods]
    rows = [["method", "strata", *(f"less {name}" for name in others)]]
    for method in methods:
        cells, strata = [], 0
        for other in others:
            places = [
                (run, task)
                for run, task, name in right
                if name == method and (run, task, other) in right
            ]
            if not places or method == other:
                cells.append("")
                continue
            pairs = [(right[r, t, method], right[r, t, other]) for r, t in places]
            found = paired_difference(pairs)
            strata = found.strata
            cells.append(_interval(found))
        if any(cells):
            rows.append([method, str(strata), *cells])
    return markdown(rows)


def main() -> None:
    """Print the report of a folder of runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data/study"))
    print(study_report(parser.parse_args().folder))


if __name__ == "__main__":
    main()
