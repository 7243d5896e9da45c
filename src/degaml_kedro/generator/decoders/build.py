"""One interface over the decoders: a prompt batch in, normalised tokens without their border out.

Shapes: B batch, N prompts, L prompt tokens, C encoder width, T tokens, r rank, k token width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.config.schema import FactorizedDecoder, HyperconvolutionalDecoder
from degaml_kedro.generator.decoders.factorized import FactorizedNetwork
from degaml_kedro.generator.decoders.hyperconv import (
    HyperconvDecoder,
    Size,
    check_flow,
    check_flow_start,
    decoder_cost,
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


class Decoder(nn.Module):
    """Any decoder: ``forward(states, lengths, permutation)`` -> [B, T, r, k]."""

    def __init__(
        self,
        parameters: HyperconvolutionalDecoder | FactorizedDecoder,
        grid: TokenGrid,
        condition: ConditionSize,
        seed: int,
    ) -> None:
        """Build one with fresh weights.

        Raises:
            FlowError: the flow cannot be followed, or does not begin at the condition.
        """
        super().__init__()
        self.grid = grid
        self.condition = condition
        self.settings = parameters
        self.network: HyperconvDecoder | FactorizedNetwork
        with library_weights(seed):
            if isinstance(parameters, HyperconvolutionalDecoder):
                flow = whole_flow(parameters, grid, condition)
                self.network = HyperconvDecoder(
                    flow, parameters.kernel_size, checkpoint=parameters.checkpoint
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
        """Multiply-adds of one sample forward."""
        if isinstance(self.settings, HyperconvolutionalDecoder):
            flow = whole_flow(self.settings, self.grid, self.condition)
            return decoder_cost(flow, self.settings.kernel_size).multiply_adds
        assert isinstance(self.network, FactorizedNetwork)
        return self.network.multiply_adds(self.condition.prompts, self.condition.tokens)


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
