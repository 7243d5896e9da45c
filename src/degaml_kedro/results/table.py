"""Results as a person reads them: tasks down, methods across."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from scipy import stats

from degaml_kedro.results.formatting import markdown_table, with_interval
from degaml_kedro.results.runs import POOLS

_LEGEND = (
    "Accuracy on the test split with its 95 % Wilson interval; 'chance' is a uniform guess. "
    "Mean rows weigh every task alike."
)
_DRAWN = " Tasks drawn from one distribution stand in one row: tasks x questions, and the mean with its 95 % interval."


def results_table(results: pd.DataFrame, methods: Sequence[str], drawn: Sequence[str] = ()) -> str:
    """A Markdown table of accuracies, a column a method, with a mean row per pool.

    Args:
        results: one row per task and method, with ``task``, ``group``, ``pool``, ``method``, ``n``, ``chance``,
            ``accuracy``, ``accuracy_low``, ``accuracy_high``.
        methods: the columns, in order.
        drawn: groups whose tasks were drawn from a distribution; they are one row each.
    """
    rows: list[list[str]] = []
    for pool in POOLS:
        of_pool = results[results["pool"] == pool]
        for group in drawn:
            of_group = of_pool[of_pool["group"] == group]
            if not of_group.empty:
                rows.append([group, pool, *_group_cells(of_group, methods)])
        single = of_pool[~of_pool["group"].isin(drawn)] if drawn else of_pool
        for task in dict.fromkeys(single["task"]):
            of_task = of_pool[of_pool["task"] == task]
            first = of_task.iloc[0]
            cells = [_cell(of_task[of_task["method"] == method]) for method in methods]
            rows.append([task, pool, str(first["n"]), _number(first["chance"]), *cells])
        if of_pool["task"].nunique() > 1:
            means = [of_pool[of_pool["method"] == method]["accuracy"].mean() for method in methods]
            chance = of_pool.drop_duplicates("task")["chance"].mean()
            rows.append(["**mean**", pool, "", _number(chance), *map(_number, means)])
    frame = pd.DataFrame(rows, columns=["task", "pool", "n", "chance", *methods])
    return f"{markdown_table(frame)}\n\n{_LEGEND}{_DRAWN if drawn else ''}\n"


def _group_cells(results: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    """Size, chance and every method's mean over a group's tasks, with Student's interval over tasks."""
    first = results.drop_duplicates("task")
    cells = [f"{len(first)} x {first['n'].iloc[0]}", _number(first["chance"].mean())]
    for method in methods:
        found = results[results["method"] == method]["accuracy"]
        if len(found) < 2:
            cells.append(_number(found.mean()) if len(found) else "")
            continue
        half = float(stats.t.ppf(0.975, len(found) - 1) * found.sem())
        low, high = max(0.0, found.mean() - half), min(1.0, found.mean() + half)
        cells.append(with_interval(found.mean(), low, high))
    return cells


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    row = rows.iloc[0]
    return with_interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"])


def _number(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.2f}"
