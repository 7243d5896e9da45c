"""Finished runs as a Kedro dataset: what is on disk, read and checked before it stands in one table.

A run's results are one small file a task and method, so that runs can stop and go on anywhere; nothing here asks which
pipeline or which command made them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from degaml_kedro.io.atomic import StoredDataError
from degaml_kedro.io.local import ReadOnlyDataset
from degaml_kedro.results.measures import ResultsError
from degaml_kedro.results.runs import POOLS, Run, Runs, check_alike

logger = logging.getLogger(__name__)

OUTPUT, REPORTING, MODELS = "07_model_output", "08_reporting", "06_models"
RECORD = f"{REPORTING}/run.json"

# what makes a JSON file a result, and what results say since they may be put together
_RESULT = ("task", "method", "pool", "accuracy")
_ORIGIN = ("profile", "seed", "model", "split")
# accuracies are means of the same answers, added up in another order
_TOLERANCE = 1e-9
_ANSWERS = ("task", "pool", "method", "draw", "index", "right", "confidence")
_COMPUTE = (
    "method",
    "stage",
    "task",
    "pool",
    "forward_tokens",
    "backward_tokens",
    "tokens",
    "seconds",
)
# of a value that a message shows
_LONGEST = 80
_APART = "without_"  # in front of the name of what belongs to a group that leaves tasks out


class RunsDataset(ReadOnlyDataset[Runs]):
    """Finished runs: a run's data folder, or a folder that holds one a seed (``seed_999``). Read only.

    Example catalog entry:
        ``runs: {type: degaml_kedro.io.runs.RunsDataset, filepath: data/comparison}``
    """

    written = "only read here; `kedro run` makes a run's files"

    def __init__(
        self,
        *,
        filepath: str | os.PathLike[str],
        methods: Sequence[str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Point at a folder, and at some methods in it, as :func:`read_runs` takes them."""
        super().__init__(filepath=filepath, metadata=metadata)
        self._methods = None if methods is None else tuple(methods)

    def load(self) -> Runs:
        """Read all runs.

        Raises:
            ResultsError: there is none; one is of a version that did not say what results are of; or they must not
                stand in one table (:func:`~degaml_kedro.results.runs.check_alike`).
            StoredDataError: a file is missing or damaged.
        """
        return read_runs(self._path, self._methods)

    def _exists(self) -> bool:
        return any(_result_files(path / OUTPUT) for path in data_folders(self._path))


def data_folders(folder: Path) -> list[Path]:
    """The data folders of runs: the folder itself, or those in it.

    A report's own ``08_reporting`` beside the runs does not make their folder a run.
    """
    if (folder / OUTPUT).is_dir() or (folder / RECORD).is_file():
        return [folder]
    inner = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [path for path in inner if (path / OUTPUT).is_dir() or (path / REPORTING).is_dir()]


def read_runs(folder: Path, methods: Sequence[str] | None = None) -> Runs:
    """Read finished runs and refuse those that must not stand in one table.

    Args:
        folder: a run's data folder, or a folder that holds one a seed.
        methods: only these, in this order; None: those that the runs asked for, and others that have results.

    Raises:
        ResultsError: as :meth:`RunsDataset.load`.
        StoredDataError: likewise.
    """
    found: dict[Path, Run] = {}
    for path in data_folders(folder):
        run = _read_run(path, methods)
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
    if methods is None:
        methods = _union([*(record.get("methods") or () for record in records), results["method"]])
    return Runs(tuple(runs), tuple(methods), _tasks(records, results))


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


def _read_run(folder: Path, methods: Sequence[str] | None) -> Run | None:
    """A run; None where it has no results."""
    record = _record(folder / RECORD) if (folder / RECORD).is_file() else {}
    results, answers = _results(folder / OUTPUT, methods)
    if not results:
        return None
    frame = pd.DataFrame(results)
    return Run(
        name=folder.resolve().name,
        seed=record.get("seed", results[0]["seed"]),
        profile=record.get("profile", results[0]["profile"]),
        results=frame,
        answers=pd.concat(answers, ignore_index=True),
        compute=_compute(folder, methods, frame),
        record=record,
        tables=_tables(folder, methods),
    )


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
    accuracy: Annotated[FiniteFloat, Field(ge=0, le=1)]
    # of older versions some are missing
    profile: str | None = None
    model: str | None = None
    split: str | None = None
    seed: int | None = None
    n: int = 0
    accuracy_low: FiniteFloat | None = None
    accuracy_high: FiniteFloat | None = None
    chance: FiniteFloat | None = None
    nll: FiniteFloat | None = None
    ece: FiniteFloat | None = None
    invalid: FiniteFloat | None = None
    seconds: FiniteFloat | None = None
    tokens: FiniteFloat | None = None


class _Cost(_File):
    seconds: FiniteFloat | None
    forward_tokens: FiniteFloat | None = None
    backward_tokens: FiniteFloat | None = None
    tokens: FiniteFloat | None = None


def _check(path: Path, kind: type[_File], content: Mapping[str, Any]) -> None:
    """Refuse a file in which an entry is of another type."""
    try:
        kind.model_validate(content)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        text = json.dumps(content.get(name))
        _unreadable(path, f"'{name}' is {text[:_LONGEST]}, which it cannot be")


def _record(path: Path) -> Mapping[str, Any]:
    record = _json(path)
    if not isinstance(record, dict) or not {"seed", "profile"} <= set(record):
        raise StoredDataError(
            f"{path} does not say which seed and profile the run has; delete it, then "
            f"`kedro run --only-missing-outputs` makes it again"
        )
    _check(path, _Record, record)
    return record


def _results(
    folder: Path, methods: Sequence[str] | None
) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
    """Every result, and the answers that it measures."""
    found: dict[Path, dict[str, Any]] = {}
    for path in _result_files(folder):
        result = _json(path)
        missing = [name for name in _RESULT if not isinstance(result, dict) or name not in result]
        if isinstance(result, dict) and missing and not path.with_suffix(".parquet").is_file():
            # of another kind
            continue
        if missing:
            _unreadable(path, f"it is no result: it does not say its {', '.join(missing)}")
        _check(path, _Result, result)
        if methods is None or result["method"] in methods:
            found[path] = result
    _check_origins(found)
    answers = []
    for path, result in found.items():
        predictions = _predictions_of(path, result)
        frame = _answers(predictions, result)
        count = frame["index"].nunique()
        both = (
            f"delete its predictions and its result ({predictions.name} and {path.name}), then `kedro run "
            f"--only-missing-outputs` makes both again"
        )
        if count != result.get("n", count):
            raise StoredDataError(
                f"{path} measures {result['n']} answers, but {predictions.name} beside it holds {count}; {both}"
            )
        accuracy = float(frame["right"].mean())
        if abs(accuracy - result["accuracy"]) > _TOLERANCE:
            raise StoredDataError(
                f"{path} has an accuracy of {result['accuracy']:.6g}, but the answers in {predictions.name} beside it "
                f"have {accuracy:.6g}: they are not those that were measured; {both}"
            )
        answers.append(frame)
    return list(found.values()), answers


def _result_files(folder: Path) -> list[Path]:
    others = (".compute.json", ".settings.json")
    return sorted(path for path in folder.glob("*.json") if not path.name.endswith(others))


def _check_origins(found: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuse results that do not say what they are of."""
    missing = {
        path: [name for name in _ORIGIN if result.get(name) is None]
        for path, result in found.items()
    }
    old = [path for path, names in missing.items() if names]
    if old:
        more = f", and {len(old) - 1} more beside it do not either" if len(old) > 1 else ""
        raise ResultsError(
            f"{old[0]} does not say of which {', '.join(missing[old[0]])} it is{more}: an older version wrote that. "
            f"The `measure_*` nodes have to be run again: delete {'these files' if more else 'the file'} (the answers "
            f"beside them can stay) and run with --only-missing-outputs"
        )


def _predictions_of(path: Path, result: Mapping[str, Any]) -> Path:
    own = path.with_suffix(".parquet")
    if not own.is_file() and result["pool"] == "left_out":
        # what no group had a part in is the same in all of them, and has none in its name
        return path.with_name(f"{result['task']}.{result['method']}.parquet")
    return own


def _answers(path: Path, result: Mapping[str, Any]) -> pd.DataFrame:
    """A row a question and draw, with the columns of ``Run.answers``."""
    predictions = _parquet(path)
    needed = ("index", "gold", "predicted", "scores")
    missing = [name for name in needed if name not in predictions]
    if missing or predictions.empty:
        what = f"has no column {', '.join(missing)}" if missing else "holds no answers"
        _unreadable(path, what)
    said = np.array(predictions["predicted"].astype("Int64").fillna(-1), dtype=np.int64)
    gold = np.array(predictions["gold"], dtype=np.int64)
    frame = pd.DataFrame(
        {
            "task": result["task"],
            "pool": result["pool"],
            "method": result["method"],
            "draw": predictions.get("draw", 0),
            "index": predictions["index"],
            "right": (said == gold).astype(np.int64),
            "confidence": confidences(list(predictions["scores"]), said),
        }
    )
    return frame[list(_ANSWERS)]


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


def _compute(folder: Path, methods: Sequence[str] | None, results: pd.DataFrame) -> pd.DataFrame:
    """The costs, with the columns of ``Run.compute``."""
    seen = results[results["pool"] != "left_out"]
    pools = dict(zip(seen["task"], seen["pool"], strict=True))
    rows = []
    for path in sorted([*_files(folder / OUTPUT, "compute"), *_files(folder / MODELS, "compute")]):
        row = _json(path)
        if not isinstance(row, dict) or not {"method", "stage", "seconds"} <= set(row):
            _unreadable(path, "it names no method, stage and seconds")
        if methods is not None and row["method"] not in methods:
            continue
        task = row.get("task")
        _check(path, _Cost, row)
        parts = [row.get("forward_tokens"), row.get("backward_tokens")]
        if row.get("tokens") is None and None not in parts:
            row["tokens"] = sum(parts)
        pool = None if task is None else pools.get(task)
        rows.append({**row, "pool": "left_out" if path.name.startswith(_APART) else pool})
    frame = pd.DataFrame(rows, columns=list(_COMPUTE))
    # as text columns they would turn None into NaN
    for name in ("task", "pool"):
        frame[name] = pd.Series([row.get(name) for row in rows], dtype=object)
    return frame


def _files(folder: Path, kind: str) -> Iterable[Path]:
    return folder.glob(f"*.{kind}.json")


# --- other tables ---------------------------------------------------------------------------------


def _tables(folder: Path, methods: Sequence[str] | None) -> dict[str, pd.DataFrame]:
    found = {}
    reporting = folder / REPORTING
    for name in ("strategies", "policy_rollouts"):
        path = reporting / f"{name}.parquet"
        if path.is_file():
            found[name] = _parquet(path)
    for name in ("generator_steps", "generator_health"):
        frames = [
            _parquet(path).assign(variant=path.name.removesuffix(f".{name}.parquet"))
            for path in sorted(reporting.glob(f"*.{name}.parquet"))
            if not path.name.startswith(_APART)
        ]
        if frames:
            found[name] = pd.concat(frames, ignore_index=True)
    settings = _settings(folder / MODELS, methods)
    if not settings.empty:
        found["settings"] = settings
    return found


def _settings(folder: Path, methods: Sequence[str] | None) -> pd.DataFrame:
    """The settings that searches tried; of every method the chosen one first."""
    frames = []
    for path in sorted(_files(folder, "settings")):
        outcome = _json(path)
        if not isinstance(outcome, dict) or not {"method", "chosen", "rows"} <= set(outcome):
            _unreadable(path, "it names no method, choice and rows")
        if methods is not None and outcome["method"] not in methods:
            continue
        frame = pd.DataFrame(outcome["rows"]).assign(method=outcome["method"])
        if frame.empty:
            continue
        if "number" not in frame:
            frame["number"] = range(len(frame))
        if "setting" in frame:
            frame["setting"] = [_setting(text) for text in frame["setting"]]
        frame["chosen"] = frame["number"] == outcome["chosen"]
        frames.append(frame.sort_values("chosen", ascending=False, kind="stable"))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _setting(text: Any) -> Any:
    """A setting as the values that it holds."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


# --- files ----------------------------------------------------------------------------------------


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _unreadable(path, str(error), error)


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
