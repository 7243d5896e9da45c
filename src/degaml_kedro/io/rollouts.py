"""Rollouts on disk: one row a trial, each durable before the next is computed.

While they are made they stand in ``<file>.partial.jsonl`` beside the Parquet file: a first line ``{"format": 1,
"fingerprint": …}``, then one JSON object a row, appended and brought to the disk. A line without its end is no row: a
run that was killed while it wrote goes on from the last whole one. At the end the rows become the Parquet file, in
one rename, and the partial file goes.

Rewards and probabilities may be NaN or infinite. The lines write these the way Python's ``json`` does (``NaN``,
``Infinity``), which strict JSON readers refuse; Parquet has them as they are.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from kedro.io import DatasetError

from degaml_kedro.io.atomic import StoredDataError, replace_file, sync_folder
from degaml_kedro.io.local import LocalDataset, ReadOnlyDataset

FORMAT = 1

# the columns of a rollout, in order: what each is, is said where rollouts are made
ROLLOUT_COLUMNS: Mapping[str, pa.DataType] = {
    "task": pa.string(),
    "method": pa.string(),
    "iteration": pa.int64(),
    "round": pa.int64(),
    "rollout": pa.int64(),
    "source": pa.string(),
    "state": pa.string(),
    "action": pa.string(),
    "family": pa.string(),
    "valid": pa.bool_(),
    "reward": pa.float64(),
    "accuracy_before": pa.float64(),
    "accuracy_after": pa.float64(),
    "log_probability_before": pa.float64(),
    "log_probability_after": pa.float64(),
    "n": pa.int64(),
    "seconds": pa.float64(),
    "tokens": pa.int64(),
    "forward_tokens": pa.int64(),
    "backward_tokens": pa.int64(),
    "overhead_seconds": pa.float64(),
    "seed": pa.int64(),
    "option_scores": pa.string(),
    "poolable": pa.bool_(),
    "p_value": pa.float64(),
    "decided_by": pa.string(),
    "executed": pa.bool_(),
    "error": pa.string(),
}
# what rows did not have at first: in those from then it is None
ADDED_COLUMNS = frozenset({"option_scores", "poolable", "p_value", "decided_by"})
# where None is a value: the action was not valid, was not executed, nothing went wrong, or nobody counted
NULLABLE_COLUMNS = ADDED_COLUMNS | {
    *("family", "accuracy_after", "log_probability_after", "error"),
    *("forward_tokens", "backward_tokens", "overhead_seconds"),
}

_SCHEMA = pa.schema(
    [pa.field(name, kind, name in NULLABLE_COLUMNS) for name, kind in ROLLOUT_COLUMNS.items()]
)
_FIRST_SCHEMA = pa.schema([field for field in _SCHEMA if field.name not in ADDED_COLUMNS])

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutsStart:
    """The first piece.

    Attributes:
        fingerprint: of all that the rows depend on.
        resumed_from: how many rows of an earlier run stay; 0 starts over.
    """

    fingerprint: str
    resumed_from: int = 0


@dataclass(frozen=True)
class RolloutRows:
    """The next piece.

    Attributes:
        rows: each with all of ``ROLLOUT_COLUMNS`` and nothing else.
    """

    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RolloutsEnd:
    """The last piece; alone where an earlier run had finished already."""


RolloutsChunk = RolloutsStart | RolloutRows | RolloutsEnd


@dataclass(frozen=True)
class RolloutsState:
    """The rollouts that an earlier run left.

    Attributes:
        fingerprint: of that run.
        rows: the whole ones, in order.
        complete: nothing is missing.
    """

    fingerprint: str
    rows: tuple[dict[str, Any], ...]
    complete: bool


class RolloutsDataset(LocalDataset[RolloutsChunk, pd.DataFrame]):
    """The rollouts of one task and iteration, written by a generator node as they come.

    The node yields a ``RolloutsStart``, ``RolloutRows`` as often as it likes and a ``RolloutsEnd``; Kedro saves each
    as it comes. The dataset exists once the last of them is on the disk.

    Example catalog entry:
        ``"{task}.rollouts": {type: degaml_kedro.io.rollouts.RolloutsDataset, filepath:
        data/07_model_output/{task}.rollouts.parquet}``
    """

    def __init__(
        self, *, filepath: str | os.PathLike[str], metadata: dict[str, Any] | None = None
    ) -> None:
        """Point at a Parquet file."""
        super().__init__(filepath=filepath, metadata=metadata)
        self._file: BinaryIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        """An open file stays in its process."""
        return {**self.__dict__, "_file": None}

    def load(self) -> pd.DataFrame:
        """Read the rows.

        Returns:
            A frame with ``ROLLOUT_COLUMNS``. Numbers that may be None are Arrow's (``double[pyarrow]``,
            ``int64[pyarrow]``): there a None is ``<NA>`` and a NaN is still a NaN. ``ADDED_COLUMNS`` of a file that
            has none of them are None.

        Raises:
            StoredDataError: the file is not there, damaged, or something else.
        """
        table = _read_parquet(self._path)[1]
        frame: pd.DataFrame = table.to_pandas()
        for name in NULLABLE_COLUMNS:
            if ROLLOUT_COLUMNS[name] in (pa.float64(), pa.int64()):
                frame[name] = pd.arrays.ArrowExtensionArray(table[name])
        return frame

    def save(self, data: RolloutsChunk) -> None:
        """Take the next piece; when this returns, it is on the disk."""
        if isinstance(data, RolloutsStart):
            self._close()
            self._file = _open(self._path, data)
        elif isinstance(data, RolloutRows):
            self._append(data.rows)
        elif self._file is not None:
            self._close()
            _finish(self._path)
        elif self._path.is_file():
            # nothing was tried: the rollouts were complete already
            _partial_file(self._path).unlink(missing_ok=True)
        else:
            raise DatasetError(
                f"the end of {self._path} came before its RolloutsStart; yield that first"
            )

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._file is None:
            raise DatasetError(
                f"a row of {self._path} came before its RolloutsStart; yield that first"
            )
        try:
            lines = [json.dumps(_checked(row)) for row in rows]
        except _RowError as error:
            raise DatasetError(f"a row of {self._path} cannot be kept: {error}") from error
        try:
            self._file.write("".join(f"{line}\n" for line in lines).encode("ascii"))
            _sync(self._file)
        except BaseException:
            # a line may be half there, and nothing may follow it: the next start cuts it off
            self._close()
            raise

    def _exists(self) -> bool:
        return self._path.is_file() and not _partial_file(self._path).is_file()

    def _release(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


class RolloutsResumeDataset(ReadOnlyDataset[RolloutsState | None]):
    """The rollouts that an earlier run left of a task, for the node that goes on."""

    written = "written through the rollouts' dataset; save there"

    def load(self) -> RolloutsState | None:
        """The whole rows of an unfinished run, else a finished one's, else None.

        Raises:
            StoredDataError: the finished file is damaged or something else.
        """
        partial = _read_partial(_partial_file(self._path))
        if partial is not None:
            return RolloutsState(partial.fingerprint, partial.rows, complete=False)
        if not self._path.is_file():
            return None
        fingerprint, table = _read_parquet(self._path)
        return RolloutsState(fingerprint, tuple(table.to_pylist()), complete=True)

    def _exists(self) -> bool:
        return _partial_file(self._path).is_file() or self._path.is_file()


# --- the file that grows --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Partial:
    """A partial file.

    Attributes:
        fingerprint: of the run that wrote it.
        rows: the whole ones.
        ends: where the first line ends, then where each row ends, in bytes.
        size: of the file.
    """

    fingerprint: str
    rows: tuple[dict[str, Any], ...]
    ends: tuple[int, ...]
    size: int


def _partial_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial.jsonl")


def _open(path: Path, start: RolloutsStart) -> BinaryIO:
    if path.is_file() and _fingerprint_of(path) != start.fingerprint:
        path.unlink()
    partial = _partial_file(path)
    if start.resumed_from:
        return _go_on(partial, start)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"format": FORMAT, "fingerprint": start.fingerprint}) + "\n"
    return _opened(partial, "wb", lambda file: file.write(head.encode("ascii")))


def _go_on(partial: Path, start: RolloutsStart) -> BinaryIO:
    found = _read_partial(partial)
    if (
        found is None
        or found.fingerprint != start.fingerprint
        or len(found.rows) < start.resumed_from
    ):
        raise DatasetError(
            f"{partial} was to go on from row {start.resumed_from}, but another process has changed it meanwhile; "
            f"run the same command again"
        )
    end = found.ends[start.resumed_from]
    return _opened(partial, "r+b", lambda file: (file.truncate(end), file.seek(end)))


def _opened(partial: Path, mode: str, prepare: Callable[[BinaryIO], object]) -> BinaryIO:
    file: BinaryIO = partial.open(mode)  # type: ignore[assignment]
    try:
        prepare(file)
        _sync(file)
        sync_folder(partial.parent)
    except BaseException:
        file.close()
        raise
    return file


def _finish(path: Path) -> None:
    partial = _partial_file(path)
    found = _read_partial(partial)
    if found is None or found.ends[-1] != found.size:
        raise DatasetError(
            f"{partial} is not what was written: another process has changed it meanwhile; run the same command again"
        )
    about = {"format": str(FORMAT), "fingerprint": found.fingerprint}
    table = pa.Table.from_pylist(found.rows, schema=_SCHEMA.with_metadata(about))
    replace_file(path, lambda file: pq.write_table(table, file, write_page_checksum=True))
    partial.unlink()
    sync_folder(path.parent)


def _read_partial(path: Path) -> _Partial | None:
    """The whole rows of a partial file; None where there is none, or not even its first line is whole.

    Lines that are not what was written are no rows, nor are those after them: they are tried again, which costs time
    and nothing else.
    """
    if not path.is_file():
        return None
    content = path.read_bytes()
    # what comes after the last line's end is a half-written row, or nothing
    head, *lines = [line + b"\n" for line in content.split(b"\n")[:-1]] or [b""]
    fingerprint = _read_head(head)
    if fingerprint is None:
        if head:
            logger.warning("%s cannot be gone on with and is started over", path)
        return None
    rows: list[dict[str, Any]] = []
    ends = [len(head)]
    for line in lines:
        try:
            rows.append(_checked(_with_added(json.loads(line))))
        except (ValueError, RecursionError) as error:
            logger.warning(
                "%s is damaged after %d rows; the others are tried again: %s",
                path,
                len(rows),
                error,
            )
            break
        ends.append(ends[-1] + len(line))
    return _Partial(fingerprint, tuple(rows), tuple(ends), len(content))


def _read_head(line: bytes) -> str | None:
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        return None
    fingerprint = head.get("fingerprint")
    return fingerprint if isinstance(fingerprint, str) else None


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


# --- one row --------------------------------------------------------------------------------------


class _RowError(ValueError):
    """A row that is not a rollout's."""


def _with_added(row: Any) -> Any:
    """A row of the first version, with None in what it lacks; any other one as it is."""
    if isinstance(row, dict) and not ADDED_COLUMNS & row.keys():
        return {**row, **dict.fromkeys(ADDED_COLUMNS)}
    return row


def _checked(row: Any) -> dict[str, Any]:
    """The row in plain Python values and in the order of the columns, so that the end can write all there is.

    Raises:
        _RowError: a key is missing or unknown, or a value is of another type than its column.
    """
    if not isinstance(row, Mapping):
        raise _RowError(f"it is a {type(row).__name__}, not a mapping")
    missing = [name for name in ROLLOUT_COLUMNS if name not in row]
    unknown = [str(name) for name in row if name not in ROLLOUT_COLUMNS]
    if missing or unknown:
        parts = (
            f"without {', '.join(missing)}" if missing else "",
            f"with the unknown {', '.join(unknown)}" if unknown else "",
        )
        raise _RowError(f"it is {' and '.join(part for part in parts if part)}")
    return {name: _value(name, kind, row[name]) for name, kind in ROLLOUT_COLUMNS.items()}


def _value(name: str, kind: pa.DataType, value: Any) -> str | int | float | bool | None:
    if value is None and name in NULLABLE_COLUMNS:
        return None
    truth = isinstance(value, bool | np.bool_)
    if kind == pa.bool_() and truth:
        return bool(value)
    if kind == pa.string() and isinstance(value, str):
        # half a surrogate pair can stand in a Python string and in no file: it is kept as its escape
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if kind == pa.int64() and isinstance(value, Integral) and not truth:
        number = int(value)
        if -(2**63) <= number < 2**63:
            return number
    if kind == pa.float64() and isinstance(value, Real) and not truth:
        with suppress(OverflowError):
            return float(value)
    raise _RowError(f"its {name} is {value!r:.80} ({type(value).__name__}), not {kind}")


# --- the finished file ----------------------------------------------------------------------------


def _read_parquet(path: Path) -> tuple[str, pa.Table]:
    """A finished file's fingerprint and rows.

    Raises:
        StoredDataError: it is not there, damaged or something else.
    """
    fix = "`kedro run --only-missing-outputs` makes"
    if not path.is_file():
        raise StoredDataError(f"{path} is not there; {fix} what is missing")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            about = file.schema_arrow.metadata or {}
            found = about.get(b"format", b"none").decode("utf-8")
            if found != str(FORMAT):
                raise ValueError(f"its format is {found}, this version reads {FORMAT}")
            if not any(map(file.schema_arrow.equals, (_SCHEMA, _FIRST_SCHEMA))):
                raise ValueError("its columns are not those of rollouts")
            return about[b"fingerprint"].decode("utf-8"), _with_nulls(file.read())
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StoredDataError(
            f"{path} cannot be read as rollouts ({error}); it is truncated, damaged or another file: delete it, then "
            f"{fix} it again"
        ) from error


def _with_nulls(table: pa.Table) -> pa.Table:
    """The table with every column, in order; those that it lacks are None throughout."""
    for place, field in enumerate(_SCHEMA):
        if field.name not in table.column_names:
            table = table.add_column(place, field, pa.nulls(len(table), field.type))
    return table


def _fingerprint_of(path: Path) -> str | None:
    try:
        return _read_parquet(path)[0]
    except StoredDataError:
        return None
