"""The built-in suite: families of questions that name their rule, and the material of drawn tasks."""

from __future__ import annotations

from degaml_kedro.tasks.suite.families import FAMILIES

__all__ = ["FAMILIES"]
