"""The pipelines on a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
from benchmarks.schedule import NodeTime, length, list_schedule, longest_paths, timed
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


SLEEP = 0.5


def sleeping(*given):
    began = time.time()
    time.sleep(SLEEP)
    return began, time.time()


def met(folder, name):
    """Waits for the other worker."""
    (folder / f"{name}.here").touch()
    while len(list(folder.glob("*.here"))) < 2:
        time.sleep(0.05)


def test_sleeping_nodes_on_fake_gpus_keep_to_the_schedule(monkeypatch, tmp_path, capsys):
    # two chains of three that a last node waits for, and six that nothing waits for
    wires = {
        f"{side}{n}": [f"{side}{n - 1}"] if n else ["start"] for side in "ab" for n in range(3)
    }
    wires |= {"end": ["a2", "b2"], **{f"free{n}": ["start"] for n in range(6)}}
    steps = Pipeline([node(sleeping, wires[one], one, name=one, tags="gpu") for one in wires])
    outputs = {one: JSONDataset(filepath=str(tmp_path / f"{one}.json")) for one in wires}
    catalog = DataCatalog({"start": MemoryDataset(1), **outputs})
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}/src:{ROOT}", prepend=":")
    ray.init(num_cpus=8, num_gpus=2, logging_level="ERROR", log_to_driver=False)
    try:
        # starting a worker takes seconds, which are not the schedule's
        ray.get([ray.remote(num_gpus=1)(met).remote(tmp_path, str(n)) for n in range(2)])
        RayRunner().run(steps, catalog, _NullPluginManager())
    finally:
        ray.shutdown()
    spans = {one: catalog.load(one) for one in wires}
    events = [(began, 1) for began, _ in spans.values()] + [(end, -1) for _, end in spans.values()]
    running = list(itertools.accumulate(change for _, change in sorted(events)))
    assert max(running) == 2
    for one, before in wires.items():
        assert all(spans[name][1] <= spans[one][0] for name in before if name != "start")
    nodes = timed(steps, {"other.sleeping": NodeTime(seconds=SLEEP, estimated="it sleeps")})
    measured = max(end for _, end in spans.values()) - min(began for began, _ in spans.values())
    expected = length(nodes, list_schedule(nodes, 2))
    # no schedule is shorter than this
    assert measured >= max(longest_paths(nodes).values())
    assert measured >= sum(one.seconds for one in nodes.values()) / 2
    with capsys.disabled():
        print(
            f"\nmeasured to predicted: {measured / expected:.2f} ({measured:.1f} s, {expected:.1f} s)"
        )
