"""An adaptation: generate an adapter, search for strategies that refine it, execute the best; and what came of it.

The search and the execution are those of :class:`~degaml_kedro.policy.search.Refinement`, which the evaluate pipeline
uses, too; :func:`adapt_to_task` is what the Python API calls.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import TypeAdapter

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import answer_sequences
from degaml_kedro.llm.scoring import Prediction, score_examples
from degaml_kedro.parameters import PolicyParameters
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.describe import describe_action, describe_strategy
from degaml_kedro.policy.search import (
    CarriedOut,
    Refinement,
    Row,
    Tag,
    executed_rows,
    most_trials,
)
from degaml_kedro.results.measures import wilson_interval
from degaml_kedro.seeds import derive_seed
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.generated import (
    count_truncated,
    generated_state,
    generated_workbench,
    read_questions,
)
from degaml_kedro.strategies.state import AdaptedState
from degaml_kedro.strategies.workbench import Interruption, OutOfTimeError, Workbench
from degaml_kedro.tasks.example import Example, Question
from degaml_kedro.texts import printable

if TYPE_CHECKING:
    from degaml_kedro.checkpoint.folder import TrainedPair
    from degaml_kedro.generator.examples import ExampleGenerator

Stage = Literal["reading", "base", "generating", "trying", "executing", "scoring", "done"]
STAGES: tuple[Stage, ...] = get_args(Stage)

# trying a strategy is taken to cost as much as so many scorings of the support examples: a family that trains reads
# them several times, forward and backward
_TRIAL_IN_SCORINGS = 8.0


# --- what came of it ------------------------------------------------------------------------------


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

    @classmethod
    def of(cls, row: Mapping[str, Any], words: str) -> Tried:
        """A trial of the search, with what its action does in words."""
        n, after = int(row["n"]), row["accuracy_after"]
        return cls(
            number=int(row["rollout"]) + 1,
            round=int(row["round"]),
            action=str(row["action"]),
            family=row["family"],
            words=words,
            before=Accuracy(round(row["accuracy_before"] * n), n),
            after=None if after is None else Accuracy(round(after * n), n),
            reward=float(row["reward"]),
            seconds=float(row["seconds"]),
            error=row["error"],
            decided_by=row["decided_by"],
        )


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
        written: that of the adapter which the generator that reads examples wrote from all of them.
        written_seconds: how long writing it took; None where there is no such generator.
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
    written: Accuracy | None = None
    written_seconds: float | None = None
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
        """The report that :meth:`as_json` gave, as anybody may have written it.

        Raises:
            ValidationError: it is no report.
        """
        return TypeAdapter(cls).validate_python(record)

    def as_json(self) -> dict[str, Any]:
        """For programs: accuracies with n and interval, changes with their kind."""
        record = asdict(self)
        for name in (
            *("base", "generated", "written", "adapted"),
            *("base_support", "generated_support"),
        ):
            accuracy = getattr(self, name)
            record[name] = None if accuracy is None else accuracy.as_json()
        for row, tried in zip(record["tried"], self.tried, strict=True):
            row["before"] = tried.before.as_json()
            row["after"] = None if tried.after is None else tried.after.as_json()
        for row, change in zip(record["changes"], self.changes, strict=True):
            row["kind"] = change.kind
        return record


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


_REASONS = (
    "Of the strategies that a paired test on the support examples prefers, it makes the right answers likeliest.",
    "The support examples cannot tell whether another is better, so it is what was best on the tasks of meta-training.",
)


def explain(report: Report) -> str:
    """Why this strategy, for people: where the task stood, what was proposed, what it scored, and what was done.

    Of a finished adaptation; a report that was read from a file is anybody's text.
    """
    lines = []
    if report.base_support is not None and report.generated_support is not None:
        scored = report.generated_support.n
        first = f"; strategies are tried on the first {scored}" if scored < report.support else ""
        lines.append(
            f"On the {report.support} support examples the base model scores {report.base_support.text}, the generated "
            f"adapter {report.generated_support.text}{first}."
        )
    if report.written_seconds is not None:
        lines.append(
            f"An adapter was written from the examples in {report.written_seconds:.1f} s; it is one of the strategies."
        )
    if not report.tried:
        lines.append("No strategy was tried: there was no time, or nothing was proposed.")
    for tried in report.tried:
        if tried.after is None:
            came = f"could not be carried out ({tried.error})"
        else:
            verdict = "better" if tried.reward > 0 else "not better"
            if tried.reward > 0 and tried.after.right <= tried.before.right:
                verdict = "no more right answers, but surer of them"
            came = f"{tried.after.share:.2f} against {tried.before.share:.2f}, {verdict}"
        mark = "; this was carried out" if tried.executed else ""
        lines.append(f"Round {tried.round}, trial {tried.number}: {tried.words}: {came}{mark}.")
    tested = [tried for tried in report.tried if tried.decided_by is not None]
    if report.strategy and tested:
        reasons = dict.fromkeys(
            _REASONS[tried.decided_by == "fallback"] for tried in tested if tried.executed
        )
        lines.append(f"Chosen: {report.words}. {' '.join(reasons)}".rstrip())
    elif report.strategy:
        lines.append(
            f"Chosen: {report.words}. It scored best of those that beat the adapter before."
        )
    elif tested and all(tried.decided_by == "initialization" for tried in tested):
        lines.append(
            f"Chosen: {report.words}. A paired test on the support examples prefers no strategy to the generated "
            f"adapter."
        )
    elif report.tried and not any(tried.reward > 0 for tried in report.tried):
        lines.append(
            f"Chosen: {report.words}. No strategy beat the generated adapter on the support examples."
        )
    else:
        lines.append(f"Chosen: {report.words}.")
    names = ("base", "generated", "written", "adapted")
    scores = [(name, getattr(report, name)) for name in names]
    told = [f"{name} {score.text}" for name, score in scores if score is not None]
    if told:
        lines.append(f"On {report.held_out} held-out examples: {', '.join(told)}.")
    else:
        lines.append(
            "No example was held out, so nothing says how well new questions are answered."
        )
    lines.extend(f"Note: {warning}." for warning in report.warnings)
    return "\n".join(printable(line) for line in lines)


# --- all of it, as a person waits for it ----------------------------------------------------------


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


Listener = Callable[[Progress], None]


class _Reporter:
    """The one callback of an adaptation: collects what is known, and tells a listener.

    Attributes:
        known: fields of the report.
    """

    def __init__(
        self,
        listener: Listener | None,
        cancel: threading.Event | None,
        work: Mapping[Stage, float],
        known: Mapping[str, Any],
    ) -> None:
        """Begin.

        Args:
            listener: is told of every change; what it raises ends the adaptation.
            cancel: set to end it.
            work: of the stages, in scorings of one example: what the time left is estimated from.
            known: before anything is computed.
        """
        self.known = dict(known)
        self._listener, self._cancel, self._work = listener, cancel, work
        self._began = self._stage_began = time.monotonic()
        self._stage: Stage = "reading"
        self._seconds: dict[str, float] = {}

    @property
    def report(self) -> Report:
        """What is known so far."""
        return Report(**self.known, seconds=dict(self._seconds))

    def warn(self, told: str) -> None:
        """The user should know something."""
        self.known["warnings"] += (told,)

    def check(self) -> None:
        """Stop where that is asked for.

        Raises:
            Interruption: it is.
        """
        if self._cancel is not None and self._cancel.is_set():
            raise Interruption

    def tell(self, stage: Stage, message: str, part: float = 0.0, **known: Any) -> None:
        """Something begins, or is known.

        Args:
            stage: what goes on.
            message: the same for people.
            part: of the stage that is done, 0 to 1.
            **known: fields of the report.

        Raises:
            Interruption: the adaptation is to stop.
        """
        self.check()
        now = time.monotonic()
        if stage != self._stage:
            self._seconds[self._stage] = now - self._stage_began
            self._stage, self._stage_began = stage, now
        self.known |= known
        if self._listener is None:
            return
        over = [
            work for name, work in self._work.items() if STAGES.index(name) < STAGES.index(stage)
        ]
        share = (sum(over) + part * self._work.get(stage, 0.0)) / sum(self._work.values())
        seconds = now - self._began
        left = seconds * (1 / share - 1) if share > 0 else None
        # the whole is told once, at the end
        share = share if stage == "done" else min(share, 0.99)
        self._listener(Progress(stage, message, share, seconds, left, self.report))


def adapt_to_task(
    trained: TrainedPair,
    base: BaseModel,
    policy_model: BaseModel,
    support: Sequence[Example],
    asked: Sequence[Example],
    policy: PolicyParameters,
    seed: int,
    warnings: Sequence[str] = (),
    listener: Listener | None = None,
    cancel: threading.Event | None = None,
) -> tuple[Workbench, AdaptedState, Report]:
    """Generate an adapter for a task, and refine it as the policy proposes (sections 2.1 and 2.2).

    Args:
        trained: the generator and the policy.
        base: the base model of both.
        policy_model: the model that the policy adapts.
        support: the examples to adapt to; the generator reads their questions alone.
        asked: examples that are asked of the base, the generated and the adapted model, and decide nothing.
        policy: the pair's parameters, with the budget of the search.
        seed: of all randomness.
        warnings: what the user should know of the examples.
        listener: is told where the adaptation stands, in this thread.
        cancel: set to stop.

    Returns:
        How the base model is asked, who answers, and what came of it.

    Raises:
        PromptError: a question is longer than the model's context.
        Interruption: ``cancel`` was set.
    """
    settings, space = trained.settings, ActionSpace.of(policy.families)
    trials = most_trials(policy.search, space)
    reporter = _Reporter(
        listener,
        cancel,
        {
            "base": len(support) + len(asked),
            "generating": len(asked) * (1 if trained.writer is None else 2),
            "trying": trials * _TRIAL_IN_SCORINGS * len(support),
            # it is tried on half of the examples at a time, and executed once
            "executing": _TRIAL_IN_SCORINGS / 2 * len(support),
            "scoring": len(asked),
        },
        {
            "support": len(support),
            "held_out": len(asked),
            "base_model": base.name,
            "source": trained.name,
            "seed": seed,
            "warnings": tuple(warnings),
        },
    )
    before = _ask_base(base, trained, support, asked, reporter)

    if trained.writer is not None:
        _write(base, trained, trained.writer, support, asked, reporter)
    reporter.tell("generating", "Reading the questions and generating an adapter")
    questions = [Question.of(one) for one in support]
    embeddings = read_questions(settings.encoder, questions)
    if cut := count_truncated(settings.encoder, questions):
        reporter.warn(
            f"the generator reads the first {settings.encoder.tokens} tokens of a question, and {cut} of "
            f"{len(support)} are longer"
        )
    bench = generated_workbench(
        base,
        settings.prompt,
        settings.scoring,
        trained.generator,
        embeddings,
        range(len(embeddings)),
        settings.encoder,
        trained.writer,
    )
    bench = replace(bench, interrupted=cancel)
    start = generated_state(bench, derive_seed(seed, "initialization"))
    reporter.check()
    if asked:
        generated = Accuracy.of(predict(bench, start, asked))
        reporter.tell("generating", "The generated adapter has answered", 1, generated=generated)

    reporter.tell("trying", "The policy is proposing strategies")
    refinement = Refinement(bench, space, policy, start, support)
    rows = _search(refinement, policy_model, trained.policy, seed, reporter)
    chosen = [str(row["action"]) for row in executed_rows(rows)]
    reporter.tell("executing", describe_strategy(space, chosen))
    carried = refinement.execute(rows)
    if carried.failed is not None:
        failed = describe_action(space, str(carried.failed["action"]))
        reporter.warn(
            f"'{failed}' was chosen, and failed when it was carried out on all {len(support)} examples; the adapter "
            f"before it stays"
        )
    known = _executed(space, carried, reporter.known.get("tried", ()))
    reporter.tell("executing", "The adapter is there", 1, **known)

    reporter.tell("scoring", "Asking the adapted model")
    if asked:
        after = predict(bench, carried.state, asked)
        reporter.tell(
            "scoring",
            "The adapted model has answered",
            1,
            adapted=Accuracy.of(after),
            changes=_changes(asked, before, after),
        )
    reporter.tell("done", "Done")
    return bench, carried.state, reporter.report


def _ask_base(
    base: BaseModel,
    trained: TrainedPair,
    support: Sequence[Example],
    asked: Sequence[Example],
    reporter: _Reporter,
) -> list[Prediction]:
    """The base model's answers to held-out examples; those to the support examples are measured on the way."""

    def told(done: int, total: int) -> None:
        reporter.tell("base", f"Asking the base model: {done} of {total}", done / total)

    reporter.tell("base", "Asking the base model")
    every, settings = [*support, *asked], trained.settings
    found = score_examples(base, every, settings.prompt, settings.scoring, None, told)
    before = found[len(support) :]
    reporter.tell(
        "base",
        "The base model has answered",
        1,
        base_support=Accuracy.of(found[: len(support)]),
        base=Accuracy.of(before) if before else None,
    )
    return before


def _write(
    base: BaseModel,
    trained: TrainedPair,
    writer: ExampleGenerator,
    support: Sequence[Example],
    asked: Sequence[Example],
    reporter: _Reporter,
) -> None:
    """The adapter that is written from all support examples: how long it took, and what it answers, unrefined."""
    settings = trained.settings
    reporter.tell("generating", "Writing an adapter from the examples")
    began = time.perf_counter()
    shown = answer_sequences(base, support, settings.prompt, settings.scoring.answers)
    adapter = writer.write(base, shown)
    seconds = time.perf_counter() - began
    told = f"Written from the examples in {seconds:.1f} s"
    reporter.tell("generating", told, written_seconds=seconds)
    if asked:
        found = score_examples(base, asked, settings.prompt, settings.scoring, adapter)
        reporter.tell("generating", told, 0.5, written=Accuracy.of(found))


def _search(
    refinement: Refinement,
    policy_model: BaseModel,
    adapter: Adapter | None,
    seed: int,
    reporter: _Reporter,
) -> list[Row]:
    """All trials, each told as it comes."""
    space, search = refinement.space, refinement.policy.search
    most, rows, began = most_trials(search, space), list[Row](), time.monotonic()

    def check() -> None:
        reporter.check()
        if search.seconds is not None and time.monotonic() > began + search.seconds:
            raise OutOfTimeError("the time for trying strategies is used up")

    proposer = refinement.proposer(policy_model, adapter, check)
    tag = Tag("the task", "degaml")
    for row in refinement.search(proposer, derive_seed(seed, "search"), tag):
        rows.append(row)
        one = Tried.of(row, describe_action(space, str(row["action"])))
        tried = (*reporter.known.get("tried", ()), one)
        message = f"Tried strategy {one.number} of at most {most}: {one.words}"
        # what the first one had to beat is the generated adapter's
        known = {"tried": tried, "generated_support": tried[0].before}
        reporter.tell("trying", message, len(rows) / most, **known)
    if told := _unspent(refinement, rows, time.monotonic() - began):
        reporter.warn(told)
    return rows


def _unspent(refinement: Refinement, rows: Sequence[Row], seconds: float) -> str | None:
    """Why fewer proposals were tried than the budget allows; None where all were."""
    search = refinement.policy.search
    allowed = search.rounds * search.proposals
    tried = sum(row["source"] not in ("fallback", "search") for row in rows)
    if tried >= allowed:
        return None
    executed = executed_rows(rows)
    if search.seconds is not None and seconds >= search.seconds:
        reason = f"the {search.seconds:g} seconds for them were used up"
    elif executed and refinement.space.family(str(executed[-1]["family"])).reads_answers:
        reason = (
            "what was chosen learns from all examples, so nothing is left to score another round on"
        )
    elif len({row["round"] for row in rows}) < search.rounds:
        reason = "a round brought nothing better, and there the search ends"
    else:
        reason = "the policy proposed the same again"
    return f"{tried} of {allowed} proposals were tried: {reason}"


def _executed(
    space: ActionSpace, carried: CarriedOut, tried: Sequence[Tried]
) -> dict[str, tuple[Any, ...] | str]:
    """What the report says of what was done, which may be less than what was chosen."""
    done = {int(row["rollout"]) + 1 for row in carried.rows}
    strategy = tuple(str(row["action"]) for row in carried.rows)
    return {
        "tried": tuple(replace(one, executed=one.number in done) for one in tried),
        "strategy": strategy,
        "words": describe_strategy(space, strategy),
    }


def _changes(
    asked: Sequence[Example], before: Sequence[Prediction], after: Sequence[Prediction]
) -> tuple[Change, ...]:
    found = [
        Change(one.question, one.options, one.gold, old.predicted, new.predicted)
        for one, old, new in zip(asked, before, after, strict=True)
        if old.predicted != new.predicted
    ]
    order = ("mended", "broken", "other")
    return tuple(sorted(found, key=lambda change: order.index(change.kind)))
