"""Files that are either the old one or the whole new one, never a part."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pandas as pd
from kedro.io import DatasetError
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import ParquetDataset
from kedro_datasets.plotly import JSONDataset as PlotlyDataset
from kedro_datasets.text import TextDataset

from degaml_kedro.errors import DegamlError

T = TypeVar("T")


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
    except BaseException:
        temporary.unlink(missing_ok=True)
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


def _readable(path: Path, load: Callable[[], T]) -> T:
    if not path.exists():
        raise StoredDataError(
            f"{path} is not there; `kedro run --only-missing-outputs` makes what is missing"
        )
    try:
        return load()
    except DatasetError as error:
        raise StoredDataError(
            f"{path} cannot be read ({error.__cause__}); delete it, then `kedro run --only-missing-outputs` makes "
            f"it again"
        ) from error


class AtomicParquetDataset(ParquetDataset):  # type: ignore[misc]
    """``pandas.ParquetDataset`` for local files, written whole or not at all."""

    def load(self) -> pd.DataFrame:
        """Read the frame."""
        load: Callable[[], pd.DataFrame] = super().load
        return _readable(Path(self._get_load_path()), load)

    def save(self, data: pd.DataFrame) -> None:
        """Write the frame."""
        replace_file(
            Path(self._get_save_path()), lambda file: data.to_parquet(file, **self._save_args)
        )
        self._invalidate_cache()


class AtomicJSONDataset(JSONDataset):  # type: ignore[misc]
    """``json.JSONDataset`` for local files, written whole or not at all."""

    def load(self) -> Any:
        """Read the value."""
        return _readable(Path(self._get_load_path()), super().load)

    def save(self, data: Any) -> None:
        """Write the value."""
        text = json.dumps(data, **self._save_args) + "\n"
        replace_file(Path(self._get_save_path()), lambda file: file.write(text.encode("utf-8")))
        self._invalidate_cache()


class AtomicTextDataset(TextDataset):  # type: ignore[misc]
    """``text.TextDataset`` for local files, written whole or not at all."""

    def load(self) -> str:
        """Read the text."""
        load: Callable[[], str] = super().load
        return _readable(Path(self._get_load_path()), load)

    def save(self, data: str) -> None:
        """Write the text."""
        replace_file(Path(self._get_save_path()), lambda file: file.write(data.encode("utf-8")))
        self._invalidate_cache()


class AtomicPlotlyDataset(PlotlyDataset):  # type: ignore[misc]
    """``plotly.JSONDataset`` for local files, written whole or not at all."""

    def load(self) -> Any:
        """Read the figure."""
        return _readable(Path(self._get_load_path()), super().load)

    def save(self, data: Any) -> None:
        """Write the figure."""
        text: str = data.to_json(**self._save_args)
        replace_file(Path(self._get_save_path()), lambda file: file.write(text.encode("utf-8")))
        self._invalidate_cache()
