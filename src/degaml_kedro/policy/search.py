"""Proposals are written, tried and recorded: on meta-train tasks to learn from, on new tasks to adapt.

Both yield one row a trial, as it comes. Given the rows of a run that was killed, they go on behind the last of them:
proposals are written again, which is cheap and gives the same texts, and trials are not repeated. Where a text is
another one after all, they say so before the first row comes (:class:`ResumeMismatchError`).

A row's ``seconds`` are its trial's, and its ``tokens`` the trial's and the proposal's. What is computed between trials
is somebody's cost too: the first scoring, the time that proposals take, those that are thrown away, a round's best
carried out and scored. The next row takes it, in ``forward_tokens`` and ``backward_tokens``, which are of everything,
and in ``overhead_seconds``: in the end the first row of a round. Where something may follow a round, its last row
waits until another one begins, and takes what followed where none does; a run that is killed meanwhile repeats that
trial. Not counted are proposals that a used-up time budget leaves untried, searches that end before their first
trial, and what a resumed run computes again: its rows are those of a run that never stopped.
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
from degaml_kedro.strategies.state import AdaptedState
from degaml_kedro.strategies.workbench import Meter, OutOfTimeError, Workbench
from degaml_kedro.tasks.example import Example, Question, shares_options

logger = logging.getLogger(__name__)

Row = dict[str, Any]

# how often other proposals are asked for in place of those that were tried already
_SECOND_THOUGHTS = 3


class ResumeMismatchError(DegamlError):
    """Rows of an earlier run that are not those of what is proposed now.

    Attributes:
        kept: how many rows, from the first, are.
    """

    def __init__(self, kept: int) -> None:
        """Count what can stay."""
        super().__init__(f"from trial {kept} on, the rows on disk are of other proposals")
        self.kept = kept


@dataclass(frozen=True)
class Tag:
    """Whose rows these are.

    Attributes:
        task: its name; no policy reads it.
        method: ``degaml``, ``random_policy``.
        iteration: of ReST^EM, from 1; 0 at test time.
    """

    task: str
    method: str
    iteration: int = 0


def roll_out(
    bench: Workbench,
    space: ActionSpace,
    proposer: Proposer,
    start: AdaptedState,
    examples: Sequence[Example],
    settings: RolloutParameters,
    reward: RewardParameters,
    seed: int,
    tag: Tag,
    finished: Sequence[Mapping[str, Any]] = (),
    shown: Sequence[Example] = (),
) -> Iterator[Row]:
    """Episodes from one initialization, to learn from (Algorithm 2); with ``resample`` each on a D_val of its own.

    An episode is ``settings.steps`` trials: the first one from the initialization, each other one from what the one
    before it made, rewarded or not. It ends early with a trial that failed, and with a family that reads answers, as
    a search does. Trials of one step are proposed together. In the rows ``round`` is the step.

    Args:
        bench: the model.
        space: the actions.
        proposer: who proposes.
        start: the initialization that every episode starts from.
        examples: what D_val is drawn from.
        settings: how many episodes, how many at once, how long, how large D_val is, the time budget.
        reward: what a score earns.
        seed: of this task and iteration.
        tag: goes into the rows.
        finished: rows of an earlier run with the same arguments.
        shown: labeled examples of the task that are none of ``examples``: families that read answers learn from all of
            them, as they will at test time; without any they are cross-fitted on D_val, from fewer.

    Yields:
        A row a trial, from the first one that is not finished.

    Raises:
        IndicatorError: the initialization answers with what are no numbers.
        ResumeMismatchError: a finished row is of another proposal than is written now; no row has come yet.
    """
    between = _Between(bench.meter)
    with between.measured():
        known = predict(bench, start, examples)
    deadline = _deadline(settings.seconds)
    bench = replace(bench, deadline=deadline)
    first_steps: list[Mapping[str, Any]] = []
    number = 0
    for first in range(0, settings.count, settings.at_once):
        episodes = []
        for place in range(first, min(first + settings.at_once, settings.count)):
            drawn = _draw_validation(len(examples), settings, seed, place)
            before = _measure_start([known[i] for i in drawn], tag)
            episodes.append(_Episode(tuple(examples[i] for i in drawn), start, before))
        for step in range(1, settings.steps + 1):
            going = [episode for episode in episodes if not episode.ended]
            numbers = range(number, number + len(going))
            number = numbers.stop
            if numbers.stop <= len(finished):
                # they need no proposals, which would say nothing that these rows do not
                _check_finished(finished, numbers.start, step, [None] * len(going))
                for episode, row in zip(going, finished[numbers.start : numbers.stop], strict=True):
                    episode.note(space, row)
                if step == 1:
                    first_steps += finished[numbers.start : numbers.stop]
                between.clear()
                continue
            for episode in going:
                episode.catch_up(bench, space)
            # of the same state
            tried = [(str(row["action"]), float(row["reward"])) for row in first_steps]
            own = [derive_seed(seed, "trial", str(one)) for one in numbers]
            prompts = [
                policy_prompt(
                    [Question.of(example) for example in episode.examples],
                    episode.before,
                    tried if step == 1 else [],
                    space,
                    number_seed,
                )
                for episode, number_seed in zip(going, own, strict=True)
            ]
            with between.measured():
                proposals = proposer.propose(
                    prompts, derive_seed(seed, "proposals", str(numbers.start))
                )
            _check_finished(finished, numbers.start, step, [one.text for one in proposals])
            for place, episode, number_seed, proposal in zip(
                numbers, going, own, proposals, strict=True
            ):
                if place < len(finished):
                    row = finished[place]
                    episode.note(space, row)
                    between.clear()
                elif _late(deadline):
                    return
                else:
                    trial = try_action(
                        bench,
                        space,
                        episode.state,
                        episode.before,
                        episode.examples,
                        proposal.text,
                        reward,
                        number_seed,
                        shown=shown,
                    )
                    row = _row(tag, step, place, proposal, episode.before, trial, with_scores=False)
                    row = between.added_to({**row, "seed": number_seed})
                    episode.note(space, row, trial)
                    yield row
                if step == 1:
                    first_steps.append(row)


@dataclass(eq=False)
class _Episode:
    """An episode of :func:`roll_out`.

    Attributes:
        examples: its D_val.
        state: where its next trial starts.
        before: the indicators of ``state``.
        ended: whether there is a next trial.
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

    def catch_up(self, bench: Workbench, space: ActionSpace) -> None:
        """Carry out what an earlier run tried; it is not counted again.

        Raises:
            ResumeMismatchError: it did not fail then and does now.
        """
        # time was up to whoever tried it
        bench = replace(bench, deadline=None)
        for row in self.behind:
            try:
                self.state = execute(
                    bench, space, self.state, self.examples, str(row["action"]), int(row["seed"])
                )
                self.before = measure_indicators(predict(bench, self.state, self.examples))
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
    """What became of the strategies that were chosen.

    Attributes:
        state: where adaptation ended.
        rows: the trials whose strategies were carried out, in order.
        failed: the trial whose strategy was chosen and failed on all of the examples; None for none.
    """

    state: AdaptedState
    rows: tuple[Mapping[str, Any], ...]
    failed: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Refinement:
    """Refine an adapter for one task: propose and try strategies, execute the best (section 2.2).

    Attributes:
        bench: the base model, and how it is asked.
        space: the actions.
        policy: the parameters of the search.
        start: the initialization.
        support: the labeled examples there are: D_val is taken of them, and nothing else of the task is known.
        executed: the state after each executed round that another followed, by the number of its trial, so that
            :meth:`execute` need not execute it again.
    """

    bench: Workbench
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

        Args:
            policy_model: the model that the policy adapts.
            adapter: the policy.
            check: called before every step of the model; what it raises ends the writing.
        """
        if adapter is None:
            return UniformProposer(self.space)
        temperature = self.policy.search_temperature(self.policy.search)
        return PolicyProposer(policy_model, adapter, self.space, temperature, check=check)

    def search(
        self, proposer: Proposer, seed: int, tag: Tag, finished: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[Row]:
        """Trials on the support examples of a new task, round by round.

        In each round one of the proposals is executed, and the next round starts from there; if none is, the state
        stays as it is. With ``settings.rule`` strict that is the best one of those that earned something. With
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

        Args:
            proposer: who proposes.
            seed: of this task and method.
            tag: goes into the rows.
            finished: rows of an earlier run with the same arguments.

        Yields:
            A row a trial, from the first one that is not finished.

        Raises:
            IndicatorError: the initialization answers with what are no numbers.
            ResumeMismatchError: a finished row is of another proposal than is written now; no row has come yet.
        """
        space, support, settings = self.space, self.support, self.policy.search
        # noise is for studies of learning; a choice is made on what was measured
        reward = self.policy.reward.model_copy(update={"noise": 0.0})
        between = _Between(self.bench.meter)
        deadline = _deadline(settings.seconds)
        bench = replace(self.bench, deadline=deadline)
        validation = support[: settings.examples]
        paired = settings.rule == "paired"
        folds = (
            deal_folds(validation, settings.folds, derive_seed(seed, "folds")) if paired else None
        )
        fallback = _fallback(space, settings, support) if paired else None
        state, history, tried, number = (
            self.start,
            list[tuple[str, float]](),
            list[Mapping[str, Any]](),
            0,
        )
        # the last row of a round, until another one begins
        waiting: list[Row] = []
        with between.measured():
            answers = predict(bench, state, validation)
            before = _measure_start(answers, tag)
        for turn in range(1, settings.rounds + 1):
            prompts = [
                policy_prompt(
                    [Question.of(example) for example in validation],
                    before,
                    history,
                    space,
                    derive_seed(seed, "prompt", str(turn), str(place)),
                )
                for place in range(settings.proposals)
            ]
            known = {action for action, _ in history}
            own = derive_seed(seed, "proposals", str(turn))
            try:
                with between.measured():
                    proposals, thrown_away = _different(proposer, prompts, own, known)
            except OutOfTimeError:
                # a proposer may have an eye on the clock too
                break
            between.wrote(thrown_away)
            proposals = _in_order(space, proposals, fallback)
            _check_finished(finished, number, turn, [proposal.text for proposal in proposals])
            following = number + len(proposals)
            if following < len(finished) and finished[following]["round"] == turn:
                raise ResumeMismatchError(following)
            choice = _Paired(settings.level, answers, fallback) if paired else _Strict()
            rows: list[Mapping[str, Any]] = []
            for place, proposal in enumerate(proposals, 1):
                if number < len(finished):
                    row = dict(finished[number])
                    choice.judge(row)
                    between.clear()
                elif _late(deadline):
                    break
                else:
                    yield from waiting
                    waiting = []
                    own = derive_seed(seed, "trial", str(number))
                    trial = try_action(
                        bench,
                        space,
                        state,
                        before,
                        validation,
                        proposal.text,
                        reward,
                        own,
                        folds,
                        _attempts([*tried, *rows]),
                    )
                    row = {**_row(tag, turn, number, proposal, before, trial), "seed": own}
                    row = between.added_to({**row, **choice.judge(row)})
                    if place < len(proposals) or turn == settings.rounds:
                        yield row
                    else:
                        waiting = [row]
                rows.append(row)
                number += 1
            if len(rows) < len(proposals):
                break
            # no policy reads of what it cannot choose
            history += [
                (str(row["action"]), float(row["reward"]))
                for row in rows
                if row["source"] != "search"
            ]
            tried += rows
            # it is of the initialization: what follows starts elsewhere, or after it was tried
            best, fallback = choice.best, None
            if best is None and settings.early_stop:
                break
            if best is not None and space.family(str(best["family"])).reads_answers:
                # D_val has been trained on: what a further round scored on it would say nothing of new questions
                break
            if best is not None and turn < settings.rounds:
                try:
                    with between.measured():
                        refined = _carry_out(
                            bench, space, state, support, best, tried, len(validation)
                        )
                except OutOfTimeError:
                    # it is executed all the same, by whoever builds the state; there is no time for another round
                    break
                if refined is None:
                    break
                state, answers = refined
                self.executed[int(best["rollout"])] = state
                before = measure_indicators(answers)
                history, tried = [], []
        # no other row comes
        yield from map(between.added_to, waiting)

    def execute(self, rows: Sequence[Mapping[str, Any]]) -> CarriedOut:
        """Carry out what was chosen, from the initialization; the initialization itself where nothing was.

        Where an action fails, or what it made answers with what are no numbers, the state before it is the last one,
        and a warning says so: :meth:`search` ended there as well.

        Args:
            rows: all that :meth:`search` yielded.
        """
        state, done, since = self.start, list[Mapping[str, Any]](), 0
        for row in executed_rows(rows):
            if (ready := self.executed.get(int(row["rollout"]))) is not None:
                state, since = ready, int(row["round"])
                done.append(row)
                continue
            tried = [one for one in rows if since < one["round"]]
            # a family that reads answers ended the search, and nobody waits for this state's answers to D_val: one
            # question says whether they are numbers
            asked = 1 if self.space.family(str(row["family"])).reads_answers else int(row["n"])
            refined = _carry_out(self.bench, self.space, state, self.support, row, tried, asked)
            if refined is None:
                return CarriedOut(state, tuple(done), row)
            state, since = refined[0], int(row["round"])
            done.append(row)
        return CarriedOut(state, tuple(done))


class _Strict:
    """The best trial of a round, of those that earned something.

    Attributes:
        best: so far; None for none.
    """

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
    """What a paired test prefers in a round, else the fallback, else where the round started.

    Attributes:
        best: so far; None for where the round started.
    """

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
                likelier = True
                if self.best is not None and self._decided == "test":
                    name = "log_probability_after"
                    likelier = row[name] > self.best[name]
                executed = p <= self._level and likelier
                if executed:
                    self._decided = "test"
        if executed:
            self.best = row
        return {"executed": executed, "p_value": p, "decided_by": self._decided}

    def _likelihoods(self, scores: Sequence[Sequence[float]]) -> list[float]:
        return [
            gold_log_probability(row, gold) for row, gold in zip(scores, self._gold, strict=True)
        ]


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
    others = [one for one in proposals if one.text != fallback]
    first = [one for one in proposals if one.text == fallback]
    if fallback is not None and not first:
        first = [Proposal(fallback, "", "fallback", 0)]
    found = [*first, *others]
    # one trial alone is nothing to put together
    return found + [Proposal(one.text, "", "search", 0) for one in space.pooling if found[1:]]


def _attempts(rows: Sequence[Mapping[str, Any]]) -> list[Attempt]:
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


class _Between:
    """What is computed between trials, until a row takes it."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.clear()

    def clear(self) -> None:
        """Forget it: the row that it belongs to has it already."""
        self._forward = self._backward = 0
        self._seconds = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """What happens inside is counted."""
        before, began = replace(self._meter), time.perf_counter()
        try:
            yield
        finally:
            self._forward += self._meter.forward - before.forward
            self._backward += self._meter.backward - before.backward
            self._seconds += time.perf_counter() - began

    def wrote(self, tokens: int) -> None:
        """The policy wrote what no row is of."""
        self._forward += tokens

    def added_to(self, row: Row) -> Row:
        """The row with all of it; nothing is left."""
        row = {
            **row,
            "forward_tokens": row["forward_tokens"] + self._forward,
            "backward_tokens": row["backward_tokens"] + self._backward,
            "overhead_seconds": row["overhead_seconds"] + self._seconds,
        }
        self.clear()
        return row


def executed_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trials that were executed, a round each, in order: what the adapted state is made of."""
    last: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        if row["executed"]:
            last[int(row["round"])] = row
    return [last[turn] for turn in sorted(last)]


def _carry_out(
    bench: Workbench,
    space: ActionSpace,
    state: AdaptedState,
    support: Sequence[Example],
    row: Mapping[str, Any],
    tried: Sequence[Mapping[str, Any]],
    asked: int,
) -> tuple[AdaptedState, list[Prediction]] | None:
    """The state of a trial's action, carried out on all support examples, and its answers to the first ``asked``.

    Trials of ``tried`` from before this one may be its members.

    Returns:
        None where that fails, as it may on more examples than the trial was given.
    """
    try:
        refined = execute(
            bench,
            space,
            state,
            support,
            str(row["action"]),
            int(row["seed"]),
            _attempts([one for one in tried if one["rollout"] < row["rollout"]]),
        )
        answers = predict(bench, refined, support[:asked])
        measure_indicators(answers)
        return refined, answers
    except OutOfTimeError:
        raise
    except Exception as error:  # noqa: BLE001 - a strategy may be anybody's code, and must not end the run
        logger.warning(
            "%s: %s was chosen, but carrying it out on all %d support examples failed (%s: %s); "
            "the state before it stays",
            row["task"],
            row["action"],
            len(support),
            type(error).__name__,
            first_line(error),
        )
        return None


def _measure_start(predictions: Sequence[Prediction], tag: Tag) -> Indicators:
    """Indicators of the initialization, which nothing can go on without."""
    try:
        return measure_indicators(predictions)
    except IndicatorError as error:
        raise IndicatorError(
            f"{tag.task}: the adapter that the generator made, which strategies start from, cannot be scored: {error}. "
            f"Train the generator anew, with a lower learning rate"
        ) from error


def _check_finished(
    finished: Sequence[Mapping[str, Any]], first: int, turn: int, texts: Sequence[str | None]
) -> None:
    """Check that the finished rows of a round, from its ``first`` trial on, are those of its proposals.

    Raises:
        ResumeMismatchError: they are not. A text of None is not known, and is taken for the row's.
    """
    for number, text in enumerate(texts, first):
        if number >= len(finished):
            return
        row = finished[number]
        if (row["rollout"], row["round"]) != (number, turn) or text not in (None, row["action"]):
            raise ResumeMismatchError(number)


def _different(
    proposer: Proposer, prompts: Sequence[str], seed: int, known: Set[str]
) -> tuple[list[Proposal], int]:
    """One proposal a prompt, no two alike and none that is known, as far as the proposer has others to offer.

    Returns:
        The proposals, and the tokens of those that were thrown away.
    """
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


def _row(
    tag: Tag,
    turn: int,
    number: int,
    proposal: Proposal,
    before: Indicators,
    trial: Trial,
    with_scores: bool = True,
) -> Row:
    after = trial.after
    scored = after is not None and with_scores
    return {
        "task": tag.task,
        "method": tag.method,
        "iteration": tag.iteration,
        "round": turn,
        "rollout": number,
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
        "option_scores": json.dumps([one.option_scores for one in trial.predictions])
        if scored
        else None,
        "poolable": trial.poolable if scored else None,
        "p_value": None,
        "decided_by": None,
        "executed": False,
        "error": trial.error,
    }


def _deadline(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


def _late(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline
