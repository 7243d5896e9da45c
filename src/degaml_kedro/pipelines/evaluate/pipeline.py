"""The evaluate pipeline: one scoring node per task and method."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from degaml_kedro.parameters import ProjectParameters
from degaml_kedro.pipelines.checkpoints.nodes import last_adapter, train_alone
from degaml_kedro.pipelines.checkpoints.pipeline import SETTINGS
from degaml_kedro.pipelines.evaluate.nodes import collect_results, measure_predictions, predict
from degaml_kedro.pipelines.naming import bound


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Score every method on every task, measure, and join."""
    nodes: list[Node] = []
    results: list[str] = []
    for pool in ("meta_train", "meta_test"):
        for task in getattr(parameters, pool):
            for method in parameters.methods:
                adapters, training = _adapter(parameters, task, method, pool)
                nodes += training
                nodes += _scoring(task, method, pool, adapters)
                results.append(f"{task}.{method}.result")
    nodes.append(
        node(
            collect_results,
            inputs=["params:profile", "params:model", "params:seed", "params:methods", *results],
            outputs=["results", "results_record", "results_table"],
            name="collect_results",
            namespace="evaluate",
        )
    )
    return Pipeline(nodes)


def _adapter(
    parameters: ProjectParameters, task: str, method: str, pool: str
) -> tuple[list[str], list[Node]]:
    """The name of a method's adapter, if it has one, and the nodes that make it."""
    if method == "base":
        return [], []
    if method == "pooled":
        return ["pool.warmup_adapter"], []
    if pool == "meta_train" and parameters.trajectory_is_no_meta_train:
        return [f"{task}.final_adapter"], []
    run = f"{task}.{method}"
    training = node(
        bound(train_alone, task=task),
        inputs=[
            *SETTINGS,
            "params:no_meta_train",
            f"params:tasks.{task}",
            "params:seed",
            f"{run}.trajectory_resume",
            f"{task}.splits",
        ],
        outputs=f"{run}.trajectory",
        name="train_alone",
        namespace=f"evaluate.{task}",
    )
    taking = node(
        last_adapter,
        inputs=f"{run}.trajectory",
        outputs=f"{run}.adapter",
        name="last_adapter_alone",
        namespace=f"evaluate.{task}",
    )
    return [f"{run}.adapter"], [training, taking]


def _scoring(task: str, method: str, pool: str, adapters: list[str]) -> list[Node]:
    return [
        node(
            bound(predict, task=task, method=method),
            inputs=[
                "params:model",
                "params:prompt",
                "params:scoring",
                f"params:tasks.{task}",
                f"{task}.splits",
                *adapters,
            ],
            outputs=f"{task}.{method}.predictions",
            name=f"predict_{method}",
            namespace=f"evaluate.{task}",
        ),
        node(
            bound(measure_predictions, task=task, method=method, pool=pool),
            inputs=[f"params:tasks.{task}", f"{task}.{method}.predictions"],
            outputs=f"{task}.{method}.result",
            name=f"measure_{method}",
            namespace=f"evaluate.{task}",
        ),
    ]
