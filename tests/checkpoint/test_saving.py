"""A save that cannot be done is a sentence, and leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from degaml_kedro.adaptation import Report
from degaml_kedro.baselines.learned import Learned
from degaml_kedro.checkpoint.folder import SavedAdaptation, save_adaptation
from degaml_kedro.checkpoint.layout import CheckpointError
from degaml_kedro.io.learned import LearnedDataset
from degaml_kedro.strategies.state import AdaptedState, Member, save_state
from tests.checkpoint.helpers import LORA, tiny_settings, write_run, write_tiny_pair
from tests.llm.helpers import random_adapter, tiny_base


def save(folder, report=None):
    settings, base = tiny_settings().answering, tiny_base()
    state = AdaptedState((Member(random_adapter(base, LORA)),))
    about = SavedAdaptation(
        base_model=base.name,
        base_model_fingerprint=base.fingerprint,
        settings=settings,
        more_than_peft=False,
        report=report or Report(2, 0),
    )
    save_adaptation(state, about, Path(folder))


@pytest.mark.parametrize(
    "name", ["x" * 300, "a\0b", "file/x", "file/x/y", "/proc/x", "/proc/x/y", "~nobody at all/x"]
)
def test_a_place_that_cannot_be_is_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot be saved in .* \(.+\); name another folder"):
        save(name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "error", [SafetensorError("No space left on device"), OSError(28, "No space left on device")]
)
def test_a_full_disk_is_a_sentence_and_the_old_one_stays(error, tmp_path, monkeypatch):
    def full(*_):
        raise error

    save(tmp_path / "x")
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    monkeypatch.setattr("degaml_kedro.checkpoint.folder.write_peft_files", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(tmp_path / "x")
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_half_a_character_is_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="surrogates not allowed"):
        save(tmp_path / "x", Report(2, 0, words="\ud800"))


def test_home_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save("~/x")
    assert (tmp_path / "x" / "degaml.json").is_file()


def write_state(folder):
    save_state(AdaptedState((Member(random_adapter(tiny_base(), LORA)),)), folder)


def write_learned(folder):
    LearnedDataset(filepath=folder).save(Learned("abmll", random_adapter(tiny_base(), LORA)))


@pytest.mark.parametrize("write", [save, write_state, write_learned, write_tiny_pair, write_run])
def test_files_have_the_mode_that_the_umask_gives(write, tmp_path):
    earlier = os.umask(0o007)
    try:
        write(tmp_path / "x")
    finally:
        os.umask(earlier)
    files = [path for path in (tmp_path / "x").rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o660"}


@pytest.mark.parametrize("write", [save, write_tiny_pair], ids=["adaptation", "pair"])
def test_something_elses_folder_is_left_alone(write, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is left alone"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    # beside a folder of ours, too
    write(tmp_path / "ours")
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"'notes\.txt', which is no part of a"):
        write(tmp_path / "ours")
