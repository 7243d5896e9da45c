"""The tasks pipeline: a few nodes a task."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from degaml_kedro.parameters import ProjectParameters
from degaml_kedro.pipelines.naming import bound
from degaml_kedro.pipelines.tasks.nodes import (
    deal_splits,
    describe_run,
    read_source,
    take_split,
)


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Read and split every task that is in a pool."""
    # bound, not an input: where a runner starts processes anew, kedro-mlflow's own hook refuses inputs as long as these
    given = parameters.model_dump(mode="json", exclude_unset=True)
    nodes = [
        node(
            bound(describe_run, parameters=given),
            inputs=None,
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
        settings = [f"params:tasks.{task}", "params:splits", "params:seed"]
        nodes += [
            node(
                bound(read_source, task=task),
                inputs=settings,
                outputs=f"{task}.examples",
                name="read_source",
                namespace=f"tasks.{task}",
            ),
            node(
                bound(deal_splits, task=task),
                inputs=[*settings, f"{task}.examples"],
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
