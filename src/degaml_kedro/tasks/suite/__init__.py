"""The built-in suite: families of short multiple-choice questions, made from a seed without end."""

from __future__ import annotations

from degaml_kedro.tasks.suite import (
    counting,
    dates,
    elements,
    geography,
    kinds,
    letters,
    stories,
    units,
)
from degaml_kedro.tasks.suite.family import CapacityError, Family

_GROUPS = (
    kinds,
    geography,
    elements,
    counting,
    dates,
    letters,
    units,
    stories,
)

FAMILIES: dict[str, Family] = {
    family.name: family for group in _GROUPS for family in group.FAMILIES
}

__all__ = ["FAMILIES", "CapacityError", "Family"]
