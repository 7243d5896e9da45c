"""What strategies work with: the frozen model, how questions become text, and fresh adapters of the task.

There is no task data in it. What a family sees of a task is handed to it separately (see ``observations.py``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.progress import Progress
from degaml_kedro.config.schema import PromptParameters, ScoringParameters
from degaml_kedro.generator.examples import ExampleGenerator
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.strategies.state import Member
from degaml_kedro.tasks.example import Question


class StrategyError(DegamlError):
    """A strategy that cannot be carried out."""


class OutOfTimeError(DegamlError):
    """The wall-clock budget of a task is used up."""


class Interruption(BaseException):
    """Somebody wants the work to stop. No `except Exception` around a strategy takes it for a failed one."""


@dataclass
class Meter:
    """Tokens that the base model computed in forward and in backward passes."""

    forward: int = 0
    backward: int = 0

    @property
    def tokens(self) -> int:
        """Those of both."""
        return self.forward + self.backward


@dataclass(frozen=True, eq=False)
class Context:
    """What strategies work with.

    Attributes:
        base: the frozen model.
        scoring: how answers are scored, in the task's mode.
        draw: (seed, number) -> a fresh adapter of the task with its prompt batch; None where there is no generator.
        embed: sentence embeddings of questions, float32 [Q, C] of length 1; None where there is no encoder.
        writer: the generator that writes an adapter from labelled examples; None where there is none.
        deadline: on ``time.monotonic``; None for no budget.
        interrupted: set by another thread to stop the work; None where nobody can.
    """

    base: BaseModel
    prompt: PromptParameters
    scoring: ScoringParameters
    draw: Callable[[int, int], Member] | None = None
    embed: Callable[[Sequence[Question]], Tensor] | None = None
    writer: ExampleGenerator | None = None
    meter: Meter = field(default_factory=Meter)
    deadline: float | None = None
    interrupted: threading.Event | None = None

    def check_time(self) -> None:
        """Families call this between steps.

        Raises:
            OutOfTimeError: the budget is used up.
            Interruption: the work is to stop.
        """
        self.check_interrupted()
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTimeError("the wall-clock budget of this task is used up")

    def check_interrupted(self) -> None:
        """Raise an :class:`Interruption` where the work is to stop; what has no budget calls this."""
        if self.interrupted is not None and self.interrupted.is_set():
            raise Interruption

    def watched(self, progress: Progress | None) -> Progress | None:
        """Progress that stops the work where it is to stop."""
        if self.interrupted is None:
            return progress

        def told(done: int, total: int) -> None:
            if progress is not None:
                progress(done, total)
            self.check_interrupted()

        return told
