"""A generator's folder as a Kedro dataset, written once at the end, with a resume checkpoint while it trains."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedro.io import DatasetError

from degaml_kedro.common.atomic import is_main_process
from degaml_kedro.generator.examples import (
    ExampleGenerator,
    load_example_generator,
    reads_examples,
    save_example_generator,
)
from degaml_kedro.generator.generator import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Generator,
    load_generator,
    save_generator,
)
from degaml_kedro.generator.training import TrainingState
from degaml_kedro.io.local import LocalDataset, ReadOnlyDataset
from degaml_kedro.io.tensors import read_described, write_described

_WAIT_SECONDS = 600.0
# behind the name of the folder that a generator's training will end in
_RESUME = ".resume.safetensors"

AnyGenerator = Generator | ExampleGenerator


@dataclass(frozen=True, eq=False)
class GeneratorProgress:
    """A resume checkpoint of a generator's training.

    Attributes:
        fingerprint: of the run.
        state: parameters, moments, and how far it is.
        records: the steps so far.
        checks: the health checks so far.
    """

    fingerprint: str
    state: TrainingState
    records: Sequence[Mapping[str, Any]]
    checks: Sequence[Mapping[str, Any]]


class GeneratorDataset(LocalDataset[AnyGenerator | GeneratorProgress, AnyGenerator]):
    """A trained generator. The node yields a ``GeneratorProgress`` now and then, and the ``Generator`` at the end."""

    files = (CONFIG_FILE, WEIGHTS_FILE)
    leftover = _RESUME

    def _read(self) -> AnyGenerator:
        """Read the generator."""
        return _read(self._path)

    def _write(self, data: AnyGenerator | GeneratorProgress) -> None:
        """Write a resume checkpoint or the generator; of several processes only the first one writes."""
        if isinstance(data, GeneratorProgress):
            if is_main_process():
                _write_progress(data, _resume_file(self._path))
            return
        if is_main_process():
            if isinstance(data, ExampleGenerator):
                save_example_generator(data, self._path)
            else:
                save_generator(data, self._path)
            _resume_file(self._path).unlink(missing_ok=True)
        else:
            self._wait_for(data.fingerprint)

    def _release(self) -> None:
        super()._release()
        _LAST.clear()

    def _wait_for(self, fingerprint: str) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < deadline:
            if self._exists() and self.load().fingerprint == fingerprint:
                return
            time.sleep(0.5)
        raise DatasetError(
            f"{self._path} was not written by the first process within {_WAIT_SECONDS:.0f} s"
        )


class GeneratorResumeDataset(ReadOnlyDataset[AnyGenerator | GeneratorProgress | None]):
    """The resume checkpoint or the generator that an earlier run left, for the training node."""

    def _read(self) -> AnyGenerator | GeneratorProgress | None:
        """A resume checkpoint, else a finished generator, else None."""
        progress = _read_progress(_resume_file(self._path))
        if progress is None and self._is_here(f"/{CONFIG_FILE}"):
            return _read(self._path)
        return progress

    def _is_whole(self, has: Callable[[str], bool]) -> bool:
        return has(_RESUME) or has(f"/{CONFIG_FILE}")


# the last one that this process read: nodes in a row mostly use the same one, on the device that the first moved it to
_LAST: dict[tuple[Any, ...], AnyGenerator] = {}
_READING = threading.Lock()


def _read(folder: Path) -> AnyGenerator:
    """The generator of a folder, whatever it reads."""
    with _READING:
        stats = [
            (folder / name).stat() for name in GeneratorDataset.files if (folder / name).is_file()
        ]
        key = (folder.absolute(), *((one.st_ino, one.st_size, one.st_mtime_ns) for one in stats))
        if key not in _LAST:
            _LAST.clear()
            read = load_example_generator if reads_examples(folder) else load_generator
            _LAST[key] = read(folder)
        return _LAST[key]


def _resume_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_RESUME}")


def _write_progress(progress: GeneratorProgress, path: Path) -> None:
    about = {
        "fingerprint": progress.fingerprint,
        "step": progress.state.step,
        "records": list(progress.records),
        "checks": list(progress.checks),
    }
    write_described(path, progress.state.tensors, about)


def _read_progress(path: Path) -> GeneratorProgress | None:
    if not path.is_file():
        return None
    tensors, about = read_described(path)
    state = TrainingState(about["step"], tensors)
    return GeneratorProgress(about["fingerprint"], state, about["records"], about["checks"])
