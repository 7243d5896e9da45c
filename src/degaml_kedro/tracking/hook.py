"""Runs in MLflow: one per pipeline, below it one per task, generator and policy, below a task one per method."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import shlex
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from mlflow.entities import Metric, Param, RunStatus
from mlflow.environment_variables import MLFLOW_RUN_CONTEXT
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from degaml_kedro.common.atomic import is_main_process
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.folders import is_gone
from degaml_kedro.config.loader import current_loader, read_parameters
from degaml_kedro.generator.health import WHOLE
from degaml_kedro.io.generators import GeneratorProgress
from degaml_kedro.io.runs import fetched_runs
from degaml_kedro.io.trajectory import StepRecord, TrajectoryStart, TrajectoryStep
from degaml_kedro.pipelines.task_folds import generator_folds
from degaml_kedro.tracking.server import (
    Place,
    TrackingError,
    check_server,
    masked,
    owner_tags,
    place_of,
    translate_errors,
)

# MLflow's advice to kedro-mlflow's authors, given at every start; it sets its own filter, so it is taken aside
with warnings.catch_warnings(record=True):
    from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
    from kedro_mlflow.framework.hooks.utils import _flatten_dict

# as the user set it: MLflow itself writes to it as soon as a run is tracked
_ASKED_FOR = os.environ.get("MLFLOW_TRACKING_URI")
_FLUSH_SECONDS = 10.0
_TRAJECTORY, _RESULT, _GENERATOR, _RECORD = ".trajectory", ".result", ".generator", ".record"
_GENERATOR_RUN = "generator "
_POLICY_RUN = "policy"
_LEARNED = ("loss", "mse", "sft", "gradient_norm", "learning_rate")
_CHECKED = ("relative_error", "norm_ratio", "accuracy")

logger = logging.getLogger(__name__)


def _tolerant(hook: Callable[..., None]) -> Callable[..., None]:
    """Tracking never stops a run: what cannot be tracked is said once and left out from there on."""

    @functools.wraps(hook)
    def tolerant(self: TrackingHook, *args: Any, **kwargs: Any) -> None:
        # a worker process of a parallel runner has the hook, but must not use the parent's connection
        if self.off or os.getpid() != self.process:
            return
        try:
            with self.lock, translate_errors(self.place.uri):
                hook(self, *args, **kwargs)
        except TrackingError as error:
            self.off = True
            logger.warning(
                "This run is not tracked from here on; what it makes is on disk all the same, and to log it later, "
                "once mlflow.yml names a place that works: %s. %s",
                _import_command(self.folder),
                error,
            )

    return tolerant


@dataclass
class _Curve:
    """A training's metrics on their way to MLflow: what was taken, and what of it waits to be sent.

    Each row has a key of its own: a step's number, or a health check's step and task.
    """

    taken: set[Any] = field(default_factory=set)
    waiting: list[Metric] = field(default_factory=list)
    last_sent: float = field(default_factory=time.monotonic)

    def take(self, key: Any, values: Mapping[str, float], step: int) -> None:
        """Add a row, once; numbers that are not finite are left out."""
        if key in self.taken:
            return
        self.taken.add(key)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.waiting += _metrics(finite, step)


class TrackingHook(MlflowHook):  # type: ignore[misc]
    """kedro-mlflow's hook, with a run per task, method and generator below the pipeline's.

    A task's run has the loss curve of its trajectory; the run of a method below it has the method's measures. They
    are named alike in all of them, so that MLflow can compare methods. A generator's run has its training and its
    health. What belongs to a group of left-out tasks lies below a run of the group, and says so in its tags. At the
    end comparisons are logged and models registered.

    Where a launcher started several processes, the first one tracks.
    """

    def __init__(self) -> None:
        """Nothing is tracked until a run starts."""
        super().__init__()
        self._reset(Place("", ""), "data")

    def _reset(self, place: Place, folder: str) -> None:
        self.off = not is_main_process()
        self.process = os.getpid()
        self.lock = threading.RLock()
        self.place = place
        self.folder = folder
        self.run_id: str | None = None
        self._labels: frozenset[str] = frozenset()
        self._children: dict[tuple[str, ...], str] = {}
        self._curves: dict[str, _Curve] = {}
        self._measured: set[str] = set()

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Set MLflow up as ``mlflow.yml`` says."""
        folder = str(context.config_loader["globals"].get("data", "data"))
        self._reset(place_of(context.config_loader, Path(context.project_path)), folder)
        if _ASKED_FOR and self.place.uri != _ASKED_FOR:
            logger.warning(
                "MLFLOW_TRACKING_URI is %s, but mlflow.yml says %s, and that counts; set server.mlflow_tracking_uri "
                "to null in conf/local/mlflow.yml to use the environment's",
                masked(_ASKED_FOR),
                masked(self.place.uri),
            )
        self._set_up(context)

    @_tolerant
    def _set_up(self, context: KedroContext) -> None:
        check_server(self.place.uri)
        super().after_context_created(context)

    @hook_impl
    @_tolerant
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Open the pipeline's run, log all parameters, once, and close the runs that were killed."""
        with _made_by(owner_tags()):
            super().before_pipeline_run(run_params, pipeline, catalog)
        if self.run_id is None:
            return
        # in one request; kedro-mlflow makes one of every parameter and node
        flat = _flatten_dict(catalog.load("parameters"), recursive=self.recursive, sep=self.sep)
        params = [
            Param(self.sanitize_param_name(name), str(value)[:MAX_PARAM_VAL_LENGTH])
            for name, value in flat.items()
        ]
        self._client.log_batch(self.run_id, params=params)
        self._close_killed()
        found = generator_folds(read_parameters(current_loader()))
        self._labels = frozenset(fold.label for fold in found if fold.left_out)

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
        if self.run_id is not None:
            self._log(dataset_name, data)

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Log what was made elsewhere, by worker processes or earlier runs, close all runs, and log what they made."""
        self._finish(run_params, pipeline, catalog)
        # where a launcher started several processes, one logs
        if is_main_process():
            log_outputs(self.place, pipeline, catalog)

    @_tolerant
    def _finish(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        if self.run_id is not None:
            for name in sorted(pipeline.all_outputs() - self._curves.keys() - self._measured):
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

    @property
    def _experiment(self) -> str:
        return str(self.mlflow_config.tracking.experiment._experiment.experiment_id)

    def _close_killed(self) -> None:
        """Close the runs that processes of this machine left open, and that are gone."""
        left = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
        for run in self._client.search_runs([self._experiment], left):
            process = run.data.tags.get("pid", "")
            if process.isdecimal() and is_gone(int(process)):
                self._client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))

    def _child(self, path: tuple[str, ...]) -> str:
        """The run of a task, ``(task,)``, of a method on it, ``(task, method)``, or of a generator.

        A group's label may stand in front of each.
        """
        if path not in self._children:
            parent = self._child(path[:-1]) if len(path) > 1 else self.run_id
            run = self._client.create_run(
                self._experiment,
                run_name=" ".join(path),
                tags={MLFLOW_PARENT_RUN_ID: parent, **owner_tags(), **self._tags(path)},
            )
            self._children[path] = run.info.run_id
        return self._children[path]

    def _tags(self, path: tuple[str, ...]) -> dict[str, str]:
        """What a run is of, to search for: group, task, method, generator."""
        grouped = path[0] in self._labels
        tags = {"group": path[0] if grouped else "all"}
        rest = path[1:] if grouped else path
        if rest and rest[0].startswith(_GENERATOR_RUN):
            return {**tags, "generator": rest[0].removeprefix(_GENERATOR_RUN)}
        if rest == (_POLICY_RUN,):
            return {**tags, "policy": "policy"}
        return {**tags, **dict(zip(("task", "method"), rest, strict=False))}

    def _log(self, name: str, data: Any) -> None:
        """Log what a dataset was given, or holds."""
        if isinstance(data, TrajectoryStart):
            self._curves[name] = _Curve()
        elif name.endswith((_TRAJECTORY, _GENERATOR)):
            # of a whole one what is missing: the end, and in a resumed run the beginning too
            curve = self._curves.setdefault(name, _Curve())
            for key, values, step in _curve_rows(data):
                curve.take(key, values, step)
            self._send(name, whole=not isinstance(data, (TrajectoryStep, GeneratorProgress)))
        elif name.endswith(_RECORD):
            self._log_policy(name, data)
        elif name.endswith(_RESULT):
            self._log_result(name, data)

    def _log_from_disk(self, name: str, catalog: DataCatalog) -> None:
        if not name.endswith((_TRAJECTORY, _GENERATOR, _RECORD, _RESULT)):
            return
        try:
            if catalog.exists(name):
                self._log(name, catalog.load(name))
        except (DatasetError, DegamlError) as error:
            logger.warning("%s cannot be read, so it is not tracked: %s", name, error)

    def _send(self, name: str, whole: bool = True) -> None:
        """Send what waits of a curve; of one that grows, every few seconds."""
        curve, now = self._curves[name], time.monotonic()
        if curve.waiting and (whole or now - curve.last_sent > _FLUSH_SECONDS):
            self._client.log_batch(self._child(_path(name)), metrics=curve.waiting)
            curve.waiting, curve.last_sent = [], now

    def _log_result(self, name: str, result: Mapping[str, Any]) -> None:
        run = self._child(_path(name))
        numbers = {
            key: float(value) for key, value in result.items() if isinstance(value, int | float)
        }
        self._client.log_batch(run, metrics=_metrics(numbers, 0))
        self._client.set_tag(run, "pool", result["pool"])
        self._measured.add(name)

    def _log_policy(self, name: str, record: Mapping[str, Any]) -> None:
        """One iteration of a policy: its loss curve, and what came of its rollouts."""
        *group, _, _ = name.split(".")
        step = int(record["iteration"])
        keys = ("reward_rate", "rollouts", "learned", "steps", "seconds", "tokens")
        metrics = _metrics({key: float(record[key]) for key in keys}, step)
        for place, loss in enumerate(record["losses"], start=1):
            metrics += _metrics({f"loss_{step}": float(loss)}, place)
        self._client.log_batch(self._child((*group, _POLICY_RUN)), metrics=metrics)
        self._measured.add(name)

    def _close_children(self, status: int) -> None:
        for run in self._children.values():
            self._client.set_terminated(run, RunStatus.to_string(status))


def _curve_rows(data: Any) -> Iterator[tuple[Any, dict[str, float], int]]:
    """Key, values and step of a training's rows: its steps, and what a generator's checks say of whole adapters."""
    for record in [data.record] if isinstance(data, TrajectoryStep) else data.records:
        if isinstance(record, StepRecord):
            speed = record.tokens / record.seconds if record.seconds else 0.0
            values = {"loss": record.loss, "learning_rate": record.learning_rate}
            yield record.step, {**values, "tokens_per_second": speed}, record.step
        else:
            step = int(record["step"])
            yield step, {key: float(record[key]) for key in _LEARNED}, step
    for check in getattr(data, "checks", ()):
        if check["module"] == WHOLE:
            # MLflow draws what has the same beginning together: `accuracy/held_out/day_after`
            end = f"{'held_out' if check['held_out'] else 'seen'}/{check['task']}"
            values = {f"{k}/{end}": float(check[k]) for k in _CHECKED if check[k] is not None}
            yield (check["step"], check["task"]), values, int(check["step"])


@contextmanager
def _made_by(tags: Mapping[str, str]) -> Iterator[None]:
    """Runs that MLflow makes in the block have these tags from the first: a kill cannot come between."""
    given = MLFLOW_RUN_CONTEXT.get()
    MLFLOW_RUN_CONTEXT.set(json.dumps({**json.loads(given or "{}"), **tags}))
    try:
        yield
    finally:
        MLFLOW_RUN_CONTEXT.set(given) if given else MLFLOW_RUN_CONTEXT.unset()


def _path(dataset_name: str) -> tuple[str, ...]:
    *path, kind = dataset_name.split(".")
    if f".{kind}" == _GENERATOR:
        # with a word in front: a variant may be called as a task is
        path[-1] = f"{_GENERATOR_RUN}{path[-1]}"
    return tuple(path)


def _metrics(values: Mapping[str, float], step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(name, value, now, step) for name, value in values.items()]


# --- what a run made ------------------------------------------------------------------------------


def log_outputs(place: Place, pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Log the comparison that a report was made of, and register the models that are new.

    What cannot be logged stays on disk, and a warning says how it is logged later.
    """
    outputs = pipeline.all_outputs()
    compared = "report_page" in outputs
    made = "runs" if compared else next(filter(_is_model, sorted(outputs)), None)
    if made is None:
        return
    # MLflow's model format takes a second to import
    from degaml_kedro.tracking.comparison import log_comparison
    from degaml_kedro.tracking.registry import register_models

    where = str(catalog[made]._describe()["filepath"])
    if not compared:
        # a model lies in 06_models
        where = where.rsplit("/", 2)[0]
    try:
        folder = fetched_runs(where)
        if compared:
            page = folder / "08_reporting" / "report.html"
            log_comparison(catalog.load("runs"), catalog.load("comparison"), place, page)
        register_models(folder, place)
    except (DatasetError, DegamlError, OSError) as error:
        logger.warning(
            "The %s in %s cannot be logged; everything is stored there, and to log it later: %s. %s",
            "comparison" if compared else "models",
            where,
            _import_command(where),
            error,
        )


def _is_model(dataset: str) -> bool:
    """Whether it is the policy or what degaml adapted, of all tasks."""
    if dataset.startswith("without_"):
        return False
    return dataset == _POLICY_RUN or dataset.endswith(".degaml.state")


def _import_command(where: str) -> str:
    if "://" not in where and (folder := Path(where)).is_relative_to(Path.cwd()):
        where = str(folder.relative_to(Path.cwd()))
    return f"{Path(sys.executable).name} -m degaml_kedro.tracking {shlex.quote(where)}"
