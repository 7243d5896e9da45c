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
from degaml_kedro.common.folders import named_errors, sync


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
        with named_errors(path), temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def is_main_process() -> bool:
    """Whether this is the first process, where a launcher started several."""
    return os.environ.get("RANK", "0") == "0"


class StoredDataError(DegamlError):
    """A file of the data folder that is missing or damaged."""


class _Atomic:
    """A mixin for Kedro's datasets of files, which makes writing atomic.

    On other filesystems (S3, …) a file appears whole when it is closed.
    """

    def load(self: Any) -> Any:
        """Read the value.

        Raises:
            StoredDataError: the file is not there, or damaged.
        """
        path = self._get_load_path()
        # another process may have written it since the folder was listed
        self._invalidate_cache()
        if not self._exists():
            raise StoredDataError(
                f"{path} is not there; `kedro run --only-missing-outputs` makes what is missing"
            )
        try:
            return super().load()  # type: ignore[misc]
        except DatasetError as error:
            raise StoredDataError(
                f"{path} cannot be read ({error.__cause__}); delete it, then `kedro run --only-missing-outputs` makes "
                f"it again"
            ) from error

    def save(self: Any, data: Any) -> None:
        """Write the value."""
        if self._protocol == "file":
            replace_file(Path(self._get_save_path()), lambda file: self._write(data, file))
        else:
            path = str(self._get_save_path())
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            with self._fs.open(path, "wb") as file:
                self._write(data, file)
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
