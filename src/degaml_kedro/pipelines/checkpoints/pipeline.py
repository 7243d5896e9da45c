"""The checkpoints pipeline: one training node per meta-train task."""

from __future__ import annotations

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from degaml_kedro.config.schema import ProjectParameters
from degaml_kedro.pipelines.checkpoints.nodes import (
    last_adapter,
    mean_adapter,
    record_drawn_tasks,
    train_on_pool,
    train_trajectory,
)
from degaml_kedro.pipelines.naming import ALONE, PARAMETERS, nodes_in
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
            adapters = [f"{fold.trajectory_of(task)}.final_adapter" for task in fold.tasks]
            make = nodes_in("checkpoints.mean", fold.suffix)
            nodes.append(make(mean_adapter, adapters, fold.name("mean.adapter")))
    return Pipeline(nodes)


def _warmup(parameters: ProjectParameters, fold: TaskFold) -> list[Node]:
    make, run = nodes_in(f"checkpoints.{fold.name('pool')}", fold.suffix), fold.pool
    splits, nodes = [f"{task}.splits" for task in fold.tasks], []
    if parameters.meta_train_distribution is not None:
        splits = []
        nodes.append(make(record_drawn_tasks, PARAMETERS, f"{run}.episodes"))
    inputs = [PARAMETERS, f"{run}.trajectory_resume", *splits]
    return [
        *nodes,
        make(train_on_pool, inputs, f"{run}.trajectory", tags=ALONE, fold=fold),
        make(last_adapter, f"{run}.trajectory", f"{run}.warmup_adapter"),
    ]


def _trajectory(parameters: ProjectParameters, fold: TaskFold, task: str) -> list[Node]:
    make, run = nodes_in(f"checkpoints.{task}", fold.suffix), fold.trajectory_of(task)
    inputs = [PARAMETERS, f"{run}.trajectory_resume", f"{task}.splits"]
    if parameters.trajectory.start == "pooled_warmup":
        inputs.append(f"{fold.pool}.warmup_adapter")
    return [
        make(train_trajectory, inputs, f"{run}.trajectory", task=task),
        make(last_adapter, f"{run}.trajectory", f"{run}.final_adapter"),
    ]
