"""Runs in MLflow: one per pipeline, below it one per task, generator and policy, below a task one per method."""

from __future__ import annotations

import functools
import logging
import math
import os
import shlex
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import mlflow
from kedro.config import MissingConfigException
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from mlflow.entities import Metric, Param, RunStatus
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
)

from degaml_kedro.configuration import current_loader, read_parameters
from degaml_kedro.errors import DegamlError
from degaml_kedro.generator.generator import Generator
from degaml_kedro.generator.health import WHOLE
from degaml_kedro.io.atomic import is_main_process
from degaml_kedro.io.generators import GeneratorProgress
from degaml_kedro.io.trajectory import StepRecord, TrajectoryEnd, TrajectoryStart, TrajectoryStep
from degaml_kedro.mlflow_server import (
    UNREACHABLE,
    Place,
    explain,
    knock,
    masked,
    place_of,
    tracking_uri,
)
from degaml_kedro.pipelines.task_folds import generator_folds

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
        except UNREACHABLE as error:
            self.off = True
            logger.warning(
                "MLflow cannot be reached (%s); the run goes on and is not tracked. Check server.mlflow_tracking_uri "
                "in conf/base/mlflow.yml, and whether another program holds the database. To import results and models "
                "when the run is over: %s",
                explain(error, self.uri),
                _import_command(self.folder),
            )

    return cast(Hook, tolerant)


@dataclass
class _Curve:
    """A training's metrics on their way to MLflow: what was taken, and what of it waits to be sent.

    Each row has a key of its own: a step's number, or a health check's step and task.
    """

    taken: set[Any] = field(default_factory=set)
    waiting: list[Metric] = field(default_factory=list)
    last_sent: float = field(default_factory=time.monotonic)

    def take(self, key: Any, values: Mapping[str, float], step: int) -> None:
        """Add a row, once; numbers that are not finite are none."""
        if key in self.taken:
            return
        self.taken.add(key)
        now = _now()
        self.waiting += [
            Metric(name, value, now, step) for name, value in values.items() if math.isfinite(value)
        ]


class TrackingHook(MlflowHook):  # type: ignore[misc]
    """kedro-mlflow's hook, with a run per task, method and generator below the pipeline's.

    A task's run has the loss curve of its trajectory; the run of a method below it has the method's measures. They
    are named alike in all of them, so that MLflow can compare methods. A generator's run has its training and its
    health. What belongs to a group of left-out tasks lies below a run of the group, and says so in its tags.

    Where a launcher started several processes, the first one tracks.
    """

    def __init__(self) -> None:
        """Nothing is tracked until a run starts."""
        super().__init__()
        self._reset()

    def _reset(self) -> None:
        self.off = not is_main_process()
        self.process = os.getpid()
        self.lock = threading.RLock()
        self.uri = ""
        self.folder = Path("data")
        self.run_id: str | None = None
        self._labels: frozenset[str] = frozenset()
        self._children: dict[tuple[str, ...], str] = {}
        self._curves: dict[str, _Curve] = {}
        self._measured: set[str] = set()

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Set MLflow up as ``mlflow.yml`` says."""
        self._reset()
        self.folder = Path(str(context.config_loader["globals"].get("data", "data")))
        self._set_up(context)

    @_tolerant
    def _set_up(self, context: KedroContext) -> None:
        self.uri = _configured_uri(context)
        knock(self.uri)
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
        if self.run_id is None:
            return
        if isinstance(data, TrajectoryStart):
            self._curves[dataset_name] = _Curve()
        elif isinstance(data, TrajectoryStep):
            self._take_steps(dataset_name, [data.record])
            self._send_now_and_then(dataset_name)
        elif isinstance(data, TrajectoryEnd):
            # what is missing: the end, and in a resumed run the beginning too
            self._take_steps(dataset_name, data.records)
            self._send(dataset_name)
        elif isinstance(data, GeneratorProgress):
            self._take_generator(dataset_name, data.records, data.checks)
            self._send_now_and_then(dataset_name)
        elif isinstance(data, Generator):
            self._take_generator(dataset_name, data.records, data.checks)
            self._send(dataset_name)
        elif dataset_name.endswith(_RECORD):
            self._log_policy(dataset_name, data)
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
        """The run of a task, ``(task,)``, of a method on it, ``(task, method)``, or of a generator.

        A group's label may stand in front of each.
        """
        if path not in self._children:
            parent = self._child(path[:-1]) if len(path) > 1 else self.run_id
            run = self._client.create_run(
                self.mlflow_config.tracking.experiment._experiment.experiment_id,
                run_name=" ".join(path),
                tags={MLFLOW_PARENT_RUN_ID: parent, **self._tags(path)},
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

    def _take_steps(self, name: str, records: Iterable[StepRecord]) -> None:
        curve = self._curves.setdefault(name, _Curve())
        for record in records:
            curve.take(record.step, _step_values(record), record.step)

    def _take_generator(
        self, name: str, records: Iterable[Mapping[str, Any]], checks: Iterable[Mapping[str, Any]]
    ) -> None:
        """Take a generator's steps, and what its checks say of whole adapters."""
        curve = self._curves.setdefault(name, _Curve())
        for record in records:
            step = int(record["step"])
            curve.take(step, {key: float(record[key]) for key in _LEARNED}, step)
        for check in checks:
            if check["module"] == WHOLE:
                step = int(check["step"])
                curve.take((step, check["task"]), _check_values(check), step)

    def _send_now_and_then(self, name: str) -> None:
        if time.monotonic() - self._curves[name].last_sent > _FLUSH_SECONDS:
            self._send(name)

    def _send(self, name: str) -> None:
        """Send what waits of a curve, in batches."""
        curve = self._curves[name]
        for first in range(0, len(curve.waiting), MAX_METRICS_PER_BATCH):
            batch = curve.waiting[first : first + MAX_METRICS_PER_BATCH]
            self._client.log_batch(self._child(_path(name)), metrics=batch)
        curve.waiting, curve.last_sent = [], time.monotonic()

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

    def _log_policy(self, name: str, record: Mapping[str, Any]) -> None:
        """One iteration of a policy: its loss curve, and what came of its rollouts."""
        *group, _, _ = name.split(".")
        run = self._child((*group, _POLICY_RUN))
        step = int(record["iteration"])
        now = _now()
        metrics = [
            Metric(key, float(record[key]), now, step)
            for key in ("reward_rate", "rollouts", "learned", "steps", "seconds", "tokens")
        ]
        for place, loss in enumerate(record["losses"], start=1):
            metrics.append(Metric(f"loss_{step}", float(loss), now, place))
        for first in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self._client.log_batch(run, metrics=metrics[first : first + MAX_METRICS_PER_BATCH])
        self._measured.add(name)

    def _log_from_disk(self, name: str, catalog: DataCatalog) -> None:
        try:
            if name.endswith(_TRAJECTORY) and name not in self._curves and catalog.exists(name):
                self._take_steps(name, catalog.load(name).records)
                self._send(name)
            if name.endswith(_GENERATOR) and name not in self._curves and catalog.exists(name):
                self._take_generator(name, *_read_generator(name, catalog))
                self._send(name)
            if name.endswith(_RECORD) and name not in self._measured and catalog.exists(name):
                self._log_policy(name, catalog.load(name))
            if name.endswith(_RESULT) and name not in self._measured and catalog.exists(name):
                self._log_result(name, catalog.load(name))
        except (DatasetError, DegamlError) as error:
            logger.warning("%s cannot be read, so it is not tracked: %s", name, error)

    def _close_children(self, status: int) -> None:
        for run in self._children.values():
            self._client.set_terminated(run, RunStatus.to_string(status))


def _path(dataset_name: str) -> tuple[str, ...]:
    *path, kind = dataset_name.split(".")
    if f".{kind}" == _GENERATOR:
        # with a word in front: a variant may be called as a task is
        path[-1] = f"{_GENERATOR_RUN}{path[-1]}"
    return tuple(path)


def _read_generator(
    name: str, catalog: DataCatalog
) -> tuple[Iterable[Mapping[str, Any]], Iterable[Mapping[str, Any]]]:
    """A stored generator's steps and checks; from their own tables where these are there, which are small."""
    tables = (f"{name}_steps", f"{name}_health")
    if all(catalog.exists(table) for table in tables):
        steps, checks = (catalog.load(table).to_dict("records") for table in tables)
        return steps, checks
    generator: Generator = catalog.load(name)
    return generator.records, generator.checks


def _now() -> int:
    return int(time.time() * 1000)


def _step_values(record: StepRecord) -> dict[str, float]:
    return {
        "loss": record.loss,
        "learning_rate": record.learning_rate,
        "tokens_per_second": record.tokens / record.seconds if record.seconds else 0.0,
    }


def _check_values(check: Mapping[str, Any]) -> dict[str, float]:
    """``accuracy/held_out/day_after``: MLflow draws what has the same beginning together."""
    kind = "held_out" if check["held_out"] else "seen"
    return {
        f"{key}/{kind}/{check['task']}": float(check[key])
        for key in _CHECKED
        if check[key] is not None
    }


def _configured_uri(context: KedroContext) -> str:
    """The tracking URI, and a word where the environment names another one, which does not count."""
    try:
        uri = tracking_uri(context.config_loader["mlflow"])
    except MissingConfigException:
        uri = tracking_uri({})
    if _ASKED_FOR and uri != _ASKED_FOR:
        logger.warning(
            "MLFLOW_TRACKING_URI is %s, but mlflow.yml says %s, and that counts; set server.mlflow_tracking_uri to "
            "null in conf/local/mlflow.yml to use the environment's",
            masked(_ASKED_FOR),
            masked(uri),
        )
    return uri


class ComparisonHook:
    """Puts comparisons and models into MLflow when a run has made them.

    What cannot be logged stays on disk, and a warning says how it is imported later.
    """

    def __init__(self) -> None:
        """Nothing is logged until a run starts."""
        self._place: Place | None = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Remember where to log."""
        self._place = place_of(context.config_loader, Path(context.project_path))

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Log the comparison that a report was made of, and register the models that are new."""
        # where a launcher started several processes, one logs
        if self._place is None or not is_main_process():
            return
        outputs = pipeline.all_outputs()
        compared = "report_page" in outputs
        made = "runs" if compared else next(filter(_is_model, sorted(outputs)), None)
        if made is None:
            return
        folder = _path_of(catalog, made)
        if not compared:
            # above 06_models
            folder = folder.parent.parent
        try:
            self._log(self._place, folder, catalog, compared)
        except (DatasetError, DegamlError) as error:
            logger.warning(
                "The %s in %s cannot be put into MLflow (%s); everything is on disk. To import it later: %s",
                "comparison" if compared else "models",
                folder,
                str(error).rstrip("."),
                _import_command(folder),
            )

    def _log(self, place: Place, folder: Path, catalog: DataCatalog, compared: bool) -> None:
        # MLflow's model format takes a second to import
        from degaml_kedro.comparison_tracking import log_comparison
        from degaml_kedro.model_registry import register_models

        if compared:
            log_comparison(
                catalog.load("runs"),
                place.uri,
                place.experiment,
                place.artifact_location,
                page=_path_of(catalog, "report_page"),
            )
        register_models(
            folder,
            place.uri,
            place.experiment,
            place.artifact_location,
            # of one run; the runs of a comparison have their own
            parameters=None if compared else catalog.load("parameters"),
        )


def _is_model(dataset: str) -> bool:
    """Whether it is a generator, the policy or what degaml adapted, of all tasks."""
    if dataset.startswith("without_"):
        return False
    return dataset == _POLICY_RUN or dataset.endswith((_GENERATOR, ".degaml.state"))


def _path_of(catalog: DataCatalog, name: str) -> Path:
    return Path(str(catalog[name]._describe()["filepath"]))


def _import_command(folder: Path) -> str:
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    return f"{Path(sys.executable).name} -m degaml_kedro.comparison_tracking {shlex.quote(str(folder))}"
