"""What strategies refine: an adapter, and what later strategies put around it.

An adapted state is immutable: a strategy returns a new one, so that a failed one leaves nothing behind. As a folder it
is a PEFT folder a member (``adapter_0``, ``adapter_1``, …), ``state.json``, and ``state.safetensors`` for the prompt
batches that routers compare with and for a task's latent vector.

Shapes: C width of the prompt encoder, N prompts in a batch, H width of the base model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.errors import DegamlError

Distance = Literal["euclidean", "cosine"]
Router = Literal["avg_sim_score", "avg_prompt_embed"]
Ensemble = Literal["max_confidence", "majority_vote", "sum_logprobs"]
VoteMethod = Literal[
    "avg_sim_score", "avg_prompt_embed", "max_confidence", "majority_vote", "sum_logprobs"
]
ROUTERS = ("avg_sim_score", "avg_prompt_embed")


class StateError(DegamlError):
    """An adapted state that cannot be built, read or used."""


@dataclass(frozen=True, eq=False)
class Member:
    """One adapter, and the prompt batch it was generated from.

    Attributes:
        adapter: its weights.
        prompts: sentence embeddings of its prompt batch, float32 [N, C], each of length 1; None where no generator
            made it.
    """

    adapter: Adapter
    prompts: Tensor | None = None


@dataclass(frozen=True)
class Vote:
    """How several members answer together (test-time scaling).

    Attributes:
        method: a router, which picks one member a question, or an ensemble.
        distance: what routers compare embeddings with.
    """

    method: VoteMethod
    distance: Distance = "euclidean"


@dataclass(frozen=True, eq=False)
class Steering:
    """A vector added to the final hidden states (SLOT).

    Attributes:
        times: AdamW steps.
        learning_rate: of these steps.
        scope: ``sample``: a vector of its own for every question, made from that question's prompt when it is asked;
            ``task``: one vector for all of them.
        vectors: float32 [members, H], for scope ``task``; else None.
    """

    times: int
    learning_rate: float
    scope: Literal["sample", "task"] = "sample"
    vectors: Tensor | None = None


@dataclass(frozen=True, eq=False)
class AdaptedState:
    """Where adaptation stands.

    Attributes:
        members: at least one; several answer by ``vote``.
        vote: None for a single member.
        steering: None for none.
    """

    members: tuple[Member, ...]
    vote: Vote | None = None
    steering: Steering | None = None

    def __post_init__(self) -> None:
        if not self.members:
            raise StateError("an adapted state needs at least one adapter")
        if len(self.members) > 1 and self.vote is None:
            raise StateError(f"{len(self.members)} adapters need a vote to answer together")
