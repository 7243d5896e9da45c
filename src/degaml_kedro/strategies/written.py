"""``written``: an adapter written from the support examples by the generator that reads them (not in the paper).

It takes the place of whatever adapter there is: no gradient step, and no example in the prompt unless it is asked for.
The examples are read once (:mod:`degaml_kedro.generator.examples`). Demonstrations and the word of the prompt encoder's
classifier are those of the family ``context``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from degaml_kedro.config.schema import Parameters
from degaml_kedro.llm.finetune import answer_sequences
from degaml_kedro.strategies.context import Context, StrategyError
from degaml_kedro.strategies.in_context import demonstrate
from degaml_kedro.strategies.observations import Labeled
from degaml_kedro.strategies.registry import Offered, family
from degaml_kedro.strategies.state import MAX_ENCODER_WEIGHT, MAX_SHOTS, AdaptedState, Member


class Written(Parameters):
    """How many demonstrations stand in the prompt beside it, and what the encoder's word counts."""

    shots: Annotated[int, Field(ge=0, le=MAX_SHOTS), Offered(0, 20)] = 0
    encoder: Annotated[float, Field(ge=0, le=MAX_ENCODER_WEIGHT), Offered(0.0, 2.0)] = 0.0


@family("written", "write an adapter from the answered examples", Written)
def refine(
    context: Context, state: AdaptedState, seen: Labeled, config: Written, seed: int
) -> AdaptedState:
    """One adapter, written from the examples, in place of the state's.

    Raises:
        StrategyError: there is no generator that reads examples, or no encoder where one is asked for.
    """
    if context.writer is None:
        raise StrategyError(
            "there is no generator that reads examples here; train one (generator.variants with decoder.kind: "
            "associative), or leave the family 'written' out"
        )
    sequences = answer_sequences(
        context.base, seen.examples, context.prompt, context.scoring.answers
    )
    adapter = context.writer.write(context.base, sequences)
    context.meter.forward += sum(len(one.ids) for one in sequences)
    shown = None
    if config.shots or config.encoder:
        shown = demonstrate(context, seen, config.shots, "given", config.encoder, seed)
    return AdaptedState((Member(adapter, None, shown),))
