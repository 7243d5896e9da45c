"""The checkpoints pipeline: one training node per meta-train task."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from degaml_kedro.config.schema import ProjectParameters
from degaml_kedro.pipelines.checkpoints.nodes import (
    last_adapter,
    mean_adapter,
    record_drawn_tasks,
    train_on_drawn_tasks,
    train_on_pool,
    train_trajectory,
)
from degaml_kedro.pipelines.naming import ALONE, PARAMETERS, bound
from degaml_kedro.pipelines.task_folds import TaskFold, generator_folds, warmup_folds


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Pooled warm-ups where something starts from them or is measured against them, and the trajectories."""
    nodes: list[Node] = []
    if parameters.needs_warmup:
        for fold in warmup_folds(parameters):
            nodes += _warmup(parameters, fold)
    for fold in generator_folds(parameters):
        if not fold.left_out or fold.own_start:
            for task in fold.with_trajectory:
                nodes += _trajectory(parameters, fold, task)
        if fold.scored and parameters.has_method(lambda row: row.adapter == "mean.adapter"):
            nodes.append(
                node(
                    mean_adapter,
                    inputs=[f"{fold.trajectory_of(task)}.final_adapter" for task in fold.tasks],
                    outputs=fold.name("mean.adapter"),
                    name=f"mean_adapter{fold.suffix}",
                    namespace="checkpoints.mean",
                )
            )
    return Pipeline(nodes)


def _warmup(parameters: ProjectParameters, fold: TaskFold) -> list[Node]:
    namespace = f"checkpoints.{fold.name('pool')}"
    drawn_from = parameters.meta_train_distribution
    nodes = []
    if drawn_from is None:
        train, splits = bound(train_on_pool, fold=fold), [f"{task}.splits" for task in fold.tasks]
    else:
        train, splits = bound(train_on_drawn_tasks, distribution=drawn_from), []
        nodes.append(
            node(
                bound(record_drawn_tasks, distribution=drawn_from),
                inputs=PARAMETERS,
                outputs=f"{fold.pool}.episodes",
                name=f"record_drawn_tasks{fold.suffix}",
                namespace=namespace,
            )
        )
    training = node(
        train,
        inputs=[PARAMETERS, f"{fold.pool}.trajectory_resume", *splits],
        outputs=f"{fold.pool}.trajectory",
        name=f"train_on_pool{fold.suffix}",
        namespace=namespace,
        tags=ALONE,
    )
    return [*nodes, training, _last(fold.pool, "warmup_adapter", fold, namespace)]


def _trajectory(parameters: ProjectParameters, fold: TaskFold, task: str) -> list[Node]:
    from_pool = parameters.trajectory.start == "pooled_warmup"
    run = fold.trajectory_of(task)
    training = node(
        bound(train_trajectory, task=task),
        inputs=[
            PARAMETERS,
            f"{run}.trajectory_resume",
            f"{task}.splits",
            *([f"{fold.pool}.warmup_adapter"] if from_pool else []),
        ],
        outputs=f"{run}.trajectory",
        name=f"train_trajectory{fold.suffix}",
        namespace=f"checkpoints.{task}",
    )
    return [training, _last(run, "final_adapter", fold, f"checkpoints.{task}")]


def _last(run: str, adapter: str, fold: TaskFold, namespace: str) -> Node:
    return node(
        last_adapter,
        inputs=f"{run}.trajectory",
        outputs=f"{run}.{adapter}",
        name=f"last_adapter{fold.suffix}",
        namespace=namespace,
    )
