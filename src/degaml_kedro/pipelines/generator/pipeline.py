"""The generator pipeline: one training node per variant and fold."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from degaml_kedro.parameters import ProjectParameters
from degaml_kedro.pipelines.generator.nodes import draw_health, read_health, train
from degaml_kedro.pipelines.naming import PARAMETERS, bound
from degaml_kedro.pipelines.task_folds import TaskFold, generator_folds


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Train every variant on every fold that a result needs."""
    nodes: list[Node] = []
    if not parameters.needs_generator:
        return Pipeline(nodes)
    for fold in generator_folds(parameters):
        for variant in parameters.trained_variants if fold.scored else (parameters.policy_variant,):
            nodes += _training(fold, variant)
    return Pipeline(nodes)


def _training(fold: TaskFold, variant: str) -> list[Node]:
    every = fold.with_trajectory
    own = fold.name(f"{variant}.generator")
    runs = [fold.trajectory_of(task) for task in every]
    return [
        node(
            bound(train, variant=variant, fold=fold),
            inputs=[
                PARAMETERS,
                f"{own}_resume",
                fold.name("token_scales"),
                *(f"{run}.tokens" for run in runs),
                *(f"{task}.prompt_embeddings" for task in every),
                *(f"{task}.splits" for task in every),
            ],
            outputs=own,
            name=f"train_{variant}_{fold.label}",
            namespace="generator",
        ),
        node(
            read_health,
            inputs=own,
            outputs=[f"{own}_steps", f"{own}_health"],
            name=f"read_health_{variant}_{fold.label}",
            namespace="generator",
        ),
        node(
            bound(draw_health, title=f"Generator {variant}{fold.title}"),
            inputs=[f"{own}_steps", f"{own}_health"],
            outputs=[f"{own}_figure", f"{own}_page"],
            name=f"draw_health_{variant}_{fold.label}",
            namespace="generator",
        ),
    ]
