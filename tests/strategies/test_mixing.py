from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from degaml_kedro.adapters.adapter import Adapter, load_peft_folder, save_peft_folder
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.mixing import Mixing, mix_halves, refine
from degaml_kedro.strategies.observations import Nothing
from degaml_kedro.strategies.registry import find_family
from degaml_kedro.strategies.state import Vote
from tests.llm.helpers import merged_reference
from tests.strategies.helpers import PLAIN, TEXT, adapter, examples, make_context, state, tiny_base

RANKS = (1, 2, 3, 4, 7, 8)


def bits(tensor):
    return tensor.contiguous().view(torch.int32)


def mixing_matrix(rank, mix):
    """M of the paper over the first 2 ⌊r / 2⌋ rows; the last row of an odd rank is on its own."""
    half = rank // 2
    matrix = torch.eye(rank)
    matrix[:half, half : 2 * half] = mix * torch.eye(half)
    matrix[half : 2 * half, :half] = mix * torch.eye(half)
    return matrix


@pytest.mark.parametrize("rank", RANKS)
def test_lambda_zero_is_the_adapter_bit_for_bit(rank):
    start = adapter(1, rank)
    for name, tensor in start.tensors.items():
        if "lora_A" in name:
            tensor[0, :2] = torch.tensor([-0.0, 0.0])
    made = mix_halves(start, 0.0)
    assert made.config == start.config
    assert list(made.tensors) == list(start.tensors)
    for name, tensor in start.tensors.items():
        assert torch.equal(bits(made.tensors[name]), bits(tensor))


@pytest.mark.parametrize("rank", [2, 4, 8])
def test_lambda_one_is_the_sum_of_the_halves(rank):
    start, half = adapter(2, rank), rank // 2
    made = mix_halves(start, 1.0).layers()
    assert len(made) == 14
    for name, (a, b) in start.layers().items():
        expected = (b[:, :half] + b[:, half:]) @ (a[:half] + a[half:])
        assert torch.allclose(made[name][1] @ made[name][0], expected, atol=1e-6)


@given(rank=st.sampled_from(RANKS), mix=st.floats(0, 1, width=32))
def test_the_product_is_b_m_a(rank, mix):
    start = adapter(3, rank)
    made = mix_halves(start, mix).layers()
    for name, (a, b) in start.layers().items():
        assert torch.equal(made[name][1], b)
        assert made[name][0].shape == a.shape
        expected = b @ mixing_matrix(rank, mix) @ a
        assert torch.allclose(made[name][1] @ made[name][0], expected, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_last_row_of_an_odd_rank_is_left_as_it_is(rank):
    start = adapter(4, rank)
    made = mix_halves(start, 0.7).layers()
    for name, (a, _) in start.layers().items():
        assert torch.equal(bits(made[name][0][-1:]), bits(a[-1:]))
        if rank > 1:
            assert not torch.equal(made[name][0][:-1], a[:-1])


def test_what_comes_out_is_an_ordinary_adapter_for_peft(tmp_path):
    base, start = tiny_base(), adapter(5, rank=5)
    made = mix_halves(start, 0.4)
    save_peft_folder(made, tmp_path / "mixed")
    read = load_peft_folder(tmp_path / "mixed")
    assert read.config.rank == 5
    for name, tensor in made.tensors.items():
        assert torch.equal(read.tensors[name], tensor)
    asked = examples(3)
    # what PEFT merges is W + scale B M A
    merged = merged_reference(base, read)
    scale = start.config.scale
    weights = dict(merged.named_parameters())
    for name, (a, b) in start.layers().items():
        delta = weights[f"{name}.weight"] - dict(base.model.named_parameters())[f"{name}.weight"]
        assert torch.allclose(delta, scale * b @ mixing_matrix(5, 0.4) @ a, atol=1e-5)
    assert predict(make_context(), state_of(read), asked) == score_examples(
        base, asked, PLAIN, TEXT, made
    )


def state_of(one: Adapter):
    return type(state())((type(state().members[0])(one),))


def test_the_order_of_tensors_is_no_matter():
    start = adapter(6)
    turned = Adapter(start.config, dict(reversed(start.tensors.items())))
    one, other = mix_halves(start, 0.3), mix_halves(turned, 0.3)
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in start.tensors)


def test_every_member_is_mixed_and_the_rest_of_the_state_stays():
    start = state(3, vote=Vote("majority_vote"))
    before = [{k: v.clone() for k, v in m.adapter.tensors.items()} for m in start.members]
    made = refine(make_context(), start, Nothing(), Mixing.model_validate({"lambda": 0.5}), seed=1)
    assert made.vote == start.vote
    for old, new, kept in zip(start.members, made.members, before, strict=True):
        assert new.prompts is old.prompts
        expected = mix_halves(old.adapter, 0.5)
        for name, tensor in kept.items():
            assert torch.equal(new.adapter.tensors[name], expected.tensors[name])
            assert torch.equal(old.adapter.tensors[name], tensor)


def test_the_family_sees_nothing_and_its_field_is_called_lambda():
    found = find_family("lora")
    assert found.sees is Nothing
    assert [field.name for field in found.fields] == ["lambda"]
