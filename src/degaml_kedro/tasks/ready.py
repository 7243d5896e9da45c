"""Ready tasks: tasks that only examples define, to try adaptation on without examples of one's own.

They stand in ``suite/data/ready.json``. Most are of the development pools, which the shipped pair was not trained on
(``docs/suite.md``).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from degaml_kedro.config.schema import EpisodeSource
from degaml_kedro.tasks.episodes import TooFewTextsError, episode_examples
from degaml_kedro.tasks.example import Example, TaskError, did_you_mean
from degaml_kedro.tasks.suite import material
from degaml_kedro.tasks.suite.data import read_data

MAX_EXAMPLES = 1000


@dataclass(frozen=True)
class ReadyTask:
    """A task of the suite with fixed labels.

    Attributes:
        name: What commands call it.
        title: The same for people.
        description: What is asked, in one sentence.
        source: What its examples follow from, but for the seed.

    Example:
        >>> support, held_out = ready_tasks()[0].draw(support=20, held_out=10, seed=0)
        >>> len(support), len(held_out)
        (20, 10)
    """

    name: str
    title: str
    description: str
    source: EpisodeSource

    @property
    def seen(self) -> bool:
        """Whether tasks of its rule, or of its domain, are for training."""
        return self.source.pool == material.TRAIN

    def draw(self, support: int, held_out: int, seed: int) -> tuple[list[Example], list[Example]]:
        """Examples to adapt to, at least 1, and others to score on; no question comes twice.

        With the same seed, raising ``held_out`` moves no support example.

        Raises:
            TaskError: A number is out of range, or the task has fewer examples.
        """
        asked = f"The ready task '{self.name}' was asked for {support} support and {held_out} held-out examples"
        if support < 1 or held_out < 0 or support + held_out > MAX_EXAMPLES:
            raise TaskError(
                f"{asked}; ask for at least 1 and at least 0, and for {MAX_EXAMPLES:,} together at most."
            )
        own_seed = random.Random(seed).getrandbits(62)
        source = self.source.model_copy(update={"seed": own_seed})
        try:
            found = episode_examples(source, {"support": support, "test": held_out})
        except TooFewTextsError:
            raise TaskError(f"{asked}, and does not have so many; ask for fewer.") from None
        return found["support"], found["test"]


@cache
def ready_tasks() -> tuple[ReadyTask, ...]:
    """All ready tasks, those that are not for training first: they show what adaptation is worth."""
    return tuple(sorted(map(_ready_task, read_data("ready")), key=lambda task: task.seen))


def _ready_task(entry: Mapping[str, Any]) -> ReadyTask:
    drawn = dict(entry)
    told = {key: drawn.pop(key) for key in ("name", "title", "description")}
    if drawn["form"] == "rules":
        pool, _ = material.pool_of_rule(drawn["subject"], drawn["classes"][0])
    else:
        pool = material.pool_of_subject(drawn["form"], drawn["subject"])
    source = EpisodeSource.model_validate({"kind": "episode", "pool": pool, "seed": 0, **drawn})
    return ReadyTask(**told, source=source)


def ready_task(name: str) -> ReadyTask:
    """The ready task of a name.

    Raises:
        TaskError: There is none.
    """
    by_name = {task.name: task for task in ready_tasks()}
    if name in by_name:
        return by_name[name]
    hint = did_you_mean(name, by_name, f"use one of {', '.join(sorted(by_name))}.", 3)
    raise TaskError(f"There is no ready task '{name}'; {hint}")
