"""Tiny generators and what they learn from: everything is made here, in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from degaml_kedro.adapters.scales import Center, TokenScales, TokenStatistics
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.config.schema import (
    FactorizedDecoder,
    GeneratorTraining,
    HyperconvolutionalDecoder,
    LoraParameters,
    PromptParameters,
)
from degaml_kedro.generator.decoders.build import ConditionSize, Decoder
from degaml_kedro.generator.generator import Generator, Identity
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.generator.training import TrainingTask
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import AnswerSequence, answer_sequences, initial_adapter
from degaml_kedro.tasks.example import Example, make_example
from tests.llm.helpers import random_adapter, tiny_base

LORA = LoraParameters(rank=2, alpha=4.0)
CONDITION = ConditionSize(prompts=3, tokens=6, width=8, states=2)
FACTORIZED = FactorizedDecoder(
    kind="factorized", condition_width=8, width=12, blocks=1, rank=4, output_scale=1.0
)
TOKEN_WIDTH = 32
PLAIN = PromptParameters(format="plain")


def tiny_grid(token_width: int = TOKEN_WIDTH) -> TokenGrid:
    """The grid of the tiny base model's adapters."""
    tensors = initial_adapter(tiny_base(), LORA).tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return TokenGrid.from_shapes(shapes, token_width)


def hyperconvolutional(grid: TokenGrid) -> HyperconvolutionalDecoder:
    """A flow of one layer onto the grid."""
    start = (CONDITION.prompts, CONDITION.tokens, CONDITION.width)
    return HyperconvolutionalDecoder(
        kind="hyperconvolutional", flow=(start, grid.shape), kernel_size=3
    )


def checkpoints(count: int, seed: int = 0) -> list[Tensor]:
    """Tokens of random adapters."""
    grid = tiny_grid()
    adapters = [random_adapter(tiny_base(), LORA, seed=100 * seed + i) for i in range(count)]
    return [grid.tokenize(adapter.tensors) for adapter in adapters]


def tiny_scales(center: Center = "element", seeds: Sequence[int] = (1, 2)) -> TokenScales:
    """Scales over the checkpoints of some tasks."""
    grid = tiny_grid()
    every = [tokens for seed in seeds for tokens in checkpoints(3, seed)]
    return TokenScales.from_statistics(grid, TokenStatistics.of(grid, every, "tests"), center)


def tiny_embeddings(count: int = 5, seed: int = 0, **changes: Any) -> PromptEmbeddings:
    """Random states of prompts of different lengths."""
    source = torch.Generator().manual_seed(seed)
    tokens, width = changes.pop("tokens", CONDITION.tokens), changes.pop("width", CONDITION.width)
    lengths = torch.randint(1, tokens + 1, (count,), generator=source, dtype=torch.int32)
    starts = lengths.long().cumsum(0) - lengths
    states = torch.randn(int(lengths.sum()), width, generator=source).half()
    about = {"encoder": "tests/encoder", "fingerprint": "e" * 16, "prompts_digest": "p" * 16}
    return PromptEmbeddings(states, starts, lengths, tokens, width, **{**about, **changes})


def identity(base: BaseModel) -> Identity:
    """What the tiny generators belong to."""
    return Identity(base.name, base.fingerprint, "tests/encoder", "e" * 16)


def tiny_generator(
    kind: str = "factorized", seed: int = 0, warm: bool = True, center: Center = "element"
) -> Generator:
    """A generator for the tiny base model.

    Args:
        kind: of its decoder.
        seed: decides its weights.
        warm: give the heads weights, so that it makes more than the mean adapter.
        center: of its scales.
    """
    base, grid = tiny_base(), tiny_grid()
    settings = hyperconvolutional(grid) if kind == "hyperconvolutional" else FACTORIZED
    decoder = Decoder(settings, grid, CONDITION, seed)
    if warm and kind == "factorized":
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            heads = decoder.get_parameter("network.heads")
            heads.copy_(torch.randn(heads.shape, generator=source))
    adapter = initial_adapter(base, LORA).config
    return Generator(decoder, tiny_scales(center), adapter, identity(base))


class Constant(nn.Module):
    """A decoder that makes its one parameter, whatever the prompts: gradients can be read off it."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.condition = CONDITION
        self.tokens = nn.Parameter(tokens.clone())

    def forward(self, states: Tensor, lengths: Tensor, permutation: Tensor) -> Tensor:
        return self.tokens.expand(len(states), *self.tokens.shape)


def constant_generator(tokens: Tensor) -> Generator:
    """A tiny generator around :class:`Constant`."""
    made = tiny_generator()
    made.decoder = Constant(tokens)  # type: ignore[assignment]
    return made


def questions(count: int = 4, seed: int = 0) -> list[Example]:
    return [
        make_example(f"Which {'very ' * (i % 3)}one is {seed} {i}?", ["red", "a blue one"], i % 2)
        for i in range(count)
    ]


def sequences(count: int = 4, seed: int = 0) -> list[AnswerSequence]:
    """What the sft objective learns from."""
    return answer_sequences(tiny_base(), questions(count, seed), PLAIN, "text")


def tiny_task(name: str = "one", seed: int = 1, **changes: Any) -> TrainingTask:
    """A task with three checkpoints and five prompts, of which the first four may be used."""
    made = checkpoints(3, seed)
    fields: dict[str, Any] = {
        "embeddings": tiny_embeddings(seed=seed),
        "rows": range(4),
        "checkpoints": made.__getitem__,
        "checkpoint_count": 3,
        "sequences": sequences(seed=seed),
    }
    return TrainingTask(name, **{**fields, **changes})


def tiny_training(**changes: Any) -> GeneratorTraining:
    """A few steps of two pairs."""
    settings: dict[str, Any] = {
        "steps": 4,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "sft_examples": 3,
    }
    return GeneratorTraining(**{**settings, **changes})


class Watched:
    """Prompt embeddings that note which rows are read."""

    def __init__(self, embeddings: PromptEmbeddings) -> None:
        self.embeddings = embeddings
        self.asked: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.embeddings, name)

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(indices.tolist())
        return self.embeddings.rows(indices)
