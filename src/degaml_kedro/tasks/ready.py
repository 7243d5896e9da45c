"""Ready tasks: tasks that only examples define, to try adaptation on without examples of one's own.

They stand in ``suite/data/ready.json``. Most are of the development pools, which the shipped pair was not trained on
(``docs/suite.md``).
"""

from __future__ import annotations

import difflib
import random
from dataclasses import dataclass
from functools import cache

from degaml_kedro.errors import DegamlError
from degaml_kedro.parameters import EpisodeSource
from degaml_kedro.tasks.episodes import TooFewTextsError, episode_examples
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.suite import material

MAX_EXAMPLES = 1000


class ReadyTaskError(DegamlError):
    """Examples of a ready task that cannot be drawn as asked."""


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
        """Examples to adapt to, and others to score on; no question comes twice.

        Args:
            support: How many to adapt to, at least 1.
            held_out: How many to score on.
            seed: Any integer; another one draws other examples.

        Returns:
            The support examples and the held-out ones. With the same seed, raising ``held_out`` moves no support
            example.

        Raises:
            ReadyTaskError: A number is out of range, or the task has fewer examples.
        """
        asked = f"The ready task '{self.name}' was asked for {support} support and {held_out} held-out examples"
        if support < 1 or held_out < 0 or support + held_out > MAX_EXAMPLES:
            raise ReadyTaskError(
                f"{asked}; ask for at least 1 and at least 0, and for {MAX_EXAMPLES:,} together at most."
            )
        source = _sources()[self.name].model_copy(
            update={"seed": random.Random(seed).getrandbits(62)}
        )
        try:
            found = episode_examples(source, {"support": support, "test": held_out})
        except TooFewTextsError:
            raise ReadyTaskError(f"{asked}, and does not have so many; ask for fewer.") from None
        return found["support"], found["test"]


@cache
def ready_tasks() -> tuple[ReadyTask, ...]:
    """All ready tasks, those that are not for training first: they show what adaptation is worth."""
    found = [
        ReadyTask(
            entry["name"], entry["title"], entry["description"], source.pool == material.TRAIN
        )
        for entry, source in zip(material.ready(), _sources().values(), strict=True)
    ]
    return tuple(sorted(found, key=lambda task: task.seen))


def ready_task(name: str) -> ReadyTask:
    """The ready task of a name.

    Raises:
        ReadyTaskError: There is none.
    """
    by_name = {task.name: task for task in ready_tasks()}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=3)
    hint = (
        f"did you mean {' or '.join(repr(other) for other in near)}?"
        if near
        else f"use one of {', '.join(sorted(by_name))}."
    )
    raise ReadyTaskError(f"There is no ready task '{name}'; {hint}")


@cache
def _sources() -> dict[str, EpisodeSource]:
    found = {}
    for entry in material.ready():
        form, subject, classes = entry["form"], entry["subject"], tuple(entry["classes"])
        if form == "rules":
            pool, _ = material.pool_of_rule(subject, classes[0])
        else:
            pool = material.pool_of_subject(form, subject)
        found[entry["name"]] = EpisodeSource.model_validate(
            {
                "kind": "episode",
                "form": form,
                "subject": subject,
                "classes": classes,
                "labels": tuple(entry.get("labels", ())),
                "pool": pool,
                "seed": 0,
            }
        )
    return found
