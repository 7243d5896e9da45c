"""Ragged batches without padding: sequences, or trees of sequences that share a prefix, in one row.

Every linear layer of the model sees one row of T tokens, none of them padding. Only attention needs to know
which tokens belong together: it gathers each group into a [G, S] grid, applies the group's mask and scatters
back. A group is either one causal sequence (training) or a prompt followed by its answer options, where every
option attends to the prompt and to itself but not to its siblings (scoring): the prompt is computed once.

What groups begin with may have been computed before: a :class:`Prefix` holds its keys and values, and a group that
continues it, or a beginning of it, attends to these.

Shapes: T tokens in the pack, G groups, S longest group, P tokens of the prefix, H heads, K key-value heads, D head
width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

ATTENTION_NAME = "degaml_packed"

_ACTIVE: ContextVar[Pack | None] = ContextVar("degaml_active_pack", default=None)
_ELEMENTARY: ContextVar[bool] = ContextVar("degaml_elementary_attention", default=False)


@dataclass(frozen=True)
class TokenTree:
    """A prefix and the branches that continue it; a plain sequence has no branches.

    Attributes:
        prefix: token ids shared by all branches; at least one.
        branches: token ids that follow the prefix, one tuple a branch; may be empty.
    """

    prefix: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(branch) for branch in self.branches)


# keys and values of a layer, each [K, P, D], by the layer's number
KeyValues = dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Prefix:
    """A sequence that was computed before.

    Attributes:
        tokens: its ids, P of them.
        layers: what its tokens left in every layer's attention.
    """

    tokens: tuple[int, ...]
    layers: Mapping[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pack:
    """A batch of token trees laid out in one row.

    Attributes:
        input_ids: [1, T].
        position_ids: [1, T]; a branch continues the prefix's positions.
        starts: first token of each group in the row, length G.
        gather: [G, S] row index of each group's tokens; padding repeats the group's first token.
        scatter: [T] index into the flattened [G * S] grid.
        bias: [G, 1, S, P + S] additive mask: 0 where a token may look, -inf elsewhere; the prefix comes first.
        prefix: what the groups continue; None for nothing, and P is 0.
        record: is given the keys and values of the pack's first group, for a prefix; None where nobody needs them.
    """

    input_ids: Tensor
    position_ids: Tensor
    starts: tuple[int, ...]
    gather: Tensor
    scatter: Tensor
    bias: Tensor
    prefix: Prefix | None = None
    record: KeyValues | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the model computes."""
        return self.input_ids.shape[1]


def pack_trees(
    trees: Sequence[TokenTree],
    device: torch.device,
    dtype: torch.dtype,
    prefix: Prefix | None = None,
    behind: Sequence[int] = (),
) -> Pack:
    """Lay token trees out in one row, each behind the first ``behind`` tokens of a prefix where there is one.

    Raises:
        ValueError: a tree has an empty prefix.
    """
    lengths = [len(tree) for tree in trees]
    longest = max(lengths)
    ids: list[int] = []
    positions: list[int] = []
    starts: list[int] = []
    gather = torch.empty(len(trees), longest, dtype=torch.long)
    scatter = torch.empty(sum(lengths), dtype=torch.long)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    allowed = causal.repeat(len(trees), 1, 1)
    for group, tree in enumerate(trees):
        if not tree.prefix:
            raise ValueError(f"token tree {group} has an empty prefix; a prompt needs a token")
        start, depth = len(ids), len(tree.prefix)
        first = 0 if prefix is None else behind[group]
        starts.append(start)
        ids.extend(tree.prefix)
        positions.extend(range(first, first + depth))
        offset = depth
        for branch in tree.branches:
            ids.extend(branch)
            positions.extend(range(first + depth, first + depth + len(branch)))
            # siblings come earlier in the row but are not ancestors
            allowed[group, offset : offset + len(branch), depth:offset] = False
            offset += len(branch)
        gather[group] = start
        gather[group, : lengths[group]] = torch.arange(start, start + lengths[group])
        scatter[start : start + lengths[group]] = torch.arange(lengths[group]) + group * longest
    if prefix is not None:
        known = torch.arange(len(prefix.tokens)) < torch.tensor(behind)[:, None, None]
        allowed = torch.cat([known.expand(-1, longest, -1), allowed], dim=2)
    bias = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))
    return Pack(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        starts=tuple(starts),
        gather=gather.to(device),
        scatter=scatter.to(device),
        bias=bias.unsqueeze(1).to(device),
        prefix=prefix,
    )


class TokenTrie:
    """Sequences laid one over the other: what several begin with stands in it once, however deep it goes.

    A token looks at those on its own path alone, so every sequence's tokens get the hidden states that they have in a
    pack of their own.

    Attributes:
        paths: of each sequence, the trie's row of each of its tokens.

    Example:
        >>> trie = TokenTrie([(1, 2, 3), (1, 2, 6)])
        >>> trie.paths, len(trie)
        ([[0, 1, 2], [0, 1, 3]], 4)
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        rows: dict[tuple[int, int], int] = {}  # (parent's row, token) to its row
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._depths: list[int] = []
        self.paths: list[list[int]] = []
        for sequence in sequences:
            row, path = -1, []
            for depth, token in enumerate(sequence):
                parent, row = row, rows.setdefault((row, token), len(rows))
                if row == len(self._tokens):
                    self._tokens.append(token)
                    self._parents.append(parent)
                    self._depths.append(depth)
                path.append(row)
            self.paths.append(path)

    def __len__(self) -> int:
        return len(self._tokens)

    def pack(self, device: torch.device, dtype: torch.dtype) -> Pack:
        """One group of all tokens, [1, T]; the attention bias is [1, 1, T, T]."""
        size = len(self)
        allowed = torch.eye(size, dtype=torch.bool)
        for row, parent in enumerate(self._parents):
            if parent >= 0:
                allowed[row] |= allowed[parent]  # parents come first
        bias = torch.zeros(size, size, dtype=dtype).masked_fill_(~allowed, float("-inf"))
        rows = torch.arange(size, device=device)
        return Pack(
            input_ids=torch.tensor([self._tokens], device=device),
            position_ids=torch.tensor([self._depths], device=device),
            starts=(0,),
            gather=rows[None],
            scatter=rows,
            bias=bias[None, None].to(device),
        )


@contextmanager
def active_pack(pack: Pack | None, elementary: bool = False) -> Iterator[None]:
    """Make the model's attention read ``pack``, or a batch of rows, inside the block (per thread and task).

    ``elementary`` attention has derivatives of every order; fused kernels have a first one only, and the library's
    switch between them is one for all threads.
    """
    tokens = _ACTIVE.set(pack), _ELEMENTARY.set(elementary)
    try:
        yield
    finally:
        _ACTIVE.reset(tokens[0])
        _ELEMENTARY.reset(tokens[1])


def _packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in Transformers' calling convention; without an active pack it is plain SDPA.

    The query is [1, H, T, D], key and value are [1, K, T, D]; ``scaling`` is 1/sqrt(D) when None. The mask is only read
    without a pack, and so is dropout: the base model is frozen.

    Returns:
        [1, T, H, D] and None in place of the attention weights.
    """
    pack = _ACTIVE.get()
    elementary = _ELEMENTARY.get()
    if pack is None and not elementary:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    heads, width = query.shape[1], query.shape[3]
    shared = heads // key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    if pack is None:
        k, v = (states.repeat_interleave(shared, dim=1) for states in (key, value))
        return _elementary(query * scale, k, v, attention_mask).transpose(1, 2), None
    groups, longest = pack.gather.shape
    gather = pack.gather.reshape(-1)

    def grid(states: Tensor) -> Tensor:  # [1, X, T, D] -> [G, X, S, D]
        rows = states[0].transpose(0, 1).index_select(0, gather)
        return rows.view(groups, longest, -1, width).transpose(1, 2)

    q, k, v = grid(query), grid(key), grid(value)
    if pack.record is not None:
        pack.record[module.layer_idx] = k[0], v[0]  # type: ignore[index]
    if pack.prefix is not None:
        known_k, known_v = pack.prefix.layers[module.layer_idx]  # type: ignore[index]
        k = torch.cat([known_k.expand(groups, -1, -1, -1), k], dim=2)
        v = torch.cat([known_v.expand(groups, -1, -1, -1), v], dim=2)
    if shared > 1:
        # query heads of one key-value head stand together: fold them into the batch
        k = k.repeat_interleave(shared, dim=1)
        v = v.repeat_interleave(shared, dim=1)
    if elementary:
        mixed = _elementary(q * scale, k, v, pack.bias)
    else:
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=pack.bias, scale=scale
        )
    rows = mixed.transpose(1, 2).reshape(groups * longest, heads, width)
    return rows.index_select(0, pack.scatter).unsqueeze(0), None


def _elementary(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of scaled queries, [B, H, S, D], from operations that have derivatives of every order."""
    scores = q @ k.transpose(2, 3)
    return torch.softmax(scores if bias is None else scores + bias, dim=-1) @ v


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask that goes with :func:`_packed_attention`: none under a pack, else one that is added, or SDPA's."""
    if _ACTIVE.get() is not None:
        return None
    return (eager_mask if _ELEMENTARY.get() else sdpa_mask)(*args, **kwargs)


AttentionInterface.register(ATTENTION_NAME, _packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)


def batches_by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that the first batch shows the peak memory."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    total = 0
    for index in order:
        if batch and total + lengths[index] > tokens:
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += lengths[index]
    if batch:
        yield batch
