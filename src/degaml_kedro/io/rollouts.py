"""Rollouts on disk: one row a trial, each durable before the next is computed.

While they are made they stand in ``<file>.partial.jsonl`` beside the Parquet file: a first line ``{"format": 1,
"fingerprint": …}``, then one JSON object a row. It is replaced whole after every trial: a run that was killed goes on
from the last one. At the end the rows become the Parquet file, in one rename, and the partial file goes.

Rewards and probabilities may be NaN or infinite. The lines write these the way Python's ``json`` does (``NaN``,
``Infinity``), which strict JSON readers refuse; Parquet has them as they are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from degaml_kedro.common.atomic import StoredDataError, replace_file
from degaml_kedro.io.local import LocalDataset, ReadOnlyDataset

FORMAT = 1
# behind the name of the file that unfinished rows will end in
_PARTIAL = ".partial.jsonl"

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
# where None is a value: the action was not valid, was not executed, nothing went wrong, or nobody counted
NULLABLE_COLUMNS = {
    *("family", "accuracy_after", "log_probability_after", "error"),
    *("forward_tokens", "backward_tokens", "overhead_seconds"),
    *("option_scores", "poolable", "p_value", "decided_by"),
}

_SCHEMA = pa.schema(
    [pa.field(name, kind, name in NULLABLE_COLUMNS) for name, kind in ROLLOUT_COLUMNS.items()]
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of one task and iteration, as far as they are made.

    Attributes:
        fingerprint: of all that the rows depend on.
        rows: in order, each with all of ``ROLLOUT_COLUMNS`` and nothing else.
        complete: nothing is missing.
    """

    fingerprint: str
    rows: Sequence[Mapping[str, Any]] = ()
    complete: bool = False


class RolloutsDataset(LocalDataset[Rollouts, pd.DataFrame]):
    """The rollouts of one task and iteration.

    The node is a generator that yields all ``Rollouts`` so far after every trial, and at the end those that are
    complete; Kedro saves each as it comes. The dataset exists once the last of them is on the disk.

    Example catalog entry:
        ``"{task}.rollouts": {type: degaml_kedro.io.rollouts.RolloutsDataset, filepath:
        data/07_model_output/{task}.rollouts.parquet}``
    """

    def _read(self) -> pd.DataFrame:
        """Read the rows.

        Returns:
            A frame with ``ROLLOUT_COLUMNS``. Numbers that may be None are Arrow's (``double[pyarrow]``,
            ``int64[pyarrow]``): there a None is ``<NA>`` and a NaN is still a NaN.

        Raises:
            StoredDataError: the file is not there, damaged, or something else.
        """
        table = _read_parquet(self._path)[1]
        frame: pd.DataFrame = table.to_pandas()
        for name in NULLABLE_COLUMNS:
            if ROLLOUT_COLUMNS[name] in (pa.float64(), pa.int64()):
                frame[name] = pd.arrays.ArrowExtensionArray(table[name])
        return frame

    def _write(self, data: Rollouts) -> None:
        """Write what there is so far; when this returns, it is on the disk."""
        partial = _partial_file(self._path)
        rows = [_storable(row) for row in data.rows]
        if data.complete:
            about = {"format": str(FORMAT), "fingerprint": data.fingerprint}
            table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata(about))
            replace_file(
                self._path, lambda file: pq.write_table(table, file, write_page_checksum=True)
            )
            partial.unlink(missing_ok=True)
            return
        # a killed run must not leave the finished rows of other settings beside its own
        if self._path.is_file() and _read_parquet(self._path)[0] != data.fingerprint:
            self._path.unlink()
        head = {"format": FORMAT, "fingerprint": data.fingerprint}
        lines = "".join(f"{json.dumps(line)}\n" for line in (head, *rows))
        replace_file(partial, lambda file: file.write(lines.encode("ascii")))

    def _is_whole(self, has: Callable[[str], bool]) -> bool:
        return has("") and not has(_PARTIAL)


class RolloutsResumeDataset(ReadOnlyDataset[Rollouts | None]):
    """The rollouts that an earlier run left of a task, for the node that goes on."""

    def _read(self) -> Rollouts | None:
        """The whole rows of an unfinished run, else a finished one's, else None.

        Raises:
            StoredDataError: the finished file is damaged or something else.
        """
        unfinished = _read_partial(_partial_file(self._path))
        if unfinished is not None or not self._path.is_file():
            return unfinished
        fingerprint, table = _read_parquet(self._path)
        return Rollouts(fingerprint, tuple(table.to_pylist()), complete=True)

    def _is_whole(self, has: Callable[[str], bool]) -> bool:
        return has(_PARTIAL) or has("")


def _partial_file(path: Path) -> Path:
    return path.with_name(f"{path.name}{_PARTIAL}")


def _storable(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with halves of surrogate pairs, which no file can hold, as their escapes."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode("utf-8")
        if isinstance(value, str)
        else value
        for name, value in row.items()
    }


def _read_partial(path: Path) -> Rollouts | None:
    """The rows of a partial file; None where there is none, or where it is not one: then all are tried again."""
    if not path.is_file():
        return None
    try:
        about, *rows = map(json.loads, path.read_bytes().splitlines())
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}, this version reads {FORMAT}")
        if any(row.keys() != ROLLOUT_COLUMNS.keys() for row in rows):
            raise ValueError("its columns are not those of rollouts")
        ordered = ({name: row[name] for name in ROLLOUT_COLUMNS} for row in rows)
        return Rollouts(str(about["fingerprint"]), tuple(ordered))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s cannot be gone on with and is started over: %s", path, error)
        return None


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
            table = file.read()
        found = about.get(b"format", b"none").decode("utf-8")
        if found != str(FORMAT):
            raise ValueError(f"its format is {found}, this version reads {FORMAT}")
        if not table.schema.equals(_SCHEMA):
            raise ValueError("its columns are not those of rollouts")
        return about[b"fingerprint"].decode("utf-8"), table
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StoredDataError(
            f"{path} cannot be read as rollouts ({error}); it is truncated, damaged or another file: delete it, then "
            f"{fix} it again"
        ) from error
