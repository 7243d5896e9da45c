"""Accuracy by method and task in the layouts of the paper's Tables 1 and 2, with intervals and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from degaml_kedro.results.comparison import ComparisonRow, Contrast
from degaml_kedro.results.paper import AVERAGE
from degaml_kedro.results.report.document import (
    Block,
    Cell,
    Paragraph,
    Picture,
    RowGroup,
    Section,
    Table,
    code,
    paragraph,
    strong,
)
from degaml_kedro.results.report.figures import comparison_figure
from degaml_kedro.results.report.findings import METHOD, Findings, yardsticks
from degaml_kedro.results.report.glossary import PAPER_ROWS, POOLS, SHORT
from degaml_kedro.results.report.words import (
    counted,
    interval,
    interval_of_points,
    listed,
    p_value,
    percent,
    points,
)
from degaml_kedro.results.runs import BOUNDS
from degaml_kedro.results.table import POOLS as POOL_NAMES


def comparison(findings: Findings, frame: pd.DataFrame) -> Section:
    """The paper's Table 1 and Table 2 layouts, with intervals and contrasts.

    Args:
        findings: the statistics.
        frame: the same as a table.
    """
    parts = []
    for pool in POOL_NAMES:
        title = POOLS[pool]
        key = f"pool-{pool.replace('_', '-')}"
        if pool not in findings.pools:
            if pool != "left_out":
                nothing = paragraph("No task is in this pool: name some under ", code(pool), ".")
                parts.append(Section(key, title, (nothing,)))
            continue
        if all(row.accuracy is None and row.partial is None for row in findings.rows[pool]):
            parts.append(Section(key, title, (_no_results(pool),)))
            continue
        picture = Picture(
            f"accuracy-{pool.replace('_', '-')}",
            f"{title}. Accuracy of every method on every task with its 95 % interval; the dotted line is chance.",
            comparison_figure(frame, pool),
        )
        blocks: list[Block] = [_accuracies(findings, pool), picture, _intervals(findings, pool)]
        parts.append(Section(key, title, (*blocks, *_contrasts(findings, pool))))
    return Section("comparison", "Comparison", (), tuple(parts))


def _no_results(pool: str) -> Paragraph:
    if pool == "meta_test":
        return paragraph("No method has results here; ", code("kedro run"), " makes them.")
    return paragraph(
        "No method has results here; ",
        code("kedro run"),
        " makes those of evaluation, and ",
        code("baselines.score_seen: true"),
        " with ",
        code("kedro run --pipeline baselines"),
        " those of the baselines.",
    )


def _accuracies(findings: Findings, pool: str) -> Table:
    tasks = findings.tasks(pool)
    cells = findings.cells(pool)
    groups = [
        RowGroup(tuple(_row(findings, pool, method, tasks, cells) for method in methods), title)
        for title, methods in _method_groups(findings, pool)
    ]
    seeds = [str(run.seed) for run in findings.runs.runs]
    bold = any((pool, task) in findings.winners for task in (None, *tasks))
    notes = [
        (
            f"Accuracy in percent, mean over {counted(len(seeds), 'seed')}; in brackets the difference to base in "
            f"points (the paper's Table 2 has relative changes there). {AVERAGE}: mean over tasks, which weigh alike."
        ),
        "Bold: better beyond chance than every other method that has results, bounds and yardsticks left out; "
        "corrected for the comparisons within a column, not over columns."
        if bold
        else "No method is better than every other one beyond chance, in no column: nothing is bold.",
    ]
    for method in yardsticks(pool):
        if method in findings.runs.methods:
            notes.append(
                f"{method} learns from the task's whole training split, {method}_support from the support examples "
                f"that all other methods have: {method} is a yardstick, no competitor. It is never bold, and need not "
                f"be beaten."
            )
    notes += _gaps(findings, pool, tasks, cells)
    return Table(
        f"Accuracy by method and task, {SHORT[pool]} (in the layout of the paper's Tables 1 and 2)",
        ("method", *tasks, AVERAGE),
        tuple(groups),
        tuple(notes),
    )


def _method_groups(findings: Findings, pool: str) -> list[tuple[str, list[str]]]:
    """The paper's rows, which stay where they have no results; ours; and bounds."""
    methods = findings.runs.methods
    paper = [name for name in PAPER_ROWS if pool != "meta_test" or name != "no_meta_train"]
    added = [name for name in methods if name not in paper and name not in BOUNDS]
    bounds = [name for name in methods if name in BOUNDS]
    found = [("methods of the paper", paper), ("added here", added), ("bound, no result", bounds)]
    return [(title, names) for title, names in found if names]


def _row(
    findings: Findings,
    pool: str,
    method: str,
    tasks: Sequence[str],
    cells: Mapping[tuple[str, str | None], ComparisonRow],
) -> tuple[Cell, ...]:
    found: list[Cell] = [method]
    for task in (*tasks, None):
        row = cells.get((method, task))
        if row is None or row.accuracy is None:
            found.append(None)
            continue
        text = percent(row.accuracy)
        if row.delta is not None and method != "base":
            text += f" ({points(row.delta)})"
        wins = findings.winners.get((pool, task)) == method and not row.bound
        found.append(strong(text) if wins else text)
    return tuple(found)


def _gaps(
    findings: Findings,
    pool: str,
    tasks: Sequence[str],
    cells: Mapping[tuple[str, str | None], ComparisonRow],
) -> list[str]:
    """What is missing, in sentences."""
    notes = []
    asked = findings.runs.methods
    absent = [name for name in PAPER_ROWS if name not in asked]
    if pool == "meta_test" and "no_meta_train" in absent:
        absent.remove("no_meta_train")
    if absent:
        notes.append(f"Not among this configuration's methods: {listed(absent)}.")
    empty = []
    for method in asked:
        mean = cells.get((method, None))
        if mean is None or mean.tasks == 0:
            empty.append(method)
        elif mean.accuracy is None and mean.partial is not None:
            notes.append(
                f"{method}: {percent(mean.partial)} over the {mean.tasks} of {len(tasks)} tasks that are there, not to "
                f"be compared with a mean over all."
            )
    if empty:
        notes.append(f"No results here: {listed(empty)}.")
    most = len(findings.runs.runs)
    for method in asked:
        mean = cells.get((method, None))
        if mean is not None and mean.tasks and mean.seeds < most:
            notes.append(f"{method}: {mean.seeds} of {counted(most, 'seed')} with all its tasks.")
    return notes


def _intervals(findings: Findings, pool: str) -> Table:
    tasks = findings.tasks(pool)
    cells = findings.cells(pool)
    most = {
        task: max((row.n for row in findings.rows[pool] if row.task == task), default=0)
        for task in (*tasks, None)
    }
    groups = []
    for title, methods in _method_groups(findings, pool):
        rows = []
        for method in methods:
            row: list[Cell] = [method]
            for task in (*tasks, None):
                found = cells.get((method, task))
                if found is None or found.low is None or found.high is None:
                    row.append(None)
                    continue
                fewer = f" (n = {found.n})" if found.n != most[task] else ""
                row.append(f"{interval(found.low, found.high)}{fewer}")
            mean = cells.get((method, None))
            row.append(None if mean is None or mean.spread is None else f"{100 * mean.spread:.1f}")
            rows.append(tuple(row))
        groups.append(RowGroup(tuple(rows), title))
    columns = [_sized(task, most[task]) for task in tasks]
    return Table(
        f"95 % intervals of accuracy, {SHORT[pool]}",
        ("method", *columns, _sized(AVERAGE, most[None]), "SD over seeds"),
        tuple(groups),
        (
            (
                "In percent. Tasks: Wilson's interval of all seeds' answers; n counts questions, once where seeds "
                f"share them. {AVERAGE}: bootstrap over questions within tasks and seeds. SD: standard deviation "
                f"of {AVERAGE} over seeds, in points."
            ),
        ),
    )


def _sized(name: str, n: int) -> str:
    # the number stays in one line
    return f"{name} (n\u00a0=\u00a0{n})"


def _contrasts(findings: Findings, pool: str) -> list[Block]:
    found = [
        _contrast_table(findings, pool, one, name)
        for (of, name), one in findings.of_distributions.items()
        if of == pool and one
    ]
    return [*_contrasts_of_all(findings, pool), *found]


def _contrasts_of_all(findings: Findings, pool: str) -> list[Block]:
    contrasts = findings.contrasts[pool]
    if contrasts:
        return [_contrast_table(findings, pool, contrasts)]
    return [
        paragraph(
            code(METHOD),
            " has no results here that another method could be compared with; ",
            code("kedro run"),
            " makes them where it is among the ",
            code("methods"),
            ".",
        )
    ]


def _contrast_table(
    findings: Findings, pool: str, contrasts: Sequence[Contrast], distribution: str = ""
) -> Table:
    there = {contrast.other for contrast in contrasts}
    absent = [
        name
        for name in findings.runs.methods
        if name not in there and name not in BOUNDS and name != METHOD
    ]
    rows: list[tuple[Cell, ...]] = [
        (
            one.other,
            points(one.mean),
            interval_of_points(one.low, one.high),
            interval_of_points(one.low_adjusted, one.high_adjusted),
            p_value(one.p),
            p_value(one.p_adjusted),
            str(one.strata),
            str(one.pairs),
        )
        for one in contrasts
    ]
    rows += [(name, *[None] * 7) for name in absent]
    notes = [
        (
            f"Difference: accuracy of {METHOD} less that of the other method, in points, over the tasks and seeds "
            f"where both have answers. Paired bootstrap over questions within strata (tasks by seeds); tasks weigh "
            f"alike, and so do a task's seeds. Drawn tasks are drawn again within their seed."
        ),
        f"Simultaneous interval (Bonferroni) and Holm-adjusted p: for {counted(contrasts[0].family, 'comparison')}.",
    ]
    notes += [
        f"{one.other}, left out: {'; '.join(one.missing)}." for one in contrasts if one.missing
    ]
    return Table.of(
        f"{METHOD} against every method, {distribution or SHORT[pool]}",
        (
            "against",
            "difference",
            "95 % interval",
            "simultaneous 95 % interval",
            "p",
            "p, Holm",
            "strata",
            "pairs",
        ),
        rows,
        notes,
    )
