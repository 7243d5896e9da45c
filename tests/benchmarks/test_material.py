from __future__ import annotations

import pytest
import torch
from benchmarks.material import Settings, SkippedError, peer_model, require, suite_examples

from degaml_kedro.tasks.suite import FAMILIES


def test_examples_come_from_every_family_in_turn():
    examples = suite_examples(2 * len(FAMILIES))
    assert len({example.prompt for example in examples}) == len(examples)
    assert suite_examples(5) == examples[:5]


def test_peer_has_the_same_weights_and_its_own_attention():
    base = Settings(quick=True).base()
    peer = peer_model(base)
    assert peer.config._attn_implementation == "sdpa"
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        assert torch.allclose(
            peer(ids).logits.float(), base.model(ids).logits.float(), atol=0.05, rtol=0.05
        )
    ours, theirs = base.model.state_dict(), peer.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_missing_extra_is_a_sentence_with_a_way_out():
    with pytest.raises(SkippedError, match=r"no_such_module.*requirements\.lock"):
        require("torch", "no_such_module")
