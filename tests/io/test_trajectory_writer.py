"""The promise of the trajectory file: killed at any instant, the next run ends in the same bytes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from degaml_kedro.io import trajectory_writer
from degaml_kedro.io.datasets import TrajectoryDataset, TrajectoryResumeDataset
from degaml_kedro.io.trajectory import (
    Trajectory,
    TrajectoryError,
    TrajectoryStart,
    TrajectoryStep,
)
from degaml_kedro.io.trajectory_writer import (
    PARTIAL_FILE,
    RESUME_FILE,
    TrajectoryWriter,
    plan_layout,
    read_state,
)
from tests.io.fake_training import CONFIG, SHAPES, STEPS, die_at, run, train


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    run(tmp_path / "whole")
    return content(tmp_path / "whole")


def test_a_whole_run_leaves_the_trajectory_and_its_index(whole):
    assert set(whole) == {"trajectory.safetensors", "index.json"}
    index = json.loads(whole["index.json"])
    assert [step["step"] for step in index["steps"]] == [1, 2, 3, 4]
    assert index["kept"] == [1, 2, 3, 4]
    assert index["adapter"] == {
        "rank": 2,
        "alpha": 4.0,
        "target_modules": ["q_proj"],
        "base_model": "random",
    }


def test_the_file_is_plain_safetensors(tmp_path, whole):
    tensors = load_file(tmp_path / "whole" / "trajectory.safetensors")
    assert len(tensors) == STEPS * len(SHAPES)
    for chunk in train(None):
        if isinstance(chunk, TrajectoryStep):
            for name, tensor in chunk.tensors.items():
                assert torch.equal(tensors[f"step_{chunk.record.step:05d}/{name}"], tensor)


def test_bfloat16_is_stored_rounded_and_the_run_goes_on_unrounded(tmp_path):
    run(tmp_path / "a", dtype="bfloat16")
    trajectory = Trajectory(tmp_path / "a")
    exact = [chunk for chunk in train(None) if isinstance(chunk, TrajectoryStep)]
    for chunk in exact:
        stored = trajectory.adapter(chunk.record.step).tensors
        for name, tensor in chunk.tensors.items():
            assert stored[name].dtype == torch.bfloat16
            assert torch.equal(stored[name], tensor.to(torch.bfloat16))


def test_the_last_step_alone_can_be_kept(tmp_path, whole):
    run(tmp_path / "last", keep="last")
    trajectory = Trajectory(tmp_path / "last")
    assert trajectory.steps == (STEPS,)
    assert len(trajectory.records) == STEPS
    everything = Trajectory(tmp_path / "whole")
    for name, tensor in everything.last.tensors.items():
        assert torch.equal(trajectory.last.tensors[name], tensor)
    with pytest.raises(TrajectoryError, match="step 1 is not stored"):
        trajectory.adapter(1)


def in_a_child(call: int, torn: bool, folder: Path) -> bool:
    """Run in a forked process that kills itself; returns whether it came to its end first."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            die_at(call, torn)
            run(folder)
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status == 0


@pytest.mark.parametrize("torn", [False, True])
def test_killed_at_every_system_call_the_next_run_ends_in_the_same_bytes(tmp_path, whole, torn):
    call, survived = 0, False
    while not survived:
        call += 1
        folder = tmp_path / f"killed_{call}"
        survived = in_a_child(call, torn, folder)
        run(folder)
        assert content(folder) == whole, f"killed at call {call}"
        shutil.rmtree(folder)
    # a fresh start, three syncs and a rename a step, and the end
    assert call > 6 * STEPS


def test_killed_again_and_again(tmp_path, whole):
    folder = tmp_path / "killed"
    kills = 0
    while not in_a_child(14, False, folder):
        kills += 1
        assert kills < 20
    assert kills >= 2
    assert content(folder) == whole


def test_killed_while_it_replaces_an_older_trajectory(tmp_path, whole):
    call, survived = 0, False
    while not survived:
        call += 1
        folder = tmp_path / f"killed_{call}"
        run(folder, fingerprint="older")
        survived = in_a_child(call, False, folder)
        run(folder)
        assert content(folder) == whole, f"killed at call {call}"


def test_it_goes_on_after_the_last_whole_step(tmp_path):
    dataset = TrajectoryDataset(filepath=tmp_path / "t")
    for chunk in list(train(None))[:3]:
        dataset.save(chunk)
    dataset.release()
    assert not dataset.exists()
    state = TrajectoryResumeDataset(filepath=tmp_path / "t").load()
    assert [record.step for record in state.records] == [1, 2]
    assert not state.complete
    steps = [c.record.step for c in train(state) if isinstance(c, TrajectoryStep)]
    assert steps == [3, 4]


def test_a_complete_trajectory_is_left_alone(tmp_path, whole):
    folder = tmp_path / "whole"
    stamp = (folder / "trajectory.safetensors").stat().st_mtime_ns
    (folder / RESUME_FILE).write_bytes(b"left by a kill between the last two calls")
    # so that the run that makes what is missing removes it
    assert not TrajectoryDataset(filepath=folder).exists()
    run(folder)
    assert content(folder) == whole
    assert (folder / "trajectory.safetensors").stat().st_mtime_ns == stamp


def test_other_settings_start_over(tmp_path, whole):
    folder = tmp_path / "whole"
    run(folder, fingerprint="two", steps=2)
    trajectory = Trajectory(folder)
    assert trajectory.fingerprint == "two"
    assert len(trajectory) == 2
    assert set(content(folder)) == set(whole)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "resume"])
def test_damaged_steps_are_no_steps(tmp_path, whole, damage, caplog):
    folder = tmp_path / "t"
    dataset = TrajectoryDataset(filepath=folder)
    for chunk in list(train(None))[:4]:
        dataset.save(chunk)
    dataset.release()
    partial = folder / PARTIAL_FILE
    if damage == "truncate":
        os.truncate(partial, 100)
    elif damage == "flip":
        data = bytearray(partial.read_bytes())
        data[plan_layout(next(train(None)))[1][2]] ^= 1
        partial.write_bytes(data)
    elif damage == "remove":
        partial.unlink()
    else:
        (folder / RESUME_FILE).write_bytes(b"not safetensors")
    assert read_state(folder) is None
    assert "started over" in caplog.text
    run(folder)
    assert content(folder) == whole


@pytest.mark.parametrize("damage", ["truncate", "index"])
def test_a_damaged_complete_trajectory_is_made_again(tmp_path, whole, damage, caplog):
    folder = tmp_path / "whole"
    if damage == "truncate":
        os.truncate(folder / "trajectory.safetensors", 900)
    else:
        (folder / "index.json").write_text("{")
    run(folder)
    assert "made again" in caplog.text
    assert content(folder) == whole


def test_no_room_is_said_before_anything_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TrajectoryError, match=r"no room .* needs .* MB .* 'data'"):
        TrajectoryWriter(tmp_path / "t", next(train(None)))
    assert not (tmp_path / "t").exists()


def test_no_room_leaves_the_older_trajectory(tmp_path, whole, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TrajectoryError, match="no room"):
        TrajectoryWriter(tmp_path / "whole", next(train(None, fingerprint="two")))
    assert content(tmp_path / "whole") == whole


def test_no_room_for_the_resume_file_either(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(trajectory_writer.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(TrajectoryError, match="no room"):
        TrajectoryWriter(tmp_path / "t", next(train(None)))
    assert not (tmp_path / "t").exists()


def test_a_disk_that_fills_up_later_loses_no_whole_step(tmp_path, whole, monkeypatch):
    folder = tmp_path / "t"
    dataset = TrajectoryDataset(filepath=folder)
    chunks = list(train(None))
    for chunk in chunks[:3]:
        dataset.save(chunk)
    original = trajectory_writer.replace_file

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    dataset._writer._wait()
    monkeypatch.setattr(trajectory_writer, "replace_file", full)
    dataset.save(chunks[3])
    with pytest.raises(Exception, match="no room"):
        dataset.save(chunks[4])
    dataset.release()
    monkeypatch.setattr(trajectory_writer, "replace_file", original)
    assert len(read_state(folder).records) == 2
    run(folder)
    assert content(folder) == whole


def test_two_processes_do_not_write_one_trajectory(tmp_path):
    first = TrajectoryWriter(tmp_path / "t", next(train(None)))
    with pytest.raises(TrajectoryError, match="another process is writing"):
        TrajectoryWriter(tmp_path / "t", next(train(None)))
    first.close()
    TrajectoryWriter(tmp_path / "t", next(train(None))).close()


def test_steps_come_in_order_and_all_of_them(tmp_path):
    chunks = list(train(None))
    writer = TrajectoryWriter(tmp_path / "t", chunks[0])
    with pytest.raises(TrajectoryError, match="step 2 .* came after step 0"):
        writer.add(chunks[2])
    writer.add(chunks[1])
    with pytest.raises(TrajectoryError, match="1 of 4 steps"):
        writer.finish()
    writer.close()


def test_going_on_from_what_is_not_there_is_refused(tmp_path):
    start = next(train(None))
    fields = {name: getattr(start, name) for name in start.__dataclass_fields__}
    with pytest.raises(TrajectoryError, match="another process has changed it"):
        TrajectoryWriter(tmp_path / "t", TrajectoryStart(**{**fields, "resumed_from": 2}))


def test_the_layout_is_what_safetensors_expects():
    start = TrajectoryStart("f", CONFIG, SHAPES, 3)
    head, offsets, total = plan_layout(start)
    assert list(offsets) == [1, 2, 3]
    (length,) = struct.unpack("<Q", head[:8])
    assert len(head) == 8 + length
    assert length % 8 == 0
    header = json.loads(head[8:])
    spans = sorted(
        entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"
    )
    assert [span[0] for span in spans] == [0, *(span[1] for span in spans[:-1])]
    assert spans[-1][1] + len(head) == total
