"""Episodes: what a step of meta-training draws from its tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from degaml_kedro.baselines.learned import BaselineError, TaskExamples
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import MetaTraining
from degaml_kedro.tasks.example import Example

# a source of tasks without end: (which draw, support examples, query examples) -> the two, of one task
Draw = Callable[[int, int, int], tuple[Sequence[Example], Sequence[Example]]]


def tasks_of_step(
    tasks: Sequence[TaskExamples], draw: Draw | None, parameters: MetaTraining, step: int
) -> Sequence[TaskExamples]:
    """The tasks that a step, counted from 1, draws its episodes from: its own from a source, or those listed."""
    if draw is None:
        return tasks
    first = (step - 1) * parameters.tasks_per_step
    return [
        TaskExamples(
            f"drawn {number}", list(chain(*draw(number, parameters.support, parameters.query)))
        )
        for number in range(first, first + parameters.tasks_per_step)
    ]


@dataclass(frozen=True)
class Episode:
    """A task's part in an outer step: what inner steps learn from, and the query that judges; they are disjoint.

    ``demonstrations`` are what stands in front of each support example, then of each query; never a query.
    """

    task: str
    support: tuple[Example, ...]
    query: tuple[Example, ...]
    demonstrations: tuple[tuple[Example, ...], ...]


def draw_episodes(
    tasks: Sequence[TaskExamples],
    parameters: MetaTraining,
    step: int,
    seed: int,
    shown: int = 0,
    entry: str = "maml_en_llm",
) -> list[Episode]:
    """The episodes of an outer step: they follow from the tasks, in any order, the seed and the step alone.

    No task comes twice before all came once. ``shown`` in-context examples stand in front of each example. ``entry`` is
    the method's key below `baselines`, for messages.

    Raises:
        BaselineError: as :func:`checked_tasks`.
    """
    tasks = checked_tasks(tasks, parameters, shown, entry)
    order: list[int] = []
    while len(order) < parameters.tasks_per_step:
        order += _shuffle(len(tasks), seed, str(step), "tasks", str(len(order)))
    episodes = []
    for place, index in enumerate(order[: parameters.tasks_per_step]):
        task = tasks[index]
        names = (str(step), str(place // len(tasks)), task.name)
        cards = _shuffle(len(task.examples), seed, *names)
        query, others = cards[: parameters.query], cards[parameters.query :]
        support = others[: parameters.support]
        decks = []
        for own in (*support, *query):
            deck = _shuffle(len(others), seed, *names, "shown", str(own))
            decks.append([others[i] for i in deck if others[i] != own][:shown])
        chosen = (tuple(task.examples[card] for card in hand) for hand in (support, query, *decks))
        episodes.append(Episode(task.name, next(chosen), next(chosen), tuple(chosen)))
    # sums of floats depend on their order: this one is the same however tasks are listed and drawn
    return sorted(episodes, key=lambda episode: episode.task)


def checked_tasks(
    tasks: Sequence[TaskExamples],
    parameters: MetaTraining,
    shown: int = 0,
    entry: str = "maml_en_llm",
) -> list[TaskExamples]:
    """The tasks by name: however they are listed, a step draws the same ones.

    Raises:
        BaselineError: there are no tasks, two have one name, or one has too few examples.
    """
    if not tasks:
        raise BaselineError("there are no tasks to meta-train on; name some under meta_train")
    name, count = Counter(task.name for task in tasks).most_common(1)[0]
    if count > 1:
        raise BaselineError(
            f"the task {name} is listed {count} times for meta-training; once will do"
        )
    needed = parameters.query + max(parameters.support, shown + 1 if shown else 0)
    for task in tasks:
        if len(task.examples) < needed:
            context = f" behind {shown} others in the prompt" if shown else ""
            less = ", .query or .in_context_examples" if shown else " or .query"
            raise BaselineError(
                f"the task {task.name} has {len(task.examples)} train examples, and an episode takes {needed}: "
                f"{parameters.support} support and {parameters.query} query examples{context}; lower "
                f"baselines.{entry}.support{less}, or raise the task's splits.train"
            )
    return sorted(tasks, key=lambda task: task.name)


def _shuffle(count: int, seed: int, *names: str) -> list[int]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "maml", *names))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
