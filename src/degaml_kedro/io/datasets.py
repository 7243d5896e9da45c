"""Kedro datasets for what this project makes: adapters and trajectories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError

from degaml_kedro.adapters.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    load_peft_folder,
    save_peft_folder,
)
from degaml_kedro.io import trajectory as files
from degaml_kedro.io.trajectory import (
    Trajectory,
    TrajectoryChunk,
    TrajectoryStart,
    TrajectoryState,
    TrajectoryStep,
)
from degaml_kedro.io.trajectory_writer import TrajectoryWriter, read_state, remove_leftovers


class AdapterDataset(AbstractDataset[Adapter, Adapter]):
    """A LoRA adapter as a PEFT folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Example catalog entry:
        ``"{task}.final_adapter": {type: degaml_kedro.io.datasets.AdapterDataset, filepath: data/06_models/{task}}``
    """

    def __init__(
        self, *, filepath: str | os.PathLike[str], metadata: dict[str, Any] | None = None
    ) -> None:
        """Point at a folder.

        Args:
            filepath: the PEFT folder.
            metadata: for plugins such as Kedro-Viz.
        """
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> Adapter:
        """Read the adapter."""
        return load_peft_folder(self._folder)

    def save(self, data: Adapter) -> None:
        """Write the adapter, whole or not at all."""
        save_peft_folder(data, self._folder)

    def _exists(self) -> bool:
        return all((self._folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}


class TrajectoryDataset(AbstractDataset[TrajectoryChunk, Trajectory]):
    """The checkpoints of one LoRA run, written by a generator node step by step, read lazily.

    The node yields a ``TrajectoryStart``, a ``TrajectoryStep`` per step and a ``TrajectoryEnd``; Kedro saves each
    as it comes. The dataset exists once the last of them is on the disk.
    """

    def __init__(
        self,
        *,
        filepath: str | os.PathLike[str],
        verify: bool = True,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Point at a folder.

        Args:
            filepath: the trajectory's folder.
            verify: compare a step's checksum when it is read.
            metadata: for plugins such as Kedro-Viz.
        """
        self._folder = Path(filepath)
        self._verify = verify
        self.metadata = metadata
        self._writer: TrajectoryWriter | None = None

    def __getstate__(self) -> dict[str, Any]:
        """An open file stays in its process."""
        return {**self.__dict__, "_writer": None}

    def load(self) -> Trajectory:
        """Open the trajectory."""
        return Trajectory(self._folder, self._verify)

    def save(self, data: TrajectoryChunk) -> None:
        """Take the next piece."""
        if isinstance(data, TrajectoryStart):
            self._close()
            self._writer = TrajectoryWriter(self._folder, data)
        elif isinstance(data, TrajectoryStep):
            if self._writer is None:
                raise DatasetError(
                    f"a step of {self._folder} came before its TrajectoryStart; yield that first"
                )
            self._writer.add(data)
        elif self._writer is not None:
            self._writer.finish()
            self._writer = None
        else:
            # nothing was trained: the trajectory was complete already
            remove_leftovers(self._folder)

    def _exists(self) -> bool:
        return all((self._folder / n).is_file() for n in (files.INDEX_FILE, files.WEIGHTS_FILE))

    def _release(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder), "verify": self._verify}


class TrajectoryResumeDataset(AbstractDataset[None, TrajectoryState | None]):
    """What an earlier run left of a trajectory: the training node's way to go on. Read-only."""

    def __init__(
        self, *, filepath: str | os.PathLike[str], metadata: dict[str, Any] | None = None
    ) -> None:
        """Point at a folder.

        Args:
            filepath: the trajectory's folder.
            metadata: for plugins such as Kedro-Viz.
        """
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> TrajectoryState | None:
        """What is there; None for nothing to go on from."""
        return read_state(self._folder)

    def save(self, data: None) -> None:
        """Not possible: the trajectory's own dataset writes it.

        Raises:
            DatasetError: always.
        """
        raise DatasetError(
            f"{self._folder} is written through the trajectory's dataset; save there"
        )

    def _exists(self) -> bool:
        return self._folder.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}
