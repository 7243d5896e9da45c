"""A comparison in MLflow: a run of its own, below it one per method, below a method one per task.

All three kinds of runs have a tag ``kind`` (``comparison``, ``method``, ``task``). A task's run has the means over the
seeds, and under ``by_seed/`` one value a seed, with the seed's position as the step. A method's run has the means over
a pool's tasks, ``accuracy/meta_test``. What was not measured is not logged, and a mean that would miss a task or a seed
which other methods have is none: the tag ``missing`` names them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH
from sqlalchemy.engine import make_url

from degaml_kedro.parameters import ADAPTED, BASELINES, GENERATED
from degaml_kedro.results.runs import BOUNDS, Run, Runs
from degaml_kedro.tracking.server import (
    Place,
    check_server,
    experiment_id,
    flat_texts,
    translate_errors,
)

EXPERIMENT = "degaml_kedro"
POOL = "meta_test"
# changes when the same content is logged in another way
_FORMAT = 3
_MEASURES = [
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "accuracy_spread",
    "chance",
    "nll",
    "ece",
    "invalid",
    "n",
    "seconds",
    "tokens",
]
_COSTS = ["forward_tokens", "backward_tokens", "tokens", "seconds"]
_ADAPTATION = "adaptation"
# by method, the parts of the configuration that set it; all have what is under `_SHARED`
_SHARED = ("profile", "model", "prompt", "scoring", "lora")
_SET_BY = {
    "no_meta_train": ("no_meta_train",),
    "pooled": ("warmup",),
    "mean_adapter": ("trajectory",),
    **{method: (f"baselines.{entry}", "baselines.search") for method, entry in BASELINES.items()},
    **dict.fromkeys(ADAPTED, ("generator", "policy")),
}


@dataclass(frozen=True)
class _Logged:
    """A run to be logged: ``metrics`` are a name, a value and a step each, ``below`` are its child runs."""

    name: str
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    below: list[_Logged] = field(default_factory=list)


def log_comparison(
    runs: Runs,
    tracking_uri: str,
    experiment: str,
    artifact_location: str | None = None,
    page: Path | None = None,
) -> str:
    """Log a comparison, once: where the same content is there already, that is it.

    What a killed process left half-logged is deleted and logged anew.

    Args:
        runs: the finished runs, of one profile and several seeds.
        tracking_uri: MLflow's.
        experiment: its name; it is made where it is not there.
        artifact_location: where a new experiment keeps its files.
        page: the report, to be kept with the comparison.

    Returns:
        The id of the comparison's run.

    Raises:
        TrackingError: MLflow's server or database cannot be used.
    """
    content = _comparison(runs)
    digest = _digest(content)
    with translate_errors(tracking_uri):
        check_server(tracking_uri)
        client = MlflowClient(tracking_uri)
        place = experiment_id(client, Place(tracking_uri, experiment, artifact_location))
        found = client.search_runs(
            [place], f"tags.kind = 'comparison' and tags.digest = '{digest}'"
        )
        whole = [run.info.run_id for run in found if _is_whole(run)]
        for run in found:
            if not _is_whole(run):
                _delete(client, place, run.info.run_id)
        if not whole:
            whole = [_log(client, place, content, {"digest": digest, "complete": "false"})]
            client.set_tag(whole[0], "complete", "true")
        if page is not None and page.is_file():
            client.log_artifact(whole[0], str(page))
        return str(whole[0])


def _digest(content: _Logged) -> str:
    """Changes with any number, setting or name that is logged."""
    text = json.dumps([_FORMAT, asdict(content)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_whole(run: MlflowRun) -> bool:
    return bool(run.data.tags.get("complete") == "true")


def _delete(client: MlflowClient, experiment: str, run: str) -> None:
    below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run}'"
    # deleted ones are no longer found, so the first page is always the next one
    while children := client.search_runs([experiment], below, max_results=1000):
        for child in children:
            _delete(client, experiment, child.info.run_id)
    client.delete_run(run)


def _log(client: MlflowClient, experiment: str, content: _Logged, tags: Mapping[str, str]) -> str:
    """Log a run with those below it; its id."""
    run = client.create_run(
        experiment, run_name=content.name, tags={**content.tags, **tags}
    ).info.run_id
    now = int(time.time() * 1000)
    client.log_batch(
        run,
        [Metric(name, value, now, step) for name, value, step in content.metrics],
        [Param(name, value) for name, value in content.params.items()],
    )
    for below in content.below:
        _log(client, experiment, below, {MLFLOW_PARENT_RUN_ID: run})
    client.set_terminated(run)
    return str(run)


# --- what is logged -------------------------------------------------------------------------------


def _comparison(runs: Runs) -> _Logged:
    seeds = ",".join(str(run.seed) for run in runs.runs)
    profile = runs.runs[0].profile
    shared = {"profile": profile, "seeds": seeds}
    cells = _cells(runs)
    measured = {(pool, task, run) for _, pool, task, run in cells.index}
    return _Logged(
        f"comparison {profile}, seeds {seeds}",
        {**shared, "kind": "comparison"},
        {**shared, **_settings_of(runs.runs[0], ""), "methods": ", ".join(runs.methods)},
        below=[_method(runs, cells, measured, method, shared) for method in runs.methods],
    )


def _method(
    runs: Runs,
    cells: pd.DataFrame,
    measured: set[tuple[str, str, str]],
    method: str,
    shared: Mapping[str, str],
) -> _Logged:
    """A method's run: means over a pool's tasks, where every task and seed is there that any method has.

    Args:
        runs: all of them.
        cells: as :func:`_cells` makes them.
        measured: pool, task and run of all results, of whichever method.
        method: which method.
        shared: tags of the whole comparison.
    """
    own = cells[cells.index.get_level_values("method") == method].droplevel("method")
    tags = {**shared, "kind": "method", "method": method}
    if method in BOUNDS:
        tags["bound"] = "true"
    if missing := sorted((task, pool, run) for pool, task, run in measured.difference(own.index)):
        names = ", ".join(f"{run} {pool} {task}" for task, pool, run in missing)
        tags["missing"] = names[:MAX_TAG_VAL_LENGTH]
    steps = {run.name: step for step, run in enumerate(runs.runs)}
    metrics = _stage_costs(runs, method, steps)
    for pool, in_pool in own.groupby(level="pool"):
        wanted = [task for own_pool, task, _ in measured if own_pool == str(pool)]
        # of the tasks that were asked for, too, as the report has it
        if len(in_pool) == len(wanted) and set(runs.tasks.get(str(pool), ())) <= set(wanted):
            metrics += _over_tasks(in_pool.droplevel("pool"), f"/{pool}", steps)
    below = [
        _Logged(
            f"{task} {method}",
            {**shared, "kind": "task", "method": method, "task": str(task), "pool": str(pool)},
            # no parameters: each kind costs a transaction, and the name and the tags say it
            metrics=_over_seeds(in_task.droplevel(["pool", "task"]), steps),
        )
        for (pool, task), in_task in own.groupby(level=["pool", "task"])
    ]
    params = {**shared, **_settings_of(runs.runs[0], method)}
    return _Logged(method, tags, params, metrics, below)


def _cells(runs: Runs) -> pd.DataFrame:
    """What was measured, and what adapting cost: by method, pool, task and run; NaN where it is not known."""
    key = ["method", "pool", "task", "run"]
    measured = runs.results().set_index(key).reindex(columns=_MEASURES)
    spent = _whole_sums(runs.compute(), _ADAPTATION, key).add_suffix(f"_{_ADAPTATION}")
    numbers: pd.DataFrame = measured.apply(pd.to_numeric, errors="coerce").join(spent).astype(float)
    return numbers.replace([np.inf, -np.inf], np.nan).sort_index()


def _whole_sums(compute: pd.DataFrame, stage: str, key: list[str]) -> pd.DataFrame:
    """A stage's costs, NaN where a part of one is not known: of trials only the sum of both directions is."""
    rows = compute.reindex(columns=[*key, "stage", *_COSTS])
    rows = rows[rows["stage"] == stage].set_index(key)[_COSTS]
    numbers = rows.apply(pd.to_numeric, errors="coerce").astype(float).sort_values(_COSTS)
    grouped = numbers.groupby(level=key)
    whole: pd.DataFrame = grouped.sum().where(grouped.count().eq(grouped.size(), axis=0))
    return whole


def _over_seeds(by_run: pd.DataFrame, steps: Mapping[str, int]) -> list[tuple[str, float, int]]:
    """A task's means over the seeds, and the single values: a mean of fewer seeds would not be comparable."""
    means = by_run.mean(skipna=False)
    return [("seeds", float(len(by_run)), 0), *_values(means), *_by_seed(by_run, steps)]


def _over_tasks(
    cells: pd.DataFrame, end: str, steps: Mapping[str, int]
) -> list[tuple[str, float, int]]:
    """Means over seeds within a task, then over tasks, and a value for each seed that has all tasks.

    Args:
        cells: of a method in a pool, by task and run.
        end: of the metrics' names.
        steps: by run.
    """
    tasks = len(cells.index.unique("task"))
    means = cells.groupby(level="task").mean().mean().where(cells.notna().all())
    grouped = cells.groupby(level="run")
    by_run = grouped.mean().where(grouped.count() == tasks)[grouped.size() == tasks]
    return [
        (f"seeds{end}", float(len(by_run)), 0),
        *_values(means, end),
        *_by_seed(by_run, steps, end),
    ]


def _stage_costs(runs: Runs, method: str, steps: Mapping[str, int]) -> list[tuple[str, float, int]]:
    """What meta-training and search cost: means over the runs that have them, as one run may search for all."""
    compute = runs.compute()
    found: list[tuple[str, float, int]] = []
    stages = set(compute.reindex(columns=["stage"])["stage"].dropna()) - {_ADAPTATION}
    for stage in sorted(stages):
        sums = _whole_sums(compute, stage, ["method", "run"])
        by_run = sums[sums.index.get_level_values("method") == method].droplevel("method")
        found += [*_values(by_run.mean(), f"_{stage}"), *_by_seed(by_run, steps, f"_{stage}")]
    return found


def _values(means: pd.Series[float], end: str = "") -> list[tuple[str, float, int]]:
    return [(f"{name}{end}", float(value), 0) for name, value in means.dropna().items()]


def _by_seed(
    by_run: pd.DataFrame, steps: Mapping[str, int], end: str = ""
) -> Iterator[tuple[str, float, int]]:
    for run, row in by_run.iterrows():
        for name, value in row.dropna().items():
            yield f"by_seed/{name}{end}", float(value), steps[str(run)]


# --- settings -------------------------------------------------------------------------------------


def _settings_of(run: Run, method: str) -> dict[str, str]:
    """What the record says that a method was made with, flat; what all have in common for no method."""
    parameters = run.record.get("parameters") or {}
    found: dict[str, Any] = {}
    if not method:
        found = {name: parameters.get(name) for name in _SHARED}
        found |= {name: run.record.get(name) for name in ("command", "versions")}
    else:
        kind = next((name for name in GENERATED if method.startswith(name)), method)
        for path in _SET_BY.get(kind, ("generator",) if kind in GENERATED else ()):
            value: Any = parameters
            for key in path.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            found[path] = value
        found["chosen"] = _chosen(run.tables.get("settings"), method)
    return dict(flat_texts(found))


def _chosen(table: pd.DataFrame | None, method: str) -> Any:
    """What the method's search chose, where there was one."""
    if table is None or not {"method", "chosen", "setting"} <= set(table.columns):
        return None
    own = table[(table["method"] == method) & table["chosen"].astype(bool)]
    return None if own.empty else own["setting"].iloc[0]


# --- what is read back ----------------------------------------------------------------------------


@dataclass(frozen=True)
class MethodRow:
    """A method on a pool: means over its tasks of the means over the seeds; None for what was not logged.

    Attributes:
        method: its name, ``degaml``.
        bound: whether it is chosen by the test split itself: never a result, and never a winner.
        accuracy: mean share of right answers.
        by_seed: the accuracy of each seed that has every task, in the order of the seeds.
        n: questions of a task and seed, on average.
        tokens: that adapting to a task took, forward and backward together.
        seconds: that adapting to a task took.
    """

    method: str
    bound: bool
    accuracy: float | None
    by_seed: tuple[float, ...]
    n: float | None
    tokens: float | None
    seconds: float | None


@dataclass(frozen=True)
class ComparisonView:
    """A comparison that was logged.

    Attributes:
        run: the id of its run in MLflow.
        when: when it was logged.
        profile: the configuration that it was made with: ``comparison``, ``smoke``.
        seeds: one a run.
        pool: the pool of the methods' means.
        methods: in the order they were asked for.
    """

    run: str
    when: datetime
    profile: str
    seeds: tuple[int, ...]
    pool: str
    methods: tuple[MethodRow, ...]


def read_comparison(
    tracking_uri: str, experiment: str = EXPERIMENT, pool: str = POOL
) -> ComparisonView | None:
    """The newest comparison that was logged whole; one of the profile ``smoke`` only where there is no other.

    Nothing is made: no experiment, no database and no folder.

    Args:
        tracking_uri: MLflow's.
        experiment: its name.
        pool: the pool of the methods' means.

    Returns:
        The comparison; None where there is none, or nothing that it could be in.

    Raises:
        TrackingError: MLflow's server does not answer, or its database cannot be used.
    """
    if not _is_there(tracking_uri):
        return None
    with translate_errors(tracking_uri):
        check_server(tracking_uri)
        # a client of its own: the function `mlflow.search_runs` knows the one server that MLflow is set to
        client = MlflowClient(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage == "deleted":
            return None
        where = [str(found.experiment_id)]
        # the smoke profile's numbers mean nothing, so another one goes before
        for profile in ("!= 'smoke'", "= 'smoke'"):
            asked = (
                f"tags.kind = 'comparison' and tags.complete = 'true' and tags.profile {profile}"
            )
            latest = ["attributes.start_time DESC"]
            if newest := client.search_runs(where, asked, order_by=latest, max_results=1):
                return _view(client, where, newest[0], pool)
        return None


def _is_there(uri: str) -> bool:
    """Whether there is something to read: MLflow would make a file or folder that is not there, and its tables."""
    parts = urlparse(uri)
    if parts.scheme.split("+")[0] == "sqlite":
        file = Path(make_url(uri).database or "")
        try:
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as found:
                asked = "SELECT 1 FROM sqlite_master WHERE name = 'experiments'"
                return found.execute(asked).fetchone() is not None
        except sqlite3.Error:
            # locked, or no database: that is said where MLflow's errors are
            return file.is_file()
    return parts.scheme not in ("", "file") or Path(local_file_uri_to_path(uri)).is_dir()


def _view(client: MlflowClient, where: list[str], parent: MlflowRun, pool: str) -> ComparisonView:
    tags, asked = parent.data.tags, parent.data.params.get("methods", "").split(", ")
    below = f"tags.kind = 'method' and tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'"
    rows = [
        _method_row(client, run, pool) for run in client.search_runs(where, below, max_results=1000)
    ]
    order = {method: place for place, method in enumerate(asked)}
    return ComparisonView(
        run=str(parent.info.run_id),
        when=datetime.fromtimestamp(parent.info.start_time / 1000, UTC),
        profile=tags.get("profile", ""),
        seeds=tuple(int(seed) for seed in tags.get("seeds", "").split(",") if seed),
        pool=pool,
        methods=tuple(sorted(rows, key=lambda row: order.get(row.method, len(order)))),
    )


def _method_row(client: MlflowClient, run: MlflowRun, pool: str) -> MethodRow:
    metrics = run.data.metrics
    by_seed = f"by_seed/accuracy/{pool}"
    history = client.get_metric_history(run.info.run_id, by_seed) if by_seed in metrics else ()
    return MethodRow(
        method=run.data.tags.get("method", ""),
        bound=run.data.tags.get("bound") == "true",
        accuracy=metrics.get(f"accuracy/{pool}"),
        by_seed=tuple(one.value for one in sorted(history, key=lambda one: one.step)),
        n=metrics.get(f"n/{pool}"),
        tokens=metrics.get(f"tokens_adaptation/{pool}"),
        seconds=metrics.get(f"seconds_adaptation/{pool}"),
    )
