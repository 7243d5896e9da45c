"""The costs of methods, added up from the records of their trainings and trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from degaml_kedro.baselines.compute import Compute
from degaml_kedro.baselines.learned import Learned
from degaml_kedro.io.trajectory import Trajectory


def compute_record(method: str, stage: str, task: str | None, compute: Compute) -> dict[str, Any]:
    """A method's cost as it is stored.

    ``stage`` is ``meta_training``, ``search`` or ``adaptation``; ``task`` is None for what serves all tasks.
    """
    return {
        "method": method,
        "stage": stage,
        "task": task,
        "forward_tokens": compute.forward_tokens,
        "backward_tokens": compute.backward_tokens,
        "tokens": compute.forward_tokens + compute.backward_tokens,
        "seconds": compute.seconds,
    }


def trajectory_compute(trajectory: Trajectory) -> Compute:
    """The cost of a fine-tuning run: every token goes forward and back once."""
    tokens = sum(record.tokens for record in trajectory.records)
    return Compute(tokens, tokens, sum(record.seconds for record in trajectory.records))


def count_training(*parts: Any, method: str, stage: str, task: str | None = None) -> dict[str, Any]:
    """The sum of the costs of trajectories, generators' steps, trials, searches, what was learned, and cost records.

    A generator's steps put their tokens through the base model forward and back once, and have none where it is
    trained on adapters alone.
    """
    return compute_record(method, stage, task, sum(map(_cost, parts), Compute()))


def _cost(part: Learned | Trajectory | Mapping[str, Any] | pd.DataFrame) -> Compute:
    if isinstance(part, Learned):
        return part.compute
    if isinstance(part, Trajectory):
        return trajectory_compute(part)
    if isinstance(part, Mapping):
        return Compute(part["forward_tokens"], part["backward_tokens"], part["seconds"])
    seconds = sum(float(part[n].sum()) for n in ("seconds", "overhead_seconds") if n in part)
    if "forward_tokens" not in part:
        tokens = int(part["tokens"].sum())
        return Compute(tokens, tokens, seconds)
    return Compute(int(part["forward_tokens"].sum()), int(part["backward_tokens"].sum()), seconds)
