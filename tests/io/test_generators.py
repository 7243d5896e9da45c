"""A generator's dataset: a resume checkpoint while it trains, the folder at the end."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from kedro.io import DatasetError

from degaml_kedro.common import atomic
from degaml_kedro.common.atomic import StoredDataError
from degaml_kedro.generator.generator import CONFIG_FILE, WEIGHTS_FILE, Generator
from degaml_kedro.generator.training import TrainingState, train_generator
from degaml_kedro.io import generators as module
from degaml_kedro.io.generators import (
    GeneratorDataset,
    GeneratorProgress,
    GeneratorResumeDataset,
    is_main_process,
)
from tests.generator.helpers import tiny_generator, tiny_task, tiny_training
from tests.llm.helpers import tiny_base

TENSORS = {"parameter.a": torch.arange(6.0).view(2, 3), "first_moment.a": torch.zeros(2, 3)}


def progress(step: int = 2, fingerprint: str = "one") -> GeneratorProgress:
    records = [{"step": i + 1, "loss": 0.5, "sft": math.nan} for i in range(step)]
    checks = [{"step": 1, "task": "one", "accuracy": None}]
    return GeneratorProgress(fingerprint, TrainingState(step, dict(TENSORS)), records, checks)


def finished(fingerprint: str = "one") -> Generator:
    return dataclasses.replace(tiny_generator(), fingerprint=fingerprint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "mse.generator"


@pytest.fixture
def dataset(folder: Path) -> GeneratorDataset:
    return GeneratorDataset(filepath=folder)


@pytest.fixture
def resume(folder: Path) -> GeneratorResumeDataset:
    return GeneratorResumeDataset(filepath=folder)


def test_a_resume_checkpoint_comes_back_and_is_no_generator_yet(
    dataset: GeneratorDataset, resume: GeneratorResumeDataset
) -> None:
    assert resume.load() is None
    assert not resume.exists()
    dataset.save(progress())
    assert not dataset.exists()
    assert resume.exists()
    found = resume.load()
    assert found is not None
    assert (found.fingerprint, found.state.step) == ("one", 2)
    assert found.state.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.state.tensors[name], TENSORS[name]) for name in TENSORS)
    assert [row["step"] for row in found.records] == [1, 2]
    assert math.isnan(found.records[0]["sft"])
    assert found.checks == progress().checks


def test_the_latest_resume_checkpoint_counts(
    dataset: GeneratorDataset, resume: GeneratorResumeDataset
) -> None:
    for step in (2, 4, 6):
        dataset.save(progress(step))
    found = resume.load()
    assert found is not None
    assert found.state.step == len(found.records) == 6


def test_the_generator_takes_the_resume_checkpoint_s_stead(
    dataset: GeneratorDataset, resume: GeneratorResumeDataset, folder: Path
) -> None:
    dataset.save(progress())
    dataset.save(finished())
    assert dataset.exists()
    assert dataset.load().fingerprint == "one"
    # a finished one is handed on, so that the same training is not done twice
    found = resume.load()
    assert isinstance(found, Generator)
    assert found.fingerprint == "one"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_it_is_read_once_until_it_is_written_or_released(dataset: GeneratorDataset) -> None:
    dataset.save(finished())
    found = dataset.load()
    assert dataset.load() is found
    dataset.save(finished("two"))
    other = dataset.load()
    assert (found.fingerprint, other.fingerprint) == ("one", "two")
    dataset.release()
    assert dataset.load() is not other


def test_half_a_folder_is_none(dataset: GeneratorDataset, folder: Path) -> None:
    dataset.save(finished())
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        assert not dataset.exists()
        (folder / name).write_bytes(content)
    assert dataset.exists()


def test_a_resume_checkpoint_that_cannot_be_written_leaves_the_old_one(
    dataset: GeneratorDataset, resume: GeneratorResumeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.save(progress(2))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", full)
        with pytest.raises((OSError, DatasetError), match="No space left"):
            dataset.save(progress(4))
    found = resume.load()
    assert found is not None
    assert found.state.step == 2


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_a_truncated_resume_checkpoint_is_named_with_the_way_out(
    dataset: GeneratorDataset, resume: GeneratorResumeDataset, folder: Path, cut: int
) -> None:
    dataset.save(progress())
    (path,) = folder.parent.iterdir()
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DatasetError, match="delete it, then `kedro run") as caught:
        resume.load()
    assert str(path) in str(caught.value)
    assert isinstance(caught.value.__cause__, StoredDataError)


def test_a_truncated_generator_is_named(dataset: GeneratorDataset, folder: Path) -> None:
    dataset.save(finished())
    weights = folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="truncated or damaged"):
        dataset.load()


def test_training_goes_on_through_the_disk_bit_for_bit(
    dataset: GeneratorDataset, resume: GeneratorResumeDataset
) -> None:
    def train(made: Generator, state: TrainingState | None = None) -> list[TrainingState]:
        training = tiny_training(mse=1.0, sft=0.5)
        steps = train_generator(
            made, [tiny_task()], training, 7, Accelerator(cpu=True), tiny_base(), state
        )
        return [step.state() for step in steps]

    made, again = tiny_generator(), tiny_generator(seed=5)
    states = train(made)
    dataset.save(GeneratorProgress("one", states[1], (), ()))
    found = resume.load()
    assert found is not None
    train(again, found.state)
    for one, other in zip(made.decoder.parameters(), again.decoder.parameters(), strict=True):
        assert torch.equal(one, other)


def test_of_several_processes_the_first_writes_and_the_others_wait(
    dataset: GeneratorDataset, resume: GeneratorResumeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()
    dataset.save(progress())
    assert resume.load() is None
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.01)
    with pytest.raises(DatasetError, match="not written by the first process"):
        dataset.save(finished())
    monkeypatch.setenv("RANK", "0")
    dataset.save(finished())
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(module, "_WAIT_SECONDS", 60.0)
    dataset.save(finished())
    # an earlier run's does not count
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.01)
    with pytest.raises(DatasetError, match="not written by the first process"):
        dataset.save(finished("two"))


def test_the_resume_dataset_is_read_only(resume: GeneratorResumeDataset) -> None:
    with pytest.raises(DatasetError, match="is only read here"):
        resume.save(object())  # type: ignore[arg-type]


def test_descriptions_name_the_folder(
    dataset: GeneratorDataset, resume: GeneratorResumeDataset, folder: Path
) -> None:
    assert str(folder) in str(dataset)
    assert str(folder) in str(resume)
