"""The tasks pipeline: a few nodes a task."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from degaml_kedro.config.schema import ProjectParameters
from degaml_kedro.pipelines.naming import PARAMETERS, bound
from degaml_kedro.pipelines.tasks.nodes import (
    deal_splits,
    describe_run,
    read_source,
    take_split,
)


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Read and split every task that is in a pool."""
    nodes = [
        node(
            describe_run,
            inputs=PARAMETERS,
            outputs="run_record",
            name="describe_run",
            namespace="tasks",
        )
    ]
    for task in (
        *parameters.meta_train,
        *parameters.further_tasks,
        *parameters.development,
        *parameters.meta_test,
    ):
        nodes += [
            node(
                bound(read_source, task=task),
                inputs=PARAMETERS,
                outputs=f"{task}.examples",
                name="read_source",
                namespace=f"tasks.{task}",
            ),
            node(
                bound(deal_splits, task=task),
                inputs=[PARAMETERS, f"{task}.examples"],
                outputs=f"{task}.splits",
                name="deal_splits",
                namespace=f"tasks.{task}",
            ),
        ]
        if parameters.needs_support:
            # who adapts to a task or chooses strategies for it is given these alone
            nodes += [
                node(
                    bound(take_split, split=split),
                    inputs=f"{task}.splits",
                    outputs=f"{task}.{split}",
                    name=f"take_{split}",
                    namespace=f"tasks.{task}",
                )
                for split in ("support", "validation")
            ]
    return Pipeline(nodes)
