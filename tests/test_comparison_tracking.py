"""A comparison in MLflow: what its runs say, that it is there once, and what is said when it cannot be."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import sqlite3
import sys
import threading
import time
import types
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from mlflow.tracking import MlflowClient

from degaml_kedro import comparison_tracking, mlflow_server
from degaml_kedro.comparison_tracking import content_digest, log_comparison, main
from degaml_kedro.errors import DegamlError
from degaml_kedro.io.atomic import AtomicTextDataset
from degaml_kedro.io.local import LocalDataset
from degaml_kedro.mlflow_server import TrackingError, explain, knock, masked, place_of
from degaml_kedro.results.runs import Run, Runs
from degaml_kedro.results.statistics import costs, pool_answers, table
from degaml_kedro.tracking import ComparisonHook
from tests.conftest import ROOT

SEEDS = (999, 1000)
TASKS = {"meta_test": ("a", "b"), "meta_train": ("c",)}


def result(task: str, pool: str, method: str, seed: int, accuracy: float, **changes) -> dict:
    row = {
        "task": task,
        "group": "g",
        "pool": pool,
        "method": method,
        "profile": "tests",
        "seed": seed,
        "model": "random",
        "split": "s",
        "n": 200,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.1,
        "accuracy_high": accuracy + 0.1,
        "chance": 0.25,
        "nll": 1.5,
        "ece": 0.25,
        "invalid": 0.0,
        "seconds": 2.0,
        "tokens": 100,
        "draws": 1,
        "accuracy_spread": 0.0,
    }
    return {**row, **changes}


def cost(method: str, stage: str, task: str | None, tokens: int, **changes: object) -> dict:
    row = {
        "method": method,
        "stage": stage,
        "task": task,
        "pool": None if task is None else "meta_test",
        "forward_tokens": tokens,
        "backward_tokens": 2 * tokens,
        "tokens": 3 * tokens,
        "seconds": 0.5,
    }
    return {**row, **changes}


def run(place: int, seed: int) -> Run:
    results = [
        result("a", "meta_test", "icl", seed, 0.5 + 0.25 * place),
        result("b", "meta_test", "icl", seed, 0.25),
        result("c", "meta_train", "icl", seed, 0.5, nll=float("inf")),
        result("a", "meta_test", "abmll", seed, 0.75),
        result("b", "meta_test", "abmll", seed, 0.5),
        result("a", "meta_test", "oracle_strategy", seed, 1.0),
    ]
    compute = [
        cost("abmll", "meta_training", None, 1000),
        cost("abmll", "adaptation", "a", 10),
        cost("abmll", "adaptation", "b", 30),
        # two things that were counted, of one of them the sum alone
        cost("icl", "adaptation", "a", 10),
        cost("icl", "adaptation", "a", 10, forward_tokens=float("nan")),
        *([cost("abmll", "search", None, 500)] if place == 0 else []),
    ]
    settings = pd.DataFrame(
        [
            {"method": "abmll", "chosen": chosen, "setting": {"steps": steps}}
            for chosen, steps in ((False, 4), (True, 8))
        ]
    )
    record = {
        "command": f"kedro run --params seed={seed}",
        "versions": {"mlflow": "3"},
        "parameters": {
            "profile": "tests",
            "seed": seed,
            "model": {"source": {"kind": "random"}},
            "baselines": {"abmll": {"beta": 1e-8}, "icl": {"settings": [{"shots": 5}]}},
        },
    }
    return Run(
        f"seed_{seed}",
        seed,
        "tests",
        pd.DataFrame(results),
        pd.DataFrame(),
        pd.DataFrame(compute),
        record,
        {"settings": settings},
    )


def runs() -> Runs:
    methods = ("icl", "abmll", "maml_en_llm", "oracle_strategy")
    return Runs(tuple(run(i, seed) for i, seed in enumerate(SEEDS)), methods, TASKS)


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


def test_a_half_logged_one_is_replaced(logged, uri, monkeypatch):
    client = MlflowClient(uri)
    real, sent = comparison_tracking._send, []

    def killed(*args, **kwargs):
        sent.append(args)
        if len(sent) == 4:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(comparison_tracking, "_send", killed)
    with pytest.raises(KeyboardInterrupt):
        logged(runs())
    half = sent[0][1]
    assert below(client, half)
    monkeypatch.setattr(comparison_tracking, "_send", real)
    whole = logged(runs())
    assert whole != half
    assert client.get_run(half).info.lifecycle_stage == "deleted"
    assert below(client, half) == {}
    assert set(below(client, whole)) == set(runs().methods)
    assert logged(runs()) == whole


@settings(max_examples=20)
@given(st.sampled_from(["accuracy", "nll", "n"]), st.integers(0, 5), st.floats(0.01, 0.2))
def test_any_other_number_is_other_content(name, row, by):
    one, two = runs().runs
    results = one.results.copy()
    results[name] = results[name].astype(float)
    before = results.loc[row, name]
    results.loc[row, name] = 0.0 if before == float("inf") else before + by
    changed = dataclasses.replace(runs(), runs=(dataclasses.replace(one, results=results), two))
    assert content_digest(changed) != content_digest(runs())


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


# --- a server that cannot be used -----------------------------------------------------------------


def nobody_listens() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def copy_of(uri: str, folder: Path, revision: str) -> str:
    """The database, stamped with another schema."""
    MlflowClient(uri).search_experiments()
    file = folder / "other.db"
    file.write_bytes(Path(uri.removeprefix("sqlite:///")).read_bytes())
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        database.commit()
    return f"sqlite:///{file}"


def test_a_server_that_is_down():
    uri = f"http://127.0.0.1:{nobody_listens()}"
    with pytest.raises(TrackingError, match=r"cannot be used .*refused.*" + uri):
        log_comparison(runs(), uri, "tests")


def test_an_older_schema_names_the_command_and_a_copy(uri, tmp_path):
    # the first schema that MLflow ever had a migration for
    old = copy_of(uri, tmp_path, "451aebb31d03")
    before = Path(old.removeprefix("sqlite:///")).read_bytes()
    with pytest.raises(
        TrackingError, match=f"make a copy of the file first.*mlflow db upgrade {old}"
    ):
        log_comparison(runs(), old, "tests")
    # MLflow itself migrates some of them unasked
    assert Path(old.removeprefix("sqlite:///")).read_bytes() == before


def test_a_newer_schema_names_both(uri, tmp_path):
    new = copy_of(uri, tmp_path, "ffffffffffff")
    with pytest.raises(
        TrackingError, match=r"newer MLflow: its schema is ffffffffffff, and MLflow 3\."
    ):
        knock(new)


def test_an_older_schema_that_is_upgraded_works(tmp_path, uri):
    # as the message says: a copy, then the command's own function
    from mlflow.store.db import utils

    old = copy_of(uri, tmp_path, mlflow_server._revisions()[0])
    knock(old)
    utils._upgrade_db(utils.create_sqlalchemy_engine_with_retry(old))
    knock(old)


def test_a_locked_database_says_so(uri, monkeypatch):
    monkeypatch.setattr(mlflow_server, "WAIT_SECONDS", 0.1)
    MlflowClient(uri).search_experiments()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
            database.execute("BEGIN EXCLUSIVE")
            held.set()
            done.wait()
            database.rollback()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    try:
        with pytest.raises(TrackingError, match="locked: another program writes to"):
            log_comparison(runs(), uri, "tests")
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("postgresql://me:s3cret@h:5/d", "postgresql://me:***@h:5/d"),
        (
            "at postgresql+psycopg2://me:p@ss:w@h/d, then",
            "at postgresql+psycopg2://me:***@h/d, then",
        ),
        (
            "postgresql://h/d?user=me&password=s3cret&x=1",
            "postgresql://h/d?user=me&password=***&x=1",
        ),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        (f"sqlite:///{ROOT / 'mlflow.db'}", f"sqlite:///{ROOT / 'mlflow.db'}"),
    ],
)
def test_passwords_are_masked(words, expected):
    assert masked(words) == expected


def test_a_dead_postgresql_server_does_not_hang(monkeypatch):
    """One that takes connections and never answers, which a port check alone would not notice."""
    psycopg2 = pytest.importorskip("psycopg2")
    assert psycopg2
    monkeypatch.setattr(mlflow_server, "WAIT_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"postgresql+psycopg2://me:s3cret@127.0.0.1:{silent.getsockname()[1]}/runs"
        began = time.perf_counter()
        with pytest.raises(TrackingError) as caught:
            log_comparison(runs(), uri, "tests")
    assert time.perf_counter() - began < 10
    assert "s3cret" not in str(caught.value)
    assert "me:***@" in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(TrackingError, match=r"degaml-kedro\[postgres\]") as caught:
        knock("postgresql+psycopg2://me:s3cret@127.0.0.1/runs")
    assert "s3cret" not in str(caught.value)


def test_explanations_are_one_line_without_a_password():
    error = OSError("no postgresql://a:b@c/d\nmore")
    assert explain(error, "postgresql://a:b@c/d") == "no postgresql://a:***@c/d"


# --- where to --------------------------------------------------------------------------------------


def test_the_place_is_the_configuration_s(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://h/d")
    config = {
        "server": {"mlflow_tracking_uri": "sqlite:///x.db"},
        "tracking": {
            "experiment": {"name": "e", "create_experiment_kwargs": {"artifact_location": "mlruns"}}
        },
    }
    place = place_of({"mlflow": config}, tmp_path)
    assert (place.uri, place.experiment) == ("sqlite:///x.db", "e")
    assert place.artifact_location == (tmp_path / "mlruns").as_uri()
    # left open there, the environment says it
    place = place_of({"mlflow": {"server": {"mlflow_tracking_uri": None}}}, tmp_path)
    assert place.uri == "postgresql://h/d"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert place_of({"mlflow": {}}, tmp_path).uri == (tmp_path / "mlruns").as_uri()


# --- the command and the hook ---------------------------------------------------------------------


@pytest.fixture
def stored(monkeypatch):
    """In place of finished runs on disk."""
    module = types.ModuleType("degaml_kedro.io.runs")

    class Stored(LocalDataset[None, Runs]):
        def load(self) -> Runs:
            if self._path.name == "half":
                raise DegamlError(f"{self._path}/x.json cannot be read; delete it")
            return runs()

        def save(self, data: None) -> None:
            raise NotImplementedError

    module.RunsDataset = Stored
    monkeypatch.setitem(sys.modules, "degaml_kedro.io.runs", module)
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


class Context:
    def __init__(self, uri: str, folder: Path) -> None:
        self.project_path = folder
        experiment = {
            "name": folder.name,
            "create_experiment_kwargs": {"artifact_location": "mlruns"},
        }
        self.config_loader = {
            "mlflow": {
                "server": {"mlflow_tracking_uri": uri},
                "tracking": {"experiment": experiment},
            }
        }


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


def test_the_hook_logs_what_a_report_was_made_of(reported, uri, tmp_path):
    pipeline, catalog, _ = reported
    hook = ComparisonHook()
    hook.after_context_created(Context(uri, tmp_path))
    hook.after_pipeline_run(pipeline, catalog)
    hook.after_pipeline_run(pipeline, catalog)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(tmp_path.name).experiment_id
    (top,) = client.search_runs([experiment], "tags.kind = 'comparison'")
    assert [file.path for file in client.list_artifacts(top.info.run_id)] == ["report.html"]


def test_the_hook_says_how_to_import_later(reported, tmp_path, caplog, uri):
    pipeline, catalog, folder = reported
    for place, words in (
        (f"http://127.0.0.1:{nobody_listens()}", "refused"),
        (copy_of(uri, tmp_path, "451aebb31d03"), "mlflow db upgrade"),
    ):
        caplog.clear()
        hook = ComparisonHook()
        hook.after_context_created(Context(place, tmp_path))
        with caplog.at_level(logging.WARNING):
            hook.after_pipeline_run(pipeline, catalog)
        (said,) = [r.getMessage() for r in caplog.records if r.name == "degaml_kedro.tracking"]
        assert words in said
        assert f"-m degaml_kedro.comparison_tracking {folder}" in said
        assert "on disk" in said


def test_the_hook_leaves_other_runs_and_other_processes_alone(reported, tmp_path, monkeypatch):
    pipeline, catalog, _ = reported
    dead = Context(f"http://127.0.0.1:{nobody_listens()}", tmp_path)
    called = []
    monkeypatch.setattr(ComparisonHook, "_log", lambda *_: called.append(1))
    hook = ComparisonHook()
    # no context yet
    hook.after_pipeline_run(pipeline, catalog)
    hook.after_context_created(dead)
    other = Pipeline([node(write, "a", "without_x.mse.generator", name="fold")])
    hook.after_pipeline_run(other, DataCatalog({"a": MemoryDataset(1)}))
    monkeypatch.setitem(os.environ, "RANK", "1")
    hook.after_pipeline_run(pipeline, catalog)
    assert called == []
