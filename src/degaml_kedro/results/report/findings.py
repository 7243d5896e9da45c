"""Everything that a report says in numbers, worked out once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from degaml_kedro.results.comparison import (
    ComparisonRow,
    Contrast,
    MethodCosts,
    Verdict,
    compare,
    costs,
    distributions,
    rows_frame,
    table,
    verdict,
    winner,
)
from degaml_kedro.results.reliability import Reliability, reliability
from degaml_kedro.results.runs import BOUNDS, Runs
from degaml_kedro.results.table import POOLS

# the method that the others are compared with
METHOD = "degaml"
# it learns from the task's whole training split where others have the support examples
YARDSTICK = "no_meta_train"
# what a comparison calls the mean row's task
MEAN = "mean"


@dataclass(frozen=True)
class Findings:
    """The statistics of runs.

    Attributes:
        runs: what they are of.
        pools: those that have tasks, in the order of reading.
        rows: by pool.
        contrasts: by pool, of :data:`METHOD` against every method that is no bound.
        of_distributions: the same by pool and distribution, where tasks are drawn; corrected within one.
        winners: by pool and task (None: all its tasks), where one method is better than every other beyond chance;
            neither bounds nor yardsticks (:func:`yardsticks`) win or have to be beaten.
        costs: by pool.
        verdict: on the held-out tasks; None where there are none.
        reliability: by pool and method, of those that have answers.
        chance: accuracy of a uniform guess, by pool and task.
    """

    runs: Runs
    pools: tuple[str, ...]
    rows: Mapping[str, list[ComparisonRow]]
    contrasts: Mapping[str, list[Contrast]]
    of_distributions: Mapping[tuple[str, str], list[Contrast]]
    winners: Mapping[tuple[str, str | None], str]
    costs: Mapping[str, list[MethodCosts]]
    verdict: Verdict | None
    reliability: Mapping[tuple[str, str], Reliability]
    chance: Mapping[tuple[str, str], float]

    def tasks(self, pool: str) -> list[str]:
        """A pool's tasks."""
        return list(dict.fromkeys(row.task for row in self.rows[pool] if row.task is not None))

    def cells(self, pool: str) -> dict[tuple[str, str | None], ComparisonRow]:
        """A pool's rows by method and task."""
        return {(row.method, row.task): row for row in self.rows[pool]}

    def comparison(self) -> pd.DataFrame:
        """All rows of all pools as a table; the mean row's task is ``mean``, with the method's costs in it."""
        frames = []
        for pool in self.pools:
            rows = rows_frame(self.rows[pool])
            priced = rows_frame(self.costs[pool])
            priced = priced.drop(columns=["accuracy", "low", "high", "bound"]).assign(task=MEAN)
            chance = pd.Series(
                [self.chance.get((pool, str(task))) for task in rows["task"]], dtype="float64"
            )
            rows = rows.assign(task=rows["task"].fillna(MEAN), chance=chance)
            frames.append(rows.merge(priced, on=["method", "task"], how="left"))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def differences(self) -> pd.DataFrame:
        """All contrasts of all pools, and of all distributions, as a table."""
        every = [*self.contrasts.values(), *self.of_distributions.values()]
        return rows_frame([one for found in every for one in found])

    def bins(self) -> pd.DataFrame:
        """All reliability curves as a table, with ``pool``, ``method``, ``ece`` and ``left_out`` in every row."""
        frames = [
            found.bins.assign(pool=pool, method=method, ece=found.ece, left_out=found.left_out)
            for (pool, method), found in self.reliability.items()
        ]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def yardsticks(pool: str) -> tuple[str, ...]:
    """Methods that are no competitors on a pool: they see more of its tasks than the others do.

    Args:
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
    """
    return (YARDSTICK,) if pool in ("left_out", "meta_test") else ()


def find(runs: Runs) -> Findings:
    """Work out the statistics of runs.

    Args:
        runs: finished runs.

    Raises:
        ResultsError: two methods answered different questions of a task in one run.
    """
    rows = {pool: found for pool in POOLS if (found := table(runs, pool))}
    pools = tuple(rows)
    others = [method for method in runs.methods if method not in BOUNDS]
    winners = {}
    of_distributions = {}
    for pool in pools:
        drawn = distributions(runs, pool)
        for name, own in drawn.items():
            of_distributions[pool, name] = [
                replace(one, distribution=name) for one in compare(runs, pool, METHOD, others, own)
            ]
        for task in dict.fromkeys(row.task for row in rows[pool]):
            exclude = (*BOUNDS, *yardsticks(pool))
            tasks = None if task is None else drawn.get(task, (task,))
            best = winner(runs, pool, tasks, exclude)
            if best is not None:
                winners[pool, task] = best
    known = runs.results().dropna(subset=["chance"])
    if "drawn" in known:
        # a drawn task is another one in every run
        drawn_there = known["drawn"].fillna(False).astype(bool)
        known = known.assign(task=known["task"].mask(drawn_there, known["group"]))
    known = known.groupby(["pool", "task"], sort=False)[["chance"]].mean().reset_index()
    return Findings(
        runs=runs,
        pools=pools,
        rows=rows,
        contrasts={pool: compare(runs, pool, METHOD, others) for pool in pools},
        of_distributions=of_distributions,
        winners=winners,
        costs={pool: costs(runs, pool) for pool in pools},
        verdict=verdict(runs, METHOD) if "meta_test" in pools else None,
        reliability=_curves(runs),
        chance={
            (str(pool), str(task)): float(chance)
            for pool, task, chance in zip(
                known["pool"], known["task"], known["chance"], strict=True
            )
        },
    )


def _curves(runs: Runs) -> dict[tuple[str, str], Reliability]:
    answers = runs.answers()
    curves = {
        (str(pool), str(method)): reliability(own)
        for (pool, method), own in answers.groupby(["pool", "method"], sort=False, observed=True)
    }
    order = [(pool, method) for pool in POOLS for method in runs.methods]
    return {place: curves[place] for place in order if place in curves}
