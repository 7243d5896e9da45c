"""The checkpoints pipeline: one training node per meta-train task."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from degaml_kedro.parameters import ProjectParameters
from degaml_kedro.pipelines.checkpoints.nodes import (
    last_adapter,
    mean_adapter,
    record_drawn_tasks,
    train_on_drawn_tasks,
    train_on_pool,
    train_trajectory,
)
from degaml_kedro.pipelines.groups import Group, generator_groups, warmup_groups
from degaml_kedro.pipelines.naming import ALONE, bound

SETTINGS = ("params:model", "params:prompt", "params:scoring", "params:lora")


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Pooled warm-ups where something starts from them or is measured against them, and the trajectories."""
    nodes: list[Node] = []
    if parameters.needs_warmup:
        for group in warmup_groups(parameters):
            nodes += _warmup(parameters, group)
    for group in generator_groups(parameters):
        if not group.left_out or group.own_start:
            for task in group.with_trajectory:
                nodes += _trajectory(parameters, group, task)
        if "mean_adapter" in parameters.methods and group.scored:
            nodes.append(
                node(
                    mean_adapter,
                    inputs=[f"{group.trajectory_of(task)}.final_adapter" for task in group.tasks],
                    outputs=group.name("mean.adapter"),
                    name=f"mean_adapter{group.suffix}",
                    namespace="checkpoints.mean",
                )
            )
    return Pipeline(nodes)


def _warmup(parameters: ProjectParameters, group: Group) -> list[Node]:
    namespace = f"checkpoints.{group.name('pool')}"
    drawn_from = parameters.meta_train_distribution
    if drawn_from is None:
        train = bound(train_on_pool, group=group.label)
        material = [f"params:tasks.{task}" for task in group.tasks[:1]]
        splits = [f"{task}.splits" for task in group.tasks]
    else:
        train = train_on_drawn_tasks
        material, splits = [f"params:distributions.{drawn_from}"], []
    recording = [
        node(
            record_drawn_tasks,
            inputs=["params:warmup", *material, "params:seed"],
            outputs=f"{group.pool}.episodes",
            name=f"record_drawn_tasks{group.suffix}",
            namespace=namespace,
        )
    ]
    return [
        *(recording if drawn_from else []),
        node(
            train,
            inputs=[
                *SETTINGS,
                "params:warmup",
                *material,
                "params:seed",
                f"{group.pool}.trajectory_resume",
                *splits,
            ],
            outputs=f"{group.pool}.trajectory",
            name=f"train_on_pool{group.suffix}",
            namespace=namespace,
            tags=ALONE,
        ),
        node(
            last_adapter,
            inputs=f"{group.pool}.trajectory",
            outputs=f"{group.pool}.warmup_adapter",
            name=f"last_adapter{group.suffix}",
            namespace=namespace,
        ),
    ]


def _trajectory(parameters: ProjectParameters, group: Group, task: str) -> list[Node]:
    from_pool = parameters.trajectory.start == "pooled_warmup"
    run = group.trajectory_of(task)
    return [
        node(
            bound(train_trajectory, task=task),
            inputs=[
                *SETTINGS,
                "params:trajectory",
                f"params:tasks.{task}",
                "params:seed",
                f"{run}.trajectory_resume",
                f"{task}.splits",
                *([f"{group.pool}.warmup_adapter"] if from_pool else []),
            ],
            outputs=f"{run}.trajectory",
            name=f"train_trajectory{group.suffix}",
            namespace=f"checkpoints.{task}",
        ),
        node(
            last_adapter,
            inputs=f"{run}.trajectory",
            outputs=f"{run}.final_adapter",
            name=f"last_adapter{group.suffix}",
            namespace=f"checkpoints.{task}",
        ),
    ]
