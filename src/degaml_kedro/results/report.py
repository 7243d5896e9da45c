"""The report of finished runs: its tables and figures, which ``report.md.j2`` puts into words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from degaml_kedro.config.schema import BASELINES
from degaml_kedro.results.comparison_figures import (
    accuracy_compute_figure,
    comparison_figure,
    reliability_figure,
)
from degaml_kedro.results.formatting import (
    counted,
    flat,
    in_short,
    interval,
    interval_of_points,
    listed,
    p_value,
    percent,
    points,
    seconds,
)
from degaml_kedro.results.generator_figure import generator_figure
from degaml_kedro.results.glossary import PAPER_ROWS, POOL_TITLES, SHORT
from degaml_kedro.results.paper import (
    AVERAGE,
    BENCHMARKS,
    PROFILES,
    SETTINGS,
    differing_averages,
    paper_results,
    paper_table,
)
from degaml_kedro.results.policy_figure import policy_figure, strategy_map
from degaml_kedro.results.rendering import (
    MISSING_MARK,
    Cell,
    Code,
    Emphasis,
    Strong,
    Table,
    render_html,
    render_markdown,
)
from degaml_kedro.results.runs import BOUNDS, POOLS, Run
from degaml_kedro.results.statistics import (
    AIM,
    MEAN,
    METHOD,
    YARDSTICK,
    Contrast,
    Findings,
    yardsticks,
)

_MOST_HEALTH_FIGURES = 6
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
    frame = findings.comparison()
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
        "method": METHOD,
        "aim": f"{100 * AIM:.0f}",
        "comparison": [
            _pool_view(findings, frame, name, figures)
            for name in POOLS
            if name in findings.pools or name != "left_out"
        ],
        **_beside_paper(findings),
        **_compute(findings, frame, pool, figures),
        "calibration": _calibration(findings, frame, pool, figures),
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


def _pool_view(
    findings: Findings, frame: pd.DataFrame, pool: str, figures: dict[str, Any]
) -> dict[str, Any]:
    """A pool in the layouts of the paper's Tables 1 and 2, with intervals and contrasts."""
    key = pool.replace("_", "-")
    there = pool in findings.pools
    rows = findings.rows[pool] if there else []
    view = {
        "name": pool,
        "key": key,
        "title": POOL_TITLES[pool],
        "there": there,
        "size": _size(findings, pool) if there else "",
        "winner": findings.winners.get((pool, None)),
        "yardsticks": [name for name in yardsticks(pool) if name in findings.runs.methods],
        "tables": [],
    }
    if all(row.accuracy is None and row.partial is None for row in rows):
        return view
    figures[f"accuracy-{key}"] = comparison_figure(frame, pool)
    return {
        **view,
        "tables": [_accuracies(findings, pool), _intervals(findings, pool)],
        "bold": any(of == pool for of, _ in findings.winners),
        "contrasts": [
            {
                "table": _contrast_table(findings, contrasts, distribution or SHORT[pool]),
                "family": contrasts[0].family,
            }
            for (of, distribution), contrasts in findings.contrasts.items()
            if of == pool and contrasts
        ],
    }


def _size(findings: Findings, pool: str) -> str:
    drawn = findings.pools[pool].distributions
    text = counted(len(findings.tasks(pool)), "distribution" if drawn else "task")
    if drawn:
        text += f" ({counted(sum(map(len, drawn.values())), 'task')} a seed)"
    sizes = sorted({row.n for row in findings.rows[pool] if row.task and row.n})
    if sizes:
        text += f", n = {sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''} each"
    return text


def _paper_rows(pool: str) -> list[str]:
    return [name for name in PAPER_ROWS if pool != "meta_test" or name != YARDSTICK]


def _grouped(
    findings: Findings, pool: str, cells: Mapping[tuple[str, str | None], Cell], *last: str
) -> list[Sequence[Cell]]:
    """A row a method: the paper's, which stay where they have no results; ours; and bounds, each below a title.

    The columns are the pool's tasks, their mean (None) and the ``last`` ones.
    """
    columns = (*findings.tasks(pool), None, *last)
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
    cells: dict[tuple[str, str | None], Cell] = {}
    for row in findings.rows[pool]:
        if row.accuracy is not None:
            text = percent(row.accuracy)
            if row.delta is not None and row.method != "base":
                text += f" ({points(row.delta)})"
            won = findings.winners.get((pool, row.task)) == row.method
            cells[row.method, row.task] = Strong(text) if won else text
    return Table(
        f"Accuracy by method and task, {SHORT[pool]} (in the layout of the paper's Tables 1 and 2)",
        ("method", *findings.tasks(pool), AVERAGE),
        _grouped(findings, pool, cells),
        _gaps(findings, pool),
    )


def _gaps(findings: Findings, pool: str) -> list[str]:
    """What is missing, in sentences."""
    means = [row for row in findings.rows[pool] if row.task is None]
    absent = [name for name in _paper_rows(pool) if name not in findings.runs.methods]
    empty = [mean.method for mean in means if mean.tasks == 0]
    most = len(findings.runs.runs)
    notes = [f"Not among this configuration's methods: {listed(absent)}."] if absent else []
    notes += [
        f"{mean.method}: {percent(mean.partial)} over the {mean.tasks} of {len(findings.tasks(pool))} tasks that are "
        f"there, not to be compared with a mean over all."
        for mean in means
        if mean.partial is not None
    ]
    notes += [f"No results here: {listed(empty)}."] if empty else []
    return notes + [
        f"{mean.method}: {mean.seeds} of {counted(most, 'seed')} with all its tasks."
        for mean in means
        if mean.tasks and mean.seeds < most
    ]


def _intervals(findings: Findings, pool: str) -> Table:
    spread, most = "SD over seeds", dict[str | None, int]()
    for row in findings.rows[pool]:
        most[row.task] = max(row.n, most.get(row.task, 0))
    cells: dict[tuple[str, str | None], Cell] = {}
    for row in findings.rows[pool]:
        if row.low is not None and row.high is not None:
            fewer = f" (n = {row.n})" if row.n != most[row.task] else ""
            cells[row.method, row.task] = f"{interval(row.low, row.high)}{fewer}"
        if row.task is None and row.spread is not None:
            cells[row.method, spread] = f"{100 * row.spread:.1f}"
    # the number stays in one line
    columns = [f"{task or AVERAGE} (n\u00a0=\u00a0{n})" for task, n in most.items()]
    return Table(
        f"95 % intervals of accuracy, {SHORT[pool]}",
        ("method", *columns, spread),
        _grouped(findings, pool, cells, spread),
    )


def _contrast_table(findings: Findings, contrasts: Sequence[Contrast], where: str) -> Table:
    rows: list[Sequence[Cell]] = [
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
    there = {METHOD, *BOUNDS, *(one.other for one in contrasts)}
    rows += [(name, *[None] * 7) for name in findings.runs.methods if name not in there]
    notes = [
        f"{one.other}, left out: {'; '.join(one.missing)}." for one in contrasts if one.missing
    ]
    intervals = ("95 % interval", "simultaneous 95 % interval")
    columns = ("against", "difference", *intervals, "p", "p, Holm", "strata", "pairs")
    return Table(f"{METHOD} against every method, {where}", columns, rows, notes)


# --- costs and calibration ------------------------------------------------------------------------


def _compute(
    findings: Findings, frame: pd.DataFrame, pool: str, figures: dict[str, Any]
) -> dict[str, Any]:
    """Accuracy against what it cost; None where nothing was counted."""
    if findings.runs.compute().empty or pool not in findings.costs:
        return {"compute": None}
    means = frame[(frame["pool"] == pool) & (frame["task"] == MEAN)]
    rows = [
        (
            _named(row["method"]),
            _cell(row["accuracy"], percent),
            *(_cell(row[name], seconds if "seconds" in name else in_short) for name in _COSTS),
        )
        for row in means.to_dict("records")
    ]
    table = Table(
        f"Accuracy and what it took, {SHORT[pool]}",
        ("method", f"accuracy, {AVERAGE}", *_COSTS.values()),
        rows,
        missing="not counted (of tokens maybe only the sum), or no accuracy on all tasks",
    )
    figures["accuracy-compute"] = accuracy_compute_figure(frame, pool)
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
    won = []
    for task in findings.tasks(pool):
        found = {
            row.method: row.accuracy
            for row in findings.rows[pool]
            if row.task == task and row.accuracy is not None
        }
        own = found.pop("sentence_head", None)
        others = [found[method] for method in found if method not in (*BOUNDS, YARDSTICK)]
        if own is not None and others and own > max(others):
            won.append(task)
    return f"on {listed(won)}" if won else "nowhere"


def _calibration(
    findings: Findings, frame: pd.DataFrame, pool: str, figures: dict[str, Any]
) -> Table | None:
    """ECE and likelihood; None where no answer has a likelihood."""
    bins = findings.bins[findings.bins["pool"] == pool] if len(findings.bins) else findings.bins
    if bins.empty or not bins["n"].any():
        return None
    curves = bins.groupby("method").agg({"n": "sum", "ece": "first", "left_out": "first"})
    means = frame[(frame["pool"] == pool) & (frame["task"] == MEAN)].set_index("method")
    whole = curves[curves["n"] > 0].rename(columns={"ece": "ece_of_all"})
    table = means[["ece", "nll"]].join(whole)
    rows = [
        (
            _named(str(row["method"])),
            *(_cell(row[name], "{:.3f}".format) for name in ("ece_of_all", "ece", "nll")),
            *(_cell(row[name], "{:.0f}".format) for name in ("n", "left_out")),
        )
        for row in table.reset_index().to_dict("records")
    ]
    figures["reliability"] = reliability_figure(findings.bins, pool)
    return Table(
        f"Calibration, {SHORT[pool]}",
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
        for variant in _generators(run):
            titles.append(f"{f'Generator {variant}'.strip()}, {run.name}")
            steps, health = (
                _of(variant, run.tables.get(f"generator_{name}", pd.DataFrame()))
                for name in ("steps", "health")
            )
            figures[f"generator-{len(titles)}"] = generator_figure(steps, health, titles[-1])
    names = [run.name for run in shown]
    not_shown = [run.name for run in runs.runs if run.name not in names]
    return {"generators": titles, "not_shown": not_shown}


def _generators(run: Run) -> list[str]:
    tables = (run.tables.get(f"generator_{name}", pd.DataFrame()) for name in ("steps", "health"))
    return list(dict.fromkeys(str(name) for own in tables for name in own.get("variant", ())))


def _of(variant: str, frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["variant"].map(str) == variant] if len(frame) else frame


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
    pipelines = dict.fromkeys(BASELINES, "baselines")
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
    return {"paper_model": model, "beside_paper": tables}


def _side_by_side(findings: Findings, pool: str, printed: pd.DataFrame) -> Table:
    tasks = [task for task in findings.tasks(pool) if BENCHMARKS.get(task) in printed]
    columns: dict[str | None, str] = {task: BENCHMARKS[task] for task in tasks} | {None: AVERAGE}
    cells = findings.cells(pool)
    rows = []
    values: dict[Any, dict[Any, float]] = printed.to_dict("index")
    for method in map(str, printed.index):
        row = [method]
        for task, column in columns.items():
            own = cells.get((method, task))
            ours = None if own is None else own.accuracy
            theirs = values[method][column]
            row.append(f"{MISSING_MARK if ours is None else percent(ours)} / {theirs:.1f}")
        rows.append(row)
    notes = [f"Ours / the paper's. {MISSING_MARK}: we have no result."]
    if set(tasks) != set(findings.tasks(pool)) or len(columns) != len(printed.columns):
        notes.append(f"Not all of the paper's tasks ran: {AVERAGE} is over other tasks in ours.")
    return Table(f"Ours / the paper's, {SHORT[pool]}", ("method", *columns.values()), rows, notes)


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
