"""The paper's hyper-convolutional decoder: the states of a prompt batch in, the tokens of an adapter out.

A feature is a block [N, H, W]. It begins as N prompts of H tokens of W encoder dimensions and ends as N tokens of
H rows (rank and border) and W columns. Each convolution takes one of the three axes as its channels, changes that
one axis, and slides over the plane of the other two. A decoder layer on c is (equation 9 of the paper)

    c_W = Conv_H1(Conv_W1(c)),  c_H = tanh(Conv_W2(Conv_H2(c))),  c' = Conv_L((c_W + c_H + b) / 3)

The input's LayerNorm, the tanh on the second branch and the residual where shapes agree are not in the equation:
they are what the public code of the decoder's ancestor, Drag-and-Drop LLMs (Liang et al., 2025), adds.

Shapes: B batch, N prompts or tokens, H height (prompt tokens L, later rank + 2), W width (encoder width C, later
token width + 2), k kernel size; a prime marks a layer's output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as checkpointed

from degaml_kedro.common.errors import DegamlError

Size = tuple[int, int, int]

_AXES = {"layer": 1, "height": 2, "width": 3}
# elements of one parameter; a larger weight is several
_LARGEST_WEIGHT = 1 << 26
# E[tanh(x)²] of a standard normal x
_TANH_POWER = 0.3943


class FlowError(DegamlError):
    """A feature flow that no decoder can follow, or a condition that does not fit its beginning."""


def check_flow(flow: Sequence[Sequence[int]], kernel_size: int) -> tuple[Size, ...]:
    """The flow's sizes (N, H, W), the condition's first, once it is one that a decoder can be built for.

    Raises:
        FlowError: fewer than two sizes, one that is not three positive integers, or an even or non-positive kernel.
    """
    for number, size in enumerate(flow, start=1):
        if len(size) != 3 or not all(isinstance(axis, int) and axis > 0 for axis in size):
            raise FlowError(
                f"size {number} of the decoder's flow is {_text(size)}; "
                f"write three positive integers: prompts or tokens, height, width"
            )
    if len(flow) < 2:
        raise FlowError(
            f"the decoder's flow has {len(flow)} size{'' if len(flow) == 1 else 's'}; it needs at least two: "
            f"the condition (prompts, prompt tokens, encoder width) and the token grid with its border"
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise FlowError(
            f"the decoder's kernel size is {kernel_size}; take an odd one, such as {max(1, kernel_size) | 1}: "
            f"an even kernel has no middle and would shift the feature"
        )
    return tuple((n, h, w) for n, h, w in flow)


def check_flow_start(flow: Sequence[Size], condition: Sequence[int]) -> None:
    """See that conditions (N, L, C) fit the beginning of the flow.

    Raises:
        FlowError: they differ; the axes that do are named.
    """
    names = ("prompts (N)", "prompt tokens (L)", "encoder width (C)")
    pairs = list(zip(names, flow[0], condition, strict=False))
    differing = [
        f"{name} {theirs} instead of {own}" for name, own, theirs in pairs if own != theirs
    ]
    if len(condition) != 3 or differing:
        raise FlowError(
            f"the decoder's flow starts at {_text(flow[0])}, but the condition is {_text(condition)}"
            f"{': ' + ', '.join(differing) if differing else ''}; "
            f"begin the flow with the condition's size, or encode the prompts to the flow's"
        )


def _text(size: Sequence[object]) -> str:
    return f"({', '.join(map(str, size))})"


@dataclass(frozen=True)
class DecoderCost:
    """The cost of a decoder.

    Attributes:
        parameters: how many numbers are learned.
        multiply_adds: of the convolutions, for one sample forward; padding counts, element-wise work does not.
    """

    parameters: int
    multiply_adds: int


def decoder_cost(flow: Sequence[Size], kernel_size: int) -> DecoderCost:
    """The cost of a decoder, counted from the flow's sizes (N, H, W).

    Raises:
        FlowError: as :func:`check_flow`.
    """
    taps = kernel_size**2
    parameters = multiply_adds = 0
    for (n, h, w), (n2, h2, w2) in itertools.pairwise(check_flow(flow, kernel_size)):
        norm, biases = 2 * h * w, h2 * w2 + n2
        parameters += taps * (2 * w * w2 + 2 * h * h2 + n * n2) + norm + biases
        width_first = w * w2 * n * h + h * h2 * n * w2
        height_first = h * h2 * n * w + w * w2 * n * h2
        multiply_adds += taps * (width_first + height_first + n * n2 * h2 * w2)
    return DecoderCost(parameters, multiply_adds)


class AxisConvolution(nn.Module):
    """A two-dimensional convolution of [B, N, H, W] along one axis: ``layer`` N, ``height`` H or ``width`` W.

    That axis is its channels. It slides over the plane of the other two, in their order, and keeps their sizes.

    Attributes:
        weight: [outputs, inputs, k, k], set by the layer, which knows the plane; where it is large, parts of it, some
            outputs each: of a part alone a copy in bfloat16 and a new gradient are held beside what is kept.
        bias: [outputs], zero at first; or None.
        pad_channels: compute with a multiple of 8 inputs and outputs, by zeros that are cut off.
    """

    def __init__(
        self,
        axis: Literal["layer", "height", "width"],
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        bias: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._axis = _AXES[axis]
        most = max(1, _LARGEST_WEIGHT // (inputs * kernel_size**2))
        taps = (inputs, kernel_size, kernel_size)
        parts = [
            nn.Parameter(torch.empty(min(most, outputs - first), *taps, dtype=dtype))
            for first in range(0, outputs, most)
        ]
        self.weight = parts[0] if len(parts) == 1 else nn.ParameterList(parts)
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=dtype)) if bias else None
        self.pad_channels = False

    def forward(self, feature: Tensor) -> Tensor:
        """Map the axis of a feature [B, N, H, W]."""
        # for the width this is the channels-last layout that the kernels prefer: nothing is copied
        channels_first = feature.movedim(self._axis, 1)
        weights = self._parts()
        biases = [None] * len(weights)
        if self.bias is not None:
            biases = self.bias.split([len(part) for part in weights])
        if self.pad_channels:
            more = -channels_first.shape[1] % 8
            channels_first = functional.pad(channels_first, (0, 0, 0, 0, 0, more))
        mapped = [
            self._convolved(channels_first, part, bias)
            for part, bias in zip(weights, biases, strict=True)
        ]
        return (mapped[0] if len(mapped) == 1 else torch.cat(mapped, dim=1)).movedim(1, self._axis)

    def _convolved(self, feature: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs, inputs, kernel_size, _ = weight.shape
        if self.pad_channels:
            weight = functional.pad(weight, (0, 0, 0, 0, 0, -inputs % 8, 0, -outputs % 8))
            bias = None if bias is None else functional.pad(bias, (0, -outputs % 8))
        return functional.conv2d(feature, weight, bias, padding=kernel_size // 2)[:, :outputs]

    def _parts(self) -> list[Tensor]:
        return list(self.weight) if isinstance(self.weight, nn.ParameterList) else [self.weight]

    @torch.no_grad()
    def reset(
        self, plane: tuple[int, int], power: float, generator: torch.Generator | None
    ) -> None:
        """Draw the weights so that an input of mean square ``power`` gives an output of mean square 1.

        On a plane hardly larger than the kernel many taps fall on the padding: only those inside count.
        """
        parts = self._parts()
        inputs, kernel_size = parts[0].shape[1:3]
        taps = math.prod(_mean_taps(length, kernel_size) for length in plane)
        bound = math.sqrt(3 / (inputs * taps * power))
        for part in parts:
            part.uniform_(-bound, bound, generator=generator)


def _mean_taps(length: int, kernel_size: int) -> float:
    """How many of a kernel's taps lie inside a line, on average over the positions of its middle."""
    reach = kernel_size // 2
    inside = (min(i + reach, length - 1) - max(i - reach, 0) + 1 for i in range(length))
    return sum(inside) / length


class HyperconvLayer(nn.Module):
    """One layer of the decoder, (N, H, W) to (N', H', W'): equation 9 after a LayerNorm over (H, W); b is [H', W']."""

    def __init__(
        self,
        before: Size,
        after: Size,
        kernel_size: int,
        *,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        (n, h, w), (n2, h2, w2) = before, after
        self.norm = nn.LayerNorm((h, w), dtype=dtype)
        self.width_1 = AxisConvolution("width", w, w2, kernel_size, dtype=dtype)
        self.height_1 = AxisConvolution("height", h, h2, kernel_size, dtype=dtype)
        self.height_2 = AxisConvolution("height", h, h2, kernel_size, dtype=dtype)
        self.width_2 = AxisConvolution("width", w, w2, kernel_size, dtype=dtype)
        self.layerwise = AxisConvolution("layer", n, n2, kernel_size, bias=True, dtype=dtype)
        self.bias = nn.Parameter(torch.zeros(h2, w2, dtype=dtype))
        self._residual = before == after
        self.width_1.reset((n, h), 1, generator)
        self.height_1.reset((n, w2), 1, generator)
        self.height_2.reset((n, w), 1, generator)
        self.width_2.reset((n, h2), 1, generator)
        self.layerwise.reset((h2, w2), (1 + _TANH_POWER) / 9, generator)

    def forward(self, feature: Tensor) -> Tensor:
        """The next feature, [B, N', H', W'], from [B, N, H, W]."""
        normed = self.norm(feature)
        width_first = self.height_1(self.width_1(normed))
        height_first = torch.tanh(self.width_2(self.height_2(normed)))
        mapped: Tensor = self.layerwise((width_first + height_first + self.bias) / 3)
        return feature + mapped if self._residual else mapped


class HyperconvDecoder(nn.Module):
    """The whole decoder: one layer between every two sizes of the flow.

    At the start outputs have a mean square of about 1, as normalized tokens do, whatever the flow.

    Args:
        flow: sizes (N, H, W): the condition's (prompts, prompt tokens, encoder width) first, the token grid with
            its border (T, r + 2, token width + 2) last.
        pad_channels: as :class:`AxisConvolution` has it.
        checkpoint: keep only each layer's input for the backward pass and compute the layer again there.

    Raises:
        FlowError: as :func:`check_flow`.

    Example:
        >>> decoder = HyperconvDecoder([(4, 6, 5), (3, 4, 4), (7, 4, 8)], kernel_size=3)
        >>> tuple(decoder(torch.randn(2, 4, 6, 5)).shape)
        (2, 7, 4, 8)
    """

    def __init__(
        self,
        flow: Sequence[Sequence[int]],
        kernel_size: int,
        *,
        checkpoint: bool = False,
        pad_channels: bool = False,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.flow = check_flow(flow, kernel_size)
        self.checkpoint = checkpoint
        self.layers = nn.ModuleList(
            HyperconvLayer(before, after, kernel_size, dtype=dtype, generator=generator)
            for before, after in itertools.pairwise(self.flow)
        )
        for module in self.modules():
            if isinstance(module, AxisConvolution):
                module.pad_channels = pad_channels

    def forward(self, condition: Tensor) -> Tensor:
        """The tokens [B, T, r + 2, token width + 2] of conditions [B, N, L, C], which are cast to the weights' type.

        Raises:
            FlowError: the condition is not of the flow's first size.
        """
        check_flow_start(self.flow, condition.shape[1:])
        feature = condition.to(cast(HyperconvLayer, self.layers[0]).bias.dtype)
        for layer in self.layers:
            if self.checkpoint and torch.is_grad_enabled():
                feature = checkpointed(
                    layer, feature, use_reentrant=False, preserve_rng_state=False
                )
            else:
                feature = layer(feature)
        return feature
