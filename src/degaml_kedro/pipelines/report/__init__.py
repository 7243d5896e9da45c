"""The report: what finished runs amount to, as tables, figures, a page and a text."""

from degaml_kedro.pipelines.report.pipeline import create_pipeline

__all__ = ["create_pipeline"]
