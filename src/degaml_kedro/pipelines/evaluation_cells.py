"""The cells of the results table: a task in a pool, whichever pipeline makes its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kedro.pipeline.node import Node

from degaml_kedro.config.methods import method_of
from degaml_kedro.config.schema import BASELINES, SUMMED, ProjectParameters
from degaml_kedro.pipelines.evaluate.nodes import measure_predictions
from degaml_kedro.pipelines.naming import PARAMETERS, nodes_in
from degaml_kedro.pipelines.task_folds import TaskFold, task_folds


def is_meta_trained(method: str) -> bool:
    """Whether a fold's tasks have a part in a method, which is then another one in every fold."""
    row = method_of(method)
    return row is None or row.meta_trained


@dataclass(frozen=True)
class EvaluationCell:
    """A task in a part of the results table: in a pool, and in a fold, whose generator, warm-up and mean serve it."""

    task: str
    pool: Literal["meta_train", "left_out", "meta_test"]
    fold: TaskFold

    def name(self, method: str, dataset: str) -> str:
        """A dataset of a method here."""
        own = f"{self.task}.{method}.{dataset}"
        # what no fold had a part in is the same in all of them
        return self.fold.name(own) if is_meta_trained(method) else own


def evaluation_cells(parameters: ProjectParameters) -> list[EvaluationCell]:
    """Every task in every part of the table that it has results in."""
    everything, *others = task_folds(parameters)
    found = [EvaluationCell(task, "meta_train", everything) for task in parameters.meta_train]
    found += [EvaluationCell(task, "left_out", fold) for fold in others for task in fold.left_out]
    return found + [EvaluationCell(task, "meta_test", everything) for task in parameters.meta_test]


def baseline_cells(parameters: ProjectParameters) -> list[EvaluationCell]:
    """The cells that have results of the baselines: all; those of tasks that they learned from only if asked for."""
    seen = parameters.baselines is not None and parameters.baselines.score_seen
    return [cell for cell in evaluation_cells(parameters) if seen or cell.pool != "meta_train"]


def measuring(cell: EvaluationCell, method: str, predictions: str, result: str) -> Node:
    """The node that measures a method's answers."""
    stage = "baselines" if method in (*BASELINES, *SUMMED) else "evaluate"
    return nodes_in(f"{stage}.{cell.task}", cell.fold.suffix)(
        measure_predictions,
        [PARAMETERS, f"{cell.task}.splits", predictions],
        result,
        f"measure_{method}",
        task=cell.task,
        method=method,
        pool=cell.pool,
        seen=cell.task in cell.fold.tasks if is_meta_trained(method) else None,
    )
