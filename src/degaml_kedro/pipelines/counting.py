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
        *parts: trajectories; tables of a generator's steps, whose tokens go through the base model forward and back
            once, and which have none where it is trained on adapters alone; tables of trials; records of a policy's
            training, or of work that was metered. Trials and records of older runs know the sum of both directions
            alone, and such trials nothing of what was computed between them.
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
            own, rest = _trials(part) if "rollout" in part else (_generator_steps(part), None)
            total = total + own
            if rest is not None:
                sums, apart = sums + rest, False
    known = total.forward_tokens + total.backward_tokens
    return compute_record(method, stage, task, total, None if apart else known + sums)


def _generator_steps(frame: pd.DataFrame) -> Compute:
    # tables of older runs have no tokens, or none in their first steps
    tokens = int(frame["tokens"].fillna(0).sum()) if "tokens" in frame else 0
    return Compute(tokens, tokens, float(frame["seconds"].sum()))


def _trials(frame: pd.DataFrame) -> tuple[Compute, int | None]:
    """What trials cost, and the tokens besides of those that know no direction; None where all do."""
    columns = frame.reindex(columns=["forward_tokens", "backward_tokens", "overhead_seconds"])
    known = columns[["forward_tokens", "backward_tokens"]].notna().all(axis=1)
    apart = columns[known]
    own = Compute(
        int(apart["forward_tokens"].sum()),
        int(apart["backward_tokens"].sum()),
        float(frame["seconds"].sum()) + float(columns["overhead_seconds"].fillna(0.0).sum()),
    )
    return own, None if known.all() else int(frame["tokens"][~known].sum())
