"""``context``: the support examples in the prompt, on top of whatever adapter there is (not in the paper).

    p_θ(y | x_1 y_1 … x_k y_k x)

Nothing is trained. Every member of the state gets the demonstrations, and is asked behind them from then on; what else
strategies do to it (train, mix, steer) is done to the questions alone, without them.

The last demonstration stands nearest to the question. As many stand there as fit in the model's context in front of
that question; those that come last in the choice are dropped first.

Shapes: N demonstrations to choose from, Q questions, C width of the prompt encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from degaml_kedro.llm.in_context import (
    QuestionsInContext,
    encode_in_context,
    fitting,
    shuffled,
)
from degaml_kedro.parameters import Parameters
from degaml_kedro.seeds import derive_seed
from degaml_kedro.strategies.registry import Offered, family
from degaml_kedro.strategies.seen import Labeled
from degaml_kedro.strategies.state import MAX_POOL, MAX_SHOTS, AdaptedState, Context, Order
from degaml_kedro.strategies.workbench import StrategyError, Workbench
from degaml_kedro.tasks.example import Example, Question


class InContext(Parameters):
    """How many demonstrations, and which."""

    shots: Annotated[int, Field(ge=1, le=MAX_SHOTS), Offered(5, 10, 20, 40)]
    order: Order


@family("context", "show the answered examples", InContext)
def refine(
    bench: Workbench, state: AdaptedState, seen: Labeled, config: InContext, seed: int
) -> AdaptedState:
    """Put the examples in front of every question that a member is asked.

    Args:
        bench: ``nearest`` needs its encoder.
        state: an earlier context of a member is replaced.
        seen: labeled examples; of more than 1000 the first.
        config: how many are shown, and which.
        seed: decides the random order.

    Raises:
        StrategyError: the nearest are asked for, and there is no encoder.
    """
    if config.order == "nearest":
        _embedder(bench)
    own = derive_seed(seed, "context")
    context = Context(seen.examples[:MAX_POOL], config.shots, config.order, own)
    members = tuple(replace(member, context=context) for member in state.members)
    return replace(state, members=members)


def ask_in_context(
    bench: Workbench, context: Context, questions: Sequence[Question]
) -> QuestionsInContext:
    """Questions behind as many demonstrations of a context as fit; every question by itself.

    Args:
        bench: the model; ``nearest`` needs its encoder.
        context: what is shown.
        questions: what is asked.

    Raises:
        StrategyError: the nearest are asked for, and there is no encoder.
        PromptError: a question alone is longer than the model's context.
    """
    base, prompt, mode = bench.base, bench.prompt, bench.scoring.mode
    shared = context.order != "nearest"
    if shared:
        pool = context.examples
        if context.order == "random":
            pool = shuffled(pool, context.seed)
        choices = [pool[: context.shots]] * len(questions)
    else:
        choices = _nearest(bench, context, questions)

    def fit(choice: Sequence[Example], some: Sequence[Question]) -> int:
        return fitting(base, choice, some, prompt, mode, len(choice))

    if not shared or (questions and fit(choices[0], questions) < len(choices[0])):
        choices = [
            choice[: fit(choice, [question])]
            for choice, question in zip(choices, questions, strict=True)
        ]
    if not shared:
        choices = [choice[::-1] for choice in choices]
    return encode_in_context(base, questions, choices, prompt, mode, shared)


def _nearest(
    bench: Workbench, context: Context, questions: Sequence[Question]
) -> list[tuple[Example, ...]]:
    """The demonstrations that are nearest to each question, the nearest one first."""
    embed = _embedder(bench)
    pool = embed([Question.of(example) for example in context.examples])  # [N, C]
    # both are of length 1: the order of Euclidean distances too
    ranks = (embed(questions) @ pool.T).argsort(dim=1, descending=True, stable=True)
    return [
        tuple(context.examples[place] for place in row[: context.shots]) for row in ranks.tolist()
    ]


def _embedder(bench: Workbench) -> Callable[[Sequence[Question]], Tensor]:
    if bench.embed is None:
        raise StrategyError(
            "the nearest demonstrations are found by the prompt encoder, and there is none here; use the order given "
            "or random"
        )
    return bench.embed
