"""Which settings each method tried, and which it got."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from degaml_kedro.results.report.document import Cell, Section, Table, code, paragraph, strong
from degaml_kedro.results.report.findings import Findings
from degaml_kedro.results.report.words import percent


def settings(findings: Findings) -> Section:
    """Which settings each method tried, and which it got."""
    key, title = "settings", "Search for settings"
    frames = [
        run.tables["settings"].assign(seed=run.seed)
        for run in findings.runs.runs
        if len(run.tables.get("settings", ()))
    ]
    if not frames:
        nothing = paragraph(
            "No search was recorded; ",
            code("kedro run --pipeline baselines"),
            " makes one for every baseline among the methods.",
        )
        return Section(key, title, (nothing,))
    tried = pd.concat(frames, ignore_index=True)
    searches = _searches(tried)
    tasks = list(dict.fromkeys(task for search in searches for task in search.accuracies))
    rows: list[tuple[Cell, ...]] = []
    for search in searches:
        accuracies = [search.accuracies.get(task) for task in tasks]
        shown: list[Cell] = [None if value is None else percent(value) for value in accuracies]
        rows.append(
            (
                search.method,
                code(search.setting),
                strong("chosen") if search.chosen else "",
                ", ".join(search.seeds),
                *shown,
            )
        )
    counts = sorted({str(int(n)) for n in tried["n"].dropna()}) if "n" in tried else []
    each = f" (n = {' or '.join(counts)} each)" if counts else ""
    notes = (
        (
            f"Accuracy in percent on validation questions{each} of meta-train tasks that the method's weights had not "
            f"seen. Chosen: the best mean over these tasks; the likelier answers decide between equal ones. Every "
            f"baseline had the same number of settings to choose from."
        ),
        (
            "The generator's and the policy's settings were set by hand on meta-train tasks (docs/comparison.md)."
        ),
    )
    columns = ("method", "setting", "choice", "seeds", *tasks)
    return Section(
        key,
        title,
        (
            Table.of(
                "Settings that were tried, and those that were chosen",
                columns,
                rows,
                notes,
                texts=4,
            ),
        ),
    )


class _Search:
    """A setting of a method, and how it did in runs that had the same outcome."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        first = rows[0]
        self.method = str(first["method"])
        self.setting = _setting_text(first.get("setting", first.get("number", "")))
        self.chosen = _is_chosen(first)
        self.accuracies = {
            str(row["task"]): float(row["accuracy"])
            for row in rows
            if not pd.isna(row.get("task")) and not pd.isna(row.get("accuracy"))
        }
        self.seeds = [str(first["seed"])]

    def same(self, other: _Search) -> bool:
        """Whether both tell the same of different seeds, which share a search."""
        names = ("method", "setting", "chosen", "accuracies")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def _searches(tried: pd.DataFrame) -> list[_Search]:
    by_setting: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in tried.to_dict("records"):
        own = {str(key): value for key, value in row.items()}
        number = str(own.get("number", own.get("setting")))
        by_setting.setdefault((str(own["method"]), str(own["seed"]), number), []).append(own)
    found: list[_Search] = []
    for rows in by_setting.values():
        search = _Search(rows)
        twin = next((one for one in found if one.same(search)), None)
        if twin is None:
            found.append(search)
        else:
            twin.seeds += search.seeds
    # methods stay together
    order = {name: place for place, name in enumerate(dict.fromkeys(one.method for one in found))}
    return sorted(found, key=lambda one: order[one.method])


def _is_chosen(row: Mapping[str, Any]) -> bool:
    chosen = row.get("chosen")
    if chosen is None or pd.isna(chosen):
        return False
    # the search's record names the number of the setting
    return (
        bool(chosen) if isinstance(chosen, bool) or "number" not in row else chosen == row["number"]
    )


def _setting_text(setting: Any) -> str:
    if isinstance(setting, str):
        try:
            setting = json.loads(setting)
        except json.JSONDecodeError:
            return str(setting)
    if isinstance(setting, Mapping):
        return ", ".join(f"{key} {value}" for key, value in setting.items())
    return str(setting)
