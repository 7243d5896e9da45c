"""The faithful decoder: each convolution against its axis, the layer against equation 9, and what it costs."""

from __future__ import annotations

import itertools

import pytest
import torch
from benchmarks.paper_decoder import PAPER_FLOWS, PAPER_KERNEL_SIZE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from degaml_kedro.generator.decoders.hyperconv import (
    AxisConvolution,
    FlowError,
    HyperconvDecoder,
    HyperconvLayer,
    check_flow,
    check_flow_start,
    decoder_cost,
)

AXES = {"layer": 1, "height": 2, "width": 3}
FLOW = [(4, 6, 5), (3, 4, 4), (3, 4, 4), (7, 4, 8)]
# eight layers, with the paper's ratios
DEEP = [tuple(max(3, axis // 16) for axis in size) for size in PAPER_FLOWS["qwen2.5-0.5b"]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def identity(axis: str, size: int, kernel: int = 3) -> AxisConvolution:
    convolution = AxisConvolution(axis, size, size, kernel)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[:, :, kernel // 2, kernel // 2] = torch.eye(size)
    return convolution


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("tap", [0, 1])
def test_an_off_center_kernel_shifts_along_the_plane_of_the_other_axes(axis: str, tap: int) -> None:
    feature = torch.randn(2, 4, 5, 6, generator=seeded())
    convolution = identity(axis, feature.shape[AXES[axis]])
    index = [slice(None), slice(None), 1, 1]
    index[2 + tap] = 2
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[tuple(index)] = torch.eye(feature.shape[AXES[axis]])
    plane = [other for other in AXES.values() if other != AXES[axis]]
    along = plane[tap]
    shifted = torch.roll(feature, -1, along)
    shifted.select(along, feature.shape[along] - 1).zero_()
    assert torch.equal(convolution(feature), shifted)


@pytest.mark.parametrize("axis", AXES)
def test_one_cell_reaches_its_whole_axis_and_its_neighbors_on_the_plane(axis: str) -> None:
    convolution = AxisConvolution(axis, 7, 6, 3)
    convolution.reset((7, 7), 1, seeded())
    feature = torch.randn(1, 7, 7, 7, generator=seeded(1))
    other = feature.clone()
    other[0, 3, 3, 3] += 1
    changed = (convolution(feature) != convolution(other))[0]
    expected = torch.zeros(7, 7, 7, dtype=torch.bool)
    expected[2:5, 2:5, 2:5] = True
    where = AXES[axis] - 1
    expected = expected.any(where, keepdim=True).expand(
        *(6 if dimension == where else 7 for dimension in range(3))
    )
    assert torch.equal(changed, expected)


def naive(feature: Tensor, weight: Tensor, axis: str) -> Tensor:
    """A convolution as a sum over taps, written out for each axis."""
    size = weight.shape[-1]
    reach = size // 2
    total = 0
    for i, j in itertools.product(range(-reach, reach + 1), repeat=2):
        kernel = weight[:, :, i + reach, j + reach]
        if axis == "width":
            total = total + torch.einsum("bnhw,vw->bnhv", shifted(feature, 0, (i, j)), kernel)
        elif axis == "height":
            total = total + torch.einsum("bnhw,gh->bngw", shifted(feature, 1, (i, j)), kernel)
        else:
            total = total + torch.einsum("bnhw,mn->bmhw", shifted(feature, 2, (i, j)), kernel)
    return total


def shifted(feature: Tensor, plane: int, by: tuple[int, int]) -> Tensor:
    """The feature, read at an offset on one of the three planes, zero outside."""
    axes = [(1, 2), (1, 3), (2, 3)][plane]
    result = torch.zeros_like(feature)
    for cell in itertools.product(*(range(feature.shape[axis]) for axis in axes)):
        source = [position + offset for position, offset in zip(cell, by, strict=True)]
        if all(
            0 <= position < feature.shape[axis] for position, axis in zip(source, axes, strict=True)
        ):
            here, there = [slice(None)] * 4, [slice(None)] * 4
            for axis, to, position in zip(axes, cell, source, strict=True):
                here[axis], there[axis] = to, position
            result[tuple(here)] = feature[tuple(there)]
    return result


@pytest.mark.parametrize("after", [(5, 2, 6), (3, 4, 5)])
def test_a_layer_is_equation_9(after: tuple[int, int, int]) -> None:
    layer = HyperconvLayer((3, 4, 5), after, 3, dtype=torch.float64, generator=seeded())
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.normal_(generator=seeded(len(name)))
    feature = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=seeded(1))

    mean = feature.mean((2, 3), keepdim=True)
    spread = (feature.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    normed = (feature - mean) / spread * layer.norm.weight + layer.norm.bias
    width_first = naive(
        naive(normed, layer.width_1.weight, "width"), layer.height_1.weight, "height"
    )
    height_first = naive(
        naive(normed, layer.height_2.weight, "height"), layer.width_2.weight, "width"
    ).tanh()
    mixed = (width_first + height_first + layer.bias[None, None]) / 3
    expected = naive(mixed, layer.layerwise.weight, "layer") + layer.layerwise.bias[:, None, None]
    if after == (3, 4, 5):
        expected = expected + feature

    torch.testing.assert_close(layer(feature), expected)


def test_the_residual_is_only_where_sizes_agree() -> None:
    decoder = HyperconvDecoder(FLOW, 3)
    with torch.no_grad():
        for layer in decoder.layers:
            layer.layerwise.weight.zero_()
    feature = torch.randn(2, 3, 4, 4)
    assert torch.equal(decoder.layers[1](feature), feature)
    assert not decoder.layers[2](feature).any()


@settings(max_examples=25, deadline=None)
@given(
    flow=st.lists(st.tuples(*[st.integers(1, 6)] * 3), min_size=2, max_size=5),
    kernel_size=st.sampled_from([1, 3, 5]),
    batch=st.integers(1, 3),
    checkpoint=st.booleans(),
)
def test_any_flow_works_and_is_counted(
    flow: list[tuple[int, int, int]], kernel_size: int, batch: int, checkpoint: bool
) -> None:
    decoder = HyperconvDecoder(flow, kernel_size, checkpoint=checkpoint, generator=seeded())
    condition = torch.randn(batch, *flow[0], generator=seeded(1))
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        tokens = decoder(condition)
    cost = decoder_cost(flow, kernel_size)
    assert tokens.shape == (batch, *flow[-1])
    assert counted.get_total_flops() == batch * 2 * cost.multiply_adds
    assert sum(parameter.numel() for parameter in decoder.parameters()) == cost.parameters
    decoder(condition).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in decoder.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "flop"),
    [("qwen2.5-0.5b", 1.11e9, 8.3e12), ("qwen2.5-1.5b", 1.15e9, 13.7e12)],
)
def test_the_papers_flows_cost_what_was_counted(name: str, parameters: float, flop: float) -> None:
    cost = decoder_cost(PAPER_FLOWS[name], PAPER_KERNEL_SIZE)
    assert cost.parameters == pytest.approx(parameters, rel=0.005)
    assert 2 * cost.multiply_adds == pytest.approx(flop, rel=0.006)
    with torch.device("meta"):
        decoder = HyperconvDecoder(PAPER_FLOWS[name], PAPER_KERNEL_SIZE)
        condition = torch.empty(1, *PAPER_FLOWS[name][0])
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        assert decoder(condition).shape == (1, *PAPER_FLOWS[name][-1])
    assert counted.get_total_flops() == 2 * cost.multiply_adds


def test_gradients_are_those_of_finite_differences() -> None:
    layer = HyperconvDecoder([(2, 3, 4), (2, 3, 4), (3, 2, 3)], 3, generator=seeded()).double()
    condition = torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=seeded(1))
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def decode(feature: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), feature)

    inputs = [p.detach().clone().requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(decode, (condition.requires_grad_(), *inputs))


def test_checkpointing_gives_the_same_gradients() -> None:
    condition = torch.randn(2, *FLOW[0], generator=seeded(1))
    found = []
    for checkpoint in (False, True):
        decoder = HyperconvDecoder(FLOW, 3, checkpoint=checkpoint, generator=seeded())
        tokens = decoder(condition)
        tokens.square().sum().backward()
        found.append([tokens.detach(), *(p.grad for p in decoder.parameters())])
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_padded_channels_give_the_same_tokens_and_gradients(checkpoint: bool) -> None:
    condition = torch.randn(2, *FLOW[0], generator=seeded(1))
    found = []
    for pad_channels in (False, True):
        decoder = HyperconvDecoder(
            FLOW, 3, checkpoint=checkpoint, pad_channels=pad_channels, generator=seeded()
        )
        with FlopCounterMode(display=False) as counted:
            tokens = decoder(condition)
        tokens.square().sum().backward()
        found.append([tokens.detach(), *(p.grad for p in decoder.parameters())])
        if pad_channels:
            assert counted.get_total_flops() > 2 * 2 * decoder_cost(FLOW, 3).multiply_adds
    assert all(
        torch.allclose(plain, padded, rtol=1e-4, atol=1e-5)
        for plain, padded in zip(*found, strict=True)
    )


def test_a_large_weight_in_parts_gives_what_it_gives_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    condition = torch.randn(2, *FLOW[0], generator=seeded(1))
    found = []
    for largest in (1 << 27, 100):
        monkeypatch.setattr("degaml_kedro.generator.decoders.hyperconv._LARGEST_WEIGHT", largest)
        decoder = HyperconvDecoder(FLOW, 3, generator=seeded())
        found.append((decoder, decoder(condition)))
    (one, _), (parts, theirs) = found
    assert "layers.0.layerwise.weight.1" in parts.state_dict()
    numbers = [sum(p.numel() for p in decoder.parameters()) for decoder in (one, parts)]
    assert numbers[0] == numbers[1]
    for name in one.state_dict():
        weights = [value for key, value in parts.state_dict().items() if key.startswith(name)]
        one.state_dict()[name].copy_(torch.cat(weights))
    torch.testing.assert_close(one(condition), theirs)


def kept_bytes(decoder: HyperconvDecoder, condition: Tensor) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.data_ptr() for parameter in decoder.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder(condition)
    return sum(kept.values())


def test_checkpointing_keeps_less() -> None:
    condition = torch.randn(2, *DEEP[0], generator=seeded(1))
    plain, checkpointed = (
        kept_bytes(HyperconvDecoder(DEEP, 3, checkpoint=checkpoint), condition)
        for checkpoint in (False, True)
    )
    assert checkpointed < plain / 3


@pytest.mark.parametrize("flow", [FLOW, DEEP, [(8, 40, 30), (20, 10, 34), (20, 10, 34)]])
def test_every_feature_starts_at_a_mean_square_of_about_one(
    flow: list[tuple[int, int, int]],
) -> None:
    powers = []
    for seed in range(4):
        decoder = HyperconvDecoder(flow, 9, generator=seeded(seed))
        # encoder states are far from white: prompts and positions resemble each other
        condition = torch.randn(2, *flow[0], generator=seeded(seed + 10))
        condition += 3 * torch.randn(1, 1, flow[0][1], flow[0][2], generator=seeded(seed + 20))
        feature = condition
        with torch.no_grad():
            for layer in decoder.layers:
                before = feature
                feature = layer(feature)
                added = feature - before if feature.shape == before.shape else feature
                powers.append(added.square().mean().item())
    assert 0.5 < sum(powers) / len(powers) < 2
    assert all(0.1 < power < 5 for power in powers)


def test_gradients_through_eight_layers_neither_vanish_nor_explode() -> None:
    decoder = HyperconvDecoder(DEEP, 9, generator=seeded())
    tokens = decoder(torch.randn(2, *DEEP[0], generator=seeded(1)))
    (tokens - torch.randn(tokens.shape, generator=seeded(2))).square().mean().backward()
    sizes = [
        (parameter.grad.norm() / parameter.norm()).item()
        for parameter in decoder.parameters()
        if parameter.dim() == 4
    ]
    assert len(sizes) == 5 * 8
    assert min(sizes) > 1e-4
    assert max(sizes) < 10


def test_a_generator_decides_the_weights() -> None:
    first, again, other = (
        HyperconvDecoder(FLOW, 3, generator=seeded(seed)).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.width_1.weight"], other["layers.0.width_1.weight"])


def test_bfloat16_weights_take_half_precision_conditions() -> None:
    decoder = HyperconvDecoder(DEEP, 5, generator=seeded())
    condition = torch.randn(2, *DEEP[0], generator=seeded(1)).half()
    expected = decoder(condition)
    tokens = decoder.to(torch.bfloat16)(condition)
    assert expected.dtype == torch.float32
    assert tokens.dtype == torch.bfloat16
    error = (tokens.float() - expected).norm() / expected.norm()
    assert error < 0.05
    tokens.float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in decoder.parameters())


@pytest.mark.parametrize(
    ("flow", "kernel_size", "message"),
    [
        ([], 3, "the decoder's flow has 0 sizes; it needs at least two"),
        ([(1, 2, 3)], 3, "the decoder's flow has 1 size; it needs at least two"),
        ([(1, 2, 3), (1, 0, 3)], 3, r"size 2 of the decoder's flow is \(1, 0, 3\); write three"),
        ([(1, -2, 3), (1, 2, 3)], 3, r"size 1 of the decoder's flow is \(1, -2, 3\)"),
        ([(1, 2), (1, 2, 3)], 3, r"size 1 of the decoder's flow is \(1, 2\)"),
        ([(1, 2, 3.5), (1, 2, 3)], 3, r"size 1 of the decoder's flow is \(1, 2, 3.5\)"),
        ([(1, 2, 3)] * 2, 4, "the decoder's kernel size is 4; take an odd one, such as 5"),
        ([(1, 2, 3)] * 2, 0, "the decoder's kernel size is 0; take an odd one, such as 1"),
    ],
)
def test_flows_that_cannot_be_are_refused(
    flow: list[tuple[int, int, int]], kernel_size: int, message: str
) -> None:
    for refuse in (check_flow, decoder_cost, HyperconvDecoder):
        with pytest.raises(FlowError, match=message):
            refuse(flow, kernel_size)


def test_a_condition_that_does_not_fit_is_named() -> None:
    message = (
        r"the decoder's flow starts at \(4, 6, 5\), but the condition is \(4, 7, 3\): "
        r"prompt tokens \(L\) 7 instead of 6, encoder width \(C\) 3 instead of 5; begin the flow"
    )
    with pytest.raises(FlowError, match=message):
        HyperconvDecoder(FLOW, 3)(torch.zeros(1, 4, 7, 3))
    with pytest.raises(FlowError, match=r"but the condition is \(4, 6\)"):
        check_flow_start(check_flow(FLOW, 3), (4, 6))
    check_flow_start(check_flow(FLOW, 3), (4, 6, 5))
