"""The paper's own figures: beside ours where the setting is the paper's, and as printed."""

from __future__ import annotations

import pandas as pd

from degaml_kedro.results.paper import (
    AVERAGE,
    BENCHMARKS,
    SETTINGS,
    differing_averages,
    matching_profile,
    paper_results,
    paper_source,
    paper_table,
)
from degaml_kedro.results.report.document import (
    Block,
    Bullets,
    Cell,
    Section,
    Table,
    code,
    paragraph,
)
from degaml_kedro.results.report.findings import Findings
from degaml_kedro.results.report.glossary import SHORT
from degaml_kedro.results.report.words import percent


def beside_paper(findings: Findings) -> Section:
    """The paper's numbers beside ours, where the profile is one of the paper's."""
    key, title = "paper", "Beside the paper's figures"
    profile = findings.runs.runs[0].profile
    model = matching_profile(profile)
    if model is None:
        return Section(
            key,
            title,
            (
                paragraph(
                    "The profile ",
                    code(profile),
                    " is none of the paper's settings, so its figures do not belong beside these; ",
                    code("kedro run --env paper_0_5b"),
                    " makes some that do. The paper's tables are in the appendix.",
                ),
            ),
        )
    blocks: list[Block] = [
        paragraph(
            f"This profile has the paper's setting for {model}. Ours, then the paper's as printed, in percent. "
            f"Samples, splits and prompts are not the paper's own, so that differences of a few points mean little."
        )
    ]
    for pool, setting in SETTINGS.items():
        if pool in findings.pools:
            blocks.append(_side_by_side(findings, pool, paper_table(model, setting)))
    return Section(key, title, tuple(blocks))


def _side_by_side(findings: Findings, pool: str, printed: pd.DataFrame) -> Table:
    tasks = [task for task in findings.tasks(pool) if BENCHMARKS.get(task) in printed.columns]
    cells = findings.cells(pool)
    complete = set(tasks) == set(findings.tasks(pool))
    rows: list[tuple[Cell, ...]] = []
    for method in printed.index:
        row: list[Cell] = [str(method)]
        for task in (*tasks, None):
            own = cells.get((str(method), task))
            theirs = printed.loc[method, AVERAGE if task is None else BENCHMARKS[task]]
            ours = None if own is None else own.accuracy
            row.append(f"{'—' if ours is None else percent(ours)} / {theirs:.1f}")
        rows.append(tuple(row))
    notes = ["Ours / the paper's. —: we have no result."]
    if not complete or len(tasks) + 1 != len(printed.columns):
        notes.append(f"Not all of the paper's tasks ran: {AVERAGE} is over other tasks in ours.")
    return Table.of(
        f"Ours / the paper's, {SHORT[pool]}",
        ("method", *(BENCHMARKS[task] for task in tasks), AVERAGE),
        rows,
        notes,
    )


def paper_appendix() -> Section:
    """The paper's tables as printed, with their source."""
    source = paper_source()
    blocks: list[Block] = [paragraph(f"Source: {source.line}. {source.note}")]
    if source.discrepancies:
        blocks.append(Bullets(tuple(paragraph(text) for text in source.discrepancies)))
    for model, settings in paper_results().models.items():
        for setting in settings:
            printed = paper_table(model, setting)
            rows = [
                (str(method), *(f"{value:.1f}" for value in printed.loc[method]))
                for method in printed.index
            ]
            notes = [
                f"{method}: the printed {AVERAGE} is not the mean of the row, which is {mean:.1f}."
                for method, mean in differing_averages(model, setting).items()
            ]
            where = setting.replace("_", " ")
            caption = f"The paper's figures: {model}, {where}"
            blocks.append(Table.of(caption, ("method", *map(str, printed.columns)), rows, notes))
    return Section("appendix", "Appendix: the paper's tables", tuple(blocks))
