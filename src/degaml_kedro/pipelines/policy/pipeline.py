"""The policy pipeline: a node per meta-train task and iteration, and one that learns from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from degaml_kedro.config.schema import PolicyParameters, ProjectParameters
from degaml_kedro.pipelines.naming import ALONE, PARAMETERS, bound
from degaml_kedro.pipelines.policy.nodes import (
    collect_rollouts,
    draw_policy,
    last_policy,
    learn_fallback,
    learn_tabular,
    roll_out_task,
    train_policy,
)
from degaml_kedro.pipelines.task_folds import (
    TaskFold,
    rollout_folds,
    task_folds,
    writer_input,
)


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Train a policy on every fold that a result needs; nothing where no method has a policy."""
    if parameters.policy is None or not parameters.needs_policy:
        return Pipeline([])
    policy, folds = parameters.policy, task_folds(parameters)
    nodes = {one.name: one for fold in folds for one in _policy(fold, parameters, policy)}
    return Pipeline(list(nodes.values()))


def _policy(fold: TaskFold, parameters: ProjectParameters, policy: PolicyParameters) -> list[Node]:
    nodes: list[Node] = []
    generator = f"{parameters.policy_variant}.generator"
    start = rollout_folds(parameters, fold)
    rollouts: list[str] = []
    rolled_out = list(fold.tasks)
    before: str | None = None
    for iteration in range(1, policy.iterations + 1):
        tasks = parameters.tasks_of_iteration(iteration) or fold.tasks
        rolled_out += [task for task in tasks if task not in rolled_out]
        made = [fold.name(f"{task}.iteration_{iteration}.rollouts") for task in tasks]
        for task, own in zip(tasks, made, strict=True):
            nodes.append(
                node(
                    bound(roll_out_task, task=task, iteration=iteration),
                    inputs={
                        "parameters": PARAMETERS,
                        "resume": f"{own}_resume",
                        "trained": start.get(task, fold).name(generator),
                        "embeddings": f"{task}.prompt_embeddings",
                        "support": f"{task}.support",
                        "validation": f"{task}.validation",
                        **({"adapter": before} if before else {}),
                        **writer_input(parameters, start.get(task, fold)),
                    },
                    outputs=own,
                    name=f"roll_out_{iteration}{fold.suffix}",
                    namespace=f"policy.iteration_{iteration}.{task}",
                )
            )
        rollouts += made
        learned = rollouts if policy.training.learn_from == "all" else made
        after = fold.name(f"policy_{iteration}.adapter")
        nodes.append(
            node(
                bound(train_policy, *([] if before else [None]), iteration=iteration),
                inputs=[*([before] if before else []), PARAMETERS, *learned],
                outputs=[after, fold.name(f"policy_{iteration}.record")],
                name=f"train_policy_{iteration}{fold.suffix}",
                namespace=f"policy.iteration_{iteration}",
                tags=ALONE,
            )
        )
        before = after

    def last(function: Callable[..., Any], inputs: Any, *outputs: str) -> None:
        """A node behind all iterations, named after its function."""
        given = [fold.name(output) for output in outputs]
        made = given if len(given) > 1 else given[0]
        name = f"{function.__name__}{fold.suffix}"
        nodes.append(node(function, inputs=inputs, outputs=made, name=name, namespace="policy"))

    if parameters.learns_fallback:
        support = [f"{task}.support" for task in rolled_out]
        learning = bound(learn_fallback, tasks=tuple(rolled_out))
        last(learning, [PARAMETERS, *support, *rollouts], "policy_fallback")
    if parameters.has_method(lambda row: row.proposer == "tabular_policy"):
        last(learn_tabular, [PARAMETERS, *rollouts], "tabular_policy")
    last(last_policy, before, "policy")
    last(collect_rollouts, rollouts, "policy_rollouts")
    drawing = bound(draw_policy, title=f"Policy{fold.title}")
    last(drawing, fold.name("policy_rollouts"), "policy_figure", "policy_page", "policy_table")
    return nodes
