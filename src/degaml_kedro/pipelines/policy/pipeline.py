"""The policy pipeline: a node per meta-train task and iteration, and one that learns from them."""

from __future__ import annotations

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
    nodes: dict[str, Node] = {}
    if parameters.policy is None or not parameters.needs_policy:
        return Pipeline([])
    for fold in task_folds(parameters):
        for made in _policy(fold, parameters, parameters.policy):
            nodes[made.name] = made
    return Pipeline(list(nodes.values()))


def _policy(fold: TaskFold, parameters: ProjectParameters, policy: PolicyParameters) -> list[Node]:
    nodes: list[Node] = []
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
                        "trained": start.get(task, fold).name(
                            f"{parameters.policy_variant}.generator"
                        ),
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
    if parameters.learns_fallback:
        nodes.append(
            node(
                bound(learn_fallback, tasks=tuple(rolled_out)),
                inputs=[PARAMETERS, *(f"{task}.support" for task in rolled_out), *rollouts],
                outputs=fold.name("policy_fallback"),
                name=f"learn_fallback{fold.suffix}",
                namespace="policy",
            )
        )
    if parameters.has_method(lambda row: row.proposer == "tabular_policy"):
        nodes.append(
            node(
                learn_tabular,
                inputs=[PARAMETERS, *rollouts],
                outputs=fold.name("tabular_policy"),
                name=f"learn_tabular{fold.suffix}",
                namespace="policy",
            )
        )
    return [
        *nodes,
        node(
            last_policy,
            inputs=before,
            outputs=fold.name("policy"),
            name=f"last_policy{fold.suffix}",
            namespace="policy",
        ),
        node(
            collect_rollouts,
            inputs=rollouts,
            outputs=fold.name("policy_rollouts"),
            name=f"collect_rollouts{fold.suffix}",
            namespace="policy",
        ),
        node(
            bound(draw_policy, title=f"Policy{fold.title}"),
            inputs=fold.name("policy_rollouts"),
            outputs=[fold.name(f"policy_{kind}") for kind in ("figure", "page", "table")],
            name=f"draw_policy{fold.suffix}",
            namespace="policy",
        ),
    ]
