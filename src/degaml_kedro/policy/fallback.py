"""What was best on the meta-train tasks: a search executes it where the support examples cannot tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.strategies.seen import Candidates

# tasks that a family has to be tried on; and how many an action's family counts for beside the action's own
FEWEST_TASKS = 3
# of tasks that a fallback is learned for by themselves, in words
KINDS = {"closed": "tasks of a closed set of answers", "open": "tasks with open answers"}
# beside the policy, where a run keeps its models
FALLBACK_FILE = "policy_fallback.json"


@dataclass(frozen=True)
class Worth:
    """What an action came to on the tasks that it was tried on.

    Attributes:
        action: its text.
        family: its family's name.
        tasks: how many.
        gain: the mean over tasks of log p(right answer), after less before and less what the task gave to all, in
            nats, drawn towards its family's.
        accuracy_gain: the same of accuracy, -1 to 1, less the price of the trials' seconds where the reward has one:
            what it is ranked by.
    """

    action: str
    family: str
    tasks: int
    gain: float
    accuracy_gain: float


def with_fallback(
    policy: Mapping[str, Any], learned: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """The policy's parameters, as plain data, with what was learned as the fallback of a search that names none."""
    search = policy.get("search") or {}
    if learned is None or search.get("rule") != "paired" or search.get("fallback") is not None:
        return policy
    every = learned["actions"]
    # files of earlier versions know one fallback for all tasks
    closed, of_open = (learned.get(kind) for kind in KINDS)
    found: dict[str, Any] = {"fallback": list(every if closed is None else closed)}
    given = search.get("open_fallback") is not None
    if not given and (closed is not None or of_open is not None):
        found["open_fallback"] = list(every if of_open is None else of_open)
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
        **{kind: _first(learned.get(f"{kind}_ranking"), families) for kind in KINDS},
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
        space: the actions.
        open_tasks: those whose questions have options of their own.
        price: accuracy that a second of a trial costs, as in the reward.

    Returns:
        As JSON: ``actions``, the best action's text alone, or nothing where no action gained anything; ``closed`` and
        ``open``, the same of the tasks of a kind, None where no family was tried on ``FEWEST_TASKS`` of them;
        ``ranking``, ``closed_ranking`` and ``open_ranking``: what each was chosen from.
    """
    every = [asdict(worth) for worth in rank_actions(rows, space, price)]
    found: dict[str, Any] = {"ranking": every}
    for kind in KINDS:
        own = [row for row in rows if (str(row["task"]) in open_tasks) == (kind == "open")]
        first = {(row["family"], row["task"]) for row in own if row["valid"] and row["round"] == 1}
        tried = Counter(family for family, _ in first)
        enough = max(tried.values(), default=0) >= FEWEST_TASKS
        found[f"{kind}_ranking"] = (
            [asdict(worth) for worth in rank_actions(own, space, price)] if enough else None
        )
    families = [one.name for one in space.families]
    return {
        "actions": _first(every, families),
        **{kind: _first(found[f"{kind}_ranking"], families) for kind in KINDS},
        **found,
    }


def rank_actions(
    rows: Iterable[Mapping[str, Any]], space: ActionSpace, price: float = 0.0
) -> list[Worth]:
    """The actions that answered more questions right on the meta-train tasks, the best first.

    Accuracy decides, not likelihood: where a task cannot be learned from its examples, an adapter that is sure of
    itself loses many nats, and one such task outweighs all others. Where seconds have a price, it is taken off.

    Tasks differ in what can be gained on them, and not all actions are tried on the same ones: what a task gave to the
    families on average, less the mean over tasks of that, is taken off its trials. An action's gain is that of its
    tasks' means and of its family's mean, the latter as of ``FEWEST_TASKS`` tasks: few actions are tried on many tasks,
    and one that was tried once says more of its family than of itself. A trial that failed
    gained nothing. Families that were tried on fewer tasks are left out, and so are those that put together what was
    tried before them.

    Args:
        rows: rollouts of all meta-train tasks and iterations; the first steps count, which start where a search does.
        space: the actions.
        price: accuracy that a second of a trial costs.

    Returns:
        Those with a gain of accuracy above 0, with and without what tasks gave to all; between equal ones likelihood
        decides, then the text.
    """
    gains: dict[str, dict[str, dict[str, list[NDArray[np.float64]]]]] = {}
    for row in rows:
        name = row["family"]
        if not isinstance(name, str) or row["round"] > 1 or space.family(name).sees is Candidates:
            continue
        by_task = gains.setdefault(name, {}).setdefault(str(row["action"]), {})
        by_task.setdefault(str(row["task"]), []).append(_gain(row, price))
    by_family = {name: _together(actions.values()) for name, actions in gains.items()}
    ease = _ease(by_family.values())
    as_is = dict.fromkeys(ease, np.zeros(2))
    found = []
    for name, pooled in by_family.items():
        if len(pooled) < FEWEST_TASKS:
            continue
        for action, by_task in gains[name].items():
            gain, accuracy = _drawn(by_task, pooled, ease)
            # better than others on its tasks is not yet better than nothing
            _, alone = _drawn(by_task, pooled, as_is)
            if accuracy > 0 and alone > 0:
                found.append(Worth(action, name, len(by_task), float(gain), float(accuracy)))
    return sorted(found, key=lambda one: (-one.accuracy_gain, -one.gain, one.action))


# what trials gained, by task; [2]: log p(right answer) and accuracy
_Gains = Mapping[str, Sequence[NDArray[np.float64]]]


def _together(parts: Iterable[_Gains]) -> dict[str, list[NDArray[np.float64]]]:
    pooled: dict[str, list[NDArray[np.float64]]] = {}
    for by_task in parts:
        for task, pairs in by_task.items():
            pooled.setdefault(task, []).extend(pairs)
    return pooled


def _ease(families: Iterable[_Gains]) -> dict[str, NDArray[np.float64]]:
    """How much more is gained on a task than on the mean task, [2]: the mean over families of their means there."""
    by_task = _together(
        {task: [np.mean(pairs, axis=0)] for task, pairs in pooled.items()} for pooled in families
    )
    means = {task: np.mean(rows, axis=0) for task, rows in by_task.items()}
    overall = np.mean(list(means.values()), axis=0) if means else 0.0
    return {task: mean - overall for task, mean in means.items()}


def _drawn(
    by_task: _Gains, of_family: _Gains, ease: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """An action's mean over tasks, drawn towards its family's as by ``FEWEST_TASKS`` tasks, [2]."""
    count = len(by_task)
    weighted = count * _mean(by_task, ease) + FEWEST_TASKS * _mean(of_family, ease)
    return weighted / (count + FEWEST_TASKS)


def _mean(by_task: _Gains, ease: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean over tasks of their means, each less what its task gives to all, [2]."""
    means = [np.mean(pairs, axis=0) - ease[task] for task, pairs in by_task.items()]
    found: NDArray[np.float64] = np.mean(means, axis=0)
    return found


def _gain(row: Mapping[str, Any], price: float) -> NDArray[np.float64]:
    """Of log p(right answer) and of accuracy less its price; 0 where the trial failed or a likelihood is no number."""
    before, after = (row[f"log_probability_{when}"] for when in ("before", "after"))
    if isinstance(row["error"], str) or not math.isfinite(before) or not math.isfinite(after):
        return np.zeros(2)
    accuracy = row["accuracy_after"] - row["accuracy_before"]
    return np.array([after - before, accuracy - price * row["seconds"]])
