"""Where results are measured: a task in a part of the results table, whichever pipeline makes its answers."""

from __future__ import annotations

from dataclasses import dataclass

from kedro.pipeline import node
from kedro.pipeline.node import Node

from degaml_kedro.parameters import BASELINES, SUMMED, ProjectParameters
from degaml_kedro.pipelines.evaluate.nodes import measure_predictions
from degaml_kedro.pipelines.groups import Group, groups
from degaml_kedro.pipelines.naming import bound


@dataclass(frozen=True)
class EvaluationCell:
    """A task in a part of the results table.

    Attributes:
        task: its name.
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
        group: whose generator, pool and mean serve it.
    """

    task: str
    pool: str
    group: Group

    def name(self, method: str, dataset: str) -> str:
        """A dataset of a method here."""
        own = f"{self.task}.{method}.{dataset}"
        # what no group had a part in is the same in all of them
        return own if method in ("base", "no_meta_train") else self.group.name(own)


def evaluation_cells(parameters: ProjectParameters) -> list[EvaluationCell]:
    """Every task in every part of the table that it has results in."""
    everything, *folds = groups(parameters)
    found = [EvaluationCell(task, "meta_train", everything) for task in parameters.meta_train]
    found += [EvaluationCell(task, "left_out", fold) for fold in folds for task in fold.left_out]
    return found + [EvaluationCell(task, "meta_test", everything) for task in parameters.meta_test]


def measuring(cell: EvaluationCell, method: str, predictions: str, result: str) -> Node:
    """The node that measures a method's answers.

    Args:
        cell: whose answers.
        method: which method's.
        predictions: the dataset they are in.
        result: the dataset for what they amount to.
    """
    return node(
        bound(measure_predictions, task=cell.task, method=method, pool=cell.pool),
        inputs=[
            f"params:tasks.{cell.task}",
            "params:profile",
            "params:model",
            "params:seed",
            f"{cell.task}.splits",
            predictions,
        ],
        outputs=result,
        name=f"measure_{method}{cell.group.suffix}",
        namespace=f"{'baselines' if method in (*BASELINES, *SUMMED) else 'evaluate'}.{cell.task}",
    )
