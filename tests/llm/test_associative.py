"""LoRA weights written in closed form, against the closed forms themselves, on tiny random models."""

from __future__ import annotations

import pytest
import torch

from degaml_kedro.adapters.adapter import AdapterConfig
from degaml_kedro.llm.associative import (
    AssociativeError,
    Metric,
    choose_layer,
    leave_one_out_error,
    low_rank,
    read_examples,
    write_adapter,
    writing_layers,
)
from degaml_kedro.llm.finetune import answer_sequences
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.parameters import PromptParameters, ScoringParameters
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


def test_the_leave_one_out_error_is_what_fitting_without_each_example_gives():
    keys, values = (
        torch.randn(9, 5, generator=torch.Generator().manual_seed(0)),
        torch.eye(9)[:, :4],
    )
    owner = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4])
    ridge, total = 0.3, 0.0
    for number in range(5):
        kept, out = owner != number, owner == number
        gram = keys[kept] @ keys[kept].T + ridge * torch.eye(int(kept.sum()))
        guess = keys[out] @ keys[kept].T @ torch.linalg.solve(gram, values[kept])
        total += float((values[out] - guess).square().sum())
    wanted = total / float(values.square().sum())
    assert leave_one_out_error(keys, values, owner, ridge) == pytest.approx(wanted, rel=1e-4)


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


def test_a_metric_takes_the_mean_direction_out_and_makes_the_mean_square_one():
    keys = torch.randn(6, 5, generator=torch.Generator().manual_seed(2)) + 3
    found = Metric.of(keys, 1.0)(keys)
    assert (found @ keys.mean(dim=0)).abs().max() < 1e-5
    assert float(found.square().sum(dim=1).mean()) == pytest.approx(1.0)


# Conv1D, which GPT-2 has, is not adapted
@pytest.mark.parametrize("name", [name for name in BASES if name != "gpt2"])
def test_keys_are_the_layer_s_inputs_and_values_the_gradients_of_log_likelihoods(name):
    base = BASES[name]()
    sequences = answer_sequences(base, labelled(3), PLAIN, "text")
    layers = writing_layers(base)
    found = read_examples(base, sequences, layers)
    modules, row = dict(base.model.named_modules()), 0
    for number, one in enumerate(sequences):
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
            assert found.owner[row] == number
            row += 1
    assert row == len(found.values)


def test_what_is_written_answers_as_the_examples_do_and_the_other_way_with_other_answers():
    base = tiny_base()
    scoring = ScoringParameters(mode="text")

    def right(adapter) -> int:
        answers = score_examples(base, labelled(10), PLAIN, scoring, adapter)
        return sum(answer.predicted == answer.gold for answer in answers)

    one, chosen = write_adapter(
        base, answer_sequences(base, labelled(10), PLAIN, "text"), SHAPE, 0.01, 1.0, 3
    )
    other, _ = write_adapter(
        base, answer_sequences(base, labelled(10, flip=True), PLAIN, "text"), SHAPE, 0.01, 1.0, 3
    )
    assert one.config.target_modules == (chosen.layer,)
    assert right(one) >= 8
    assert right(other) <= 2


def test_the_layer_whose_inputs_tell_the_answers_apart_is_chosen():
    base = tiny_base()
    found = read_examples(
        base, answer_sequences(base, labelled(6), PLAIN, "text"), writing_layers(base)
    )
    values = torch.nn.functional.normalize(found.values, dim=1)
    chosen = choose_layer(found, 0.1)
    errors = [
        leave_one_out_error(Metric.of(keys, share)(keys), values, found.owner, 0.1)
        for keys in found.keys.values()
        for share in (0.0, 1.0)
    ]
    assert chosen.error == min(errors)


def test_a_model_without_a_layer_that_writes_is_named(monkeypatch):
    monkeypatch.setattr(
        type(tiny_base()), "linear_layers", lambda self: {"layers.0.q_proj": (32, 32)}
    )
    with pytest.raises(AssociativeError, match="no linear layer that adds to its hidden state"):
        writing_layers(tiny_base())
