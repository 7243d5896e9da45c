"""The report pipeline: from finished runs on disk to tables, figures, a page and a text."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from degaml_kedro.parameters import ProjectParameters
from degaml_kedro.pipelines.report.nodes import (
    compare_runs,
    draw_comparison,
    draw_reliability,
    write_report,
)


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Compare what is on disk, and report it.

    Args:
        parameters: not read: what is reported is what has run, of whatever methods and tasks.
    """
    return Pipeline(
        [
            node(
                compare_runs,
                inputs="runs",
                outputs=["comparison", "contrasts"],
                name="compare_runs",
                namespace="report",
            ),
            node(
                draw_comparison,
                inputs="comparison",
                outputs=["comparison_figure", "accuracy_compute_figure"],
                name="draw_comparison",
                namespace="report",
            ),
            node(
                draw_reliability,
                inputs="runs",
                outputs="reliability_figure",
                name="draw_reliability",
                namespace="report",
            ),
            node(
                write_report,
                inputs="runs",
                outputs=["report_page", "report_text"],
                name="write_report",
                namespace="report",
            ),
        ]
    )
