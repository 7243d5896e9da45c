"""The efficient decoder: one small network over (task, place in the adapter), and low-rank heads.

A task's prompts become one vector: attention over each prompt's tokens, then the mean over prompts, so that neither
the order nor the number of prompts matters. A small network takes it together with what it knows of a place in the
adapter — the layer, the module, the piece of the matrix — and a head for that kind of place, shared by all layers,
makes the token. Text-to-LoRA (Charakorn et al., 2025) conditions on layers and modules like this.

Shapes: B batch, N prompts, L prompt tokens, C encoder width, Z condition width, T tokens, P places in a layer, K kinds
of place, D network width, R rank of the heads, r adapter rank, k token width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.config.schema import FactorizedDecoder

_POSITION_WIDTH = 64
_ATTENTION_HEADS = 4


class PromptPooling(nn.Module):
    """A prompt batch as one vector: [B, N, L, C] -> [B, Z]."""

    def __init__(self, encoder_width: int, condition_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(encoder_width)
        self.query = nn.Linear(encoder_width, _ATTENTION_HEADS)
        self.join = nn.Linear(encoder_width * _ATTENTION_HEADS, condition_width)
        self.mix = nn.Sequential(
            nn.Linear(condition_width, condition_width),
            nn.GELU(),
            nn.Linear(condition_width, condition_width),
        )
        self.out = nn.LayerNorm(condition_width)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Attend to the tokens of each prompt, at least one by ``lengths`` [B, N], then take the mean over prompts."""
        inside = torch.arange(states.shape[2], device=states.device) < lengths[..., None]
        states = self.norm(states)
        weights = self.query(states).masked_fill(~inside[..., None], -torch.inf).softmax(dim=2)
        # [B, N, heads, C]: matrix products; the values need no projection of their own, the join is linear
        pooled = weights.transpose(2, 3) @ (states * inside[..., None])
        batch = self.join(pooled.flatten(2)).mean(dim=1)
        return self.out(batch + self.mix(batch))  # type: ignore[no-any-return]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.narrow(nn.functional.gelu(self.wide(self.norm(x))))
        return x + change


class FactorizedNetwork(nn.Module):
    """Prompt batch -> normalised tokens, in about a thousandth of the hyper-convolutional decoder's work.

    A fresh one makes zeros: the mean adapter.
    """

    order: Tensor
    inverse: Tensor
    layer: Tensor
    kind: Tensor
    position: Tensor

    def __init__(
        self, grid: TokenGrid, encoder_width: int, states: int, parameters: FactorizedDecoder
    ) -> None:
        super().__init__()
        self.output_scale = parameters.output_scale
        kinds: dict[tuple[str, str, int], int] = {}
        found = []
        for slot in grid.slots:
            for piece in range(slot.count):
                key = (slot.module, slot.matrix, piece)
                found.append(kinds.setdefault(key, len(kinds)))
        kind = torch.tensor(found)
        order = kind.argsort(stable=True)
        self.counts = kind.bincount().tolist()
        places = {
            "order": order,
            "inverse": order.argsort(),
            "layer": torch.unique(grid.positions()[:, 0], return_inverse=True)[1],
            "kind": kind,
            "position": grid.position_embedding(_POSITION_WIDTH),
        }
        for name, place in places.items():
            self.register_buffer(name, place, persistent=False)
        width, size = parameters.width, _POSITION_WIDTH
        self.pooling = PromptPooling(encoder_width, parameters.condition_width)
        self.state = nn.Linear(states, parameters.condition_width, bias=False)
        self.layer_embedding = nn.Embedding(int(self.layer.max()) + 1, size)
        self.kind_embedding = nn.Embedding(len(kinds), size)
        self.enter_condition = nn.Linear(parameters.condition_width, width)
        self.enter_place = nn.Linear(3 * size, width)
        self.blocks = nn.ModuleList(_Residual(width) for _ in range(parameters.blocks))
        self.leave = nn.Linear(width, parameters.rank)
        self.heads = nn.Parameter(
            torch.zeros(len(kinds), parameters.rank, grid.rank * grid.token_width)
        )
        self.shape = grid.cells
        nn.init.zeros_(self.state.weight)

    def forward(self, states: Tensor, lengths: Tensor, permutation: Tensor) -> Tensor:
        """Normalised tokens [B, T, r, k] of ``states`` [B, N, L, C], which are cast to the weights' type.

        The others are as in ``Decoder.forward``.
        """
        heads = self.heads
        dtype = heads.dtype
        condition = self.pooling(states.to(dtype), lengths) + self.state(permutation.to(dtype))
        known = [self.layer_embedding(self.layer), self.kind_embedding(self.kind)]
        known.append(self.position.to(dtype))
        places = self.enter_place(torch.cat(known, dim=-1))
        hidden = self.enter_condition(condition)[:, None] + places
        for block in self.blocks:
            hidden = block(hidden)
        low = self.leave(hidden)  # [B, T, R]
        # by kind: a head is shared by the layers that have the kind, so its product is one matrix product
        parts = low[:, self.order].split(self.counts, dim=1)
        made = [part @ head for part, head in zip(parts, heads.unbind(), strict=True)]
        tokens = torch.cat(made, dim=1)[:, self.inverse]
        return tokens.view(-1, *self.shape) * self.output_scale
