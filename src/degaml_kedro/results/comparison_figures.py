"""The figures of a comparison: accuracy by task, accuracy against compute, and reliability.

All take frames, so that they can be made from what is stored, and give the same JSON for the same numbers: the
comparison is that of ``Findings.comparison``, in which the mean over a pool's tasks is the task ``mean``.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px  # type: ignore[import-untyped]
import plotly.graph_objects as go  # type: ignore[import-untyped]

from degaml_kedro.config.methods import method_group, names
from degaml_kedro.results.figures import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    draw_reference,
    panel_title,
    put_together,
    with_errors,
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
    """Every method's accuracy on every task of a pool, with 95 % intervals.

    A panel a task and one of the mean, a method a line. What is missing is said to be missing.
    """
    own = _of_pool(comparison, pool)
    if own.empty:
        return put_together({}, [title, "nothing to show: no results"], columns=1)
    own = with_errors(own, "accuracy", "low", "high", 100).assign(
        kind=own["method"].map(method_group), method=own["method"].map(html.escape)
    )
    methods = list(dict.fromkeys(own["method"]))
    by_task = {str(task): rows for task, rows in own.groupby("task", sort=False) if task != MEAN}
    if len(by_task) > 1:
        # the mean of one task is that task
        by_task[MEAN] = own[own["task"] == MEAN]
    figure = put_together(
        {_task_title(task, rows): _dots(rows, methods) for task, rows in by_task.items()},
        [title, f"{POOL_TITLES.get(pool, pool)}; bars: 95 % intervals; dotted: chance"],
        columns=min(_COLUMNS, len(by_task)),
        height=25 * max(4, len(methods)),
        shared_yaxes=True,
    )
    return figure.update_xaxes(ticksuffix=" %", nticks=5, range=[-2, 102])


def _dots(rows: pd.DataFrame, methods: Sequence[str]) -> Any:
    """A task's accuracies, a method a line."""
    known = rows.dropna(subset="accuracy")
    panel = px.scatter(
        known,
        x="shown",
        y="method",
        error_x="above",
        error_x_minus="below",
        color="kind",
        symbol="kind",
        color_discrete_map={kind: color for kind, (color, _) in _KINDS.items()},
        symbol_map={kind: symbols[0] for kind, (_, symbols) in _KINDS.items()},
        category_orders={"kind": list(_KINDS)},
    )
    panel.update_traces(marker_size=10, hovertemplate="%{y}: %{x:.1f} %")
    missing = [method for method in methods if method not in set(known["method"])]
    if missing:
        words = {"text": ["missing"] * len(missing), "textposition": "middle right"}
        panel.add_trace(
            go.Scatter(x=[0] * len(missing), y=missing, mode="text", showlegend=False, **words)
        )
    chance = rows["chance"].dropna()
    if len(chance):
        panel.add_trace(
            draw_reference([100 * float(chance.iloc[0])] * 2, [methods[0], methods[-1]])
        )
    panel.update_xaxes(title=None)
    return panel.update_yaxes(
        type="category", categoryorder="array", categoryarray=methods[::-1], title=None
    )


def accuracy_compute_figure(
    comparison: pd.DataFrame,
    pool: str = "meta_test",
    title: str = "Accuracy against compute",
) -> go.Figure:
    """Mean accuracy over what it took: tokens and seconds to adapt, tokens before that, seconds an answer.

    Four panels with logarithmic axes, on which 0 has a place of its own at the left. A line joins the methods that
    answer with the language model and that no other of them equals at less cost (the Pareto frontier). A method whose
    accuracy or cost is missing is named under the figure.
    """
    means = _of_pool(comparison, pool)
    means = means[means["task"] == MEAN] if len(means) else means
    notes: list[str] = []
    for row in means.to_dict("records"):
        without = [name for column, (name, _) in _COSTS.items() if pd.isna(row[column])]
        if pd.isna(row["accuracy"]):
            notes.append(f"Not shown: {row['method']} (no accuracy on all tasks).")
        elif without:
            notes.append(f"Not shown: {' and '.join(without)} of {row['method']} (not counted).")
    known = means[means["accuracy"].notna()] if len(means) else means
    if known.empty:
        heading = [title, "nothing to show: no method has an accuracy on all tasks"]
        return put_together({}, heading, notes, columns=1)
    known = with_errors(known, "accuracy", "low", "high", 100)
    looks = _looks(means["method"])
    reading = (
        f"{POOL_TITLES.get(pool, pool)}; mean over tasks and seeds; bars: 95 % intervals; dotted: no method that "
        f"answers with the language model is better at less"
    )
    panels = {
        panel_title(name.capitalize()): _costs(known[known[cost].notna()], cost, unit, looks)
        for cost, (name, unit) in _COSTS.items()
    }
    figure = put_together(panels, [title, reading], notes, height=330, shared_yaxes=True)
    return figure.update_yaxes(ticksuffix=" %")


def _costs(known: pd.DataFrame, cost: str, unit: str, looks: Mapping[str, tuple[str, str]]) -> Any:
    """Accuracies over one of the costs, and the frontier."""
    zero, axis = _log_axis(known[cost].tolist())
    amounts = [in_short(spent) if unit == "tokens" else f"{spent:.3g}" for spent in known[cost]]
    panel = px.scatter(
        known.assign(
            spent=known[cost].replace(0, zero),
            amount=amounts,
            name=known["method"].map(html.escape),
        ),
        x="spent",
        y="shown",
        error_y="above",
        error_y_minus="below",
        color="name",
        symbol="name",
        color_discrete_map={html.escape(name): color for name, (color, _) in looks.items()},
        symbol_map={html.escape(name): symbol for name, (_, symbol) in looks.items()},
        custom_data=["amount"],
    )
    panel.update_traces(marker_size=12, hovertemplate=f"%{{customdata[0]}} {unit}: %{{y:.1f}} %")
    frontier = _frontier(known, cost)
    line = draw_reference(
        frontier[cost].replace(0, zero).tolist(),
        (100 * frontier["accuracy"]).tolist(),
        line={"shape": "hv"},
        name="frontier",
        showlegend=True,
    )
    panel.add_trace(line)
    text = "tokens, forward and backward" if unit == "tokens" else unit
    panel.update_xaxes(title=text, **axis)
    return panel.update_yaxes(title="accuracy" if cost in list(_COSTS)[::2] else None)


def reliability_figure(
    bins: pd.DataFrame, pool: str = "meta_test", title: str = "Reliability"
) -> go.Figure:
    """How often a method is right when it is so sure, a panel a method, from ``Findings.bins``.

    Accuracy with its 95 % Wilson interval over mean confidence; the larger the marker, the more answers. Dotted: as
    often right as sure.
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
        heading = [title, "nothing to show: no answers with a likelihood"]
        return put_together({}, heading, notes, columns=1)
    most = max(float(part["n"].max()) for part in shown.values())
    looks = _looks(methods)
    panels = {}
    for method, part in shown.items():
        ece = part["ece"].iloc[0]
        error = "" if pd.isna(ece) else f"ECE {ece:.3f}, "
        reading = f"{error}n = {part['n'].sum():.0f}"
        panel = _reliability(part, method, looks[method], most)
        panels[panel_title(html.escape(method), reading)] = panel
    reading = (
        f"{POOL_TITLES.get(pool, pool)}; all answers of all seeds; bars: 95 % intervals; larger markers: more "
        f"answers; dotted: as often right as sure"
    )
    columns = min(_COLUMNS, len(shown))
    return put_together(
        panels, [title, reading], notes, columns=columns, height=210, shared_yaxes=True
    )


def _reliability(part: pd.DataFrame, method: str, look: tuple[str, str], most: float) -> Any:
    color, symbol = look
    panel = px.line(
        with_errors(part, "accuracy", "accuracy_low", "accuracy_high"),
        x="confidence",
        y="shown",
        error_y="above",
        error_y_minus="below",
        markers=True,
        custom_data=["n"],
    )
    panel.update_traces(
        name=html.escape(method),
        line_color=color,
        marker_symbol=symbol.removesuffix("-open"),
        # area tells the number of answers
        marker_size=[5 + 9 * math.sqrt(n / most) for n in part["n"]],
    )
    panel.add_trace(draw_reference([0, 1], [0, 1]))
    panel.update_xaxes(range=[-0.03, 1.03], dtick=0.25)
    return panel.update_yaxes(range=[-0.03, 1.03], dtick=0.25, title=None)


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


def _task_title(task: str, rows: pd.DataFrame) -> str:
    if task == MEAN:
        return panel_title("mean of the tasks")
    return panel_title(html.escape(task), f"n = {rows['n'].max():.0f}")


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
