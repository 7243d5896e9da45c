"""Ready tasks: families of the built-in suite, to try adaptation on without examples of one's own."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from degaml_kedro.errors import DegamlError
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.suite import FAMILIES, CapacityError
from degaml_kedro.tasks.suite.family import Family

# The embedded profile's meta-train pool (conf/base/parameters_tasks.yml).
SEEN = (
    "kind_member",
    "currency_of_country",
    "element_symbol",
    "day_after",
    "month_before",
    "from_roman",
    "addition",
    "starts_with",
    "unit_measures",
    "who_owns",
)
MAX_EXAMPLES = 1000
_TITLES = {"from_roman": "From Roman numerals", "to_roman": "To Roman numerals"}
# At most so many more examples are looked through for held-out questions that are not among the support examples.
_LOOK_FURTHER = 300


class ReadyTaskError(DegamlError):
    """Examples of a ready task that cannot be drawn as asked."""


@dataclass(frozen=True)
class ReadyTask:
    """A family of the built-in suite.

    Attributes:
        name: The family's name.
        title: The same for people.
        description: What is asked, in one sentence.
        seen: Whether the shipped generator was trained on it.

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
        """Examples to adapt to, and others to score on.

        No prompt is in both. Nor is a question with its right answer, as far as the family has enough of them:
        small ones ask the held-out questions with other wrong options.

        Args:
            support: How many to adapt to, at least 1.
            held_out: How many to score on.
            seed: Any integer; another one draws other examples.

        Returns:
            The support examples and the held-out ones. With the same seed, raising ``held_out`` moves no support
            example.

        Raises:
            ReadyTaskError: A number is out of range.
            CapacityError: The family cannot make so many examples.
        """
        if support < 1 or held_out < 0 or support + held_out > MAX_EXAMPLES:
            raise ReadyTaskError(
                f"The ready task '{self.name}' was asked for {support} support and {held_out} held-out examples; "
                f"ask for at least 1 and at least 0, and for {MAX_EXAMPLES:,} together at most."
            )
        family = FAMILIES[self.name]
        stream = family.generate(support + held_out, seed)
        known = {_key(example) for example in stream[:support]}
        rest = _longer(family, stream, support, held_out, seed)
        fresh = [example for example in rest if _key(example) not in known]
        repeated = [example for example in rest if _key(example) in known]
        return stream[:support], [*fresh, *repeated][:held_out]


def _key(example: Example) -> tuple[str, str]:
    return example.question, example.options[example.gold]


def _longer(
    family: Family, stream: list[Example], support: int, held_out: int, seed: int
) -> list[Example]:
    """What may be held out: a good deal more than is needed, where the family makes so much."""
    try:
        further = min(3 * held_out, _LOOK_FURTHER)
        return family.generate(support + held_out + further, seed)[support:]
    except CapacityError:
        return stream[support:]


@cache
def ready_tasks() -> tuple[ReadyTask, ...]:
    """All ready tasks, those that the generator was not trained on first: they show what it is worth."""
    return tuple(sorted(_tasks(), key=lambda task: task.seen))


def _tasks() -> Iterator[ReadyTask]:
    for family in FAMILIES.values():
        title = _TITLES.get(family.name, family.name.replace("_", " ").capitalize())
        yield ReadyTask(family.name, title, family.description, family.name in SEEN)


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
