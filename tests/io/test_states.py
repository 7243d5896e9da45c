"""The adapted state as Kedro uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import node, pipeline
from kedro.runner import SequentialRunner

from degaml_kedro.io.datasets import AdaptedStateDataset
from degaml_kedro.strategies.state import STATE_FILE, TENSORS_FILE, StateError
from tests.io.sending import sent
from tests.strategies.test_state import assert_same, ensemble


@pytest.fixture
def dataset(tmp_path: Path) -> AdaptedStateDataset:
    return AdaptedStateDataset(filepath=tmp_path / "deep" / "capitals.degaml.state")


def test_a_state_comes_back_and_exists_by_its_json(
    dataset: AdaptedStateDataset, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "capitals.degaml.state"
    assert not dataset.exists()
    dataset.save(ensemble())
    assert dataset.exists()
    assert_same(dataset.load(), ensemble())
    (folder / STATE_FILE).unlink()
    assert not dataset.exists()


def test_a_node_s_state_is_written_once(dataset: AdaptedStateDataset) -> None:
    steps = pipeline([node(ensemble, None, "state")])
    catalog = DataCatalog({"state": dataset})
    SequentialRunner().run(steps, catalog, only_missing_outputs=True)
    assert_same(dataset.load(), ensemble())

    def never() -> None:
        raise AssertionError("the state was there already")

    again = pipeline([node(never, None, "state")])
    SequentialRunner().run(again, catalog, only_missing_outputs=True)


def test_damage_is_named_with_the_way_out(dataset: AdaptedStateDataset, tmp_path: Path) -> None:
    dataset.save(ensemble())
    (path,) = tmp_path.rglob(TENSORS_FILE)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="truncated or damaged; delete the folder") as caught:
        dataset.load()
    assert f"{path.parent} cannot be used: {path.name}" in str(caught.value)
    assert isinstance(caught.value.__cause__, StateError)


def test_it_can_be_sent_to_another_process(dataset: AdaptedStateDataset) -> None:
    dataset.save(ensemble())
    assert_same(sent(dataset).load(), ensemble())


def test_the_description_names_the_folder(dataset: AdaptedStateDataset) -> None:
    assert "capitals.degaml.state" in str(dataset)
