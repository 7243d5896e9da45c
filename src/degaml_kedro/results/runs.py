"""Finished runs as data: what a comparison, a report and MLflow read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from degaml_kedro.config.methods import names
from degaml_kedro.results.formatting import flat
from degaml_kedro.results.measures import ResultsError

POOLS = ("meta_train", "left_out", "meta_test")
POOL_NAMES = dict(zip(POOLS, ("in domain", "left out", "out of domain"), strict=True))
POOL_TITLES = {
    "meta_train": "In domain: tasks of meta-training",
    "left_out": "Left out: tasks of meta-training that this generator has not seen",
    "meta_test": "Out of domain: held-out tasks",
}
# a bound, chosen by the test split itself: never a result, never a winner
BOUNDS = names(lambda row: row.is_bound)
# what may differ between runs of one table: what a seed is, which methods were asked for when, and where files lie
_FREE = ("seed", "methods")
_LONGEST = 200
_APART = "do not stand in one table: compare them apart, each in a folder of its own"
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
            ``draws``, ``accuracy_spread``, ``seen`` (whether what answered was meta-trained on the task; None where
            nothing was meta-trained).
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
        return self._together(run.results for run in self.runs)

    def answers(self) -> pd.DataFrame:
        """All runs' answers, with the column ``run``."""
        return self._together(run.answers for run in self.runs)

    def compute(self) -> pd.DataFrame:
        """All runs' costs, with the column ``run``."""
        return self._together(run.compute for run in self.runs)

    def table(self, name: str) -> pd.DataFrame:
        """One of ``Run.tables`` of all runs, with the column ``seed``; empty where no run has it."""
        frames = [
            run.tables[name].assign(seed=run.seed)
            for run in self.runs
            if len(run.tables.get(name, ()))
        ]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _together(self, frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
        named = [frame.assign(run=run.name) for frame, run in zip(frames, self.runs, strict=True)]
        return pd.concat(named, ignore_index=True)


def check_alike(runs: Sequence[Run]) -> None:
    """Refuse runs that must not stand in one table.

    Raises:
        ResultsError: two have one seed, different profiles, base models or recorded parameters (but
            the seed, which methods were asked for, and where files are); a run holds results of another seed or
            profile than its own; a task has more questions in one than in another; a task's methods answered
            different questions; or some were meta-trained on the task and others were not.
    """
    first = runs[0]
    seeds: dict[int, Run] = {}
    for run in runs:
        other = seeds.setdefault(run.seed, run)
        if other is not run:
            raise ResultsError(
                f"{other.name} and {run.name} both have the seed {run.seed}; a comparison counts every seed once: "
                f"move one of the two folders elsewhere"
            )
        if run.profile != first.profile:
            raise ResultsError(
                f"{first.name} is of the profile '{first.profile}' and {run.name} of '{run.profile}'; runs of "
                f"different profiles {_APART}"
            )
        for column, own in (("seed", run.seed), ("profile", run.profile)):
            for row in run.results[run.results[column] != own].to_dict("records"):
                raise ResultsError(
                    f"{run.name} has the {column} '{own}', but its result of {row['method']} on {row['task']} was made "
                    f"with the {column} '{row[column]}'; delete what the other {column} left in the folder and run "
                    f"with --only-missing-outputs"
                )
    _same_models_and_questions(runs)
    _same_part_in_training(runs)
    _same_parameters(runs)


def _same_models_and_questions(runs: Sequence[Run]) -> None:
    """Refuse results of several base models, and methods or runs that were scored on different test questions."""
    rows = pd.concat([run.results.assign(run=run.name) for run in runs], ignore_index=True)
    for one, other in _conflicts(rows, "model", []):
        raise ResultsError(
            f"{_named(one)} was scored with the base model {one['model']}, and {_named(other)} with {other['model']}; "
            f"results of different base models {_APART}"
        )
    for one, other in _conflicts(rows, "split", ["run", "task"]):
        raise ResultsError(
            f"in {one['run']}, {one['method']} and {other['method']} answered different questions of {one['task']} "
            f"(test splits {one['split']} and {other['split']}); delete the predictions and the result of the older "
            f"one and run with --only-missing-outputs"
        )
    for one, other in _conflicts(rows, "n", ["task"]):
        raise ResultsError(
            f"{one['task']} has n = {one['n']:.0f} questions for {one['method']} in {one['run']} and n = "
            f"{other['n']:.0f} for {other['method']} in {other['run']}; runs of different test splits do not stand in "
            f"one table: set the same sizes of splits and make one of both again, or compare them apart, each in a "
            f"folder of its own"
        )


def _same_part_in_training(runs: Sequence[Run]) -> None:
    """Refuse methods that were meta-trained on a task beside others that were meta-trained without it."""
    rows = pd.concat([run.results.assign(run=run.name) for run in runs], ignore_index=True)
    for pair in _conflicts(rows, "seen", ["task", "pool"]):
        saw, other = sorted(pair, key=lambda row: not row["seen"])
        raise ResultsError(
            f"{_named(saw)} is of weights that were meta-trained on {saw['task']}, and {_named(other)} of weights that "
            f"were not (pool '{saw['pool']}'); they do not stand in one table: delete what the older one was made from "
            f"(its weights in 06_models, its predictions and its result), and run with --only-missing-outputs"
        )


def _conflicts(
    rows: pd.DataFrame, value: str, keys: Sequence[str]
) -> Iterator[tuple[Mapping[Any, Any], Mapping[Any, Any]]]:
    """The rows that have another value than the first one with the same keys, behind that one."""
    if value not in rows:
        return
    known = rows.dropna(subset=value).assign(everything=0)
    for _, own in known.groupby(["everything", *keys], sort=False):
        first, *others = own.to_dict("records")
        yield from ((first, other) for other in others if other[value] != first[value])


def _named(row: Mapping[Any, Any]) -> str:
    return f"{row['method']} on {row['task']} in {row['run']}"


def _same_parameters(runs: Sequence[Run]) -> None:
    """Refuse runs that recorded different settings."""
    recorded = {run.name: flat(run.record.get("parameters") or {}) for run in runs}
    (one, first), *others = [(name, own) for name, own in recorded.items() if own] or [("", {})]
    for other, own in others:
        for key in dict.fromkeys((*first, *own)):
            is_free = key in _FREE or key.rsplit(".", 1)[-1] in _PLACES
            if is_free or first.get(key) == own.get(key):
                continue
            values = [made.get(key, "nothing")[:_LONGEST] for made in (first, own)]
            raise ResultsError(
                f"{one} was made with {key} = {values[0]} and {other} with {values[1]} (their "
                f"08_reporting/run.json); runs of different settings do not stand in one table: make one of both again "
                f"with the other's settings, or compare them apart, each in a folder of its own (where a record alone "
                f"is older than what was made since: delete it, and `kedro run --only-missing-outputs` makes it again)"
            )
