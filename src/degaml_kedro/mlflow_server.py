"""Where MLflow keeps what it is told, and what to say when that place cannot be used."""

from __future__ import annotations

import functools
import math
import os
import re
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from kedro.config import AbstractConfigLoader, MissingConfigException
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool, StaticPool

from degaml_kedro.errors import DegamlError

WAIT_SECONDS = 3.0
_PORTS = {"http": 80, "https": 443, "mysql": 3306, "mssql": 1433}
_QUIET = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# the tables that have rows before MLflow opens a database for the first time
_FILLED_BY_MIGRATIONS = {"alembic_version", "workspaces"}
_PASSWORD = re.compile(r"(://[^:/@\s]*):\S+@")
_QUERY_PASSWORD = re.compile(r"(password=)[^&\s'\"]+", re.IGNORECASE)


class TrackingError(DegamlError):
    """MLflow's server or database cannot be used."""


UNREACHABLE = (
    MlflowException,
    SQLAlchemyError,
    sqlite3.Error,
    CommandError,
    OSError,
    TrackingError,
)


@dataclass(frozen=True)
class Place:
    """Where runs are logged.

    Attributes:
        uri: MLflow's tracking URI; it may hold a password, so never log it but through :func:`masked`.
        experiment: its name.
        artifact_location: where a new experiment keeps its files; None leaves it to MLflow.
    """

    uri: str
    experiment: str
    artifact_location: str | None = None


def place_of(loader: AbstractConfigLoader, project: Path) -> Place:
    """Where ``mlflow.yml`` says that runs are logged.

    Args:
        loader: knows the files.
        project: the folder that relative places start from.
    """
    try:
        config: Mapping[str, Any] = loader["mlflow"]
    except MissingConfigException:
        config = {}
    experiment = (config.get("tracking") or {}).get("experiment") or {}
    location = (experiment.get("create_experiment_kwargs") or {}).get("artifact_location")
    return Place(
        tracking_uri(config) or (project / "mlruns").as_uri(),
        experiment.get("name") or "Default",
        None if location is None else _absolute(location, project),
    )


def tracking_uri(config: Mapping[str, Any]) -> str:
    """The URI of ``mlflow.yml``, or ``MLFLOW_TRACKING_URI`` where that has none; empty for neither."""
    asked = (config.get("server") or {}).get("mlflow_tracking_uri")
    return str(asked or os.environ.get("MLFLOW_TRACKING_URI") or "")


def _absolute(place: str, project: Path) -> str:
    return place if urlparse(place).scheme else (project / place).as_uri()


def masked(words: str) -> str:
    """The same without passwords.

    Example:
        >>> masked("postgresql+psycopg2://me:secret@host/runs")
        'postgresql+psycopg2://me:***@host/runs'
    """
    return _QUERY_PASSWORD.sub(r"\1***", _PASSWORD.sub(r"\1:***@", words))


def explain(error: BaseException, uri: str) -> str:
    """Why MLflow cannot be used, in one line without a password.

    Args:
        error: one of ``UNREACHABLE``.
        uri: the tracking URI.
    """
    if isinstance(error, TrackingError):
        return str(error)
    lines = str(error).strip().splitlines()
    reason = masked(lines[0]) if lines else type(error).__name__
    if "database is locked" in str(error):
        return (
            f"{reason}: another program writes to {masked(uri)}; close it, or wait until it is done"
        )
    return reason


@contextmanager
def speaking(uri: str) -> Iterator[None]:
    """Turn whatever MLflow and its database raise into a sentence, without MLflow's own line for every run.

    Args:
        uri: the tracking URI.

    Raises:
        TrackingError: in place of any of ``UNREACHABLE``.
    """
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update(_QUIET)
    try:
        yield
    except TrackingError:
        raise
    except UNREACHABLE as error:
        raise TrackingError(
            f"MLflow cannot be used ({explain(error, uri).rstrip('.')}); the tracking URI is {masked(uri)}"
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def knock(uri: str) -> None:
    """Fail at once where MLflow would try for minutes, or would change a database that others still use.

    Args:
        uri: the tracking URI.

    Raises:
        OSError: no server answers.
        sqlite3.Error: the file is no database, cannot be written, or is locked.
        SQLAlchemyError: a PostgreSQL server does not answer or does not let us in.
        TrackingError: the database is of another MLflow's schema, or its driver is not installed.
    """
    parts = urlparse(uri)
    kind = parts.scheme.split("+")[0]
    if kind == "sqlite":
        _check_schema(_sqlite_revision(unquote(uri.split(":///", 1)[-1].split("?")[0])), uri)
    elif kind == "postgresql":
        _check_schema(_postgresql_revision(uri), uri)
    elif parts.hostname and kind in _PORTS:
        place = (parts.hostname, parts.port or _PORTS[kind])
        socket.create_connection(place, timeout=WAIT_SECONDS).close()


def _sqlite_revision(file: str) -> str | None:
    """The database's schema; None where it has tables, and none of MLflow's.

    An empty database, or one that a killed program left between migrations, is made first. MLflow's migrations cannot
    be resumed where they were stopped, so they run in memory, and the file gets the result in one transaction.
    """
    latest, known = _revisions()
    with closing(sqlite3.connect(file, timeout=WAIT_SECONDS, isolation_level=None)) as database:
        while True:
            database.execute("BEGIN IMMEDIATE")
            tables = _column(database, "SELECT name FROM sqlite_master WHERE type = 'table'")
            filled = {t for t in tables if _column(database, f'SELECT 1 FROM "{t}" LIMIT 1')}
            revision = None
            if "alembic_version" in filled:
                (revision,) = _column(database, "SELECT version_num FROM alembic_version")
            half_made = revision in known - {latest} and filled <= _FILLED_BY_MIGRATIONS
            if tables and not half_made:
                return revision
            seen = _column(database, "PRAGMA data_version")
            # takes seconds, in which others should not find the database locked
            database.rollback()
            statements = _empty_database()
            database.execute("BEGIN IMMEDIATE")
            if _column(database, "PRAGMA data_version") == seen:
                for table in tables:
                    database.execute(f'DROP TABLE "{table}"')
                for statement in statements:
                    database.execute(statement)
            # else another program was at it; look again
            database.commit()


def _column(database: sqlite3.Connection, query: str) -> list[Any]:
    return [row[0] for row in database.execute(query)]


def _empty_database() -> list[str]:
    """What makes a database of this MLflow's schema, without runs, in SQL."""
    # imports all of MLflow's tables
    from mlflow.store.db.utils import _initialize_tables

    with closing(sqlite3.connect(":memory:")) as memory:
        _initialize_tables(create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool))
        # between the beginning and the end of a transaction
        return list(memory.iterdump())[1:-1]


def _postgresql_revision(uri: str) -> str | None:
    # libpq takes whole seconds, two at least
    wait = {"connect_timeout": max(2, math.ceil(WAIT_SECONDS))}
    try:
        engine = create_engine(uri, poolclass=NullPool, connect_args=wait)
    except ModuleNotFoundError as error:
        raise TrackingError(
            f"{masked(uri)} needs the driver {error.name}, which is not installed; run `pip install "
            f"'degaml-kedro[postgres]'`"
        ) from error
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return None if found is None else str(found)


def _check_schema(revision: str | None, uri: str) -> None:
    """Refuse another MLflow's database: MLflow itself may change it where it is an older one.

    Args:
        revision: what the database says; None for an empty one, which MLflow fills.
        uri: for the message.
    """
    if revision is None:
        return
    latest, known = _revisions()
    if revision == latest:
        return
    if revision not in known:
        raise TrackingError(
            f"the database {masked(uri)} was made by a newer MLflow: its schema is {revision}, and MLflow "
            f"{mlflow.__version__} knows them up to {latest}; use the MLflow that made it (`pip install --upgrade "
            f"mlflow`), or name another database"
        )
    file = urlparse(uri).scheme.split("+")[0] == "sqlite"
    raise TrackingError(
        f"the database {masked(uri)} is of an older schema ({revision}, MLflow {mlflow.__version__} needs {latest}); "
        f"make a copy of {'the file' if file else 'it'} first, then run `mlflow db upgrade {masked(uri)}`"
    )


@functools.cache
def _revisions() -> tuple[str | None, frozenset[str]]:
    """The schema this MLflow needs, and all that it can migrate from."""
    folder = Path(mlflow.__file__).parent / "store" / "db_migrations"
    scripts = ScriptDirectory(str(folder))
    return scripts.get_current_head(), frozenset(s.revision for s in scripts.walk_revisions())


def experiment_id(client: MlflowClient, place: Place) -> str:
    """The experiment, made or taken out of the trash where it has to be."""
    found = client.get_experiment_by_name(place.experiment)
    if found is None:
        return str(client.create_experiment(place.experiment, place.artifact_location))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
