"""One interface over the decoders: a prompt batch in, normalised tokens without their border out.

Shapes: B batch, N prompts, L prompt tokens, C encoder width, T tokens, r rank, k token width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.config.schema import FactorizedDecoder, HyperconvolutionalDecoder
from degaml_kedro.generator.decoders.factorized import FactorizedNetwork
from degaml_kedro.generator.decoders.hyperconv import (
    HyperconvDecoder,
    Size,
    check_flow,
    check_flow_start,
)
from degaml_kedro.llm.base_model import library_weights


@dataclass(frozen=True)
class ConditionSize:
    """The sizes of a decoder's condition.

    Attributes:
        prompts: N.
        tokens: L.
        width: C.
        states: how many permutation states the trajectories have.
    """

    prompts: int
    tokens: int
    width: int
    states: int = 1


@dataclass(frozen=True)
class Computing:
    """What a decoder multiplies in on a device; its own weights stay in float32.

    Attributes:
        casts: weights are cast for every use, and all is computed in ``dtype``; else products alone, by autocast.
    """

    dtype: torch.dtype
    device: torch.device
    casts: bool = False

    def context(self) -> Any:
        """A context in which the decoder's forward pass is computed as asked."""
        is_mixed = self.dtype != torch.float32 and not self.casts
        # every weight is used once: a cache would hold a copy of all of them till the end
        return torch.autocast(self.device.type, self.dtype, enabled=is_mixed, cache_enabled=False)

    def cast(self, decoder: nn.Module) -> None:
        """Let the decoder's modules see their weights cast, until :meth:`restore`; gradients go to the weights."""
        for module in list(decoder.modules()) if self.casts else ():
            for name, _ in list(module.named_parameters(recurse=False)):
                parametrize.register_parametrization(module, name, _Cast(self.dtype), unsafe=True)

    def restore(self, decoder: nn.Module) -> None:
        """Undo :meth:`cast`."""
        for module in list(decoder.modules()):
            for name in list(getattr(module, "parametrizations", ())):
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        return weight.to(self.dtype)


class Decoder(nn.Module):
    """Any decoder, with fresh weights: ``forward(states, lengths, permutation)`` -> [B, T, r, k].

    Raises:
        FlowError: as :func:`whole_flow`.
    """

    def __init__(
        self,
        parameters: HyperconvolutionalDecoder | FactorizedDecoder,
        grid: TokenGrid,
        condition: ConditionSize,
        seed: int,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.condition = condition
        self.settings = parameters
        self.network: HyperconvDecoder | FactorizedNetwork
        with library_weights(seed):
            if isinstance(parameters, HyperconvolutionalDecoder):
                flow = whole_flow(parameters, grid, condition)
                self.network = HyperconvDecoder(
                    flow,
                    parameters.kernel_size,
                    checkpoint=parameters.checkpoint,
                    pad_channels=parameters.pad_channels,
                )
            else:
                self.network = FactorizedNetwork(
                    grid, condition.width, condition.states, parameters
                )

    def forward(self, states: Tensor, lengths: Tensor, permutation: Tensor) -> Tensor:
        """Generate normalised tokens [B, T, r, k].

        Args:
            states: [B, N, L, C], zeros behind each prompt's end.
            lengths: long [B, N].
            permutation: one-hot [B, states]; the hyper-convolutional decoder, as published, does not read it.
        """
        if isinstance(self.network, HyperconvDecoder):
            bordered: Tensor = self.network(states)
            return bordered[..., 1:-1, 1:-1]
        made: Tensor = self.network(states, lengths, permutation)
        return made

    @property
    def parameter_count(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one sample forward, as PyTorch counts them; element-wise work is not counted."""
        size = self.condition
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
        with torch.device("meta"), torch.no_grad():
            # the type is given: another thread that loads a model has its own as the process's default meanwhile
            states = torch.empty(1, size.prompts, size.tokens, size.width, dtype=torch.float32)
            lengths = torch.ones(1, size.prompts, dtype=torch.long)
            permutation = torch.empty(1, size.states, dtype=torch.float32)
            with FlopCounterMode(display=False) as counter:
                functional_call(self, shapes, (states, lengths, permutation))
        return int(counter.get_total_flops()) // 2


def whole_flow(
    parameters: HyperconvolutionalDecoder, grid: TokenGrid, condition: ConditionSize
) -> tuple[Size, ...]:
    """The flow's sizes (N, H, W) from the condition to the token grid with its border.

    The grid follows where it is not the last size that ``parameters`` names.

    Raises:
        FlowError: no decoder can be built for them, or they do not begin at the condition.
    """
    sizes = parameters.flow
    if sizes[-1] != grid.shape:
        sizes = (*sizes, grid.shape)
    flow = check_flow(sizes, parameters.kernel_size)
    check_flow_start(flow, (condition.prompts, condition.tokens, condition.width))
    return flow
