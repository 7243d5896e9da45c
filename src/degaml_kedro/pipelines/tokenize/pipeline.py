"""The tokenize pipeline: two nodes a trajectory, one a fold of trajectories, one a task's prompts."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from degaml_kedro.config.schema import ProjectParameters
from degaml_kedro.pipelines.naming import PARAMETERS, bound
from degaml_kedro.pipelines.task_folds import TaskFold, generator_folds
from degaml_kedro.pipelines.tokenize.nodes import (
    encode_prompts,
    measure_tokens,
    take_scales,
    tokenize_trajectory,
)


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Tokens and scales of every fold of trajectories, and every task's prompt states."""
    if not parameters.needs_generator:
        return Pipeline([])
    nodes = []
    made: set[str] = set()
    for fold in generator_folds(parameters):
        for task in fold.with_trajectory:
            run = fold.trajectory_of(task)
            # trajectories that start from the shared initialization serve every fold
            if run not in made:
                made.add(run)
                nodes += _trajectory(fold, task, run)
        scaled = [fold.trajectory_of(task) for task in fold.tasks]
        nodes.append(
            node(
                take_scales,
                inputs=[
                    PARAMETERS,
                    *(f"{run}.tokens" for run in scaled),
                    *(f"{run}.token_statistics" for run in scaled),
                ],
                outputs=fold.name("token_scales"),
                name=f"take_scales_{fold.label}",
                namespace="tokenize",
            )
        )
    for task in (*parameters.meta_train, *parameters.further_tasks, *parameters.meta_test):
        nodes.append(
            node(
                bound(encode_prompts, task=task),
                inputs=[PARAMETERS, f"{task}.splits"],
                outputs=f"{task}.prompt_embeddings",
                name="encode_prompts",
                namespace=f"tokenize.{task}",
            )
        )
    return Pipeline(nodes)


def _trajectory(fold: TaskFold, task: str, run: str) -> list[Node]:
    return [
        node(
            bound(tokenize_trajectory, task=task),
            inputs=[PARAMETERS, f"{run}.trajectory"],
            outputs=f"{run}.tokens",
            name=f"tokenize_trajectory{fold.suffix}",
            namespace=f"tokenize.{task}",
        ),
        node(
            bound(measure_tokens, task=task),
            inputs=f"{run}.tokens",
            outputs=f"{run}.token_statistics",
            name=f"measure_tokens{fold.suffix}",
            namespace=f"tokenize.{task}",
        ),
    ]
