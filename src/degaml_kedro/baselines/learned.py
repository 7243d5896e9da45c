"""The weights of a method: over all meta-train tasks, or for one task from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines.compute import Compute
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.tasks.example import Example


class BaselineError(DegamlError):
    """A baseline that cannot be meta-trained or adapted."""


@dataclass(frozen=True)
class TaskExamples:
    """A meta-train task as the meta-learners see it: they draw support and query from its train split."""

    name: str
    examples: Sequence[Example]
    instruction: str = ""


@dataclass(frozen=True)
class Learned:
    """A method's weights, after meta-training or after adapting to a task.

    Attributes:
        adapter: its LoRA weights; the mean where it learns a distribution.
        extra: what it needs besides, float32: an optimiser's moments, the scales of a distribution.
        records: one row a step of its training: ``step``, ``loss`` and what else the method measures.
        about: settings and anything else worth knowing, as JSON can hold it.
    """

    method: str
    adapter: Adapter
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()
    compute: Compute = field(default_factory=Compute)
    about: Mapping[str, Any] = field(default_factory=dict)
