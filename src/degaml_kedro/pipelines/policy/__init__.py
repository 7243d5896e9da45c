"""The policy: rollouts on the meta-train tasks, and learning from those that were rewarded."""

from degaml_kedro.pipelines.policy.pipeline import create_pipeline

__all__ = ["create_pipeline"]
