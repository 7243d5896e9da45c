"""Tokenize: trajectories as tokens, their statistics and scales, and prompts as states."""

from degaml_kedro.pipelines.tokenize.pipeline import create_pipeline

__all__ = ["create_pipeline"]
