"""Folders that are replaced whole."""

from __future__ import annotations

import pytest

from degaml_kedro.folders import replaced_folder


def test_a_name_as_long_as_names_can_be_is_replaced(tmp_path):
    folder = tmp_path / ("x" * 255)
    for text in ("old", "new"):
        with replaced_folder(folder) as temporary:
            (temporary / "file").write_text(text)
    assert (folder / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def fill_half(folder):
    with replaced_folder(folder) as temporary:
        (temporary / "file").write_text("half")
        raise OSError("no room")


def test_an_error_leaves_the_old_one(tmp_path):
    folder = tmp_path / "folder"
    with replaced_folder(folder) as temporary:
        (temporary / "file").write_text("old")
    with pytest.raises(OSError, match="no room"):
        fill_half(folder)
    assert (folder / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]
