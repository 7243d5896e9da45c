"""What a family of strategies may see of a task: the types are the rule.

A family that adapts without supervision is given :class:`Prompts`. These hold questions, and a question has no answer:
there is nothing in it that could leak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from degaml_kedro.strategies.state import AdaptedState
from degaml_kedro.tasks.example import Example, Question


@dataclass(frozen=True)
class Nothing:
    """Nothing of the task: the family works on weights alone."""


@dataclass(frozen=True)
class Prompts:
    """Questions without their answers, at least one."""

    questions: tuple[Question, ...]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Prompts:
        """The questions of examples."""
        return cls(tuple(Question.of(example) for example in examples))


@dataclass(frozen=True)
class Labeled:
    """Examples with their answers, at least one."""

    examples: tuple[Example, ...]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A strategy that was tried from the same state, of one adapter and without a vote or a vector of its own.

    Attributes:
        scores: option scores of every example, [examples][options], by what had not seen that example's answer.
        refined: makes its state, of one member.
    """

    action: str
    family: str
    scores: tuple[tuple[float, ...], ...]
    refined: Callable[[], AdaptedState]


@dataclass(frozen=True)
class Candidates:
    """Examples with their answers, and what was tried on them: for a family that puts adapters together.

    While such a family is tried, ``refined`` gives stand-ins that cannot be asked: what their vote answers is worked
    out from ``scores``, so that nothing is trained or asked twice.

    Attributes:
        tried: in the order of their trials.
    """

    examples: tuple[Example, ...]
    tried: tuple[Candidate, ...]
