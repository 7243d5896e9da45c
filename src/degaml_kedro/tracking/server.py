"""Where runs are logged, and MLflow's own errors as one sentence without a password."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mlflow
from alembic.util import CommandError
from kedro.config import AbstractConfigLoader, MissingConfigException
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking._tracking_service.utils import _use_tracking_uri
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request_safe
from sqlalchemy import Engine, create_engine, inspect, select, table
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool, StaticPool

from degaml_kedro.common.errors import DegamlError

WAIT_SECONDS = 3
# where a registered model's own files are, in MLflow's folder around them
CHECKPOINT = "data/checkpoint"
_URI_VARIABLE = "MLFLOW_TRACKING_URI"
# MLflow's line for every run, and for every file
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# a database's error in full; `translate_errors` has its sentence
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
# the tables that have rows before MLflow opens a database for the first time
_FILLED_BY_MIGRATIONS = {"alembic_version", "workspaces"}
# of what MLflow is set to
_ONE_AT_A_TIME = threading.RLock()
# of an address, or among its parameters
_PASSWORD = re.compile(r"(://[^:/@\s]*:)\S+(?=@)|(password=)[^&\s'\"]+", re.IGNORECASE)
# ImportError: a database's driver is not installed
_MLFLOW_ERRORS = (
    MlflowException,
    SQLAlchemyError,
    sqlite3.Error,
    CommandError,
    OSError,
    ImportError,
)


class TrackingError(DegamlError):
    """MLflow's server or database cannot be used."""


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
    """Where ``mlflow.yml``, or else ``MLFLOW_TRACKING_URI``, says that runs of a project are logged."""
    try:
        config: Mapping[str, Any] = loader["mlflow"]
    except MissingConfigException:
        config = {}
    uri = (config.get("server") or {}).get("mlflow_tracking_uri")
    experiment = (config.get("tracking") or {}).get("experiment") or {}
    location = (experiment.get("create_experiment_kwargs") or {}).get("artifact_location")
    if location is not None and not urlparse(location).scheme:
        location = (project / location).as_uri()
    return Place(
        str(uri or os.environ.get(_URI_VARIABLE) or (project / "mlruns").as_uri()),
        experiment.get("name") or "Default",
        location,
    )


def experiment_id(client: MlflowClient, place: Place) -> str:
    """The experiment, made or taken out of the trash where it has to be."""
    found = client.get_experiment_by_name(place.experiment)
    if found is None:
        return str(client.create_experiment(place.experiment, place.artifact_location))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def owner_tags() -> dict[str, str]:
    """Tags that say which process a run is of: by them the next run closes it, should this process be killed."""
    return {"host": socket.gethostname(), "pid": str(os.getpid())}


def masked(text: str) -> str:
    """The same without passwords.

    Example:
        >>> masked("postgresql+psycopg2://me:secret@host/runs")
        'postgresql+psycopg2://me:***@host/runs'
    """
    return _PASSWORD.sub(r"\1\2***", text)


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Put a sentence in front of the first line of whatever MLflow and its database raise.

    Raises:
        TrackingError: MLflow cannot be used at this tracking URI.
    """
    try:
        yield
    except _MLFLOW_ERRORS as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TrackingError(f"MLflow cannot be used at {masked(uri)}: {masked(reason)}") from error


@contextmanager
def using(uri: str) -> Iterator[None]:
    """MLflow is set to a tracking URI for as long as the block lasts, of one thread at a time.

    The registry's own functions take no URI: they know the one that the whole process is set to.

    Raises:
        TrackingError: the server or database cannot be used.
    """
    with _ONE_AT_A_TIME, translate_errors(uri):
        check_server(uri)
        variable = os.environ.get(_URI_VARIABLE)
        try:
            with _use_tracking_uri(uri):
                yield
        finally:
            # MLflow has written it
            os.environ.pop(_URI_VARIABLE, None)
            if variable is not None:
                os.environ[_URI_VARIABLE] = variable


def download_checkpoint(uri: str, target: Path, tracking_uri: str | None = None) -> Path:
    """Fetch the folder that a registered model is: a trained pair's or an adaptation's.

    Args:
        uri: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS`` or ``runs:/RUN/NAME``.
        target: the folder to put it in.
        tracking_uri: MLflow's; None for the one that MLflow is set to.

    Raises:
        TrackingError: there is no such model, or MLflow's server or database cannot be used.
    """
    server = tracking_uri or mlflow.get_tracking_uri()
    with using(server):
        try:
            fetched = mlflow.artifacts.download_artifacts(
                f"{uri}/{CHECKPOINT}", dst_path=str(target)
            )
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"{uri} is not in {masked(server)}, or was registered by an older version "
                f"({masked(str(error).splitlines()[0])}); `python -m degaml_kedro.tracking FOLDER` registers what a "
                f"run left in FOLDER"
            ) from error
    return Path(fetched)


def check_server(uri: str) -> None:
    """Ask MLflow's server or database once, where MLflow itself would try for minutes.

    An older database is left as it is: MLflow migrates some of them unasked. A new SQLite database is made.

    Raises:
        MlflowException: no server answers, or the database has another MLflow's schema.
        SQLAlchemyError: the database does not answer, is none or locked, or does not let us in.
        ImportError: the database's driver is not installed.
    """
    kind = urlparse(uri).scheme.split("+")[0]
    if kind in ("http", "https"):
        http_request_safe(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search",
            "POST",
            json={"max_results": 1},
            max_retries=0,
            timeout=WAIT_SECONDS,
        )
    elif kind in ("sqlite", "postgresql"):
        # imports all of MLflow's tables
        from mlflow.store.db.utils import _verify_schema

        wait = "timeout" if kind == "sqlite" else "connect_timeout"
        engine = create_engine(uri, poolclass=NullPool, connect_args={wait: WAIT_SECONDS})
        if kind == "sqlite":
            _make_database(engine)
        if inspect(engine).has_table("alembic_version"):
            _verify_schema(engine)


def _make_database(engine: Engine) -> None:
    """Make MLflow's tables in a new SQLite file, or anew in one that a killed program left between migrations.

    Migrations cannot be resumed where they were stopped, so they run in memory, and the file gets the result in one
    transaction.
    """
    if not _is_unfinished(engine):
        return
    from mlflow.store.db.utils import _initialize_tables

    with closing(sqlite3.connect(":memory:")) as memory:
        _initialize_tables(create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool))
        with _locked(Path(engine.url.database or ".").parent):
            # another program may have been faster
            if _is_unfinished(engine):
                with closing(engine.raw_connection()) as database:
                    file: Any = database.driver_connection
                    memory.backup(file)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """No other program is in the block for this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # an error: a file system without locks
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_unfinished(engine: Engine) -> bool:
    """Whether there are no tables, or MLflow's own of another schema than this version's, without any run."""
    from mlflow.store.db.utils import _get_latest_schema_revision, _get_schema_version

    tables = inspect(engine).get_table_names()
    with engine.connect() as database:
        filled = {
            one for one in tables if database.execute(select(1).select_from(table(one))).first()
        }
    if not tables:
        return True
    if "alembic_version" not in filled or not filled <= _FILLED_BY_MIGRATIONS:
        return False
    return bool(_get_schema_version(engine) != _get_latest_schema_revision())
