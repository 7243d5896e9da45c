"""What was best on the meta-train tasks: a search executes it where the support examples cannot tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.strategies.observations import Candidates

# tasks that a family has to be tried on; and how many an action's family counts for beside the action's own
FEWEST_TASKS = 3
# of tasks that a fallback is learned for by themselves, in words
KINDS = {"closed": "tasks of a closed set of answers", "open": "tasks with open answers"}
# beside the policy, where a run keeps its models
FALLBACK_FILE = "policy_fallback.json"


# what trials gained, by task; [2]: log p(right answer) and accuracy
_Gains = Mapping[str, Sequence[NDArray[np.float64]]]


def with_fallback(
    policy: Mapping[str, Any], learned: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """The policy's parameters, as plain data, with what was learned as the fallback of a search that names none."""
    search = policy.get("search") or {}
    if learned is None or search.get("rule") != "paired" or search.get("fallback") is not None:
        return policy
    closed, of_open = learned["closed"], learned["open"]
    found = {"fallback": learned["actions"] if closed is None else closed}
    if search.get("open_fallback") is None and (closed, of_open) != (None, None):
        found["open_fallback"] = learned["actions"] if of_open is None else of_open
    return {**policy, "search": {**search, **found}}


def narrowed(
    policy: Mapping[str, Any], learned: Mapping[str, Any] | None, families: Sequence[str]
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """The policy's parameters and the learned fallback, both of some of the families alone."""
    kept = {name: limits for name, limits in policy["families"].items() if name in families}
    policy = {**policy, "families": kept}
    if learned is None:
        return policy, None
    return policy, {
        "actions": _first(learned["ranking"], families),
        **{kind: _first(learned[f"{kind}_ranking"], families) for kind in KINDS},
    }


def _first(
    ranking: Sequence[Mapping[str, Any]] | None, families: Sequence[str]
) -> list[str] | None:
    """The best action of some families, alone; None where nothing was ranked."""
    if ranking is None:
        return None
    return [worth["action"] for worth in ranking if worth["family"] in families][:1]


def learned_fallback(
    rows: Sequence[Mapping[str, Any]],
    space: ActionSpace,
    open_tasks: Set[str],
    price: float = 0.0,
) -> dict[str, Any]:
    """What is best on the meta-train tasks, on all of them and on those of each kind.

    Which strategy is best depends on whether a task's questions share their options (a closed set of labels) or have
    options of their own (a rule): this much is known of a new task before anything is tried.

    Args:
        rows: rollouts of all meta-train tasks and iterations.
        open_tasks: those whose questions have options of their own.
        price: accuracy that a second of a trial costs.

    Returns:
        As JSON: ``actions``, the best action's text alone, or nothing where no action gained anything; ``closed`` and
        ``open``, the same of the tasks of a kind, None where no family was tried on ``FEWEST_TASKS`` of them;
        ``ranking``, ``closed_ranking`` and ``open_ranking``: what each was chosen from.
    """
    found: dict[str, Any] = {"ranking": rank_actions(rows, space, price)}
    for kind in KINDS:
        own = [row for row in rows if (str(row["task"]) in open_tasks) == (kind == "open")]
        first = {(row["family"], row["task"]) for row in own if row["valid"] and row["round"] == 1}
        tried = Counter(family for family, _ in first)
        enough = max(tried.values(), default=0) >= FEWEST_TASKS
        found[f"{kind}_ranking"] = rank_actions(own, space, price) if enough else None
    families = [one.name for one in space.families]
    return {
        "actions": _first(found["ranking"], families),
        **{kind: _first(found[f"{kind}_ranking"], families) for kind in KINDS},
        **found,
    }


def rank_actions(
    rows: Iterable[Mapping[str, Any]], space: ActionSpace, price: float = 0.0
) -> list[dict[str, Any]]:
    """The actions that answered more questions right on the meta-train tasks, the best first.

    Accuracy decides, not likelihood: where a task cannot be learned from its examples, an adapter that is sure of
    itself loses many nats, and one such task outweighs all others. Where seconds have a price, it is taken off.

    Tasks differ in what can be gained on them, and not all actions are tried on the same ones: what a task gave to the
    families on average, less the mean over tasks of that, is taken off its trials. An action's gain is that of its
    tasks' means and of its family's mean, the latter as of ``FEWEST_TASKS`` tasks: few actions are tried on many tasks,
    and one that was tried once says more of its family than of itself. A trial that failed gained nothing. Families
    that were tried on fewer tasks are left out, and so are those that put together what was tried before them.

    Args:
        rows: rollouts of all meta-train tasks and iterations; the first steps count, which start where a search does.
        price: accuracy that a second of a trial costs.

    Returns:
        Those with a gain of accuracy above 0, with and without what tasks gave to all; between equal ones likelihood
        decides, then the text. Of each: ``action``, its text, ``family``, ``tasks``, how many it was tried on,
        ``gain``, in nats of log p(right answer), and ``accuracy_gain``, -1 to 1.
    """
    gains: dict[str, dict[str, dict[str, list[NDArray[np.float64]]]]] = {}
    for row in rows:
        name = row["family"]
        if not isinstance(name, str) or row["round"] > 1 or space.family(name).sees is Candidates:
            continue
        by_task = gains.setdefault(name, {}).setdefault(str(row["action"]), {})
        by_task.setdefault(str(row["task"]), []).append(_gain(row, price))
    by_family = {name: _together(actions.values()) for name, actions in gains.items()}
    # how much more is gained on a task than on the mean task: the mean over families of their means there
    of_tasks = _together(
        {task: [np.mean(pairs, axis=0)] for task, pairs in pooled.items()}
        for pooled in by_family.values()
    )
    means = {task: np.mean(some, axis=0) for task, some in of_tasks.items()}
    overall = np.mean(list(means.values()), axis=0) if means else 0.0
    ease = {task: mean - overall for task, mean in means.items()}
    as_is = dict.fromkeys(ease, np.zeros(2))
    found = []
    for name, pooled in by_family.items():
        if len(pooled) < FEWEST_TASKS:
            continue
        for action, by_task in gains[name].items():
            gain, accuracy = map(float, _drawn(by_task, pooled, ease))
            # better than others on its tasks is not yet better than nothing
            if accuracy > 0 and _drawn(by_task, pooled, as_is)[1] > 0:
                one = {"action": action, "family": name, "tasks": len(by_task)}
                found.append({**one, "gain": gain, "accuracy_gain": accuracy})
    return sorted(found, key=lambda one: (-one["accuracy_gain"], -one["gain"], one["action"]))


def _together(parts: Iterable[_Gains]) -> dict[str, list[NDArray[np.float64]]]:
    pooled: dict[str, list[NDArray[np.float64]]] = {}
    for by_task in parts:
        for task, pairs in by_task.items():
            pooled.setdefault(task, []).extend(pairs)
    return pooled


def _drawn(
    by_task: _Gains, of_family: _Gains, ease: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """An action's mean over tasks of what each gave to it alone, drawn to its family's as by ``FEWEST_TASKS`` tasks."""
    own, pooled = (
        np.mean([np.mean(pairs, axis=0) - ease[task] for task, pairs in some.items()], axis=0)
        for some in (by_task, of_family)
    )
    count = len(by_task)
    drawn: NDArray[np.float64] = (count * own + FEWEST_TASKS * pooled) / (count + FEWEST_TASKS)
    return drawn


def _gain(row: Mapping[str, Any], price: float) -> NDArray[np.float64]:
    """Of log p(right answer) and of accuracy less its price; 0 where the trial failed or a likelihood is no number."""
    before, after = (row[f"log_probability_{when}"] for when in ("before", "after"))
    if isinstance(row["error"], str) or not math.isfinite(before) or not math.isfinite(after):
        return np.zeros(2)
    accuracy = row["accuracy_after"] - row["accuracy_before"]
    return np.array([after - before, accuracy - price * row["seconds"]])
