"""What methods cost, counted from what their trainings and trials recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from degaml_kedro.baselines.compute import Compute
from degaml_kedro.io.trajectory import Trajectory


def compute_record(
    method: str, stage: str, task: str | None, compute: Compute, tokens: int | None = None
) -> dict[str, Any]:
    """A cost as it is stored.

    Args:
        method: whose.
        stage: ``meta_training``, ``search`` or ``adaptation``.
        task: whose adaptation; None for what serves all tasks.
        compute: the cost.
        tokens: forward and backward together, where only their sum is known: then neither is told apart.
    """
    known = tokens is None
    return {
        "method": method,
        "stage": stage,
        "task": task,
        "forward_tokens": compute.forward_tokens if known else None,
        "backward_tokens": compute.backward_tokens if known else None,
        "tokens": compute.forward_tokens + compute.backward_tokens if known else tokens,
        "seconds": compute.seconds,
    }


def trajectory_compute(trajectory: Trajectory) -> Compute:
    """What a fine-tuning run cost: every token goes forward and back once."""
    tokens = sum(record.tokens for record in trajectory.records)
    return Compute(tokens, tokens, sum(record.seconds for record in trajectory.records))


def count_training(*parts: Any, method: str, stage: str, task: str | None = None) -> dict[str, Any]:
    """A cost put together from what was recorded.

    Args:
        *parts: trajectories; tables of a generator's steps, which cost seconds and, trained on tokens, no token of the
            base model; tables of trials, and records of a policy's training, which know the sum of both directions.
        method: whose cost.
        stage: ``meta_training`` or ``adaptation``.
        task: whose adaptation.

    Returns:
        Forward and backward tokens are told apart only where every part does.
    """
    total, sums, apart = Compute(), 0, True
    for part in parts:
        if isinstance(part, Trajectory):
            total = total + trajectory_compute(part)
        elif isinstance(part, Mapping):
            if "backward_tokens" in part and part["backward_tokens"] is not None:
                own = Compute(part["forward_tokens"], part["backward_tokens"], part["seconds"])
                total = total + own
                continue
            sums, apart = sums + int(part["tokens"]), False
            total = total + Compute(seconds=float(part["seconds"]))
        else:
            frame: pd.DataFrame = part
            if "tokens" in frame:
                sums, apart = sums + int(frame["tokens"].sum()), False
            total = total + Compute(seconds=float(frame["seconds"].sum()))
    known = total.forward_tokens + total.backward_tokens
    return compute_record(method, stage, task, total, None if apart else known + sums)
