"""The built-in suite: families of questions that name their rule, and the material of drawn tasks."""

from __future__ import annotations

from degaml_kedro.tasks.suite.families import FAMILIES
from degaml_kedro.tasks.suite.family import CapacityError, Family

__all__ = ["FAMILIES", "CapacityError", "Family"]
