"""The generator pipeline: one training node per variant and fold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from degaml_kedro.config.schema import ProjectParameters, required
from degaml_kedro.pipelines.generator.nodes import (
    draw_health,
    read_health,
    train,
    train_on_examples,
)
from degaml_kedro.pipelines.naming import PARAMETERS, nodes_in
from degaml_kedro.pipelines.task_folds import TaskFold, generator_folds


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Train every variant on every fold that a result needs."""
    nodes: list[Node] = []
    if not parameters.needs_generator:
        return Pipeline(nodes)
    for fold in generator_folds(parameters):
        # a fold that is not scored serves rollouts alone
        own = (parameters.policy_variant, parameters.writer_variant)
        for variant in parameters.trained_variants:
            if not fold.scored and variant not in own:
                continue
            nodes += _training(parameters, fold, variant)
    return Pipeline(nodes)


def _training(parameters: ProjectParameters, fold: TaskFold, variant: str) -> list[Node]:
    every = fold.with_trajectory
    own = fold.name(f"{variant}.generator")
    learning: Callable[..., Any] = train_on_examples
    made: list[str] = []
    if required(parameters.generator).variants[variant].condition == "prompts":
        learning = train
        made = [
            fold.name("token_scales"),
            *(f"{fold.trajectory_of(task)}.tokens" for task in every),
            *(f"{task}.prompt_embeddings" for task in every),
        ]
    make = nodes_in("generator", f"_{variant}_{fold.label}")
    health = [f"{own}_steps", f"{own}_health"]
    inputs = [PARAMETERS, f"{own}_resume", *made, *(f"{task}.splits" for task in every)]
    title = f"Generator {variant}{fold.title}"
    return [
        make(learning, inputs, own, "train", variant=variant, fold=fold),
        make(read_health, own, health),
        make(draw_health, health, [f"{own}_figure", f"{own}_page"], title=title),
    ]
