"""Folders that are replaced whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from itertools import count

import pytest
from safetensors import SafetensorError

from degaml_kedro.common import folders
from degaml_kedro.common.folders import (
    LOCK_FILE,
    FolderError,
    held_folder,
    own_prefix,
    replaced_folder,
)


def write(folder, text, **options):
    with replaced_folder(folder, **options) as temporary:
        (temporary / "file").write_text(text)


def test_a_name_as_long_as_names_can_be_is_replaced(tmp_path):
    folder = tmp_path / ("x" * 255)
    for text in ("old", "new"):
        write(folder, text)
    assert (folder / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def fill_half(folder):
    with replaced_folder(folder) as temporary:
        (temporary / "file").write_text("half")
        raise OSError("no room")


def test_an_error_leaves_the_old_one(tmp_path):
    folder = tmp_path / "folder"
    write(folder, "old")
    with pytest.raises(OSError, match="no room"):
        fill_half(folder)
    assert (folder / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_of_two_writers_at_once_the_second_is_told(tmp_path):
    folder = tmp_path / "folder"
    with replaced_folder(folder) as temporary:
        with pytest.raises(FolderError, match=r"/folder is being written .* name another folder"):
            write(folder, "second")
        # other folders are free
        write(tmp_path / "other", "other")
        (temporary / "file").write_text("first")
    assert (folder / "file").read_text() == "first"
    write(folder, "third")
    assert (folder / "file").read_text() == "third"
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "other"}


def test_what_came_meanwhile_is_replaced_only_where_that_was_asked_for(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, "first", replace=False)
    with pytest.raises(FolderError, match=r"/folder is there by now.*`--force`"):
        write(folder, "second", replace=False)
    assert (folder / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [folder]


def killed_at_line(number, folder):
    """Write a folder in a process that is killed at this line of the module, counted as they are executed."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    executed = count(1)

    def trace(frame, event, _):
        if frame.f_code.co_filename != folders.__file__:
            return None
        if event == "line" and next(executed) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    write(folder, "new")
    os._exit(0)


def test_a_writer_killed_at_any_line_leaves_a_whole_folder_in_sight(tmp_path):
    folder, found = tmp_path / "folder", []
    for line in count(1):
        write(folder, "old")
        assert list(tmp_path.iterdir()) == [folder]
        if not killed_at_line(line, folder):
            break
        seen = {path.parent.name: path.read_text() for path in tmp_path.glob("[!.]*/file")}
        # the earlier one has another name for a moment
        assert "folder" in seen or "old" in seen.values()
        found.append(seen.get("folder"))
    assert found == sorted(found, key=["old", None, "new"].index)
    assert set(found) == {"old", None, "new"}


def test_what_killed_processes_left_is_removed(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    own = own_prefix(tmp_path, "x[1]")
    left = tmp_path / own.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    for name in (own, left.name, "x[1]-elsewhere-1-", "other"):
        (tmp_path / name).mkdir()
    assert own_prefix(tmp_path, "x[1]") == own
    assert {path.name for path in tmp_path.iterdir()} == {own, "x[1]-elsewhere-1-", "other"}


def test_where_a_rename_fails_the_earlier_one_is_restored(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    write(folder, "old")
    rename = os.rename

    def fails(one, other):
        if one.suffix == ".tmp" and not other.exists():
            raise PermissionError(errno.EACCES, "no")
        rename(one, other)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(PermissionError):
        write(folder, "new")
    assert (folder / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_who_holds_a_folder_is_named_and_gone_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_UNLOCK_SECONDS", 0)
    folder = tmp_path / "data"
    with held_folder(folder, "kedro run"):
        told = rf"/data is in use by process {os.getpid()} of .* \(kedro run\); wait"
        with pytest.raises(FolderError, match=told), held_folder(folder, "another"):
            pass
        # of the first one still
        assert "kedro run" in (folder / LOCK_FILE).read_text()
    assert not list(folder.iterdir())


def test_the_folder_of_a_killed_holder_is_taken_over(tmp_path):
    child = os.fork()
    if not child:
        with held_folder(tmp_path, "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert "(killed)" in (tmp_path / LOCK_FILE).read_text()
    with held_folder(tmp_path, "next"):
        assert "(next)" in (tmp_path / LOCK_FILE).read_text()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_for_weights_names_the_folder(tmp_path):
    # as safetensors says it, which raises no OSError
    full = f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})"
    with (
        pytest.raises(OSError, match="No space left on device") as raised,
        replaced_folder(tmp_path / "folder"),
    ):
        raise SafetensorError(full)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "folder"))
    assert not list(tmp_path.iterdir())
