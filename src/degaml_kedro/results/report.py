"""The report of finished runs: its tables and figures, which ``report.md.j2`` puts into words, and its HTML page."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd
import plotly.io  # type: ignore[import-untyped]
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup
from scipy import stats

from degaml_kedro.config.methods import method_of
from degaml_kedro.config.schema import BASELINES, SUMMED
from degaml_kedro.results import formatting
from degaml_kedro.results.figures import (
    accuracy_compute_figure,
    comparison_figure,
    generator_figure,
    policy_figure,
    reliability_figure,
    strategy_map,
)
from degaml_kedro.results.formatting import (
    counted,
    flat,
    in_short,
    interval,
    listed,
    markdown_table,
    p_value,
    percent,
    points,
    seconds,
    two_digits,
    with_interval,
)
from degaml_kedro.results.paper import (
    AVERAGE,
    BENCHMARKS,
    PAPER_ROWS,
    PROFILES,
    SETTINGS,
    differing_averages,
    paper_results,
    paper_table,
)
from degaml_kedro.results.runs import BOUNDS, POOL_NAMES, POOL_TITLES, POOLS, Run
from degaml_kedro.results.statistics import AIM, MEAN, METHOD, YARDSTICK, Findings, yardsticks

# the page's file name, which the Markdown points to
PAGE = "report.html"
MISSING_MARK = "—"
# wide enough for the notes under a figure; print makes it smaller as a whole
_FIGURE_WIDTH = 1060
_MOST_HEALTH_FIGURES = 6
_NO_RESULT = "missing; there is no result, which is not a result of 0"
_NOT_RECORDED = "not recorded"
# a cost, and its column's name
_COSTS = {
    "adaptation_forward_tokens": "adaptation: forward tokens",
    "adaptation_backward_tokens": "backward tokens",
    "adaptation_tokens": "tokens",
    "adaptation_seconds": "time",
    "answer_seconds": "an answer: time",
    "search_tokens": "search: tokens",
    "search_seconds": "time",
    "meta_training_tokens": "meta-training: tokens",
    "meta_training_seconds": "time",
}
# an underscore inside a word is only an underscore
_SPECIAL = re.compile(r"[\\`*\[\]<>&|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# what makes a line a heading or part of a list
_LINE_START = re.compile(r"^(\d*)([#+\-=.)])(?=[\s#=-]|$)")
_SCRIPT = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)
_FIGURE = re.compile(rf'<p><a href="{PAGE}#figure-([\w-]+)">Figure</a>: (.*?)</p>', re.DOTALL)
_LEGEND = (
    "Accuracy on the test split with its 95 % Wilson interval; 'chance' is a uniform guess. "
    "Mean rows weigh every task alike."
)
_DRAWN = " Tasks drawn from one distribution stand in one row: tasks x questions, and the mean with its 95 % interval."


class Code(str):
    """A name or a command."""


class Strong(str):
    """Text in bold."""


class Emphasis(str):
    """Text in italics: the title of a group of rows."""


# None is a value that is missing, "" a place where there is none to expect
Cell = str | None


@dataclass(frozen=True)
class Table:
    """Rows under column names; every number is text already, so that page and Markdown show the same.

    Attributes:
        caption: what the table shows.
        notes: how it is read.
        texts: how many of the first columns are text; all others are numbers.
        missing: what a missing value means here.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    texts: int = 1
    missing: str = _NO_RESULT

    @property
    def all_notes(self) -> list[str]:
        """The notes, with one on what is missing."""
        gaps = any(cell is None for row in self.rows for cell in row)
        return [*self.notes, *([f"{MISSING_MARK}: {self.missing}."] if gaps else [])]


def write(findings: Findings) -> tuple[str, str]:
    """The report as an HTML page that holds all it needs, and as Markdown with the same numbers.

    Names and texts of the runs are escaped in both.
    """
    values = context(findings)
    text = render_markdown(values)
    return render_html(text, values["figures"]), text


def context(findings: Findings) -> dict[str, Any]:
    """What the report's template fills in."""
    runs, results = findings.runs, findings.runs.results()
    pool = "meta_test" if "meta_test" in findings.pools else next(iter(findings.pools), "")
    models = results["model"].dropna().map(str) if "model" in results else ()
    figures: dict[str, Any] = {}
    return {
        "findings": findings,
        "verdict": findings.verdict,
        "missing": _gathered(findings.verdict.missing if findings.verdict else ()),
        "runs": runs.runs,
        "profile": runs.runs[0].profile,
        "seeds": [str(run.seed) for run in runs.runs],
        "models": list(dict.fromkeys(models)) or [_NOT_RECORDED],
        "absent": (runs.runs[0].record.get("parameters") or {}).get("absent") or (),
        "method": METHOD,
        "aim": f"{100 * AIM:.0f}",
        "comparison": [
            _pool_view(findings, name, figures)
            for name in POOLS
            if name in findings.pools or name != "left_out"
        ],
        **_beside_paper(findings),
        **_compute(findings, pool, figures),
        "calibration": _calibration(findings, pool, figures),
        **_learning(findings, figures),
        **_settings(findings),
        **_reproduction(findings),
        "glossary_methods": list(dict.fromkeys([*runs.methods, *PAPER_ROWS])),
        "source": paper_results()["source"],
        "paper_tables": _paper_tables(),
        # those that the parts above have put there, in the order of reading
        "figures": figures,
    }


def _gathered(missing: Sequence[str]) -> str:
    """``abmll: rhymes`` and ``abmll: months`` as ``abmll (rhymes, months)``."""
    places: dict[str, list[str]] = {}
    for item in missing:
        method, place = item.split(": ", 1)
        places.setdefault(method, []).append(place)
    return "; ".join(f"{method} ({', '.join(own)})" for method, own in places.items())


# --- accuracy by method and task ------------------------------------------------------------------


def _pool_view(findings: Findings, pool: str, figures: dict[str, Any]) -> dict[str, Any]:
    """A pool in the layouts of the paper's Tables 1 and 2, with intervals and contrasts."""
    there, rows = pool in findings.pools, findings.rows(pool)
    view = {
        "name": pool,
        "key": pool.replace("_", "-"),
        "title": POOL_TITLES[pool],
        "there": there,
        "size": _size(findings, pool) if there else "",
        "winner": findings.winners.get((pool, MEAN)),
        "yardsticks": [name for name in yardsticks(pool) if name in findings.runs.methods],
        "tables": [],
    }
    if rows[["accuracy", "partial"]].isna().all(axis=None):
        return view
    figures[f"accuracy-{view['key']}"] = comparison_figure(findings.comparison, pool)
    contrasts = findings.contrasts
    by_place: Iterable[Any] = ()
    if len(contrasts):
        by_place = contrasts.groupby(["pool", "distribution"], dropna=False, sort=False)
    return {
        **view,
        "tables": [_accuracies(findings, pool), _intervals(findings, pool)],
        "bold": any(of == pool for of, _ in findings.winners),
        "contrasts": [
            _contrast_table(findings, own, POOL_NAMES[pool] if pd.isna(name) else name)
            for (of, name), own in by_place
            if of == pool
        ],
    }


def _size(findings: Findings, pool: str) -> str:
    drawn = findings.pools[pool].distributions
    text = counted(len(findings.tasks(pool)), "distribution" if drawn else "task")
    if drawn:
        text += f" ({counted(sum(map(len, drawn.values())), 'task')} a seed)"
    rows = findings.rows(pool)
    sizes = sorted(set(rows.loc[(rows["task"] != MEAN) & (rows["n"] > 0), "n"]))
    if sizes:
        text += f", n = {sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''} each"
    return text


def _paper_rows(pool: str) -> list[str]:
    return [name for name in PAPER_ROWS if pool != "meta_test" or name != YARDSTICK]


def _grouped(
    findings: Findings, pool: str, cells: Mapping[tuple[str, str], Cell], *last: str
) -> list[Sequence[Cell]]:
    """A row a method: the paper's, which stay where they have no results; ours; and bounds, each below a title.

    The columns are the pool's tasks, their mean and the ``last`` ones.
    """
    columns = (*findings.tasks(pool), MEAN, *last)
    paper = _paper_rows(pool)
    others = [name for name in findings.runs.methods if name not in paper]
    groups = {
        "methods of the paper": paper,
        "added here": [name for name in others if name not in BOUNDS],
        "bound, no result": [name for name in others if name in BOUNDS],
    }
    rows: list[Sequence[Cell]] = []
    for title, names in groups.items():
        if names:
            rows.append((Emphasis(title), *[""] * len(columns)))
        rows += [(name, *(cells.get((name, column)) for column in columns)) for name in names]
    return rows


def _accuracies(findings: Findings, pool: str) -> Table:
    cells: dict[tuple[str, str], Cell] = {}
    for row in findings.rows(pool).dropna(subset="accuracy").to_dict("records"):
        text = percent(row["accuracy"])
        if pd.notna(row["delta"]) and row["method"] != "base":
            text += f" ({points(row['delta'])})"
        won = findings.winners.get((pool, row["task"])) == row["method"]
        cells[row["method"], row["task"]] = Strong(text) if won else text
    return Table(
        f"Accuracy by method and task, {POOL_NAMES[pool]} (in the layout of the paper's Tables 1 and 2)",
        ("method", *findings.tasks(pool), AVERAGE),
        _grouped(findings, pool, cells),
        _gaps(findings, pool),
    )


def _gaps(findings: Findings, pool: str) -> list[str]:
    """What is missing, in sentences."""
    means = findings.means(pool)
    absent = [name for name in _paper_rows(pool) if name not in findings.runs.methods]
    empty = means.loc[means["tasks"] == 0, "method"].tolist()
    most = len(findings.runs.runs)
    notes = [f"Not among this configuration's methods: {listed(absent)}."] if absent else []
    notes += [
        f"{mean['method']}: {percent(mean['partial'])} over the {mean['tasks']} of {len(findings.tasks(pool))} tasks "
        f"that are there, not to be compared with a mean over all."
        for mean in means.dropna(subset="partial").to_dict("records")
    ]
    notes += [f"No results here: {listed(empty)}."] if empty else []
    return notes + [
        f"{mean['method']}: {mean['seeds']} of {counted(most, 'seed')} with all its tasks."
        for mean in means.to_dict("records")
        if mean["tasks"] and mean["seeds"] < most
    ]


def _intervals(findings: Findings, pool: str) -> Table:
    spread, rows = "SD over seeds", findings.rows(pool)
    most = rows.groupby("task", sort=False)["n"].max()
    cells: dict[tuple[str, str], Cell] = {}
    for row in rows.to_dict("records"):
        if pd.notna(row["low"]):
            fewer = f" (n = {row['n']})" if row["n"] != most[row["task"]] else ""
            cells[row["method"], row["task"]] = f"{interval(row['low'], row['high'])}{fewer}"
        if row["task"] == MEAN and pd.notna(row["spread"]):
            cells[row["method"], spread] = f"{100 * row['spread']:.1f}"
    # the number stays in one line
    columns = [
        f"{AVERAGE if task == MEAN else task} (n\u00a0=\u00a0{n})" for task, n in most.items()
    ]
    return Table(
        f"95 % intervals of accuracy, {POOL_NAMES[pool]}",
        ("method", *columns, spread),
        _grouped(findings, pool, cells, spread),
    )


def _contrast_table(findings: Findings, frame: pd.DataFrame, where: str) -> dict[str, Any]:
    """A table of contrasts, and how many comparisons it is corrected for."""
    contrasts = frame.to_dict("records")
    rows: list[Sequence[Cell]] = [
        (
            one["other"],
            points(one["mean"]),
            interval(one["low"], one["high"], points),
            interval(one["low_adjusted"], one["high_adjusted"], points),
            p_value(one["p"]),
            p_value(one["p_adjusted"]),
            str(one["strata"]),
            str(one["pairs"]),
        )
        for one in contrasts
    ]
    there = {METHOD, *BOUNDS, *(one["other"] for one in contrasts)}
    rows += [(name, *[None] * 7) for name in findings.runs.methods if name not in there]
    notes = [
        f"{one['other']}, left out: {'; '.join(one['missing'])}."
        for one in contrasts
        if one["missing"]
    ]
    intervals = ("95 % interval", "simultaneous 95 % interval")
    columns = ("against", "difference", *intervals, "p", "p, Holm", "strata", "pairs")
    made = Table(f"{METHOD} against every method, {where}", columns, rows, notes)
    return {"table": made, "family": contrasts[0]["family"]}


# --- costs and calibration ------------------------------------------------------------------------


def _compute(findings: Findings, pool: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Accuracy against what it cost; None where nothing was counted."""
    if findings.runs.compute().empty or pool not in findings.pools:
        return {"compute": None}
    rows = [
        (
            _named(row["method"]),
            _cell(row["accuracy"], percent),
            *(_cell(row[name], seconds if "seconds" in name else in_short) for name in _COSTS),
        )
        for row in findings.means(pool).to_dict("records")
    ]
    table = Table(
        f"Accuracy and what it took, {POOL_NAMES[pool]}",
        ("method", f"accuracy, {AVERAGE}", *_COSTS.values()),
        rows,
        missing="not counted (of tokens maybe only the sum), or no accuracy on all tasks",
    )
    figures["accuracy-compute"] = accuracy_compute_figure(findings.comparison, pool)
    return {"compute": table, "sentence_head": _beside(findings, pool)}


def _named(method: str) -> str:
    return f"{method} (bound)" if method in BOUNDS else method


def _cell(value: Any, write: Callable[[Any], str]) -> Cell:
    """A value as text; None where it is missing."""
    return None if pd.isna(value) else write(value)


def _beside(findings: Findings, pool: str) -> str:
    """Where logistic regression on sentence embeddings is better than every method that asks the language model."""
    if "sentence_head" not in findings.runs.methods:
        return ""
    found = findings.rows(pool).pivot(index="task", columns="method", values="accuracy")
    own = found.pop("sentence_head")
    most = found.drop(columns=[*BOUNDS, YARDSTICK], errors="ignore").max(axis="columns")
    won = [task for task in findings.tasks(pool) if own[task] > most[task]]
    return f"on {listed(won)}" if won else "nowhere"


def _calibration(findings: Findings, pool: str, figures: dict[str, Any]) -> Table | None:
    """ECE and likelihood; None where no answer has a likelihood."""
    bins = findings.bins[findings.bins["pool"] == pool] if len(findings.bins) else findings.bins
    if bins.empty or not bins["n"].any():
        return None
    curves = bins.groupby("method").agg({"n": "sum", "ece": "first", "left_out": "first"})
    means = findings.means(pool).set_index("method")
    whole = curves[curves["n"] > 0].rename(columns={"ece": "ece_of_all"})
    rows = [
        (
            _named(str(row["method"])),
            *(_cell(row[name], "{:.3f}".format) for name in ("ece_of_all", "ece", "nll")),
            *(_cell(row[name], "{:.0f}".format) for name in ("n", "left_out")),
        )
        for row in means[["ece", "nll"]].join(whole).reset_index().to_dict("records")
    ]
    figures["reliability"] = reliability_figure(findings.bins, pool)
    return Table(
        f"Calibration, {POOL_NAMES[pool]}",
        ("method", "ECE, all answers", "ECE, mean of tasks", "NLL, mean of tasks", "n", "left out"),
        rows,
        missing="no answer with a likelihood",
    )


# --- what the parts of DeGAML learned -------------------------------------------------------------


def _learning(findings: Findings, figures: dict[str, Any]) -> dict[str, Any]:
    """Strategies by task, the policy, and generators."""
    runs = findings.runs
    if len(tried := runs.table("strategies")):
        figures["strategies"] = strategy_map(tried, "Strategies by task")
    if len(rollouts := runs.table("policy_rollouts")):
        figures["policy"] = policy_figure(rollouts, "Policy")
    shown = runs.runs
    if sum(map(len, map(_generators, shown))) > _MOST_HEALTH_FIGURES:
        shown = next((run,) for run in shown if _generators(run))
    titles = []
    for run in shown:
        for variant, (steps, health) in _generators(run).items():
            titles.append(f"{f'Generator {variant}'.strip()}, {run.name}")
            figures[f"generator-{len(titles)}"] = generator_figure(steps, health, titles[-1])
    names = [run.name for run in shown]
    not_shown = [run.name for run in runs.runs if run.name not in names]
    return {"generators": titles, "not_shown": not_shown}


def _generators(run: Run) -> dict[str, list[pd.DataFrame]]:
    """The steps and the health checks of each variant of the generator."""
    tables = [
        run.tables.get(f"generator_{name}", pd.DataFrame({"variant": []}))
        for name in ("steps", "health")
    ]
    variants = dict.fromkeys(str(name) for own in tables for name in own["variant"])
    return {name: [own[own["variant"].map(str) == name] for own in tables] for name in variants}


# --- settings -------------------------------------------------------------------------------------


def _settings(findings: Findings) -> dict[str, Any]:
    """Which settings each method tried, and which it got; None where no search was recorded."""
    tried = findings.runs.table("settings")
    if tried.empty:
        return {"settings": None}
    tasks = list(dict.fromkeys(tried.dropna(subset=["task", "accuracy"])["task"].map(str)))
    rows: dict[tuple[Cell, ...], list[str]] = {}
    for method in dict.fromkeys(tried["method"]):
        of_method = tried[tried["method"] == method]
        for (seed, _), own in of_method.groupby(["seed", "number"], sort=False):
            setting = own["setting"].iloc[0]
            if isinstance(setting, Mapping):
                setting = ", ".join(f"{key} {value}" for key, value in setting.items())
            known = own.dropna(subset=["task", "accuracy"])
            found = dict(zip(known["task"].map(str), known["accuracy"].map(percent), strict=True))
            mark = Strong("chosen") if own["chosen"].iloc[0] else ""
            row = (str(method), Code(setting), mark, *map(found.get, tasks))
            # seeds that share a search tell the same
            rows.setdefault(row, []).append(str(seed))
    counts = sorted({str(int(n)) for n in tried["n"].dropna()}) if "n" in tried else []
    table = Table(
        "Settings that were tried, and those that were chosen",
        ("method", "setting", "choice", "seeds", *tasks),
        [(*row[:3], ", ".join(seeds), *row[3:]) for row, seeds in rows.items()],
        texts=4,
    )
    return {"settings": table, "questions": " or ".join(counts)}


# --- how the numbers were made --------------------------------------------------------------------


def _reproduction(findings: Findings) -> dict[str, Any]:
    """Runs, versions, machines, every setting, and the command behind each number."""
    runs = findings.runs.runs
    commands = [str(run.record.get("command") or "") for run in runs]
    environment = re.search(r" --env \S+", commands[-1])
    option = environment[0] if environment else ""
    pipelines = dict.fromkeys((*BASELINES, *SUMMED), "baselines")
    rows = [
        (run.name, str(run.seed), Code(run.profile), Code(command) if command else None)
        for run, command in zip(runs, commands, strict=True)
    ]
    columns = ("run", "seed", "profile", "command")
    return {
        "environment": option,
        "commands": [
            f"kedro run{option} --params seed=SEED --to-nodes {pipelines.get(method, 'evaluate')}.TASK.measure_{method}"
            for method in findings.runs.methods
        ],
        "run_table": Table("Runs in this report", columns, rows, texts=4, missing=_NOT_RECORDED),
        "versions": _recorded(runs, "versions", "Versions", "package"),
        "machines": _recorded(runs, "machine", "Machines", "property"),
        "parameters": _recorded(runs, "parameters", "Settings", "setting"),
    }


def _recorded(runs: Sequence[Run], entry: str, title: str, name: str) -> list[Table]:
    """An entry of the runs' records: where they differ, a column a run, and where they do not."""
    records = {run.name: flat(run.record.get(entry) or {}) for run in runs}
    # [names, runs]
    facts = pd.DataFrame.from_dict(records).reindex(
        list(dict.fromkeys(fact for record in records.values() for fact in record))
    )
    differs = facts.nunique(axis="columns", dropna=False) > 1
    tables = []
    for caption, own in (
        (f"{title} in which the runs differ", facts[differs]),
        (f"{title} of all runs" if len(runs) > 1 else title, facts[~differs].iloc[:, :1]),
    ):
        if len(own):
            columns = (name, *own) if own.shape[1] > 1 else (name, "value")
            cells = [
                (Code(fact), *(_cell(value, Code) for value in values))
                for fact, values in zip(own.index, own.to_numpy().tolist(), strict=True)
            ]
            tables.append(Table(caption, columns, cells, texts=len(columns), missing=_NOT_RECORDED))
    return tables


# --- the paper ------------------------------------------------------------------------------------


def _beside_paper(findings: Findings) -> dict[str, Any]:
    """The paper's numbers beside ours, where the profile is one of the paper's."""
    model = PROFILES.get(findings.runs.runs[0].profile)
    if model is None:
        return {"paper_model": None}
    tables = [
        _side_by_side(findings, pool, paper_table(model, setting))
        for pool, setting in SETTINGS.items()
        if pool in findings.pools
    ]
    return {
        "paper_model": model,
        "beside_paper": tables,
        "has_in_domain": "left_out" in findings.pools,
    }


def _side_by_side(findings: Findings, pool: str, printed: pd.DataFrame) -> Table:
    tasks = [task for task in findings.tasks(pool) if BENCHMARKS.get(task) in printed]
    columns = {task: BENCHMARKS[task] for task in tasks} | {MEAN: AVERAGE}
    found: dict[Any, float] = (
        findings.rows(pool).set_index(["method", "task"])["accuracy"].to_dict()
    )
    rows = []
    values: dict[Any, dict[Any, float]] = printed.to_dict("index")
    for method in map(str, printed.index):
        row = [method]
        for task, column in columns.items():
            ours = _cell(found.get((method, task)), percent) or MISSING_MARK
            row.append(f"{ours} / {values[method][column]:.1f}")
        rows.append(row)
    notes = [f"Ours / the paper's. {MISSING_MARK}: we have no result."]
    if set(tasks) != set(findings.tasks(pool)) or len(columns) != len(printed.columns):
        notes.append(f"Not all of the paper's tasks ran: {AVERAGE} is over other tasks in ours.")
    return Table(
        f"Ours / the paper's, {POOL_NAMES[pool]}", ("method", *columns.values()), rows, notes
    )


def _paper_tables() -> list[Table]:
    """The paper's tables as printed."""
    tables = []
    for model, settings in paper_results()["models"].items():
        for setting in settings:
            printed = paper_table(model, setting)
            rows = [
                (str(name), *(f"{value:.1f}" for value in row)) for name, row in printed.iterrows()
            ]
            notes = [
                f"{method}: the printed {AVERAGE} is not the mean of the row, which is {mean:.1f}."
                for method, mean in differing_averages(model, setting).items()
            ]
            caption = f"The paper's figures: {model}, {setting.replace('_', ' ')}"
            tables.append(Table(caption, ("method", *printed), rows, notes))
    return tables


# --- Markdown and HTML ----------------------------------------------------------------------------


def render_markdown(values: Mapping[str, Any]) -> str:
    """The report as GitHub's Markdown, in which every value of ``report.md.j2`` is escaped."""
    templates = Environment(
        loader=PackageLoader(__package__, ""),
        finalize=_escaped,
        # so that what has been escaped is not escaped again
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= vars(formatting)
    templates.globals |= {"meaning": meaning, "code": Code, "strong": Strong, "page": PAGE}
    templates.globals |= {"grid": _grid, "fenced": _fenced}
    text = templates.get_template("report.md.j2").render(values)
    return re.sub("\n{3,}", "\n\n", text).strip() + "\n"


def meaning(method: str) -> str:
    """One sentence on a method."""
    row = method_of(method)
    if row is None:
        return "A method of this configuration."
    if method == row.name or row.name == "other_prompts":
        return row.meaning
    return "The unrefined adapter of another variant of the generator."


def render_html(text: str, figures: Mapping[str, Any]) -> str:
    """The report's Markdown as one HTML page: nothing is fetched, and a policy in the page forbids it.

    HTML in the text stays text. It points to the figures, which are Plotly's, by their names.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    contents = _name_headings(tokens)
    for token in tokens:
        if token.type == "th_open":
            token.attrSet("scope", "col")
    drawings = {
        name: plotly.io.to_html(
            figure,
            full_html=False,
            # the drawing program once
            include_plotlyjs=number == 0,
            div_id=f"plot-{name}",
            default_width=f"{_FIGURE_WIDTH}px",
            config={"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""},
        )
        for number, (name, figure) in enumerate(figures.items())
    }
    body = markdown.renderer.render(tokens, markdown.options, {})
    body = body.replace("<table>", '<div class="wide" role="region" tabindex="0"><table>')
    body = body.replace("</table>", "</table></div>")
    body = _FIGURE.sub(lambda found: _figure(found[1], found[2], drawings[found[1]]), body)
    programs = [own for drawing in drawings.values() for own in _SCRIPT.findall(drawing)]
    templates = Environment(
        loader=PackageLoader(__package__, ""), autoescape=True, trim_blocks=True
    )
    return templates.get_template("report.html.j2").render(
        title=contents[0][2],
        contents=contents[1:],
        body=Markup(body),
        allowed=Markup(" ".join(map(_digest, programs)) or "'none'"),
    )


def _name_headings(tokens: Sequence[Token]) -> list[tuple[int, str, str]]:
    """Give headings an id to point to; level, id and text of each."""
    found = []
    for token, inside in pairwise(tokens):
        if token.type == "heading_open":
            title = "".join(part.content for part in inside.children or ())
            name = re.sub(r"\W+", "-", title.lower()).strip("-")
            token.attrSet("id", name)
            found.append((int(token.tag[1]), name, title))
    return found


def _figure(name: str, caption: str, drawing: str) -> str:
    words = html.escape(html.unescape(re.sub("<[^>]*>", "", caption)))
    return (
        f'<figure id="figure-{name}"><div class="wide plot" role="img" aria-label="{words}" tabindex="0">{drawing}'
        f"</div><figcaption>{caption}</figcaption></figure>"
    )


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _escaped(value: Any) -> Markup:
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup(MISSING_MARK)
    text = " ".join(str(value).split())
    if isinstance(value, Code) and text:
        fence = "`" * (_longest_run(text) + 1)
        space = " " if text.startswith("`") or text.endswith("`") else ""
        return Markup(f"{fence}{space}{text}{space}{fence}")
    text = _LINE_START.sub(r"\1\\\2", _SPECIAL.sub(r"\\\g<0>", text))
    mark = "**" if isinstance(value, Strong) else "*" if isinstance(value, Emphasis) else ""
    return Markup(f"{mark}{text}{mark}" if text else "")


def _fenced(text: str, language: str) -> Markup:
    fence = "`" * max(3, _longest_run(text) + 1)
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _grid(table: Table) -> Markup:
    # a bar would end the cell, also inside of code
    cells = [
        [
            _escaped(cell).replace("|", r"\|") if isinstance(cell, Code) else _escaped(cell)
            for cell in row
        ]
        for row in (table.columns, *table.rows)
    ]
    return Markup(markdown_table(pd.DataFrame(cells[1:], columns=cells[0]), table.texts))


# --- the table of one run -------------------------------------------------------------------------


def results_table(results: pd.DataFrame, methods: Sequence[str], drawn: Sequence[str] = ()) -> str:
    """A Markdown table of one run's accuracies: tasks down, methods across, with a mean row per pool.

    Args:
        results: a row a task and method, with ``task``, ``group``, ``pool``, ``method``, ``n``, ``chance``,
            ``accuracy``, ``accuracy_low``, ``accuracy_high``.
        methods: the columns, in order.
        drawn: groups whose tasks were drawn from a distribution; they are one row each.
    """
    rows: list[list[str]] = []
    for pool in POOLS:
        of_pool = results[results["pool"] == pool]
        single = of_pool[~of_pool["group"].isin(drawn)]
        groups = [(name, of_pool[of_pool["group"] == name], True) for name in drawn]
        groups += [(str(name), own, False) for name, own in single.groupby("task", sort=False)]
        for name, own, is_drawn in groups:
            if len(own):
                first = own.drop_duplicates("task")
                n, chance = first["n"].iloc[0], first["chance"].mean()
                size = f"{len(first)} x {n}" if is_drawn else f"{n}"
                by_method = dict(list(own.groupby("method")))
                write = _over_drawn if is_drawn else _single
                cells = [write(by_method[m]) if m in by_method else "" for m in methods]
                rows.append([name, pool, size, two_digits(chance), *cells])
        if of_pool["task"].nunique() > 1:
            means = [of_pool[of_pool["method"] == method]["accuracy"].mean() for method in methods]
            chance = of_pool.drop_duplicates("task")["chance"].mean()
            rows.append(["**mean**", pool, "", two_digits(chance), *map(two_digits, means)])
    frame = pd.DataFrame(rows, columns=["task", "pool", "n", "chance", *methods])
    return f"{markdown_table(frame)}\n\n{_LEGEND}{_DRAWN if drawn else ''}\n"


def _single(rows: pd.DataFrame) -> str:
    return with_interval(*rows[["accuracy", "accuracy_low", "accuracy_high"]].iloc[0])


def _over_drawn(rows: pd.DataFrame) -> str:
    """A mean over tasks with Student's 95 % interval."""
    found, mean = rows["accuracy"], rows["accuracy"].mean()
    if len(found) < 2:
        return two_digits(mean)
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.sem())
    return with_interval(mean, max(0.0, mean - half), min(1.0, mean + half))
