"""In which order nodes are started."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from kedro.framework.hooks.manager import _NullPluginManager
from kedro.framework.project import pipelines
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node

from degaml_kedro.pipeline_registry import _ON_DEVICE
from degaml_kedro.pipelines.naming import ALONE
from degaml_kedro.runners import RayRunner, RayRunnerError, StageRunner, turns


def declared(name: str, inputs: str | list[str], output: str, function=None):
    namespace, _, own = name.rpartition(".")

    def verb(*given):
        return (function or (lambda: None))()

    return node(verb, inputs, output, name=own, namespace=namespace or None)


def started(nodes, workers: int = 1) -> list[str]:
    """Names of nodes in the order they ran."""
    order: list[str] = []

    def noting(name):
        def note():
            order.append(name)
            # long enough for Kedro to hand over what the node before it made ready
            time.sleep(0.05)
            return 1

        return note

    made = Pipeline([declared(name, *wiring, noting(name)) for name, *wiring in nodes])
    runner = StageRunner(max_workers=workers)
    runner.run(made, DataCatalog({"start": MemoryDataset(1)}), _NullPluginManager())
    return order


EMBEDDED = [
    ("tasks.a.deal_splits", "start", "a.splits"),
    ("tasks.b.deal_splits", "start", "b.splits"),
    ("checkpoints.pool.train_on_pool", ["a.splits", "b.splits"], "pool"),
    ("tokenize.a.encode_prompts", "a.splits", "a.states"),
    ("evaluate.a.train_alone", "a.splits", "a.alone"),
    ("evaluate.b.train_alone", "b.splits", "b.alone"),
    ("evaluate.a.predict_no_meta_train", ["a.splits", "a.alone"], "a.answers"),
    ("evaluate.a.predict_base", "a.splits", "a.base"),
    ("evaluate.b.predict_base", "b.splits", "b.base"),
    ("evaluate.a.measure_base", "a.base", "a.result"),
    ("evaluate.b.measure_base", "b.base", "b.result"),
    ("mine", ["a.splits"], "own"),
]


def test_a_result_of_the_base_model_comes_first_then_the_stages_in_order():
    order = started(EMBEDDED)
    assert sorted(order) == sorted(name for name, *_ in EMBEDDED)
    of_base = [order.index(f"evaluate.{task}.measure_base") for task in "ab"]
    rest = [
        "checkpoints.pool.train_on_pool",
        "tokenize.a.encode_prompts",
        "evaluate.a.train_alone",
        "evaluate.b.train_alone",
        "mine",
    ]
    assert max(of_base) < order.index(rest[0])
    assert [name for name in order if name in rest] == rest
    # a thread does not wait for what its last node makes ready, but takes that next
    assert (
        order.index("evaluate.a.predict_no_meta_train") <= order.index("evaluate.b.train_alone") + 1
    )


def test_many_threads_run_everything_once():
    nodes = [(f"evaluate.t{i}.predict", "start", f"d{i}") for i in range(50)]
    nodes += [("evaluate.collect", [f"d{i}" for i in range(50)], "end")]
    order = started(nodes, workers=4)
    assert sorted(order) == sorted(name for name, *_ in nodes)
    assert order[-1] == "evaluate.collect"


def test_after_a_failure_nothing_else_is_begun():
    ran: list[int] = []

    def failing():
        raise ValueError("no")

    def running():
        ran.append(1)
        time.sleep(0.3)
        return 1

    nodes = [declared("tasks.first", "start", "x", failing)]
    nodes += [declared(f"evaluate.n{i}", "start", f"d{i}", running) for i in range(9)]
    runner = StageRunner(max_workers=1)
    with pytest.raises(ValueError, match="no"):
        runner.run(Pipeline(nodes), DataCatalog({"start": MemoryDataset(1)}), _NullPluginManager())
    # the one thread may have taken one before it, and one before it was told
    assert len(ran) <= 2


def test_the_base_models_nodes_have_the_names_that_are_looked_for(project):
    with project.session() as session:
        session.load_context()
    order = turns(pipelines["__default__"])
    first = {node.name for node, turn in order.items() if turn[0] == -1}
    assert {"evaluate.day_before.predict_base", "evaluate.day_before.measure_base"} <= first
    assert all(name.endswith("_base") for name in first)
    assert len(set(order.values())) == len(order)


def test_without_ray_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayRunnerError, match=r"needs Ray .*: pip install '\.\[ray\]'"):
        RayRunner()


def test_nodes_that_compute_with_a_model_ask_for_its_share_of_a_gpu(project):
    with project.session(model={"device": "auto"}, gpu_share=0.5) as session:
        session.load_context()
    tagged = {node.name for node in pipelines["__default__"].nodes if "gpu_0.5" in node.tags}
    others = {node.name for node in pipelines["__default__"].nodes} - tagged
    assert {"generator.train_mse_all", "evaluate.day_before.predict_base"} <= tagged
    assert {"evaluate.day_before.measure_base", "tasks.day_before.deal_splits"} <= others
    # every name in the list is a node's function
    functions = {node.func.__name__ for node in pipelines["__default__"].nodes}
    assert functions >= _ON_DEVICE
    # the profile's own device is the CPU
    with project.session() as session:
        session.load_context()
    assert not any("gpu" in tag for node in pipelines["__default__"].nodes for tag in node.tags)


def test_a_node_that_is_to_run_alone_has_all_threads_and_no_company():
    running, most, threads = set(), {}, {}

    def noting(name):
        def note():
            running.add(name)
            time.sleep(0.05)
            most[name], threads[name] = set(running), torch.get_num_threads()
            running.discard(name)
            return 1

        return note

    before = torch.get_num_threads()
    nodes = [declared(name, "start", f"{name}.out", noting(name)) for name in "abcdefgh"]
    nodes[4] = nodes[4].tag(ALONE)
    torch.set_num_threads(1)
    try:
        StageRunner(max_workers=3).run(
            Pipeline(nodes), DataCatalog({"start": MemoryDataset(1)}), _NullPluginManager()
        )
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert most["e"] == {"e"}
    assert threads == {**dict.fromkeys("abcdfgh", 1), "e": 3}
