"""Finished runs as a Kedro dataset: what is on disk, read and checked before it stands in one table.

A run's results are one small file a task and method, so that runs can stop and go on anywhere; nothing here asks which
pipeline or which command made them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from degaml_kedro.common.atomic import StoredDataError
from degaml_kedro.io.local import ReadOnlyDataset
from degaml_kedro.io.remote import RemoteFiles
from degaml_kedro.policy.fallback import FALLBACK_FILE
from degaml_kedro.results.measures import ResultsError
from degaml_kedro.results.runs import POOLS, Run, Runs, check_alike

logger = logging.getLogger(__name__)

OUTPUT, REPORTING, MODELS = "07_model_output", "08_reporting", "06_models"
RECORD = f"{REPORTING}/run.json"
# of a run, or of runs in a folder
_READ = [
    f"{run}{files}"
    for run in ("", "*/")
    for files in (f"{OUTPUT}/*", f"{REPORTING}/*.parquet", RECORD, f"{MODELS}/*.settings.json")
]
# what a trained pair and adaptations are read from besides
_MADE = [
    f"{run}{MODELS}/{files}"
    for run in ("", "*/")
    for files in ("policy/*", FALLBACK_FILE, "*.generator/*", "*.degaml.state/**")
]

# accuracies are means of the same answers, added up in another order
_TOLERANCE = 1e-9
_ANSWERS = ("index", "gold", "predicted", "scores")
_COMPUTE = (
    *("method", "stage", "task", "pool"),
    *("forward_tokens", "backward_tokens", "tokens", "seconds"),
)
# of a value that a message shows
_LONGEST = 80
_APART = "without_"  # in front of the name of what belongs to a group that leaves tasks out


class RunsDataset(ReadOnlyDataset[Runs]):
    """Finished runs: a run's data folder, or a folder that holds one a seed (``seed_999``). Read only.

    Example catalog entry:
        ``runs: {type: degaml_kedro.io.runs.RunsDataset, filepath: data/comparison}``
    """

    def _fetch(self) -> None:
        # of a run's folder nobody has an index
        if self._remote is not None:
            self._remote.fetch_matching(_READ)

    def _read(self) -> Runs:
        """Read all runs.

        Raises:
            ResultsError: there is none, or they must not stand in one table
                (:func:`~degaml_kedro.results.runs.check_alike`).
            StoredDataError: a file is missing or damaged.
        """
        return read_runs(self._path)

    def _exists(self) -> bool:
        self._fetch()
        return any(_result_files(path / OUTPUT) for path in data_folders(self._path))


def fetched_runs(place: str) -> Path:
    """The folder of a run or of several; of a URL a copy here, with results, report, pair and adaptations."""
    if "://" not in place:
        return Path(place)
    files = RemoteFiles(place)
    files.forget()
    files.fetch_matching([*_READ, f"{REPORTING}/report.html", *_MADE], _APART)
    return files.copy


def data_folders(folder: Path) -> list[Path]:
    """The data folders of runs: the folder itself, or those in it.

    A report's own ``08_reporting`` beside the runs does not make their folder a run.
    """
    if (folder / OUTPUT).is_dir() or (folder / RECORD).is_file():
        return [folder]
    inner = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [path for path in inner if (path / OUTPUT).is_dir() or (path / REPORTING).is_dir()]


def read_runs(folder: Path) -> Runs:
    """Read finished runs and refuse those that must not stand in one table.

    Raises:
        ResultsError: as :meth:`RunsDataset.load`.
        StoredDataError: likewise.
    """
    found: dict[Path, Run] = {}
    for path in data_folders(folder):
        run = _read_run(path)
        if run is None:
            logger.info("%s holds no results yet and is left out", path)
        else:
            found[path] = run
    if not found:
        raise ResultsError(
            f"{folder} holds no finished run; `make compare` makes them with three seeds, `kedro run` makes one in the "
            f"data folder of its configuration"
        )
    runs = sorted(found.values(), key=lambda run: (run.seed, run.name))
    check_alike(runs)
    results = pd.concat([run.results for run in runs], ignore_index=True)
    records = [run.record for run in runs]
    methods = _union([*(record.get("methods") or () for record in records), results["method"]])
    return Runs(tuple(runs), methods, _tasks(records, results))


def _tasks(
    records: Sequence[Mapping[str, Any]], results: pd.DataFrame
) -> dict[str, tuple[str, ...]]:
    """Tasks by pool: those asked for, then others that have results."""
    found = {}
    for pool in POOLS:
        asked = [(record.get("tasks") or {}).get(pool) or () for record in records]
        tasks = _union([*asked, results.loc[results["pool"] == pool, "task"]])
        if tasks:
            found[pool] = tasks
    return found


def _union(names: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Each name once, where it comes first: a run that was gone on with may have asked for less the last time."""
    return tuple(dict.fromkeys(name for own in names for name in own))


# --- one run --------------------------------------------------------------------------------------


def _read_run(folder: Path) -> Run | None:
    """A run; None where it has no results."""
    record = _json(folder / RECORD, _Record) if (folder / RECORD).is_file() else {}
    found = [(path, _json(path, _Result)) for path in _result_files(folder / OUTPUT)]
    if not found:
        return None
    results = pd.DataFrame([result for _, result in found])
    return Run(
        name=folder.resolve().name,
        seed=record.get("seed", found[0][1]["seed"]),
        profile=record.get("profile", found[0][1]["profile"]),
        results=results,
        answers=pd.concat([_answers(*one) for one in found], ignore_index=True),
        compute=_compute(folder / OUTPUT, results),
        record=record,
        tables=_tables(folder),
    )


def _result_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.json") if not p.name.endswith(".compute.json"))


def _answers(path: Path, result: Mapping[str, Any]) -> pd.DataFrame:
    """The answers that a result measures: a row a question and draw, with the columns of ``Run.answers``."""
    own = path.with_suffix(".parquet")
    if not own.is_file() and result["pool"] == "left_out":
        # what no group had a part in is the same in all of them, and has none in its name
        own = path.with_name(f"{result['task']}.{result['method']}.parquet")
    predictions = _parquet(own)
    missing = [name for name in _ANSWERS if name not in predictions]
    if missing or predictions.empty:
        _unreadable(own, f"has no column {', '.join(missing)}" if missing else "holds no answers")
    said = np.array(predictions["predicted"].astype("Int64").fillna(-1), dtype=np.int64)
    right = (said == predictions["gold"]).astype(np.int64)
    n, accuracy = predictions["index"].nunique(), float(right.mean())
    if n != result["n"] or abs(accuracy - result["accuracy"]) > _TOLERANCE:
        raise StoredDataError(
            f"{path} is of {result['n']} answers with an accuracy of {result['accuracy']:.6g}, but {own.name} beside "
            f"it holds {n} with {accuracy:.6g}: they are not those that were measured; delete its predictions and its "
            f"result ({own.name} and {path.name}), then `kedro run --only-missing-outputs` makes both again"
        )
    return pd.DataFrame(
        {
            "task": result["task"],
            "pool": result["pool"],
            "method": result["method"],
            "draw": predictions.get("draw", 0),
            "index": predictions["index"],
            "right": right,
            "confidence": confidences(list(predictions["scores"]), said),
        }
    )


def confidences(
    scores: Sequence[NDArray[np.float64]], predicted: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Probability of the predicted option under the softmax of its question's scores.

    Args:
        scores: [N] rows of [O], log-probabilities up to a constant.
        predicted: [N]; -1 for no valid answer.

    Returns:
        [N]; NaN where an option is ruled out, since there is no likelihood then, and where there is no answer.
    """
    lengths = np.array([len(row) for row in scores])
    flat = np.concatenate([np.asarray(row, dtype=np.float64) for row in scores])
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    known = np.logical_and.reduceat(np.isfinite(flat), starts) & (predicted >= 0)
    finite = np.where(np.repeat(known, lengths), flat, 0.0)
    top = np.maximum.reduceat(finite, starts)
    mass = np.exp(finite - np.repeat(top, lengths))
    chance = mass[starts + np.maximum(predicted, 0)] / np.add.reduceat(mass, starts)
    return np.where(known, chance, np.nan)


def _compute(folder: Path, results: pd.DataFrame) -> pd.DataFrame:
    """The costs, with the columns of ``Run.compute``."""
    seen = results[results["pool"] != "left_out"]
    pools = dict(zip(seen["task"], seen["pool"], strict=True))
    rows = []
    for path in sorted(folder.glob("*.compute.json")):
        row, is_apart = _json(path, _Cost), path.name.startswith(_APART)
        if is_apart and row.get("task") is None:
            # a group's search for settings: what a method costs is told of what learned from all tasks
            continue
        pool = "left_out" if is_apart else pools.get(row.get("task"))
        rows.append({**row, "pool": pool})
    frame = pd.DataFrame(rows, columns=list(_COMPUTE))
    # as text columns they would turn None into NaN
    for name in ("task", "pool"):
        frame[name] = pd.Series([row.get(name) for row in rows], dtype=object)
    return frame


def _tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of ``Run.tables``."""
    found: dict[str, list[pd.DataFrame]] = {}
    for name in ("strategies", "policy_rollouts"):
        path = folder / REPORTING / f"{name}.parquet"
        if path.is_file():
            found[name] = [_parquet(path)]
    for name in ("generator_steps", "generator_health"):
        found[name] = [
            _parquet(path).assign(variant=path.name.removesuffix(f".{name}.parquet"))
            for path in sorted((folder / REPORTING).glob(f"*.{name}.parquet"))
            if not path.name.startswith(_APART)
        ]
    settings = found["settings"] = []
    for path in sorted((folder / MODELS).glob("*.settings.json")):
        if path.name.startswith(_APART):
            continue
        searched = _json(path, _Settings)
        frame = pd.DataFrame(searched["rows"]).assign(method=searched["method"])
        frame["setting"] = frame["setting"].map(json.loads)
        frame["chosen"] = frame["number"] == searched["chosen"]
        settings.append(frame.sort_values("chosen", ascending=False, kind="stable"))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items() if parts}


# --- files ----------------------------------------------------------------------------------------


class _File(BaseModel):
    """A JSON file of a run: what is read of it has to be of its type; the rest may be anything."""

    model_config = ConfigDict(strict=True)


class _Record(_File):
    seed: int
    profile: str
    methods: list[str] | None = None
    tasks: dict[str, list[str]] | None = None
    parameters: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None


class _Result(_File):
    task: str
    method: str
    pool: Literal[POOLS]  # type: ignore[valid-type]  # a tuple of its own values
    profile: str
    seed: int
    model: str
    split: str
    seen: bool | None = None
    n: int
    accuracy: Annotated[FiniteFloat, Field(ge=0, le=1)]
    accuracy_low: FiniteFloat | None = None
    accuracy_high: FiniteFloat | None = None
    chance: FiniteFloat | None = None
    nll: FiniteFloat | None = None
    ece: FiniteFloat | None = None
    invalid: FiniteFloat | None = None
    seconds: FiniteFloat | None = None
    tokens: FiniteFloat | None = None


class _Cost(_File):
    method: str
    stage: str
    task: str | None = None
    seconds: FiniteFloat | None
    forward_tokens: FiniteFloat | None = None
    backward_tokens: FiniteFloat | None = None
    tokens: FiniteFloat | None = None


class _SettingTried(_File):
    number: int
    setting: str


class _Settings(_File):
    method: str
    chosen: int
    rows: list[_SettingTried]


def _json(path: Path, kind: type[_File]) -> dict[str, Any]:
    """A JSON object, in which all that is read is of its type."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        text = "" if first["type"] == "missing" else json.dumps(first["input"])
        value = f"{text[:_LONGEST]}, which it cannot be" if text else "missing"
        _unreadable(path, f"'{where}' is {value}", error)
    except (OSError, ValueError) as error:
        _unreadable(path, str(error), error)
    return content


def _parquet(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise StoredDataError(
            f"{path} is not there, but a result beside it measures it; `kedro run --only-missing-outputs` makes what "
            f"is missing"
        )
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        _unreadable(path, str(error), error)


def _unreadable(path: Path, why: str, error: Exception | None = None) -> NoReturn:
    raise StoredDataError(
        f"{path} cannot be read ({why}); delete it, then `kedro run --only-missing-outputs` makes it again"
    ) from error
