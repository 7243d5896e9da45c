"""Generator: trained on tokens and prompt states, once for all meta-train tasks and once for each group left out."""

from degaml_kedro.pipelines.generator.pipeline import create_pipeline

__all__ = ["create_pipeline"]
