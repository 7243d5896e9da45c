"""Finished runs as data: what a comparison, a report and MLflow read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from degaml_kedro.results.measures import ResultsError

# a bound, chosen by the test split itself: never a result, never a winner
BOUNDS = ("oracle_strategy",)


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
    """Runs that may stand in one table: of one profile, one base model and different seeds, on the same questions.

    Attributes:
        runs: in the order of their seeds.
        methods: every method that the configuration asks for, in its order; some may have no results.
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
        ResultsError: there is none; two have one seed, different profiles or base models; a run holds results of
            another seed or profile than its own; or a task's methods answered different questions.
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
