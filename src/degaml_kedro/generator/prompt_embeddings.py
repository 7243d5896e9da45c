"""A task's prompts as the generator reads them: the encoder's token-level states, computed once and kept.

Only real tokens are kept, one prompt after the other and a repeated prompt once: short prompts take a tenth of the
room that rows of full length would. Rows of full length are laid out when they are asked for.

Shapes: P prompts, L prompt tokens, C encoder width, N prompts of a condition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PromptEmbeddings:
    """The encoder's states of P prompts.

    Attributes:
        token_states: float16 [all tokens, C]: a tensor, or a file that is read when it is sliced.
        starts: int64 [P], each prompt's first token there; equal prompts share theirs.
        lengths: int32 [P], each prompt's tokens, at most L.
        tokens: L, how many tokens of a prompt are kept.
        width: C.
        fingerprint: changes with the encoder's weights or vocabulary.
        prompts_digest: changes with the prompts or their order (:func:`digest_prompts`).
    """

    token_states: Any
    starts: Tensor
    lengths: Tensor
    tokens: int
    width: int
    encoder: str
    fingerprint: str
    prompts_digest: str

    def __len__(self) -> int:
        """P."""
        return len(self.lengths)

    def __repr__(self) -> str:
        """The sizes, not the numbers."""
        return f"PromptEmbeddings({len(self)} x {self.tokens} x {self.width}, {self.encoder})"

    @property
    def states(self) -> Tensor:
        """All rows, float16 [P, L, C]: mind the memory, :meth:`rows` reads a few."""
        return self.rows(range(len(self)))[0]

    def rows(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Lay the states of prompts out, reading only these; ``indices`` may have any shape.

        Returns:
            Their states, float16 ``[*indices, L, C]``, zeros after prompts' ends, and lengths, int32 ``[*indices]``.
        """
        chosen = torch.as_tensor(indices, dtype=torch.long)
        flat = chosen.reshape(-1)
        starts, lengths = self.starts[flat], self.lengths[flat]
        # a view: what is not copied below is not read
        states = self.token_states[:]
        rows = torch.zeros(len(flat), self.tokens, self.width, dtype=torch.float16)
        # row by row, since index_select reads at half the pace of these copies
        for row, start, length in zip(rows, starts.tolist(), lengths.tolist(), strict=True):
            row[:length] = states[start : start + length]
        return rows.view(*chosen.shape, self.tokens, self.width), lengths.view(chosen.shape)

    def sentences(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Sentence embeddings, float32 [N, C]: the mean of a prompt's states at unit length."""
        states, lengths = self.rows(indices)
        totals = states.float().sum(dim=1)  # zeros after each prompt's end
        return torch.nn.functional.normalize(totals / lengths[:, None].clamp(min=1), dim=-1)

    def draw(
        self, count: int, generator: torch.Generator, among: Sequence[int] | None = None
    ) -> Tensor:
        """Draw the prompts of one condition: their indices, int64 [count].

        Without replacement where there are enough; where there are fewer than ``count``, every draw is
        independent, with replacement.
        """
        pool = torch.arange(len(self)) if among is None else torch.tensor(among, dtype=torch.long)
        if len(pool) >= count:
            return pool[torch.randperm(len(pool), generator=generator)[:count]]
        return pool[torch.randint(len(pool), (count,), generator=generator)]


def digest_prompts(prompts: Sequence[str]) -> str:
    """A digest of a list of prompts and their order: sixteen hexadecimal digits."""
    digest = hashlib.sha256()
    for prompt in prompts:
        data = prompt.encode("utf-8", "surrogatepass")
        # the length first, so that prompts cannot run into each other
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]
