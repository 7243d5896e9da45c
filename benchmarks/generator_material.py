"""What the generator's benchmarks work on: the embedded profile's sizes, prompts of the suite, checkpoints of noise.

How long a step takes does not depend on the numbers in the checkpoints, so nothing has to be trained first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import yaml

from benchmarks.material import SEED, Settings
from degaml_kedro.adapters.scales import TokenScales, TokenStatistics
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.config.schema import (
    EncoderParameters,
    FactorizedDecoder,
    GeneratorParameters,
    GeneratorVariant,
    LoraParameters,
)
from degaml_kedro.generator.decoders.build import ConditionSize, Decoder
from degaml_kedro.generator.generator import Generator, Identity
from degaml_kedro.generator.prompt_encoder import PromptEncoder, load_prompt_encoder
from degaml_kedro.llm.finetune import initial_adapter
from degaml_kedro.llm.prompting import question_text
from degaml_kedro.tasks.suite import FAMILIES

_PROFILE = Path(__file__).resolve().parent.parent / "conf" / "base" / "parameters.yml"
_TINY_DECODER = FactorizedDecoder(
    kind="factorized", condition_width=8, width=16, blocks=1, rank=4, output_scale=1.0
)


@dataclass(frozen=True)
class Sizes:
    """What the profile says of the generator, or something tiny.

    Attributes:
        encoder: which encoder, and L.
        prompts: N.
        token_width: k; None where it follows from the model.
        center: what normalisation subtracts.
        variant: the decoder and the training of the variant that learns from tokens alone.
        lora: the adapters' shape.
    """

    encoder: EncoderParameters
    prompts: int
    token_width: int | None
    center: str
    variant: GeneratorVariant
    lora: LoraParameters


@cache
def sizes(quick: bool) -> Sizes:
    """The embedded profile's own, so that a benchmark never measures last month's sizes.

    Args:
        quick: tiny ones instead.
    """
    content = yaml.safe_load(_PROFILE.read_text(encoding="utf-8"))
    parameters = GeneratorParameters.model_validate(content["generator"])
    encoder = parameters.encoder
    alone = (v for v in parameters.variants.values() if v.training.mse and not v.training.sft)
    variant = next(alone)
    prompts, width = parameters.prompts, parameters.tokenization.token_width
    if quick:
        tiny = {"source": {"kind": "random"}, "tokens": 64}
        encoder = EncoderParameters.model_validate({**encoder.model_dump(), **tiny})
        training = variant.training.model_copy(update={"batch_size": 2})
        variant = GeneratorVariant(decoder=_TINY_DECODER, training=training)
        prompts, width = 3, 32
    return Sizes(
        encoder,
        prompts,
        width,
        parameters.tokenization.center,
        variant,
        LoraParameters.model_validate(content["lora"]),
    )


def encoder_of(settings: Settings) -> PromptEncoder:
    """The profile's encoder, loaded as the project loads it."""
    return load_prompt_encoder(sizes(settings.quick).encoder)


def prompts_of(family: str, count: int, settings: Settings) -> list[str]:
    """Prompts of a suite's family, as the encoder reads them."""
    how = sizes(settings.quick).encoder.options
    return [question_text(example, how) for example in FAMILIES[family].generate(count, SEED)]


def grid_of(settings: Settings) -> TokenGrid:
    """The token grid of the model's adapters."""
    size = sizes(settings.quick)
    tensors = initial_adapter(settings.base(), size.lora).tensors
    return TokenGrid.from_shapes(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, size.token_width
    )


def noise_checkpoints(grid: TokenGrid, count: int, seed: int) -> list[torch.Tensor]:
    """Tokens of adapters that were never trained, as the profile stores them, [T, r, k]."""
    source = torch.Generator().manual_seed(seed)
    shape, mask = (grid.tokens, grid.rank, grid.token_width), grid.mask()
    drawn = (0.02 * torch.randn(shape, generator=source) * mask for _ in range(count))
    return [tokens.bfloat16() for tokens in drawn]


def fresh_generator(
    settings: Settings,
    condition: ConditionSize,
    checkpoints: Sequence[torch.Tensor],
    encoder: PromptEncoder,
) -> Generator:
    """An untrained generator whose heads are not zero, so that no product is trivial.

    Args:
        settings: which model.
        condition: what it is given.
        checkpoints: what its scales are taken over.
        encoder: the one it belongs to.
    """
    base, size, grid = settings.base(), sizes(settings.quick), grid_of(settings)
    statistics = TokenStatistics.of(grid, (part.float() for part in checkpoints), "noise")
    decoder = Decoder(size.variant.token_decoder, grid, condition, SEED)
    source = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if not parameter.any():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=source))
    return Generator(
        decoder,
        TokenScales.from_statistics(grid, statistics, size.center),  # type: ignore[arg-type]
        initial_adapter(base, size.lora).config,
        Identity(base.name, base.fingerprint, encoder.name, encoder.fingerprint),
    )
