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

from degaml_kedro.methods import method_group, names
from degaml_kedro.results.figures import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    draw_reference,
    error_bar,
    make_grid,
    small,
)
from degaml_kedro.results.formatting import in_short
from degaml_kedro.results.glossary import POOL_TITLES
from degaml_kedro.results.runs import BOUNDS
from degaml_kedro.results.statistics import MEAN, YARDSTICK

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
# column of the comparison: what it is, and its unit
_COSTS = {
    "adaptation_tokens": ("adaptation tokens for a task", "tokens"),
    "meta_training_tokens": ("meta-training tokens", "tokens"),
    "adaptation_seconds": ("adaptation seconds for a task", "seconds"),
    "answer_seconds": ("seconds an answer", "seconds"),
}
# what answers without the language model is drawn, and no frontier is drawn through it
_NO_LANGUAGE_MODEL = names(lambda row: not row.asks_model)


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
    figure, places = make_grid(
        [_panel_title(task, own) for task in panels],
        [title, f"{POOL_TITLES.get(pool, pool)}; bars: 95 % intervals; dotted: chance"],
        columns=min(_COLUMNS, len(panels)),
        height=25 * max(4, len(methods)),
        gap=84,
        below=88,
        shared_yaxes=True,
        horizontal_spacing=0.03,
    )
    shown: set[str] = set()
    for task, place in zip(panels, places, strict=True):
        of_task = own[own["task"] == task]
        for trace in _dots(of_task, names):
            trace.showlegend = trace.name not in shown
            shown.add(trace.name)
            figure.add_trace(trace, **place)
        area = figure.get_subplot(**place)
        across, down = (axis.plotly_name.replace("axis", "") for axis in (area.xaxis, area.yaxis))
        there = set(of_task.loc[of_task["accuracy"].notna(), "method"])
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
        chance = of_task["chance"].dropna()
        if len(chance):
            line = {"color": GRAY, "width": 1.5, "dash": "dot"}
            figure.add_vline(x=100 * float(chance.iloc[0]), line=line, **place)
    figure.update_xaxes(ticksuffix=" %", nticks=5)
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=[names[method] for method in reversed(methods)],
        range=[-0.6, len(methods) - 0.4],
        automargin=True,
    )
    legend = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
    figure.update_layout(legend={**legend, "traceorder": "normal"})
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
    for row in means.to_dict("records"):
        without = [name for column, (name, _) in _COSTS.items() if pd.isna(row[column])]
        if pd.isna(row["accuracy"]):
            notes.append(f"Not shown: {row['method']} (no accuracy on all tasks).")
        elif without:
            notes.append(f"Not shown: {' and '.join(without)} of {row['method']} (not counted).")
    known = means[means["accuracy"].notna()] if len(means) else means
    if known.empty:
        return _nothing(title, "no method has an accuracy on all tasks", notes)
    reading = (
        f"{POOL_TITLES.get(pool, pool)}; mean over tasks and seeds; bars: 95 % intervals; dotted: no method that "
        f"answers with the language model is better at less"
    )
    figure, places = make_grid(
        [f"<b>{name.capitalize()}</b>" for name, _ in _COSTS.values()],
        [title, reading],
        notes,
        columns=2,
        height=330,
        gap=110,
        below=70,
        shared_yaxes=True,
        horizontal_spacing=0.05,
    )
    looks = _looks(means["method"])
    named: set[str] = set()
    for place, (cost, (_, unit)) in zip(places, _COSTS.items(), strict=True):
        there = known[known[cost].notna()]
        zero, axis = _log_axis(there[cost].tolist())
        frontier = _frontier(there, cost)
        line = draw_reference(
            frontier[cost].replace(0, zero).tolist(),
            (100 * frontier["accuracy"]).tolist(),
            line={"shape": "hv"},
            name="frontier",
            legendgroup="frontier",
            showlegend=place == places[0],
        )
        figure.add_trace(line, **place)
        for method, one in there.groupby("method", sort=False):
            color, symbol = looks[str(method)]
            spent = float(one[cost].iloc[0])
            amount = in_short(spent) if unit == "tokens" else f"{spent:.3g}"
            figure.add_trace(
                go.Scatter(
                    x=[spent or zero],
                    y=(100 * one["accuracy"]).tolist(),
                    error_y=error_bar(one, "accuracy", "low", "high", 100),
                    name=html.escape(str(method)),
                    legendgroup=method,
                    showlegend=method not in named,
                    mode="markers",
                    marker=_marker(color, symbol, 12),
                    hovertemplate=f"{amount} {unit}: %{{y:.1f}} %",
                ),
                **place,
            )
            named.add(str(method))
        text = "tokens, forward and backward" if unit == "tokens" else unit
        figure.update_xaxes(title_text=text, **place, **axis)
    figure.update_yaxes(ticksuffix=" %")
    figure.update_yaxes(title_text="accuracy", col=1)
    figure.update_layout(legend={"title": {"text": "method"}})
    return figure


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
        for method, part in filled.items()
        if part.empty
    ]
    shown = {method: part for method, part in filled.items() if len(part)}
    if not shown:
        return _nothing(title, "no answers with a likelihood", notes)
    reading = (
        f"{POOL_TITLES.get(pool, pool)}; all answers of all seeds; bars: 95 % intervals; larger markers: more "
        f"answers; dotted: as often right as sure"
    )
    columns = min(_COLUMNS, len(shown))
    figure, places = make_grid(
        [_calibration_title(method, part) for method, part in shown.items()],
        [title, reading],
        notes,
        columns=columns,
        height=210,
        gap=72,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
    )
    look = {"range": [-0.03, 1.03], "dtick": 0.25}
    figure.update_xaxes(**look)
    figure.update_yaxes(**look)
    figure.update_yaxes(title_text="accuracy", col=1)
    for place in places[-columns:]:
        # the lowest panel of its column, also above an empty place
        figure.update_xaxes(title_text="confidence", showticklabels=True, **place)
    looks = _looks(methods)
    most = max(float(part["n"].max()) for part in shown.values())
    for place, (method, part) in zip(places, shown.items(), strict=True):
        color, symbol = looks[method]
        figure.add_trace(draw_reference([0, 1], [0, 1], showlegend=False), **place)
        figure.add_trace(
            go.Scatter(
                x=part["confidence"].tolist(),
                y=part["accuracy"].tolist(),
                error_y=error_bar(part, "accuracy", "accuracy_low", "accuracy_high"),
                mode="lines+markers",
                name=html.escape(method),
                showlegend=False,
                line={"color": color, "width": 2},
                marker={
                    "color": color,
                    # area tells the number of answers
                    "size": [5 + 9 * math.sqrt(n / most) for n in part["n"]],
                    "symbol": symbol.removesuffix("-open"),
                },
                customdata=part["n"].tolist(),
                hovertemplate="confidence %{x:.2f}: right %{y:.2f} (n = %{customdata})",
            ),
            **place,
        )
    return figure


def _of_pool(frame: pd.DataFrame, pool: str) -> pd.DataFrame:
    return frame[frame["pool"] == pool] if len(frame) else frame


def _looks(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Color and marker of each method, no marker twice among a kind's."""
    taken = dict.fromkeys(_KINDS, 0)
    looks = {}
    for method in methods:
        of_kind = method_group(method)
        color, symbols = _KINDS[of_kind]
        looks[method] = (color, symbols[taken[of_kind] % len(symbols)])
        taken[of_kind] += 1
    return looks


def _marker(color: str, symbol: str, size: int) -> dict[str, Any]:
    line = {"width": 2, "color": color}
    return {"color": color, "symbol": symbol, "size": size, "line": line}


def _dots(of_task: pd.DataFrame, names: Mapping[str, str]) -> list[Any]:
    known = of_task[of_task["accuracy"].notna()]
    kinds = known["method"].map(lambda method: method_group(method))
    traces = []
    for name, (color, symbols) in _KINDS.items():
        part = known[kinds == name]
        if len(part):
            dots = go.Scatter(
                x=(100 * part["accuracy"]).tolist(),
                y=[names[method] for method in part["method"]],
                error_x=error_bar(part, "accuracy", "low", "high", 100),
                mode="markers",
                name=name,
                legendgroup=name,
                marker=_marker(color, symbols[0], 10),
                hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
            )
            traces.append(dots)
    return traces


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


def _frontier(means: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The rows of which none is better at the same cost or less, by cost."""
    able = means[~means["method"].isin([*BOUNDS, *_NO_LANGUAGE_MODEL, YARDSTICK])]
    able = able.sort_values([cost, "accuracy"], ascending=[True, False])
    return able[able["accuracy"] > able["accuracy"].cummax().shift(fill_value=-1)]


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
    figure, _ = make_grid(
        [""], [title, f"nothing to show: {why}"], notes, columns=1, height=60, below=10
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure
