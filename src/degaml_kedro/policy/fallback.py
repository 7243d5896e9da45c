"""What was best on the meta-train tasks: a search executes it where the support examples cannot tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.strategies.seen import Candidates

# tasks that a family has to be tried on; and how many an action's family counts for beside the action's own
FEWEST_TASKS = 3
# beside the policy, where a run keeps its models
FALLBACK_FILE = "policy_fallback.json"


@dataclass(frozen=True)
class Worth:
    """What an action came to on the tasks that it was tried on.

    Attributes:
        action: its text.
        family: its family's name.
        tasks: how many.
        gain: the mean over tasks of log p(right answer), after less before, in nats, drawn towards its family's.
        accuracy_gain: the same of accuracy, -1 to 1: what it is ranked by.
    """

    action: str
    family: str
    tasks: int
    gain: float
    accuracy_gain: float


def with_fallback(
    policy: Mapping[str, Any], learned: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """The policy's parameters, as plain data, with what was learned as the fallback of a search that names none.

    Args:
        policy: of the configuration.
        learned: of the node ``learn_fallback``; None where there was nothing to learn from.
    """
    search = policy.get("search") or {}
    if learned is None or search.get("rule") != "paired" or search.get("fallback") is not None:
        return policy
    return {**policy, "search": {**search, "fallback": list(learned["actions"])}}


def narrowed(
    policy: Mapping[str, Any], learned: Mapping[str, Any] | None, families: Sequence[str]
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """The policy's parameters and the learned fallback, both of some of the families alone.

    Args:
        policy: of the configuration, as plain data.
        learned: of the node ``learn_fallback``, or None.
        families: which.
    """
    kept = {name: limits for name, limits in policy["families"].items() if name in families}
    policy = {**policy, "families": kept}
    if learned is None:
        return policy, None
    ranking = [worth for worth in learned["ranking"] if worth["family"] in families]
    return policy, {"actions": [worth["action"] for worth in ranking[:1]], "ranking": ranking}


def rank_actions(rows: Iterable[Mapping[str, Any]], space: ActionSpace) -> list[Worth]:
    """The actions that answered more questions right on the meta-train tasks, the best first.

    Accuracy decides, not likelihood: where a task cannot be learned from its examples, an adapter that is sure of
    itself loses many nats, and one such task outweighs all others.

    An action's gain is that of its tasks' means and of its family's mean, the latter as of ``FEWEST_TASKS`` tasks: few
    actions are tried on many tasks, and one that was tried once says more of its family than of itself. A trial that
    failed gained nothing. Families that were tried on fewer tasks are left out, and so are those that put together
    what was tried before them.

    Args:
        rows: rollouts of all meta-train tasks and iterations; the first steps count, which start where a search does.
        space: the actions.

    Returns:
        Those with a gain of accuracy above 0; between equal ones likelihood decides, then the text.
    """
    gains: dict[str, dict[str, dict[str, list[tuple[float, float]]]]] = {}
    for row in rows:
        name = row["family"]
        if not isinstance(name, str) or row["round"] > 1 or space.family(name).sees is Candidates:
            continue
        by_task = gains.setdefault(name, {}).setdefault(str(row["action"]), {})
        by_task.setdefault(str(row["task"]), []).append(_gain(row))
    found = []
    for name, actions in gains.items():
        pooled: dict[str, list[tuple[float, float]]] = {}
        for by_task in actions.values():
            for task, pairs in by_task.items():
                pooled.setdefault(task, []).extend(pairs)
        if len(pooled) < FEWEST_TASKS:
            continue
        of_family = _mean(pooled)
        for action, by_task in actions.items():
            count = len(by_task)
            gain, accuracy = (count * _mean(by_task) + FEWEST_TASKS * of_family) / (
                count + FEWEST_TASKS
            )
            found.append(Worth(action, name, count, float(gain), float(accuracy)))
    better = [worth for worth in found if worth.accuracy_gain > 0]
    return sorted(better, key=lambda one: (-one.accuracy_gain, -one.gain, one.action))


def _mean(by_task: Mapping[str, list[tuple[float, float]]]) -> NDArray[np.float64]:
    """The mean over tasks of their means, [2]."""
    means = [np.mean(pairs, axis=0) for pairs in by_task.values()]
    found: NDArray[np.float64] = np.mean(means, axis=0)
    return found


def _gain(row: Mapping[str, Any]) -> tuple[float, float]:
    """Of log p(right answer) and of accuracy; 0 where the trial failed or a likelihood is no number."""
    before, after = (row[f"log_probability_{when}"] for when in ("before", "after"))
    if isinstance(row["error"], str) or not math.isfinite(before) or not math.isfinite(after):
        return 0.0, 0.0
    return float(after - before), float(row["accuracy_after"] - row["accuracy_before"])
