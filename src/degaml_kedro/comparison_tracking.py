"""A comparison in MLflow: a run of its own, below it one per method, below a method one per task.

``python -m degaml_kedro.comparison_tracking FOLDER`` imports what is on disk: for runs that MLflow's server missed.

All three kinds of runs have a tag ``kind`` (``comparison``, ``method``, ``task``). A task's run has the means over the
seeds, and under ``by_seed/`` one value a seed, with the seed's place as the step. A method's run has the means over a
pool's tasks, ``accuracy/meta_test``. What was not measured is not logged, and a mean that would miss a task or a seed
which other methods have is none: the tag ``missing`` names them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
from kedro.framework.startup import bootstrap_project
from kedro.io import DatasetError
from kedro.utils import find_kedro_project
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)

from degaml_kedro.configuration import current_loader
from degaml_kedro.errors import DegamlError
from degaml_kedro.mlflow_server import Place, experiment_id, knock, masked, place_of, speaking
from degaml_kedro.parameters import ADAPTED, BASELINES, GENERATED
from degaml_kedro.results.runs import BOUNDS, Run, Runs

# changes when the same content is logged in another way
_FORMAT = 2
_MEASURES = (
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
)
_COSTS = ("forward_tokens", "backward_tokens", "tokens", "seconds")
_ADAPTATION = "adaptation"
_IDENTITY = ("task", "pool", "method")
# by method, the parts of the configuration that set it; all have what is under `_SHARED`
_SHARED = ("profile", "model", "prompt", "scoring", "lora")
_SET_BY = {
    "no_meta_train": ("no_meta_train",),
    "pooled": ("warmup",),
    "mean_adapter": ("trajectory",),
    **{method: (f"baselines.{entry}", "baselines.search") for method, entry in BASELINES.items()},
    **dict.fromkeys(ADAPTED, ("generator", "policy")),
}

Values = dict[str, float]


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
    with speaking(tracking_uri):
        knock(tracking_uri)
        client = MlflowClient(tracking_uri)
        place = experiment_id(client, Place(tracking_uri, experiment, artifact_location))
        digest = content_digest(runs)
        run = _find(client, place, digest)
        if run is None:
            run = _log(client, place, runs, digest)
        if page is not None and page.is_file():
            client.log_artifact(run, str(page))
        return run


def content_digest(runs: Runs) -> str:
    """Changes with any number, setting or name that is logged."""
    content = {
        "format": _FORMAT,
        "methods": list(runs.methods),
        "tasks": {pool: list(tasks) for pool, tasks in runs.tasks.items()},
        "runs": [
            {
                "name": run.name,
                "seed": run.seed,
                "profile": run.profile,
                "results": _rows(run.results, _IDENTITY),
                "compute": _rows(run.compute, ("method", "stage", "task", "pool")),
                "settings": {
                    method: _settings_of(run, method) for method in ["", *sorted(runs.methods)]
                },
            }
            for run in runs.runs
        ],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _rows(frame: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """A frame's rows as texts, whatever their order was."""
    names = sorted({*keys, *_MEASURES, *_COSTS} & set(frame.columns))
    return sorted(json.dumps(row, default=str) for row in frame[names].to_numpy().tolist())


# --- what is there already ------------------------------------------------------------------------


def _find(client: MlflowClient, experiment: str, digest: str) -> str | None:
    """The comparison's run, if it was logged whole; what was not is deleted."""
    found = client.search_runs(
        [experiment], f"tags.kind = 'comparison' and tags.digest = '{digest}'"
    )
    whole = [run.info.run_id for run in found if run.data.tags.get("complete") == "true"]
    for run in found:
        if run.info.run_id not in whole:
            _delete(client, experiment, run.info.run_id)
    return whole[0] if whole else None


def _delete(client: MlflowClient, experiment: str, run: str) -> None:
    below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run}'"
    # deleted ones are no longer found, so the first page is always the next one
    while children := client.search_runs([experiment], below, max_results=1000):
        for child in children:
            _delete(client, experiment, child.info.run_id)
    client.delete_run(run)


# --- logging --------------------------------------------------------------------------------------


def _log(client: MlflowClient, experiment: str, runs: Runs, digest: str) -> str:
    seeds = ",".join(str(run.seed) for run in runs.runs)
    profile = runs.runs[0].profile
    shared = {"profile": profile, "seeds": seeds}
    parent = client.create_run(
        experiment,
        run_name=f"comparison {profile}, seeds {seeds}",
        tags={**shared, "kind": "comparison", "digest": digest, "complete": "false"},
    ).info.run_id
    about = {**shared, **_settings_of(runs.runs[0], ""), "methods": ", ".join(runs.methods)}
    _send(client, parent, params=about)
    cells = _cells(runs)
    places = sorted({(task, pool, run) for _, task, pool, run in cells})
    for method in runs.methods:
        missing = [
            f"{run} {pool} {task}"
            for task, pool, run in places
            if (method, task, pool, run) not in cells
        ]
        own = {"kind": "method", "method": method}
        if method in BOUNDS:
            own["bound"] = "true"
        if missing:
            own["missing"] = ", ".join(missing)[:MAX_TAG_VAL_LENGTH]
        child = client.create_run(
            experiment, run_name=method, tags={**shared, **own, MLFLOW_PARENT_RUN_ID: parent}
        ).info.run_id
        settings = {**shared, **_settings_of(runs.runs[0], method)}
        _send(client, child, _method_metrics(runs, cells, method), settings)
        for task, pool in dict.fromkeys((task, pool) for task, pool, _ in places):
            by_seed = [cells.get((method, task, pool, run.name)) for run in runs.runs]
            if not any(by_seed):
                continue
            tags = {"kind": "task", "method": method, "task": task, "pool": pool}
            leaf = client.create_run(
                experiment,
                run_name=f"{task} {method}",
                tags={**shared, **tags, MLFLOW_PARENT_RUN_ID: child},
            ).info.run_id
            # no parameters: each kind costs a transaction, and the name and the tags say it
            _send(client, leaf, _over_seeds(by_seed))
            client.set_terminated(leaf)
        client.set_terminated(child)
    client.log_batch(parent, tags=[RunTag("complete", "true")])
    client.set_terminated(parent)
    return str(parent)


def _send(
    client: MlflowClient,
    run: str,
    metrics: Sequence[Metric] = (),
    params: Mapping[str, Any] | None = None,
) -> None:
    for first in range(0, len(metrics), MAX_METRICS_PER_BATCH):
        client.log_batch(run, metrics=metrics[first : first + MAX_METRICS_PER_BATCH])
    values = [
        Param(key, str(value)[:MAX_PARAM_VAL_LENGTH]) for key, value in (params or {}).items()
    ]
    for first in range(0, len(values), MAX_PARAMS_TAGS_PER_BATCH):
        client.log_batch(run, params=values[first : first + MAX_PARAMS_TAGS_PER_BATCH])


def _cells(runs: Runs) -> dict[tuple[str, str, str, str], Values]:
    """By method, task, pool and run: what was measured, and what adapting cost."""
    found: dict[tuple[str, str, str, str], Values] = {}
    for run in runs.runs:
        spent = _spent(run)
        for row in run.results.to_dict("records"):
            method, task, pool = str(row["method"]), str(row["task"]), str(row["pool"])
            values = {name: float(row[name]) for name in _MEASURES if _is_number(row.get(name))}
            costs = spent.get((method, _ADAPTATION, task, pool), {})
            found[method, task, pool, run.name] = {
                **values,
                **{f"{name}_{_ADAPTATION}": value for name, value in costs.items()},
            }
    return found


def _spent(run: Run) -> dict[tuple[str, str, str | None, str | None], Values]:
    """By method, stage, task and pool: what it cost, where all of it is known."""
    found: dict[tuple[str, str, str | None, str | None], Values] = {}
    for row in run.compute.to_dict("records"):
        # None in a column of text may come as NaN
        task, pool = (v if isinstance(v, str) else None for v in (row["task"], row["pool"]))
        sums = found.setdefault((str(row["method"]), str(row["stage"]), task, pool), {})
        for name in _COSTS:
            if name in row:
                # of trials only the sum of both directions is known
                value = float(row[name]) if _is_number(row[name]) else math.nan
                sums[name] = sums.get(name, 0.0) + value
    return {
        key: {name: value for name, value in sums.items() if math.isfinite(value)}
        for key, sums in found.items()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _over_seeds(by_seed: Sequence[Values | None], end: str = "") -> list[Metric]:
    """The mean of each value over the seeds that have it, and the single ones with the seed's place as the step."""
    now = int(time.time() * 1000)
    there = [values for values in by_seed if values]
    metrics = [Metric(f"seeds{end}", float(len(there)), now, 0)]
    for name in dict.fromkeys(name for values in there for name in values):
        steps = [
            (step, values[name]) for step, values in enumerate(by_seed) if values and name in values
        ]
        # a mean of other seeds than the other values' would not be comparable
        if len(steps) == len(there):
            mean = math.fsum(value for _, value in steps) / len(steps)
            metrics.append(Metric(f"{name}{end}", mean, now, 0))
        metrics += [Metric(f"by_seed/{name}{end}", value, now, step) for step, value in steps]
    return metrics


def _method_metrics(
    runs: Runs, cells: Mapping[tuple[str, str, str, str], Values], method: str
) -> list[Metric]:
    """Means over a pool's tasks, where every task and seed is there that any method has; and what stages cost."""
    metrics: list[Metric] = []
    for pool in dict.fromkeys(pool for _, _, pool, _ in cells):
        wanted = {(task, run) for _, task, own, run in cells if own == pool}
        own = {
            (task, run): values
            for (name, task, place, run), values in cells.items()
            if name == method and place == pool
        }
        # of the tasks that were asked for, too, as the report has it
        if set(own) == wanted and set(runs.tasks.get(pool, ())) <= {task for task, _ in wanted}:
            metrics += _over_tasks([run.name for run in runs.runs], own, f"/{pool}")
    stages = [
        {
            f"{name}_{stage}": value
            for (own, stage, *_), values in _spent(run).items()
            if own == method and stage != _ADAPTATION
            for name, value in values.items()
        }
        for run in runs.runs
    ]
    # a search is made in one run for all of them, so these are means over the runs that have them
    for name in dict.fromkeys(name for values in stages for name in values):
        metrics += [
            metric
            for metric in _over_seeds([{name: v[name]} if name in v else None for v in stages])
            if metric.key != "seeds"
        ]
    return metrics


def _over_tasks(
    runs: Sequence[str], own: Mapping[tuple[str, str], Values], end: str
) -> list[Metric]:
    """Means over seeds within a task, then over tasks, and a value a seed that has all tasks."""
    now = int(time.time() * 1000)
    tasks = list(dict.fromkeys(task for task, _ in own))
    by_task = [_mean_values([v for (task, _), v in own.items() if task == name]) for name in tasks]
    metrics = [Metric(f"{name}{end}", v, now, 0) for name, v in _mean_values(by_task).items()]
    whole = [
        _mean_values([own[task, run] for task in tasks])
        if all((task, run) in own for task in tasks)
        else None
        for run in runs
    ]
    # a mean of the seeds that are whole would be another one
    single = ("seeds", "by_seed/")
    return metrics + [one for one in _over_seeds(whole, end) if one.key.startswith(single)]


def _mean_values(rows: Sequence[Values]) -> Values:
    """Means of what all of them have."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in names}


# --- settings -------------------------------------------------------------------------------------


def _settings_of(run: Run, method: str) -> dict[str, str]:
    """What the record says that a method was made with, flat; what all have in common for no method."""
    parameters = run.record.get("parameters") or {}
    found: dict[str, str] = {}
    if not method:
        for name in _SHARED:
            found |= dict(_flat(name, parameters.get(name)))
        for name in ("command", "versions"):
            found |= dict(_flat(name, run.record.get(name)))
        return found
    kind = next((name for name in GENERATED if method.startswith(name)), method)
    for path in _SET_BY.get(kind, ("generator",) if kind in GENERATED else ()):
        value: Any = parameters
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        found |= dict(_flat(path, value))
    return found | dict(_flat("chosen", _chosen(run.tables.get("settings"), method)))


def _chosen(table: pd.DataFrame | None, method: str) -> Any:
    """What the method's search chose, where there was one."""
    if table is None or not {"method", "chosen", "setting"} <= set(table.columns):
        return None
    own = table[(table["method"] == method) & table["chosen"].astype(bool)]
    return None if own.empty else own["setting"].iloc[0]


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    elif value is not None:
        yield name, str(value)


# --- the command ----------------------------------------------------------------------------------


def import_folder(folder: Path, place: Place) -> tuple[str, list[str]]:
    """Put what is on disk into MLflow: the comparison, and the models.

    Args:
        folder: a run's data folder, or a folder with one a seed.
        place: where to.

    Returns:
        The id of the comparison's run, and the registered models' URIs.

    Raises:
        DegamlError: there is nothing to import, or MLflow cannot be used.
    """
    # these two are only needed here, and take a second
    from degaml_kedro.io.runs import RunsDataset
    from degaml_kedro.model_registry import register_models

    try:
        runs = RunsDataset(filepath=str(folder)).load()
    except DatasetError as error:
        if isinstance(error.__cause__, DegamlError):
            raise error.__cause__ from error
        raise
    page = folder / "08_reporting" / "report.html"
    where = (place.uri, place.experiment, place.artifact_location)
    return log_comparison(runs, *where, page=page), register_models(folder, *where)


def main(arguments: Iterable[str] | None = None) -> int:
    """Import a folder; 1 for what went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m degaml_kedro.comparison_tracking",
        description="Put finished runs and their models into MLflow; what is there already stays as it is.",
    )
    parser.add_argument(
        "folder", type=Path, help="a run's data folder, or one with a folder a seed"
    )
    parser.add_argument("--uri", help="MLflow's tracking URI; otherwise that of conf/*/mlflow.yml")
    parser.add_argument("--experiment", help="its name; otherwise that of conf/*/mlflow.yml")
    asked = parser.parse_args(None if arguments is None else list(arguments))
    try:
        place = _place(asked.uri, asked.experiment)
        run, models = import_folder(asked.folder, place)
    except (DegamlError, DatasetError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"The comparison is run {run} of '{place.experiment}' in {masked(place.uri)}")
    for model in models:
        print(f"Registered: {model}")
    return 0


def _place(uri: str | None, experiment: str | None) -> Place:
    """What was given, filled up from the project's configuration."""
    project = find_kedro_project(Path.cwd())
    if project is None:
        if uri is None:
            raise DegamlError(
                f"{Path.cwd()} is in no Kedro project, so there is no mlflow.yml; name MLflow's place with --uri"
            )
        return Place(uri, experiment or "degaml_kedro")
    bootstrap_project(project)
    loader = current_loader()
    place = place_of(loader, project)
    server = loader["mlflow"].get("server") or {}
    if server.get("credentials"):
        os.environ.update(loader["credentials"].get(server["credentials"]) or {})
    return Place(uri or place.uri, experiment or place.experiment, place.artifact_location)


if __name__ == "__main__":
    sys.exit(main())
