"""Nodes of the tokenize pipeline."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch

from degaml_kedro.adapters.scales import TokenScales, TokenStatistics
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.progress import progress_bar
from degaml_kedro.config.schema import ProjectParameters, required
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.io.tokens import TokenSequence
from degaml_kedro.io.trajectory import Trajectory
from degaml_kedro.llm.prompting import question_text
from degaml_kedro.tasks.splits import frame_to_splits

logger = logging.getLogger(__name__)


class MixedTrajectoriesError(DegamlError):
    """Trajectories that one generator cannot learn from together."""


def tokenize_trajectory(
    parameters: ProjectParameters, trajectory: Trajectory, *, task: str
) -> TokenSequence:
    """A trajectory's checkpoints as tokens; they are cut while they are written."""
    width = required(parameters.generator).tokenization.token_width
    first = trajectory.adapter(trajectory.steps[0])
    shapes = {name: tuple(tensor.shape) for name, tensor in _by_module(first.tensors).items()}
    grid = TokenGrid.from_shapes(shapes, width)
    logger.info("%s: %d checkpoints as %s", task, len(trajectory), grid)
    about = {
        "task": task,
        "base_model": trajectory.about["base_model"],
        "base_model_fingerprint": trajectory.about["base_model_fingerprint"],
        "start": trajectory.about["start"],
        "trajectory": trajectory.fingerprint,
        "adapter": {
            **asdict(trajectory.config),
            "target_modules": list(trajectory.config.target_modules),
        },
    }
    dtype = next(iter(first.tensors.values())).dtype

    def read(index: int) -> torch.Tensor:
        return grid.tokenize(trajectory.adapter(trajectory.steps[index]).tensors)

    return TokenSequence(grid, len(trajectory), dtype, about, read)


def measure_tokens(tokens: TokenSequence, *, task: str) -> TokenStatistics:
    """Mean and spread of the tokens of a trajectory.

    Raises:
        GridError: a checkpoint holds NaN or infinite weights.
    """
    checkpoints = (tokens.read(index) for index in range(len(tokens)))
    return TokenStatistics.of(tokens.grid, checkpoints, f"the trajectory of {task}")


def take_scales(parameters: ProjectParameters, *parts: Any) -> TokenScales:
    """The units of the tokens, over the trajectories that a generator learns from.

    Args:
        parameters: the project's; they say what normalisation subtracts.
        *parts: the tokens of every trajectory (``TokenSequence``), then as many ``TokenStatistics``.

    Raises:
        MixedTrajectoriesError: the trajectories are of different base models or scales.
        GridError: they are of different LoRA shapes.
    """
    half = len(parts) // 2
    tokens, statistics = parts[:half], parts[half:]
    check_alike(tokens)
    center = required(parameters.generator).tokenization.center
    return TokenScales.from_statistics(tokens[0].grid, TokenStatistics.combine(statistics), center)


def check_alike(sequences: Sequence[TokenSequence]) -> None:
    """Refuse trajectories that do not belong together, naming two of them.

    Raises:
        MixedTrajectoriesError: they are of different base models (or tokenizers), or differ in alpha.
        GridError: they are of different LoRA shapes.
    """
    first = sequences[0]
    for other in sequences[1:]:
        names = [f"the trajectory of {part.about['task']}" for part in (first, other)]
        # the fingerprint covers the weights, the configuration and the tokenizer
        if first.about["base_model_fingerprint"] != other.about["base_model_fingerprint"]:
            models = [
                f"{part.about['base_model']} (fingerprint {part.about['base_model_fingerprint']})"
                for part in (first, other)
            ]
            raise MixedTrajectoriesError(
                f"{names[0]} was made with {models[0]}, {names[1]} with {models[1]}: another base model or tokenizer. "
                f"Adapters of different models are no points of one space; make both with one model"
            )
        first.grid.check_same(other.grid, names[0], names[1])
        alphas = [part.about["adapter"]["alpha"] for part in (first, other)]
        if alphas[0] != alphas[1]:
            raise MixedTrajectoriesError(
                f"{names[0]} has lora.alpha {alphas[0]}, {names[1]} has {alphas[1]}; make both with one"
            )


def encode_prompts(
    parameters: ProjectParameters, splits: pd.DataFrame, *, task: str
) -> PromptEmbeddings:
    """States of a task's unlabelled prompts: of its train split, then of its support examples.

    Answers are read with ``generator.condition`` examples alone, validation and test never.
    """
    generator = required(parameters.generator)
    encoder = generator.encoder
    parts = frame_to_splits(splits)
    examples = [*parts.train[: encoder.train_prompts], *parts.support]
    prompts = [question_text(example, encoder.options) for example in examples]
    if generator.condition == "examples":
        prompts = [
            f"{prompt}\n{example.options[example.gold]}"
            for prompt, example in zip(prompts, examples, strict=True)
        ]
    with progress_bar(f"{task}, prompts", "prompt") as progress:
        return load_prompt_encoder(encoder).encode(
            prompts, encoder.tokens, encoder.batch_tokens, progress
        )


def _by_module(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A safetensors file sorts names; modules go as q, k, v, o, gate, up, down, the others behind by name."""
    known = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def place(name: str) -> tuple[int, str]:
        found = next((i for i, module in enumerate(known) if f".{module}." in name), len(known))
        return found, name

    return {name: tensors[name] for name in sorted(tensors, key=place)}
