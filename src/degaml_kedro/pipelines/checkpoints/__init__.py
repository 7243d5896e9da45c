"""Checkpoints: one LoRA run per meta-train task, every step kept."""

from degaml_kedro.pipelines.checkpoints.pipeline import create_pipeline

__all__ = ["create_pipeline"]
