"""LoRA weights written in closed form, against the closed forms themselves, on tiny random models."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from degaml_kedro.adapters.adapter import AdapterConfig
from degaml_kedro.config.schema import ClosedFormSetting, PromptParameters, ScoringParameters
from degaml_kedro.llm.associative import (
    ExampleReader,
    low_rank,
    write_closed_form,
    writing_layers,
)
from degaml_kedro.llm.finetune import TrainingError, answer_sequences
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.tasks.example import Example, make_example
from tests.llm.helpers import tiny_base
from tests.llm.test_in_context import BASES

PLAIN = PromptParameters(format="plain", options="hidden")
SHAPE = AdapterConfig(8, 16.0, (), "tiny")


def labelled(count: int, flip: bool = False) -> list[Example]:
    """Numbers, each labelled by whether it is below five."""
    return [
        make_example(f"Which one is {n}", ["low", "top"], gold=int((n < 5) == flip))
        for n in range(count)
    ]


@pytest.mark.parametrize("rank", [2, 9])
def test_a_product_is_approximated_as_by_its_singular_values(rank):
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(7, 4, generator=generator), torch.randn(4, 6, generator=generator)
    a, b = low_rank(left, right, rank)
    u, s, v = torch.linalg.svd(left @ right)
    kept = min(rank, len(s))
    best = (u[:, :kept] * s[:kept]) @ v[:kept]
    assert a.shape == (rank, 6)
    assert b.shape == (7, rank)
    torch.testing.assert_close(b @ a, best, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", BASES)
def test_keys_are_the_layer_s_inputs_and_values_the_gradients_of_log_likelihoods(name):
    base = BASES[name]()
    sequences = answer_sequences(base, labelled(3), PLAIN, "text")
    layers = writing_layers(base)
    found = ExampleReader.of(base, layers).read(sequences)
    modules, row = dict(base.model.named_modules()), 0
    for one in sequences:
        kept: dict[str, torch.Tensor] = {}

        def keep(layer: str, kept: dict[str, torch.Tensor] = kept):
            return lambda _, given: kept.__setitem__(layer, given[0][0])

        handles = [modules[name].register_forward_pre_hook(keep(name)) for name in layers]
        hidden = base.model.base_model(torch.tensor([one.ids])).last_hidden_state[0]
        for handle in handles:
            handle.remove()
        first = len(one.ids) - one.answer
        for place in range(first, len(one.ids)):
            state = hidden[place - 1].detach().requires_grad_()
            likelihood = base.logits(state[None])[0].log_softmax(-1)[one.ids[place]]
            (gradient,) = torch.autograd.grad(likelihood, state)
            torch.testing.assert_close(found.values[row], gradient, atol=1e-4, rtol=1e-3)
            for layer in layers:
                torch.testing.assert_close(
                    found.keys[layer][row], kept[layer][place - 1], atol=1e-4, rtol=1e-3
                )
            row += 1
    assert row == len(found.values)


def test_what_is_written_answers_as_the_examples_do_and_the_other_way_with_other_answers():
    base, scoring = tiny_base(), ScoringParameters(mode="text")
    setting = ClosedFormSetting(depth=0.3, center=False, ridge=0.01, scale=3.0)

    def right(flip: bool) -> int:
        sequences = answer_sequences(base, labelled(10, flip), PLAIN, "text")
        adapter = write_closed_form(base, sequences, SHAPE, setting)
        assert adapter.config.target_modules == ("model.layers.0.mlp.down_proj",)
        answers = score_examples(base, labelled(10), PLAIN, scoring, adapter)
        return sum(answer.predicted == answer.gold for answer in answers)

    assert right(flip=False) >= 8
    assert right(flip=True) <= 2


def test_threads_read_their_own_examples():
    base = tiny_base()
    layers = writing_layers(base)

    def read(one):
        return ExampleReader.of(base, layers).read(one)

    packs = [answer_sequences(base, labelled(count), PLAIN, "text") for count in range(1, 9)]
    alone = [read(one) for one in packs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = pool.map(read, packs)
            for mine, theirs in zip(alone, together, strict=True):
                torch.testing.assert_close(mine.keys, theirs.keys)
                torch.testing.assert_close(mine.values, theirs.values)
                assert mine.norms == pytest.approx(theirs.norms)


def test_a_model_without_a_layer_that_writes_is_named(monkeypatch):
    monkeypatch.setattr(
        type(tiny_base()), "linear_layers", lambda self: {"layers.0.q_proj": (32, 32)}
    )
    with pytest.raises(TrainingError, match="no linear layer that adds to its hidden state"):
        writing_layers(tiny_base())
