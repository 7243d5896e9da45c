"""The report pipeline: from finished runs on disk to tables, figures, a page and a text."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from degaml_kedro.config.schema import ProjectParameters
from degaml_kedro.pipelines.report.nodes import draw_comparison, report_runs


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Compare what is on disk, and report it.

    No parameter is read: what has run is reported, of whatever methods and tasks.
    """
    return Pipeline(
        [
            node(
                report_runs,
                inputs="runs",
                outputs=[
                    "comparison",
                    "contrasts",
                    "reliability_figure",
                    "report_page",
                    "report_text",
                ],
                name="report_runs",
                namespace="report",
            ),
            node(
                draw_comparison,
                inputs="comparison",
                outputs=["comparison_figure", "accuracy_compute_figure"],
                name="draw_comparison",
                namespace="report",
            ),
        ]
    )
