"""Tasks: where their examples come from, and how they are split."""

from degaml_kedro.pipelines.tasks.pipeline import create_pipeline

__all__ = ["create_pipeline"]
