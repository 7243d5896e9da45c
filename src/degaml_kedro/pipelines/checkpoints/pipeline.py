"""The checkpoints pipeline: one training node per meta-train task."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from degaml_kedro.parameters import ProjectParameters
from degaml_kedro.pipelines.checkpoints.nodes import (
    last_adapter,
    train_on_pool,
    train_trajectory,
)
from degaml_kedro.pipelines.naming import bound

SETTINGS = ("params:model", "params:prompt", "params:scoring", "params:lora")


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """The pooled warm-up where something starts from it or is measured against it, and the trajectories."""
    nodes = []
    from_pool = parameters.trajectory.start == "pooled_warmup"
    if parameters.needs_warmup:
        nodes += [
            node(
                train_on_pool,
                inputs=[
                    *SETTINGS,
                    "params:warmup",
                    "params:tasks",
                    "params:meta_train",
                    "params:seed",
                    "pool.trajectory_resume",
                    *(f"{task}.splits" for task in parameters.meta_train),
                ],
                outputs="pool.trajectory",
                name="train_on_pool",
                namespace="checkpoints.pool",
            ),
            node(
                last_adapter,
                inputs="pool.trajectory",
                outputs="pool.warmup_adapter",
                name="last_adapter",
                namespace="checkpoints.pool",
            ),
        ]
    for task in parameters.meta_train:
        nodes += [
            node(
                bound(train_trajectory, task=task),
                inputs=[
                    *SETTINGS,
                    "params:trajectory",
                    f"params:tasks.{task}",
                    "params:seed",
                    f"{task}.trajectory_resume",
                    f"{task}.splits",
                    *(["pool.warmup_adapter"] if from_pool else []),
                ],
                outputs=f"{task}.trajectory",
                name="train_trajectory",
                namespace=f"checkpoints.{task}",
            ),
            node(
                last_adapter,
                inputs=f"{task}.trajectory",
                outputs=f"{task}.final_adapter",
                name="last_adapter",
                namespace=f"checkpoints.{task}",
            ),
        ]
    return Pipeline(nodes)
