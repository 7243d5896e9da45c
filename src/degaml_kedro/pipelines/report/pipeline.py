"""The report pipeline: from finished runs on disk to tables, figures, a page and a text."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from degaml_kedro.config.schema import ProjectParameters
from degaml_kedro.pipelines.naming import nodes_in
from degaml_kedro.pipelines.report.nodes import draw_comparison, report_runs


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Compare what is on disk, and report it.

    No parameter is read: what has run is reported, of whatever methods and tasks.
    """
    make = nodes_in("report")
    tables = ["comparison", "contrasts", "reliability_figure", "report_page", "report_text"]
    figures = ["comparison_figure", "accuracy_compute_figure"]
    return Pipeline(
        [make(report_runs, "runs", tables), make(draw_comparison, "comparison", figures)]
    )
