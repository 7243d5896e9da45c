"""One interface over the decoders: what they are built from, and what does not fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from degaml_kedro.config.schema import FactorizedDecoder, HyperconvolutionalDecoder
from degaml_kedro.generator.decoders.build import ConditionSize, Decoder, whole_flow
from degaml_kedro.generator.decoders.hyperconv import FlowError
from tests.adapters.test_tokens import small_grid

CONDITION = ConditionSize(prompts=3, tokens=6, width=8, states=2)
GRID = small_grid()
START = (3, 6, 8)


def flow(*sizes: tuple[int, int, int], **changes: Any) -> HyperconvolutionalDecoder:
    settings = {"kind": "hyperconvolutional", "flow": sizes, "kernel_size": 3, **changes}
    return HyperconvolutionalDecoder.model_validate(settings)


EVERY = {
    "factorized": FactorizedDecoder(kind="factorized", condition_width=8, width=8, rank=2),
    "hyperconvolutional": flow(START, (5, 4, 6), GRID.shape),
    "checkpointed": flow(START, (5, 4, 6), GRID.shape, checkpoint=True),
}


def condition(count: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    states = torch.randn(count, *START, generator=source)
    return states, torch.full((count, 3), 6), torch.eye(2)[[0] * count]


@pytest.mark.parametrize("name", EVERY)
def test_every_decoder_makes_the_grid_s_tokens_without_border(name: str) -> None:
    decoder = Decoder(EVERY[name], GRID, CONDITION, seed=0)
    tokens = decoder(*condition())
    assert tokens.shape == (2, GRID.tokens, GRID.rank, GRID.token_width)
    assert torch.isfinite(tokens).all()
    assert decoder.parameter_count == sum(p.numel() for p in decoder.parameters())
    assert decoder.multiply_adds > 0


def test_the_border_is_what_is_cut_off() -> None:
    decoder = Decoder(EVERY["hyperconvolutional"], GRID, CONDITION, seed=0)
    states, lengths, hot = condition()
    bordered = decoder.network(states)
    assert bordered.shape[1:] == GRID.shape
    assert torch.equal(decoder(states, lengths, hot), bordered[..., 1:-1, 1:-1])


@pytest.mark.parametrize("start", [(4, 6, 8), (3, 7, 8), (3, 6, 9), (8, 6, 3)])
def test_a_flow_that_does_not_begin_at_the_condition(start: tuple[int, int, int]) -> None:
    with pytest.raises(FlowError) as caught:
        whole_flow(flow(start, GRID.shape), GRID, CONDITION)
    message = str(caught.value)
    assert all(str(number) in message for number in (*start, *START))


def test_the_grid_follows_a_flow_that_does_not_end_with_it() -> None:
    whole = whole_flow(flow(START, (5, 4, 6), GRID.shape), GRID, CONDITION)
    assert whole == (START, (5, 4, 6), GRID.shape)
    assert whole_flow(flow(START, (5, 4, 6)), GRID, CONDITION) == whole
    decoder = Decoder(flow(START), GRID, CONDITION, seed=0)
    assert decoder(*condition()).shape == (2, GRID.tokens, GRID.rank, GRID.token_width)
