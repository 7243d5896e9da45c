"""Files that are either the old one or the whole new one, never a part."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
from kedro.io import DatasetError
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import ParquetDataset
from kedro_datasets.plotly import JSONDataset as PlotlyDataset
from kedro_datasets.text import TextDataset

from degaml_kedro.common.errors import DegamlError


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name, bring it to the disk, then rename it.

    Args:
        path: the file; an earlier one stays until the rename.
        write: is given the open temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # fixed names: what a killed run left behind is overwritten by the next. Where a launcher started several
    # processes, each has one of its own, since all of them may write the file
    own = "" if is_main_process() else f".{os.environ['RANK']}"
    temporary = path.with_name(f".{path.name}{own}.partial")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # a full disk is met by a write, which does not say of what
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def is_main_process() -> bool:
    """Whether this is the first process, where a launcher started several."""
    return os.environ.get("RANK", "0") == "0"


def sync_folder(folder: Path) -> None:
    """Bring renames in a folder to the disk, where the system has that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StoredDataError(DegamlError):
    """A file of the data folder that is missing or damaged."""


class _Atomic:
    """A mixin for Kedro's datasets of local files, which makes writing atomic."""

    def load(self: Any) -> Any:
        """Read the value.

        Raises:
            StoredDataError: the file is missing or damaged.
        """
        path = Path(self._get_load_path())
        if not path.exists():
            raise StoredDataError(
                f"{path} is not there; `kedro run --only-missing-outputs` makes what is missing"
            )
        try:
            return super().load()  # type: ignore[misc]
        except DatasetError as error:
            raise StoredDataError(
                f"{path} cannot be read ({error.__cause__}); delete it, then `kedro run --only-missing-outputs` "
                f"makes it again"
            ) from error

    def save(self: Any, data: Any) -> None:
        """Write the value."""
        replace_file(Path(self._get_save_path()), lambda file: self._write(data, file))
        self._invalidate_cache()


class AtomicParquetDataset(_Atomic, ParquetDataset):  # type: ignore[misc]
    """``pandas.ParquetDataset``, written whole or not at all."""

    def _write(self, data: pd.DataFrame, file: BinaryIO) -> None:
        data.to_parquet(file, **self._save_args)


class AtomicJSONDataset(_Atomic, JSONDataset):  # type: ignore[misc]
    """``json.JSONDataset``, written whole or not at all."""

    def _write(self, data: Any, file: BinaryIO) -> None:
        file.write((json.dumps(data, **self._save_args) + "\n").encode("utf-8"))


class AtomicTextDataset(_Atomic, TextDataset):  # type: ignore[misc]
    """``text.TextDataset``, written whole or not at all."""

    def _write(self, data: str, file: BinaryIO) -> None:
        file.write(data.encode("utf-8"))


class AtomicPlotlyDataset(_Atomic, PlotlyDataset):  # type: ignore[misc]
    """``plotly.JSONDataset``, written whole or not at all."""

    def _write(self, data: Any, file: BinaryIO) -> None:
        file.write(data.to_json(**self._save_args).encode("utf-8"))
