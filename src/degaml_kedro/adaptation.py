"""An adaptation: generate an adapter, search for strategies that refine it, execute the best; and its report.

:func:`task_refinement` is that composition; the evaluate pipeline calls it, too. :class:`TaskAdaptation` calls it for
the Python API, with the measurements and the progress that a person waits for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import TypeAdapter

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.common.texts import printable
from degaml_kedro.config.schema import PolicyParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import answer_sequences
from degaml_kedro.llm.scoring import Prediction, score_examples
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.describe import describe_action, describe_strategy
from degaml_kedro.policy.search import Refinement, Row, Tag, executed_rows, most_trials
from degaml_kedro.results.measures import wilson_interval
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.generated import (
    count_truncated,
    generated_context,
    generated_state,
    read_questions,
)
from degaml_kedro.strategies.state import AdaptedState
from degaml_kedro.tasks.example import Example, Question

if TYPE_CHECKING:
    from degaml_kedro.checkpoint.folder import TrainedPair
    from degaml_kedro.generator.examples import ExampleGenerator

Stage = Literal["reading", "base", "generating", "trying", "executing", "scoring", "done"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ChangeKind = Literal["mended", "broken", "other"]

# trying a strategy is taken to cost as much as so many scorings of the support examples: a family that trains reads
# them several times, forward and backward
_TRIAL_IN_SCORINGS = 8.0


# --- what came of it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy:
    """Right answers out of n, with the 95 % Wilson interval.

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
    """A strategy that the policy proposed, and its result on the support examples.

    Attributes:
        number: from 1, over all rounds.
        round: from 1.
        action: the proposal, as the policy wrote it.
        family: None where the text was no action.
        words: the action described for people.
        before: of the state that it started from.
        after: None where it could not be executed; families that read answers are scored by cross-fitting.
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
    """A held-out question that is answered otherwise than by the base model; answers are indices of options."""

    question: str
    options: tuple[str, ...]
    gold: int
    before: int | None
    after: int | None

    @property
    def kind(self) -> ChangeKind:
        """``mended``: wrong before, right now; ``broken``: the other way round; ``other``: wrong both times."""
        if self.after == self.gold:
            return "mended"
        return "broken" if self.before == self.gold else "other"


@dataclass(frozen=True)
class Report:
    """What an adaptation came to; while it goes on, what is known so far.

    Attributes:
        support: how many examples adaptation was given.
        held_out: how many it was not given; ``base``, ``generated``, ``written`` and ``adapted`` are measured on them.
        generated: of the generated adapter, unrefined.
        written: of the adapter that the generator which reads examples wrote from all of them.
        written_seconds: how long writing it took; None where there is no such generator.
        generated_support: what strategies had to beat.
        strategy: the actions that were executed, in order; empty where nothing beat the generated adapter.
        words: the strategy described for people.
        changes: mended ones first.
        seconds: wall time by stage.
        source: where the generator and the policy came from.
        warnings: examples left out, a strategy that failed on all of the examples, and the like.
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
        for name, value in vars(self).items():
            if isinstance(value, Accuracy):
                record[name] = value.as_json()
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
        probabilities: of all options, softmax over their scores.
    """

    choice: int
    text: str
    probabilities: tuple[float, ...]


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
    lines.extend(map(_explain_trial, report.tried))
    lines.append(f"Chosen: {report.words}. {_reason(report)}".rstrip())
    measured = [
        f"{name} {accuracy.text}"
        for name in ("base", "generated", "written", "adapted")
        if (accuracy := getattr(report, name)) is not None
    ]
    if measured:
        lines.append(f"On {report.held_out} held-out examples: {', '.join(measured)}.")
    else:
        lines.append(
            "No example was held out, so nothing says how well new questions are answered."
        )
    lines.extend(f"Note: {warning}." for warning in report.warnings)
    return "\n".join(printable(line) for line in lines)


def _explain_trial(tried: Tried) -> str:
    if tried.after is None:
        result = f"could not be carried out ({tried.error})"
    else:
        verdict = "better" if tried.reward > 0 else "not better"
        if tried.reward > 0 and tried.after.right <= tried.before.right:
            verdict = "no more right answers, but surer of them"
        result = f"{tried.after.share:.2f} against {tried.before.share:.2f}, {verdict}"
    mark = "; this was carried out" if tried.executed else ""
    return f"Round {tried.round}, trial {tried.number}: {tried.words}: {result}{mark}."


def _reason(report: Report) -> str:
    """Why this was chosen; empty where nothing says so."""
    tested = [one for one in report.tried if one.decided_by is not None]
    if report.strategy and not tested:
        return "It scored best of those that beat the adapter before."
    if report.strategy:
        decided = dict.fromkeys(str(one.decided_by) for one in tested if one.executed)
        return " ".join(_REASONS.get(by, "") for by in decided)
    if tested and all(one.decided_by == "initialization" for one in tested):
        return "A paired test on the support examples prefers no strategy to the generated adapter."
    if report.tried and not any(one.reward > 0 for one in report.tried):
        return "No strategy beat the generated adapter on the support examples."
    return ""


_REASONS = {
    "test": "Of the strategies that a paired test on the support examples prefers, it makes the right answers "
    "likeliest.",
    "fallback": "The support examples cannot tell whether another is better, so it is what was best on the tasks of "
    "meta-training.",
}


# --- generate, search, execute --------------------------------------------------------------------


def task_refinement(
    context: Context, policy: PolicyParameters, support: Sequence[Example], seed: int
) -> Refinement:
    """The search for strategies that refine the adapter which is generated for a task (section 2.2).

    ``context`` draws the task's adapters, and ``seed`` decides which of them is refined.
    """
    start = generated_state(context, seed)
    return Refinement(context, ActionSpace.of(policy.families), policy, start, support)


# --- all of it, as a person waits for it ----------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """Where an adaptation stands.

    Attributes:
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


@dataclass
class TaskAdaptation:
    """Generates an adapter for a task, and refines it as the policy proposes (sections 2.1 and 2.2).

    The generator reads the support questions alone; the held-out examples ``asked`` decide nothing.

    Attributes:
        context: has the base model and what interrupts the work; once the adapter is generated, it draws the task's.
        policy: has the budget of the search.
        report: what is known so far.
        listener: is called in this thread; what it raises ends the adaptation.
    """

    trained: TrainedPair
    context: Context
    policy_model: BaseModel
    policy: PolicyParameters
    support: Sequence[Example]
    asked: Sequence[Example]
    report: Report
    listener: Listener | None = None

    def __post_init__(self) -> None:
        self._space = ActionSpace.of(self.policy.families)
        self._trials = most_trials(self.policy.search, self._space)
        support, asked = len(self.support), len(self.asked)
        # of the stages, in scorings of one example: what the time left is estimated from
        self._work: Mapping[Stage, float] = {
            "base": support + asked,
            "generating": asked * (1 if self.trained.writer is None else 2),
            "trying": self._trials * _TRIAL_IN_SCORINGS * support,
            # it is tried on half of the examples at a time, and executed once
            "executing": _TRIAL_IN_SCORINGS / 2 * support,
            "scoring": asked,
        }
        self._began = self._stage_began = time.monotonic()
        self._stage: Stage = "reading"

    def run(self) -> AdaptedState:
        """The adapted state.

        Raises:
            PromptError: a question is longer than the model's context.
            Interruption: it was interrupted.
        """
        before = self._ask_base()
        if self.trained.writer is not None:
            self._write(self.trained.writer)
        self._tell("generating", "Reading the questions and generating an adapter")
        self.context = self._generating()
        seed = derive_seed(self.report.seed, "initialization")
        refinement = task_refinement(self.context, self.policy, self.support, seed)
        self.context.check_interrupted()
        if self.asked:
            generated = Accuracy.of(predict(self.context, refinement.start, self.asked))
            self._tell("generating", "The generated adapter has answered", 1, generated=generated)

        self._tell("trying", "The policy is proposing strategies")
        rows = self._search(refinement)
        chosen = [str(row["action"]) for row in executed_rows(rows)]
        self._tell("executing", describe_strategy(self._space, chosen))
        state = self._execute(refinement, rows)

        self._tell("scoring", "Asking the adapted model")
        if self.asked:
            after = predict(self.context, state, self.asked)
            known = {"adapted": Accuracy.of(after), "changes": _changes(self.asked, before, after)}
            self._tell("scoring", "The adapted model has answered", 1, **known)
        self._tell("done", "Done")
        return state

    def _tell(self, stage: Stage, message: str, part: float = 0.0, **known: Any) -> None:
        """Something begins, or is known: ``part`` of the stage is done, 0 to 1, and ``known`` are report fields."""
        self.context.check_interrupted()
        now = time.monotonic()
        if stage != self._stage:
            known["seconds"] = {**self.report.seconds, self._stage: now - self._stage_began}
            self._stage, self._stage_began = stage, now
        self.report = replace(self.report, **known)
        if self.listener is None:
            return
        before = STAGES[: STAGES.index(stage)]
        done = [work for name, work in self._work.items() if name in before]
        share = (sum(done) + part * self._work.get(stage, 0.0)) / sum(self._work.values())
        seconds = now - self._began
        left = seconds * (1 / share - 1) if share > 0 else None
        # the whole is told once, at the end
        share = share if stage == "done" else min(share, 0.99)
        self.listener(Progress(stage, message, share, seconds, left, self.report))

    def _warn(self, told: str) -> None:
        self.report = replace(self.report, warnings=(*self.report.warnings, told))

    def _ask_base(self) -> list[Prediction]:
        """The base model's answers to held-out examples; those to the support examples are measured on the way."""

        def told(done: int, total: int) -> None:
            self._tell("base", f"Asking the base model: {done} of {total}", done / total)

        self._tell("base", "Asking the base model")
        context, every = self.context, [*self.support, *self.asked]
        found = score_examples(context.base, every, context.prompt, context.scoring, None, told)
        before = found[len(self.support) :]
        known = {
            "base_support": Accuracy.of(found[: len(self.support)]),
            "base": Accuracy.of(before) if before else None,
        }
        self._tell("base", "The base model has answered", 1, **known)
        return before

    def _write(self, writer: ExampleGenerator) -> None:
        """Measure the adapter that is written from all support examples: how long it took, and what it answers."""
        base, prompt, scoring = self.context.base, self.context.prompt, self.context.scoring
        self._tell("generating", "Writing an adapter from the examples")
        began = time.perf_counter()
        adapter = writer.write(base, answer_sequences(base, self.support, prompt, scoring.answers))
        seconds = time.perf_counter() - began
        told = f"Written from the examples in {seconds:.1f} s"
        self._tell("generating", told, written_seconds=seconds)
        if self.asked:
            found = score_examples(base, self.asked, prompt, scoring, adapter)
            self._tell("generating", told, 0.5, written=Accuracy.of(found))

    def _generating(self) -> Context:
        """The context that draws the task's adapters, made from the support questions."""
        context, encoder = self.context, self.trained.settings.encoder
        questions = [Question.of(one) for one in self.support]
        embeddings = read_questions(encoder, questions)
        if cut := count_truncated(encoder, questions):
            self._warn(
                f"the generator reads the first {encoder.tokens} tokens of a question, and {cut} of "
                f"{len(questions)} are longer"
            )
        made = generated_context(
            context.base,
            context.prompt,
            context.scoring,
            self.trained.generator,
            embeddings,
            range(len(embeddings)),
            encoder,
            self.trained.writer,
        )
        return replace(made, interrupted=context.interrupted)

    def _search(self, refinement: Refinement) -> list[Row]:
        """All trials, each told as it comes."""
        rows, began = list[Row](), time.monotonic()
        seconds = self.policy.search.seconds
        deadline = None if seconds is None else began + seconds
        check = replace(self.context, deadline=deadline).check_time
        proposer = refinement.proposer(self.policy_model, self.trained.policy, check)
        seed, tag = derive_seed(self.report.seed, "search"), Tag("the task", "degaml")
        for row in refinement.search(proposer, seed, tag):
            rows.append(row)
            one = Tried.of(row, describe_action(self._space, str(row["action"])))
            tried = (*self.report.tried, one)
            message = f"Tried strategy {one.number} of at most {self._trials}: {one.words}"
            # what the first one had to beat is the generated adapter's
            known = {"tried": tried, "generated_support": tried[0].before}
            self._tell("trying", message, len(rows) / self._trials, **known)
        if told := _unspent(refinement, rows, time.monotonic() - began):
            self._warn(told)
        return rows

    def _execute(self, refinement: Refinement, rows: Sequence[Row]) -> AdaptedState:
        """Execute what was chosen; the report says what was, which may be less."""
        carried = refinement.execute(rows)
        if carried.failed is not None:
            failed = describe_action(self._space, str(carried.failed["action"]))
            self._warn(
                f"'{failed}' was chosen, and failed when it was carried out on all {len(self.support)} examples; "
                f"the adapter before it stays"
            )
        done = {int(row["rollout"]) + 1 for row in carried.rows}
        strategy = tuple(str(row["action"]) for row in carried.rows)
        tried = self.report.tried
        self._tell(
            "executing",
            "The adapter is there",
            1,
            tried=tuple(replace(one, executed=one.number in done) for one in tried),
            strategy=strategy,
            words=describe_strategy(self._space, strategy),
        )
        return carried.state


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


def _changes(
    asked: Sequence[Example], before: Sequence[Prediction], after: Sequence[Prediction]
) -> tuple[Change, ...]:
    found = [
        Change(one.question, one.options, one.gold, old.predicted, new.predicted)
        for one, old, new in zip(asked, before, after, strict=True)
        if old.predicted != new.predicted
    ]
    order = get_args(ChangeKind)
    return tuple(sorted(found, key=lambda change: order.index(change.kind)))
