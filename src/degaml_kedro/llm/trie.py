"""Token trees laid one over the other: what several begin with is computed once.

Shapes: T tokens of the trie.
"""

from __future__ import annotations

import torch

from degaml_kedro.llm.packing import Pack, TokenTree


class TokenTrie:
    """All that token trees have in common from the left stands in it once, however deep it goes.

    A token looks at those on its own path alone, so every tree's tokens get the hidden states that they have in a
    pack of their own.

    Example:
        >>> trie = TokenTrie()
        >>> trie.add(TokenTree((1, 2, 3), ((4,), (5,))))
        [0, 1, 2, 3, 4]
        >>> trie.add(TokenTree((1, 2, 6)))
        [0, 1, 5]
        >>> len(trie)
        6
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._rows: dict[tuple[int, int], int] = {}  # (parent's row, token) to its row
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._depths: list[int] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, tree: TokenTree) -> list[int]:
        """Lay a tree over what is there.

        Returns:
            The trie's row of each of the tree's tokens: its prefix, then branch after branch.
        """
        rows = self._follow(-1, tree.prefix)
        for branch in tree.branches:
            rows = rows + self._follow(rows[len(tree.prefix) - 1], branch)
        return rows

    def _follow(self, row: int, tokens: tuple[int, ...]) -> list[int]:
        rows = []
        for token in tokens:
            found = self._rows.get((row, token))
            if found is None:
                found = self._rows[row, token] = len(self._tokens)
                self._tokens.append(token)
                self._parents.append(row)
                self._depths.append(0 if row < 0 else self._depths[row] + 1)
            row = found
            rows.append(row)
        return rows

    def pack(self, device: torch.device, dtype: torch.dtype) -> Pack:
        """One group of all tokens, [1, T]; the attention bias is [1, 1, T, T].

        Raises:
            ValueError: nothing was added.
        """
        size = len(self)
        if size == 0:
            raise ValueError("the trie is empty; add a token tree first")
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
