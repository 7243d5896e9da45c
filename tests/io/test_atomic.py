"""Files are the old one or the whole new one."""

from __future__ import annotations

import os
import signal

import pandas as pd
import plotly.graph_objects as go
import pytest

from degaml_kedro.common.atomic import (
    AtomicJSONDataset,
    AtomicParquetDataset,
    AtomicPlotlyDataset,
    AtomicTextDataset,
    replace_file,
)


def names(folder):
    return [path.name for path in folder.iterdir()]


FRAME = pd.DataFrame({"a": [1, 2], "scores": [[0.5, -1.0], [0.25]]})


@pytest.mark.parametrize(
    ("kind", "value", "other"),
    [
        (AtomicJSONDataset, {"a": [1, None]}, {"b": 2}),
        (AtomicTextDataset, "ä – ö\n", "other"),
        (AtomicParquetDataset, FRAME, FRAME[:1]),
        (AtomicPlotlyDataset, go.Figure(go.Scatter(x=[1, 2], name="ä")), go.Figure()),
    ],
)
def test_round_trip_and_replacement(tmp_path, kind, value, other):
    dataset = kind(filepath=str(tmp_path / "folder" / "file"))
    assert not dataset.exists()
    dataset.save(other)
    dataset.save(value)
    assert dataset.exists()
    loaded = dataset.load()
    if isinstance(value, pd.DataFrame):
        assert loaded["a"].tolist() == [1, 2]
        assert [list(row) for row in loaded["scores"]] == FRAME["scores"].tolist()
    else:
        assert loaded == value
    assert names(tmp_path / "folder") == ["file"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(stream):
        stream.write(b"new")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        replace_file(path, fail)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_killed_writer_leaves_the_old_file_and_the_next_one_cleans_up(tmp_path, call):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    child = os.fork()
    if child == 0:
        setattr(os, call, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        replace_file(path, lambda stream: stream.write(b"new"))
        os._exit(0)
    os.waitpid(child, 0)
    assert path.read_bytes() == b"old"
    replace_file(path, lambda stream: stream.write(b"newer"))
    assert path.read_bytes() == b"newer"
    assert names(tmp_path) == ["file"]


def test_a_missing_file_says_how_to_make_it(tmp_path):
    dataset = AtomicParquetDataset(filepath=str(tmp_path / "capitals.parquet"))
    with pytest.raises(Exception, match=r"capitals\.parquet.*--only-missing-outputs"):
        dataset.load()


def test_a_damaged_file_says_how_to_make_it_again(tmp_path):
    (tmp_path / "capitals.parquet").write_bytes(b"PAR1 and no more")
    dataset = AtomicParquetDataset(filepath=str(tmp_path / "capitals.parquet"))
    with pytest.raises(Exception, match=r"capitals\.parquet cannot be read .*delete it"):
        dataset.load()
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(Exception, match=r"result\.json cannot be read .*delete it"):
        AtomicJSONDataset(filepath=str(tmp_path / "result.json")).load()
    (tmp_path / "figure.json").write_text('{"data": [')
    with pytest.raises(Exception, match=r"figure\.json cannot be read .*delete it"):
        AtomicPlotlyDataset(filepath=str(tmp_path / "figure.json")).load()


def test_kedro_viz_can_show_a_figure(tmp_path):
    dataset = AtomicPlotlyDataset(filepath=str(tmp_path / "figure.json"))
    dataset.save(go.Figure(go.Scatter(x=[1, 2])))
    assert dataset.preview()["data"][0]["x"] == [1, 2]


def test_processes_of_one_launcher_do_not_write_under_the_same_name(tmp_path, monkeypatch):
    path = tmp_path / "file"

    def write(stream):
        # another process of the launcher begins and ends in the middle
        monkeypatch.setenv("RANK", "1")
        replace_file(path, lambda other: other.write(b"same"))
        monkeypatch.setenv("RANK", "0")
        stream.write(b"same")

    replace_file(path, write)
    assert path.read_bytes() == b"same"
    assert names(tmp_path) == ["file"]
