"""Writing a trajectory so that it can be killed at any instant and goes on from its last whole step.

While it grows there are two files: ``trajectory.safetensors.partial``, allocated whole at the start, where every
step's tensors go to their place; and ``resume.safetensors``, what training needs to go on. A step is written to
the first, brought to the disk, and then the second is replaced in one rename: **that rename makes the step
whole**. Anything a killed run left behind it is overwritten by the next. At the end the index is written, the
partial file gets its name, and the resume file goes. Where only the last step is kept, every tenth step is a resume
checkpoint.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import struct
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from degaml_kedro.common.atomic import replace_file
from degaml_kedro.common.folders import sync
from degaml_kedro.io.tensors import safetensors_head
from degaml_kedro.io.trajectory import (
    FORMAT,
    INDEX_FILE,
    WEIGHTS_FILE,
    StepRecord,
    TrajectoryError,
    TrajectoryStart,
    TrajectoryState,
    TrajectoryStep,
    checksum,
    read_index,
    step_prefix,
    tensor_bytes,
    write_index,
)

if os.name == "posix":
    import fcntl

PARTIAL_FILE = f"{WEIGHTS_FILE}.partial"
RESUME_FILE = "resume.safetensors"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

logger = logging.getLogger(__name__)


def plan_layout(start: TrajectoryStart) -> tuple[bytes, dict[int, int], int]:
    """Lay a trajectory out: all shapes are known before the first step, so the header is written once.

    Returns:
        The safetensors header with its length, as it stands at the start of the file; where each kept step's tensors
        begin, by step; and the file's length.
    """
    dtype = _DTYPES[start.dtype]
    shapes = sorted(start.shapes.items())
    head = safetensors_head(
        ((step_prefix(step) + name, dtype, shape) for step in start.kept for name, shape in shapes),
        {"format": "pt", "fingerprint": start.fingerprint},
    )
    step_bytes = dtype.itemsize * sum(torch.Size(shape).numel() for _, shape in shapes)
    offsets = {step: len(head) + place * step_bytes for place, step in enumerate(start.kept)}
    return head, offsets, len(head) + step_bytes * len(offsets)


class TrajectoryWriter:
    """Writes one trajectory, step by step. A step reaches the disk while the next one is computed."""

    def __init__(self, folder: Path, start: TrajectoryStart) -> None:
        """Open a trajectory for writing, and make sure that it fits on the disk.

        An earlier trajectory in the folder is replaced unless it is gone on with.

        Raises:
            TrajectoryError: there is no room for it, another process is writing it, or it is to go on from a
                step that is not there.
        """
        self._folder, self._start = folder, start
        self._head, self._offsets, self._total = plan_layout(start)
        self._records: list[StepRecord] = []
        self._pending: Future[StepRecord] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / PARTIAL_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        self._file: BinaryIO = os.fdopen(descriptor, "r+b")
        try:
            self._lock()
            if start.resumed_from:
                self._go_on()
            else:
                self._begin()
        except BaseException:
            self._file.close()
            raise
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trajectory")

    def add(self, step: TrajectoryStep) -> None:
        """Take a step, to be written while the next one is computed.

        Raises:
            TrajectoryError: the step is out of order, or the one before it could not be written.
        """
        self._wait()
        if step.record.step != len(self._records) + 1:
            raise TrajectoryError(
                f"step {step.record.step} of {self._folder} came after step {len(self._records)}; "
                f"steps are written in order"
            )
        self._pending = self._thread.submit(self._commit, step)

    def finish(self) -> None:
        """Give the trajectory its index and its name.

        Raises:
            TrajectoryError: steps are missing, or the last one could not be written.
        """
        self._wait()
        if len(self._records) != self._start.steps:
            raise TrajectoryError(
                f"{self._folder} has {len(self._records)} of {self._start.steps} steps; "
                f"it cannot be finished yet"
            )
        index = json.dumps(write_index(self._start, self._records), indent=1) + "\n"
        replace_file(self._folder / INDEX_FILE, lambda file: file.write(index.encode("utf-8")))
        os.replace(self._folder / PARTIAL_FILE, self._folder / WEIGHTS_FILE)
        sync(self._folder)
        (self._folder / RESUME_FILE).unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the file; what is not whole stays for the next run."""
        self._thread.shutdown(wait=True)
        self._file.close()

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._records.append(pending.result())

    def _lock(self) -> None:
        if os.name != "posix":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrajectoryError(
                f"another process is writing {self._folder}; wait for it to end, or stop it"
            ) from error

    def _begin(self) -> None:
        for name in (RESUME_FILE, INDEX_FILE + ".partial"):
            (self._folder / name).unlink(missing_ok=True)
        try:
            self._file.truncate(0)
            self._allocate()
        except OSError as error:
            (self._folder / PARTIAL_FILE).unlink(missing_ok=True)
            if not any(self._folder.iterdir()):
                self._folder.rmdir()
            raise _explained(error, self._folder, self._needed()) from error
        self._file.seek(0)
        self._file.write(self._head)
        self._sync()
        # only now: an earlier trajectory stays until its successor is sure to have room
        for name in (INDEX_FILE, WEIGHTS_FILE):
            (self._folder / name).unlink(missing_ok=True)
        sync(self._folder)

    def _allocate(self) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, self._total)
        elif shutil.disk_usage(self._folder).free < self._total:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        else:
            self._file.truncate(self._total)
        if shutil.disk_usage(self._folder).free < self._needed() - self._total:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _needed(self) -> int:
        # the resume file: adapter and two moments in float32, and for an instant its successor beside it
        weights = sum(torch.Size(shape).numel() for shape in self._start.shapes.values())
        return self._total + 2 * 3 * 4 * weights

    def _go_on(self) -> None:
        state = read_state(self._folder)
        if (
            state is None
            or state.complete
            or state.fingerprint != self._start.fingerprint
            or len(state.records) != self._start.resumed_from
        ):
            raise TrajectoryError(
                f"{self._folder} was to go on from step {self._start.resumed_from}, but another process has "
                f"changed it meanwhile; run the same command again"
            )
        self._records = list(state.records)

    def _commit(self, step: TrajectoryStep) -> StepRecord:
        record = step.record
        try:
            if record.step in self._offsets:
                dtype = _DTYPES[self._start.dtype]
                data = tensor_bytes({name: t.to(dtype) for name, t in step.tensors.items()})
                record = replace(record, sha256=checksum(data))
                self._file.seek(self._offsets[record.step])
                self._file.write(data)
                self._sync()
            if not self._start.is_resume_checkpoint(record.step):
                return record
            index = write_index(self._start, [*self._records, record])
            resume = save(dict(step.state), metadata={"index": json.dumps(index)})
            replace_file(self._folder / RESUME_FILE, lambda file: file.write(resume))
        except OSError as error:
            raise _explained(error, self._folder, self._needed()) from error
        return record

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def read_state(folder: Path) -> TrajectoryState | None:
    """The state that a run left in a folder: a complete trajectory, whole steps to go on from, or nothing.

    Steps that are not what was written are no steps: whoever asks starts over, which costs time and nothing else.
    """
    if (folder / INDEX_FILE).is_file() and (folder / WEIGHTS_FILE).is_file():
        try:
            index = read_index(folder)
            with safe_open(folder / WEIGHTS_FILE, framework="pt"):
                pass
            records = tuple(StepRecord(**step) for step in index["steps"])
        except (TrajectoryError, SafetensorError, OSError) as error:
            logger.warning(
                "The trajectory in %s cannot be read and is made again: %s", folder, error
            )
            return None
        return TrajectoryState(index["fingerprint"], True, records)
    if not (folder / RESUME_FILE).is_file():
        return None
    try:
        with safe_open(folder / RESUME_FILE, framework="pt") as file:
            index = json.loads(file.metadata()["index"])
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        if index["format"] != FORMAT:
            raise TrajectoryError(f"its format is {index['format']}, not {FORMAT}")
        records = tuple(StepRecord(**step) for step in index["steps"])
        _compare_partial(folder / PARTIAL_FILE, records)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, struct.error) as error:
        logger.warning(
            "The unfinished trajectory in %s cannot be gone on with and is started over: %s",
            folder,
            error,
        )
        return None
    return TrajectoryState(index["fingerprint"], False, records, tensors)


def remove_leftovers(folder: Path) -> None:
    """Remove what a run that was killed beside a complete trajectory left."""
    if (folder / INDEX_FILE).is_file() and (folder / WEIGHTS_FILE).is_file():
        for name in (RESUME_FILE, PARTIAL_FILE):
            (folder / name).unlink(missing_ok=True)


def _compare_partial(path: Path, records: tuple[StepRecord, ...]) -> None:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header.pop("__metadata__")
        for record in records:
            if record.sha256 is None:
                continue
            prefix = step_prefix(record.step)
            spans = [
                entry["data_offsets"] for name, entry in header.items() if name.startswith(prefix)
            ]
            begin, end = min(span[0] for span in spans), max(span[1] for span in spans)
            file.seek(8 + length + begin)
            if checksum(file.read(end - begin)) != record.sha256:
                raise TrajectoryError(f"{path}: step {record.step} is not what was written")


def _explained(error: OSError, folder: Path, needed: int) -> TrajectoryError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return TrajectoryError(f"{folder} cannot be written: {error}")
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    return TrajectoryError(
        f"no room for the trajectory in {folder}: it needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; "
        f"make room, point 'data' in conf/local/globals.yml at another disk, or set trajectory.store_dtype to "
        f"bfloat16"
    )
