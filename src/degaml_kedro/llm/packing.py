"""Ragged batches without padding: sequences, or trees of sequences that share a prefix, in one row.

A group is either one causal sequence (training) or a prompt followed by its answer options, where every option attends
to the prompt and to itself but not to its siblings (scoring): the prompt is computed once. Models that
:mod:`~degaml_kedro.llm.fast` recognises compute a pack as it is; for others :mod:`~degaml_kedro.llm.general` lays it
out as padded rows.

What groups begin with may have been computed before: a :class:`Prefix` holds its keys and values.

Shapes: T tokens in the pack, G groups, S longest group, P tokens of the prefix, H heads, K key-value heads, D head
width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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

    A token looks at those on its own path alone.

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
