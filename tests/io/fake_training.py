"""A trainer that is no trainer, and a way to be killed at any system call of its writing."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import torch

from degaml_kedro.adapters.adapter import AdapterConfig
from degaml_kedro.io.datasets import TrajectoryDataset, TrajectoryResumeDataset
from degaml_kedro.io.trajectory import (
    StepRecord,
    TrajectoryChunk,
    TrajectoryEnd,
    TrajectoryStart,
    TrajectoryState,
    TrajectoryStep,
)

CONFIG = AdapterConfig(2, 4.0, ("q_proj",), "random")
SHAPES = {
    "base_model.model.a.0.q_proj.lora_A.weight": (2, 5),
    "base_model.model.a.0.q_proj.lora_B.weight": (3, 2),
}
STEPS = 4


def advance(parameters: torch.Tensor, step: int) -> torch.Tensor:
    """One step: depends on the state before it, so a wrong resume shows."""
    return torch.sin(parameters * 1.7 + step)


def split(parameters: torch.Tensor) -> dict[str, torch.Tensor]:
    """The flat parameters as named tensors."""
    parts = parameters.split([10, 6])
    return {
        name: part.view(shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
    }


def train(
    resume: TrajectoryState | None,
    fingerprint: str = "one",
    steps: int = STEPS,
    keep: str = "all",
    dtype: str = "float32",
) -> Iterator[TrajectoryChunk]:
    """What a training node yields."""
    if resume is not None and resume.fingerprint != fingerprint:
        resume = None
    if resume is not None and resume.complete:
        yield TrajectoryEnd(resume.records)
        return
    done = len(resume.records) if resume else 0
    parameters = resume.state["parameters"] if resume else torch.full((16,), 0.5)
    yield TrajectoryStart(
        fingerprint, CONFIG, SHAPES, steps, keep, dtype, {"name": "fake"}, resumed_from=done
    )
    for step in range(done + 1, steps + 1):
        parameters = advance(parameters, step)
        record = StepRecord(step, 1.0 / step, 1e-3, 0.25, 40)
        yield TrajectoryStep(record, split(parameters), {"parameters": parameters})
    yield TrajectoryEnd()


def run(folder: Path, **options: object) -> None:
    """What Kedro does with the node."""
    dataset = TrajectoryDataset(filepath=folder)
    for chunk in train(TrajectoryResumeDataset(filepath=folder).load(), **options):
        dataset.save(chunk)


CALLS = ("replace", "fsync", "unlink", "open", "posix_fallocate")


def die_at(call: int, torn: bool) -> None:
    """Kill this process before (or, torn, within) its ``call``-th call that touches the disk."""
    count = 0

    def watched(name: str):
        original = getattr(os, name)

        def wrapper(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count == call:
                if torn and name == "fsync" and stat.S_ISREG(os.fstat(args[0]).st_mode):
                    # some of what was written last never came to the disk
                    size = os.fstat(args[0]).st_size
                    os.pwrite(args[0], b"\xff" * min(40, size), max(0, size - 60))
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return wrapper

    for name in CALLS:
        setattr(os, name, watched(name))
