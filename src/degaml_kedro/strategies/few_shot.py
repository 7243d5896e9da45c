"""``sft``: supervised fine-tuning on the support examples, an optional extension (not in the paper).

    θ <- θ - η ∇ mean over answer tokens of -log p_θ(y | x)

It is the worked example of a family of one's own: it sees answers, and says so by the type of what it is given. A
family that sees answers is never scored on examples that it was trained on (see ``policy/trial.py``).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import Parameters
from degaml_kedro.llm.finetune import answer_sequences
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.observations import Labeled
from degaml_kedro.strategies.registry import Offered, family
from degaml_kedro.strategies.state import AdaptedState
from degaml_kedro.strategies.ttt import train_members


class FewShot(Parameters):
    """Gradient steps on the support answers."""

    steps: Annotated[int, Field(ge=1, le=100), Offered(2, 5, 10, 15, 20, 30, 50)]
    learning_rate: Annotated[
        float, Field(ge=1e-6, le=1e-2), Offered(1e-5, 3e-5, 1e-4, 3e-4, 5e-4, 1e-3)
    ]
    batch_size: Annotated[int, Field(ge=1, le=32), Offered(2, 4, 8)]


@family("sft", "train on the answers", FewShot)
def refine(
    context: Context, state: AdaptedState, seen: Labeled, config: FewShot, seed: int
) -> AdaptedState:
    """Train every member on the answers.

    Raises:
        TrainingError: the loss stops being finite.
    """
    sequences = answer_sequences(
        context.base, seen.examples, context.prompt, context.scoring.answers
    )
    steps, rate, size = config.steps, config.learning_rate, config.batch_size
    return train_members(context, state, sequences, steps, rate, size, derive_seed(seed, "sft"))
