"""The tasks pipeline: a few nodes a task."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from degaml_kedro.config.schema import ProjectParameters
from degaml_kedro.pipelines.naming import PARAMETERS, nodes_in
from degaml_kedro.pipelines.tasks.nodes import deal_splits, describe_run, read_source, take_split


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Read and split every task that is in a pool."""
    nodes = [nodes_in("tasks")(describe_run, PARAMETERS, "run_record")]
    for task in (
        *parameters.meta_train,
        *parameters.further_tasks,
        *parameters.development,
        *parameters.meta_test,
    ):
        make = nodes_in(f"tasks.{task}")
        nodes += [
            make(read_source, PARAMETERS, f"{task}.examples", task=task),
            make(deal_splits, [PARAMETERS, f"{task}.examples"], f"{task}.splits", task=task),
        ]
        if parameters.needs_support:
            # who adapts to a task or chooses strategies for it is given these alone
            nodes += [
                make(take_split, f"{task}.splits", f"{task}.{own}", f"take_{own}", split=own)
                for own in ("support", "validation")
            ]
    return Pipeline(nodes)
