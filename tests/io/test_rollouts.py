"""Rollouts: killed at any instant, the next run goes on from the last whole row and ends in the same file."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import node, pipeline
from kedro.runner import ParallelRunner, SequentialRunner, ThreadRunner

from degaml_kedro.common import atomic
from degaml_kedro.common.atomic import StoredDataError
from degaml_kedro.io.rollouts import (
    NULLABLE_COLUMNS,
    ROLLOUT_COLUMNS,
    Rollouts,
    RolloutsDataset,
    RolloutsResumeDataset,
)

TOTAL = 4


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A trial; every second one is not valid and never ran."""
    ran = number % 2 == 0
    made: dict[str, Any] = {
        "task": "capitals",
        "method": "degaml",
        "iteration": 1,
        "round": 0,
        "rollout": number,
        "source": "policy" if ran else "uniform",
        "state": f"task\nnumber {number} – ä",
        "action": '{"family": "ttt", "ttl_steps": 5}' if ran else "gibberish \x00\u2028",
        "family": "ttt" if ran else None,
        "valid": ran,
        "reward": float(ran),
        "accuracy_before": 0.1 + number,
        "accuracy_after": 0.3 if ran else None,
        "log_probability_before": -1.5,
        "log_probability_after": math.nan if ran else None,
        "n": 20,
        "seconds": 1 / 3,
        "tokens": 12345,
        "forward_tokens": 12000 + number,
        "backward_tokens": 2345 if ran else None,
        "overhead_seconds": 0.1 if ran else None,
        "seed": 2**63 - 1 - number,
        "option_scores": "[[-0.5, -Infinity]]" if ran else None,
        "poolable": ran or None,
        "p_value": 0.03125 if ran else None,
        "decided_by": "fallback" if ran else None,
        "executed": ran,
        "error": None if ran else "not JSON",
    }
    return made | changes


def trials(
    resume: Rollouts | None, fingerprint: str = "one", total: int = TOTAL
) -> Iterator[Rollouts]:
    """What a node yields."""
    rows: list[Any] = []
    if resume is not None and resume.fingerprint == fingerprint:
        if resume.complete:
            yield resume
            return
        rows += resume.rows
    yield Rollouts(fingerprint, tuple(rows))
    for number in range(len(rows), total):
        rows.append(row(number))
        yield Rollouts(fingerprint, tuple(rows))
    yield Rollouts(fingerprint, tuple(rows), complete=True)


def run(path: Path, **options: Any) -> int:
    """What Kedro does with the node; how many rows it made."""
    dataset, counts = RolloutsDataset(filepath=path), []
    for chunk in trials(RolloutsResumeDataset(filepath=path).load(), **options):
        dataset.save(chunk)
        counts.append(len(chunk.rows))
    return counts[-1] - counts[0]


def rows(count: int) -> tuple[dict[str, Any], ...]:
    return tuple(row(number) for number in range(count))


def same(one: Any, other: Any) -> bool:
    """Equality to the type and the bit."""
    if isinstance(one, float) and isinstance(other, float):
        return one.hex() == other.hex()
    return type(one) is type(other) and one == other


def assert_rows(found: Any, expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert list(mine) == list(ROLLOUT_COLUMNS)
        different = [name for name in theirs if not same(mine[name], theirs[name])]
        assert different == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "capitals.rollouts.parquet"


@pytest.fixture
def partial(path: Path) -> Path:
    return path.with_name("capitals.rollouts.parquet.partial.jsonl")


@pytest.fixture
def dataset(path: Path) -> RolloutsDataset:
    return RolloutsDataset(filepath=path)


@pytest.fixture
def resume(path: Path) -> RolloutsResumeDataset:
    return RolloutsResumeDataset(filepath=path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The finished file of a run that nothing happened to."""
    path = tmp_path_factory.mktemp("whole") / "r.parquet"
    run(path)
    return path.read_bytes()


# --- round trips ----------------------------------------------------------------------------------


def test_rows_are_on_the_disk_when_save_returns(
    dataset: RolloutsDataset,
    resume: RolloutsResumeDataset,
    partial: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    synced: list[int] = []
    original = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    assert resume.load() is None
    assert not resume.exists()
    for count in range(4):
        dataset.save(Rollouts("one", rows(count)))
        lines = partial.read_bytes().splitlines()
        assert json.loads(lines[0]) == {"format": 1, "fingerprint": "one"}
        assert len(lines) == count + 1
        assert partial.stat().st_size in synced
        found = resume.load()
        assert found is not None
        assert (found.fingerprint, found.complete) == ("one", False)
        assert_rows(found.rows, list(rows(count)))
    assert resume.exists()
    assert not dataset.exists()


def test_the_end_makes_the_file_and_leaves_nothing_else(
    dataset: RolloutsDataset, resume: RolloutsResumeDataset, path: Path
) -> None:
    assert run(path) == TOTAL
    assert dataset.exists()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    found = resume.load()
    assert found is not None
    assert (found.fingerprint, found.complete) == ("one", True)
    assert_rows(found.rows, list(rows(TOTAL)))
    # a finished run tries nothing again
    before = path.read_bytes()
    assert run(path) == 0
    assert path.read_bytes() == before


def test_the_frame_has_the_columns_and_types_and_keeps_nan_apart_from_none(
    dataset: RolloutsDataset, path: Path
) -> None:
    run(path)
    frame = dataset.load()
    assert list(frame.columns) == list(ROLLOUT_COLUMNS)
    assert frame["seed"].tolist() == [2**63 - 1 - number for number in range(TOTAL)]
    assert frame["valid"].tolist() == [True, False, True, False]
    assert frame["state"].tolist() == [row(number)["state"] for number in range(TOTAL)]
    assert frame["action"].tolist() == [row(number)["action"] for number in range(TOTAL)]
    assert frame["family"].isna().tolist() == [False, True, False, True]
    assert frame["error"].isna().tolist() == [True, False, True, False]
    assert frame["accuracy_after"].isna().tolist() == [False, True, False, True]
    after = frame["log_probability_after"]
    assert after.isna().tolist() == [False, True, False, True]
    assert math.isnan(after[0])
    assert frame["forward_tokens"].tolist() == [12000, 12001, 12002, 12003]
    assert frame["backward_tokens"].isna().tolist() == [False, True, False, True]
    # and any other tool reads it
    plain = pd.read_parquet(path)
    assert plain["seconds"].tolist() == [1 / 3] * TOTAL


def test_no_rows_at_all_still_have_types(dataset: RolloutsDataset, path: Path) -> None:
    run(path, total=0)
    frame = dataset.load()
    assert len(frame) == 0
    types = frame.dtypes.astype(str).to_dict()
    assert types["seed"] == types["n"] == "int64"
    assert types["valid"] == types["executed"] == "bool"
    assert types["reward"] == types["seconds"] == "float64"
    assert types["accuracy_after"] == types["log_probability_after"] == "double[pyarrow]"
    assert types["forward_tokens"] == types["backward_tokens"] == "int64[pyarrow]"
    assert types["task"] == types["family"]
    schema = pq.read_schema(path)
    assert dict(zip(schema.names, schema.types, strict=True)) == ROLLOUT_COLUMNS
    assert {field.name for field in schema if field.nullable} == NULLABLE_COLUMNS
    assert schema.metadata[b"fingerprint"] == b"one"


NUMBERS = st.floats(allow_nan=False) | st.sampled_from([math.nan, math.inf, -math.inf, -0.0])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KINDS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): TEXT,
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): NUMBERS,
    pa.bool_(): st.booleans(),
}
ROWS = st.fixed_dictionaries(
    {
        name: st.none() | KINDS[kind] if name in NULLABLE_COLUMNS else KINDS[kind]
        for name, kind in ROLLOUT_COLUMNS.items()
    }
)


@settings(max_examples=40)
@given(made=st.lists(ROWS, max_size=4), fingerprint=TEXT)
def test_any_row_comes_back_bit_for_bit_before_the_end_and_after(
    made: list[dict[str, Any]], fingerprint: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.parquet"
        dataset, resume = RolloutsDataset(filepath=path), RolloutsResumeDataset(filepath=path)
        for complete in (False, True):
            dataset.save(Rollouts(fingerprint, tuple(made), complete))
            found = resume.load()
            assert found is not None
            assert (found.fingerprint, found.complete) == (fingerprint, complete)
            assert_rows(found.rows, made)
        assert len(dataset.load()) == len(made)


def test_half_surrogates_become_their_escape(
    dataset: RolloutsDataset, resume: RolloutsResumeDataset
) -> None:
    for complete in (False, True):
        dataset.save(Rollouts("one", (row(0, error="no family '\ud800'"),), complete))
        found = resume.load()
        assert found is not None
        assert_rows(found.rows, [row(0, error="no family '\\ud800'")])


# --- killed ---------------------------------------------------------------------------------------


def test_a_partial_file_of_fewer_rows_is_gone_on_with_and_half_a_line_is_started_over(
    path: Path, partial: Path, whole: bytes, dataset: RolloutsDataset, resume: RolloutsResumeDataset
) -> None:
    dataset.save(Rollouts("one", rows(TOTAL)))
    content = partial.read_bytes()
    ends = [index for index, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == TOTAL + 1
    for end in ends:
        for length, kept in ((end, ends.index(end)), (end - 1, 0)):
            partial.write_bytes(content[:length])
            found = resume.load()
            assert len(found.rows if found else ()) == kept
            assert not dataset.exists()
            assert run(path) == TOTAL - kept
            assert path.read_bytes() == whole
            assert not partial.exists()
            path.unlink()


@settings(max_examples=40)
@given(stops=st.lists(st.integers(0, TOTAL + 1), max_size=3))
def test_killed_again_and_again(stops: list[int], whole: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.parquet"
        for stop in stops:
            dataset = RolloutsDataset(filepath=path)
            for chunk in list(trials(RolloutsResumeDataset(filepath=path).load()))[:stop]:
                dataset.save(chunk)
        run(path)
        assert path.read_bytes() == whole
        assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("complete", [False, True])
def test_where_the_disk_is_full_what_was_there_stays(
    path: Path,
    whole: bytes,
    dataset: RolloutsDataset,
    resume: RolloutsResumeDataset,
    complete: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    dataset.save(Rollouts("one", rows(2)))
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", full)
        with pytest.raises((OSError, DatasetError), match="No space left"):
            dataset.save(Rollouts("one", rows(TOTAL), complete))
    assert not path.exists()
    found = resume.load()
    assert found is not None
    assert_rows(found.rows, list(rows(2)))
    assert run(path) == TOTAL - 2
    assert path.read_bytes() == whole


def test_killed_between_the_parquet_file_and_the_partial_one_s_end(
    path: Path, partial: Path, whole: bytes, dataset: RolloutsDataset
) -> None:
    dataset.save(Rollouts("one", rows(TOTAL)))
    for left in (partial.read_bytes(), b'{"form'):
        run(path)
        partial.write_bytes(left)
        assert not dataset.exists()
        assert run(path) == 0
        assert dataset.exists()
        assert path.read_bytes() == whole
        assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_damaged_line_costs_all_rows(
    path: Path,
    partial: Path,
    whole: bytes,
    dataset: RolloutsDataset,
    resume: RolloutsResumeDataset,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset.save(Rollouts("one", rows(TOTAL)))
    lines = partial.read_bytes().splitlines(keepends=True)
    for bad in (b"\x00" * 50 + b"\n", b"\n", b"[]\n", lines[3].replace(b'"n"', b'"m"')):
        partial.write_bytes(b"".join([*lines[:3], bad, *lines[4:]]))
        caplog.clear()
        assert resume.load() is None
        assert "is started over" in caplog.text
        assert run(path) == TOTAL
        assert path.read_bytes() == whole
        path.unlink()


@pytest.mark.parametrize(
    "head", [b'{"format": 2, "fingerprint": "one"}', b'{"format": 1}', b"[]", b"\xff", b"[" * 99999]
)
def test_another_first_line_is_started_over(
    path: Path,
    partial: Path,
    whole: bytes,
    resume: RolloutsResumeDataset,
    head: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    partial.parent.mkdir()
    partial.write_bytes(head + b"\n")
    assert resume.load() is None
    assert "is started over" in caplog.text
    assert run(path) == TOTAL
    assert path.read_bytes() == whole


# --- fingerprints ---------------------------------------------------------------------------------


def test_another_fingerprint_starts_over(
    path: Path, partial: Path, dataset: RolloutsDataset, resume: RolloutsResumeDataset
) -> None:
    dataset.save(Rollouts("one", rows(2)))
    assert run(path, fingerprint="two") == TOTAL
    found = resume.load()
    assert found is not None
    assert (found.fingerprint, found.complete) == ("two", True)
    # the finished file goes before its successor begins: a killed run must not leave both
    dataset.save(Rollouts("three"))
    assert not path.exists()
    assert partial.exists()


# --- what is refused ------------------------------------------------------------------------------


def other_columns(path: Path) -> None:
    table = pa.table({"a": [1]})
    pq.write_table(table.replace_schema_metadata({"format": "1", "fingerprint": "one"}), path)


def other_format(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"format": "2", "fingerprint": "one"}), path)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    where = content.find(b"number 1") if b"number 1" in content else 200
    content[where] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"PAR1" + b"\xff" * 60 + b"PAR1"),
        lambda path: pd.DataFrame({"a": [1]}).to_parquet(path),
        other_columns,
        other_format,
        flipped,
    ],
)
def test_a_damaged_file_is_named_with_the_way_out(
    dataset: RolloutsDataset, resume: RolloutsResumeDataset, path: Path, whole: bytes, damage: Any
) -> None:
    run(path)
    damage(path)
    for one in (dataset, resume):
        with pytest.raises(DatasetError, match="delete it, then `kedro run") as caught:
            one.load()
        assert str(path) in str(caught.value)
        assert isinstance(caught.value.__cause__, StoredDataError)
    path.unlink()
    assert run(path) == TOTAL
    assert path.read_bytes() == whole


def test_a_file_that_is_not_there_is_named(dataset: RolloutsDataset) -> None:
    with pytest.raises(DatasetError, match="is not there; `kedro run --only-missing-outputs`"):
        dataset.load()


def test_the_resume_dataset_is_read_only(resume: RolloutsResumeDataset) -> None:
    with pytest.raises(DatasetError, match="is only read here"):
        resume.save(object())  # type: ignore[arg-type]


@pytest.mark.parametrize("runner", [SequentialRunner, ThreadRunner, ParallelRunner])
def test_every_runner_writes_the_same_bytes(tmp_path: Path, whole: bytes, runner: Any) -> None:
    from kedro.io import SharedMemoryDataCatalog

    datasets: dict[str, Any] = {}
    for letter in "ab":
        datasets[f"{letter}.rollouts"] = RolloutsDataset(filepath=tmp_path / f"{letter}.parquet")
        datasets[f"{letter}.resume"] = RolloutsResumeDataset(
            filepath=tmp_path / f"{letter}.parquet"
        )
    datasets["a.rollouts"].save(Rollouts("one", rows(1)))
    steps = pipeline([node(trials, f"{x}.resume", f"{x}.rollouts", name=x) for x in "ab"])
    kind = SharedMemoryDataCatalog if runner is ParallelRunner else DataCatalog
    runner().run(steps, kind(datasets), only_missing_outputs=True)
    assert [(tmp_path / f"{x}.parquet").read_bytes() for x in "ab"] == [whole] * 2
