"""What MLflow gets, and that a run does not depend on it."""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient

from degaml_kedro.generator.training import TrainingState
from degaml_kedro.io.generators import GeneratorProgress
from degaml_kedro.tracking.hook import TrackingHook
from tests.pipelines.helpers import run
from tests.tracking.helpers import nobody_listens

pytestmark = pytest.mark.xdist_group("runs")


@pytest.fixture
def client(tracking_database):
    return MlflowClient(f"sqlite:///{tracking_database}")


def latest(client, began=0.0):
    """The last pipeline's run, or the first after a time, and the runs below it by name."""
    experiment = client.get_experiment_by_name("degaml_kedro").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    # comparisons and models have runs of their own, which say so
    tops = [r for r in runs if not {"mlflow.parentRunId", "kind"} & set(r.data.tags)]
    top = tops[0]
    if began:
        top = min((r for r in tops if r.info.start_time >= 1000 * began), key=_start_time)
    below, waiting = {}, [top.info.run_id]
    while waiting:
        parent = waiting.pop()
        for child in runs:
            if child.data.tags.get("mlflow.parentRunId") == parent:
                below[child.info.run_name] = child
                waiting.append(child.info.run_id)
    return top, below


def _start_time(one):
    return one.info.start_time


def test_a_run_per_task_and_method(threaded, client):
    top, below = latest(client, threaded.began)
    assert top.data.params["profile"] == "smoke"
    assert top.data.params["model.source.kind"] == "random"
    assert top.data.params["trajectory.training.batch_size"] == "4"
    assert {"pool", "kind_member", "day_after", "day_before"} <= set(below)
    for task in ("kind_member", "day_after", "day_before"):
        for method in ("base", "no_meta_train", "pooled"):
            child = below[f"{task} {method}"]
            assert child.data.tags["task"] == task
            assert child.data.tags["method"] == method
            assert child.data.tags["mlflow.parentRunId"] == below[task].info.run_id
            assert {"accuracy", "accuracy_low", "accuracy_high", "nll", "ece", "n"} <= set(
                child.data.metrics
            )
    for name in ("pool", "kind_member", "day_before no_meta_train"):
        for key in ("loss", "learning_rate", "tokens_per_second"):
            history = client.get_metric_history(below[name].info.run_id, key)
            assert [metric.step for metric in history] == [1, 2, 3]
    assert {r.info.status for r in (top, *below.values())} == {"FINISHED"}


def test_a_trajectory_that_was_complete_shows_its_curve_again(copied, client):
    weights = copied.data / "03_primary/trajectories/day_after/trajectory.safetensors"
    stamp = weights.stat().st_mtime_ns
    run(copied, "checkpoints")
    assert weights.stat().st_mtime_ns == stamp
    _, below = latest(client)
    history = client.get_metric_history(below["day_after"].info.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2, 3]


def test_a_failed_run_is_closed_as_failed(project, client, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no results")

    monkeypatch.setattr("degaml_kedro.pipelines.evaluate.nodes.results_table", fail)
    project.edit("smoke/parameters.yml", methods=["base"])
    with pytest.raises(RuntimeError, match="no results"):
        run(project)
    top, below = latest(client)
    assert {r.info.status for r in (top, *below.values())} == {"FAILED"}
    assert "accuracy" in below["day_after base"].data.metrics


def test_runs_of_processes_that_are_gone_are_closed_as_killed(project, client):
    run(project, "tasks")
    tags = latest(client)[0].data.tags
    owner = {"host": socket.gethostname(), "pid": str(os.getpid())}
    assert owner.items() <= tags.items()
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = {
        "killed": {**owner, "pid": str(ended.pid)},
        "running": owner,
        "elsewhere": {"host": "another", "pid": str(ended.pid)},
        "nobody's": {},
    }
    experiment = client.get_experiment_by_name("degaml_kedro").experiment_id
    made = {name: client.create_run(experiment, tags=own).info.run_id for name, own in left.items()}
    run(project, "tasks")
    found = {name: client.get_run(run_id).info.status for name, run_id in made.items()}
    for run_id in made.values():
        client.delete_run(run_id)
    assert found == {**dict.fromkeys(left, "RUNNING"), "killed": "KILLED"}


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if "This run is not tracked" in r.getMessage()]


def test_what_cannot_be_used_is_said_once(project, caplog):
    project.edit("base/mlflow.yml", server={"mlflow_tracking_uri": "http://127.0.0.1:9"})
    # every stage once: no node may need MLflow
    methods = ["base", "union_train", "generalization_only_examples", "degaml"]
    project.edit("smoke/parameters.yml", methods=methods, generator={"leave_out": []})
    run(project)
    (said,) = warnings_of(caplog)
    assert "refused" in said
    assert f"-m degaml_kedro.tracking {project.data}" in said
    assert (project.data / "08_reporting/results.md").exists()


def test_no_password_is_logged(project, caplog):
    caplog.set_level(logging.DEBUG)
    uri = f"postgresql+psycopg2://me:s3cret@127.0.0.1:{nobody_listens()}/runs"
    project.edit("base/mlflow.yml", server={"mlflow_tracking_uri": uri})
    run(project, "tasks")
    assert len(warnings_of(caplog)) == 1
    assert "s3cret" not in caplog.text


def test_an_address_in_the_environment_that_does_not_count_is_said(
    project, caplog, monkeypatch, client
):
    monkeypatch.setattr("degaml_kedro.tracking.hook._ASKED_FOR", "postgresql://me:s3cret@host/runs")
    run(project, "tasks")
    said = [r.getMessage() for r in caplog.records if "MLFLOW_TRACKING_URI" in r.getMessage()]
    assert len(said) == 1
    assert "postgresql://me:***@host/runs" in said[0]
    # left open in mlflow.yml, the environment's is used
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    project.edit("base/mlflow.yml", server={"mlflow_tracking_uri": None})
    monkeypatch.setattr("degaml_kedro.tracking.hook._ASKED_FOR", "http://127.0.0.1:9")
    caplog.clear()
    run(project, "tasks")
    (said,) = warnings_of(caplog)
    assert "refused" in said


def test_a_run_per_generator(copied, threaded, client):
    top, below = latest(client, threaded.began)
    child = below["generator mse"]
    assert child.data.tags["generator"] == "mse"
    assert child.data.tags["group"] == "all"
    assert child.data.tags["mlflow.parentRunId"] == top.info.run_id
    for key in ("loss", "mse", "gradient_norm", "learning_rate"):
        history = client.get_metric_history(child.info.run_id, key)
        assert [metric.step for metric in history] == [1, 2, 3, 4]
    # not an objective of this one
    assert "sft" not in child.data.metrics
    for key in ("relative_error", "norm_ratio", "accuracy"):
        history = client.get_metric_history(child.info.run_id, f"{key}/seen/day_after")
        assert [metric.step for metric in history] == [2, 4]
    assert below["generator sft"].data.metrics["sft"] > 0
    fold = below["without_day_after generator mse"]
    assert fold.data.tags["group"] == "without_day_after"
    assert fold.data.tags["mlflow.parentRunId"] == below["without_day_after"].info.run_id
    assert "accuracy/held_out/day_after" in fold.data.metrics
    left_out = below["without_day_after day_after mean_adapter"].data
    assert {key: left_out.tags[key] for key in ("group", "task", "method")} == {
        "group": "without_day_after",
        "task": "day_after",
        "method": "mean_adapter",
    }
    assert below["day_after base"].data.tags["group"] == "all"
    # a generator of an earlier run shows its training again
    (copied.data / "08_reporting/results.md").unlink()
    run(copied, only_missing_outputs=True)
    _, below = latest(client)
    again = client.get_metric_history(below["generator mse"].info.run_id, "loss")
    assert [metric.step for metric in again] == [1, 2, 3, 4]
    assert "accuracy/held_out/day_after" in below["without_day_after generator mse"].data.metrics


def test_only_the_first_of_several_processes_tracks(project, client, monkeypatch):
    run(project, "tasks")
    before = latest(client)[0].info.run_id
    monkeypatch.setenv("RANK", "1")
    run(project, "tasks")
    assert latest(client)[0].info.run_id == before


class Recorder:
    """In place of MLflow's client."""

    def __init__(self):
        self.batches = []

    def log_batch(self, run_id, metrics):
        self.batches.append((run_id, [(m.key, m.value, m.step) for m in metrics]))

    def create_run(self, experiment, run_name, tags):
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))


def progress(done, **check):
    rows = [
        {
            "step": step,
            "loss": 1.0 / step,
            "mse": math.nan,
            "sft": 1.0 / step,
            "gradient_norm": 2.0,
            "learning_rate": 0.1,
            "seconds": 1.0,
        }
        for step in range(1, done + 1)
    ]
    whole = {"step": done, "task": "a", "held_out": False, "module": "all"}
    measured = {"relative_error": math.inf, "norm_ratio": 0.5, "accuracy": None, **check}
    part = {**whole, **measured, "module": "q_proj", "task": "never"}
    return GeneratorProgress("f", TrainingState(done, {}), rows, [{**whole, **measured}, part])


def test_a_generator_s_training_is_sent_while_it_goes_on(monkeypatch):
    tracking, recorder = TrackingHook(), Recorder()
    experiment = SimpleNamespace(_experiment=SimpleNamespace(experiment_id="1"))
    tracking.mlflow_config = SimpleNamespace(
        server=SimpleNamespace(_mlflow_client=recorder),
        tracking=SimpleNamespace(experiment=experiment),
    )
    tracking.run_id, tracking._labels = "top", frozenset({"without_a"})
    tracking.after_dataset_saved("without_a.sft.generator", progress(2))
    # not at every chunk
    assert not recorder.batches
    monkeypatch.setattr("degaml_kedro.tracking.hook._FLUSH_SECONDS", -1.0)
    tracking.after_dataset_saved("without_a.sft.generator", progress(3, accuracy=0.25))
    ((run_id, sent),) = recorder.batches
    assert run_id == "without_a generator sft"
    assert [row for row in sent if row[0] == "loss"] == [
        ("loss", 1.0, 1),
        ("loss", 0.5, 2),
        ("loss", pytest.approx(1 / 3), 3),
    ]
    keys = {row[0] for row in sent}
    # neither what is not finite, nor what is not of a whole adapter
    assert keys == {
        "loss",
        "sft",
        "gradient_norm",
        "learning_rate",
        "norm_ratio/seen/a",
        "accuracy/seen/a",
    }
    tracking.after_dataset_saved("without_a.sft.generator", progress(4))
    assert {row[2] for row in recorder.batches[1][1]} == {4}
