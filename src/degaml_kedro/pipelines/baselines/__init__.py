"""Baselines: meta-training, the search for settings, adapting and answering, for every method to compare with."""

from degaml_kedro.pipelines.baselines.pipeline import create_pipeline

__all__ = ["create_pipeline"]
