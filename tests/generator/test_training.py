"""Training: closed forms, gradients against plain PEFT, and the same bits however often it is stopped."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator, DistributedType
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.config.schema import GeneratorVariant
from degaml_kedro.generator.generator import Generator, GeneratorError
from degaml_kedro.generator.training import (
    TrainingPair,
    TrainingState,
    TrainingStep,
    TrainingTask,
    join_processes,
    learning_rate,
    masked_mse,
    pairs_of_step,
    train_generator,
)
from tests.generator.helpers import (
    Watched,
    checkpoints,
    constant_generator,
    tiny_embeddings,
    tiny_generator,
    tiny_grid,
    tiny_scales,
    tiny_task,
    tiny_training,
)
from tests.llm.helpers import peft_copy, tiny_base

CPU = Accelerator(cpu=True)
# nothing is clipped, decayed or blurred
PLAIN = {
    "steps": 1,
    "warmup_steps": 0,
    "max_gradient_norm": 1e9,
    "weight_decay": 0.0,
    "condition_noise": 0.0,
    "target_noise": 0.0,
}
OBJECTIVES = {
    "mse": {"mse": 1.0, "sft": 0.0},
    "sft": {"mse": 0.0, "sft": 1.0},
    "both": {"mse": 0.7, "sft": 0.3},
}


def both_tasks() -> list[TrainingTask]:
    return [tiny_task("one", 1), tiny_task("two", 2, state=1)]


def train(
    made: Generator,
    tasks: list[TrainingTask] | None = None,
    resume: TrainingState | None = None,
    seed: int = 7,
    accelerator: Any = CPU,
    **changes: Any,
) -> list[TrainingStep]:
    return list(
        train_generator(
            made,
            both_tasks() if tasks is None else tasks,
            tiny_training(**changes),
            seed,
            accelerator,
            tiny_base(),
            resume,
        )
    )


def first_gradient(step: TrainingStep) -> dict[str, Tensor]:
    """The first step's gradient, read off AdamW's first moment."""
    return {
        name.removeprefix("first_moment."): tensor / 0.1
        for name, tensor in step.state().tensors.items()
        if name.startswith("first_moment.")
    }


# --- the parts ------------------------------------------------------------------------------------


def test_masked_mse_in_closed_form() -> None:
    made = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # [1, 2, 1, 2]
    wanted = torch.tensor([[[[0.0, 0.0]], [[1.0, 100.0]]]])
    mask = torch.tensor([[[True, True]], [[True, False]]])
    assert masked_mse(made, wanted, mask).item() == pytest.approx((1 + 4 + 4) / 3)
    weights = torch.tensor([2.0, 5.0])
    wished = (2 * 1 + 2 * 4 + 5 * 4) / (2 + 2 + 5)
    assert masked_mse(made, wanted, mask, weights).item() == pytest.approx(wished)
    assert masked_mse(made, wanted, mask, 10 * weights).item() == pytest.approx(wished)


@given(batch=st.integers(1, 4), seed=st.integers(0, 1000))
def test_masked_mse_is_the_mean_over_the_batch_and_blind_to_padding(batch: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    grid = tiny_grid(token_width=20)
    shape = (batch, grid.tokens, grid.rank, grid.token_width)
    mask = grid.mask()
    assert not mask.all()
    made, wanted = (torch.randn(shape, generator=source) for _ in range(2))
    weights = torch.rand(grid.tokens, generator=source)
    for w in (None, weights):
        loss = masked_mse(made, wanted, mask, w).item()
        alone = [
            masked_mse(a[None], b[None], mask, w).item() for a, b in zip(made, wanted, strict=True)
        ]
        assert loss == pytest.approx(sum(alone) / batch, rel=1e-5)
        assert masked_mse(made + 100 * ~mask, wanted, mask, w).item() == pytest.approx(loss)
    cells = mask.expand(shape)
    mean = (made - wanted)[cells].square().mean().item()
    assert masked_mse(made, wanted, mask).item() == pytest.approx(mean, rel=1e-5)


def test_learning_rate_rises_then_falls_to_a_tenth() -> None:
    training = tiny_training(learning_rate=0.5, warmup_steps=4, steps=24)
    rates = [learning_rate(training, step) for step in range(1, 25)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    # half way down the cosine
    assert rates[13] == pytest.approx(0.5 * (0.1 + 0.9 / 2))
    assert rates[-1] == pytest.approx(0.05)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_learning_rate_without_warm_up_and_with_nothing_else() -> None:
    assert learning_rate(tiny_training(warmup_steps=0, steps=1), 1) == pytest.approx(1e-3)
    only = tiny_training(warmup_steps=10, steps=5)
    assert [learning_rate(only, step) for step in (1, 5)] == pytest.approx([1e-3, 5e-3])


@given(
    tasks=st.integers(1, 9),
    batch=st.integers(1, 20),
    pairs=st.integers(1, 12),
    seed=st.integers(0, 2**62),
)
def test_pairs_cover_the_tasks_evenly(tasks: int, batch: int, pairs: int, seed: int) -> None:
    training = tiny_training(batch_size=batch, pairs=pairs)
    steps = -(-2 * tasks * pairs // batch)
    found = [
        pair for step in range(1, steps + 1) for pair in pairs_of_step(step, tasks, training, seed)
    ]
    assert len(found) == steps * batch
    # every pair of every task once, before any comes again
    every = {TrainingPair(task, index) for task in range(tasks) for index in range(pairs)}
    assert Counter(found[: tasks * pairs]) == Counter(every)
    assert Counter(found[tasks * pairs : 2 * tasks * pairs]) == Counter(every)
    # and every task once a round
    for turn in range(2 * pairs):
        assert {pair.task for pair in found[turn * tasks : (turn + 1) * tasks]} == set(range(tasks))


# --- gradients ------------------------------------------------------------------------------------


def peft_gradient(tokens: Tensor, made: Generator, task: TrainingTask) -> tuple[float, Tensor]:
    """Loss and gradient with respect to normalised tokens, through plain PEFT and autograd."""
    grid, scales = made.grid, made.scales
    tensors = grid.detokenize(scales.denormalize(tokens))
    model = peft_copy(tiny_base(), Adapter(made.adapter, tensors)).eval()
    losses = []
    for sequence in task.sequences:
        logits = model(input_ids=torch.tensor([sequence.ids])).logits[0]
        labels = torch.tensor(sequence.ids[-sequence.answer :])
        rows = logits[-sequence.answer - 1 : -1]
        losses.append(nn.functional.cross_entropy(rows, labels, reduction="none"))
    loss = torch.cat(losses).mean()
    loss.backward()
    gradients = {
        name.replace(".default", ""): parameter.grad
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    units = scales.std[grid.token_slots()][:, None, None]
    return loss.item(), grid.tokenize(gradients) * units  # type: ignore[arg-type]


@pytest.mark.parametrize("center", ["matrix", "element"])
def test_the_sft_gradient_is_that_of_plain_peft(center: Any) -> None:
    tokens = tiny_scales(center).normalize(checkpoints(1, seed=9)[0])
    made = constant_generator(tokens)
    made.scales = tiny_scales(center)
    tasks = both_tasks()
    (step,) = train(made, tasks, **PLAIN, **OBJECTIVES["sft"], sft_examples=99)
    references = [peft_gradient(tokens, made, task) for task in tasks]
    loss = sum(value for value, _ in references) / 2
    gradient = sum(part for _, part in references) / 2
    assert step.record.sft == pytest.approx(loss, abs=1e-5)
    assert step.record.loss == step.record.sft
    assert math.isnan(step.record.mse)
    found = first_gradient(step)["tokens"]
    assert gradient.abs().max() > 1e-3  # type: ignore[union-attr]
    assert torch.allclose(found, gradient, rtol=1e-3, atol=1e-5)  # type: ignore[arg-type]
    assert step.record.gradient_norm == pytest.approx(found.norm().item(), rel=1e-5)


def test_objectives_add_up_with_their_weights() -> None:
    tokens = tiny_scales().normalize(checkpoints(1, seed=9)[0])
    steps = {
        name: train(constant_generator(tokens), **PLAIN, **weights)[0]
        for name, weights in OBJECTIVES.items()
    }
    parts = {name: first_gradient(step)["tokens"] for name, step in steps.items()}
    mixed = 0.7 * parts["mse"] + 0.3 * parts["sft"]
    assert torch.allclose(parts["both"], mixed, rtol=1e-4, atol=1e-6)
    record = steps["both"].record
    assert record.mse == steps["mse"].record.mse
    assert record.sft == steps["sft"].record.sft
    assert record.loss == pytest.approx(0.7 * record.mse + 0.3 * record.sft)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_mse_is_between_normalized_tokens(weighted: bool) -> None:
    grid, scales = tiny_grid(), tiny_scales()
    tokens = scales.normalize(checkpoints(1, seed=9)[0])
    task = tiny_task(checkpoints=checkpoints(1).__getitem__, checkpoint_count=1)
    (step,) = train(constant_generator(tokens), [task], **PLAIN, variance_weighted=weighted)
    wanted = scales.normalize(checkpoints(1)[0])
    share = grid.mask() * (scales.variance[:, None, None] if weighted else 1.0)
    loss = ((tokens - wanted).square() * share).sum() / share.sum()
    assert step.record.mse == pytest.approx(loss.item(), rel=1e-5)
    gradient = 2 * (tokens - wanted) * share / share.sum()
    assert torch.allclose(first_gradient(step)["tokens"], gradient, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", ["factorized", "hyperconvolutional"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_reaches_the_decoder_as_finite_differences_say(
    kind: str, objective: str
) -> None:
    def shifted(by: float) -> TrainingStep:
        made = tiny_generator(kind)
        # scaled down: far from the mean adapter the base model's loss is nearly flat
        source = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in made.decoder.parameters():
                direction = torch.randn(parameter.shape, generator=source)
                parameter.add_(direction, alpha=by)
        return train(made, **PLAIN, **OBJECTIVES[objective])[0]

    gradient = first_gradient(shifted(0.0))
    source = torch.Generator().manual_seed(0)
    slope = 0.0
    for name, parameter in tiny_generator(kind).decoder.named_parameters():
        direction = torch.randn(parameter.shape, generator=source)
        slope += float((gradient[name] * direction).sum())
    size = 1e-3
    difference = (shifted(size).record.loss - shifted(-size).record.loss) / (2 * size)
    assert abs(slope) > 1e-3
    assert difference == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_clipping_bounds_the_step_and_the_norm_is_from_before() -> None:
    tokens = tiny_scales().normalize(checkpoints(1, seed=9)[0])
    free = train(constant_generator(tokens), **PLAIN)[0]
    clipped = train(constant_generator(tokens), **{**PLAIN, "max_gradient_norm": 1e-3})[0]
    assert clipped.record.gradient_norm == free.record.gradient_norm > 1e-3
    assert first_gradient(clipped)["tokens"].norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_noise_blurs_conditions_and_targets_as_asked() -> None:
    still = train(tiny_generator(), **PLAIN)[0].record.mse
    for name in ("condition_noise", "target_noise"):
        noisy = train(tiny_generator(), **{**PLAIN, name: 0.5})[0].record.mse
        assert noisy != still
        assert noisy == train(tiny_generator(), **{**PLAIN, name: 0.5})[0].record.mse
    # the noise of a target has its size's variance
    tokens = tiny_scales().normalize(checkpoints(1)[0])
    task = tiny_task(checkpoints=checkpoints(1).__getitem__, checkpoint_count=1)
    blurred = train(constant_generator(tokens), [task], **{**PLAIN, "target_noise": 0.5})
    assert blurred[0].record.mse == pytest.approx(0.25, rel=0.1)


# --- what training does ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["factorized", "hyperconvolutional"])
def test_it_overfits_one_pair(kind: str) -> None:
    made = tiny_generator(kind, warm=False)
    # one adapter, of a low rank in tokens: what any decoder should be able to make
    source = torch.Generator().manual_seed(0)
    grid = made.grid
    normal = torch.randn(grid.tokens, grid.rank, 1, generator=source).expand(
        -1, -1, grid.token_width
    )
    wanted = made.scales.denormalize(normal * 0.5)
    task = tiny_task(checkpoints=lambda index: wanted, checkpoint_count=1)
    steps = train(
        made, [task], steps=150, pairs=1, batch_size=1, learning_rate=3e-2,
        condition_noise=0.0, target_noise=0.0, weight_decay=0.0,
    )  # fmt: skip
    assert steps[-1].record.mse < 0.02 * steps[0].record.mse
    assert not made.decoder.training


def test_sft_lowers_the_loss_and_leaves_the_base_model_as_it_was() -> None:
    base = tiny_base()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    stacked = [group.weight.clone() for group in base.groups]
    steps = train(
        tiny_generator(warm=False), steps=25, learning_rate=3e-2, pairs=2, **OBJECTIVES["sft"]
    )
    losses = [step.record.sft for step in steps]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for group, weight in zip(base.groups, stacked, strict=True):
        assert torch.equal(group.weight, weight)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_only_the_train_prompts_condition_it() -> None:
    watched = Watched(tiny_embeddings(count=9))
    train(tiny_generator(), [tiny_task(embeddings=watched, rows=range(2, 6))], steps=8)
    assert {row for rows in watched.asked for row in rows} == {2, 3, 4, 5}


def test_every_checkpoint_is_learned_from() -> None:
    asked: Counter[int] = Counter()
    made = checkpoints(3)

    def read(index: int) -> Tensor:
        asked[index] += 1
        return made[index]

    train(tiny_generator(), [tiny_task(checkpoints=read)], steps=15)
    assert set(asked) == {0, 1, 2}


def test_mse_reads_no_examples_and_sft_no_checkpoints() -> None:
    no_examples = tiny_task(sequences=())
    no_checkpoints = tiny_task(checkpoints=None, checkpoint_count=0)
    assert train(tiny_generator(), [no_examples], **OBJECTIVES["mse"])
    assert train(tiny_generator(), [no_checkpoints], **OBJECTIVES["sft"])


# --- the same bits --------------------------------------------------------------------------------


def parameters(made: Generator) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in made.decoder.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        # softmax does not see this one: its gradient is rounding alone, which Adam blows up
        if name != "network.pooling.query.bias":
            assert torch.allclose(found[name], tensor, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize(
    ("objective", "at_once"), [("both", 1), ("both", 3), ("mse", 2), ("sft", 2), ("both", 9)]
)
def test_a_step_in_parts_is_the_step_at_once(objective: str, at_once: int) -> None:
    options = {"batch_size": 4, "variance_weighted": True, **OBJECTIVES[objective]}
    whole, parted = tiny_generator(), tiny_generator()
    steps = train(whole, **options)
    exchanges = Mock(wraps=CPU.no_sync)
    accelerator = Mock(wraps=CPU, device=CPU.device, num_processes=1, process_index=0)
    accelerator.no_sync = exchanges
    found = train(parted, accelerator=accelerator, **options, device_batch_size=at_once)
    # gradients are exchanged behind the last part alone
    assert exchanges.call_count == len(steps) * (math.ceil(4 / at_once) - 1)
    if at_once >= 4:
        assert same(parameters(parted), parameters(whole))
    assert_close(parameters(parted), parameters(whole))
    for one, other in zip(found, steps, strict=True):
        for name in ("loss", "mse", "sft", "gradient_norm", "tokens"):
            wanted = getattr(other.record, name)
            assert getattr(one.record, name) == pytest.approx(wanted, rel=1e-4, nan_ok=True), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_resumed_from_any_step_ends_bit_identical(objective: str, tmp_path: Path) -> None:
    weights = OBJECTIVES[objective]
    made = tiny_generator()
    states, records = [], []
    options = {"steps": 5, **weights}
    for step in train_generator(made, both_tasks(), tiny_training(**options), 7, CPU, tiny_base()):
        states.append(step.state())
        records.append(step.record)
    whole = parameters(made)
    for state in states:
        # what it starts from must not matter: everything is in the state
        again = tiny_generator(seed=5)
        rest = train(again, resume=state, **options)
        assert [step.record.step for step in rest] == list(range(state.step + 1, 6))
        for step, record in zip(rest, records[state.step :], strict=True):
            for name in ("loss", "mse", "sft", "gradient_norm", "learning_rate"):
                mine, theirs = getattr(step.record, name), getattr(record, name)
                assert mine == theirs or (math.isnan(mine) and math.isnan(theirs)), name
        assert same(parameters(again), whole), state.step


@pytest.mark.parametrize("kind", ["factorized", "hyperconvolutional"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("casts", [False, True])
def test_lower_precision_is_close_and_goes_on_bit_by_bit(
    kind: str, precision: str, casts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masters stay in float32; float16 begins at a scale that overflows, so that steps are left out."""
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**19)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    options = {"steps": 8, "mse": 1.0, "sft": 0.0, "max_gradient_norm": 1e9}
    wanted = [step.record.mse for step in train(tiny_generator(kind), **options)]
    options |= {"precision": precision, "cast_weights": casts}
    made = tiny_generator(kind)
    names, before = [*parameters(made)], parameters(made)
    steps, states, seen = [], [], []
    for step in train_generator(made, both_tasks(), tiny_training(**options), 7, CPU):
        steps.append(step.record)
        states.append(step.state())
        seen.append({name: state.clone() for name, state in states[-1].tensors.items()})
    assert [*parameters(made)] == names
    assert all(tensor.dtype == torch.float32 for tensor in parameters(made).values())
    left_out = sum(not math.isfinite(record.gradient_norm) for record in steps)
    assert steps[0].mse == pytest.approx(wanted[0], rel=0.02)
    if precision == "float16":
        assert 0 < left_out < 8
        first = states[0].tensors
        assert all(torch.equal(first[f"parameter.{name}"], before[name]) for name in names)
        assert states[-1].tensors["scaler.scale"] == 2.0 ** (19 - left_out)
        assert states[-1].tensors["scaler.steps"] == 8 - left_out
    else:
        assert [record.mse for record in steps] == pytest.approx(wanted, rel=0.02)
    for state in (states[0], states[3]):
        again = tiny_generator(kind, seed=5)
        rest = train(again, resume=state, **options)
        assert same(dict(rest[-1].state().tensors), seen[-1])
        assert same(parameters(again), parameters(made))


def test_what_overflows_at_every_scale_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0))
    tokens = tiny_scales().normalize(checkpoints(1, seed=9)[0])
    made = constant_generator(tokens)
    made.decoder.tokens.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(GeneratorError, match="overflow float16 at step 2.*precision to float32"):
        train(made, **OBJECTIVES["mse"], precision="float16")


def test_a_state_is_a_copy_and_is_not_changed_by_going_on_from_it() -> None:
    made = tiny_generator()
    run = train_generator(made, both_tasks(), tiny_training(), 7, CPU, tiny_base())
    state = next(run).state()
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    list(run)
    train(tiny_generator(), resume=state)
    assert same(dict(state.tensors), before)


@pytest.mark.parametrize("at_once", [None, 1])
def test_prefetching_changes_no_bit(at_once: int | None) -> None:
    made = [tiny_generator() for _ in range(2)]
    options = {"batch_size": 4, "device_batch_size": at_once, **OBJECTIVES["both"]}
    train(made[0], **options)
    train(made[1], **options, prefetch=True)
    assert same(parameters(made[1]), parameters(made[0]))

    # what fails in the thread is raised where it is used
    broken = tiny_task(checkpoints=Mock(side_effect=OSError("the disk is gone")))
    with pytest.raises(OSError, match="the disk is gone"):
        train(tiny_generator(), [broken], prefetch=True)


def test_a_compiled_decoder_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced is right; the compiler behind it takes minutes and is PyTorch's."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    made = [tiny_generator("hyperconvolutional") for _ in range(2)]
    names = [*parameters(made[0])]
    train(made[0], **OBJECTIVES["both"])
    train(made[1], **OBJECTIVES["both"], compile=True)
    assert [*parameters(made[1])] == names
    assert_close(parameters(made[1]), parameters(made[0]))


@pytest.mark.parametrize("kind", ["factorized", "hyperconvolutional"])
def test_it_has_deterministic_algorithms(kind: str) -> None:
    made = [tiny_generator(kind) for _ in range(2)]
    train(made[0], **OBJECTIVES["both"])
    torch.use_deterministic_algorithms(True)
    try:
        train(made[1], **OBJECTIVES["both"])
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(parameters(made[0]), parameters(made[1]))


def test_the_same_call_gives_the_same_bits_and_another_seed_does_not() -> None:
    made = [tiny_generator() for _ in range(3)]
    for one, seed, noise in zip(made, (7, 7, 8), (1, 2, 3), strict=True):
        torch.manual_seed(noise)
        train(one, seed=seed)
    assert same(parameters(made[0]), parameters(made[1]))
    assert not same(parameters(made[0]), parameters(made[2]))


def test_what_a_task_contributes_does_not_depend_on_the_others_names() -> None:
    """The pairs of a task follow from its name: a task that is left out changes no other's."""
    watched = Watched(tiny_embeddings(count=9))
    tasks = [
        tiny_task("one", embeddings=watched, rows=range(9)),
        tiny_task("two", embeddings=tiny_embeddings(count=9), rows=range(9)),
    ]
    train(tiny_generator(), tasks, batch_size=2)
    with_two = watched.asked.copy()
    watched.asked.clear()
    train(tiny_generator(), tasks[:1], batch_size=1)
    assert watched.asked == with_two


# --- what cannot be trained -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        ([], {}, "no tasks to train a generator on"),
        ([{"rows": ()}], {}, "the task one has no prompts .*train split"),
        (
            [{"checkpoints": None, "checkpoint_count": 0}],
            {},
            "the task one has no checkpoints.*mse to 0",
        ),
        ([{"sequences": ()}], OBJECTIVES["sft"], "the task one has no training examples.*sft to 0"),
    ],
)
def test_what_is_missing_is_named(
    tasks: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(GeneratorError, match=message):
        train(tiny_generator(), [tiny_task(**fields) for fields in tasks], **changes)


def test_sft_needs_the_base_model() -> None:
    run = train_generator(
        tiny_generator(), both_tasks(), tiny_training(**OBJECTIVES["sft"]), 7, CPU
    )
    with pytest.raises(GeneratorError, match="needs the base model"):
        next(run)


def test_a_batch_that_cannot_be_shared_out() -> None:
    three = SimpleNamespace(num_processes=3)
    with pytest.raises(GeneratorError, match="batch_size is 4.* 3 processes .*multiple of 3"):
        train(tiny_generator(), accelerator=three, batch_size=4)


def test_a_launcher_for_what_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert join_processes("cpu").num_processes == 1
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(GeneratorError, match="configured for DEEPSPEED.*device_batch_size"):
        join_processes("cpu")


@pytest.mark.parametrize(
    "setting", [{"device_batch_size": 2}, {"cast_weights": True}, {"compile": True}]
)
def test_what_an_associative_decoder_does_not_read_is_refused(setting: dict[str, Any]) -> None:
    decoder = {"kind": "associative", "depths": [0.5]}
    training = {"mse": 0.0, "sft": 1.0}
    assert GeneratorVariant.model_validate({"decoder": decoder, "training": training})
    with pytest.raises(ValueError, match=f"training.{next(iter(setting))} is for a decoder that"):
        GeneratorVariant.model_validate({"decoder": decoder, "training": training | setting})


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_loss_that_is_not_finite_stops_it(objective: str) -> None:
    made = tiny_generator()
    with torch.no_grad():
        made.decoder.get_parameter("network.heads")[0, 0, 0] = math.nan
    with pytest.raises(
        GeneratorError, match=r"loss became nan at step 1; lower training\.learning_rate"
    ):
        train(made, **OBJECTIVES[objective])


# --- several processes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_several_processes_give_one_process_s_parameters(tmp_path: Path) -> None:
    """Stopped on the way; where each has its share of a step in parts, and where each has a share of the weights."""
    every = {"steps": 4, "batch_size": 4}
    in_parts = {**every, **OBJECTIVES["both"], "device_batch_size": 1}
    trainings: dict[str, tuple[str, str, dict[str, Any]]] = {
        "shares": ("hyperconvolutional", "true", {**every, **OBJECTIVES["mse"]}),
        "parts": ("factorized", "false", in_parts),
    }
    # what `accelerate launch` calls; of its own accord it starts several processes on GPUs only
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.generator.processes"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, str(tmp_path), json.dumps(trainings)],
        capture_output=True,
        text=True,
        timeout=500,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (kind, is_shared, options) in trainings.items():
        made = tiny_generator(kind)
        steps = train(made, **{**options, "device_batch_size": None})
        held = 0
        for process in range(2):
            about = json.loads((tmp_path / f"{name}_{process}.json").read_text())
            assert about["processes"] == 2
            held += about["held"]
            for mine, theirs in zip(steps, about["records"], strict=True):
                assert mine.record.loss == pytest.approx(theirs["loss"], rel=1e-5)
                assert mine.record.gradient_norm == pytest.approx(theirs["gradient_norm"], rel=1e-4)
            found = load_file(tmp_path / f"{name}_{process}.safetensors")
            assert_close(found, parameters(made))
        assert held == made.decoder.parameter_count * (1 if is_shared == "true" else 2)


def test_what_a_decoder_in_shares_cannot_be_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    two = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    with pytest.raises(GeneratorError, match=r"in shares \(FSDP\).*without training.compile"):
        train(tiny_generator(), accelerator=two, cast_weights=True)
