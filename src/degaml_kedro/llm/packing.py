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
from functools import cached_property

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
        entry: [G, S] when a walk down a group's tree, depth first, comes to a token; a token looks at those whose
            subtree it is in.
        leaving: [G, S] when the walk leaves the token's subtree, counted as ``entry``.
        length: of the longest sequence, with what of the prefix is in front of it.
        dtype: of the mask.
        prefix: what the groups continue; None for nothing, and P is 0.
        behind: [G] how many of the prefix's tokens are in front of a group; None without a prefix.
        record: is given the keys and values of the pack's first group, for a prefix; None where nobody needs them.
    """

    input_ids: Tensor
    position_ids: Tensor
    starts: tuple[int, ...]
    gather: Tensor
    scatter: Tensor
    entry: Tensor
    leaving: Tensor
    length: int
    dtype: torch.dtype
    prefix: Prefix | None = None
    behind: Tensor | None = None
    record: KeyValues | None = None

    @cached_property
    def bias(self) -> Tensor:
        """Additive mask [G, 1, S, P + S], made where the tokens are: 0 where a token may look, -inf elsewhere.

        The prefix comes first. Padding looks at itself alone.
        """
        at = self.entry[:, :, None]
        allowed = (self.entry[:, None] <= at) & (at < self.leaving[:, None])
        if self.prefix is not None and self.behind is not None:
            places = torch.arange(len(self.prefix.tokens), device=at.device)
            known = places < self.behind[:, None, None]
            allowed = torch.cat([known.expand(-1, allowed.shape[1], -1), allowed], dim=2)
        bias = torch.zeros(allowed.shape, dtype=self.dtype, device=at.device)
        return bias.masked_fill_(~allowed, float("-inf")).unsqueeze(1)

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
    entry = torch.arange(longest).repeat(len(trees), 1)
    leaving = entry + 1
    length = 0
    for group, tree in enumerate(trees):
        if not tree.prefix:
            raise ValueError(f"token tree {group} has an empty prefix; a prompt needs a token")
        start, depth = len(ids), len(tree.prefix)
        first = 0 if prefix is None else behind[group]
        starts.append(start)
        ids.extend(tree.prefix)
        positions.extend(range(first, first + depth))
        leaving[group, :depth] = lengths[group]
        offset = depth
        for branch in tree.branches:
            ids.extend(branch)
            positions.extend(range(first + depth, first + depth + len(branch)))
            leaving[group, offset : offset + len(branch)] = offset + len(branch)
            offset += len(branch)
        length = max(length, first + depth + max(map(len, tree.branches), default=0))
        gather[group] = start
        gather[group, : lengths[group]] = torch.arange(start, start + lengths[group])
        scatter[start : start + lengths[group]] = torch.arange(lengths[group]) + group * longest
    return Pack(
        input_ids=torch.tensor([ids]).to(device),
        position_ids=torch.tensor([positions]).to(device),
        starts=tuple(starts),
        gather=gather.to(device),
        scatter=scatter.to(device),
        entry=entry.to(device),
        leaving=leaving.to(device),
        length=length,
        dtype=dtype,
        prefix=prefix,
        behind=None if prefix is None else torch.tensor(behind, device=device),
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
        # parents come first; the last place is that of what begins a sequence, whose parent is -1
        below = [1] * size + [0]
        for row in range(size - 1, -1, -1):
            below[self._parents[row]] += below[row]
        entry, free = [0] * size, [0] * (size + 1)
        for row, parent in enumerate(self._parents):
            entry[row] = free[parent]
            free[parent] += below[row]
            free[row] = entry[row] + 1
        at = torch.tensor([entry], device=device)
        rows = torch.arange(size, device=device)
        return Pack(
            input_ids=torch.tensor([self._tokens], device=device),
            position_ids=torch.tensor([self._depths], device=device),
            starts=(0,),
            gather=rows[None],
            scatter=rows,
            entry=at,
            leaving=at + torch.tensor(below[:-1], device=device),
            length=1 + max(self._depths),
            dtype=dtype,
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
