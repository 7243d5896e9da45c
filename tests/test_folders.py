"""Folders that are replaced whole."""

from __future__ import annotations

import os
import signal

import pytest

from degaml_kedro.folders import FolderError, replaced_folder


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


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    folder = tmp_path / "folder"
    child = os.fork()
    if child == 0:
        with replaced_folder(folder) as temporary:
            (temporary / "file").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 1
    write(folder, "whole")
    assert list(tmp_path.iterdir()) == [folder]
