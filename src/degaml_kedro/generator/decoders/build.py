"""One interface over the decoders: a prompt batch in, normalised tokens without their border out.

Shapes: B batch, N prompts, L prompt tokens, C encoder width, T tokens, r rank, k token width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.generator.decoders.factorized import FactorizedNetwork
from degaml_kedro.generator.decoders.hyperconv import (
    HyperconvDecoder,
    check_flow,
    check_flow_start,
    flow_costs,
    total_cost,
)
from degaml_kedro.llm.base_model import library_weights
from degaml_kedro.parameters import FactorizedDecoder, HyperconvolutionalDecoder


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
            GridError: the flow does not end on the grid.
        """
        super().__init__()
        self.grid = grid
        self.condition = condition
        self.settings = parameters
        self.network: HyperconvDecoder | FactorizedNetwork
        with library_weights(seed):
            if isinstance(parameters, HyperconvolutionalDecoder):
                check_decoder(parameters, grid, condition)
                self.network = HyperconvDecoder(
                    parameters.flow, parameters.kernel_size, checkpoint=parameters.checkpoint
                )
            else:
                self.network = FactorizedNetwork(
                    grid, condition.width, condition.states, parameters
                )

    def forward(self, states: Tensor, lengths: Tensor, permutation: Tensor) -> Tensor:
        """Generate normalised tokens.

        Args:
            states: [B, N, L, C], zeros behind each prompt's end.
            lengths: long [B, N].
            permutation: one-hot [B, states]; the hyper-convolutional decoder, as published, does not read it.

        Returns:
            [B, T, r, k].
        """
        if isinstance(self.network, HyperconvDecoder):
            return self.grid.strip_border(self.network(states))
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
            return total_cost(
                flow_costs(self.settings.flow, self.settings.kernel_size)
            ).multiply_adds
        assert isinstance(self.network, FactorizedNetwork)
        return self.network.multiply_adds(self.condition.prompts, self.condition.tokens)


def check_decoder(
    parameters: HyperconvolutionalDecoder, grid: TokenGrid, condition: ConditionSize
) -> None:
    """See that a flow leads from the condition to the grid.

    Raises:
        FlowError: it is none, or begins elsewhere.
        GridError: it ends elsewhere.
    """
    flow: Sequence[tuple[int, int, int]] = check_flow(parameters.flow, parameters.kernel_size)
    check_flow_start(flow, (condition.prompts, condition.tokens, condition.width))
    grid.check_flow_end(flow[-1])
