"""Ready tasks: tasks that only examples define, to try adaptation on without examples of one's own.

They stand in ``suite/data/ready.json``. Most are of the development pools, which the shipped pair was not trained on
(``docs/suite.md``).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from degaml_kedro.parameters import EpisodeSource
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
        seen: Whether tasks of its rule, or of its domain, are for training.

    Example:
        >>> support, held_out = ready_tasks()[0].draw(support=20, held_out=10, seed=0)
        >>> len(support), len(held_out)
        (20, 10)
    """

    name: str
    title: str
    description: str
    seen: bool

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
        source = _sources()[self.name].model_copy(update={"seed": own_seed})
        try:
            found = episode_examples(source, {"support": support, "test": held_out})
        except TooFewTextsError:
            raise TaskError(f"{asked}, and does not have so many; ask for fewer.") from None
        return found["support"], found["test"]


@cache
def ready_tasks() -> tuple[ReadyTask, ...]:
    """All ready tasks, those that are not for training first: they show what adaptation is worth."""
    found = [
        ReadyTask(
            entry["name"], entry["title"], entry["description"], source.pool == material.TRAIN
        )
        for entry, source in zip(read_data("ready"), _sources().values(), strict=True)
    ]
    return tuple(sorted(found, key=lambda task: task.seen))


@cache
def _sources() -> dict[str, EpisodeSource]:
    """What the examples of each task follow from, but for the seed."""
    found = {}
    for entry in read_data("ready"):
        form, subject, classes = entry["form"], entry["subject"], entry["classes"]
        pool = (
            material.pool_of_rule(subject, classes[0])[0]
            if form == "rules"
            else material.pool_of_subject(form, subject)
        )
        drawn = {
            key: entry[key] for key in ("form", "subject", "classes", "labels") if key in entry
        }
        given = {"kind": "episode", **drawn, "pool": pool, "seed": 0}
        found[entry["name"]] = EpisodeSource.model_validate(given)
    return found


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
