"""Trees laid one over the other get the hidden states that each has by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from degaml_kedro.llm.packing import TokenTree, pack_trees
from degaml_kedro.llm.trie import TokenTrie
from tests.llm.helpers import tiny_base

# few tokens, so that much is shared
TOKENS = st.lists(st.integers(5, 7), min_size=1, max_size=5).map(tuple)
TREES = st.lists(
    st.builds(TokenTree, TOKENS, st.lists(TOKENS, max_size=3).map(tuple)), min_size=1, max_size=4
)


@settings(max_examples=30)
@given(trees=TREES)
def test_hidden_states_are_those_of_a_pack_without_sharing(trees: list[TokenTree]) -> None:
    base = tiny_base()
    trie = TokenTrie()
    rows = [trie.add(tree) for tree in trees]
    with torch.inference_mode():
        shared = base.hidden_states(trie.pack(base.device, base.dtype))
        apart = base.hidden_states(pack_trees(trees, base.device, base.dtype))
    torch.testing.assert_close(shared[[row for part in rows for row in part]], apart)


@given(trees=TREES)
def test_every_beginning_is_held_once(trees: list[TokenTree]) -> None:
    trie = TokenTrie()
    for tree in trees:
        before = len(trie)
        assert len(trie.add(tree)) == len(tree)
        assert before <= len(trie) <= before + len(tree)
    texts = [tree.prefix + branch for tree in trees for branch in (tree.branches or ((),))]
    beginnings = {text[:end] for text in texts for end in range(1, len(text) + 1)}
    assert len(trie) == len(beginnings)


def test_nothing_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="the trie is empty; add a token tree first"):
        TokenTrie().pack(torch.device("cpu"), torch.float32)
