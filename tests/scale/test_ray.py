"""The pipelines on a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import threading
import time

import pytest
from kedro.framework.hooks.manager import _NullPluginManager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from kedro_datasets.json import JSONDataset

from degaml_kedro.runners import RayRunner, RayRunnerError, resources
from tests.conftest import ROOT
from tests.pipelines.helpers import run
from tests.pipelines.test_runs import numbers

ray = pytest.importorskip("ray", reason="the extra ray is not installed: make test-scale")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes with one CPU each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}/src:{ROOT}", prepend=":")
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    started.second = started.add_node(num_cpus=1)
    ray.init(address=started.address, logging_level="ERROR", log_to_driver=False)
    started.wait_for_nodes()
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.mark.slow
def test_a_run_whose_second_node_is_killed_comes_to_the_same_numbers(project, reference, cluster):
    results = project.data / "07_model_output"

    def kill_in_the_middle():
        while len(list(results.glob("*.json"))) < 10:
            time.sleep(0.1)
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=kill_in_the_middle, daemon=True)
    killer.start()
    run(project, runner=RayRunner())
    killer.join(timeout=1)
    assert not killer.is_alive()
    assert ray.cluster_resources()["CPU"] == 1
    assert numbers(project.data) == numbers(reference.data)


def failing(given):
    raise ValueError(f"no {given}")


def test_an_error_of_a_node_is_raised_as_it_is(cluster):
    steps = Pipeline([node(failing, "start", "end", name="failing")])
    with pytest.raises(ValueError, match="no 1"):
        RayRunner().run(steps, DataCatalog({"start": MemoryDataset(1)}), _NullPluginManager())


def same(given):
    return given


def test_data_that_only_a_worker_s_memory_would_hold_is_refused(cluster, tmp_path):
    steps = [node(same, "start", "between", name="a"), node(same, "between", "end", name="b")]
    catalog = DataCatalog({"start": MemoryDataset(1)})
    with pytest.raises(RayRunnerError, match=r"between would stay .* an entry in the catalog"):
        RayRunner().run(Pipeline(steps), catalog, _NullPluginManager())
    catalog["between"] = JSONDataset(filepath=str(tmp_path / "between.json"))
    catalog["end"] = JSONDataset(filepath=str(tmp_path / "end.json"))
    RayRunner().run(Pipeline(steps), catalog, _NullPluginManager())
    assert catalog.load("end") == 1


def test_tags_say_what_a_node_takes():
    asked = resources(node(same, "a", "b", tags=["cpu_2", "gpu_0.5", "memory_8e9", "alone"]))
    assert asked == {"num_cpus": 2, "num_gpus": 0.5, "memory": 8e9}
    assert resources(node(same, "a", "b")) == {"num_cpus": 1}
    with pytest.raises(RayRunnerError, match=r"the tag 'gpu_half'; it is like"):
        resources(node(same, "a", "b", name="n", tags="gpu_half"))
