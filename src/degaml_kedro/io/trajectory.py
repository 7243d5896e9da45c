"""A LoRA run on disk: every kept step's adapter in one safetensors file, and an index beside it.

``trajectory.safetensors`` holds ``step_00001/<PEFT tensor name>`` for every kept step; ``index.json`` says what
each step was: loss, learning rate, seconds, tokens and the checksum of its tensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter, AdapterConfig
from degaml_kedro.common.errors import DegamlError

WEIGHTS_FILE = "trajectory.safetensors"
INDEX_FILE = "index.json"
FORMAT = 1


class TrajectoryError(DegamlError):
    """A trajectory on disk that is not there, not whole, or not what was written."""


@dataclass(frozen=True)
class StepRecord:
    """The record of one optimiser step.

    Attributes:
        step: counted from 1.
        loss: mean loss of the step's batch, before the step.
        learning_rate: of the step.
        seconds: wall time of the step.
        tokens: tokens of its batch.
        sha256: checksum of its stored tensors; None for a step that is not kept.
    """

    step: int
    loss: float
    learning_rate: float
    seconds: float
    tokens: int
    sha256: str | None = None


@dataclass(frozen=True)
class TrajectoryStart:
    """The first thing a training node hands to the dataset.

    Attributes:
        fingerprint: changes with anything that changes the numbers.
        config: the adapter's shape.
        shapes: every tensor's shape by its PEFT name.
        steps: how many steps the run has.
        keep: store every step's tensors, or the last one's only.
        dtype: how tensors are stored.
        about: what a reader may want to know: task, seed, recipe, base model; goes into the index as it is.
        resumed_from: the step this run goes on from; 0 for a fresh one.
    """

    fingerprint: str
    config: AdapterConfig
    shapes: Mapping[str, tuple[int, ...]]
    steps: int
    keep: Literal["all", "last"] = "all"
    dtype: Literal["float32", "bfloat16"] = "float32"
    about: Mapping[str, Any] = field(default_factory=dict)
    resumed_from: int = 0

    @property
    def kept(self) -> tuple[int, ...]:
        """The steps whose tensors are stored."""
        return (self.steps,) if self.keep == "last" else tuple(range(1, self.steps + 1))

    def is_resume_checkpoint(self, step: int) -> bool:
        """Whether a killed run can go on after this step.

        Every step of a run whose steps are all kept; every tenth of one that only its last step counts of: saving
        the optimizer takes a tenth of a small model's step.
        """
        return self.keep == "all" or step % 10 == 0 or step == self.steps


@dataclass(frozen=True)
class TrajectoryStep:
    """One optimiser step, whole: what it was, the adapter after it, and all that going on from it needs.

    ``tensors`` of a step that is not kept and ``state`` of one that is no resume checkpoint may be empty. The tensors
    are written while the next step is computed, so whoever hands them over must not change them.
    """

    record: StepRecord
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class TrajectoryEnd:
    """The last thing a training node hands over: the trajectory is complete.

    Attributes:
        records: all its steps, also those that an earlier run made.
    """

    records: tuple[StepRecord, ...] = ()


@dataclass(frozen=True)
class TrajectoryState:
    """The state on disk when a training node starts.

    Attributes:
        fingerprint: of the run that wrote it.
        complete: nothing is left to do.
        records: the whole steps so far.
        state: what the trainer needs to go on: parameters and moments, float32; empty when complete.
    """

    fingerprint: str
    complete: bool
    records: tuple[StepRecord, ...]
    state: Mapping[str, Tensor] = field(default_factory=dict)


TrajectoryChunk = TrajectoryStart | TrajectoryStep | TrajectoryEnd


class Trajectory:
    """A complete trajectory, read lazily: only the steps that are asked for leave the disk.

    Attributes:
        folder: where it is.
        fingerprint: of the run that wrote it.
        config: the adapters' shape.
        records: every step's record.
        steps: the steps whose tensors are stored.
        about: task, seed, recipe, base model.
    """

    def __init__(self, folder: Path) -> None:
        """Open a trajectory.

        Raises:
            TrajectoryError: it is not there, not complete, or its index cannot be read.
        """
        self.folder = folder
        self._weights = folder / WEIGHTS_FILE
        if not (folder / INDEX_FILE).is_file() or not self._weights.is_file():
            raise TrajectoryError(f"{folder} holds no complete trajectory; {_FIX}")
        index = read_index(folder)
        self.fingerprint: str = index["fingerprint"]
        self.config = AdapterConfig(
            **{**index["adapter"], "target_modules": tuple(index["adapter"]["target_modules"])}
        )
        self.about: dict[str, Any] = index["about"]
        self.records = tuple(StepRecord(**step) for step in index["steps"])
        self.steps: tuple[int, ...] = tuple(index["kept"])
        # opened at the first read and kept: parsing the header of a long trajectory takes a while
        self._file: safe_open | None = None
        self._names: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        """An open file stays in its process."""
        return {**self.__dict__, "_file": None}

    def __len__(self) -> int:
        """How many steps are stored."""
        return len(self.steps)

    def __repr__(self) -> str:
        """Its folder and its length."""
        return f"Trajectory({str(self.folder)!r}, {len(self.records)} steps, {len(self)} kept)"

    @property
    def last(self) -> Adapter:
        """The adapter after the last step."""
        return self.adapter(self.steps[-1])

    def adapter(self, step: int) -> Adapter:
        """The adapter after one step, counted from 1.

        Raises:
            TrajectoryError: the step is not stored, or its tensors are not what was written.
        """
        if step not in self.steps:
            raise TrajectoryError(
                f"step {step} is not stored in {self._weights}; "
                f"it holds {len(self)} step(s), from {self.steps[0]} to {self.steps[-1]}"
            )
        prefix = step_prefix(step)
        try:
            if self._file is None:
                self._file = safe_open(self._weights, framework="pt")
                first = step_prefix(self.steps[0])
                names = self._file.keys()
                self._names = sorted(n.removeprefix(first) for n in names if n.startswith(first))
            tensors = {name: self._file.get_tensor(prefix + name) for name in self._names}
        except (SafetensorError, OSError) as error:
            raise TrajectoryError(
                f"{self._weights} cannot be read at step {step}: {error}. The file is truncated or damaged; "
                f"{_fix(self.folder)}"
            ) from error
        if checksum(tensor_bytes(tensors)) != self.records[step - 1].sha256:
            raise TrajectoryError(
                f"{self._weights}: the tensors of step {step} are not the ones that were written "
                f"(their checksum differs); {_fix(self.folder)}"
            )
        return Adapter(self.config, tensors)


_FIX = (
    "make it with `kedro run --pipelines checkpoints --only-missing-outputs` (a run that was "
    "interrupted goes on where it stopped)"
)


def _fix(folder: Path) -> str:
    return f"delete the folder {folder} and {_FIX}"


def step_prefix(step: int) -> str:
    """The prefix of the names of a step's tensors."""
    return f"step_{step:05d}/"


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A step's tensors as they lie in the file: by name, one after the other."""
    parts = [
        tensors[name].detach().contiguous().reshape(-1).view(torch.uint8)
        for name in sorted(tensors)
    ]
    return torch.cat(parts).cpu().numpy().tobytes()


def checksum(data: bytes) -> str:
    """SHA-256, as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write_index(start: TrajectoryStart, records: Iterable[StepRecord]) -> dict[str, Any]:
    """The content of ``index.json``."""
    return {
        "format": FORMAT,
        "fingerprint": start.fingerprint,
        "adapter": dataclasses.asdict(start.config),
        "dtype": start.dtype,
        "kept": list(start.kept),
        "about": dict(start.about),
        "steps": [dataclasses.asdict(record) for record in records],
    }


def read_index(folder: Path) -> dict[str, Any]:
    """Read ``index.json``.

    Raises:
        TrajectoryError: it is not JSON, or of another format.
    """
    path = folder / INDEX_FILE
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = index["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrajectoryError(f"{path} cannot be read ({error}); {_fix(folder)}") from error
    if found != FORMAT:
        raise TrajectoryError(
            f"{path} has format {found}, this version reads {FORMAT}; {_fix(folder)}"
        )
    return index
