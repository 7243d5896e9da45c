"""A comparison in MLflow: what its runs say, that it is there once, and that it is read back as the report has it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from mlflow.tracking import MlflowClient

from degaml_kedro.common.atomic import AtomicTextDataset
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.io.local import ReadOnlyDataset
from degaml_kedro.results import statistics
from degaml_kedro.results.runs import Runs
from degaml_kedro.results.statistics import MEAN, find
from degaml_kedro.tracking.__main__ import main
from degaml_kedro.tracking.comparison import (
    ComparisonView,
    MethodRow,
    log_comparison,
    read_comparison,
)
from degaml_kedro.tracking.hook import log_outputs
from degaml_kedro.tracking.server import Place, TrackingError
from tests.results.test_report import METHODS, TABLES, make_run, make_runs
from tests.tracking.helpers import nobody_listens


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """What is tested here is what is logged, not how sure it is."""
    with pytest.MonkeyPatch.context() as patch:
        few = partial(statistics.resampled_means, resamples=100)
        patch.setattr(statistics, "resampled_means", few)
        yield


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One database: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('comparison') / 'mlflow.db'}"


@pytest.fixture
def logged(uri, tmp_path, request):
    """Log into an experiment of the test's own."""

    def log(what: Runs, table: pd.DataFrame | None = None, **options):
        place = Place(uri, request.node.name, (tmp_path / "art").as_uri())
        return log_comparison(
            what, find(what).comparison if table is None else table, place, **options
        )

    return log


@pytest.fixture
def read(uri, request) -> Callable[..., ComparisonView | None]:
    return lambda **options: read_comparison(uri, request.node.name, **options)


def runs(**more) -> Runs:
    """Two seeds; one method that was asked for has no results, and one of two tasks of another is missing."""
    return make_runs(
        asked=(*METHODS[:3], "abmll", *METHODS[3:]),
        without=(("maml_en_llm", "months"),),
        tables=TABLES,
        **more,
    )


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
        "profile": "embedded",
        "seeds": "999,1000",
        "complete": "true",
    }
    assert top.data.params["lora.rank"] == "8"
    assert top.data.params["command"] == "kedro run --env comparison --params seed=999"
    methods = below(client, parent)
    assert set(methods) == set(runs().methods)
    union = methods["union_train"]
    assert union.data.tags["kind"] == "method"
    # what its search chose
    assert union.data.params["chosen.steps"] == "5"
    assert methods["oracle_strategy"].data.tags["bound"] == "true"
    assert "bound" not in union.data.tags
    tasks = below(client, union.info.run_id)
    assert set(tasks) == {"months union_train", "capitals union_train"}
    tags = tasks["months union_train"].data.tags
    assert {k: tags[k] for k in ("kind", "method", "task", "pool")} == {
        "kind": "task",
        "method": "union_train",
        "task": "months",
        "pool": "meta_test",
    }
    every = [top, *methods.values(), *tasks.values()]
    assert {one.info.status for one in every} == {"FINISHED"}


def test_the_metrics_are_the_report_s_table(logged, uri):
    table = find(runs()).comparison
    client, parent = MlflowClient(uri), logged(runs(), table)
    methods = below(client, parent)
    for method, rows in table.groupby("method"):
        tasks = below(client, methods[method].info.run_id)
        for row in rows.drop(columns=["pool", "method", "bound"]).to_dict("records"):
            task = row.pop("task")
            known = {name: value for name, value in row.items() if pd.notna(value)}
            if task == MEAN:
                own = methods[method].data.metrics
                assert {f"{name}/meta_test": value for name, value in known.items()}.items() <= (
                    own.items()
                )
                # what was not measured is not logged, and 0 is a measured 0
                assert ("accuracy/meta_test" in own) == ("accuracy" in known)
            elif row["tasks"]:
                assert tasks[f"{task} {method}"].data.metrics == known
            else:
                assert f"{task} {method}" not in tasks
    assert methods["base"].data.metrics["adaptation_tokens/meta_test"] == 0
    assert "accuracy/meta_test" not in methods["maml_en_llm"].data.metrics
    history = client.get_metric_history(methods["degaml"].info.run_id, "by_seed/accuracy/meta_test")
    assert sorted((m.step, m.value) for m in history) == [(0, 0.85), (1, 0.85)]


def test_the_same_content_is_logged_once(logged, uri, tmp_path):
    client, what = MlflowClient(uri), runs()
    table = find(what).comparison
    first = logged(what, table)
    page = tmp_path / "report.html"
    page.write_text("<p>as it looks today</p>")
    # as it comes back from the report's file, too
    table.to_parquet(tmp_path / "comparison.parquet")
    assert logged(what, pd.read_parquet(tmp_path / "comparison.parquet"), page=page) == first
    experiment = client.get_run(first).info.experiment_id
    assert len(client.search_runs([experiment], "tags.kind = 'comparison'")) == 1
    assert [file.path for file in client.list_artifacts(first)] == ["report.html"]
    table.loc[0, "accuracy"] += 1e-9
    assert logged(what, table) != first


def test_a_half_logged_one_is_none_and_replaced(logged, read, uri, monkeypatch):
    client, what = MlflowClient(uri), runs()
    table = find(what).comparison
    real, sent = MlflowClient.log_batch, []

    def killed(self, run, *args, **kwargs):
        sent.append(run)
        if len(sent) == 4:
            raise KeyboardInterrupt
        real(self, run, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            logged(what, table)
    half = sent[0]
    assert below(client, half)
    assert read() is None
    whole = logged(what, table)
    assert whole != half
    assert client.get_run(half).info.lifecycle_stage == "deleted"
    assert below(client, half) == {}
    assert set(below(client, whole)) == set(what.methods)
    assert logged(what, table) == whole == read().run
    client.delete_run(whole)
    assert read() is None


# --- what is read back ----------------------------------------------------------------------------


def test_what_was_logged_comes_back(logged, read):
    what = runs(tasks={"meta_train": ("colors",), "meta_test": ("months", "capitals")})
    parent = logged(what)
    view = read()
    assert view is not None
    assert (view.run, view.profile, view.seeds) == (parent, "embedded", (999, 1000))
    assert view.pool == "meta_test"
    assert view.when.tzinfo is not None
    # as they were asked for, not by name
    assert [row.method for row in view.methods] == list(what.methods)
    degaml = one(view, "degaml")
    assert (degaml.accuracy, degaml.by_seed, degaml.n) == (0.85, (0.85, 0.85), 40)
    assert (degaml.tokens, degaml.seconds, degaml.bound) == (16_000, 4.0, False)
    # nothing at all; one task of two, so no accuracy
    assert (one(view, "abmll").accuracy, one(view, "abmll").by_seed) == (None, ())
    assert (one(view, "maml_en_llm").accuracy, one(view, "maml_en_llm").by_seed) == (None, ())
    assert one(view, "oracle_strategy").bound
    assert one(view, "oracle_strategy").tokens is None
    assert one(read(pool="meta_train"), "maml_en_llm").accuracy == 0.45
    assert one(read(pool="left_out"), "degaml").accuracy is None


def test_the_page_says_what_the_report_says(logged, read, tmp_path):
    """Where tasks have unequal seeds, too; the report reads a Parquet file, the page asks MLflow."""
    first, second = (
        make_run(999),
        make_run(1000, right={"degaml": 20}, without=(("base", "months"),)),
    )
    what = Runs((first, second), METHODS, {"meta_test": ("months", "capitals")})
    find(what).comparison.to_parquet(tmp_path / "comparison.parquet")
    table = pd.read_parquet(tmp_path / "comparison.parquet")
    logged(what, table)
    for row in table[table["task"] == MEAN].to_dict("records"):
        shown = one(read(), row["method"])
        assert shown.accuracy == pytest.approx(row["accuracy"], abs=1e-12)
        assert len(shown.by_seed) == row["seeds"]
        if row["seeds"] > 1:
            assert pd.Series(shown.by_seed).std() == pytest.approx(row["spread"], abs=1e-12)
        for ours, theirs in (("tokens", "adaptation_tokens"), ("seconds", "adaptation_seconds")):
            assert getattr(shown, ours) == (None if pd.isna(row[theirs]) else row[theirs])
    assert one(read(), "degaml").by_seed == (0.85, 0.5)
    assert one(read(), "base").by_seed == (0.3,)


def test_the_newest_one_and_one_of_the_smoke_profile_only_where_there_is_no_other(logged, read):
    def small(**more):
        return make_runs(methods=("base",), tasks={"meta_test": ("months",)}, **more)

    first = logged(small(profile="smoke"))
    assert read().run == first
    logged(small(profile="other"))
    newest = logged(small(profile="another"))
    logged(small(profile="smoke", seeds=(999,)))
    assert read().run == newest


def test_nothing_is_made_by_looking(uri, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read() is None
    assert MlflowClient(uri).get_experiment_by_name("test_nothing_is_made_by_looking") is None
    assert read_comparison(f"sqlite:///{tmp_path / 'none.db'}") is None
    assert read_comparison((tmp_path / "mlruns").as_uri()) is None
    # a database without tables, which MLflow would fill
    empty = tmp_path / "empty.db"
    empty.touch()
    assert read_comparison(f"sqlite:///{empty}") is None
    assert empty.read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["empty.db"]


def test_what_cannot_be_read_is_said():
    uri = f"http://me:s3cret@127.0.0.1:{nobody_listens()}"
    with pytest.raises(TrackingError, match="MLflow cannot be used at .*refused") as caught:
        read_comparison(uri)
    assert "s3cret" not in str(caught.value)


# --- the command, and the end of a run ---------------------------------------------------------------------


@pytest.fixture
def stored(monkeypatch):
    """In place of finished runs on disk."""

    class Stored(ReadOnlyDataset[Runs]):
        def _read(self) -> Runs:
            if self._path.name == "half":
                raise DegamlError(f"{self._path}/x.json cannot be read; delete it")
            return runs()

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
    kept = {"comparison": MemoryDataset(find(runs()).comparison)}
    catalog = DataCatalog({"runs": stored(filepath=folder), "report_page": page, **kept})
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


def test_what_cannot_be_logged_is_said_with_the_command_for_later(reported, caplog):
    pipeline, catalog, folder = reported
    with caplog.at_level(logging.WARNING):
        log_outputs(Place(f"http://127.0.0.1:{nobody_listens()}", "tests"), pipeline, catalog)
    (said,) = [r.getMessage() for r in caplog.records if r.name.startswith("degaml_kedro")]
    assert "refused" in said
    assert f"-m degaml_kedro.tracking {folder}" in said
    assert "stored there" in said


def test_other_runs_leave_the_place_alone():
    other = Pipeline([node(write, "a", "without_x.mse.generator", name="fold")])
    log_outputs(Place(f"http://127.0.0.1:{nobody_listens()}", "tests"), other, DataCatalog())
