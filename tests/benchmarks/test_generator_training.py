from __future__ import annotations

import pytest
import torch
from benchmarks.generator_material import encoder_of, sizes
from benchmarks.generator_training import WARM_UP, _not_padded, _padded, compare
from benchmarks.material import Settings

QUICK = Settings(quick=True)
PROMPTS = ["a", "bb cc", "a", "too long for it"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("padded", [True, False])
def test_both_sides_learn_the_same_from_the_same_prompts(padded, precision):
    turns, extra = compare(QUICK, (3, 64, 2, precision), WARM_UP + 2, padded)
    assert len(turns.ours) == len(turns.peer) == WARM_UP + 2
    assert turns.losses_ours == pytest.approx(turns.losses_peer, rel=1e-2)
    assert turns.row("step", None).ratio.count == 2
    assert 0 < extra["tokens_a_prompt"] <= 64


def test_two_ways_to_encode_make_the_same_states():
    encoder = encoder_of(QUICK)
    states, lengths = _padded(encoder, PROMPTS, 8)()
    expected, same = _not_padded(encoder, PROMPTS, 8)()
    assert lengths.tolist() == same.tolist() == [3, 7, 3, 8]
    inside = torch.arange(8) < lengths[:, None]
    torch.testing.assert_close(
        states.float() * inside[..., None], expected.float(), rtol=0.02, atol=0.02
    )


def test_the_profile_has_a_variant_that_learns_from_tokens_alone():
    training = sizes(quick=False).variant.training
    assert training.mse > 0
    assert training.sft == 0
