"""The generator pipeline: one training node per variant and group."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from degaml_kedro.parameters import ProjectParameters
from degaml_kedro.pipelines.generator.nodes import draw_health, read_health, train
from degaml_kedro.pipelines.groups import Group, generator_groups
from degaml_kedro.pipelines.naming import bound


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Train every variant on every group that a result needs."""
    nodes: list[Node] = []
    if not parameters.needs_generator:
        return Pipeline(nodes)
    for group in generator_groups(parameters):
        for variant in (
            parameters.trained_variants if group.scored else (parameters.policy_variant,)
        ):
            nodes += _training(group, variant)
    return Pipeline(nodes)


def _training(group: Group, variant: str) -> list[Node]:
    every = group.with_trajectory
    own = group.name(f"{variant}.generator")
    runs = [group.trajectory_of(task) for task in every]
    return [
        node(
            bound(
                train,
                variant=variant,
                group=group.label,
                names=group.tasks,
                left_out=group.with_trajectory[len(group.tasks) :],
            ),
            inputs=[
                "params:model",
                "params:prompt",
                "params:scoring",
                "params:generator",
                "params:tasks",
                "params:seed",
                f"{own}_resume",
                group.name("token_scales"),
                *(f"{run}.tokens" for run in runs),
                *(f"{task}.prompt_embeddings" for task in every),
                *(f"{task}.splits" for task in every),
            ],
            outputs=own,
            name=f"train_{variant}_{group.label}",
            namespace="generator",
        ),
        node(
            read_health,
            inputs=own,
            outputs=[f"{own}_steps", f"{own}_health"],
            name=f"read_health_{variant}_{group.label}",
            namespace="generator",
        ),
        node(
            bound(draw_health, title=f"Generator {variant}{group.title}"),
            inputs=[f"{own}_steps", f"{own}_health"],
            outputs=[f"{own}_figure", f"{own}_page"],
            name=f"draw_health_{variant}_{group.label}",
            namespace="generator",
        ),
    ]
