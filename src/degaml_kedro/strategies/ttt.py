"""``ttt``: test-time training on unlabelled prompts (F.1; Hu et al., 2025).

    θ <- θ - η ∇ mean over prompts' tokens of -log p_θ(x_t | x_<t)

The prompt's tokens alone: no option and no answer is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import Parameters, Phase, TrainingParameters
from degaml_kedro.llm.finetune import AnswerSequence, batch_indices, train_on_batches
from degaml_kedro.llm.prompting import render_prompt
from degaml_kedro.strategies.context import Context, StrategyError
from degaml_kedro.strategies.observations import Prompts
from degaml_kedro.strategies.registry import Offered, family
from degaml_kedro.strategies.state import AdaptedState


class TestTimeTraining(Parameters):
    """Gradient steps on the prompts' perplexity."""

    # not a test class, whatever pytest makes of its name
    __test__ = False

    ttl_steps: Annotated[int, Field(ge=1, le=50), Offered(1, 2, 3, 5, 8, 10, 15, 25, 50)]
    learning_rate: Annotated[
        float, Field(ge=1e-6, le=1e-3), Offered(1e-6, 1e-5, 5e-5, 1e-4, 3e-4, 1e-3)
    ]
    batch_size: Annotated[int, Field(ge=1, le=32), Offered(1, 2, 4, 8, 16, 32)]
    shuffle_data: bool


@family("ttt", "train on the prompts", TestTimeTraining)
def refine(
    context: Context, state: AdaptedState, seen: Prompts, config: TestTimeTraining, seed: int
) -> AdaptedState:
    """Train every member on the prompts.

    Raises:
        StrategyError: no prompt is longer than one token.
        TrainingError: the loss stops being finite.
    """
    sequences = prompt_sequences(context, seen)
    own = derive_seed(seed, "ttt") if config.shuffle_data else None
    return train_members(
        context, state, sequences, config.ttl_steps, config.learning_rate, config.batch_size, own
    )


def prompt_sequences(context: Context, seen: Prompts) -> list[AnswerSequence]:
    """Every prompt as a sequence whose tokens, all but the first, are predicted.

    Raises:
        StrategyError: no prompt is longer than one token.
    """
    texts = [render_prompt(question, context.prompt, context.base) for question in seen.questions]
    special = context.prompt.format == "plain"
    rows = context.base.tokenizer(texts, add_special_tokens=special).input_ids
    found = [AnswerSequence(tuple(ids), len(ids) - 1) for ids in rows if len(ids) > 1]
    if not found:
        raise StrategyError("every prompt is one token long; there is nothing to predict in it")
    return found


def train_members(
    context: Context,
    state: AdaptedState,
    sequences: Sequence[AnswerSequence],
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int | None,
) -> AdaptedState:
    """The state with every member trained on the same batches: shuffled by the seed, or in order without one.

    Raises:
        TrainingError: the loss stops being finite.
    """
    training = TrainingParameters(
        phases=(Phase(steps=steps, learning_rate=learning_rate),), batch_size=batch_size
    )

    def batch(step: int) -> list[AnswerSequence]:
        first = (step - 1) * batch_size
        chosen = [(first + i) % len(sequences) for i in range(batch_size)]
        if seed is not None:
            chosen = batch_indices(len(sequences), training, step, seed)
        return [sequences[i] for i in chosen]

    members = []
    for member in state.members:
        last = None
        for last in train_on_batches(context.base, batch, training, member.adapter):
            context.meter.forward += last.tokens
            context.meter.backward += last.tokens
            context.check_time()
        adapter = member.adapter if last is None else last.adapter
        members.append(replace(member, adapter=adapter))
    return replace(state, members=tuple(members))
