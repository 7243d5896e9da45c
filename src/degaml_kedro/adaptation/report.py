"""What an adaptation came to: numbers with n and interval, every strategy that was tried, and the time it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from degaml_kedro.llm.scoring import Prediction
from degaml_kedro.results.measures import wilson_interval

Stage = Literal["reading", "base", "generating", "trying", "executing", "scoring", "done"]
STAGES: tuple[Stage, ...] = (
    "reading",
    "base",
    "generating",
    "trying",
    "executing",
    "scoring",
    "done",
)


@dataclass(frozen=True)
class Accuracy:
    """Right answers out of n, with the 95 % Wilson interval.

    Attributes:
        right: how many were right.
        n: how many were asked.

    Example:
        >>> Accuracy(8, 10).text
        '0.80 (0.49–0.94, n = 10)'
    """

    right: int
    n: int

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.right <= self.n:
            raise ValueError(f"{self.right} right answers out of {self.n} are no accuracy")

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> Accuracy:
        """Of predictions, at least one."""
        return cls(sum(p.predicted == p.gold for p in predictions), len(predictions))

    @property
    def share(self) -> float:
        """Right answers of all, 0 to 1."""
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval."""
        return wilson_interval(self.right, self.n)

    @property
    def text(self) -> str:
        """For people: ``0.80 (0.49–0.94, n = 10)``."""
        low, high = self.interval
        return f"{self.share:.2f} ({low:.2f}–{high:.2f}, n = {self.n})"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        low, high = self.interval
        return {"accuracy": self.share, "low": low, "high": high, "right": self.right, "n": self.n}


@dataclass(frozen=True)
class Tried:
    """A strategy that the policy proposed, and what came of it.

    Attributes:
        number: from 1, over all rounds.
        round: from 1.
        action: the proposal, as the policy wrote it.
        family: its family; None where the text was no action.
        words: what it does, for people.
        before: the score it had to beat: the state that it started from, on the support examples.
        after: its own score there; None where it could not be carried out. Families that read answers are scored by
            cross-fitting.
        reward: what it earned: above 0 where it was better.
        seconds: what trying it took.
        executed: whether it was the round's best, and was carried out for good.
        error: why it could not be carried out.
        decided_by: with a paired test, what its round's choice rested on up to it: ``test``, ``fallback`` (what was
            best on the meta-train tasks) or ``initialization``; None without one.
    """

    number: int
    round: int
    action: str
    family: str | None
    words: str
    before: Accuracy
    after: Accuracy | None
    reward: float
    seconds: float
    executed: bool = False
    error: str | None = None
    decided_by: str | None = None


@dataclass(frozen=True)
class Change:
    """A held-out question that is answered otherwise than by the base model.

    Attributes:
        question: without its options.
        options: their texts.
        gold: which is right.
        before: the base model's answer; None for none.
        after: the adapted model's.
    """

    question: str
    options: tuple[str, ...]
    gold: int
    before: int | None
    after: int | None

    @property
    def kind(self) -> Literal["mended", "broken", "other"]:
        """``mended``: wrong before, right now; ``broken``: the other way round; ``other``: wrong both times."""
        if self.after == self.gold:
            return "mended"
        return "broken" if self.before == self.gold else "other"


@dataclass(frozen=True)
class Report:
    """What an adaptation came to; while it goes on, what is known so far.

    Attributes:
        support: how many examples adaptation was given.
        held_out: how many it was not given, and is scored on.
        base: the base model's accuracy on the held-out examples.
        generated: that of the generated adapter, unrefined.
        adapted: that of the final adapter.
        base_support: the base model's accuracy on the support examples.
        generated_support: that of the generated adapter: what strategies had to beat.
        tried: every proposal, in order.
        strategy: the actions that were carried out, in order; empty where nothing beat the generated adapter.
        words: what was done, for people.
        changes: held-out questions whose answer changed, mended ones first.
        seconds: wall time by stage.
        base_model: its name.
        source: where the generator and the policy came from.
        seed: of all randomness.
        warnings: what the user should know: examples left out, a strategy that failed on all of the examples.
    """

    support: int
    held_out: int
    base: Accuracy | None = None
    generated: Accuracy | None = None
    adapted: Accuracy | None = None
    base_support: Accuracy | None = None
    generated_support: Accuracy | None = None
    tried: tuple[Tried, ...] = ()
    strategy: tuple[str, ...] = ()
    words: str = ""
    changes: tuple[Change, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    base_model: str = ""
    source: str = ""
    seed: int = 0
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, record: Any) -> Report:
        """The report that :meth:`as_json` gave.

        Args:
            record: what anybody may have written.

        Raises:
            ValidationError: it is no report.
        """
        return TypeAdapter(cls).validate_python(record)

    def as_json(self) -> dict[str, Any]:
        """For programs: accuracies with n and interval, changes with their kind."""
        record = asdict(self)
        for name in ("base", "generated", "adapted", "base_support", "generated_support"):
            accuracy = getattr(self, name)
            record[name] = None if accuracy is None else accuracy.as_json()
        for row, tried in zip(record["tried"], self.tried, strict=True):
            row["before"] = tried.before.as_json()
            row["after"] = None if tried.after is None else tried.after.as_json()
        for row, change in zip(record["changes"], self.changes, strict=True):
            row["kind"] = change.kind
        return record


@dataclass(frozen=True)
class Progress:
    """Where an adaptation stands.

    Attributes:
        stage: what goes on now.
        message: the same for people.
        share: of the whole, 0 to 1.
        seconds: since it began.
        seconds_left: an estimate; None while there is nothing to estimate it from.
        report: what is known so far.
    """

    stage: Stage
    message: str
    share: float
    seconds: float
    seconds_left: float | None
    report: Report


@dataclass(frozen=True)
class Answer:
    """An answer to one question.

    Attributes:
        choice: index of the chosen option.
        text: the option's text.
        probabilities: of all options, softmax over their scores.
    """

    choice: int
    text: str
    probabilities: tuple[float, ...]
