"""A comparison read back from MLflow: what was logged and nothing else, and nothing is made by looking."""

from __future__ import annotations

import dataclasses
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

from degaml_kedro import comparison_reading, comparison_tracking, mlflow_server
from degaml_kedro.comparison_reading import ComparisonView, MethodRow, read_comparison
from degaml_kedro.comparison_tracking import log_comparison
from degaml_kedro.mlflow_server import TrackingError
from degaml_kedro.results.runs import Runs
from tests.test_comparison_tracking import runs


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('reading') / 'mlflow.db'}"


@pytest.fixture
def logged(uri, tmp_path, request) -> Callable[[Runs], str]:
    """Log into an experiment of the test's own."""
    return lambda what: log_comparison(what, uri, request.node.name, (tmp_path / "art").as_uri())


@pytest.fixture
def read(uri, request) -> Callable[..., ComparisonView | None]:
    return lambda **options: read_comparison(uri, request.node.name, **options)


def one(view: ComparisonView | None, method: str) -> MethodRow:
    assert view is not None
    (row,) = (row for row in view.methods if row.method == method)
    return row


def test_what_was_logged_comes_back(logged, read):
    parent = logged(runs())
    view = read()
    assert view is not None
    assert (view.run, view.profile, view.seeds) == (parent, "tests", (999, 1000))
    assert (view.pool, view.pools) == ("meta_test", ("meta_test", "meta_train"))
    assert view.command == "kedro run --params seed=999"
    assert view.base_model == {"kind": "random"}
    assert view.when.tzinfo is not None
    # as they were asked for, not by name
    assert [row.method for row in view.methods] == [
        "icl",
        "abmll",
        "maml_en_llm",
        "oracle_strategy",
    ]
    icl = one(view, "icl")
    # (0.5 + 0.25 + 0.75 + 0.25) / 4
    assert icl.accuracy == pytest.approx(0.4375)
    assert (icl.low, icl.high) == (pytest.approx(0.3375), pytest.approx(0.5375))
    assert icl.by_seed == (0.375, 0.5)
    assert icl.spread == pytest.approx(0.0883883)
    assert (icl.chance, icl.n, icl.bound) == (0.25, 200, False)
    assert (one(view, "abmll").tokens, one(view, "abmll").seconds) == (60, 0.5)


def test_tasks_of_all_pools(logged, read):
    logged(runs())
    rows = {(row.pool, row.task): row for row in one(read(), "icl").tasks}
    assert list(rows) == [("meta_test", "a"), ("meta_test", "b"), ("meta_train", "c")]
    a = rows["meta_test", "a"]
    assert (a.accuracy, a.n, a.seeds) == (0.625, 200, 2)
    assert (a.low, a.high) == (pytest.approx(0.525), pytest.approx(0.725))


def test_what_is_missing_is_none(logged, read):
    logged(runs())
    view = read()
    # nothing at all, and one task of two
    maml, oracle = one(view, "maml_en_llm"), one(view, "oracle_strategy")
    assert (maml.accuracy, maml.by_seed, maml.spread, maml.tasks) == (None, (), None, ())
    assert oracle.accuracy is None
    assert oracle.bound
    assert "meta_test b" in oracle.missing
    assert [(row.task, row.accuracy) for row in oracle.tasks] == [("a", 1.0)]
    # of one task of two: no cost that would stand beside the others'
    assert one(view, "icl").tokens is None


def test_another_pool(logged, read):
    logged(runs())
    assert one(read(pool="meta_train"), "icl").accuracy == 0.5
    assert one(read(pool="left_out"), "icl").accuracy is None


def test_the_newest_one_and_the_newest_of_a_profile(logged, read):
    first = logged(runs())
    other = dataclasses.replace(
        runs(), runs=tuple(dataclasses.replace(run, profile="other") for run in runs().runs)
    )
    second = logged(other)
    assert read().run == second
    assert read(profile="tests").run == first
    assert read(profile="other").run == second
    assert read(profile="none'such") is None
    # the tasks of one are not those of the other
    assert [row.seeds for row in one(read(), "icl").tasks] == [2, 2, 2]


def test_one_of_the_smoke_profile_only_where_there_is_no_other(logged, read):
    smoke = dataclasses.replace(
        runs(), runs=tuple(dataclasses.replace(run, profile="smoke") for run in runs().runs)
    )
    first = logged(smoke)
    assert read().run == first
    other = logged(runs())
    logged(dataclasses.replace(smoke, runs=smoke.runs[:1]))
    assert read().run == other


def test_a_half_logged_one_and_a_deleted_one_are_none(uri, logged, read, monkeypatch):
    whole = logged(runs())
    sent = []

    def killed(*args, **kwargs):
        sent.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison_tracking, "_send", killed)
    half = dataclasses.replace(runs(), runs=runs().runs[:1])
    with pytest.raises(KeyboardInterrupt):
        logged(half)
    assert sent
    assert read().run == whole
    client = MlflowClient(uri)
    client.delete_run(whole)
    assert read() is None


def test_more_runs_than_a_page_holds(logged, read, monkeypatch):
    logged(runs())
    whole = read()
    monkeypatch.setattr(comparison_reading, "_PAGE", 2)
    assert read() == whole


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


def test_a_file_that_is_no_database(tmp_path):
    file = tmp_path / "mlflow.db"
    file.write_text("not a database, but long enough to be taken for one\n" * 40)
    with pytest.raises(TrackingError, match=r"MLflow cannot be used .*not a database"):
        read_comparison(f"sqlite:///{file}")


def test_a_database_that_another_program_holds(uri, read, monkeypatch):
    monkeypatch.setattr(mlflow_server, "WAIT_SECONDS", 0.1)
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        MlflowClient(uri).search_experiments()
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match="another program writes to"):
            read()
        database.rollback()


# --- servers --------------------------------------------------------------------------------------


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_no_server_there():
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TrackingError, match="MLflow cannot be used"):
        read_comparison(f"http://me:secret@127.0.0.1:{port}")


def test_a_server_that_takes_the_call_and_never_answers(monkeypatch):
    monkeypatch.setattr(comparison_reading, "WAIT_SECONDS", 0.2)
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TrackingError, match="timed out"):
            read_comparison(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_something_that_is_no_web_server():
    def greet(listener: socket.socket) -> None:
        with closing(listener.accept()[0]):
            pass
        with closing(listener.accept()[0]) as connection:
            connection.recv(1024)
            connection.sendall(b"220 mail ready\r\n")

    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=greet, args=(listener,), daemon=True).start()
        with pytest.raises(TrackingError, match="no web server"):
            read_comparison(f"http://127.0.0.1:{listener.getsockname()[1]}")


def test_a_web_server_that_is_not_mlflow_s():
    class Shop(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    with served(Shop) as url, pytest.raises(TrackingError, match="MLflow cannot be used") as raised:
        read_comparison(f"{url.replace('://', '://me:secret@')}")
    assert "secret" not in str(raised.value)


# --- where to look --------------------------------------------------------------------------------


def test_the_project_s_own_place(uri, logged, tmp_path, monkeypatch, request):
    parent = logged(runs())
    conf = tmp_path / "project" / "conf" / "base"
    conf.mkdir(parents=True)
    (tmp_path / "project" / "conf" / "local").mkdir()
    (tmp_path / "project" / "pyproject.toml").write_text("[tool.kedro]\npackage_name = 'x'\n")
    place = f"server: {{mlflow_tracking_uri: '{uri}'}}\n"
    experiment = f"tracking: {{experiment: {{name: {request.node.name}}}}}\n"
    (conf / "mlflow.yml").write_text(place + experiment)
    monkeypatch.chdir(conf)
    found = read_comparison()
    assert found is not None
    assert found.run == parent
    (conf / "mlflow.yml").write_text("server: [\n")
    with pytest.raises(TrackingError, match=r"mlflow.yml .* cannot be read .* name the tracking"):
        read_comparison()
    # one without the file keeps its runs in a folder, which is not there
    (conf / "mlflow.yml").unlink()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert read_comparison() is None


def test_without_a_project_the_environment_says_where(uri, logged, tmp_path, monkeypatch, request):
    parent = logged(runs())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert read_comparison() is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    found = read_comparison(experiment=request.node.name)
    assert found is not None
    assert found.run == parent
    assert read_comparison() is None


@given(st.text(max_size=30))
def test_no_profile_breaks_the_question(uri, profile):
    # the parser of MLflow's filters sees it; nothing but a comparison may come back
    found = read_comparison(uri, "test_what_was_logged_comes_back", profile=profile)
    assert found is None or found.profile == "tests"


def test_it_does_not_need_the_project_s_hooks():
    code = "import sys, degaml_kedro.comparison_reading; print('kedro.framework' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parent,
    )
    assert done.stdout.strip().endswith("False")
