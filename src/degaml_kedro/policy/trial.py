"""One trial: an action is carried out on a task, and scored on its D_val.

What a language model wrote is parsed first; what is no action of the space earns 0 and never runs. A family that
raises or diverges earns 0, its error is recorded, and nothing of it stays: it was given a copy of the state.

A family that sees answers must not be scored on the answers that it saw. Where the task has other labeled examples it
learns from these (rollouts). Where it has none it is tried by cross-fitting: D_val is dealt into folds (halves, where
the caller deals none), each is answered by what was refined on the others, and all answers together are compared with
the initialization's, like with like. A family that puts together what was tried before is given the held-out scores of
the other folds, and its own are worked out from those of its members. Where answers are generated there are no scores
of what others wrote: its members are then made anew, on the other folds, and asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import Parameters, RewardParameters
from degaml_kedro.llm.base_model import first_line
from degaml_kedro.llm.scoring import Prediction, predictions_of
from degaml_kedro.policy.actions import ActionError, ActionSpace
from degaml_kedro.policy.indicators import Indicators, better, measure_indicators
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.context import Context, StrategyError
from degaml_kedro.strategies.ensemble import is_candidate
from degaml_kedro.strategies.observations import Candidate, Candidates, Labeled, Nothing, Prompts
from degaml_kedro.strategies.registry import StrategyFamily
from degaml_kedro.strategies.scaling import combine
from degaml_kedro.strategies.state import AdaptedState, Member
from degaml_kedro.tasks.example import Example

FOLDS = 2

Folds = Sequence[Sequence[int]]
Seen = Nothing | Prompts | Labeled | Candidates


@dataclass(frozen=True)
class Attempt:
    """An earlier trial from the same state, on the same examples, whose adapter may become a member of an ensemble.

    Attributes:
        scores: option scores of every example, [examples][options], held out where the family reads answers.
    """

    action: str
    family: str
    seed: int
    scores: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Trial:
    """What came of an action.

    Attributes:
        family: None where the text was no action.
        after: indicators under what it made; None where nothing ran to its end.
        tokens: that the base model computed, forward and backward.
        error: why it earned nothing, where that is not the score.
        backward_tokens: those of ``tokens`` that a gradient went back through.
        predictions: what ``after`` was measured of; empty where that is None.
        poolable: what it made is one adapter, without a vote or a vector of its own.
        state: what it made; None where nothing ran to its end, and where it was tried by cross-fitting, which makes one
            a fold.
    """

    family: str | None
    reward: float
    after: Indicators | None
    seconds: float
    tokens: int
    error: str | None = None
    backward_tokens: int = 0
    predictions: tuple[Prediction, ...] = ()
    poolable: bool = False
    state: AdaptedState | None = None

    @property
    def forward_tokens(self) -> int:
        """Those that it read."""
        return self.tokens - self.backward_tokens


def try_action(
    context: Context,
    space: ActionSpace,
    state: AdaptedState,
    before: Indicators,
    examples: Sequence[Example],
    text: str,
    reward: RewardParameters,
    seed: int,
    folds: Folds | None = None,
    tried: Sequence[Attempt] = (),
    shown: Sequence[Example] = (),
) -> Trial:
    """Carry an action out and score it.

    Args:
        state: what is refined; it stays as it is.
        before: indicators of ``state`` on the same examples.
        examples: D_val.
        text: what was proposed: untrusted.
        seed: of the strategy's randomness.
        folds: places in D_val, for families that read answers; None for two halves that the seed deals.
        tried: earlier trials from the same state, for families that put these together.
        shown: labeled examples of the task beside D_val: what families that read answers learn from in place of D_val,
            which is then scored as a whole; none where there are no others.

    Returns:
        The trial; no error of a strategy leaves this function.
    """
    try:
        action, config = space.parse(text)
    except ActionError as error:
        return Trial(None, 0.0, None, 0.0, 0, f"invalid action: {first_line(error)}")
    family = space.family(action.family)
    refine = partial(_refine, context, family, config, state, seed)
    meter, began = replace(context.meter), time.perf_counter()
    after, failure = None, None
    found, poolable, refined = list[Prediction](), False, None
    try:
        if not family.reads_answers or (shown and family.sees is Labeled):
            refined = refine(_seen(family, shown if family.reads_answers else examples))
            found, poolable = predict(context, refined, examples), is_candidate(refined)
        else:
            if len(examples) < FOLDS:
                raise StrategyError(
                    f"the family '{family.name}' sees answers, so it is scored on examples that it was not trained on: "
                    f"it needs at least {FOLDS} examples, and there is {len(examples)}"
                )
            if folds is None:
                order = np.random.default_rng(derive_seed(seed, "folds")).permutation(len(examples))
                folds = [[int(place) for place in order[fold::FOLDS]] for fold in range(FOLDS)]
            pooling = family.sees is Candidates
            if pooling and context.scoring.mode != "generate":
                found = _pooled(context, refine, state, examples, folds, tried)
            else:

                def seen(places: Sequence[int]) -> Seen:
                    some = tuple(examples[place] for place in places)
                    make = partial(execute, context, space, state, some)
                    return _candidates(tried, make, examples, places) if pooling else Labeled(some)

                found, poolable = _cross_fitted(context, refine, seen, examples, folds)
                poolable = poolable and not pooling
        after = measure_indicators(found)
    except Exception as error:  # noqa: BLE001 - a strategy may be anybody's code, and must not end the run
        failure = f"{type(error).__name__}: {first_line(error)}"
    seconds = time.perf_counter() - began
    tokens, backward = context.meter.tokens - meter.tokens, context.meter.backward - meter.backward
    failed = Trial(action.family, 0.0, None, seconds, tokens, failure, backward)
    if after is None:
        return failed
    return replace(
        failed,
        reward=reward_of(before, after, reward, seconds, seed),
        after=after,
        predictions=tuple(found),
        poolable=poolable,
        state=refined,
    )


def reward_of(
    before: Indicators, after: Indicators, settings: RewardParameters, seconds: float, seed: int
) -> float:
    """The reward of a score (section 2.2; made strict: a tie earns nothing)."""
    if settings.kind == "utility":
        return after.accuracy - before.accuracy - settings.price_per_second * seconds
    won = better(after, before, settings.tie_break)
    if settings.noise > 0:
        rng = np.random.default_rng(derive_seed(seed, "reward noise"))
        won ^= bool(rng.random() < settings.noise)
    return float(won)


def execute(
    context: Context,
    space: ActionSpace,
    state: AdaptedState,
    examples: Sequence[Example],
    text: str,
    seed: int,
    tried: Sequence[Attempt] = (),
) -> AdaptedState:
    """Carry an action out for good, on all that is known of the task.

    Args:
        examples: the support examples; the family sees of them what it may.
        seed: that of its trial.
        tried: the trials that it was given then; each that it takes is carried out on all examples.

    Raises:
        ActionError: the text is no action of the space.
        StrategyError: the family made weights or a vector that are not finite.
    """
    action, config = space.parse(text)
    family = space.family(action.family)
    if family.sees is Candidates:
        # those that the candidates were scored on are the first
        scored = range(len(tried[0].scores) if tried else 0)
        make = partial(execute, context, space, state, examples)
        seen: Seen = _candidates(tried, make, examples, scored)
    else:
        seen = _seen(family, examples)
    return _refine(context, family, config, state, seed, seen)


def _cross_fitted(
    context: Context,
    refine: Callable[[Seen], AdaptedState],
    seen: Callable[[Sequence[int]], Seen],
    examples: Sequence[Example],
    folds: Folds,
) -> tuple[list[Prediction], bool]:
    """Every fold answered by what was refined on the others; and whether these states are poolable.

    ``seen`` gives what the family sees where it knows the examples at some places alone.
    """
    found: dict[int, Prediction] = {}
    poolable = True
    for asked, others in _dealt(folds):
        refined = refine(seen(others))
        answers = predict(context, refined, [examples[place] for place in asked])
        found.update(zip(asked, answers, strict=True))
        poolable = poolable and is_candidate(refined)
    return [found[place] for place in range(len(examples))], poolable


def _pooled(
    context: Context,
    refine: Callable[[Seen], AdaptedState],
    state: AdaptedState,
    examples: Sequence[Example],
    folds: Folds,
    tried: Sequence[Attempt],
) -> list[Prediction]:
    """Predictions of what a family puts together, from its members' held-out scores: the model is not asked."""
    stand_ins = {(one.action, one.seed): Member(state.members[0].adapter) for one in tried}
    scores_of = {id(stand_ins[one.action, one.seed]): one.scores for one in tried}

    def stand_in(action: str, seed: int) -> AdaptedState:
        return AdaptedState((stand_ins[action, seed],))

    scores: dict[int, tuple[float, ...]] = {}
    for asked, others in _dealt(folds):
        made = refine(_candidates(tried, stand_in, examples, others))
        known = all(id(member) in scores_of for member in made.members)
        if not known or made.vote is None or made.steering is not None:
            raise StrategyError(
                "a family that sees candidates has to put their members together under a vote"
            )
        for place in asked:
            rows = [scores_of[id(member)][place] for member in made.members]
            scores[place] = combine(rows, made.vote.method, made.vote.weights)
    every = [scores[place] for place in range(len(examples))]
    return predictions_of(examples, every, [0] * len(examples), context.prompt, context.scoring)


def _candidates(
    tried: Sequence[Attempt],
    make: Callable[[str, int], AdaptedState],
    examples: Sequence[Example],
    places: Sequence[int],
) -> Candidates:
    """What has been tried, as a family sees it that knows the examples at some places alone.

    ``make`` makes the state of an action's text and a seed.
    """
    return Candidates(
        tuple(examples[place] for place in places),
        tuple(
            Candidate(
                one.action,
                one.family,
                tuple(one.scores[place] for place in places),
                partial(make, one.action, one.seed),
            )
            for one in tried
        ),
    )


def _dealt(folds: Folds) -> Iterator[tuple[Sequence[int], list[int]]]:
    """Each fold, and the places of all others in order."""
    every = sorted(place for fold in folds for place in fold)
    for fold in folds:
        yield fold, [place for place in every if place not in fold]


def _seen(family: StrategyFamily, examples: Sequence[Example]) -> Seen:
    if family.sees is Nothing:
        return Nothing()
    return Prompts.of(examples) if family.sees is Prompts else Labeled(tuple(examples))


def _refine(
    context: Context,
    family: StrategyFamily,
    config: Parameters,
    state: AdaptedState,
    seed: int,
    seen: Seen,
) -> AdaptedState:
    context.check_time()
    # a copy: a family may be anybody's code, and write into the tensors
    refined = family.refine(context, deepcopy(state), seen, config, seed)
    if not isinstance(refined, AdaptedState):
        raise StrategyError(
            f"the family '{family.name}' returned a {type(refined).__name__}; it has to return an AdaptedState"
        )
    for number, member in enumerate(refined.members):
        bad = next(
            (n for n, tensor in member.adapter.tensors.items() if not torch.isfinite(tensor).all()),
            None,
        )
        if bad is not None:
            raise StrategyError(
                f"the family '{family.name}' made weights that are not finite ({bad} of adapter {number})"
            )
    vectors = None if refined.steering is None else refined.steering.vectors
    if vectors is not None and not torch.isfinite(vectors).all():
        raise StrategyError(f"the family '{family.name}' made a vector that is not finite")
    return refined
