"""Kedro datasets for what this project makes: adapters, adapted states and trajectories."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from kedro.io import DatasetError

from degaml_kedro.adapters.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    load_peft_folder,
    save_peft_folder,
)
from degaml_kedro.io.local import LocalDataset, ReadOnlyDataset
from degaml_kedro.io.trajectory import (
    INDEX_FILE,
    Trajectory,
    TrajectoryChunk,
    TrajectoryStart,
    TrajectoryState,
    TrajectoryStep,
)
from degaml_kedro.io.trajectory import WEIGHTS_FILE as TRAJECTORY_FILE
from degaml_kedro.io.trajectory_writer import (
    RESUME_FILE,
    TrajectoryWriter,
    read_state,
    remove_leftovers,
)
from degaml_kedro.strategies.state import STATE_FILE, AdaptedState, load_state, save_state


class AdapterDataset(LocalDataset[Adapter, Adapter]):
    """A LoRA adapter as a PEFT folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Example catalog entry:
        ``"{task}.final_adapter": {type: degaml_kedro.io.datasets.AdapterDataset, filepath: data/06_models/{task}}``
    """

    files = (CONFIG_FILE, WEIGHTS_FILE)

    def _read(self) -> Adapter:
        """Read the adapter."""
        return load_peft_folder(self._path)

    def _write(self, data: Adapter) -> None:
        """Write the adapter, whole or not at all."""
        save_peft_folder(data, self._path)


class AdaptedStateDataset(LocalDataset[AdaptedState, AdaptedState]):
    """An adapted state: a PEFT folder a member, ``state.json`` and, where there are any, its tensors."""

    files = (STATE_FILE,)

    def _read(self) -> AdaptedState:
        """Read the state.

        Raises:
            StateError: a file is missing, damaged or of another format.
        """
        return load_state(self._path)

    def _write(self, data: AdaptedState) -> None:
        """Write the state, whole or not at all."""
        save_state(data, self._path)


class TrajectoryDataset(LocalDataset[TrajectoryChunk, Trajectory]):
    """The checkpoints of one LoRA run, written by a generator node step by step, read lazily.

    The node yields a ``TrajectoryStart``, a ``TrajectoryStep`` per step and a ``TrajectoryEnd``; Kedro saves each
    as it comes. The dataset exists once the last of them is on the disk.
    """

    files = (INDEX_FILE, TRAJECTORY_FILE)
    leftover = f"/{RESUME_FILE}"

    def __init__(
        self, *, filepath: str | os.PathLike[str], metadata: dict[str, Any] | None = None
    ) -> None:
        """Point at a folder."""
        super().__init__(filepath=filepath, metadata=metadata)
        self._writer: TrajectoryWriter | None = None

    def __getstate__(self) -> dict[str, Any]:
        """An open file stays in its process."""
        return {**self.__dict__, "_writer": None}

    def _read(self) -> Trajectory:
        """Open the trajectory."""
        return Trajectory(self._path)

    def _write(self, data: TrajectoryChunk) -> None:
        """Take the next piece."""
        if isinstance(data, TrajectoryStart):
            self._close()
            self._writer = TrajectoryWriter(self._path, data)
        elif isinstance(data, TrajectoryStep):
            if self._writer is None:
                raise DatasetError(
                    f"a step of {self._path} came before its TrajectoryStart; yield that first"
                )
            self._writer.add(data)
        elif self._writer is not None:
            self._writer.finish()
            self._writer = None
        else:
            # nothing was trained: the trajectory was complete already
            remove_leftovers(self._path)

    def _release(self) -> None:
        self._close()
        super()._release()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class TrajectoryResumeDataset(ReadOnlyDataset[TrajectoryState | None]):
    """The resume checkpoint that an earlier run left of a trajectory, for the training node."""

    def _read(self) -> TrajectoryState | None:
        """The state; None where there is nothing to go on from."""
        return read_state(self._path)

    def _is_whole(self, has: Callable[[str], bool]) -> bool:
        return has(f"/{RESUME_FILE}") or has(f"/{INDEX_FILE}")
