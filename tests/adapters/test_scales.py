"""Scales: closed forms, any split of the checkpoints gives the same, and there and back again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from degaml_kedro.adapters.scales import Center, TokenScales, TokenStatistics
from degaml_kedro.adapters.tokens import GridError, TokenGrid
from tests.adapters.test_tokens import lora_shapes, random_tensors, small_grid

CENTERS: tuple[Center, ...] = ("matrix", "element")


def random_checkpoints(grid: TokenGrid, count: int, seed: int = 0) -> list[Tensor]:
    """Tokens whose slots have different means and spreads."""
    found = []
    for step in range(count):
        tensors = random_tensors(grid.shapes, seed * 1000 + step)
        scaled = {
            slot.key: (0.01 + index) * tensors[slot.key] + 3 - index
            for index, slot in enumerate(grid.slots)
        }
        found.append(grid.tokenize(scaled))
    return found


def statistics(grid: TokenGrid, checkpoints: list[Tensor]) -> TokenStatistics:
    return TokenStatistics.of(grid, checkpoints, "the trajectory of a task")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_scales_are_the_mean_and_spread_of_each_matrix(count: int) -> None:
    grid = small_grid(token_width=5)
    checkpoints = random_checkpoints(grid, count)
    scales = TokenScales.from_statistics(grid, statistics(grid, checkpoints), "matrix")
    adapters = [grid.detokenize(tokens.double()) for tokens in checkpoints]
    for index, slot in enumerate(grid.slots):
        values = torch.stack([tensors[slot.key] for tensors in adapters])
        assert float(scales.mean[index]) == pytest.approx(float(values.mean()), rel=1e-6)
        assert float(scales.std[index]) == pytest.approx(float(values.std(correction=0)), rel=1e-6)
    normalized = scales.normalize(torch.stack(checkpoints))
    for slot in grid.slots:
        part = normalized[:, slot.first : slot.first + slot.count]
        cells = part[:, grid.mask()[slot.first : slot.first + slot.count]]
        assert float(cells.mean()) == pytest.approx(0, abs=1e-5)
        assert float(cells.std(correction=0)) == pytest.approx(1, rel=1e-5)


def test_scales_around_elements_leave_what_the_checkpoints_do_not_share() -> None:
    grid = small_grid(token_width=5)
    checkpoints = random_checkpoints(grid, 6)
    scales = TokenScales.from_statistics(grid, statistics(grid, checkpoints), "element")
    assert not scales.mean.any()
    adapters = [grid.detokenize(tokens.double()) for tokens in checkpoints]
    assert scales.element_mean is not None
    means = grid.detokenize(scales.element_mean)
    for index, slot in enumerate(grid.slots):
        values = torch.stack([tensors[slot.key] for tensors in adapters])
        assert torch.allclose(means[slot.key].double(), values.mean(dim=0), atol=1e-6)
        spread = (values - values.mean(dim=0)).square().mean().sqrt()
        assert float(scales.std[index]) == pytest.approx(float(spread), rel=1e-6)
    mask = grid.mask()
    assert not scales.element_mean[~mask].any()


@pytest.mark.parametrize("center", CENTERS)
def test_the_variance_of_a_token_is_that_of_its_normalized_elements(center: Center) -> None:
    grid = small_grid(token_width=5)
    checkpoints = random_checkpoints(grid, 6)
    scales = TokenScales.from_statistics(grid, statistics(grid, checkpoints), center)
    variances = scales.normalize(torch.stack(checkpoints).double()).var(dim=0, correction=0)
    mask = grid.mask()
    for token in range(grid.tokens):
        expected = float(variances[token][mask[token]].mean())
        assert float(scales.variance[token]) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    token_width=st.integers(1, 9),
    seed=st.integers(0, 50),
)
def test_statistics_of_parts_combine_to_those_of_all(
    lengths: list[int], token_width: int, seed: int
) -> None:
    grid = small_grid(token_width=token_width)
    checkpoints = random_checkpoints(grid, sum(lengths), seed)
    parts, start = [], 0
    for length in lengths:
        parts.append(statistics(grid, checkpoints[start : start + length]))
        start += length
    combined, whole = TokenStatistics.combine(parts), statistics(grid, checkpoints)
    assert combined.count == whole.count == len(checkpoints)
    assert torch.allclose(combined.mean, whole.mean, atol=1e-12)
    assert torch.allclose(combined.deviations, whole.deviations, rtol=1e-10, atol=1e-12)
    reference = torch.stack(checkpoints).double()
    assert torch.allclose(whole.mean, reference.mean(dim=0), atol=1e-12)
    spread = (reference - reference.mean(dim=0)).square().sum(dim=(0, 2, 3))
    assert torch.allclose(whole.deviations, spread, rtol=1e-10, atol=1e-12)


def test_a_large_common_offset_does_not_drown_the_spread() -> None:
    grid = small_grid()
    mask = grid.mask()
    signs = [1, -1, 1, -1]
    checkpoints = [(1e4 + sign * 2.0**-9) * mask for sign in signs]
    scales = TokenScales.from_statistics(grid, statistics(grid, checkpoints), "matrix")
    assert torch.allclose(scales.std, torch.tensor(2.0**-9), rtol=1e-4)


@pytest.mark.parametrize("center", CENTERS)
@settings(max_examples=30)
@given(
    rank=st.integers(1, 4),
    token_width=st.integers(1, 9),
    count=st.integers(1, 4),
    seed=st.integers(0, 50),
)
def test_denormalizing_undoes_normalizing(
    center: Center, rank: int, token_width: int, count: int, seed: int
) -> None:
    grid = small_grid(rank, token_width)
    checkpoints = random_checkpoints(grid, count, seed)
    scales = TokenScales.from_statistics(grid, statistics(grid, checkpoints), center)
    tokens = torch.stack(checkpoints)
    normalized = scales.normalize(tokens)
    again = scales.denormalize(normalized)
    assert normalized.dtype == again.dtype == torch.float32
    assert not normalized[:, ~grid.mask()].any()
    mean = scales.mean[grid.token_slots()][:, None, None].expand(grid.tokens, rank, token_width)
    if scales.element_mean is not None:
        mean = scales.element_mean
    largest = torch.maximum(tokens.abs(), mean.abs())
    assert ((again - tokens).abs() <= 4 * torch.finfo(torch.float32).eps * largest).all()


@pytest.mark.parametrize("center", CENTERS)
def test_what_a_generator_puts_into_the_padding_is_dropped(center: Center) -> None:
    grid = small_grid(token_width=5)
    scales = TokenScales.from_statistics(
        grid, statistics(grid, random_checkpoints(grid, 3)), center
    )
    generated = torch.ones(2, grid.tokens, 2, 5, requires_grad=True)
    weights = scales.denormalize(generated)
    assert not weights[:, ~grid.mask()].any()
    weights.sum().backward()
    assert generated.grad is not None
    std = scales.std[grid.token_slots()][:, None, None] * grid.mask()
    assert torch.equal(generated.grad, std.expand(2, -1, -1, -1))


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e30])
def test_a_matrix_that_never_varies_has_a_spread_of_one(center: Center, value: float) -> None:
    grid = small_grid()
    checkpoints = random_checkpoints(grid, 5)
    first = slice(grid.slots[0].first, grid.slots[0].first + grid.slots[0].count)
    for tokens in checkpoints:
        tokens[first] = value * grid.mask()[first]
    scales = TokenScales.from_statistics(grid, statistics(grid, checkpoints), center)
    assert scales.std[0] == 1
    assert (scales.std[1:] != 1).all()
    assert not scales.variance[first].any()
    normalized = scales.normalize(checkpoints[0])
    assert torch.isfinite(normalized).all()
    assert not normalized[first].any()


@pytest.mark.parametrize("center", CENTERS)
def test_scales_and_statistics_round_trip_through_safetensors(
    tmp_path: Path, center: Center
) -> None:
    grid = small_grid(token_width=5)
    checkpoints = random_checkpoints(grid, 3)
    stored = statistics(grid, checkpoints)
    save_file(stored.tensors(), tmp_path / "statistics.safetensors")
    again = TokenStatistics.from_tensors(load_file(tmp_path / "statistics.safetensors"))
    assert again.count == 3
    assert torch.equal(again.mean, stored.mean)
    assert torch.equal(again.deviations, stored.deviations)
    scales = TokenScales.from_statistics(grid, stored, center)
    save_file(scales.tensors(), tmp_path / "scales.safetensors")
    loaded = TokenScales.from_tensors(grid, load_file(tmp_path / "scales.safetensors"))
    assert loaded.center == center
    assert torch.equal(loaded.variance, scales.variance)
    tokens = checkpoints[0]
    assert torch.equal(loaded.normalize(tokens), scales.normalize(tokens))
    assert torch.equal(loaded.denormalize(tokens), scales.denormalize(tokens))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("checkpoint", [1, 3])
def test_weights_that_are_not_finite_are_named(value: float, checkpoint: int) -> None:
    grid = small_grid()
    checkpoints = random_checkpoints(grid, 3)
    slot = next(s for s in grid.slots if (s.layer, s.module) == (0, "mlp.up_proj"))
    checkpoints[checkpoint - 1][slot.first + 1, 1, 1] = value
    with pytest.raises(
        GridError,
        match=rf"checkpoint {checkpoint} of the trajectory of a task holds NaN or infinite "
        rf"weights in layer 0, mlp\.up_proj, A",
    ):
        statistics(grid, checkpoints)


def test_what_has_no_scales_is_named() -> None:
    grid, other = small_grid(), small_grid(rank=3)
    with pytest.raises(GridError, match="the trajectory of a task holds no checkpoint"):
        statistics(grid, [])
    with pytest.raises(GridError, match="no trajectories to take scales of"):
        TokenStatistics.combine([])
    with pytest.raises(GridError, match=r"checkpoint 1 of the trajectory.*\(\d+, 3, 4\)"):
        statistics(grid, random_checkpoints(other, 1))
    mine, theirs = (statistics(g, random_checkpoints(g, 2)) for g in (grid, other))
    with pytest.raises(GridError, match="cannot be put together"):
        TokenStatistics.combine([mine, theirs])
    with pytest.raises(GridError, match="the statistics are of tokens"):
        TokenScales.from_statistics(other, mine, "matrix")


def test_stored_scales_of_another_grid_are_refused() -> None:
    grid, other = small_grid(), small_grid(token_width=3)
    scales = TokenScales.from_statistics(
        grid, statistics(grid, random_checkpoints(grid, 2)), "element"
    )
    with pytest.raises(GridError, match="variance has shape .* made for another LoRA shape"):
        TokenScales.from_tensors(other, scales.tensors())
    one_layer = TokenGrid.from_shapes(lora_shapes({"layers.0.q": (4, 4)}, 2), 4)
    with pytest.raises(GridError, match="mean has shape"):
        TokenScales.from_tensors(one_layer, scales.tensors())
    wrong = {**scales.tensors(), "element_mean": torch.zeros(1, 2, 3)}
    with pytest.raises(GridError, match=r"element_mean has shape \(1, 2, 3\)"):
        TokenScales.from_tensors(grid, wrong)
    with pytest.raises(GridError, match="the stored scales have no 'std'"):
        TokenScales.from_tensors(
            grid, {name: t for name, t in scales.tensors().items() if name != "std"}
        )
    with pytest.raises(GridError, match="the stored statistics have no 'mean'"):
        TokenStatistics.from_tensors({"count": torch.tensor([1])})
