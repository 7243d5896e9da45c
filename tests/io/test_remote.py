"""Datasets behind fsspec: an index that is written last says what there is."""

from __future__ import annotations

import json

import fsspec
import pytest
import torch
from kedro.io import DatasetError

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.common.atomic import AtomicJSONDataset
from degaml_kedro.io import remote
from degaml_kedro.io.datasets import AdapterDataset, TrajectoryDataset, TrajectoryResumeDataset
from degaml_kedro.io.rollouts import Rollouts, RolloutsDataset, RolloutsResumeDataset
from tests.io.fake_training import CONFIG, split, train
from tests.io.sending import sent
from tests.io.test_rollouts import rows

FILES = fsspec.filesystem("memory")


def adapter() -> Adapter:
    return Adapter(CONFIG, split(torch.arange(16.0)))


@pytest.fixture(autouse=True)
def bucket():
    yield
    if FILES.exists("/run"):
        FILES.rm("/run", recursive=True)


def test_a_folder_comes_back_and_its_index_names_every_file_with_its_checksum():
    one = AdapterDataset(filepath="memory://bucket/run/policy")
    assert not one.exists()
    one.save(adapter())
    index = json.loads(FILES.cat_file("/run/policy.index.json"))
    assert set(index) == {"policy/adapter_config.json", "policy/adapter_model.safetensors"}
    assert index["policy/adapter_config.json"]["size"] == FILES.size(
        "/run/policy/adapter_config.json"
    )
    other = AdapterDataset(filepath="memory://bucket/run/policy")
    assert other.exists()
    found = other.load()
    assert all(torch.equal(found.tensors[name], t) for name, t in adapter().tensors.items())
    # another process has a copy of its own
    assert sent(other).load().config == found.config


def test_what_the_index_does_not_name_or_names_otherwise_is_not_there(caplog):
    one = AdapterDataset(filepath="memory://bucket/run/policy")
    one.save(adapter())
    one.release()
    weights = "/run/policy/adapter_model.safetensors"
    content = FILES.cat_file(weights)
    FILES.pipe_file(weights, content[:-1] + b"x")
    with pytest.raises(DatasetError):
        one.load()
    assert "is not what its index says" in caplog.text
    FILES.pipe_file(weights, content)
    one.load()
    # a first writer that was killed before the index
    FILES.rm_file("/run/policy.index.json")
    assert not one.exists()
    with pytest.raises(DatasetError):
        one.load()


@pytest.mark.parametrize(
    "index",
    [
        b"no json",
        b"[]",
        b'{"../../elsewhere": {"sha256": "0"}}',
        b'{"policy/../../x": {"sha256": "0"}}',
        b'{"policy/x": {}}',
    ],
)
def test_an_index_that_is_none_or_leads_elsewhere_is_refused(index):
    FILES.pipe_file("/run/policy.index.json", index)
    with pytest.raises(DatasetError, match=r"policy\.index\.json cannot be read as an index"):
        AdapterDataset(filepath="memory://bucket/run/policy").load()


def test_a_killed_training_is_gone_on_with_elsewhere(tmp_path, monkeypatch):
    """Every other process begins with an empty copy: what it goes on from was fetched."""
    monkeypatch.setattr(remote, "_SHARE", 0)
    url = "memory://bucket/run/pool"
    killed = TrajectoryDataset(filepath=url)
    for chunk in list(train(None))[:4]:
        killed.save(chunk)
    killed.release()
    assert not TrajectoryDataset(filepath=url).exists()
    left = TrajectoryResumeDataset(filepath=url).load()
    assert left is not None
    assert 1 <= len(left.records) < 4
    after, whole = TrajectoryDataset(filepath=url), TrajectoryDataset(filepath=tmp_path / "pool")
    for dataset, resume in ((after, left), (whole, None)):
        for chunk in train(resume):
            dataset.save(chunk)
    assert after.exists()
    weights = (tmp_path / "pool/trajectory.safetensors").read_bytes()
    assert FILES.cat_file("/run/pool/trajectory.safetensors") == weights
    assert set(FILES.ls("/run/pool", detail=False)) == {
        "/run/pool/index.json",
        "/run/pool/trajectory.safetensors",
    }


def test_rollouts_of_a_killed_run_are_read_elsewhere():
    rollouts = RolloutsDataset(filepath="memory://bucket/run/r.parquet")
    rollouts.save(Rollouts("one", rows(2)))
    assert not rollouts.exists()
    left = RolloutsResumeDataset(filepath="memory://bucket/run/r.parquet").load()
    assert left is not None
    assert len(left.rows) == 2
    rollouts.save(Rollouts("one", rows(4), complete=True))
    assert rollouts.exists()
    assert set(json.loads(FILES.cat_file("/run/r.parquet.index.json"))) == {"r.parquet"}
    assert not FILES.exists("/run/r.parquet.partial.jsonl")


def test_a_table_is_written_whole():
    one = AtomicJSONDataset(filepath="memory://bucket/run/08_reporting/one.json")
    with pytest.raises(DatasetError, match="is not there"):
        one.load()
    one.save({"a": 1})
    assert AtomicJSONDataset(filepath="memory://bucket/run/08_reporting/one.json").load() == {
        "a": 1
    }
