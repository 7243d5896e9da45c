"""Proposals are written, tried and recorded: on meta-train tasks to learn from, on new tasks to adapt.

Both yield one row a trial, as it comes. Given the rows of a run that was killed, they go on behind the last of them:
proposals are written again, which is cheap and gives the same texts, and trials are not repeated. Where a text is
another one after all, they say so before the first row comes (:class:`ResumeMismatchError`).

A row's ``seconds`` are its trial's, and its ``tokens`` the trial's and the proposal's. What is computed between trials
(the first scoring, the time of proposals, those that are thrown away, a round's best carried out and scored) goes into
the next row's ``forward_tokens`` and ``backward_tokens``, which are of everything, and ``overhead_seconds``. So where
something may follow a round, its last row waits until another one begins, and takes what followed where none does; a
run that is killed meanwhile repeats that trial. Not counted are proposals that a used-up time budget leaves untried,
searches that end before their first trial, and what a resumed run computes again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import (
    PolicyParameters,
    RewardParameters,
    RolloutParameters,
    SearchParameters,
)
from degaml_kedro.llm.base_model import BaseModel, first_line
from degaml_kedro.llm.scoring import Prediction
from degaml_kedro.policy.actions import ActionError, ActionSpace
from degaml_kedro.policy.indicators import (
    IndicatorError,
    Indicators,
    gold_log_probability,
    measure_indicators,
)
from degaml_kedro.policy.paired import deal_folds, preference_p_value
from degaml_kedro.policy.prompts import policy_prompt
from degaml_kedro.policy.proposers import PolicyProposer, Proposal, Proposer, UniformProposer
from degaml_kedro.policy.trial import Attempt, Trial, execute, try_action
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.context import Context, OutOfTimeError
from degaml_kedro.strategies.state import AdaptedState
from degaml_kedro.tasks.example import Example, Question, shares_options

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

# how often other proposals are asked for in place of those that were tried already
_SECOND_THOUGHTS = 3


class ResumeMismatchError(DegamlError):
    """Rows of an earlier run that are not those of what is proposed now; the first ``kept`` are."""

    def __init__(self, kept: int) -> None:
        super().__init__(f"from trial {kept} on, the rows on disk are of other proposals")
        self.kept = kept


@dataclass(frozen=True)
class Tag:
    """Whose rows these are: a task and a method, in an iteration of ReST^EM from 1, or 0 at test time."""

    task: str
    method: str
    iteration: int = 0


@dataclass(eq=False)
class _Episode:
    """An episode of :meth:`Refinement.roll_out`.

    Attributes:
        examples: its D_val.
        before: the indicators of ``state``, where its next trial starts.
        behind: trials of an earlier run that ``state`` does not have in it yet.
    """

    examples: tuple[Example, ...]
    state: AdaptedState
    before: Indicators
    ended: bool = False
    behind: list[Mapping[str, Any]] = field(default_factory=list)

    def note(self, space: ActionSpace, row: Mapping[str, Any], trial: Trial | None = None) -> None:
        """Note a step that was done; ``trial`` is None where an earlier run made it."""
        self.ended = row["error"] is not None or space.family(str(row["family"])).reads_answers
        if trial is None:
            self.behind.append(row)
        elif trial.state is not None and trial.after is not None:
            self.state, self.before = trial.state, trial.after

    def catch_up(self, context: Context, space: ActionSpace) -> None:
        """Carry out what an earlier run tried; it is not counted again.

        Raises:
            ResumeMismatchError: it did not fail then and does now.
        """
        for row in self.behind:
            action, seed = str(row["action"]), int(row["seed"])
            try:
                self.state = execute(context, space, self.state, self.examples, action, seed)
                self.before = measure_indicators(predict(context, self.state, self.examples))
            except Exception as error:
                raise ResumeMismatchError(int(row["rollout"])) from error
        self.behind.clear()


def most_trials(settings: SearchParameters, space: ActionSpace) -> int:
    """The most trials of a search: its proposals, what puts each round's together, and the fallback."""
    falls_back = settings.rule == "paired" and not (
        settings.fallback == () and settings.open_fallback in (None, ())
    )
    return settings.rounds * (settings.proposals + len(space.pooling)) + falls_back


@dataclass(frozen=True, eq=False)
class CarriedOut:
    """Where adaptation ended: the trials that were carried out, in order, and one that was chosen and failed."""

    state: AdaptedState
    rows: tuple[Mapping[str, Any], ...]
    failed: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Refinement:
    """Refine an adapter for one task: propose and try strategies, execute the best (section 2.2).

    Attributes:
        policy: the parameters of the rollouts and the search.
        start: the initialization.
        support: the labeled examples there are: D_val of a search is taken of them, and nothing else of the task is
            known.
        executed: the state after each executed round that another followed, by the number of its trial.
    """

    context: Context
    space: ActionSpace
    policy: PolicyParameters
    start: AdaptedState
    support: Sequence[Example]
    executed: dict[int, AdaptedState] = field(default_factory=dict, init=False)

    def proposer(
        self,
        policy_model: BaseModel,
        adapter: Adapter | None,
        check: Callable[[], None] | None = None,
    ) -> Proposer:
        """The policy as it proposes in a search; uniform draws without one.

        ``check`` is called before every step of the model; what it raises ends the writing.
        """
        if adapter is None:
            return UniformProposer(self.space)
        temperature = self.policy.search_temperature(self.policy.search)
        return PolicyProposer(policy_model, adapter, self.space, temperature, check=check)

    def roll_out(
        self,
        proposer: Proposer,
        examples: Sequence[Example],
        seed: int,
        tag: Tag,
        finished: Rows = (),
    ) -> Iterator[Row]:
        """Episodes from one initialization, to learn from (Algorithm 2); with ``resample`` each on a D_val of its own.

        An episode is ``rollouts.steps`` trials: the first one from the initialization, each other one from what the one
        before it made, rewarded or not. It ends early with a trial that failed, and with a family that reads answers,
        as a search does. Trials of one step are proposed together. In the rows ``round`` is the step.

        Families that read answers learn from all support examples, as they will at test time; without any they are
        cross-fitted on D_val, from fewer.

        Args:
            examples: what D_val is drawn from; none of the support examples.
            finished: rows of an earlier run with the same arguments.

        Yields:
            A row a trial, from the first one that is not finished.

        Raises:
            IndicatorError: the initialization answers with what are no numbers.
            ResumeMismatchError: a finished row is of another proposal than is written now; no row has come yet.
        """
        space, settings = self.space, self.policy.rollouts
        run = _Trials(self, self.policy.reward, seed, tag, finished)
        with run.measured():
            known = predict(self.context, self.start, examples)
        run.start_clock(settings.seconds)
        first_steps: list[Mapping[str, Any]] = []
        for first in range(0, settings.count, settings.at_once):
            episodes = []
            for place in range(first, min(first + settings.at_once, settings.count)):
                drawn = _draw_validation(len(examples), settings, seed, place)
                before = _measure_start([known[i] for i in drawn], tag)
                episodes.append(_Episode(tuple(examples[i] for i in drawn), self.start, before))
            for step in range(1, settings.steps + 1):
                going = [episode for episode in episodes if not episode.ended]
                proposals: Sequence[Proposal | None] = [None] * len(going)
                # steps that are finished need no proposals, which would say nothing that their rows do not
                if run.number + len(going) > len(finished):
                    for episode in going:
                        # time was up to whoever tried it
                        episode.catch_up(self.context, space)
                    history = _history(first_steps) if step == 1 else []
                    prompts = [
                        policy_prompt(
                            [Question.of(example) for example in episode.examples],
                            episode.before,
                            history,
                            space,
                            run.seed(number),
                        )
                        for number, episode in enumerate(going, run.number)
                    ]
                    own = derive_seed(seed, "proposals", str(run.number))
                    with run.measured():
                        proposals = proposer.propose(prompts, own)
                run.check(step, [None if one is None else one.text for one in proposals])
                for episode, proposal in zip(going, proposals, strict=True):
                    row: Mapping[str, Any] | None = run.take_finished()
                    if row is not None:
                        episode.note(space, row)
                    elif run.late or proposal is None:
                        return
                    else:
                        new, trial = run.try_action(
                            step,
                            proposal,
                            episode.state,
                            episode.before,
                            episode.examples,
                            shown=self.support,
                        )
                        row = run.with_costs({**new, "option_scores": None, "poolable": None})
                        episode.note(space, row, trial)
                        yield row
                    if step == 1:
                        first_steps.append(row)

    def search(self, proposer: Proposer, seed: int, tag: Tag, finished: Rows = ()) -> Iterator[Row]:
        """Trials on the support examples of a new task, round by round.

        In each round one of the proposals is executed, and the next round starts from there; if none is, the state
        stays as it is. With ``search.rule`` strict that is the best one of those that earned something. With
        ``paired`` it is the likeliest one of those that a paired test on D_val prefers to the reference: the
        fallback, which the first round tries before its proposals, unless the test prefers the initialization to it.
        If the test prefers none, it is the fallback. Families that read answers are scored on one dealing of D_val
        into folds.

        A family that reads answers ends the search: it was tried by cross-fitting, but once it is executed on all of
        the support set, nothing is left to score another round on. A strategy is not tried twice from one state.
        Families that put a round's trials together are not proposed: where some are enabled, they are the last trials
        of a round that has two others.

        In the rows ``executed`` marks a trial that was the choice of its round so far, and ``decided_by`` says what
        decided up to there: :func:`executed_rows` says which were executed.

        ``finished`` are rows of an earlier run with the same arguments.

        Yields:
            A row a trial, from the first one that is not finished.

        Raises:
            IndicatorError: the initialization answers with what are no numbers.
            ResumeMismatchError: a finished row is of another proposal than is written now; no row has come yet.
        """
        space, support, settings = self.space, self.support, self.policy.search
        # noise is for studies of learning; a choice is made on what was measured
        run = _Trials(
            self, self.policy.reward.model_copy(update={"noise": 0.0}), seed, tag, finished
        )
        run.start_clock(settings.seconds)
        validation, folds, fallback = support[: settings.examples], None, None
        if settings.rule == "paired":
            folds = deal_folds(validation, settings.folds, derive_seed(seed, "folds"))
            fallback = _fallback(space, settings, support)
        questions = [Question.of(example) for example in validation]
        # trials from this state
        state, tried = self.start, list[Mapping[str, Any]]()
        # the last row of a round, until another one begins
        waiting: list[Row] = []
        with run.measured():
            answers = predict(run.context, state, validation)
            before = _measure_start(answers, tag)
        for turn in range(1, settings.rounds + 1):
            history = _history(tried)
            seeds = (
                derive_seed(seed, "prompt", str(turn), str(place))
                for place in range(settings.proposals)
            )
            prompts = [policy_prompt(questions, before, history, space, own) for own in seeds]
            known = {action for action, _ in history}
            try:
                with run.measured():
                    proposals, thrown_away = _different(
                        proposer, prompts, derive_seed(seed, "proposals", str(turn)), known
                    )
            except OutOfTimeError:
                # a proposer may have an eye on the clock too
                break
            run.forward += thrown_away
            proposals = _in_order(space, proposals, fallback)
            run.check(turn, [proposal.text for proposal in proposals])
            following = run.number + len(proposals)
            if following < len(finished) and finished[following]["round"] == turn:
                raise ResumeMismatchError(following)
            choice: _Strict | _Paired = _Strict()
            if folds is not None:
                choice = _Paired(settings.level, answers, fallback)
            rows: list[Mapping[str, Any]] = []
            for proposal in proposals:
                row = run.take_finished()
                if row is not None:
                    choice.judge(row)
                elif run.late:
                    break
                else:
                    yield from waiting
                    attempts = _attempts([*tried, *rows])
                    row, _ = run.try_action(
                        turn, proposal, state, before, validation, folds=folds, tried=attempts
                    )
                    row = run.with_costs({**row, **choice.judge(row)})
                    last = len(rows) + 1 == len(proposals) and turn < settings.rounds
                    waiting = [row] if last else []
                    if not last:
                        yield row
                rows.append(row)
            if len(rows) < len(proposals):
                break
            tried += rows
            # the fallback is of the initialization: what follows starts elsewhere, or after it was tried
            best, fallback = choice.best, None
            if best is None:
                if settings.early_stop:
                    break
                continue
            if space.family(str(best["family"])).reads_answers or turn == settings.rounds:
                # where D_val has been trained on, a further round scored on it would say nothing of new questions
                break
            try:
                with run.measured():
                    refined = self._carry_out(run.context, state, best, tried, len(validation))
            except OutOfTimeError:
                # it is executed all the same, by whoever builds the state; there is no time for another round
                break
            if refined is None:
                break
            state, answers = refined
            self.executed[int(best["rollout"])] = state
            before, tried = measure_indicators(answers), []
        # no other row comes
        yield from map(run.with_costs, waiting)

    def execute(self, rows: Rows) -> CarriedOut:
        """Carry out what was chosen, from the initialization; the initialization itself where nothing was.

        ``rows`` are all that :meth:`search` yielded. Where an action fails, or what it made answers with what are no
        numbers, the state before it is the last one, and a warning says so: :meth:`search` ended there as well.
        """
        state, done, since = self.start, list[Mapping[str, Any]](), 0
        for row in executed_rows(rows):
            ready = self.executed.get(int(row["rollout"]))
            if ready is None:
                tried = [one for one in rows if since < one["round"]]
                # a family that reads answers ended the search, and nobody waits for this state's answers to D_val: one
                # question says whether they are numbers
                ends = self.space.family(str(row["family"])).reads_answers
                refined = self._carry_out(
                    self.context, state, row, tried, 1 if ends else int(row["n"])
                )
                if refined is None:
                    return CarriedOut(state, tuple(done), row)
                ready = refined[0]
            state, since = ready, int(row["round"])
            done.append(row)
        return CarriedOut(state, tuple(done))

    def _carry_out(
        self,
        context: Context,
        state: AdaptedState,
        row: Mapping[str, Any],
        tried: Rows,
        asked: int,
    ) -> tuple[AdaptedState, list[Prediction]] | None:
        """The state of a trial's action, carried out on all support examples, and its answers to the first ``asked``.

        None where that fails, as it may on more examples than the trial was given. Trials of ``tried`` from before
        this one may be its members.
        """
        action, seed = str(row["action"]), int(row["seed"])
        earlier = _attempts([one for one in tried if one["rollout"] < row["rollout"]])
        try:
            refined = execute(context, self.space, state, self.support, action, seed, earlier)
            answers = predict(context, refined, self.support[:asked])
            measure_indicators(answers)
            return refined, answers
        except OutOfTimeError:
            raise
        except Exception as error:  # noqa: BLE001 - a strategy may be anybody's code, and must not end the run
            logger.warning(
                "%s: %s was chosen, but carrying it out on all %d support examples failed (%s: %s); "
                "the state before it stays",
                row["task"],
                action,
                len(self.support),
                type(error).__name__,
                first_line(error),
            )
            return None


class _Trials:
    """The trials of a run: those that an earlier one finished, then new ones, and what is computed between them.

    Attributes:
        context: with the deadline of the run.
        number: of the next trial.
        forward: tokens between trials that no row has yet; so are ``backward`` and ``seconds``.
    """

    def __init__(
        self, refinement: Refinement, reward: RewardParameters, seed: int, tag: Tag, finished: Rows
    ) -> None:
        self.context, self.number = refinement.context, 0
        self._space, self._reward, self._seed = refinement.space, reward, seed
        self._tag, self._finished = tag, finished
        self._clear()

    def _clear(self) -> None:
        self.forward = self.backward = 0
        self.seconds = 0.0

    def start_clock(self, seconds: float | None) -> None:
        """From now on there are so many seconds; None for no end of them."""
        deadline = None if seconds is None else time.monotonic() + seconds
        self.context = replace(self.context, deadline=deadline)

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return self.context.deadline is not None and time.monotonic() > self.context.deadline

    def seed(self, number: int) -> int:
        """That of a trial."""
        return derive_seed(self._seed, "trial", str(number))

    @contextmanager
    def measured(self) -> Iterator[None]:
        """What happens inside is counted as computed between trials."""
        before, began = replace(self.context.meter), time.perf_counter()
        try:
            yield
        finally:
            self.forward += self.context.meter.forward - before.forward
            self.backward += self.context.meter.backward - before.backward
            self.seconds += time.perf_counter() - began

    def check(self, turn: int, texts: Sequence[str | None]) -> None:
        """Check that the finished rows of a round, from the next trial on, are those of its proposals.

        Raises:
            ResumeMismatchError: they are not. A text of None is not known, and is taken for the row's.
        """
        for number, text in enumerate(texts, self.number):
            if number >= len(self._finished):
                return
            row = self._finished[number]
            known = text in (None, row["action"])
            if not known or (row["rollout"], row["round"]) != (number, turn):
                raise ResumeMismatchError(number)

    def take_finished(self) -> Row | None:
        """The next trial's row where an earlier run finished it: it has what was computed before it."""
        if self.number >= len(self._finished):
            return None
        self._clear()
        self.number += 1
        return dict(self._finished[self.number - 1])

    def try_action(
        self,
        turn: int,
        proposal: Proposal,
        state: AdaptedState,
        before: Indicators,
        examples: Sequence[Example],
        **how: Any,
    ) -> tuple[Row, Trial]:
        """The next trial and its row (:func:`~degaml_kedro.policy.trial.try_action`)."""
        own = self.seed(self.number)
        trial = try_action(
            self.context,
            self._space,
            state,
            before,
            examples,
            proposal.text,
            self._reward,
            own,
            **how,
        )
        after = trial.after
        scores = [one.option_scores for one in trial.predictions]
        row = {
            "task": self._tag.task,
            "method": self._tag.method,
            "iteration": self._tag.iteration,
            "round": turn,
            "rollout": self.number,
            "source": proposal.source,
            "state": proposal.prompt,
            "action": proposal.text,
            "family": trial.family,
            "valid": trial.family is not None,
            "reward": trial.reward,
            "accuracy_before": before.accuracy,
            "accuracy_after": None if after is None else after.accuracy,
            "log_probability_before": before.log_probability,
            "log_probability_after": None if after is None else after.log_probability,
            "n": before.n,
            "seconds": trial.seconds,
            "tokens": trial.tokens + proposal.tokens,
            "forward_tokens": trial.forward_tokens + proposal.tokens,
            "backward_tokens": trial.backward_tokens,
            "overhead_seconds": 0.0,
            "option_scores": None if after is None else json.dumps(scores),
            "poolable": None if after is None else trial.poolable,
            "p_value": None,
            "decided_by": None,
            "executed": False,
            "error": trial.error,
            "seed": own,
        }
        self.number += 1
        return row, trial

    def with_costs(self, row: Row) -> Row:
        """The row with all that was computed between trials; nothing of it is left."""
        row = {
            **row,
            "forward_tokens": row["forward_tokens"] + self.forward,
            "backward_tokens": row["backward_tokens"] + self.backward,
            "overhead_seconds": row["overhead_seconds"] + self.seconds,
        }
        self._clear()
        return row


class _Strict:
    """The best trial of a round so far, of those that earned something."""

    def __init__(self) -> None:
        self.best: Mapping[str, Any] | None = None

    def judge(self, row: Mapping[str, Any]) -> Row:
        """What a row says of the choice, now that it is there; rows come in order."""
        # the reward, which is finer for `utility`, then the score
        finer = ("reward", "accuracy_after", "log_probability_after")
        best = self.best
        executed = row["reward"] > 0 and (
            best is None or [row[name] for name in finer] > [best[name] for name in finer]
        )
        if executed:
            self.best = row
        return {"executed": executed}


class _Paired:
    """The trial that a paired test prefers in a round so far, else the fallback, else none."""

    def __init__(self, level: float, start: Sequence[Prediction], fallback: str | None) -> None:
        """``start`` is answered where the round starts; ``fallback`` is its action's text."""
        self.best: Mapping[str, Any] | None = None
        self._level, self._fallback = level, fallback
        self._gold = [one.gold for one in start]
        self._reference = self._likelihoods([one.option_scores for one in start])
        self._decided = "initialization"

    def judge(self, row: Mapping[str, Any]) -> Row:
        """The test's p and what it decides, now that a row is there; the fallback's comes first."""
        p, executed = None, False
        if row["error"] is None:
            own = self._likelihoods(json.loads(row["option_scores"]))
            if row["action"] == self._fallback:
                p = preference_p_value(self._reference, own)
                executed = p > self._level
                if executed:
                    self._reference, self._decided = own, "fallback"
            else:
                p = preference_p_value(own, self._reference)
                preferred = self.best if self._decided == "test" else None
                name = "log_probability_after"
                executed = p <= self._level and (preferred is None or row[name] > preferred[name])
                if executed:
                    self._decided = "test"
        if executed:
            self.best = row
        return {"executed": executed, "p_value": p, "decided_by": self._decided}

    def _likelihoods(self, scores: Sequence[Sequence[float]]) -> list[float]:
        return [
            gold_log_probability(row, gold) for row, gold in zip(scores, self._gold, strict=True)
        ]


def executed_rows(rows: Rows) -> list[Mapping[str, Any]]:
    """The trials that were executed, a round each, in order: what the adapted state is made of."""
    last = {int(row["round"]): row for row in rows if row["executed"]}
    return [last[turn] for turn in sorted(last)]


def _fallback(
    space: ActionSpace, settings: SearchParameters, support: Sequence[Example]
) -> str | None:
    """The first fallback of such tasks that the space allows, as actions are written; None for none."""
    texts = settings.fallback
    if settings.open_fallback is not None and not shares_options(support):
        texts = settings.open_fallback
    for text in texts or ():
        try:
            action, _ = space.parse(text)
        except ActionError as error:
            logger.warning("the fallback %s is left out: %s", text, error)
            continue
        if space.family(action.family) in space.proposed:
            return action.text
        logger.warning("the fallback %s is left out: nothing is tried before it", text)
    return None


def _in_order(
    space: ActionSpace, proposals: Sequence[Proposal], fallback: str | None
) -> list[Proposal]:
    """A round's trials: the fallback, the proposals, and what puts these together."""
    first = [one for one in proposals if one.text == fallback]
    if fallback is not None and not first:
        first = [Proposal(fallback, "", "fallback", 0)]
    found = [*first, *(one for one in proposals if one.text != fallback)]
    # one trial alone is nothing to put together
    return found + [Proposal(one.text, "", "search", 0) for one in space.pooling if found[1:]]


def _history(rows: Rows) -> list[tuple[str, float]]:
    """Actions and their rewards, for a policy to read; none of those that it cannot choose."""
    return [(str(row["action"]), float(row["reward"])) for row in rows if row["source"] != "search"]


def _attempts(rows: Rows) -> list[Attempt]:
    """The trials, of one state, whose adapters may become members of an ensemble."""
    return [
        Attempt(
            str(row["action"]),
            str(row["family"]),
            int(row["seed"]),
            tuple(tuple(scores) for scores in json.loads(row["option_scores"])),
        )
        for row in rows
        if isinstance(row["option_scores"], str) and row["poolable"]
    ]


def _measure_start(predictions: Sequence[Prediction], tag: Tag) -> Indicators:
    """Indicators of the initialization, which nothing can go on without."""
    try:
        return measure_indicators(predictions)
    except IndicatorError as error:
        raise IndicatorError(
            f"{tag.task}: the adapter that the generator made, which strategies start from, cannot be scored: {error}. "
            f"Train the generator anew, with a lower learning rate"
        ) from error


def _different(
    proposer: Proposer, prompts: Sequence[str], seed: int, known: Set[str]
) -> tuple[list[Proposal], int]:
    """One proposal a prompt, no two alike and none known, as far as there are others; and the thrown-away tokens."""
    thrown_away, before = 0, 0
    found: dict[str, Proposal] = {}
    for attempt in range(1 + _SECOND_THOUGHTS):
        missing = len(prompts) - len(found)
        # writing is a good part of an adaptation: who had nothing new to say is not asked again
        if missing == 0 or (attempt > 0 and len(found) == before):
            break
        before, own = len(found), derive_seed(seed, "attempt", str(attempt))
        for proposal in proposer.propose(prompts[-missing:], own):
            if proposal.text in known or proposal.text in found:
                thrown_away += proposal.tokens
            else:
                found[proposal.text] = proposal
    return list(found.values()), thrown_away


def _draw_validation(count: int, settings: RolloutParameters, seed: int, number: int) -> list[int]:
    own = derive_seed(seed, "validation", str(number) if settings.resample else "all")
    order = np.random.default_rng(own).permutation(count)
    return [int(place) for place in order[: settings.examples]]
