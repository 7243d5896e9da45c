"""Whether methods are as often right as they are sure."""

from __future__ import annotations

import pandas as pd

from degaml_kedro.results.report.document import Cell, Picture, Section, Table, code, paragraph
from degaml_kedro.results.report.figures import reliability_figure
from degaml_kedro.results.report.findings import Findings
from degaml_kedro.results.report.glossary import SHORT
from degaml_kedro.results.runs import BOUNDS


def calibration(findings: Findings, bins: pd.DataFrame) -> Section:
    """Reliability curves with ECE and likelihood.

    Args:
        findings: the statistics.
        bins: the curves as a table.
    """
    key, title = "reliability", "Reliability"
    pool = "meta_test" if "meta_test" in findings.pools else next(iter(findings.pools), "")
    own = {
        method: found
        for (of_pool, method), found in findings.reliability.items()
        if of_pool == pool and found.n
    }
    if not own:
        return Section(
            key,
            title,
            (
                paragraph(
                    "No answer has a likelihood; the scoring modes ",
                    code("letter"),
                    " and ",
                    code("text"),
                    " give one, ",
                    code("generate"),
                    " gives none.",
                ),
            ),
        )
    cells = findings.cells(pool)
    rows: list[tuple[Cell, ...]] = []
    for method in findings.runs.methods:
        mean, found = cells.get((method, None)), own.get(method)
        rows.append(
            (
                f"{method} (bound)" if method in BOUNDS else method,
                None if found is None or found.ece is None else f"{found.ece:.3f}",
                None if mean is None or mean.ece is None else f"{mean.ece:.3f}",
                None if mean is None or mean.nll is None else f"{mean.nll:.3f}",
                None if found is None else str(found.n),
                None if found is None else str(found.left_out),
            )
        )
    table = Table.of(
        f"Calibration, {SHORT[pool]}",
        ("method", "ECE, all answers", "ECE, mean of tasks", "NLL, mean of tasks", "n", "left out"),
        rows,
        (
            (
                "Lower is better. n: answers of all seeds and draws that have a likelihood; left out: those that have "
                "none. The ECE of all answers is not the mean of the tasks' errors, in which errors of both "
                "directions cannot cancel."
            ),
        ),
        missing="no answer with a likelihood",
    )
    picture = Picture(
        "reliability",
        "How often a method is right when it is so sure: accuracy over confidence in 15 bins. Under the dotted line it "
        "is surer than it should be.",
        reliability_figure(bins, pool),
    )
    return Section(key, title, (picture, table))
