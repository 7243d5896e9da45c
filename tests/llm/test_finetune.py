"""Fine-tuning against PEFT with a plain AdamW loop, and its promises about determinism and resuming."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from degaml_kedro.config.schema import (
    BaseModelParameters,
    LoraParameters,
    PromptParameters,
    TrainingParameters,
)
from degaml_kedro.llm.base_model import BaseModel, ModelError, load_base_model
from degaml_kedro.llm.finetune import (
    FineTuneStep,
    TrainingError,
    answer_loss,
    answer_sequences,
    batch_indices,
    computed_tokens,
    fine_tune,
    initial_adapter,
    target_layers,
    total_steps,
)
from degaml_kedro.llm.prompting import encode_questions
from degaml_kedro.tasks.example import Example, make_example
from tests.llm.helpers import peft_copy, random_adapter, tiny_base

PLAIN = PromptParameters(format="plain")
TRAINING = TrainingParameters.model_validate(
    {
        "phases": [
            {"steps": 5, "learning_rate": 3e-3},
            {"steps": 3, "learning_rate": 1e-3},
        ],
        "batch_size": 4,
        "weight_decay": 0.01,
    }
)


def questions(count: int = 10) -> list[Example]:
    return [
        make_example(f"Which {'very ' * (i % 4)}one is {i}?", ["red", "blue one", "green"], i % 3)
        for i in range(count)
    ]


def run(base: BaseModel, asks: bool = True, **changes: object) -> list[FineTuneStep]:
    arguments: dict[str, object] = {
        "examples": questions(),
        "prompt": PLAIN,
        "mode": "text",
        "training": TRAINING,
        "start": initial_adapter(base, LoraParameters(rank=4, alpha=8)),
        "seed": 3,
    }
    steps = []
    for step in fine_tune(base, **{**arguments, **changes}):  # type: ignore[arg-type]
        # copied here, before the next one
        if asks:
            assert step.adapter is step.adapter
            assert step.state.step == step.step
        steps.append(step)
    return steps


@pytest.mark.parametrize("mode", ["text", "letter"])
@pytest.mark.parametrize("form", ["plain", "chat"])
def test_every_step_s_loss_is_that_of_peft_with_plain_adamw(mode: str, form: str) -> None:
    base = tiny_base()
    start = initial_adapter(base, LoraParameters(rank=4, alpha=8))
    prompt = PromptParameters(format=form)  # type: ignore[arg-type]
    steps = run(base, prompt=prompt, mode=mode, start=start)

    reference = peft_copy(base, start).eval()
    weights = [p for name, p in reference.named_parameters() if "lora_" in name]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.01)
    encoded = encode_questions(base, questions(), prompt, mode)  # type: ignore[arg-type]
    rates = [3e-3] * 5 + [1e-3] * 3
    for step, rate in zip(steps, rates, strict=True):
        losses = []
        for i in batch_indices(len(encoded), TRAINING, step.step, seed=3):
            answer = encoded[i].answers[questions()[i].gold]
            if form == "chat":
                answer = (*answer, base.tokenizer.eos_token_id)
            ids = encoded[i].prompt + answer
            logits = reference(input_ids=torch.tensor([ids])).logits[0, -len(answer) - 1 : -1]
            losses.append(
                nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none")
            )
        loss = torch.cat(losses).mean()
        assert step.loss == pytest.approx(loss.item(), abs=1e-4)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    for (name, mine), theirs in zip(steps[-1].adapter.tensors.items(), weights, strict=True):
        assert torch.allclose(mine, theirs, atol=2e-4), name


def test_the_loss_of_many_answer_tokens_is_that_of_all_logits_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tiny_base()
    adapter = random_adapter(base, LoraParameters(rank=3))
    batch = answer_sequences(base, questions(), PLAIN, "text")
    found = []
    for rows in (1000, 7):
        limit = rows * base.model.config.vocab_size
        monkeypatch.setattr("degaml_kedro.llm.finetune._LOGITS_AT_ONCE", limit)
        leaves = {key: t.clone().requires_grad_() for key, t in adapter.tensors.items()}
        loss = answer_loss(base, batch, leaves, adapter.config)
        found.append((loss, torch.autograd.grad(loss, list(leaves.values()))))
    (whole, gradients), (parts, others) = found
    assert parts.item() == pytest.approx(whole.item(), rel=1e-6)
    for one, other in zip(gradients, others, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm()


def test_it_learns_and_leaves_the_base_model_as_it_was() -> None:
    base = tiny_base()
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    training = TrainingParameters.model_validate(
        {"phases": [{"steps": 60, "learning_rate": 1e-2}], "batch_size": 5}
    )
    steps = run(base, training=training)
    assert steps[-1].loss < 0.7 * steps[0].loss
    for key, value in base.model.state_dict().items():
        assert torch.equal(value, before[key]), key
        assert not value.requires_grad


@settings(max_examples=8)
@given(stop=st.integers(1, 7), seed=st.integers(0, 2**40))
def test_a_resumed_run_ends_bit_identical(stop: int, seed: int) -> None:
    base = tiny_base()
    whole = run(base, seed=seed)
    rest = run(base, seed=seed, resume=whole[stop - 1].state)
    assert [step.step for step in rest] == list(range(stop + 1, 9))
    for one, other in zip(whole[stop:], rest, strict=True):
        assert one.loss == other.loss
        for key, tensor in one.adapter.tensors.items():
            assert torch.equal(tensor, other.adapter.tensors[key]), key


def test_a_step_s_tensors_are_those_of_the_step_or_refused() -> None:
    base = tiny_base()
    whole = run(base)
    first, *_, last = run(base, asks=False)
    for name in ("adapter", "state"):
        with pytest.raises(TrainingError, match="step 1 is over, the run is at step 8"):
            getattr(first, name)
    assert torch.equal(last.state.tensors["parameters"], whole[-1].state.tensors["parameters"])


def test_the_same_call_gives_the_same_bits_and_another_seed_does_not() -> None:
    base = tiny_base()
    first, again, other = run(base), run(base), run(base, seed=4)
    assert [step.loss for step in first] == [step.loss for step in again]
    assert [step.loss for step in first] != [step.loss for step in other]


@given(
    count=st.integers(1, 50),
    batch=st.integers(1, 20),
    seed=st.integers(0, 2**62),
)
def test_every_pass_takes_every_example_once(count: int, batch: int, seed: int) -> None:
    training = TrainingParameters.model_validate(
        {"phases": [{"steps": 1, "learning_rate": 1}], "batch_size": batch}
    )
    steps = -(-2 * count // batch)
    order = [i for step in range(1, steps + 1) for i in batch_indices(count, training, step, seed)]
    assert sorted(order[:count]) == list(range(count))
    assert sorted(order[count : 2 * count]) == list(range(count))


def test_only_so_many_examples_are_used() -> None:
    base = tiny_base()
    few = TRAINING.model_copy(update={"max_examples": 2})
    assert [s.loss for s in run(base, training=few)] == [
        s.loss for s in run(base, examples=questions()[:2])
    ]


def test_the_start_is_peft_s_shape_and_changes_nothing() -> None:
    base = tiny_base()
    adapter = initial_adapter(base, LoraParameters(rank=4))
    assert set(adapter.tensors) == {
        name.replace(".default", "")
        for name, _ in peft_copy(base, adapter).named_parameters()
        if "lora_" in name
    }
    assert all(not t.any() for key, t in adapter.tensors.items() if "lora_B" in key)
    assert all(t.any() for key, t in adapter.tensors.items() if "lora_A" in key)
    again = initial_adapter(base, LoraParameters(rank=4))
    assert all(torch.equal(t, again.tensors[key]) for key, t in adapter.tensors.items())


def test_targets_are_named_by_their_endings() -> None:
    base = tiny_base()
    chosen = target_layers(base, LoraParameters(target_modules=("q_proj", "v_proj")))
    assert len(chosen) == 4
    adapter = random_adapter(base, LoraParameters(target_modules=("q_proj", "v_proj"), rank=2))
    # an adapter on some layers of a group only
    steps = run(base, start=adapter)
    reference = peft_copy(base, adapter)
    encoded = encode_questions(base, questions(), PLAIN, "text")
    losses = []
    for i in batch_indices(len(encoded), TRAINING, 1, seed=3):
        answer = encoded[i].answers[questions()[i].gold]
        logits = reference(input_ids=torch.tensor([encoded[i].prompt + answer])).logits[0]
        losses.append(
            nn.functional.cross_entropy(
                logits[-len(answer) - 1 : -1], torch.tensor(answer), reduction="none"
            )
        )
    assert steps[0].loss == pytest.approx(torch.cat(losses).mean().item(), abs=1e-4)
    with pytest.raises(TrainingError, match="'w_proj', which is no linear layer.*down_proj"):
        target_layers(base, LoraParameters(target_modules=("w_proj",)))


def test_steps_are_counted_over_phases() -> None:
    assert total_steps(TRAINING) == 8
    assert [s.learning_rate for s in run(tiny_base())] == [3e-3] * 5 + [1e-3] * 3


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_common_beginnings_that_are_computed_once_change_no_loss_and_no_gradient(form: str) -> None:
    base = tiny_base()
    prompt = PromptParameters(format=form)
    examples = [make_example(f"The same words, then {i}?", ("x", "y"), i % 2) for i in range(5)]
    batch = answer_sequences(base, [*examples, examples[0]], prompt, "text")
    adapter = random_adapter(base, LoraParameters(rank=2, alpha=4.0))
    losses, gradients = [], []
    for share in (False, True):
        tensors = {key: t.clone().requires_grad_() for key, t in adapter.tensors.items()}
        loss = answer_loss(base, batch, tensors, adapter.config, share_prefixes=share)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([tensor.grad.reshape(-1) for tensor in tensors.values()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    assert computed_tokens(batch) == sum(len(sequence.ids) for sequence in batch)
    assert computed_tokens(batch, share_prefixes=True) < 0.6 * computed_tokens(batch)


def test_nothing_to_learn_from_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no training examples"):
        run(tiny_base(), examples=[])


def test_a_diverging_loss_is_named() -> None:
    base = tiny_base()
    adapter = random_adapter(base, LoraParameters(rank=4))
    for tensor in adapter.tensors.values():
        tensor.fill_(1e30)
    with pytest.raises(
        TrainingError, match="the loss became .* at step 1; lower the learning rate"
    ):
        run(base, start=adapter)


def test_an_adapter_of_another_model_is_refused() -> None:
    base = tiny_base()
    wider = load_base_model(
        BaseModelParameters.model_validate(
            {"source": {"kind": "random", "hidden_size": 64}, "dtype": "float32", "device": "cpu"}
        )
    )
    with pytest.raises(ModelError, match="it was made for another model"):
        run(base, start=initial_adapter(wider, LoraParameters(rank=4)))
    deeper = load_base_model(
        BaseModelParameters.model_validate(
            {"source": {"kind": "random", "layers": 3}, "dtype": "float32", "device": "cpu"}
        )
    )
    with pytest.raises(ModelError, match="names the layer .*layers.2.* which .* does not have"):
        run(base, start=initial_adapter(deeper, LoraParameters(rank=4)))
