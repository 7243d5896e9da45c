"""The pipelines as a whole, on the tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from kedro.framework.project import pipelines
from kedro.runner import ParallelRunner, SequentialRunner, ThreadRunner

from degaml_kedro.adapters.adapter import load_peft_folder
from degaml_kedro.io.trajectory import Trajectory
from tests.conftest import Project

# in one process, so that the reference is made once
pytestmark = pytest.mark.xdist_group("runs")

TASKS = ("kind_member", "day_after", "day_before")
# wall time is the one thing that differs between two runs
COST = ["seconds"]


def numbers(data: Path) -> dict[str, object]:
    """Everything a run made, but for how long it took."""
    made: dict[str, object] = {}
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        name = str(path.relative_to(data))
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
            made[name] = frame.drop(columns=COST, errors="ignore").to_json()
        elif path.suffix == ".json":
            content = _without_cost(json.loads(path.read_text()))
            if "target_modules" in content:
                # PEFT writes a set, in whatever order
                content["target_modules"].sort()
            made[name] = json.dumps(content)
        else:
            made[name] = path.read_bytes()
    return made


def _without_cost(value):
    if isinstance(value, dict):
        return {k: _without_cost(v) for k, v in value.items() if k not in COST}
    return [_without_cost(item) for item in value] if isinstance(value, list) else value


def run(project: Project, *names: str, runner=None, only_missing_outputs=False, **parameters):
    with project.session(**parameters) as session:
        session.run(
            pipeline_names=list(names) or None,
            runner=runner or SequentialRunner(),
            only_missing_outputs=only_missing_outputs,
        )


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tracking_database):
    """One sequential run that the others are compared with."""
    from kedro.framework.startup import bootstrap_project

    from tests.conftest import ROOT

    bootstrap_project(ROOT)
    project = Project(tmp_path_factory.mktemp("reference"), tracking_database)
    run(project)
    return project


def test_every_layer_is_filled(reference):
    made = set(numbers(reference.data))
    for task in TASKS:
        assert f"01_raw/{task}.parquet" in made
        assert f"02_intermediate/{task}.parquet" in made
        for method in ("base", "no_meta_train", "pooled"):
            assert f"07_model_output/{task}.{method}.parquet" in made
            assert f"07_model_output/{task}.{method}.json" in made
    for task in ("kind_member", "day_after"):
        assert f"03_primary/trajectories/{task}/trajectory.safetensors" in made
        assert f"06_models/{task}.final_adapter/adapter_model.safetensors" in made
    assert "06_models/pool.warmup_adapter/adapter_config.json" in made
    assert {f"08_reporting/results.{kind}" for kind in ("parquet", "json", "md")} <= made
    assert not [name for name in made if "partial" in name or "resume" in name]
    # a meta-test task has no trajectory of the meta-train kind
    assert "03_primary/trajectories/day_before/index.json" not in made


def test_results_carry_their_uncertainty_and_their_making(reference):
    record = json.loads((reference.data / "08_reporting/results.json").read_text())
    assert record["profile"] == "smoke"
    assert record["versions"]["torch"]
    assert len(record["results"]) == 9
    for result in record["results"]:
        assert result["n"] == 16
        assert result["accuracy_low"] <= result["accuracy"] <= result["accuracy_high"]
        assert 0 <= result["ece"] <= 1
        assert result["group"]
    table = pd.read_parquet(reference.data / "08_reporting/results.parquet")
    assert set(table["pool"]) == {"meta_train", "meta_test"}


def test_splits_are_disjoint_and_as_large_as_asked(reference):
    for task in TASKS:
        frame = pd.read_parquet(reference.data / f"02_intermediate/{task}.parquet")
        assert dict(frame["split"].value_counts()) == {
            "train": 24,
            "support": 4,
            "validation": 4,
            "test": 16,
        }
        assert frame["prompt"].is_unique


def test_trajectories_start_from_the_pooled_warm_up(reference):
    folder = reference.data / "03_primary/trajectories"
    about = [Trajectory(folder / task).about for task in ("kind_member", "day_after")]
    assert about[0]["start"] == about[1]["start"]
    assert Trajectory(folder / "pool").about["start"] != about[0]["start"]
    assert Trajectory(folder / "pool").steps == (3,)
    warm = load_peft_folder(reference.data / "06_models/pool.warmup_adapter")
    last = Trajectory(folder / "pool").last
    assert all((warm.tensors[name] == tensor).all() for name, tensor in last.tensors.items())


@pytest.mark.slow
@pytest.mark.parametrize("runner", [ThreadRunner, ParallelRunner])
def test_running_in_parallel_changes_no_number(project, reference, runner, monkeypatch):
    monkeypatch.setenv("KEDRO_MP_CONTEXT", "spawn")
    run(project, runner=runner(max_workers=2))
    assert numbers(project.data) == numbers(reference.data)


def test_the_stages_run_one_by_one_and_again(project, reference):
    run(project, "checkpoints")
    assert not (project.data / "07_model_output").exists()
    folder = project.data / "03_primary/trajectories/day_after"
    stamp = (folder / "trajectory.safetensors").stat().st_mtime_ns
    run(project, "checkpoints")
    assert (folder / "trajectory.safetensors").stat().st_mtime_ns == stamp
    run(project, "evaluate")
    assert numbers(project.data) == numbers(reference.data)


def test_what_is_missing_is_made_again_and_the_rest_is_left(project, reference):
    run(project)
    for name in ("03_primary/trajectories/day_after/index.json", "08_reporting/results.md"):
        (project.data / name).unlink()
    kept = project.data / "07_model_output/day_before.base.parquet"
    stamp = kept.stat().st_mtime_ns
    run(project, only_missing_outputs=True)
    assert kept.stat().st_mtime_ns == stamp
    assert numbers(project.data) == numbers(reference.data)


def test_another_seed_gives_other_examples(project, reference):
    run(project, "tasks", seed=1)
    name = "01_raw/day_after.parquet"
    assert numbers(project.data)[name] != numbers(reference.data)[name]


def test_changed_training_starts_over(project, caplog):
    run(project, "checkpoints")
    phases = [{"steps": 2, "learning_rate": 0.01}]
    run(project, "checkpoints", trajectory={"training": {"phases": phases}})
    assert "made with other settings" in caplog.text
    assert len(Trajectory(project.data / "03_primary/trajectories/day_after")) == 2


def test_a_trajectory_serves_as_no_meta_train_where_it_is_the_same_run(project):
    project.edit("smoke/parameters.yml", trajectory={"start": "shared_random"})
    training = {"phases": [{"steps": 3, "learning_rate": 1e-3}], "batch_size": 4}
    project.edit("smoke/parameters.yml", trajectory={"training": training}, no_meta_train=training)
    project.edit("smoke/parameters.yml", methods=["no_meta_train"])
    run(project)
    made = set(numbers(project.data))
    assert "06_models/day_after.no_meta_train.adapter/adapter_config.json" not in made
    assert "06_models/day_before.no_meta_train.adapter/adapter_config.json" in made
    assert not [name for name in made if "pool" in name]


def test_pipelines_follow_the_configuration(project):
    with project.session() as session:
        session.load_context()
    names = {node.name for node in pipelines["__default__"].nodes}
    assert "checkpoints.day_after.train_trajectory" in names
    assert "checkpoints.pool.train_on_pool" in names
    assert "evaluate.day_before.predict_base" in names
    project.edit("smoke/parameters.yml", meta_test=[], methods=["base"])
    project.edit("smoke/parameters.yml", trajectory={"start": "shared_random"})
    with project.session() as session:
        session.load_context()
    names = {node.name for node in pipelines["__default__"].nodes}
    assert not [name for name in names if "day_before" in name or "pool" in name]
    assert set(pipelines) == {"tasks", "checkpoints", "evaluate", "__default__"}
