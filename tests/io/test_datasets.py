"""The datasets as Kedro uses them."""

from __future__ import annotations

import pytest
import torch
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import node, pipeline
from kedro.runner import ParallelRunner, SequentialRunner, ThreadRunner

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.io.datasets import AdapterDataset, TrajectoryDataset, TrajectoryResumeDataset
from degaml_kedro.io.trajectory import TrajectoryEnd, TrajectoryStep
from tests.io.fake_training import CONFIG, split, train
from tests.io.sending import sent


@pytest.fixture
def catalog(tmp_path):
    return {
        name: kind(filepath=tmp_path / name[0])
        for letter in "ab"
        for name, kind in (
            (f"{letter}.trajectory", TrajectoryDataset),
            (f"{letter}.trajectory_resume", TrajectoryResumeDataset),
        )
    }


def both():
    return pipeline(
        [
            node(train, f"{x}.trajectory_resume", f"{x}.trajectory", name=x, namespace=x)
            for x in "ab"
        ]
    )


@pytest.mark.parametrize("runner", [SequentialRunner, ThreadRunner, ParallelRunner])
def test_every_runner_writes_the_same_bytes(catalog, tmp_path, runner):
    from kedro.io import SharedMemoryDataCatalog

    kind = SharedMemoryDataCatalog if runner is ParallelRunner else DataCatalog
    runner().run(both(), kind(catalog))
    files = [(tmp_path / x / "trajectory.safetensors").read_bytes() for x in "ab"]
    reference = TrajectoryDataset(filepath=tmp_path / "reference")
    for chunk in train(None):
        reference.save(chunk)
    assert files == [(tmp_path / "reference" / "trajectory.safetensors").read_bytes()] * 2


def test_only_missing_outputs_goes_on_with_what_is_not_complete(catalog):
    for chunk in list(train(None))[:3]:
        catalog["a.trajectory"].save(chunk)
    catalog["a.trajectory"].release()
    for chunk in train(None):
        catalog["b.trajectory"].save(chunk)
    assert not catalog["a.trajectory"].exists()
    assert catalog["b.trajectory"].exists()
    SequentialRunner().run(both(), DataCatalog(catalog), only_missing_outputs=True)
    assert catalog["a.trajectory"].exists()
    assert len(catalog["a.trajectory"].load()) == 4


def test_a_trajectory_dataset_that_is_writing_can_be_sent_to_another_process(tmp_path):
    dataset = TrajectoryDataset(filepath=tmp_path / "t")
    dataset.save(next(train(None)))
    assert sent(dataset)._writer is None
    dataset.release()


def test_a_step_needs_a_start(tmp_path):
    step = next(chunk for chunk in train(None) if isinstance(chunk, TrajectoryStep))
    with pytest.raises(DatasetError, match="TrajectoryStart"):
        TrajectoryDataset(filepath=tmp_path / "t").save(step)


def test_an_end_alone_changes_nothing(tmp_path):
    TrajectoryDataset(filepath=tmp_path / "t").save(TrajectoryEnd())
    assert not (tmp_path / "t").exists()


def test_the_resume_dataset_is_read_only(tmp_path):
    dataset = TrajectoryResumeDataset(filepath=tmp_path / "t")
    assert dataset.load() is None
    assert not dataset.exists()
    with pytest.raises(DatasetError, match="is only read here"):
        dataset.save(object())


def test_an_adapter_is_a_peft_folder(tmp_path):
    dataset = AdapterDataset(filepath=tmp_path / "adapter")
    assert not dataset.exists()
    adapter = Adapter(CONFIG, split(torch.arange(16.0)))
    dataset.save(adapter)
    assert dataset.exists()
    again = dataset.load()
    assert again.config == CONFIG
    assert all(torch.equal(again.tensors[name], t) for name, t in adapter.tensors.items())
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    assert not dataset.exists()


def test_descriptions_name_the_folder(tmp_path):
    for kind in (AdapterDataset, TrajectoryDataset, TrajectoryResumeDataset):
        assert str(tmp_path) in str(kind(filepath=tmp_path))
