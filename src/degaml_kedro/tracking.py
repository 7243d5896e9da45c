"""Runs in MLflow: one per pipeline, below it one per task, below that one per method."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from urllib.parse import urlparse

import mlflow
from alembic.util import CommandError
from kedro.config import MissingConfigException
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from mlflow.entities import Metric, Param, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
)
from sqlalchemy.exc import SQLAlchemyError

from degaml_kedro.io.trajectory import StepRecord, TrajectoryEnd, TrajectoryStart, TrajectoryStep

# MLflow's advice to kedro-mlflow's authors, given at every start; it sets its own filter, so it is taken aside
with warnings.catch_warnings(record=True):
    from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
    from kedro_mlflow.framework.hooks.utils import _flatten_dict

_UNREACHABLE = (MlflowException, SQLAlchemyError, sqlite3.Error, CommandError, OSError)
_WAIT_SECONDS = 3.0
_FLUSH_SECONDS = 10.0
_TRAJECTORY, _RESULT = ".trajectory", ".result"

logger = logging.getLogger(__name__)


Hook = TypeVar("Hook", bound=Callable[..., None])


def _tolerant(hook: Hook) -> Hook:
    """Tracking never stops a run: what cannot be tracked is said once and left out from there on."""

    @functools.wraps(hook)
    def tolerant(self: TrackingHook, *args: Any, **kwargs: Any) -> None:
        # a worker process of a parallel runner has the hook, but must not use the parent's connection
        if self.off or os.getpid() != self.process:
            return
        try:
            with self.lock:
                hook(self, *args, **kwargs)
        except _UNREACHABLE as error:
            self.off = True
            reason = str(error).strip().splitlines()
            logger.warning(
                "MLflow cannot be reached (%s); the run goes on and is not tracked. Check server.mlflow_tracking_uri "
                "in conf/base/mlflow.yml, and whether another program holds the database.",
                reason[0] if reason else type(error).__name__,
            )

    return cast(Hook, tolerant)


@dataclass
class _Curve:
    """A trajectory's steps on their way to MLflow: which are there, and which wait to be sent."""

    sent: set[int] = field(default_factory=set)
    waiting: list[StepRecord] = field(default_factory=list)
    last_sent: float = field(default_factory=time.monotonic)


class TrackingHook(MlflowHook):  # type: ignore[misc]
    """kedro-mlflow's hook, with a run per task and method below the pipeline's.

    A task's run has the loss curve of its trajectory; the run of a method below it has the method's measures. They
    are named alike in all of them, so that MLflow can compare methods.
    """

    def __init__(self) -> None:
        """Nothing is tracked until a run starts."""
        super().__init__()
        self._reset()

    def _reset(self) -> None:
        self.off = False
        self.process = os.getpid()
        self.lock = threading.RLock()
        self.run_id: str | None = None
        self._children: dict[tuple[str, ...], str] = {}
        self._curves: dict[str, _Curve] = {}
        self._measured: set[str] = set()

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Set MLflow up as ``mlflow.yml`` says."""
        self._reset()
        self._set_up(context)

    @_tolerant
    def _set_up(self, context: KedroContext) -> None:
        _knock(context)
        super().after_context_created(context)

    @hook_impl
    @_tolerant
    def after_catalog_created(
        self,
        catalog: DataCatalog,
        conf_catalog: dict[str, Any],
        conf_creds: dict[str, Any],
        parameters: dict[str, Any],
        save_version: str,
        load_versions: dict[str, str],
    ) -> None:
        """Let kedro-mlflow name its metric datasets."""
        super().after_catalog_created(
            catalog, conf_catalog, conf_creds, parameters, save_version, load_versions
        )

    @hook_impl
    @_tolerant
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Open the pipeline's run and log all parameters, once."""
        super().before_pipeline_run(run_params, pipeline, catalog)
        if self.run_id is not None:
            self._log_parameters(self.run_id, catalog.load("parameters"))

    @hook_impl
    @_tolerant
    def before_node_run(
        self, node: Node, catalog: DataCatalog, inputs: dict[str, Any], is_async: bool
    ) -> None:
        """Make the pipeline's run the active one in the node's thread; the parameters are logged already."""
        if mlflow.active_run() is None:
            super().before_node_run(node, catalog, {}, is_async)

    @hook_impl
    @_tolerant
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log a training step or a result when it is safe on the disk."""
        if self.run_id is None:
            return
        if isinstance(data, TrajectoryStart):
            self._curves[dataset_name] = _Curve()
        elif isinstance(data, TrajectoryStep):
            curve = self._curves[dataset_name]
            curve.waiting.append(data.record)
            if time.monotonic() - curve.last_sent > _FLUSH_SECONDS:
                self._send(dataset_name)
        elif isinstance(data, TrajectoryEnd):
            self._send_whole(dataset_name, data.records)
        elif dataset_name.endswith(_RESULT):
            self._log_result(dataset_name, data)

    @hook_impl
    @_tolerant
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Log what was made elsewhere, by worker processes or earlier runs, and close all runs."""
        if self.run_id is not None:
            for name in sorted(pipeline.all_outputs()):
                self._log_from_disk(name, catalog)
            self._close_children(RunStatus.FINISHED)
        super().after_pipeline_run(run_params, pipeline, catalog)

    @hook_impl
    @_tolerant
    def on_pipeline_error(
        self,
        error: Exception,
        run_params: dict[str, Any],
        pipeline: Pipeline,
        catalog: DataCatalog,
    ) -> None:
        """Close all runs as failed, with the steps they got to."""
        if self.run_id is None:
            return
        for name in self._curves:
            self._send(name)
        self._close_children(RunStatus.FAILED)
        super().on_pipeline_error(error, run_params, pipeline, catalog)

    @property
    def _client(self) -> MlflowClient:
        client: MlflowClient = self.mlflow_config.server._mlflow_client
        return client

    def _log_parameters(self, run: str, parameters: Mapping[str, Any]) -> None:
        flat = _flatten_dict(dict(parameters), recursive=self.recursive, sep=self.sep)
        values = [
            Param(self.sanitize_param_name(name), str(value)[:MAX_PARAM_VAL_LENGTH])
            for name, value in flat.items()
        ]
        for first in range(0, len(values), MAX_PARAMS_TAGS_PER_BATCH):
            batch = values[first : first + MAX_PARAMS_TAGS_PER_BATCH]
            self._client.log_batch(run, params=batch)

    def _child(self, path: tuple[str, ...]) -> str:
        """The run of a task, ``(task,)``, or of a method on a task, ``(task, method)``."""
        if path not in self._children:
            parent = self._child(path[:-1]) if len(path) > 1 else self.run_id
            run = self._client.create_run(
                self.mlflow_config.tracking.experiment._experiment.experiment_id,
                run_name=" ".join(path),
                tags={
                    MLFLOW_PARENT_RUN_ID: parent,
                    **dict(zip(("task", "method"), path, strict=False)),
                },
            )
            self._children[path] = run.info.run_id
        return self._children[path]

    def _send(self, name: str) -> None:
        """Send the steps of a curve that wait, in batches."""
        curve = self._curves[name]
        metrics = [metric for record in curve.waiting for metric in _step_metrics(record)]
        for first in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            batch = metrics[first : first + MAX_METRICS_PER_BATCH]
            self._client.log_batch(self._child(_path(name)), metrics=batch)
        curve.sent.update(record.step for record in curve.waiting)
        curve.waiting, curve.last_sent = [], time.monotonic()

    def _send_whole(self, name: str, records: Sequence[StepRecord]) -> None:
        """Send what is missing of a curve: its end, and in a resumed run its beginning too."""
        curve = self._curves.setdefault(name, _Curve())
        curve.waiting = [record for record in records if record.step not in curve.sent]
        self._send(name)

    def _log_result(self, name: str, result: Mapping[str, Any]) -> None:
        run = self._child(_path(name))
        now = _now()
        metrics = [
            Metric(key, float(value), now, 0)
            for key, value in result.items()
            if isinstance(value, (int, float))
        ]
        self._client.log_batch(run, metrics=metrics)
        self._client.set_tag(run, "pool", result["pool"])
        self._measured.add(name)

    def _log_from_disk(self, name: str, catalog: DataCatalog) -> None:
        try:
            if name.endswith(_TRAJECTORY) and name not in self._curves and catalog.exists(name):
                self._send_whole(name, catalog.load(name).records)
            if name.endswith(_RESULT) and name not in self._measured and catalog.exists(name):
                self._log_result(name, catalog.load(name))
        except DatasetError as error:
            logger.warning("%s cannot be read, so it is not tracked: %s", name, error)

    def _close_children(self, status: int) -> None:
        for run in self._children.values():
            self._client.set_terminated(run, RunStatus.to_string(status))


def _path(dataset_name: str) -> tuple[str, ...]:
    return tuple(dataset_name.split(".")[:-1])


def _now() -> int:
    return int(time.time() * 1000)


def _step_metrics(record: StepRecord) -> list[Metric]:
    values = {
        "loss": record.loss,
        "learning_rate": record.learning_rate,
        "tokens_per_second": record.tokens / record.seconds if record.seconds else 0.0,
    }
    now = _now()
    return [Metric(key, value, now, record.step) for key, value in values.items()]


def _knock(context: KedroContext) -> None:
    """Fail at once where MLflow would try for minutes.

    Raises:
        OSError: no server answers.
        sqlite3.Error: the file is no database, cannot be written, or is locked.
    """
    try:
        server = context.config_loader["mlflow"].get("server") or {}
    except MissingConfigException:
        server = {}
    uri = server.get("mlflow_tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI", "")
    parts = urlparse(uri)
    if parts.scheme == "sqlite":
        file = uri.removeprefix("sqlite:///")
        with closing(sqlite3.connect(file, timeout=_WAIT_SECONDS)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    elif parts.scheme in ("http", "https") and parts.hostname:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=_WAIT_SECONDS).close()
