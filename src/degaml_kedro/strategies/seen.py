"""What a family of strategies may see of a task: the types are the rule.

A family that adapts without supervision is given :class:`Prompts`. These hold questions, and a question has no answer:
there is nothing in it that could leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from degaml_kedro.tasks.example import Example, Question


@dataclass(frozen=True)
class Nothing:
    """Nothing of the task: the family works on weights alone."""


@dataclass(frozen=True)
class Prompts:
    """Questions without their answers.

    Attributes:
        questions: at least one.
    """

    questions: tuple[Question, ...]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Prompts:
        """The questions of examples."""
        return cls(tuple(Question.of(example) for example in examples))


@dataclass(frozen=True)
class Labeled:
    """Examples with their answers.

    Attributes:
        examples: at least one.
    """

    examples: tuple[Example, ...]
