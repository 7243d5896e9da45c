"""A generator's health: closed forms, and what one check says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.adapters.scales import TokenScales
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.config.schema import ScoringParameters
from degaml_kedro.generator.health import WHOLE, check_generator, slot_errors
from degaml_kedro.llm.scoring import score_examples
from tests.adapters.test_tokens import small_grid
from tests.generator.helpers import (
    CONDITION,
    PLAIN,
    Watched,
    constant_generator,
    questions,
    tiny_generator,
    tiny_task,
)
from tests.llm.helpers import tiny_base


def unit_scales(grid: TokenGrid) -> TokenScales:
    slots = len(grid.slots)
    return TokenScales(
        grid, "matrix", torch.zeros(slots), torch.ones(slots), torch.ones(grid.tokens)
    )


def filled(grid: TokenGrid, values: list[float]) -> Tensor:
    """Every cell of slot s is values[s]; the padding is 99, which must not count."""
    tokens = torch.tensor(values)[grid.token_slots()][:, None, None].repeat(
        1, grid.rank, grid.token_width
    )
    return torch.where(grid.mask(), tokens, 99.0)


def test_errors_and_ratios_in_closed_form() -> None:
    grid = small_grid(token_width=5)
    slots = len(grid.slots)
    wanted = [1.0 + slot for slot in range(slots)]
    made = [2 * value if slot % 2 else 0.5 * value for slot, value in enumerate(wanted)]
    errors, ratios = slot_errors(filled(grid, made), filled(grid, wanted), unit_scales(grid))
    assert errors.shape == ratios.shape == (slots + 1,)
    assert errors[:-1].tolist() == pytest.approx([1.0 if s % 2 else 0.5 for s in range(slots)])
    assert ratios[:-1].tolist() == pytest.approx([2.0 if s % 2 else 0.5 for s in range(slots)])
    cells = [slot.width * grid.rank for slot in grid.slots]
    size = math.sqrt(sum(n * w**2 for n, w in zip(cells, wanted, strict=True)))
    apart = math.sqrt(sum(n * (m - w) ** 2 for n, m, w in zip(cells, made, wanted, strict=True)))
    norm = math.sqrt(sum(n * m**2 for n, m in zip(cells, made, strict=True)))
    assert errors[-1].item() == pytest.approx(apart / size)
    assert ratios[-1].item() == pytest.approx(norm / size)


def test_the_mean_adapter_scores_one_and_the_wanted_one_zero() -> None:
    grid = small_grid()
    wanted = torch.randn(grid.tokens, grid.rank, grid.token_width)
    errors, ratios = slot_errors(torch.zeros_like(wanted), wanted, unit_scales(grid))
    assert errors.tolist() == [1.0] * len(errors)
    assert not ratios.any()
    errors, ratios = slot_errors(wanted, wanted, unit_scales(grid))
    assert not errors.any()
    assert ratios.tolist() == [1.0] * len(ratios)


def test_a_slot_of_zeros_has_no_relative_error() -> None:
    grid = small_grid()
    slots = len(grid.slots)
    wanted = filled(grid, [0.0, 0.0] + [1.0] * (slots - 2))
    made = filled(grid, [0.0, 1.0] + [1.0] * (slots - 2))
    errors, ratios = slot_errors(made, wanted, unit_scales(grid))
    assert errors[:3].tolist() == [0.0, math.inf, 0.0]
    assert ratios[:3].tolist() == [0.0, math.inf, 1.0]
    assert math.isfinite(errors[-1])


def test_a_check_is_of_the_whole_adapter_and_then_of_every_slot() -> None:
    task = tiny_task()
    made = constant_generator(torch.zeros_like(task.checkpoints(0)))  # type: ignore[misc]
    lines = check_generator(made, task, step=7, seed=1, held_out=True)
    slots = made.grid.slots
    assert len(lines) == 1 + len(slots)
    assert {(line.step, line.task, line.held_out) for line in lines} == {(7, "one", True)}
    whole = lines[0]
    assert (whole.layer, whole.module, whole.matrix) == (-1, WHOLE, WHOLE)
    assert (whole.relative_error, whole.norm_ratio) == (1.0, 0.0)
    assert (whole.accuracy, whole.questions) == (None, 0)
    for line, slot in zip(lines[1:], slots, strict=True):
        assert (line.layer, line.module, line.matrix) == (slot.layer, slot.module, slot.matrix)
        assert line.relative_error == 1.0
    assert set(whole.as_row()) == {
        "step", "task", "held_out", "layer", "module", "matrix", "relative_error", "norm_ratio",
        "accuracy", "questions",
    }  # fmt: skip


def test_it_is_compared_with_the_last_checkpoint_in_normalized_units() -> None:
    task = tiny_task()
    assert task.checkpoints is not None
    scales = tiny_generator().scales
    made = constant_generator(2 * scales.normalize(task.checkpoints(2)))
    whole = check_generator(made, task, step=1, seed=1, held_out=False)[0]
    assert whole.relative_error == pytest.approx(1.0)
    assert whole.norm_ratio == pytest.approx(2.0)


def test_the_prompts_are_those_of_the_seed_and_of_the_train_split() -> None:
    watched = Watched(tiny_task().embeddings)
    made = tiny_generator()
    for seed in (1, 1, 2, 3, 4):
        check_generator(made, tiny_task(embeddings=watched, rows=[0, 1, 2, 4]), 1, seed, False)
    asked = watched.asked
    assert asked[0] == asked[1]
    assert len({tuple(chosen) for chosen in asked}) > 1
    assert all(len(chosen) == CONDITION.prompts and 3 not in chosen for chosen in asked)


def test_generated_adapters_are_asked_questions() -> None:
    task, base, scoring = tiny_task(), tiny_base(), ScoringParameters(mode="text")
    made = constant_generator(torch.ones_like(task.checkpoints(0)))  # type: ignore[misc]
    asked = (base, questions(9), PLAIN, scoring)
    whole, *rest = check_generator(made, task, 1, 1, False, asked)
    tokens = torch.ones_like(task.checkpoints(0))  # type: ignore[misc]
    adapter = Adapter(made.adapter, made.grid.detokenize(made.scales.denormalize(tokens)))
    right = [
        p.predicted == p.gold for p in score_examples(base, questions(9), PLAIN, scoring, adapter)
    ]
    assert whole.accuracy == sum(right) / 9
    assert whole.questions == 9
    assert all(line.accuracy is None and line.questions == 0 for line in rest)


def test_without_checkpoints_there_is_one_line() -> None:
    task = tiny_task(checkpoints=None, checkpoint_count=0)
    (whole,) = check_generator(tiny_generator(), task, 1, 1, False)
    assert (whole.relative_error, whole.norm_ratio) == (None, None)


@pytest.mark.parametrize("training", [True, False])
def test_the_decoder_is_left_as_it_was(training: bool) -> None:
    made = tiny_generator()
    made.decoder.train(training)
    state = torch.random.get_rng_state()
    check_generator(made, tiny_task(), 1, 1, False)
    assert made.decoder.training is training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in made.decoder.parameters())
