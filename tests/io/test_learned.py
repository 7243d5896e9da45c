from __future__ import annotations

import json

import pytest
import torch
from kedro.io import DatasetError

from degaml_kedro.adapters.adapter import Adapter, AdapterConfig, tensor_key
from degaml_kedro.baselines.compute import Compute
from degaml_kedro.baselines.learned import Learned
from degaml_kedro.io.learned import LearnedDataset


@pytest.fixture
def learned():
    tensors = {
        tensor_key("layers.0.q_proj", "A"): torch.randn(2, 6),
        tensor_key("layers.0.q_proj", "B"): torch.randn(4, 2),
    }
    config = AdapterConfig(2, 4.0, ("q_proj",), "nobody/model")
    extra = {"first_moment": torch.randn(20), "step": torch.tensor(3.0)}
    records = ({"step": 1, "loss": 2.5},)
    compute = Compute(10, 20, 1.5)
    return Learned("maml_en_llm", Adapter(config, tensors), extra, records, compute, {"order": 2})


def test_it_comes_back_as_it_was(tmp_path, learned):
    dataset = LearnedDataset(filepath=tmp_path / "a" / "maml.learned")
    assert not dataset.exists()
    dataset.save(learned)
    assert dataset.exists()
    back = dataset.load()
    assert (back.method, back.records, back.compute, back.about) == (
        learned.method,
        learned.records,
        learned.compute,
        learned.about,
    )
    assert back.adapter.config == learned.adapter.config
    for mine, theirs in (
        (back.adapter.tensors, learned.adapter.tensors),
        (back.extra, learned.extra),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    # nothing half-written stays beside it
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["maml.learned"]


def test_it_may_have_nothing_extra(tmp_path, learned):
    dataset = LearnedDataset(filepath=tmp_path / "x")
    dataset.save(Learned("union_train", learned.adapter))
    back = dataset.load()
    assert (back.extra, back.records, back.compute) == ({}, (), Compute())


def test_plain_peft_reads_the_adapter(tmp_path, learned):
    from peft import LoraConfig

    LearnedDataset(filepath=tmp_path / "x").save(learned)
    assert LoraConfig.from_pretrained(str(tmp_path / "x")).r == 2


@pytest.mark.parametrize("file", ["extra.safetensors", "learned.json"])
def test_a_damaged_folder_names_itself_and_the_way_out(tmp_path, learned, file):
    dataset = LearnedDataset(filepath=tmp_path / "x")
    dataset.save(learned)
    (tmp_path / "x" / file).write_bytes(b"{")
    with pytest.raises(DatasetError, match="delete the folder, then `kedro run"):
        dataset.load()
    (tmp_path / "x" / file).unlink()
    assert not dataset.exists()


def test_a_newer_format_is_refused(tmp_path, learned):
    dataset = LearnedDataset(filepath=tmp_path / "x")
    dataset.save(learned)
    file = tmp_path / "x" / "learned.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2}))
    with pytest.raises(DatasetError, match="format is 2, this version reads 1"):
        dataset.load()
