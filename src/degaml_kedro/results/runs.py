"""Finished runs as data: what a comparison, a report and MLflow read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from degaml_kedro.results.measures import ResultsError

# a bound, chosen by the test split itself: never a result, never a winner
BOUNDS = ("oracle_strategy",)
# what may differ between runs of one table: what a seed is, which methods were asked for when, and where files lie
_FREE = ("seed", "methods")
_LONGEST = 200
_PLACES = ("data", "path", "paths", "filepath", "local_path")


@dataclass(frozen=True)
class Run:
    """One seed's run.

    Attributes:
        name: its folder's name, ``seed_999``.
        seed: the run's.
        profile: the configuration's name.
        results: a row a task, pool and method: ``task``, ``group``, ``pool``, ``method``, ``profile``, ``seed``,
            ``model``, ``split`` (digest of the test questions), ``n``, ``accuracy``, ``accuracy_low``,
            ``accuracy_high``, ``chance``, ``nll``, ``ece``, ``invalid``, ``seconds``, ``tokens`` (of scoring),
            ``draws``, ``accuracy_spread``.
        answers: a row a question and draw: ``task``, ``pool``, ``method``, ``draw``, ``index``, ``right`` (0 or 1),
            ``confidence`` (probability of the predicted option; NaN where there is none).
        compute: a row a thing that was counted: ``method``, ``stage`` (``meta_training``, ``search`` or
            ``adaptation``), ``task`` and ``pool`` (None but in adaptation), ``forward_tokens``, ``backward_tokens``
            (both NaN where only their sum is known), ``tokens``, ``seconds``.
        record: what the run was made with: ``command``, ``versions``, ``machine``, ``parameters``.
        tables: other tables by name, where the run has them: ``strategies``, ``policy_rollouts``,
            ``generator_steps`` and ``generator_health`` (with ``variant``), ``settings``: what searches tried, with
            ``method``, ``task``, ``number``, ``setting``, ``chosen`` (whether it was) and what was measured; of every
            method the chosen setting stands first.
    """

    name: str
    seed: int
    profile: str
    results: pd.DataFrame
    answers: pd.DataFrame
    compute: pd.DataFrame
    record: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True)
class Runs:
    """Runs that may stand in one table: of one profile, one base model, the same settings and different seeds.

    Attributes:
        runs: in the order of their seeds.
        methods: every method that a run asked for, in that order, then others with results; some may have none.
        tasks: likewise, by pool.
    """

    runs: tuple[Run, ...]
    methods: tuple[str, ...]
    tasks: Mapping[str, tuple[str, ...]]

    def results(self) -> pd.DataFrame:
        """All runs' results, with the column ``run``."""
        return pd.concat([run.results.assign(run=run.name) for run in self.runs], ignore_index=True)

    def answers(self) -> pd.DataFrame:
        """All runs' answers, with the column ``run``."""
        return pd.concat([run.answers.assign(run=run.name) for run in self.runs], ignore_index=True)

    def compute(self) -> pd.DataFrame:
        """All runs' costs, with the column ``run``."""
        return pd.concat([run.compute.assign(run=run.name) for run in self.runs], ignore_index=True)


def check_alike(runs: Sequence[Run]) -> None:
    """Refuse runs that must not stand in one table.

    Raises:
        ResultsError: there is none; two have one seed, different profiles, base models or recorded parameters (but
            the seed, which methods were asked for, and where files are); a run holds results of another seed or
            profile than its own; a task has more questions in one than in another; or a task's methods answered
            different questions.
    """
    if not runs:
        raise ResultsError("there is no finished run; `make compare` or `kedro run` makes them")
    seeds: dict[int, Run] = {}
    for run in runs:
        other = seeds.setdefault(run.seed, run)
        if other is not run:
            raise ResultsError(
                f"{other.name} and {run.name} both have the seed {run.seed}; a comparison counts every seed once: "
                f"move one of the two folders elsewhere"
            )
    first = runs[0]
    for run in runs:
        if run.profile != first.profile:
            raise ResultsError(
                f"{first.name} is of the profile '{first.profile}' and {run.name} of '{run.profile}'; runs of "
                f"different profiles do not stand in one table: compare them apart, each in a folder of its own"
            )
        for column, own in (("seed", run.seed), ("profile", run.profile)):
            _own(run, column, own)
    _one_model(runs)
    for run in runs:
        _same_questions(run)
    _same_sizes(runs)
    _same_parameters(runs)


def _own(run: Run, column: str, own: object) -> None:
    """Refuse a result that another run made."""
    for row in run.results[run.results[column] != own].to_dict("records"):
        raise ResultsError(
            f"{run.name} has the {column} '{own}', but its result of {row['method']} on {row['task']} was made with "
            f"the {column} '{row[column]}'; delete what the other {column} left in the folder and run with "
            f"--only-missing-outputs"
        )


def _one_model(runs: Sequence[Run]) -> None:
    """Refuse results of several base models."""
    first: tuple[str, str] | None = None
    for run in runs:
        for row in run.results.to_dict("records"):
            where = f"{row['method']} on {row['task']} in {run.name}"
            model, place = first = first or (row["model"], where)
            if row["model"] != model:
                raise ResultsError(
                    f"{place} was scored with the base model {model}, and {where} with {row['model']}; results of "
                    f"different base models do not stand in one table: compare them apart, each in a folder of its own"
                )


def _same_questions(run: Run) -> None:
    """Refuse a task whose methods were scored on different test splits."""
    first: dict[str, tuple[str, str]] = {}
    for row in run.results.to_dict("records"):
        split, method = first.setdefault(row["task"], (row["split"], row["method"]))
        if row["split"] != split:
            raise ResultsError(
                f"in {run.name}, {method} and {row['method']} answered different questions of {row['task']} (test "
                f"splits {split} and {row['split']}); delete the predictions and the result of the older one and run "
                f"with --only-missing-outputs"
            )


def _same_sizes(runs: Sequence[Run]) -> None:
    """Refuse a task that has more test questions in one run than in another."""
    first: dict[str, tuple[int, str]] = {}
    for run in runs:
        for row in run.results.to_dict("records"):
            if row.get("n") is None or pd.isna(row["n"]):
                continue
            where = f"{row['method']} in {run.name}"
            n, place = first.setdefault(row["task"], (int(row["n"]), where))
            if row["n"] != n:
                raise ResultsError(
                    f"{row['task']} has n = {n} questions for {place} and n = {int(row['n'])} for {where}; runs of "
                    f"different test splits do not stand in one table: set the same sizes of splits and make one of "
                    f"both again, or compare them apart, each in a folder of its own"
                )


def _same_parameters(runs: Sequence[Run]) -> None:
    """Refuse runs that recorded different settings."""
    recorded = [run for run in runs if run.record.get("parameters")]
    for run in recorded[1:]:
        first = recorded[0]
        key = _difference(first.record["parameters"], run.record["parameters"])
        if key is not None:
            one, other = (_at(of.record["parameters"], key) for of in (first, run))
            raise ResultsError(
                f"{first.name} was made with {'.'.join(key)} = {one} and {run.name} with {other} (their "
                f"08_reporting/run.json); runs of different settings do not stand in one table: make one of both again "
                f"with the other's settings, or compare them apart, each in a folder of its own (where a record alone "
                f"is older than what was made since: delete it, and `kedro run --only-missing-outputs` makes it again)"
            )


def _difference(one: Any, other: Any, key: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """Where two records of parameters first differ."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return None if one == other else key
    for name in dict.fromkeys((*one, *other)):
        inner = (*key, str(name))
        both = (one.get(name), other.get(name))
        place = name in _PLACES and not any(isinstance(value, Mapping) for value in both)
        if place or (not key and name in _FREE):
            continue
        if (name in one) != (name in other):
            return inner
        found = _difference(*both, inner)
        if found is not None:
            return found
    return None


def _at(parameters: Any, key: Sequence[str]) -> str:
    """A setting as a message shows it."""
    for name in key:
        if not isinstance(parameters, Mapping) or name not in parameters:
            return "nothing"
        parameters = parameters[name]
    text = json.dumps(parameters, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
