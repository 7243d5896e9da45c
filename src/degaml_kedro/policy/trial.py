"""One trial: an action is carried out on a task, and scored on its D_val.

What a language model wrote is parsed first; what is no action of the space earns 0 and never runs. A family that
raises or diverges earns 0, its error is recorded, and nothing of it stays: it was given a copy of the state.

A family that sees answers must not be scored on the answers that it saw. It is tried by cross-fitting: D_val is halved,
each half is answered by what was refined on the other, and all its answers together are compared with the
initialization's, like with like.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch

from degaml_kedro.llm.base_model import first_line
from degaml_kedro.llm.scoring import Prediction
from degaml_kedro.parameters import Parameters, RewardParameters
from degaml_kedro.policy.actions import ActionError, ActionSpace
from degaml_kedro.policy.indicators import Indicators, better, measure_indicators
from degaml_kedro.seeds import derive_seed
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.registry import Family
from degaml_kedro.strategies.seen import Labeled, Nothing, Prompts
from degaml_kedro.strategies.state import AdaptedState
from degaml_kedro.strategies.workbench import StrategyError, Workbench
from degaml_kedro.tasks.example import Example

FOLDS = 2


@dataclass(frozen=True)
class Trial:
    """What came of an action.

    Attributes:
        family: None where the text was no action.
        reward: what it earned.
        after: indicators under what it made; None where nothing ran to its end.
        seconds: wall time.
        tokens: that the base model computed, forward and backward.
        error: why it earned nothing, where that is not the score.
        backward_tokens: those of ``tokens`` that a gradient went back through.
    """

    family: str | None
    reward: float
    after: Indicators | None
    seconds: float
    tokens: int
    error: str | None = None
    backward_tokens: int = 0

    @property
    def forward_tokens(self) -> int:
        """Those that it read."""
        return self.tokens - self.backward_tokens


def try_action(
    bench: Workbench,
    space: ActionSpace,
    state: AdaptedState,
    before: Indicators,
    examples: Sequence[Example],
    text: str,
    reward: RewardParameters,
    seed: int,
) -> Trial:
    """Carry an action out and score it.

    Args:
        bench: the model; its meter and deadline are respected.
        space: what is allowed.
        state: what is refined; it stays as it is.
        before: indicators of ``state`` on the same examples.
        examples: D_val.
        text: what was proposed: untrusted.
        reward: what a score earns.
        seed: of the strategy's randomness.

    Returns:
        The trial; no error of a strategy leaves this function.
    """
    try:
        action, config = space.parse(text)
    except ActionError as error:
        return Trial(None, 0.0, None, 0.0, 0, f"invalid action: {first_line(error)}")
    family = space.family(action.family)
    meter, began = replace(bench.meter), time.perf_counter()
    after, failure = None, None
    try:
        after = measure_indicators(_predictions(bench, family, config, state, examples, seed))
    except Exception as error:  # noqa: BLE001 - a strategy may be anybody's code, and must not end the run
        failure = f"{type(error).__name__}: {first_line(error)}"
    seconds = time.perf_counter() - began
    tokens = bench.meter.tokens - meter.tokens
    backward = bench.meter.backward - meter.backward
    earned = 0.0 if after is None else earn(reward, before, after, seconds, seed)
    return Trial(action.family, earned, after, seconds, tokens, failure, backward)


def earn(
    reward: RewardParameters, before: Indicators, after: Indicators, seconds: float, seed: int
) -> float:
    """The reward of a score (section 2.2; made strict: a tie earns nothing).

    Args:
        reward: kind, tie-break, price and noise.
        before: the initialization's.
        after: the strategy's.
        seconds: what it took.
        seed: decides whether noise turns it over.
    """
    if reward.kind == "utility":
        return after.accuracy - before.accuracy - reward.price_per_second * seconds
    won = better(after.score, before.score, reward.tie_break)
    if reward.noise > 0:
        rng = np.random.default_rng(derive_seed(seed, "reward noise"))
        won ^= bool(rng.random() < reward.noise)
    return float(won)


def execute(
    bench: Workbench,
    space: ActionSpace,
    state: AdaptedState,
    examples: Sequence[Example],
    text: str,
    seed: int,
) -> AdaptedState:
    """Carry an action out for good, on all that is known of the task.

    Args:
        bench: the model.
        space: what is allowed.
        state: what is refined.
        examples: the support examples; the family sees of them what it may.
        text: the action.
        seed: that of its trial.

    Raises:
        ActionError: the text is no action of the space.
        StrategyError: the family made weights or a vector that are not finite.
    """
    action, config = space.parse(text)
    family = space.family(action.family)
    return _refine(bench, family, config, state, examples, seed)


def _predictions(
    bench: Workbench,
    family: Family,
    config: Parameters,
    state: AdaptedState,
    examples: Sequence[Example],
    seed: int,
) -> list[Prediction]:
    if family.sees is not Labeled:
        return predict(bench, _refine(bench, family, config, state, examples, seed), examples)
    if len(examples) < FOLDS:
        raise StrategyError(
            f"the family '{family.name}' sees answers, so it is scored on examples that it was not trained on: "
            f"it needs at least {FOLDS} examples, and there is {len(examples)}"
        )
    order = np.random.default_rng(derive_seed(seed, "folds")).permutation(len(examples))
    found: dict[int, Prediction] = {}
    for fold in range(FOLDS):
        asked = [int(place) for place in order[fold::FOLDS]]
        held_out = set(asked)
        held_in = [example for place, example in enumerate(examples) if place not in held_out]
        refined = _refine(bench, family, config, state, held_in, seed)
        answers = predict(bench, refined, [examples[place] for place in asked])
        found.update(zip(asked, answers, strict=True))
    return [found[place] for place in range(len(examples))]


def _refine(
    bench: Workbench,
    family: Family,
    config: Parameters,
    state: AdaptedState,
    examples: Sequence[Example],
    seed: int,
) -> AdaptedState:
    bench.check_time()
    seen: Nothing | Prompts | Labeled
    if family.sees is Nothing:
        seen = Nothing()
    elif family.sees is Prompts:
        seen = Prompts.of(examples)
    else:
        seen = Labeled(tuple(examples))
    # a copy: a family may be anybody's code, and write into the tensors
    refined = family.refine(bench, deepcopy(state), seen, config, seed)
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
