"""What each method cost, and what for."""

from __future__ import annotations

import pandas as pd

from degaml_kedro.results.comparison import Cost
from degaml_kedro.results.paper import AVERAGE
from degaml_kedro.results.report.document import Cell, Picture, Section, Table, code, paragraph
from degaml_kedro.results.report.figures import accuracy_compute_figure, in_short
from degaml_kedro.results.report.findings import YARDSTICK, Findings
from degaml_kedro.results.report.glossary import SHORT
from degaml_kedro.results.report.words import listed, percent, seconds
from degaml_kedro.results.runs import BOUNDS


def compute(findings: Findings, frame: pd.DataFrame) -> Section:
    """Accuracy against what it cost.

    Args:
        findings: the statistics.
        frame: the same as a table.
    """
    key, title = "compute", "Accuracy against compute"
    pool = "meta_test" if "meta_test" in findings.pools else next(iter(findings.pools), "")
    found = findings.costs.get(pool, [])
    if findings.runs.compute().empty or not found:
        return Section(
            key,
            title,
            (
                paragraph(
                    "No compute was counted; runs of this version count it (",
                    code("*.compute.json"),
                    "), and ",
                    code("kedro run"),
                    " makes them.",
                ),
            ),
        )
    rows: list[tuple[Cell, ...]] = []
    for cost in found:
        mean = findings.cells(pool).get((cost.method, None))
        accuracy = None if mean is None or mean.accuracy is None else percent(mean.accuracy)
        name = f"{cost.method} (bound)" if cost.bound else cost.method
        rows.append(
            (
                name,
                accuracy,
                *_cost(cost.adaptation),
                None if cost.answer_seconds is None else seconds(cost.answer_seconds),
                *_cost(cost.search)[2:],
                *_cost(cost.meta_training)[2:],
            )
        )
    table = Table.of(
        f"Accuracy and what it took, {SHORT[pool]}",
        (
            "method",
            f"accuracy, {AVERAGE}",
            "adaptation: forward tokens",
            "backward tokens",
            "tokens",
            "time",
            "an answer: time",
            "search: tokens",
            "time",
            "meta-training: tokens",
            "time",
        ),
        rows,
        (
            (
                "Accuracy in percent. Adaptation: for one task, mean over tasks and seeds, scoring of test questions "
                "left out. Tokens go through the base model: forward and backward where it does not say which. A "
                "generator's own work is in its time alone."
            ),
        ),
        missing="not counted (of tokens maybe only the sum), or no accuracy on all tasks",
    )
    picture = Picture(
        "accuracy-compute",
        "Mean accuracy over adaptation tokens for a task, meta-training tokens, adaptation seconds for a task and "
        f"seconds an answer, with 95 % intervals. Higher and further to the left is better. {_beside(findings, pool)}"
        "The numbers are in the table below.",
        accuracy_compute_figure(frame, pool),
    )
    return Section(key, title, (picture, table))


def _beside(findings: Findings, pool: str) -> str:
    """Where logistic regression on sentence embeddings is better than every method that asks the language model."""
    cells = findings.cells(pool)
    if ("sentence_head", None) not in cells:
        return ""
    won = []
    for place in findings.tasks(pool):
        found = {m: row.accuracy for (m, task), row in cells.items() if task == place}
        own = found.pop("sentence_head", None)
        others = [
            accuracy
            for method, accuracy in found.items()
            if accuracy is not None and method not in (*BOUNDS, YARDSTICK)
        ]
        if own is not None and others and own > max(others):
            won.append(place)
    if not won:
        return "sentence_head, which does not ask the language model, is above all others nowhere. "
    return f"sentence_head, which does not ask the language model, is above all others on {listed(won)}. "


def _cost(cost: Cost | None) -> tuple[Cell, Cell, Cell, Cell]:
    if cost is None:
        return (None, None, None, None)
    forward, backward = (
        None if value is None else in_short(value)
        for value in (cost.forward_tokens, cost.backward_tokens)
    )
    return (forward, backward, in_short(cost.tokens), seconds(cost.seconds))
