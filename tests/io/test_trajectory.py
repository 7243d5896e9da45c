"""Reading trajectories: lazily, with checksums, and with errors that say what to do."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from degaml_kedro.io.trajectory import Trajectory, TrajectoryError, TrajectoryStep
from degaml_kedro.io.trajectory_writer import plan_layout
from tests.io.fake_training import run, train
from tests.io.sending import sent


@pytest.fixture
def folder(tmp_path):
    run(tmp_path / "t")
    return tmp_path / "t"


def flip(folder, step):
    file = folder / "trajectory.safetensors"
    data = bytearray(file.read_bytes())
    data[plan_layout(next(train(None)))[1][step]] ^= 1
    file.write_bytes(data)


def test_every_step_reads_back_as_written(folder):
    trajectory = Trajectory(folder)
    written = [chunk for chunk in train(None) if isinstance(chunk, TrajectoryStep)]
    assert len(trajectory) == len(written) == 4
    for chunk in written:
        adapter = trajectory.adapter(chunk.record.step)
        assert adapter.config.rank == 2
        assert list(adapter.tensors) == sorted(chunk.tensors)
        for name, tensor in chunk.tensors.items():
            assert torch.equal(adapter.tensors[name], tensor)
    assert torch.equal(trajectory.last.tensors[name], trajectory.adapter(4).tensors[name])
    assert "4 steps, 4 kept" in repr(trajectory)


def test_an_open_trajectory_can_be_sent_to_another_process(folder):
    trajectory = Trajectory(folder)
    trajectory.adapter(1)
    again = sent(trajectory)
    assert again.adapter(2).tensors.keys() == trajectory.adapter(2).tensors.keys()


def test_a_changed_step_is_named_with_the_file_and_the_way_out(folder):
    flip(folder, 3)
    trajectory = Trajectory(folder)
    trajectory.adapter(2)
    with pytest.raises(
        TrajectoryError, match=r"trajectory\.safetensors.*step 3.*delete the folder.*kedro run"
    ):
        trajectory.adapter(3)


def test_a_truncated_file_is_named(folder):
    file = folder / "trajectory.safetensors"
    os.truncate(file, file.stat().st_size - 10)
    with pytest.raises(TrajectoryError, match="cannot be read at step 1.*truncated"):
        Trajectory(folder).adapter(1)


def test_an_unfinished_trajectory_is_no_trajectory(tmp_path):
    with pytest.raises(TrajectoryError, match="no complete trajectory.*kedro run"):
        Trajectory(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"format": 99}', "{}"])
def test_a_bad_index_is_named(folder, index):
    (folder / "index.json").write_text(index)
    with pytest.raises(TrajectoryError, match=r"index\.json"):
        Trajectory(folder)


def test_steps_that_are_not_there(folder):
    for step in (0, 5, -1):
        with pytest.raises(TrajectoryError, match="it holds 4 step.*from 1 to 4"):
            Trajectory(folder).adapter(step)


def test_a_run_of_which_only_the_last_step_counts_rests_every_tenth_step():
    start = next(train(None))
    every = dataclasses.replace(start, steps=23, keep="all")
    last = dataclasses.replace(start, steps=23, keep="last")
    assert all(every.is_resume_checkpoint(step) for step in range(1, 24))
    assert [step for step in range(1, 24) if last.is_resume_checkpoint(step)] == [10, 20, 23]
