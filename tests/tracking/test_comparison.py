"""A comparison in MLflow: what its runs say, that it is there once, and that it is read back as the report has it."""

from __future__ import annotations

import dataclasses
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline, node
from mlflow.tracking import MlflowClient

from degaml_kedro.errors import DegamlError
from degaml_kedro.io.atomic import AtomicTextDataset
from degaml_kedro.io.local import LocalDataset
from degaml_kedro.results.runs import Run, Runs
from degaml_kedro.results.statistics import costs, pool_answers, table
from degaml_kedro.tracking.__main__ import main
from degaml_kedro.tracking.comparison import (
    ComparisonView,
    MethodRow,
    _comparison,
    _digest,
    log_comparison,
    read_comparison,
)
from degaml_kedro.tracking.hook import log_outputs
from degaml_kedro.tracking.server import Place, TrackingError
from tests.tracking.helpers import OLDEST, copy_of, cost, nobody_listens, result, runs


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One database: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('comparison') / 'mlflow.db'}"


@pytest.fixture
def logged(uri, tmp_path, request):
    """Log into an experiment of the test's own."""

    def log(what: Runs, **options):
        return log_comparison(what, uri, request.node.name, (tmp_path / "art").as_uri(), **options)

    return log


@pytest.fixture
def read(uri, request) -> Callable[..., ComparisonView | None]:
    return lambda **options: read_comparison(uri, request.node.name, **options)


def one(view: ComparisonView | None, method: str) -> MethodRow:
    assert view is not None
    (row,) = (row for row in view.methods if row.method == method)
    return row


def below(client: MlflowClient, parent: str) -> dict[str, object]:
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {one.info.run_name: one for one in found}


def test_a_run_per_comparison_method_and_task(logged, uri):
    client, parent = MlflowClient(uri), logged(runs())
    top = client.get_run(parent)
    assert {k: top.data.tags[k] for k in ("kind", "profile", "seeds", "complete")} == {
        "kind": "comparison",
        "profile": "tests",
        "seeds": "999,1000",
        "complete": "true",
    }
    assert top.data.params["model.source.kind"] == "random"
    assert top.data.params["command"] == "kedro run --params seed=999"
    methods = below(client, parent)
    assert set(methods) == {"icl", "abmll", "maml_en_llm", "oracle_strategy"}
    abmll = methods["abmll"]
    assert abmll.data.tags["kind"] == "method"
    assert abmll.data.params["baselines.abmll.beta"] == "1e-08"
    assert abmll.data.params["chosen.steps"] == "8"
    assert methods["icl"].data.params["baselines.icl.settings"] == "[{'shots': 5}]"
    assert "baselines.abmll.beta" not in methods["icl"].data.params
    tasks = below(client, abmll.info.run_id)
    assert set(tasks) == {"a abmll", "b abmll"}
    tags = tasks["a abmll"].data.tags
    assert {k: tags[k] for k in ("kind", "method", "task", "pool")} == {
        "kind": "task",
        "method": "abmll",
        "task": "a",
        "pool": "meta_test",
    }
    every = [top, *methods.values(), *tasks.values()]
    assert {one.info.status for one in every} == {"FINISHED"}


def test_means_over_seeds_and_tasks_and_a_value_a_seed(logged, uri):
    client, parent = MlflowClient(uri), logged(runs())
    methods = below(client, parent)
    icl = methods["icl"].data.metrics
    # (0.5 + 0.25 + 0.75 + 0.25) / 4
    assert icl["accuracy/meta_test"] == pytest.approx(0.4375)
    assert icl["accuracy/meta_train"] == 0.5
    a = below(client, methods["icl"].info.run_id)["a icl"]
    assert a.data.metrics["accuracy"] == pytest.approx(0.625)
    assert a.data.metrics["n"] == 200
    assert a.data.metrics["seeds"] == 2
    steps = client.get_metric_history(a.info.run_id, "by_seed/accuracy")
    assert sorted((m.step, m.value) for m in steps) == [(0, 0.5), (1, 0.75)]
    steps = client.get_metric_history(methods["icl"].info.run_id, "by_seed/accuracy/meta_test")
    assert sorted((m.step, m.value) for m in steps) == [(0, 0.375), (1, 0.5)]
    # named alike, so that the compare view puts them side by side
    shared = {"accuracy", "accuracy_low", "accuracy_high", "nll", "ece", "n", "seconds"}
    b = below(client, methods["abmll"].info.run_id)["b abmll"].data.metrics
    assert shared <= set(a.data.metrics)
    assert shared <= set(b)


def test_costs_by_stage(logged, uri):
    client, parent = MlflowClient(uri), logged(runs())
    abmll = below(client, parent)["abmll"]
    metrics = abmll.data.metrics
    assert metrics["forward_tokens_meta_training"] == 1000
    assert metrics["backward_tokens_meta_training"] == 2000
    # of the one run that searched, not half of it
    assert metrics["forward_tokens_search"] == 500
    assert metrics["forward_tokens_adaptation/meta_test"] == 20
    b = below(client, abmll.info.run_id)["b abmll"].data.metrics
    assert (b["forward_tokens_adaptation"], b["backward_tokens_adaptation"]) == (30, 60)
    icl = below(client, parent)["icl"]
    a = below(client, icl.info.run_id)["a icl"].data.metrics
    assert a["tokens_adaptation"] == 60
    assert "forward_tokens_adaptation" not in a
    # of one task of two: no mean
    assert "tokens_adaptation/meta_test" not in icl.data.metrics


def test_costs_of_which_only_the_sum_is_known(logged, uri):
    apart = {"forward_tokens": None, "backward_tokens": None, "tokens": 40}
    rows = [{**cost("abmll", "adaptation", task, 0), **apart} for task in "ab"]
    changed = [dataclasses.replace(one, compute=pd.DataFrame(rows)) for one in runs().runs]
    client = MlflowClient(uri)
    parent = logged(dataclasses.replace(runs(), runs=tuple(changed)))
    abmll = below(client, parent)["abmll"]
    a = below(client, abmll.info.run_id)["a abmll"].data.metrics
    assert (a["tokens_adaptation"], a["seconds_adaptation"]) == (40, 0.5)
    assert abmll.data.metrics["tokens_adaptation/meta_test"] == 40
    for metrics in (a, abmll.data.metrics):
        assert not any("forward" in name or "backward" in name for name in metrics)


def test_a_pool_s_mean_is_the_report_s_where_tasks_have_unequal_seeds(logged, uri):
    n, right = 20, {("a", 0): 10, ("a", 1): 20, ("b", 0): 5}
    uneven = []
    for place, one in enumerate(runs().runs):
        places = {task: count for (task, run_), count in right.items() if run_ == place}
        results = [
            result(task, "meta_test", "icl", one.seed, count / n, n=n)
            for task, count in places.items()
        ]
        answers = [
            {"task": task, "pool": "meta_test", "method": "icl", "index": i, "right": i < count}
            for task, count in places.items()
            for i in range(n)
        ]
        spent = [cost("icl", "adaptation", task, 10 * (place + 1)) for task in places]
        changes = {"results": results, "answers": answers, "compute": spent}
        frames = {name: pd.DataFrame(rows) for name, rows in changes.items()}
        uneven.append(dataclasses.replace(one, **frames))
    what = Runs(tuple(uneven), ("icl",), {"meta_test": ("a", "b")})
    client = MlflowClient(uri)
    icl = below(client, logged(what))["icl"]
    metrics = icl.data.metrics
    (mean,) = [row for row in table(pool_answers(what, "meta_test")) if row.task is None]
    (spent,) = costs(what)["adaptation_tokens"]
    # a: (0.5 + 1) / 2, b: 0.25
    assert metrics["accuracy/meta_test"] == pytest.approx(0.5) == mean.accuracy
    assert metrics["tokens_adaptation/meta_test"] == pytest.approx(spent)
    assert metrics["seeds/meta_test"] == mean.seeds == 1
    history = client.get_metric_history(icl.info.run_id, "by_seed/accuracy/meta_test")
    assert [(m.step, m.value) for m in history] == [(0, 0.375)]
    # a task that was asked for and that nobody answered: no mean, here as there
    what = dataclasses.replace(what, tasks={"meta_test": ("a", "b", "z")})
    assert "accuracy/meta_test" not in below(client, logged(what))["icl"].data.metrics
    assert all(
        row.accuracy is None for row in table(pool_answers(what, "meta_test")) if row.task is None
    )


def test_what_is_missing_is_not_logged_and_named(logged, uri):
    client, parent = MlflowClient(uri), logged(runs())
    methods = below(client, parent)
    c = below(client, methods["icl"].info.run_id)["c icl"].data.metrics
    assert "nll" not in c
    assert "nll/meta_train" not in methods["icl"].data.metrics
    # no results at all: there, and empty
    assert methods["maml_en_llm"].data.metrics == {}
    assert "seed_999 meta_test a" in methods["maml_en_llm"].data.tags["missing"]
    # one task of two: no mean that would stand beside the others' means of both
    oracle = methods["oracle_strategy"]
    assert "accuracy/meta_test" not in oracle.data.metrics
    assert "seed_1000 meta_test b" in oracle.data.tags["missing"]
    assert oracle.data.tags["bound"] == "true"
    assert "bound" not in methods["icl"].data.tags
    assert below(client, oracle.info.run_id)["a oracle_strategy"].data.metrics["accuracy"] == 1.0
    # of two seeds one: its value, and no mean of unequal seeds for the pool
    one, two = runs().runs
    two = dataclasses.replace(two, results=two.results[two.results["task"] != "b"])
    one = dataclasses.replace(
        one, results=one.results[(one.results["task"] != "a") | (one.results["method"] != "icl")]
    )
    parent = logged(dataclasses.replace(runs(), runs=(one, two)))
    icl = below(client, parent)["icl"]
    assert "accuracy/meta_test" not in icl.data.metrics
    a = below(client, icl.info.run_id)["a icl"]
    assert (a.data.metrics["accuracy"], a.data.metrics["seeds"]) == (0.75, 1)
    history = client.get_metric_history(a.info.run_id, "by_seed/accuracy")
    assert [(m.step, m.value) for m in history] == [(1, 0.75)]


def test_the_same_content_is_logged_once(logged, uri, tmp_path):
    client = MlflowClient(uri)
    first = logged(runs())
    page = tmp_path / "report.html"
    page.write_text("<p>as it looks today</p>")
    shuffled = tuple(
        dataclasses.replace(one, results=one.results.sample(frac=1, random_state=1))
        for one in runs().runs
    )
    assert logged(dataclasses.replace(runs(), runs=shuffled), page=page) == first
    experiment = client.get_run(first).info.experiment_id
    assert len(client.search_runs([experiment], "tags.kind = 'comparison'")) == 1
    assert [file.path for file in client.list_artifacts(first)] == ["report.html"]
    other = dataclasses.replace(runs(), runs=runs().runs[:1])
    assert logged(other) != first


def test_a_half_logged_one_is_none_and_replaced(logged, read, uri, monkeypatch):
    client = MlflowClient(uri)
    real, sent = MlflowClient.log_batch, []

    def killed(self, run, *args, **kwargs):
        sent.append(run)
        if len(sent) == 4:
            raise KeyboardInterrupt
        real(self, run, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            logged(runs())
    half = sent[0]
    assert below(client, half)
    assert read() is None
    whole = logged(runs())
    assert whole != half
    assert client.get_run(half).info.lifecycle_stage == "deleted"
    assert below(client, half) == {}
    assert set(below(client, whole)) == set(runs().methods)
    assert logged(runs()) == whole == read().run
    client.delete_run(whole)
    assert read() is None


@settings(max_examples=6)
@given(st.sampled_from(["accuracy", "nll", "n"]), st.integers(0, 5), st.floats(0.01, 0.2))
def test_any_other_number_is_other_content(name, row, by):
    one, two = runs().runs
    results = one.results.copy()
    results[name] = results[name].astype(float)
    before = results.loc[row, name]
    results.loc[row, name] = 0.0 if before == float("inf") else before + by
    changed = dataclasses.replace(runs(), runs=(dataclasses.replace(one, results=results), two))
    assert _digest(_comparison(changed)) != _digest(_comparison(runs()))


@pytest.mark.slow
def test_a_whole_suite_is_logged_within_seconds(logged):
    methods = [f"method_{i}" for i in range(12)]
    tasks = [f"task_{i}" for i in range(16)]
    every = [
        Run(
            f"seed_{seed}",
            seed,
            "tests",
            pd.DataFrame([result(t, "meta_test", m, seed, 0.5) for m in methods for t in tasks]),
            pd.DataFrame(),
            pd.DataFrame([cost(m, "adaptation", t, 10) for m in methods for t in tasks]),
        )
        for seed in (1, 2, 3)
    ]
    began = time.perf_counter()
    logged(Runs(tuple(every), tuple(methods), {"meta_test": tuple(tasks)}))
    seconds = time.perf_counter() - began
    print(f"12 methods x 16 tasks: {seconds:.1f} s")
    assert seconds < 60


# --- what is read back ----------------------------------------------------------------------------


def test_what_was_logged_comes_back(logged, read):
    parent = logged(runs())
    view = read()
    assert view is not None
    assert (view.run, view.profile, view.seeds) == (parent, "tests", (999, 1000))
    assert view.pool == "meta_test"
    assert view.when.tzinfo is not None
    # as they were asked for, not by name
    names = [row.method for row in view.methods]
    assert names == ["icl", "abmll", "maml_en_llm", "oracle_strategy"]
    icl, abmll = one(view, "icl"), one(view, "abmll")
    # (0.5 + 0.25 + 0.75 + 0.25) / 4
    assert icl.accuracy == pytest.approx(0.4375)
    assert icl.by_seed == (0.375, 0.5)
    assert (icl.n, icl.bound) == (200, False)
    assert (abmll.tokens, abmll.seconds) == (60, 0.5)
    # nothing at all; one task of two, so no accuracy, and no cost that would stand beside the others'
    assert (one(view, "maml_en_llm").accuracy, one(view, "maml_en_llm").by_seed) == (None, ())
    assert (one(view, "oracle_strategy").accuracy, one(view, "oracle_strategy").bound) == (
        None,
        True,
    )
    assert icl.tokens is None
    assert one(read(pool="meta_train"), "icl").accuracy == 0.5
    assert one(read(pool="left_out"), "icl").accuracy is None


def test_the_page_says_what_the_report_says(logged, read, tmp_path):
    n, right = 20, {"icl": (10, 15, 5, 5), "abmll": (20, 10, 15, 4)}
    finished = []
    for seed, run in enumerate(runs().runs):
        counts = {
            (method, task): numbers[2 * seed + place]
            for method, numbers in right.items()
            for place, task in enumerate("ab")
        }
        frames = {
            "results": [
                result(task, "meta_test", method, run.seed, count / n, n=n)
                for (method, task), count in counts.items()
            ],
            "answers": [
                {
                    "task": task,
                    "pool": "meta_test",
                    "method": method,
                    "index": i,
                    "right": i < count,
                }
                for (method, task), count in counts.items()
                for i in range(n)
            ],
            "compute": [
                cost(method, "adaptation", task, 10 * (seed + 1)) for method, task in counts
            ],
        }
        # what the report reads are Parquet files
        for name, rows in frames.items():
            pd.DataFrame(rows).to_parquet(tmp_path / f"{seed}_{name}.parquet")
        stored = {name: pd.read_parquet(tmp_path / f"{seed}_{name}.parquet") for name in frames}
        finished.append(dataclasses.replace(run, **stored))
    what = Runs(tuple(finished), ("icl", "abmll"), {"meta_test": ("a", "b")})
    logged(what)
    means = {row.method: row for row in table(pool_answers(what, "meta_test")) if row.task is None}
    spent = costs(what)
    for method in right:
        row = one(read(), method)
        assert row.accuracy == pytest.approx(means[method].accuracy, abs=1e-12)
        assert len(row.by_seed) == means[method].seeds
        assert pd.Series(row.by_seed).std() == pytest.approx(means[method].spread, abs=1e-12)
        assert row.tokens == pytest.approx(spent.loc[method, "adaptation_tokens"])
        assert row.seconds == pytest.approx(spent.loc[method, "adaptation_seconds"])


def of_profile(name: str) -> Runs:
    renamed = tuple(dataclasses.replace(run, profile=name) for run in runs().runs)
    return dataclasses.replace(runs(), runs=renamed)


def test_the_newest_one_and_one_of_the_smoke_profile_only_where_there_is_no_other(logged, read):
    smoke = of_profile("smoke")
    first = logged(smoke)
    assert read().run == first
    logged(of_profile("other"))
    newest = logged(runs())
    logged(dataclasses.replace(smoke, runs=smoke.runs[:1]))
    assert read().run == newest


def test_nothing_is_made_by_looking(uri, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read() is None
    assert MlflowClient(uri).get_experiment_by_name("test_nothing_is_made_by_looking") is None
    assert read_comparison(f"sqlite:///{tmp_path / 'none.db'}") is None
    assert read_comparison((tmp_path / "mlruns").as_uri()) is None
    # a database without tables, which MLflow would fill
    empty = tmp_path / "empty.db"
    with closing(sqlite3.connect(empty)) as database:
        database.execute("CREATE TABLE cats (name TEXT)")
    before = empty.read_bytes()
    assert read_comparison(f"sqlite:///{empty}") is None
    assert empty.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["empty.db"]


def test_what_cannot_be_read_is_said(tmp_path):
    file = tmp_path / "mlflow.db"
    file.write_text("not a database, but long enough to be taken for one\n" * 40)
    for uri, words in (
        (f"sqlite:///{file}", "not a database"),
        (f"http://me:s3cret@127.0.0.1:{nobody_listens()}", "refused"),
    ):
        with pytest.raises(TrackingError, match=f"MLflow cannot be used at .*{words}") as caught:
            read_comparison(uri)
        assert "s3cret" not in str(caught.value)


def test_reading_does_not_need_the_project_s_hooks():
    code = "import sys, degaml_kedro.tracking.comparison; print('kedro.framework' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parent,
    )
    assert done.stdout.strip().endswith("False")


# --- the command, and the end of a run ---------------------------------------------------------------------


@pytest.fixture
def stored(monkeypatch):
    """In place of finished runs on disk."""

    class Stored(LocalDataset[None, Runs]):
        def load(self) -> Runs:
            if self._path.name == "half":
                raise DegamlError(f"{self._path}/x.json cannot be read; delete it")
            return runs()

        def save(self, data: None) -> None:
            raise NotImplementedError

    monkeypatch.setattr("degaml_kedro.tracking.__main__.RunsDataset", Stored)
    return Stored


def test_the_command_imports_what_is_on_disk(stored, tmp_path, uri, capsys, monkeypatch, request):
    folder = tmp_path / "runs"
    (folder / "06_models").mkdir(parents=True)
    (folder / "08_reporting").mkdir()
    (folder / "08_reporting" / "report.html").write_text("<p>")
    monkeypatch.chdir(tmp_path)
    name = request.node.name
    # outside of a project MLflow chooses where files go: not here
    MlflowClient(uri).create_experiment(name, artifact_location=(tmp_path / "art").as_uri())
    for _ in range(2):
        assert main([str(folder), "--uri", uri, "--experiment", name]) == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name).experiment_id
    (top,) = client.search_runs([experiment], "tags.kind = 'comparison'")
    assert top.info.run_id in capsys.readouterr().out
    assert [file.path for file in client.list_artifacts(top.info.run_id)] == ["report.html"]


def test_the_command_says_what_is_wrong(stored, tmp_path, uri, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(tmp_path / "half"), "--uri", uri]) == 1
    assert "x.json cannot be read; delete it" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1
    assert "--uri" in capsys.readouterr().err
    dead = f"postgresql://me:s3cret@127.0.0.1:{nobody_listens()}/d"
    assert main([str(tmp_path), "--uri", dead]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert "s3cret" not in said


def write(runs):
    return str(runs)


@pytest.fixture
def reported(stored, tmp_path):
    """A report pipeline that has run, and its catalog."""
    folder = tmp_path / "runs"
    page = AtomicTextDataset(filepath=str(folder / "08_reporting" / "report.html"))
    page.save("<p>the page</p>")
    (folder / "06_models").mkdir()
    pipeline = Pipeline([node(write, "runs", "report_page", name="write_report")])
    catalog = DataCatalog({"runs": stored(filepath=folder), "report_page": page})
    return pipeline, catalog, folder


def test_a_report_s_comparison_is_logged_once(reported, uri, tmp_path):
    pipeline, catalog, _ = reported
    place = Place(uri, tmp_path.name, (tmp_path / "art").as_uri())
    for _ in range(2):
        log_outputs(place, pipeline, catalog)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(tmp_path.name).experiment_id
    (top,) = client.search_runs([experiment], "tags.kind = 'comparison'")
    assert [file.path for file in client.list_artifacts(top.info.run_id)] == ["report.html"]


def test_what_cannot_be_logged_is_said_with_the_command_for_later(reported, tmp_path, caplog, uri):
    pipeline, catalog, folder = reported
    for place, words in (
        (f"http://127.0.0.1:{nobody_listens()}", "refused"),
        (copy_of(uri, tmp_path, OLDEST), "mlflow db upgrade"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            log_outputs(Place(place, "tests"), pipeline, catalog)
        (said,) = [r.getMessage() for r in caplog.records if r.name.startswith("degaml_kedro")]
        assert words in said
        assert f"-m degaml_kedro.tracking {folder}" in said
        assert "on disk" in said


def test_other_runs_leave_the_place_alone():
    other = Pipeline([node(write, "a", "without_x.mse.generator", name="fold")])
    log_outputs(Place(f"http://127.0.0.1:{nobody_listens()}", "tests"), other, DataCatalog())
