"""The figures of a comparison: accuracy by task, accuracy against compute, and reliability.

All take frames, so that they can be made from what is stored, and give the same JSON for the same numbers.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from degaml_kedro.results.panels import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    TOP,
    lay_out,
    small,
    wrapped,
    write_below,
)
from degaml_kedro.results.report.findings import MEAN, YARDSTICK
from degaml_kedro.results.report.glossary import POOLS, kind
from degaml_kedro.results.runs import BOUNDS

# color and markers by kind of method: the first marker where kinds are told apart, one a method where methods are
_KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "DeGAML": (BLUE, ("diamond",)),
    "parts of DeGAML and controls": (GREEN, ("triangle-up", "triangle-left", "star", "hexagram")),
    "the paper's baselines": (
        ORANGE,
        ("square", "cross", "x", "pentagon", "square-open", "diamond-tall", "cross-open"),
    ),
    "other baselines": (SKY, ("star-square", "hourglass", "bowtie")),
    "without training on the task": (GRAY, ("circle", "circle-open", "circle-dot", "hexagon")),
    "bound, no result": (PINK, ("diamond-open", "star-open")),
}
_COLUMNS = 4
_ROW, _GAP, _BELOW = 25, 84, 66
# column of the comparison: what it is, and its unit
_COSTS = {
    "adaptation_tokens": ("adaptation tokens for a task", "tokens"),
    "meta_training_tokens": ("meta-training tokens", "tokens"),
    "adaptation_seconds": ("adaptation seconds for a task", "seconds"),
    "answer_seconds": ("seconds an answer", "seconds"),
}
# what answers without the language model is drawn, and no frontier is drawn through it
_NO_LANGUAGE_MODEL = ("sentence_head",)
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def comparison_figure(
    comparison: pd.DataFrame, pool: str = "meta_test", title: str = "Accuracy by method"
) -> go.Figure:
    """Draw every method's accuracy on every task of a pool, with 95 % intervals.

    Args:
        comparison: one row a pool, task and method, as ``Findings.comparison`` has them; the mean over tasks is the
            task ``mean``.
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
        title: of the figure.

    Returns:
        A panel a task and one of the mean, a method a line. What is missing is said to be missing.
    """
    own = _of_pool(comparison, pool)
    if own.empty:
        return _nothing(title, "no results")
    tasks = [task for task in dict.fromkeys(own["task"]) if task != MEAN]
    # the mean of one task is that task
    panels = [*tasks, MEAN] if len(tasks) > 1 else tasks
    methods = list(dict.fromkeys(own["method"]))
    names = {method: html.escape(method) for method in methods}
    rows = -(-len(panels) // _COLUMNS)
    columns = min(_COLUMNS, len(panels))
    inner = _ROW * max(4, len(methods))
    inside = rows * inner + (rows - 1) * _GAP
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes=True,
        subplot_titles=[_panel_title(task, own) for task in panels],
        horizontal_spacing=0.03,
        vertical_spacing=_GAP / inside if rows > 1 else 0,
    )
    shown: set[str] = set()
    for index, task in enumerate(panels):
        row, column = index // columns + 1, index % columns + 1
        of_task = own[own["task"] == task]
        for trace in _dots(of_task, methods, names):
            trace.showlegend = trace.name not in shown
            shown.add(trace.name)
            figure.add_trace(trace, row=row, col=column)
        _mark_missing(figure, of_task, methods, names, row, column)
        chance = of_task["chance"].dropna()
        if len(chance):
            figure.add_vline(
                x=100 * float(chance.iloc[0]),
                row=row,
                col=column,
                line={"color": GRAY, "width": 1.5, "dash": "dot"},
            )
    for spare in range(len(panels), rows * columns):
        row, column = spare // columns + 1, spare % columns + 1
        figure.update_xaxes(visible=False, row=row, col=column)
        figure.update_yaxes(visible=False, row=row, col=column)
    reading = f"{POOLS.get(pool, pool)}; bars: 95 % intervals; dotted: chance"
    lay_out(figure, [title, reading], TOP + inside + _BELOW + 40, _BELOW + 40)
    figure.update_xaxes(
        ticksuffix=" %", showline=True, linecolor="#888888", ticks="outside", nticks=5
    )
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=[names[method] for method in reversed(methods)],
        range=[-0.6, len(methods) - 0.4],
        showline=True,
        linecolor="#888888",
        automargin=True,
    )
    figure.update_layout(
        legend={
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "x": 0,
            "traceorder": "normal",
        },
        hovermode="closest",
    )
    return figure


def accuracy_compute_figure(
    comparison: pd.DataFrame,
    pool: str = "meta_test",
    title: str = "Accuracy against compute",
) -> go.Figure:
    """Draw mean accuracy over what it took: tokens and seconds to adapt, tokens before that, seconds an answer.

    Args:
        comparison: as :func:`comparison_figure` takes it, with the columns ``adaptation_tokens``,
            ``meta_training_tokens`` (forward and backward), ``adaptation_seconds`` and ``answer_seconds`` in the mean
            rows.
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
        title: of the figure.

    Returns:
        Four panels with logarithmic axes, on which 0 has a place of its own at the left. A line joins the methods that
        answer with the language model and that no other of them equals at less cost (the Pareto frontier). A method
        whose accuracy or cost is missing is named under the figure.
    """
    own = _of_pool(comparison, pool)
    means = own[own["task"] == MEAN] if len(own) else own
    notes: list[str] = []
    points: list[tuple[str, dict[str, float]]] = []
    looks = _looks(list(means["method"]) if len(means) else [])
    for row in means.to_dict("records"):
        method = str(row["method"])
        known = {column: float(row[column]) for column in _COSTS if not pd.isna(row[column])}
        if pd.isna(row["accuracy"]):
            notes.append(f"Not shown: {method} (no accuracy on all tasks).")
            continue
        without = [name for column, (name, _) in _COSTS.items() if column not in known]
        if without:
            notes.append(f"Not shown: {' and '.join(without)} of {method} (not counted).")
        points.append(
            (method, {**known, **{k: float(row[k]) for k in ("accuracy", "low", "high")}})
        )
    if not points:
        return _nothing(title, "no method has an accuracy on all tasks", notes)
    inner, gap = 330, 110
    inside = 2 * inner + gap
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_yaxes=True,
        subplot_titles=[f"<b>{name.capitalize()}</b>" for name, _ in _COSTS.values()],
        horizontal_spacing=0.05,
        vertical_spacing=gap / inside,
    )
    named: set[str] = set()
    for number, (cost, (_, unit)) in enumerate(_COSTS.items()):
        panel = {"row": number // 2 + 1, "col": number % 2 + 1}
        there = [(method, values) for method, values in points if cost in values]
        zero, axis = _log_axis([values[cost] for _, values in there])
        line = _frontier([(m, v[cost], v["accuracy"]) for m, v in there])
        figure.add_trace(
            go.Scatter(
                x=[spent or zero for spent, _ in line],
                y=[100 * accuracy for _, accuracy in line],
                mode="lines",
                line={"color": GRAY, "width": 1.5, "dash": "dot", "shape": "hv"},
                name="frontier",
                legendgroup="frontier",
                showlegend=number == 0,
                hoverinfo="skip",
            ),
            **panel,
        )
        for method, values in there:
            color, symbol = looks[method]
            spent = values[cost]
            amount = in_short(spent) if unit == "tokens" else f"{spent:.3g}"
            figure.add_trace(
                go.Scatter(
                    x=[spent or zero],
                    y=[100 * values["accuracy"]],
                    error_y=_error_bar([values]),
                    name=html.escape(method),
                    legendgroup=method,
                    showlegend=method not in named,
                    mode="markers",
                    marker={
                        "color": color,
                        "symbol": symbol,
                        "size": 12,
                        "line": {"width": 2, "color": color},
                    },
                    hovertemplate=f"{amount} {unit}: %{{y:.1f}} %",
                ),
                **panel,
            )
            named.add(method)
        text = "tokens, forward and backward" if unit == "tokens" else unit
        figure.update_xaxes(title_text=text, **panel, **axis)
    lines = wrapped(notes)
    below = 70 + 18 * (len(lines) + 1)
    reading = (
        f"{POOLS.get(pool, pool)}; mean over tasks and seeds; bars: 95 % intervals; dotted: no method that answers "
        f"with the language model is better at less"
    )
    lay_out(figure, [title, reading], TOP + inside + below, below)
    figure.update_xaxes(showline=True, linecolor="#888888", ticks="outside")
    figure.update_yaxes(showline=True, linecolor="#888888", ticksuffix=" %")
    figure.update_yaxes(title_text="accuracy", col=1)
    figure.update_layout(hovermode="closest", legend={"title": {"text": "method"}})
    if lines:
        write_below(figure, "<br>".join(lines), 60)
    return figure


def _frontier(points: Sequence[tuple[str, float, float]]) -> list[tuple[float, float]]:
    """(cost, accuracy) of the methods of which none is better at the same cost or less, by cost.

    Args:
        points: (method, cost, accuracy).
    """
    able = [
        (cost, accuracy)
        for method, cost, accuracy in points
        if method not in (*BOUNDS, *_NO_LANGUAGE_MODEL, YARDSTICK)
    ]
    line: list[tuple[float, float]] = []
    for cost, accuracy in sorted(able, key=lambda point: (point[0], -point[1])):
        if not line or accuracy > line[-1][1]:
            line.append((cost, accuracy))
    return line


def reliability_figure(
    bins: pd.DataFrame, pool: str = "meta_test", title: str = "Reliability"
) -> go.Figure:
    """Draw how often a method is right when it is so sure, a panel a method.

    Args:
        bins: one row a pool, method and bin of confidence, as ``Findings.bins`` has them.
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
        title: of the figure.

    Returns:
        Accuracy with its 95 % Wilson interval over mean confidence; the larger the marker, the more answers. Dotted:
        as often right as sure.
    """
    own = _of_pool(bins, pool)
    methods = list(dict.fromkeys(own["method"])) if len(own) else []
    filled = {method: own[(own["method"] == method) & (own["n"] > 0)] for method in methods}
    notes = [
        f"Not shown: {method} (its answers have no likelihood)."
        for method in methods
        if filled[method].empty
    ]
    shown = [method for method in methods if len(filled[method])]
    if not shown:
        return _nothing(title, "no answers with a likelihood", notes)
    looks = _looks(methods)
    rows = -(-len(shown) // _COLUMNS)
    columns = min(_COLUMNS, len(shown))
    inner, gap = 210, 72
    inside = rows * inner + (rows - 1) * gap
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_xaxes=True,
        shared_yaxes=True,
        subplot_titles=[_calibration_title(method, filled[method]) for method in shown],
        horizontal_spacing=0.03,
        vertical_spacing=gap / inside if rows > 1 else 0,
    )
    most = max(float(part["n"].max()) for part in filled.values() if len(part))
    for index, method in enumerate(shown):
        row, column = index // columns + 1, index % columns + 1
        part = filled[method]
        color, _ = looks[method]
        figure.add_trace(
            go.Scatter(
                x=[0, 1],
                y=[0, 1],
                mode="lines",
                line={"color": GRAY, "width": 1.5, "dash": "dot"},
                hoverinfo="skip",
                showlegend=False,
            ),
            row=row,
            col=column,
        )
        figure.add_trace(
            go.Scatter(
                x=part["confidence"].tolist(),
                y=part["accuracy"].tolist(),
                error_y=_bar_of(part, "accuracy_low", "accuracy_high", 1),
                mode="lines+markers",
                name=html.escape(method),
                showlegend=False,
                line={"color": color, "width": 2},
                marker={
                    "color": color,
                    # area tells the number of answers
                    "size": [5 + 9 * math.sqrt(n / most) for n in part["n"]],
                    "symbol": looks[method][1].removesuffix("-open"),
                },
                customdata=part["n"].tolist(),
                hovertemplate="confidence %{x:.2f}: right %{y:.2f} (n = %{customdata})",
            ),
            row=row,
            col=column,
        )
    for spare in range(len(shown), rows * columns):
        row, column = spare // columns + 1, spare % columns + 1
        figure.update_xaxes(visible=False, row=row, col=column)
        figure.update_yaxes(visible=False, row=row, col=column)
    lines = wrapped(notes)
    below = 60 + 18 * (len(lines) + 1)
    reading = (
        f"{POOLS.get(pool, pool)}; all answers of all seeds; bars: 95 % intervals; larger markers: more answers; "
        f"dotted: as often right as sure"
    )
    lay_out(figure, [title, reading], TOP + inside + below, below)
    look = {"range": [-0.03, 1.03], "dtick": 0.25, "showline": True, "linecolor": "#888888"}
    figure.update_xaxes(**look)
    figure.update_yaxes(**look)
    for index in range(len(shown)):
        if index + columns >= len(shown):
            # the lowest panel of its column, also above an empty place
            figure.update_xaxes(
                title_text="confidence",
                showticklabels=True,
                row=index // columns + 1,
                col=index % columns + 1,
            )
    figure.update_yaxes(title_text="accuracy", col=1)
    if lines:
        write_below(figure, "<br>".join(lines), 50)
    return figure


def in_short(value: float) -> str:
    """``1.23 M``: a count with three digits."""
    for size, prefix in _PREFIXES:
        # 999.6 would be written as 1000
        if value >= size * 0.9995:
            scaled = value / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f} {prefix}"
    return f"{value:.0f}" if value >= 1 else f"{value:.3g}"


def _of_pool(frame: pd.DataFrame, pool: str) -> pd.DataFrame:
    return frame[frame["pool"] == pool] if len(frame) else frame


def _looks(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Color and marker of each method, no marker twice among a kind's."""
    taken: dict[str, int] = {}
    looks = {}
    for method in methods:
        of_kind = kind(method, BOUNDS)
        color, symbols = _KINDS[of_kind]
        number = taken.get(of_kind, 0)
        taken[of_kind] = number + 1
        looks[method] = (color, symbols[number % len(symbols)])
    return looks


def _dots(of_task: pd.DataFrame, methods: Sequence[str], names: Mapping[str, str]) -> list[Any]:
    known = of_task[of_task["accuracy"].notna()]
    traces = []
    for name, (color, symbols) in _KINDS.items():
        own = [method for method in methods if kind(method, BOUNDS) == name]
        part = known[known["method"].isin(own)]
        if part.empty:
            continue
        traces.append(
            go.Scatter(
                x=(100 * part["accuracy"]).tolist(),
                y=[names[method] for method in part["method"]],
                error_x=_bar_of(part, "low", "high", 100),
                mode="markers",
                name=name,
                legendgroup=name,
                marker={
                    "color": color,
                    "symbol": symbols[0],
                    "size": 10,
                    "line": {"width": 2, "color": color},
                },
                hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
            )
        )
    return traces


def _mark_missing(
    figure: Any,
    of_task: pd.DataFrame,
    methods: Sequence[str],
    names: Mapping[str, str],
    row: int,
    column: int,
) -> None:
    there = set(of_task.loc[of_task["accuracy"].notna(), "method"])
    area = figure.get_subplot(row, column)
    across, down = (axis.plotly_name.replace("axis", "") for axis in (area.xaxis, area.yaxis))
    for method in methods:
        if method not in there:
            figure.add_annotation(
                text="missing",
                xref=f"{across} domain",
                yref=down,
                x=0.03,
                y=names[method],
                xanchor="left",
                showarrow=False,
                font={"size": 11, "color": GRAY},
            )


def _panel_title(task: str, own: pd.DataFrame) -> str:
    text = html.escape(task)
    if task == MEAN:
        return f"<b>{text} of the tasks</b>"
    most = own.loc[own["task"] == task, "n"].max()
    return f"<b>{text}</b><br>{small(f'n = {most:.0f}')}"


def _calibration_title(method: str, part: pd.DataFrame) -> str:
    ece = part["ece"].iloc[0]
    error = "" if pd.isna(ece) else f"ECE {ece:.3f}, "
    count = part["n"].sum()
    return f"<b>{html.escape(method)}</b><br>{small(f'{error}n = {count:.0f}')}"


def _bar_of(part: pd.DataFrame, low: str, high: str, scale: float) -> dict[str, Any]:
    rows = part.rename(columns={low: "low", high: "high"})[["accuracy", "low", "high"]]
    values = [
        {str(key): float(value) for key, value in row.items()} for row in rows.to_dict("records")
    ]
    return _error_bar(values, scale)


def _error_bar(values: Sequence[Mapping[str, float]], scale: float = 100) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * (value["high"] - value["accuracy"]) for value in values],
        "arrayminus": [scale * (value["accuracy"] - value["low"]) for value in values],
        "thickness": 1.5,
        "width": 3,
    }


def _log_axis(values: Sequence[float]) -> tuple[float, dict[str, Any]]:
    """Where 0 stands on a logarithmic axis, and the axis."""
    positive = [value for value in values if value > 0]
    first = math.floor(math.log10(min(positive))) if positive else 0
    last = math.ceil(math.log10(max(positive)) + 1e-9) if positive else 1
    last = max(last, first + 1)
    ticks = [10.0**power for power in range(first, last + 1)]
    labels = [re.sub(r"\.0+(?=\D|$)", "", in_short(tick)) for tick in ticks]
    zero = 10.0 ** (first - 1)
    if any(value <= 0 for value in values):
        ticks, labels = [zero, *ticks], ["0", *labels]
    ends = np.log10([ticks[0], ticks[-1]])
    return zero, {
        "type": "log",
        "tickvals": ticks,
        "ticktext": labels,
        "range": [float(ends[0]) - 0.25, float(ends[1]) + 0.1],
    }


def _nothing(title: str, why: str, notes: Sequence[str] = ()) -> go.Figure:
    figure = go.Figure()
    lay_out(figure, [title, f"nothing to show: {why}"], TOP + 60, 40)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    lines = wrapped(notes)
    if lines:
        write_below(figure, "<br>".join(lines), 0)
        figure.update_layout(height=TOP + 60 + 18 * len(lines))
    return figure
