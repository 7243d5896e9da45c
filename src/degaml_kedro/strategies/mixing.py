"""``lora``: two-subspace mixing of a LoRA product (F.1; Wu et al., 2024).

    B M A  with  M = [[I, λ I], [λ I, I]]  over the two halves of the rank

M folds into A, so that the result is an ordinary adapter of the same rank: A1' = A1 + λ A2 and A2' = A2 + λ A1. λ = 0
is the adapter itself, λ = 1 is (B1 + B2)(A1 + A2). Of an odd rank the last row stands between the halves and is left
as it is.

Shapes: r rank, I inputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter, parse_key
from degaml_kedro.config.schema import Parameters
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.observations import Nothing
from degaml_kedro.strategies.registry import Offered, family
from degaml_kedro.strategies.state import AdaptedState


class Mixing(Parameters):
    """How much of the other half is added."""

    mix: Annotated[
        float, Field(ge=0.0, le=1.0, alias="lambda"), Offered(0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    ]


@family("lora", "mix the two halves of the adapter", Mixing)
def refine(
    context: Context, state: AdaptedState, seen: Nothing, config: Mixing, seed: int
) -> AdaptedState:
    """Mix every member's halves."""
    del context, seen, seed
    members = tuple(
        replace(member, adapter=mix_halves(member.adapter, config.mix)) for member in state.members
    )
    return replace(state, members=members)


def mix_halves(adapter: Adapter, mix: float) -> Adapter:
    """The adapter of B M A, for A [r, I] and B [O, r] of every layer and λ ``mix``."""
    if mix == 0:
        # not only equal: adding zero would turn a -0.0 over
        return adapter
    tensors = {
        name: _mixed(tensor, mix) if parse_key(name)[1] == "A" else tensor
        for name, tensor in adapter.tensors.items()
    }
    return Adapter(adapter.config, tensors)


def _mixed(a: Tensor, mix: float) -> Tensor:
    half = a.shape[0] // 2
    first, second, middle = a[:half], a[half : 2 * half], a[2 * half :]
    return torch.cat([first + mix * second, second + mix * first, middle])
