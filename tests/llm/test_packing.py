"""Packed rows give every token the hidden state it has alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from degaml_kedro.llm.packing import TokenTree, TokenTrie, pack_trees
from tests.llm.helpers import by_modules, plain_copy, tiny_base

IDS = st.lists(st.integers(3, 250), min_size=1, max_size=7).map(tuple)
TREES = st.builds(
    TokenTree,
    prefix=IDS,
    branches=st.lists(st.lists(st.integers(3, 250), max_size=4).map(tuple), max_size=3).map(tuple),
)


@settings(max_examples=40)
@given(trees=st.lists(TREES, min_size=1, max_size=5), by_hand=st.booleans())
def test_every_path_of_a_tree_is_computed_as_if_alone(
    trees: list[TokenTree], by_hand: bool
) -> None:
    base = tiny_base()
    plain = plain_copy(base).base_model
    pack = pack_trees(trees, base.device, base.dtype)
    assert pack.tokens == sum(len(tree) for tree in trees)
    with torch.no_grad():
        hidden = (base if by_hand else by_modules(base)).hidden_states(pack)
        for tree, start in zip(trees, pack.starts, strict=True):
            offset = start + len(tree.prefix)
            alone = plain(torch.tensor([tree.prefix])).last_hidden_state[0]
            assert torch.allclose(hidden[start:offset], alone, atol=1e-4)
            for branch in tree.branches:
                path = plain(torch.tensor([tree.prefix + branch])).last_hidden_state[0]
                mine = hidden[offset : offset + len(branch)]
                assert torch.allclose(mine, path[len(tree.prefix) :], atol=1e-4)
                offset += len(branch)


# few tokens, so that much is shared
ALIKE = st.lists(
    st.lists(st.integers(5, 7), min_size=1, max_size=6).map(tuple), min_size=1, max_size=6
)


@settings(max_examples=30)
@given(sequences=ALIKE)
def test_a_trie_holds_every_beginning_once_with_the_hidden_states_of_each_sequence(
    sequences: list[tuple[int, ...]],
) -> None:
    base = tiny_base()
    trie = TokenTrie(sequences)
    assert len(trie) == len({one[:end] for one in sequences for end in range(1, len(one) + 1)})
    trees = [TokenTree(one) for one in sequences]
    with torch.inference_mode():
        shared = base.hidden_states(trie.pack(base.device, base.dtype))
        apart = base.hidden_states(pack_trees(trees, base.device, base.dtype))
    torch.testing.assert_close(shared[[row for path in trie.paths for row in path]], apart)


def test_a_tree_without_a_prefix_is_an_error() -> None:
    with pytest.raises(ValueError, match="token tree 1 has an empty prefix"):
        pack_trees([TokenTree((1,)), TokenTree(())], torch.device("cpu"), torch.float32)


def test_without_a_pack_the_model_is_the_library_s() -> None:
    base = tiny_base()
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    with torch.no_grad():
        mine = base.model(ids, attention_mask=mask).logits
        theirs = plain_copy(base)(ids, attention_mask=mask).logits
    assert torch.allclose(mine[0], theirs[0], atol=1e-4)
    assert torch.allclose(mine[1, 2:], theirs[1, 2:], atol=1e-4)
