"""A comparison in MLflow: a run of its own, below it one per method, below a method one per task.

All three kinds of runs have a tag ``kind`` (``comparison``, ``method``, ``task``). Their metrics are the report's
table, ``comparison.parquet``: a method's run has the rows of the means over a pool's tasks, ``accuracy/meta_test``, a
task's run those of the task. What the table has no value of is not logged.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlparse

import pandas as pd
from mlflow.entities import Metric, Param
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH
from sqlalchemy.engine import make_url

from degaml_kedro.config.schema import BASELINES
from degaml_kedro.results.formatting import flat
from degaml_kedro.results.runs import Runs
from degaml_kedro.results.statistics import MEAN
from degaml_kedro.tracking.server import (
    Place,
    check_server,
    experiment_id,
    owner_tags,
    translate_errors,
)

EXPERIMENT = "degaml_kedro"
POOL = "meta_test"


@dataclass(frozen=True)
class _Logged:
    """A run to be logged: ``metrics`` are a name, a value and a step each, ``below`` are its child runs."""

    name: str
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    below: list[_Logged] = field(default_factory=list)


def log_comparison(
    runs: Runs, comparison: pd.DataFrame, place: Place, page: Path | None = None
) -> str:
    """Log a comparison, once: where the same content is there already, that is it.

    What a killed process left half-logged is deleted and logged anew.

    Args:
        runs: the finished runs, of one profile and several seeds.
        comparison: the report's table of them, a row a pool, task and method.
        place: where to.
        page: the report, to be kept with the comparison's run, whose id is returned.

    Raises:
        TrackingError: MLflow's server or database cannot be used.
    """
    seeds = ",".join(str(run.seed) for run in runs.runs)
    tags = {"profile": runs.runs[0].profile, "seeds": seeds}
    # what the runs were made with, as the first of them recorded it
    record = runs.runs[0].record
    settings = dict(record.get("parameters") or {})
    settings |= {name: record[name] for name in ("command", "versions") if name in record}
    shared = {name: value for name, value in settings.items() if name not in ("tasks", "methods")}
    parent = _Logged(
        f"comparison {tags['profile']}, seeds {seeds}",
        {**tags, "kind": "comparison"},
        {**flat(shared), "methods": ", ".join(runs.methods)},
        below=[_method(runs, comparison, method, tags) for method in runs.methods],
    )
    # changes with any number, setting or name that is logged
    digest = hashlib.sha256(json.dumps(asdict(parent)).encode()).hexdigest()
    with translate_errors(place.uri):
        check_server(place.uri)
        client = MlflowClient(place.uri)
        experiment = experiment_id(client, place)
        whole = None
        same = f"tags.kind = 'comparison' and tags.digest = '{digest}'"
        for run in client.search_runs([experiment], same):
            if run.data.tags.get("complete") == "true":
                whole = str(run.info.run_id)
            else:
                _delete(client, experiment, run.info.run_id)
        if whole is None:
            whole = _log(client, experiment, parent, {"digest": digest})
            client.set_tag(whole, "complete", "true")
        if page is not None and page.is_file():
            client.log_artifact(whole, str(page))
        return whole


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
        experiment, run_name=content.name, tags={**content.tags, **tags, **owner_tags()}
    ).info.run_id
    now = int(time.time() * 1000)
    client.log_batch(
        run,
        [Metric(name, value, now, step) for name, value, step in content.metrics],
        [Param(name, value[:MAX_PARAM_VAL_LENGTH]) for name, value in content.params.items()],
    )
    for below in content.below:
        _log(client, experiment, below, {MLFLOW_PARENT_RUN_ID: run})
    client.set_terminated(run)
    return str(run)


# --- what is logged -------------------------------------------------------------------------------


def _method(runs: Runs, comparison: pd.DataFrame, method: str, tags: Mapping[str, str]) -> _Logged:
    """A method's run: its means over a pool's tasks, each seed's, and a run a task below it."""
    rows = comparison[comparison["method"] == method].drop(columns="method")
    tags = {**tags, "method": method}
    metrics, below = [], []
    for row in rows.to_dict("records"):
        pool, task, is_bound = (row.pop(name) for name in ("pool", "task", "bound"))
        if is_bound:
            tags["bound"] = "true"
        known = {str(name): float(value) for name, value in row.items() if pd.notna(value)}
        if task == MEAN:
            metrics += [(f"{name}/{pool}", value, 0) for name, value in known.items()]
            metrics += _by_seed(runs, method, pool) if "accuracy" in known else []
        elif row["tasks"]:
            own = {**tags, "kind": "task", "task": task, "pool": pool}
            numbers = [(name, value, 0) for name, value in known.items()]
            # no parameters: each kind costs a transaction, and the name and the tags say it
            below.append(_Logged(f"{task} {method}", own, metrics=numbers))
    entry, tried = BASELINES.get(method, ""), runs.table("settings")
    given = (runs.runs[0].record.get("parameters") or {}).get("baselines") or {}
    settings = {entry: given.get(entry)}
    if len(tried):
        # the chosen one stands first
        settings["chosen"] = next(iter(tried.loc[tried["method"] == method, "setting"]), None)
    params = flat({name: value for name, value in settings.items() if value is not None})
    return _Logged(method, {**tags, "kind": "method"}, params, metrics, below)


def _by_seed(runs: Runs, method: str, pool: str) -> list[tuple[str, float, int]]:
    """Each seed's accuracy, of those that have every task, and how many questions a task and seed has on average."""
    results = runs.results()
    own = results[(results["method"] == method) & (results["pool"] == pool)]
    by_run = own.groupby("run")["accuracy"].agg(["mean", "count"])
    whole = by_run.loc[by_run["count"] == by_run["count"].max(), "mean"]
    return [
        (f"questions/{pool}", float(own["n"].mean()), 0),
        *(
            (f"by_seed/accuracy/{pool}", float(whole[run.name]), step)
            for step, run in enumerate(runs.runs)
            if run.name in whole
        ),
    ]


# --- what is read back ----------------------------------------------------------------------------


@dataclass(frozen=True)
class MethodRow:
    """A method on a pool: means over its tasks of the means over the seeds; None for what was not logged.

    Attributes:
        bound: whether it is chosen by the test split itself: never a result, and never a winner.
        by_seed: the accuracy of each seed that has every task, in the order of the seeds.
        n: questions of a task and seed, on average.
        tokens: that adapting to a task took, forward and backward together.
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
    """A comparison that was logged, with one pool's means; its methods in the order they were asked for."""

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

    Nothing is made: no experiment, no database and no folder. None where there is no comparison, or nothing that it
    could be in.

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
        return file.is_file() and file.stat().st_size > 0
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
        n=metrics.get(f"questions/{pool}"),
        tokens=metrics.get(f"adaptation_tokens/{pool}"),
        seconds=metrics.get(f"adaptation_seconds/{pool}"),
    )
