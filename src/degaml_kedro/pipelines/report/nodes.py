"""Nodes of the report pipeline."""

from __future__ import annotations

import logging
from typing import Any

import pandas as pd

from degaml_kedro.results.figures import (
    accuracy_compute_figure,
    comparison_figure,
    reliability_figure,
)
from degaml_kedro.results.report import write
from degaml_kedro.results.runs import Runs
from degaml_kedro.results.statistics import find

logger = logging.getLogger(__name__)


def report_runs(runs: Runs) -> tuple[pd.DataFrame, pd.DataFrame, Any, str, str]:
    """The statistics as tables, and what is written of them: one node, since they are worked out once.

    Returns:
        A row a pool, task and method with accuracy, interval, calibration and, in the rows of the mean over tasks,
        costs; a row a contrast of DeGAML against another method; reliability curves on held-out tasks, a panel a
        method; the report as an HTML page that opens from disk, and as Markdown.

    Raises:
        ResultsError: two methods answered different questions of a task in one run.
    """
    findings = find(runs)
    page, text = write(findings)
    logger.info(
        "The report of %d run(s): a page of %.1f MB, and %d lines of Markdown",
        len(runs.runs),
        len(page.encode()) / 1e6,
        text.count("\n"),
    )
    curves = reliability_figure(findings.bins)
    return findings.comparison, findings.differences(), curves, page, text


def draw_comparison(comparison: pd.DataFrame) -> tuple[Any, Any]:
    """Accuracy by task, and accuracy against compute, on held-out tasks."""
    return comparison_figure(comparison), accuracy_compute_figure(comparison)
