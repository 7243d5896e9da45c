"""Evaluation: every method on every task's test split, and the results in one table."""

from degaml_kedro.pipelines.evaluate.pipeline import create_pipeline

__all__ = ["create_pipeline"]
