"""The report of finished runs: its tables and figures, which ``report.md.j2`` puts into words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from degaml_kedro.parameters import BASELINES
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
from degaml_kedro.results.glossary import PAPER_ROWS, POOL_TITLES, SHORT, WORDS
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

# seeds that a claim wants
_SEEDS_FOR_A_CLAIM = 3
_MOST_HEALTH_FIGURES = 6
_NOT_RECORDED = "not recorded"
_OUTCOMES = {
    True: "The aim is met",
    False: "The aim is not met",
    None: "Whether the aim is met is open",
}
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
_WITHIN = {True: "within", False: "beyond", None: "not known to be within"}


def write(findings: Findings) -> tuple[str, str]:
    """Write the report of runs.

    Args:
        findings: the statistics of runs.

    Returns:
        An HTML page that holds all it needs, and Markdown with the same numbers. Names and texts of the runs are
        escaped in both.
    """
    values = context(findings)
    text = render_markdown(values)
    return render_html(text, values["figures"]), text


def context(findings: Findings) -> dict[str, Any]:
    """What the report's template fills in.

    Args:
        findings: the statistics of runs.
    """
    runs = findings.runs
    frame = findings.comparison()
    pool = "meta_test" if "meta_test" in findings.pools else next(iter(findings.pools), "")
    profile = runs.runs[0].profile
    seeds = [str(run.seed) for run in runs.runs]
    figures: dict[str, Any] = {}
    return {
        "title": "DeGAML and the methods it is compared with",
        "subtitle": f"Profile {profile}, {counted(len(seeds), 'seed')}, {counted(len(runs.methods), 'method')}",
        "findings": findings,
        "runs": runs.runs,
        "profile": profile,
        "seeds": seeds,
        "method": METHOD,
        **_summary(findings),
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
        "glossary_words": WORDS,
        "source": paper_results()["source"],
        "paper_tables": _paper_tables(),
        # those that the parts above have put there, in the order of reading
        "figures": figures,
    }


# --- summary --------------------------------------------------------------------------------------


def _summary(findings: Findings) -> dict[str, Any]:
    verdict = findings.verdict
    results = findings.runs.results()
    models = results["model"].dropna().map(str) if "model" in results else ()
    return {
        "verdict": verdict,
        "outcome": "" if verdict is None else _OUTCOMES[verdict.met],
        "within": "" if verdict is None else _WITHIN[verdict.budget.within],
        "missing": "" if verdict is None else _gathered(verdict.missing),
        "aim": f"{100 * AIM:.0f}",
        "models": list(dict.fromkeys(models)) or [_NOT_RECORDED],
        "seeds_for_a_claim": _SEEDS_FOR_A_CLAIM,
        "pools": [
            {
                "title": POOL_TITLES[pool],
                "size": _size(findings, pool),
                "best": findings.winners.get((pool, None)),
                "yardsticks": [name for name in yardsticks(pool) if name in findings.runs.methods],
            }
            for pool in findings.pools
        ],
    }


def _gathered(missing: Sequence[str]) -> str:
    """``abmll: rhymes`` and ``abmll: months`` as ``abmll (rhymes, months)``."""
    places: dict[str, list[str]] = {}
    for item in missing:
        method, place = item.split(": ", 1)
        places.setdefault(method, []).append(place)
    return "; ".join(f"{method} ({', '.join(own)})" for method, own in places.items())


def _size(findings: Findings, pool: str) -> str:
    drawn = findings.pools[pool].distributions
    text = counted(len(findings.tasks(pool)), "distribution" if drawn else "task")
    if drawn:
        text += f" ({counted(sum(map(len, drawn.values())), 'task')} a seed)"
    sizes = sorted({row.n for row in findings.rows[pool] if row.task and row.n})
    if sizes:
        text += f", n = {sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''} each"
    return text


# --- accuracy by method and task ------------------------------------------------------------------


def _pool_view(
    findings: Findings, frame: pd.DataFrame, pool: str, figures: dict[str, Any]
) -> dict[str, Any]:
    """A pool in the layouts of the paper's Tables 1 and 2, with intervals and contrasts."""
    key = pool.replace("_", "-")
    there = pool in findings.pools
    rows = findings.rows[pool] if there else []
    view = {"name": pool, "key": key, "title": POOL_TITLES[pool], "there": there, "tables": []}
    if all(row.accuracy is None and row.partial is None for row in rows):
        return view
    figures[f"accuracy-{key}"] = comparison_figure(frame, pool)
    return {
        **view,
        "tables": [_accuracies(findings, pool), _intervals(findings, pool)],
        "bold": any(of == pool for of, _ in findings.winners),
        "yardsticks": [name for name in yardsticks(pool) if name in findings.runs.methods],
        "contrasts": [
            {
                "table": _contrast_table(findings, contrasts, distribution or SHORT[pool]),
                "family": contrasts[0].family,
            }
            for (of, distribution), contrasts in findings.contrasts.items()
            if of == pool and contrasts
        ],
    }


def _paper_rows(pool: str) -> list[str]:
    return [name for name in PAPER_ROWS if pool != "meta_test" or name != YARDSTICK]


def _grouped(
    findings: Findings,
    pool: str,
    shown: Callable[[str, str | None], Cell],
    last: Callable[[str], Sequence[Cell]],
) -> list[tuple[Cell, ...]]:
    """A row a method: the paper's, which stay where they have no results; ours; and bounds, each below a title.

    Args:
        findings: the statistics.
        pool: whose tasks are the columns, with their mean.
        shown: the cell of a method and task.
        last: what else stands in a method's row.
    """
    paper, tasks = _paper_rows(pool), (*findings.tasks(pool), None)
    others = [name for name in findings.runs.methods if name not in paper]
    groups = {
        "methods of the paper": paper,
        "added here": [name for name in others if name not in BOUNDS],
        "bound, no result": [name for name in others if name in BOUNDS],
    }
    rows: list[tuple[Cell, ...]] = []
    for title, names in groups.items():
        own = [(name, *(shown(name, task) for task in tasks), *last(name)) for name in names]
        if own:
            rows += [(Emphasis(title), *[""] * (len(own[0]) - 1)), *own]
    return rows


def _accuracies(findings: Findings, pool: str) -> Table:
    cells = findings.cells(pool)

    def shown(method: str, task: str | None) -> Cell:
        row = cells.get((method, task))
        if row is None or row.accuracy is None:
            return None
        text = percent(row.accuracy)
        if row.delta is not None and method != "base":
            text += f" ({points(row.delta)})"
        return Strong(text) if findings.winners.get((pool, task)) == method else text

    return Table(
        f"Accuracy by method and task, {SHORT[pool]} (in the layout of the paper's Tables 1 and 2)",
        ("method", *findings.tasks(pool), AVERAGE),
        _grouped(findings, pool, shown, lambda _: ()),
        _gaps(findings, pool),
    )


def _gaps(findings: Findings, pool: str) -> list[str]:
    """What is missing, in sentences."""
    asked = findings.runs.methods
    means = {row.method: row for row in findings.rows[pool] if row.task is None}
    absent = [name for name in _paper_rows(pool) if name not in asked]
    notes = []
    if absent:
        notes.append(f"Not among this configuration's methods: {listed(absent)}.")
    notes += [
        f"{method}: {percent(mean.partial)} over the {mean.tasks} of {len(findings.tasks(pool))} tasks that are there, "
        f"not to be compared with a mean over all."
        for method, mean in means.items()
        if mean.partial is not None
    ]
    empty = [method for method, mean in means.items() if mean.tasks == 0]
    if empty:
        notes.append(f"No results here: {listed(empty)}.")
    most = len(findings.runs.runs)
    return notes + [
        f"{method}: {mean.seeds} of {counted(most, 'seed')} with all its tasks."
        for method, mean in means.items()
        if mean.tasks and mean.seeds < most
    ]


def _intervals(findings: Findings, pool: str) -> Table:
    tasks = findings.tasks(pool)
    cells = findings.cells(pool)
    most = {
        task: max((row.n for row in findings.rows[pool] if row.task == task), default=0)
        for task in (*tasks, None)
    }

    def shown(method: str, task: str | None) -> Cell:
        row = cells.get((method, task))
        if row is None or row.low is None or row.high is None:
            return None
        fewer = f" (n = {row.n})" if row.n != most[task] else ""
        return f"{interval(row.low, row.high)}{fewer}"

    def spread(method: str) -> Sequence[Cell]:
        mean = cells.get((method, None))
        return [None if mean is None or mean.spread is None else f"{100 * mean.spread:.1f}"]

    # the number stays in one line
    columns = [f"{task or AVERAGE} (n\u00a0=\u00a0{most[task]})" for task in (*tasks, None)]
    return Table(
        f"95 % intervals of accuracy, {SHORT[pool]}",
        ("method", *columns, "SD over seeds"),
        _grouped(findings, pool, shown, spread),
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
    columns = ("difference", "95 % interval", "simultaneous 95 % interval", "p", "p, Holm")
    return Table(
        f"{METHOD} against every method, {where}",
        ("against", *columns, "strata", "pairs"),
        rows,
        notes,
    )


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
    table = means[["ece", "nll"]].join(curves[curves["n"] > 0], rsuffix="_of_all")
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
    for key, name, draw, title in (
        ("strategies", "strategies", strategy_map, "Strategies by task"),
        ("policy", "policy_rollouts", policy_figure, "Policy"),
    ):
        rows = runs.table(name)
        if len(rows):
            figures[key] = draw(rows, title)
    trained = []
    for run in runs.runs:
        steps, health = (
            run.tables.get(f"generator_{name}", pd.DataFrame()) for name in ("steps", "health")
        )
        variants = [frame.get("variant", [""]) for frame in (steps, health) if len(frame)]
        for variant in dict.fromkeys(str(name) for names in variants for name in names):
            title = f"Generator {variant}".strip() + f", {run.name}"
            trained.append((run, title, _of(variant, steps), _of(variant, health)))
    shown = trained
    if len(trained) > _MOST_HEALTH_FIGURES:
        shown = [one for one in trained if one[0] is trained[0][0]]
    for number, (_, title, steps, health) in enumerate(shown, start=1):
        figures[f"generator-{number}"] = generator_figure(steps, health, title)
    return {
        "generators": [title for _, title, _, _ in shown],
        "not_shown": [run.name for run in runs.runs[1:]] if len(shown) < len(trained) else [],
    }


def _of(variant: str, frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["variant"].map(str) == variant] if "variant" in frame else frame


# --- settings -------------------------------------------------------------------------------------


def _settings(findings: Findings) -> dict[str, Any]:
    """Which settings each method tried, and which it got; None where no search was recorded."""
    tried = findings.runs.table("settings")
    if tried.empty:
        return {"settings": None}
    # seeds that share a search tell the same
    seeds: dict[tuple[str, str, bool, tuple[tuple[str, float], ...]], list[str]] = {}
    for (method, seed, _), rows in tried.groupby(["method", "seed", "number"], sort=False):
        known = rows.dropna(subset=["task", "accuracy"])
        accuracies = tuple(zip(known["task"].map(str), known["accuracy"].map(float), strict=True))
        setting = rows["setting"].iloc[0] if "setting" in rows else rows["number"].iloc[0]
        if isinstance(setting, Mapping):
            setting = ", ".join(f"{key} {value}" for key, value in setting.items())
        search = (str(method), str(setting), bool(rows["chosen"].iloc[0]), accuracies)
        seeds.setdefault(search, []).append(str(seed))
    tasks = list(dict.fromkeys(task for *_, own in seeds for task, _ in own))
    order = list(dict.fromkeys(method for method, *_ in seeds))
    shown: list[Sequence[Cell]] = []
    for search in sorted(seeds, key=lambda one: order.index(one[0])):
        method, setting, chosen, accuracies = search
        found = {task: percent(accuracy) for task, accuracy in accuracies}
        mark = Strong("chosen") if chosen else ""
        own = (method, Code(setting), mark, ", ".join(seeds[search]))
        shown.append((*own, *(found.get(task) for task in tasks)))
    counts = sorted({str(int(n)) for n in tried["n"].dropna()}) if "n" in tried else []
    table = Table(
        "Settings that were tried, and those that were chosen",
        ("method", "setting", "choice", "seeds", *tasks),
        shown,
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
