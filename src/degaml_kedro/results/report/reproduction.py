"""How the numbers came about: runs, versions, machines, every setting, and the command behind each number."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from degaml_kedro.parameters import BASELINES
from degaml_kedro.results.report.document import (
    Block,
    Cell,
    Inline,
    Listing,
    RowGroup,
    Section,
    Table,
    code,
    paragraph,
)
from degaml_kedro.results.report.findings import Findings
from degaml_kedro.results.report.words import flat
from degaml_kedro.results.runs import Run

# a value that the record does not have
_NOT_RECORDED = "not recorded"


def reproduction(findings: Findings) -> Section:
    """Everything that somebody needs to make the numbers again."""
    runs = findings.runs.runs
    return Section(
        "reproduction",
        "How the numbers were made",
        (),
        (
            Section("reproduction-runs", "Runs", (_runs(runs),)),
            Section("reproduction-commands", "The command behind a number", _commands(findings)),
            Section(
                "reproduction-versions",
                "Versions and machines",
                (
                    *_facts(runs, "versions", "Versions", "package"),
                    *_facts(runs, "machine", "Machines", "property"),
                ),
            ),
            Section("reproduction-settings", "Every setting", _settings(runs)),
        ),
    )


def _runs(runs: Sequence[Run]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        command = _command(run)
        rows.append(
            (run.name, str(run.seed), code(run.profile), code(command) if command else None)
        )
    columns = ("run", "seed", "profile", "command")
    return Table.of("Runs in this report", columns, rows, texts=4, missing=_NOT_RECORDED)


def _command(run: Run) -> str:
    command = run.record.get("command", "")
    # a list of words where a program wrote it down
    return command if isinstance(command, str) else shlex.join(map(str, command))


def _commands(findings: Findings) -> tuple[Block, ...]:
    environment = _environment(findings.runs.runs)
    option = f" --env {shlex.quote(environment)}" if environment else ""
    lines = [
        f"kedro run{option} --params seed=SEED --to-nodes {_pipeline(method)}.TASK.measure_{method}"
        for method in findings.runs.methods
    ]
    words: list[Inline] = [
        "A line makes a method's number on a task from nothing; write the task for ",
        code("TASK"),
        " and the seed for ",
        code("SEED"),
        ". With ",
        code("--only-missing-outputs"),
        " it makes only what is not on disk.",
    ]
    blocks: list[Block] = [paragraph(*words), Listing("\n".join(lines), "sh")]
    if "left_out" in findings.pools:
        blocks.append(
            paragraph(
                "On a task that a group leaves out, the node's name ends in the group's: ",
                code(f"measure_{findings.runs.methods[-1]}_without_TASK"),
                "; ",
                code("kedro registry describe evaluate"),
                " lists the nodes.",
            )
        )
    blocks.append(
        paragraph(
            "This report: ",
            code(f"kedro run{option} --pipeline report"),
            ".",
        )
    )
    return tuple(blocks)


def _pipeline(method: str) -> str:
    return "baselines" if method in BASELINES else "evaluate"


def _environment(runs: Sequence[Run]) -> str:
    """The environment that the runs' own command names; none for the project's base."""
    try:
        words = shlex.split(_command(runs[-1]))
    except ValueError:
        # what was written down is no shell command
        return ""
    for number, word in enumerate(words):
        if word in ("--env", "-e"):
            return next(iter(words[number + 1 :]), "")
        if word.startswith("--env="):
            return word.removeprefix("--env=")
    return ""


def _facts(runs: Sequence[Run], entry: str, title: str, name: str) -> list[Block]:
    """An entry of the records, a column where all runs agree and one a run where they do not."""
    records = [flat(run.record[entry]) if run.record.get(entry) else {} for run in runs]
    facts = list(dict.fromkeys(fact for record in records for fact in record))
    if not facts:
        return [_not_recorded(title)]
    alike = all(record == records[0] for record in records)
    columns = [entry] if alike else [run.name for run in runs]
    shown = records[:1] if alike else records
    rows = [(fact, *(record.get(fact) for record in shown)) for fact in facts]
    note = f"The same in {'all runs' if len(runs) > 1 else 'the only run'}." if alike else ""
    texts = 1 + len(columns)
    return [Table.of(title, (name, *columns), rows, [note] if note else [], texts, _NOT_RECORDED)]


def _settings(runs: Sequence[Run]) -> tuple[Block, ...]:
    parameters = [_parameters(run) for run in runs]
    first = next((own for own in parameters if own), {})
    if not first:
        return (_not_recorded("Settings"),)
    blocks: list[Block] = []
    differing = [
        name
        for name in dict.fromkeys(name for own in parameters for name in own)
        if len({own.get(name) for own in parameters}) > 1
    ]
    if differing:
        rows = [(code(name), *(_value(own.get(name)) for own in parameters)) for name in differing]
        columns = ("setting", *(run.name for run in runs))
        caption = "Settings in which the runs differ"
        blocks.append(Table.of(caption, columns, rows, texts=len(columns), missing=_NOT_RECORDED))
    groups: dict[str, list[tuple[Cell, ...]]] = {}
    for name, value in first.items():
        if name not in differing:
            groups.setdefault(name.split(".", 1)[0], []).append((code(name), _value(value)))
    blocks.append(
        Table(
            "Settings of all runs" if len(runs) > 1 else "Settings of the run",
            ("setting", "value"),
            tuple(RowGroup(tuple(rows), title) for title, rows in groups.items()),
            texts=2,
        )
    )
    return tuple(blocks)


def _parameters(run: Run) -> dict[str, str]:
    own: Any = run.record.get("parameters") or {}
    return flat(own) if isinstance(own, Mapping) and own else {}


def _value(text: str | None) -> Cell:
    return None if text is None else code(text)


def _not_recorded(what: str) -> Block:
    return paragraph(
        f"{what}: {_NOT_RECORDED}. Runs of this version write them down in ",
        code("08_reporting/run.json"),
        "; ",
        code("kedro run"),
        " makes it.",
    )
