"""What MLflow gets, and that a run does not depend on it."""

from __future__ import annotations

import sqlite3
import threading

import pytest
from kedro.runner import ThreadRunner
from mlflow.tracking import MlflowClient

from tests.pipelines.test_runs import run

pytestmark = pytest.mark.xdist_group("runs")


@pytest.fixture
def client(tracking_database):
    return MlflowClient(f"sqlite:///{tracking_database}")


def latest(client):
    """The last pipeline's run, and the runs below it by name."""
    experiment = client.get_experiment_by_name("degaml_kedro").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    top = next(r for r in runs if "mlflow.parentRunId" not in r.data.tags)
    below, waiting = {}, [top.info.run_id]
    while waiting:
        parent = waiting.pop()
        for child in runs:
            if child.data.tags.get("mlflow.parentRunId") == parent:
                below[child.info.run_name] = child
                waiting.append(child.info.run_id)
    return top, below


@pytest.mark.parametrize("runner", [None, ThreadRunner(max_workers=2)])
def test_a_run_per_task_and_method(project, client, runner):
    run(project, runner=runner)
    top, below = latest(client)
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


def test_a_trajectory_that_was_complete_shows_its_curve_again(project, client):
    run(project, "checkpoints")
    run(project, "checkpoints")
    _, below = latest(client)
    history = client.get_metric_history(below["day_after"].info.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2, 3]


def test_a_failed_run_is_closed_as_failed(project, client, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no results")

    monkeypatch.setattr("degaml_kedro.pipelines.evaluate.nodes.results_table", fail)
    with pytest.raises(RuntimeError, match="no results"):
        run(project)
    top, below = latest(client)
    assert {r.info.status for r in (top, *below.values())} == {"FAILED"}
    assert "accuracy" in below["day_after base"].data.metrics


def warnings_of(caplog):
    return [r.message for r in caplog.records if "MLflow cannot be reached" in r.message]


@pytest.mark.parametrize("uri", ["sqlite:////proc/nowhere.db", "http://127.0.0.1:9"])
def test_a_database_that_cannot_be_reached_is_said_once(project, caplog, uri):
    project.edit("base/mlflow.yml", server={"mlflow_tracking_uri": uri})
    run(project)
    assert (project.data / "08_reporting/results.md").exists()
    assert len(warnings_of(caplog)) == 1
    assert "mlflow.yml" in warnings_of(caplog)[0]


def test_a_file_that_is_no_database_is_said_once(project, caplog, tmp_path):
    (tmp_path / "text.db").write_text("this is a text, and long enough not to pass for a database")
    project.edit("base/mlflow.yml", server={"mlflow_tracking_uri": f"sqlite:///{tmp_path}/text.db"})
    run(project, "tasks")
    assert len(warnings_of(caplog)) == 1


def test_a_database_that_another_program_holds_is_said_once(
    project, caplog, tracking_database, monkeypatch
):
    monkeypatch.setattr("degaml_kedro.tracking._WAIT_SECONDS", 0.1)
    run(project, "tasks")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with sqlite3.connect(tracking_database) as database:
            database.execute("BEGIN EXCLUSIVE")
            held.set()
            done.wait()
            database.rollback()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    caplog.clear()
    try:
        run(project, "tasks")
    finally:
        done.set()
        other.join()
    assert len(warnings_of(caplog)) == 1
    assert "locked" in warnings_of(caplog)[0]
