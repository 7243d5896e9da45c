"""The cells of the results table: a task in a pool, whichever pipeline makes its answers."""

from __future__ import annotations

from dataclasses import dataclass

from kedro.pipeline import node
from kedro.pipeline.node import Node

from degaml_kedro.parameters import BASELINES, SUMMED, ProjectParameters
from degaml_kedro.pipelines.evaluate.nodes import measure_predictions
from degaml_kedro.pipelines.naming import PARAMETERS, bound
from degaml_kedro.pipelines.task_folds import TaskFold, task_folds


@dataclass(frozen=True)
class EvaluationCell:
    """A task in a part of the results table.

    Attributes:
        task: its name.
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
        fold: whose generator, pool and mean serve it.
    """

    task: str
    pool: str
    fold: TaskFold

    def name(self, method: str, dataset: str) -> str:
        """A dataset of a method here."""
        own = f"{self.task}.{method}.{dataset}"
        # what no fold had a part in is the same in all of them
        return own if method in ("base", "no_meta_train") else self.fold.name(own)


def evaluation_cells(parameters: ProjectParameters) -> list[EvaluationCell]:
    """Every task in every part of the table that it has results in."""
    everything, *others = task_folds(parameters)
    found = [EvaluationCell(task, "meta_train", everything) for task in parameters.meta_train]
    found += [EvaluationCell(task, "left_out", fold) for fold in others for task in fold.left_out]
    return found + [EvaluationCell(task, "meta_test", everything) for task in parameters.meta_test]


def measuring(cell: EvaluationCell, method: str, predictions: str, result: str) -> Node:
    """The node that measures a method's answers."""
    return node(
        bound(measure_predictions, task=cell.task, method=method, pool=cell.pool),
        inputs=[PARAMETERS, f"{cell.task}.splits", predictions],
        outputs=result,
        name=f"measure_{method}{cell.fold.suffix}",
        namespace=f"{'baselines' if method in (*BASELINES, *SUMMED) else 'evaluate'}.{cell.task}",
    )
