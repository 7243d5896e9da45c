"""The policy pipeline: a node per meta-train task and iteration, and one that learns from them."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from degaml_kedro.parameters import PolicyParameters, ProjectParameters
from degaml_kedro.pipelines.groups import Group, folds, groups
from degaml_kedro.pipelines.naming import ALONE, bound
from degaml_kedro.pipelines.policy.nodes import (
    collect_rollouts,
    draw_policy,
    last_policy,
    learn_fallback,
    learn_tabular,
    roll_out_task,
    train_policy,
)

SETTINGS = (
    "params:model",
    "params:prompt",
    "params:scoring",
    "params:generator",
    "params:policy",
)


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Train a policy on every group that a result needs; nothing where no method has a policy."""
    nodes: dict[str, Node] = {}
    if parameters.policy is None or not parameters.needs_policy:
        return Pipeline([])
    for group in groups(parameters):
        for made in _policy(group, parameters, parameters.policy):
            nodes[made.name] = made
    return Pipeline(list(nodes.values()))


def _policy(group: Group, parameters: ProjectParameters, policy: PolicyParameters) -> list[Node]:
    nodes: list[Node] = []
    start = folds(parameters, group)
    rollouts: list[str] = []
    rolled_out = list(group.tasks)
    before: str | None = None
    for iteration in range(1, policy.iterations + 1):
        tasks = parameters.tasks_of_iteration(iteration) or group.tasks
        rolled_out += [task for task in tasks if task not in rolled_out]
        made = [group.name(f"{task}.iteration_{iteration}.rollouts") for task in tasks]
        for task, own in zip(tasks, made, strict=True):
            nodes.append(
                node(
                    bound(roll_out_task, task=task, iteration=iteration),
                    inputs=[
                        *SETTINGS,
                        f"params:tasks.{task}",
                        "params:seed",
                        f"{own}_resume",
                        start.get(task, group).name(f"{parameters.policy_variant}.generator"),
                        f"{task}.prompt_embeddings",
                        f"{task}.support",
                        f"{task}.validation",
                        *([before] if before else []),
                    ],
                    outputs=own,
                    name=f"roll_out_{iteration}{group.suffix}",
                    namespace=f"policy.iteration_{iteration}.{task}",
                )
            )
        rollouts += made
        learned = rollouts if policy.training.learn_from == "all" else made
        after = group.name(f"policy_{iteration}.adapter")
        nodes.append(
            node(
                bound(train_policy, iteration=iteration),
                inputs=[
                    "params:model",
                    "params:policy",
                    "params:seed",
                    *([before] if before else []),
                    *learned,
                ],
                outputs=[after, group.name(f"policy_{iteration}.record")],
                name=f"train_policy_{iteration}{group.suffix}",
                namespace=f"policy.iteration_{iteration}",
                tags=ALONE,
            )
        )
        before = after
    if parameters.learns_fallback:
        nodes.append(
            node(
                bound(learn_fallback, tasks=tuple(rolled_out)),
                inputs=["params:policy", *(f"{task}.support" for task in rolled_out), *rollouts],
                outputs=group.name("policy_fallback"),
                name=f"learn_fallback{group.suffix}",
                namespace="policy",
            )
        )
    if "tabular_policy" in parameters.methods:
        nodes.append(
            node(
                learn_tabular,
                inputs=["params:policy", *rollouts],
                outputs=group.name("tabular_policy"),
                name=f"learn_tabular{group.suffix}",
                namespace="policy",
            )
        )
    return [
        *nodes,
        node(
            last_policy,
            inputs=before,
            outputs=group.name("policy"),
            name=f"last_policy{group.suffix}",
            namespace="policy",
        ),
        node(
            collect_rollouts,
            inputs=rollouts,
            outputs=group.name("policy_rollouts"),
            name=f"collect_rollouts{group.suffix}",
            namespace="policy",
        ),
        node(
            bound(draw_policy, title=f"Policy{group.title}"),
            inputs=group.name("policy_rollouts"),
            outputs=[group.name(f"policy_{kind}") for kind in ("figure", "page", "table")],
            name=f"draw_policy{group.suffix}",
            namespace="policy",
        ),
    ]
