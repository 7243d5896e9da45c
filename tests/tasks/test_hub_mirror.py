"""The paper's benchmarks through the library's own builders, from a mirror of the hub: no network is needed."""

from __future__ import annotations

import logging

import datasets
import pandas as pd
import pytest

from degaml_kedro.config.schema import HubSource
from degaml_kedro.tasks.example import TaskError
from degaml_kedro.tasks.hub import load_hub
from tests.hub_mirror import PUBLISHED, ROWS, mirrored, write_mirror
from tests.tasks.test_hub import declared

SOURCES = {
    name: task.source for name, task in declared().items() if isinstance(task.source, HubSource)
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror")
    write_mirror(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_the_mirror_has_every_benchmark_that_can_be_downloaded():
    assert {source.id for source in SOURCES.values()} == set(PUBLISHED)


@pytest.mark.parametrize("task", SOURCES)
def test_a_benchmark_is_read_as_it_is_published(task, mirror, cache, caplog):
    caplog.set_level(logging.WARNING)
    source = SOURCES[task]
    with mirrored(mirror, cache):
        loaded = load_hub(source, task)
    configs = len((source.config or "one").split("+"))
    for split, examples in loaded.items():
        # a malformed row of every configuration is left out, and said to be
        assert len(examples) == configs * (ROWS - 1)
        assert len({one.prompt for one in examples}) == len(examples)
        told = f"'{source.splits[split]}': {configs} of {configs * ROWS} rows are left out"
        assert told in caplog.text


def test_a_schema_that_has_changed_is_named_with_the_columns_found(tmp_path):
    write_mirror(tmp_path / "mirror", rows=3)
    for path in (tmp_path / "mirror/Rowan/hellaswag/default").iterdir():
        changed = datasets.Dataset.from_list(pd.read_parquet(path).to_dict("records"))
        changed.rename_column("endings", "continuations").to_parquet(str(path))
    with (
        mirrored(tmp_path / "mirror", tmp_path / "cache"),
        pytest.raises(
            TaskError,
            match=r"the columns are ind, .* continuations, .* reads activity_label, .*: there is no endings",
        ),
    ):
        load_hub(SOURCES["hellaswag"], "hellaswag")
