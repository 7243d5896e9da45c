"""Kedro-Viz shows the real project: every pipeline, the layers in order, and a box a stage and task that folds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from degaml_kedro.pipelines.naming import PARAMETERS
from tests.conftest import ROOT

pytest.importorskip("kedro_viz", reason="the viz extra is not installed: pip install '.[viz]'")
# a command line of its own
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("interoperability")]

PIPELINES = (
    "__default__",
    "tasks",
    "checkpoints",
    "tokenize",
    "generator",
    "policy",
    "baselines",
    "evaluate",
    "report",
)
LAYERS = [
    "01_raw",
    "02_intermediate",
    "03_primary",
    "04_feature",
    "06_models",
    "07_model_output",
    "08_reporting",
]
# one node a task there
BY_TASK = ("tasks", "checkpoints", "tokenize", "baselines", "evaluate")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What ``kedro viz build`` gives the page, by pipeline."""
    folder = tmp_path_factory.mktemp("viz")
    shutil.copytree(ROOT / "conf", folder / "conf", ignore=shutil.ignore_patterns("local"))
    (folder / "conf" / "local").mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "src").mkdir()
    (folder / "src" / "degaml_kedro").symlink_to(ROOT / "src" / "degaml_kedro")
    done = subprocess.run(
        [sys.executable, "-m", "kedro", "viz", "build"],
        cwd=folder,
        env={**os.environ, "KEDRO_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (folder / "build" / "index.html").is_file(), done.stdout[-2000:] + done.stderr[-2000:]
    pages = folder / "build" / "api" / "pipelines"
    return {file.name: json.loads(file.read_text()) for file in pages.iterdir()}


def boxes(page: dict[str, Any]) -> set[str]:
    return set(page["modular_pipelines"]) - {"__root__"}


def test_every_pipeline_is_there(shown, project):
    assert set(shown) == set(PIPELINES)
    with project.session(env="base") as session:
        params = session.load_context().params
    for task in (*params["meta_train"], *params["meta_test"]):
        assert {f"tasks.{task}", f"evaluate.{task}"} <= boxes(shown["__default__"])


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_whole(shown, name):
    page = shown[name]
    ids = {node["id"] for node in page["nodes"]}
    ends = {edge[end] for edge in page["edges"] for end in ("source", "target")}
    # no edge leads nowhere, and nothing stands apart
    assert ends == ids
    assert any(node["type"] == "task" for node in page["nodes"])


@pytest.mark.parametrize("name", PIPELINES)
def test_data_have_layers_and_these_are_in_order(shown, name):
    # the parameters as one object are of no layer, as Kedro's own parameters are
    others = [node for node in shown[name]["nodes"] if node["name"] != PARAMETERS]
    data = [node for node in others if node["type"] == "data"]
    assert [node["name"] for node in data if not node["layer"]] == []
    # Kedro-Viz sorts layers by what is made from what: those that a pipeline has nothing in stand anywhere, and so does
    # that of the run's record, which is made from parameters alone
    used = {node["layer"] for node in data if node["name"] != "run_record"}
    assert [layer for layer in shown[name]["layers"] if layer in used] == [
        layer for layer in LAYERS if layer in used
    ]


def test_the_whole_has_every_layer(shown):
    assert shown["__default__"]["layers"] == LAYERS


@pytest.mark.parametrize("name", PIPELINES)
def test_every_node_is_in_a_box_that_folds(shown, name):
    page = shown[name]
    for node in page["nodes"]:
        if node["type"] == "task":
            assert node["modular_pipelines"], node["name"]
            assert set(node["modular_pipelines"]) <= boxes(page)
    # folded, only the stages are left
    root = page["modular_pipelines"]["__root__"]["children"]
    folded = {child["id"] for child in root if child["type"] == "modularPipeline"}
    assert folded == {box for box in boxes(page) if "." not in box}
    assert not any(child["type"] == "task" for child in root)


@pytest.mark.parametrize("name", BY_TASK)
def test_a_stage_has_a_box_for_every_task(shown, name):
    page = shown[name]
    inner = {child["id"] for child in page["modular_pipelines"][name]["children"]}
    tasks = {box for box in boxes(page) if box.count(".") == 1 and box.startswith(f"{name}.")}
    assert len(tasks) >= 6
    assert tasks <= inner


def test_the_policy_s_trials_are_boxed_by_iteration_and_task(shown):
    trials = {box for box in boxes(shown["policy"]) if box.count(".") == 2}
    assert len(trials) >= 10
    assert {box.split(".")[1] for box in trials} >= {"iteration_1", "iteration_2"}
