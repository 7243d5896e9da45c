"""Where runs are logged, a server or database that cannot be used, and one that several programs make at once."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.store.db import utils
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from degaml_kedro.tracking import server
from degaml_kedro.tracking.server import (
    TrackingError,
    check_server,
    masked,
    place_of,
    translate_errors,
)
from tests.conftest import ROOT
from tests.tracking.helpers import nobody_listens

# the first schema that MLflow ever had a migration for
OLDEST = "451aebb31d03"


def refused(uri: str) -> str:
    """What is said of a place that cannot be used."""
    with pytest.raises(TrackingError) as caught, translate_errors(uri):
        check_server(uri)
    return str(caught.value)


# --- a SQLite database is made whole --------------------------------------------------------------


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database whose migrations were stopped in the middle of one."""
    memory = sqlite3.connect(":memory:")
    engine = create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool)

    @event.listens_for(engine, "before_cursor_execute")
    def stop(*arguments) -> None:
        if "DROP TABLE datasets" in arguments[2]:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        utils._initialize_tables(engine)
    file = tmp_path_factory.mktemp("torn") / "mlflow.db"
    with closing(memory):
        memory.execute(f"VACUUM INTO '{file}'")
    return file.read_bytes()


def test_a_half_made_database_is_made_again(torn: bytes, tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(torn)
    uri = f"sqlite:///{file}"
    with pytest.raises(OperationalError, match="_alembic_tmp_datasets already exists"):
        utils._upgrade_db(create_engine(uri))
    check_server(uri)
    run = MlflowClient(uri).create_run("0").info.run_id
    made = file.read_bytes()
    check_server(uri)
    assert file.read_bytes() == made
    assert MlflowClient(uri).get_run(run).info.status == "RUNNING"


@pytest.mark.parametrize(
    "row",
    [
        "runs (run_uuid) VALUES ('r')",
        "experiments (experiment_id, name) VALUES (0, 'Default')",
        "registered_models (name) VALUES ('m')",
    ],
)
def test_an_older_database_that_holds_something_is_not_touched(
    torn: bytes, tmp_path: Path, row: str
) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(torn)
    with closing(sqlite3.connect(file)) as database:
        database.execute(f"INSERT INTO {row}")
        database.commit()
    before = file.read_bytes()
    assert "out-of-date database schema" in refused(f"sqlite:///{file}")
    assert file.read_bytes() == before


@pytest.mark.slow
def test_two_programs_that_start_at_once_share_one_database(torn: bytes, tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(torn)
    uri = f"sqlite:///{file}"
    code = (
        "from degaml_kedro.tracking.server import check_server; from mlflow.tracking import MlflowClient; "
        f"print(flush=True); input(); check_server({uri!r}); "
        f"print(MlflowClient({uri!r}).create_run('0').info.run_id)"
    )
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for program in programs:
        program.stdout.readline()
    for program in programs:
        program.stdin.write("\n")
        program.stdin.flush()
    made = {program.communicate()[0].strip() for program in programs}
    assert [program.returncode for program in programs] == [0, 0]
    assert {run.info.run_id for run in MlflowClient(uri).search_runs(["0"])} == made


# --- what cannot be used --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = f"sqlite:///{tmp_path_factory.mktemp('server') / 'mlflow.db'}"
    check_server(made)
    return made


def copy_of(uri: str, folder: Path, revision: str) -> str:
    """The database, stamped with another schema."""
    MlflowClient(uri).search_experiments()
    file = folder / "other.db"
    file.write_bytes(Path(uri.removeprefix("sqlite:///")).read_bytes())
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        database.commit()
    return f"sqlite:///{file}"


@pytest.mark.parametrize("revision", [OLDEST, "ffffffffffff"])
def test_another_schema_is_said_in_mlflow_s_words_and_left_as_it_is(uri, tmp_path, revision):
    other = copy_of(uri, tmp_path, revision)
    file = Path(other.removeprefix("sqlite:///"))
    before = file.read_bytes()
    said = refused(other)
    assert said.startswith(f"MLflow cannot be used at {other}: Detected out-of-date database")
    assert f"found version {revision}" in said
    assert "Take a backup of your database, then run 'mlflow db upgrade" in said
    # MLflow itself migrates some of them unasked
    assert file.read_bytes() == before


def test_a_file_that_is_no_database(tmp_path):
    file = tmp_path / "mlflow.db"
    file.write_text("not a database, but long enough to be taken for one\n" * 40)
    assert "not a database" in refused(f"sqlite:///{file}")


def test_a_locked_database(uri, monkeypatch):
    monkeypatch.setattr(server, "WAIT_SECONDS", 0.1)
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in refused(uri)
        database.rollback()


def test_a_dead_postgresql_server_does_not_hang(monkeypatch):
    """One that takes connections and never answers, which a port check alone would not notice."""
    pytest.importorskip("psycopg2")
    monkeypatch.setattr(server, "WAIT_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.perf_counter()
        said = refused(f"postgresql+psycopg2://me:s3cret@127.0.0.1:{silent.getsockname()[1]}/runs")
    assert time.perf_counter() - began < 10
    assert "s3cret" not in said
    assert "me:***@" in said


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    said = refused("postgresql+psycopg2://me:s3cret@127.0.0.1/runs")
    assert "psycopg2" in said
    assert "s3cret" not in said


def test_a_server_that_is_down_and_one_that_never_answers(monkeypatch):
    began = time.perf_counter()
    assert "refused" in refused(f"http://127.0.0.1:{nobody_listens()}")
    monkeypatch.setattr(server, "WAIT_SECONDS", 1)
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "timed out" in refused(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.perf_counter() - began < 10


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    web = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        yield f"http://me:secret@127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        web.server_close()


def test_a_web_server_that_is_not_mlflow_s():
    class Shop(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with served(Shop) as url:
        said = refused(url)
    assert "501" in said
    assert "secret" not in said


def test_an_error_is_one_line_without_a_password():
    with pytest.raises(TrackingError) as caught, translate_errors("postgresql://a:b@c/d"):
        raise OSError("no postgresql://a:b@c/d\nmore")
    expected = "MLflow cannot be used at postgresql://a:***@c/d: no postgresql://a:***@c/d"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_passwords_are_masked(text, expected):
    assert masked(text) == expected


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
