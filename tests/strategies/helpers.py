"""A tiny model with adapters that do something, and questions to ask it."""

from __future__ import annotations

import torch

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.config.schema import (
    BaseModelParameters,
    LoraParameters,
    PromptParameters,
    RandomModel,
    ScoringParameters,
)
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.finetune import initial_adapter
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.state import AdaptedState, Member
from degaml_kedro.tasks.example import Example, make_example

PLAIN = PromptParameters(format="plain", options="hidden")
TEXT = ScoringParameters(mode="text")


def tiny_base() -> BaseModel:
    return load_base_model(
        BaseModelParameters(source=RandomModel(kind="random"), dtype="float32", device="cpu")
    )


def adapter(seed: int, rank: int = 4, scale: float = 0.3) -> Adapter:
    start = initial_adapter(tiny_base(), LoraParameters(rank=rank, alpha=2 * rank))
    source = torch.Generator().manual_seed(seed)
    return Adapter(
        start.config,
        {k: torch.randn(v.shape, generator=source) * scale for k, v in start.tensors.items()},
    )


def examples(count: int = 6) -> tuple[Example, ...]:
    return tuple(
        make_example(
            f"How much is {i} and {i + 1}{'?' * (i % 3)}",
            [str(2 * i), str(2 * i + 1), "no"],
            gold=1,
        )
        for i in range(count)
    )


def draw(seed: int, number: int) -> Member:
    source = torch.Generator().manual_seed(seed % 1000 + number)
    prompts = torch.nn.functional.normalize(torch.randn(3, 5, generator=source), dim=-1)
    return Member(adapter(seed % 1000 + 7 * number), prompts)


def embed(questions) -> torch.Tensor:
    source = torch.Generator().manual_seed(len(questions))
    return torch.nn.functional.normalize(torch.randn(len(questions), 5, generator=source), dim=-1)


def make_context(**changes) -> Context:
    return Context(
        **{
            "base": tiny_base(),
            "prompt": PLAIN,
            "scoring": TEXT,
            "draw": draw,
            "embed": embed,
            **changes,
        }
    )


def state(members: int = 1, **changes) -> AdaptedState:
    return AdaptedState(tuple(draw(0, number) for number in range(members)), **changes)
