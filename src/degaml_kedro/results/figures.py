"""The figures of reports: a comparison, a generator's health, how a policy learned, and what it chose.

All take frames, so that they can be made from what is stored, and give the same JSON for the same numbers. What there
is nothing of is left out, and a note under the figure says so.
"""

from __future__ import annotations

import functools
import html
import math
import re
import textwrap
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px  # type: ignore[import-untyped]
import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from degaml_kedro.config.methods import method_group, names
from degaml_kedro.results.formatting import counted, in_short
from degaml_kedro.results.measures import wilson_interval
from degaml_kedro.results.policy_measures import (
    NOT_VALID,
    TEST_TIME,
    families_of,
    family_measures,
    family_shares,
    iteration_measures,
    iteration_name,
    iterations_of,
    prepared,
)
from degaml_kedro.results.runs import BOUNDS, POOL_TITLES
from degaml_kedro.results.statistics import MEAN, YARDSTICK

# colors of Okabe and Ito; dashes, markers and patterns tell the same where there is no color
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"
AMBER, PINK, SKY, YELLOW = "#E69F00", "#CC79A7", "#56B4E9", "#F0E442"

_TOP, _LINE, _NOTE_WIDTH = 130, 18, 150
_DOTTED = {"color": GRAY, "width": 1.5, "dash": "dot"}


_DRAWING = threading.RLock()


def _one_at_a_time(draw: Callable[..., go.Figure]) -> Callable[..., go.Figure]:
    """The same, of one thread at a time: Plotly's templates are shared, and change while they are read."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> go.Figure:
        with _DRAWING:
            return draw(*args, **kwargs)

    return drawn


def put_together(
    panels: Mapping[str, go.Figure | str],
    heading: Sequence[str],
    notes: Sequence[str] = (),
    *,
    columns: int = 2,
    height: int = 300,
    own_legends: bool = False,
    **more: Any,
) -> go.Figure:
    """Figures side by side in one, with the notes underneath.

    Args:
        panels: by title, which may be HTML: a figure of one pair of axes, or what there is nothing of, for a note.
        heading: the title and, smaller, what it is of.
        notes: plain text.
        columns: at most so many panels in a row.
        height: of a panel, in pixels.
        own_legends: each panel has a legend beside it; otherwise there is one of all.
        more: for ``make_subplots``.
    """
    notes = [*(f"Not shown: {one}." for one in panels.values() if isinstance(one, str)), *notes]
    shown = {title: one for title, one in panels.items() if not isinstance(one, str)}
    lines = [html.escape(line) for note in notes for line in textwrap.wrap(note, _NOTE_WIDTH)]
    rows, gap = max(1, -(-len(shown) // columns)), 120
    inside = rows * height + (rows - 1) * gap
    bottom = 90 + _LINE * len(lines)
    spacing = {
        "vertical_spacing": gap / inside if rows > 1 else 0,
        "horizontal_spacing": 0.22 if own_legends else 0.05,
    }
    figure = make_subplots(rows, columns, subplot_titles=list(shown), **spacing | more)
    in_legend: set[str] = set()
    for index, panel in enumerate(shown.values()):
        place = {"row": index // columns + 1, "col": index % columns + 1}
        area = figure.get_subplot(**place)
        right, (low, high) = area.xaxis.domain[1], area.yaxis.domain
        for trace in panel.data:
            if isinstance(trace, go.Heatmap):
                trace.colorbar.update(x=right + 0.005, y=(low + high) / 2, len=high - low)
            elif own_legends:
                trace.legend = f"legend{index + 2}"
            elif trace.showlegend is not False:
                trace.showlegend = trace.name not in in_legend
                in_legend.add(trace.name)
            _use_lists(trace)
            figure.add_trace(trace, **place)
        if own_legends:
            beside = {"x": right + 0.01, "y": high, "yanchor": "top"}
            figure.update_layout({f"legend{index + 2}": beside})
        for axis, update in (("xaxis", figure.update_xaxes), ("yaxis", figure.update_yaxes)):
            settings = panel.layout[axis].to_plotly_json()
            update({k: v for k, v in settings.items() if k not in ("anchor", "domain")}, **place)
    for spare in range(len(shown), rows * columns):
        place = {"row": spare // columns + 1, "col": spare % columns + 1}
        figure.update_xaxes(visible=False, **place)
        figure.update_yaxes(visible=False, **place)
    figure.update_xaxes(showline=True, linecolor="#888888", ticks="outside", automargin=True)
    figure.update_yaxes(showline=True, linecolor="#888888", automargin=True)
    return lay_out(figure, heading, "<br>".join(lines), _TOP + inside + bottom, bottom)


def _use_lists(trace: Any) -> None:
    """Numbers as JSON has them: Plotly Express keeps arrays, which older programs do not read."""
    for part in (trace, trace["error_x"], trace["error_y"]) if "error_x" in trace else (trace,):
        for name in ("x", "y", "array", "arrayminus", "customdata"):
            if name in part and part[name] is not None:
                values = np.asarray(part[name]).tolist()
                # what is equal is not set
                part[name] = None
                part[name] = values


def lay_out(figure: Any, heading: Sequence[str], note: str, height: int, bottom: int) -> Any:
    """Give a figure its title, look and height, and an HTML note in the ``bottom`` pixels of it."""
    figure.update_layout(
        template="plotly_white",
        title={
            "text": panel_title(html.escape(heading[0]), html.escape(heading[1])),
            "x": 0.01,
            "y": 1 - 30 / height,
            "yanchor": "top",
        },
        meta=heading[0],
        height=height,
        margin={"t": _TOP, "b": bottom, "l": 90, "r": 90},
        font={"size": 13, "color": "#222222"},
        hovermode="closest",
    )
    if note:
        place = {"xref": "paper", "yref": "paper", "x": 0, "y": 0, "yshift": -60}
        look = {"align": "left", "showarrow": False, "font": {"size": 12}}
        figure.add_annotation(text=note, xanchor="left", yanchor="top", **place, **look)
    return figure


def panel_title(text: str, reading: str = "") -> str:
    """A panel's title with, smaller, how it is read; both HTML."""
    small = f'<br><span style="font-size:11px">{reading}</span>' if reading else ""
    return f"<b>{text}</b>{small}"


def draw_reference(x: Sequence[Any], y: Sequence[Any], **more: Any) -> Any:
    """A dotted line to read others against."""
    line = _DOTTED | more.pop("line", {})
    return go.Scatter(
        x=x, y=y, mode="lines", line=line, hoverinfo="skip", **{"showlegend": False} | more
    )


def with_errors(
    frame: pd.DataFrame, value: str, low: str, high: str, scale: float = 1
) -> pd.DataFrame:
    """A frame with what error bars are drawn from: ``shown``, and how far its interval goes, ``above`` and ``below``.

    ``value``, ``low`` and ``high`` are columns; all is multiplied by ``scale``.
    """
    shown, above, below = frame[value], frame[high] - frame[value], frame[value] - frame[low]
    return frame.assign(shown=scale * shown, above=scale * above, below=scale * below)


def figure_page(figure: go.Figure) -> str:
    """A figure as a page that a browser opens from disk: the drawing program is in it, nothing is fetched."""
    page: str = figure.to_html(
        include_plotlyjs=True, full_html=True, div_id="figure", config={"displaylogo": False}
    )
    title = html.escape(str(figure.layout.meta or "Figure"))
    return page.replace("<head>", f'<head><meta charset="utf-8" /><title>{title}</title>', 1)


# --- comparisons ----------------------------------------------------------------------------------

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


@_one_at_a_time
def comparison_figure(comparison: pd.DataFrame, pool: str = "meta_test") -> go.Figure:
    """Every method's accuracy on every task of a pool, with 95 % intervals.

    A panel a task and one of the mean, a method a line. What is missing is said to be missing.
    """
    own, title = _of_pool(comparison, pool), "Accuracy by method"
    if own.empty:
        return put_together({}, [title, "nothing to show: no results"], columns=1)
    own = with_errors(own, "accuracy", "low", "high", 100).assign(
        kind=own["method"].map(method_group), method=own["method"].map(html.escape)
    )
    methods = list(dict.fromkeys(own["method"]))
    panels = {
        panel_title(html.escape(str(task)), f"n = {rows['n'].max():.0f}"): _dots(rows, methods)
        for task, rows in own[own["task"] != MEAN].groupby("task", sort=False)
    }
    if len(panels) > 1:
        # the mean of one task is that task
        panels[panel_title("mean of the tasks")] = _dots(own[own["task"] == MEAN], methods)
    figure = put_together(
        panels,
        [title, f"{POOL_TITLES.get(pool, pool)}; bars: 95 % intervals; dotted: chance"],
        columns=min(_COLUMNS, len(panels)),
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


@_one_at_a_time
def accuracy_compute_figure(comparison: pd.DataFrame, pool: str = "meta_test") -> go.Figure:
    """Mean accuracy over what it took: tokens and seconds to adapt, tokens before that, seconds an answer.

    Four panels with logarithmic axes, on which 0 has a place of its own at the left. A line joins the methods that
    answer with the language model and that no other of them equals at less cost (the Pareto frontier). A method whose
    accuracy or cost is missing is named under the figure.
    """
    means, title = _of_pool(comparison, pool), "Accuracy against compute"
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


@_one_at_a_time
def reliability_figure(bins: pd.DataFrame, pool: str = "meta_test") -> go.Figure:
    """How often a method is right when it is so sure, a panel a method, from ``Findings.bins``.

    Accuracy with its 95 % Wilson interval over mean confidence; the larger the marker, the more answers. Dotted: as
    often right as sure.
    """
    own, title = _of_pool(bins, pool), "Reliability"
    methods = list(dict.fromkeys(own["method"])) if len(own) else []
    known = dict(list(own[own["n"] > 0].groupby("method"))) if methods else {}
    looks, panels, notes = _looks(methods), dict[str, Any](), list[str]()
    for method in methods:
        if method not in known:
            notes.append(f"Not shown: {method} (its answers have no likelihood).")
            continue
        part = known[method]
        ece = part["ece"].iloc[0]
        error = "" if pd.isna(ece) else f"ECE {ece:.3f}, "
        heading = panel_title(html.escape(method), f"{error}n = {part['n'].sum():.0f}")
        panels[heading] = _reliability(part, method, looks[method], float(own["n"].max()))
    if not panels:
        nothing = [title, "nothing to show: no answers with a likelihood"]
        return put_together({}, nothing, notes, columns=1)
    reading = (
        f"{POOL_TITLES.get(pool, pool)}; all answers of all seeds; bars: 95 % intervals; larger markers: more "
        f"answers; dotted: as often right as sure"
    )
    columns = min(_COLUMNS, len(panels))
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
    markers = {kind: cycle(symbols) for kind, (_, symbols) in _KINDS.items()}
    kinds = {method: method_group(method) for method in methods}
    return {method: (_KINDS[kind][0], next(markers[kind])) for method, kind in kinds.items()}


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


# --- a generator's health -------------------------------------------------------------------------

_CHECK_NUMBERS = ("step", "layer", "relative_error", "norm_ratio", "accuracy", "questions")
_SUM = "loss (weighted sum)"
_LOSS_COLORS = {"mse": BLUE, "sft": ORANGE, _SUM: GREEN}
_LOSS_DASHES = {"mse": "solid", "sft": "dash", _SUM: "dot"}
_MOST_POINTS = 1000
_MOST_WRITTEN_LAYERS = 12
_MAPS = {
    "relative_error": (
        "Relative error by module and layer",
        "‖made − last checkpoint‖ / ‖last checkpoint‖, normalized; making the mean adapter scores 1",
    ),
    "norm_ratio": (
        "Norm ratio by module and layer",
        "‖made‖ / ‖last checkpoint‖, normalized; 1: as large as the checkpoint",
    ),
}


@_one_at_a_time
def generator_figure(steps: pd.DataFrame, checks: pd.DataFrame, title: str) -> go.Figure:
    """Loss, learning rate, error and norm ratio by module and layer, and error and accuracy by task over steps.

    Args:
        steps: one row a training step, with ``step``, ``loss``, ``mse``, ``sft`` (NaN where it is not an objective) and
            ``learning_rate``.
        checks: one row a health check, task, layer, module and matrix, as
            :class:`~degaml_kedro.generator.health.HealthCheck` describes it; ``module`` is ``all`` for whole adapters.
    """
    steps = steps.reindex(columns=["step", "loss", "mse", "sft", "learning_rate"]).astype("float64")
    columns = [*_CHECK_NUMBERS, "task", "held_out", "module", "matrix"]
    # a column that nothing was measured of holds None only, and has no number type
    checks = checks.reindex(columns=columns).fillna({"held_out": False})
    checks = checks.astype({**dict.fromkeys(_CHECK_NUMBERS, "float64"), "held_out": "bool"})
    whole, parts = checks[checks["module"] == "all"], checks[checks["module"] != "all"]
    notes: list[str] = []
    if len(steps) and steps["mse"].isna().all() and not parts.empty:
        notes.append(
            "This generator learned from answers alone (sft). It does not aim at the checkpoints, so errors and norm "
            "ratios far from theirs are no fault."
        )
    panels = dict(
        [
            _loss(steps),
            _learning_rate(steps),
            *(_map(parts, column, notes) for column in _MAPS),
            _error(whole, notes),
            _accuracy(whole),
        ]
    )
    return put_together(panels, [title, _extent(steps, whole)], notes, own_legends=True)


def _extent(steps: pd.DataFrame, whole: pd.DataFrame) -> str:
    """How many steps, and the tasks that were checked."""
    tasks = whole.drop_duplicates("task")
    held_out = tasks[tasks["held_out"]]["task"].tolist()
    parts = [f"{len(steps)} steps"]
    if len(tasks):
        parts.append(f"{counted(len(tasks) - len(held_out), 'task')} seen")
        named = f": {', '.join(held_out)}" if held_out else ""
        parts.append(f"{len(held_out)} held out{named}")
        parts.append(f"last check at step {whole['step'].max():.0f}")
    return textwrap.shorten("; ".join(parts), 160, placeholder=" …")


def _loss(steps: pd.DataFrame) -> tuple[str, Any]:
    found = [name for name in ("mse", "sft") if steps[name].notna().any()]
    if steps["loss"].notna().sum() == 0:
        return "Loss", "the loss (no step was recorded)"
    # with one objective the loss is that objective
    curves = found if len(found) == 1 else [*found, _SUM]
    # means of equally many steps each where there are too many to draw
    each = -(-len(steps) // _MOST_POINTS)
    thin = steps.rename(columns={"loss": _SUM}).groupby(np.arange(len(steps)) // each).mean()
    window = max(1, len(thin) // 20)
    values = thin[curves].to_numpy()
    values = values[np.isfinite(values)]
    panel = go.Figure()
    for width, opacity in (*([(1, 0.25)] if window > 1 else []), (window, 1)):
        smooth = thin[curves].rolling(width, min_periods=1).mean().assign(step=thin["step"])
        lines = px.line(
            smooth.melt("step", var_name="curve", value_name="loss"),
            x="step",
            y="loss",
            color="curve",
            line_dash="curve",
            color_discrete_map=_LOSS_COLORS,
            line_dash_map=_LOSS_DASHES,
            markers=len(thin) == 1,
            log_y=values.min() > 0 and values.max() > 10 * values.min(),
        )
        lines.update_traces(opacity=opacity, showlegend=width == window)
        panel = lines.add_traces(panel.data)
    # faint lines behind the others
    panel.data = panel.data[::-1]
    reading = "mse: squared error of normalized tokens; sft: nats an answer token"
    if window > 1:
        reading += f"; dark: mean of {window * each} steps"
    return panel_title("Loss", reading), panel


def _learning_rate(steps: pd.DataFrame) -> tuple[str, Any]:
    known = steps.dropna(subset="learning_rate")
    if known.empty:
        return "Learning rate", "the learning rate (none was recorded)"
    panel = px.line(known.iloc[:: -(-len(known) // _MOST_POINTS)], x="step", y="learning_rate")
    panel.update_yaxes(rangemode="tozero", exponentformat="e", title="learning rate")
    return panel_title("Learning rate", "warm-up, then cosine"), panel


def _map(parts: pd.DataFrame, column: str, notes: list[str]) -> tuple[str, Any]:
    title, reading = _MAPS[column]
    if parts.empty:
        return title, f"{title.lower()} (no check with checkpoints to compare with)"
    last = parts[parts["step"] == parts["step"].max()]
    own, kind = last[~last["held_out"]], "seen"
    if own.empty:
        own, kind = last, "held out"
    finite = own[np.isfinite(own[column])]
    if finite.empty:
        why = "no value is finite: the checkpoints' weights are all at their mean"
        return title, f"{title.lower()} ({why})"
    if len(finite) < len(own):
        notes.append(
            f"{title}: {len(own) - len(finite)} of {len(own)} values are infinite or missing and left out; the "
            f"checkpoint's weights are all at their mean there."
        )
    rows = own[["module", "matrix"]].drop_duplicates()
    means = finite.pivot_table(column, ["module", "matrix"], "layer").reindex(
        index=pd.MultiIndex.from_frame(rows), columns=sorted(own["layer"].unique())
    )
    # one odd matrix must not take the color from all others
    high, highest = means.stack().quantile(0.98), means.max(axis=None)
    top = max(1.0, high if highest > 2 * high else highest)
    ticks = np.linspace(0, top, 5)
    labels = [f"{tick:.2g}" for tick in ticks]
    if highest > top:
        labels[-1] = f"≥ {labels[-1]}"
    ends = rows["module"].str.rsplit(".").str[-1]
    # the whole path where two modules end alike
    alike = ends.nunique() < rows["module"].nunique()
    names = rows["module"] if alike else ends
    heat = go.Heatmap(
        z=means.to_numpy().tolist(),
        x=["none" if layer < 0 else f"{layer:.0f}" for layer in means],
        y=(names + " " + rows["matrix"]).tolist(),
        zmin=0,
        zmax=top,
        # its lightness rises all the way, so that it is read in gray as well
        colorscale="Cividis",
        colorbar={"tickvals": ticks.tolist(), "ticktext": labels, "thickness": 12},
        texttemplate="%{z:.2f}" if means.shape[1] <= _MOST_WRITTEN_LAYERS else None,
    )
    panel = go.Figure(heat).update_xaxes(type="category", title="layer")
    panel.update_yaxes(type="category", autorange="reversed", dtick=1)
    tasks, step = counted(own["task"].nunique(), "task"), f"{own['step'].iloc[0]:.0f}"
    return panel_title(title, f"{reading}<br>mean of {tasks} ({kind}), step {step}"), panel


def _error(whole: pd.DataFrame, notes: list[str]) -> tuple[str, Any]:
    title = "Error of whole adapters by task"
    known = whole[np.isfinite(whole["relative_error"])]
    if known.empty:
        return title, "error by task (no check with checkpoints to compare with)"
    if len(known) < len(whole):
        notes.append(
            f"Error by task: {len(whole) - len(known)} of {len(whole)} values are infinite or missing and left out."
        )
    means = known.groupby(["held_out", "step"])["relative_error"].mean().reset_index()
    panel = _over_steps(known, means.assign(shown=means["relative_error"]), "relative_error")
    ends = known["step"].min(), known["step"].max()
    panel.add_trace(draw_reference(ends, (1, 1), name="mean adapter"))
    panel.update_yaxes(rangemode="tozero", title="relative error")
    reading = "thick: mean over tasks; thin: each task; dotted: making the mean adapter"
    return panel_title(title, reading), panel


def _accuracy(whole: pd.DataFrame) -> tuple[str, Any]:
    title = "Accuracy of generated adapters"
    known = whole[whole["accuracy"].notna() & (whole["questions"] > 0)]
    if known.empty:
        what = "no questions were asked; training.check_every asks them"
        return title, f"accuracy of generated adapters ({what})"
    asked = known.assign(right=known["accuracy"] * known["questions"])
    sums = asked.groupby(["held_out", "step"])[["right", "questions"]].sum().reset_index()
    right = sums["right"].round()
    ends = [wilson_interval(int(r), int(n)) for r, n in zip(right, sums["questions"], strict=True)]
    sums = sums.assign(accuracy=right / sums["questions"])
    sums[["low", "high"]] = ends
    panel = _over_steps(known, with_errors(sums, "accuracy", "low", "high"), "accuracy")
    panel.update_yaxes(range=[-0.03, 1.03], title="accuracy")
    counts = sorted({int(count) for count in known["questions"]})
    text = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    reading = (
        f"{text} validation questions a task; thick: all tasks' questions, with 95 % intervals"
    )
    return panel_title(title, reading), panel


def _over_steps(known: pd.DataFrame, together: pd.DataFrame, column: str) -> Any:
    """A thick line of all tasks together, seen and held out, and a thin one a task where there are several."""
    counts = known.groupby("held_out")["task"].nunique()
    names = {
        kind: f"{counted(count, 'task')} {'held out' if kind else 'seen'}"
        for kind, count in counts.items()
    }
    looks = {False: BLUE, True: ORANGE}
    colors = {name: looks[bool(kind)] for kind, name in names.items()}
    panel = px.line(
        together.assign(name=together["held_out"].map(names)),
        x="step",
        y="shown",
        error_y="above" if "above" in together else None,
        error_y_minus="below" if "below" in together else None,
        color="name",
        line_dash="name",
        symbol="name",
        markers=True,
        color_discrete_map=colors,
    )
    panel.update_traces(line_width=3, marker_size=9)
    several = known[known["held_out"].map(counts) > 1]
    several = several.assign(task=several["task"].map(html.escape))
    of_task = several.set_index("task")["held_out"].map(looks).to_dict()
    thin = px.line(
        several, x="step", y=column, color="task", markers=True, color_discrete_map=of_task
    )
    thin.update_traces(line_width=1, marker_size=4, opacity=0.35, showlegend=False)
    return panel.add_traces(thin.data)


# --- the policy, and what it chose ----------------------------------------------------------------

UNREFINED = "unrefined"

_SOURCE_COLORS = {"policy": BLUE, "uniform": ORANGE}
_ENTROPIES = {"family_entropy": "families", "action_entropy": "actions"}
# more colors of Okabe and Ito; patterns tell the same where there is no color
_FAMILY_COLORS = (BLUE, AMBER, GREEN, PINK, SKY, ORANGE, YELLOW)
_PATTERNS = ("", "/", ".", "x", "\\", "-", "|")
_STAR = "★"
# light enough throughout for dark text
_SHARES = [[0, "#F1F4F6"], [1, SKY]]
_NO_ROLLOUTS = "no rollouts were recorded"
_MOST_TICKS = 12
_CELL_HEIGHT = 62


@_one_at_a_time
def policy_figure(rollouts: pd.DataFrame, title: str) -> go.Figure:
    """Reward rate with its 95 % interval, entropy of families and actions, and families' shares over iterations.

    Test time stands behind the last iteration, apart from the curves.

    Raises:
        ResultsError: columns of the rollouts are missing, see :mod:`~degaml_kedro.results.policy_measures`.
    """
    frame = prepared(rollouts)
    heading = [title, _counts(frame)]
    if frame.empty:
        none = ("the reward rate", "the entropy of choices", "the share of each family")
        panels: dict[str, Any] = {what: f"{what} ({_NO_ROLLOUTS})" for what in none}
        return put_together(panels, heading, own_legends=True)
    measures, shares = iteration_measures(frame), family_shares(frame)
    training = [i for i in iterations_of(frame) if i != TEST_TIME]
    # test time behind the last one
    at = {**{i: i for i in training}, TEST_TIME: max(training, default=0) + 1}
    for own in (measures, shares):
        own["x"] = own["iteration"].map(at)
        own["tested"] = own["iteration"] == TEST_TIME
    panels = dict(
        [
            _reward_rates(measures),
            _entropies(measures, len(families_of(frame))),
            _family_bars(shares),
        ]
    )
    methods = list(dict.fromkeys(frame["method"]))
    notes = [f"Counted together: {', '.join(map(str, methods))}."] if len(methods) > 1 else []
    shown = training[:: max(1, -(-len(training) // _MOST_TICKS))]
    shown += [TEST_TIME] if measures["tested"].any() else []
    figure = put_together(panels, heading, notes, own_legends=True)
    figure.update_xaxes(
        title="iteration",
        tickvals=[at[i] for i in shown],
        ticktext=[iteration_name(i) for i in shown],
        range=[measures["x"].min() - 0.5, measures["x"].max() + 0.5],
    )
    return figure.update_layout(barmode="stack", bargap=0.15)


@_one_at_a_time
def strategy_map(rollouts: pd.DataFrame, title: str) -> go.Figure:
    """Which family was proposed for which task, what it gained, and which was executed (the paper's F.4).

    A heat map, tasks down and families across: the color is a family's share of the task's proposals. A column of its
    own marks tasks of which nothing was executed at test time. With several methods, each has its own rows.

    Raises:
        ResultsError: columns of the rollouts are missing, see :mod:`~degaml_kedro.results.policy_measures`.
    """
    frame = prepared(rollouts)
    heading = [title, _counts(frame)]
    if frame["method"].nunique() > 1:
        frame["task"] = [f"{t} ({m})" for t, m in zip(frame["task"], frame["method"], strict=True)]
    names = families_of(frame)
    tasks = [str(task) for task in dict.fromkeys(frame["task"])]
    cells = family_measures(frame).set_index(["task", "family"]).to_dict("index")
    tested = frame[frame["iteration"] == TEST_TIME].groupby("task")["executed"].any()
    shares, texts, counts = [], [], []
    for task in tasks:
        row = [cells.get((task, name)) for name in names]
        shares.append([cell["share"] if cell else 0.0 for cell in row])
        texts.append([_cell(cell) for cell in row])
        counts.append([f"{cell['n'] if cell else 0} proposals" for cell in row])
        # in training nothing is executed, and nothing is missing
        if len(tested):
            unrefined = not tested.get(task, True)
            shares[-1].append(0.0)
            texts[-1].append(f"<b>{_STAR}</b>" if unrefined else "")
            counts[-1].append("nothing was executed" if unrefined else "something was executed")
    # names may be anybody's, and Plotly reads tags in them
    columns = [*map(html.escape, names), *([UNREFINED] if len(tested) else [])]
    figure = go.Figure()
    if columns:
        figure.add_trace(
            go.Heatmap(
                z=shares,
                x=columns,
                y=[html.escape(task) for task in tasks],
                text=texts,
                texttemplate="%{text}",
                textfont={"size": 11, "color": "#222222"},
                customdata=counts,
                hovertemplate="%{y}, %{x}<br>%{customdata}<br>%{text}<extra></extra>",
                zmin=0,
                zmax=1,
                xgap=2,
                ygap=2,
                colorscale=_SHARES,
                colorbar={"title": {"text": "share"}, "tickformat": ".0%", "thickness": 12},
            )
        )
    note = (
        f"{'' if names else 'No proposal was valid.<br>'}In a cell: share of the task's proposals; share of these that "
        f"were rewarded; mean gain in accuracy on D_val, in points.<br>{_STAR} was executed"
    )
    if len(tested):
        note += (
            f"; {_STAR} under '{UNREFINED}': nothing was, and the generated adapter is the answer"
        )
    axis = {"type": "category", "dtick": 1, "ticks": "", "showgrid": False, "visible": bool(tasks)}
    figure.update_xaxes(side="top", automargin=True, **axis)
    figure.update_yaxes(autorange="reversed", automargin=True, **axis)
    note = f"{note}." if tasks else f"Not shown: {_NO_ROLLOUTS}."
    return lay_out(figure, heading, note, 220 + max(1, len(tasks)) * _CELL_HEIGHT, 90)


def _counts(frame: pd.DataFrame) -> str:
    training = [i for i in frame["iteration"].unique() if i != TEST_TIME]
    parts = [f"{len(frame)} rollouts", counted(frame["task"].nunique(), "task")]
    if training:
        parts.append(counted(len(training), "iteration"))
    if (frame["iteration"] == TEST_TIME).any():
        parts.append("test time")
    return "; ".join(parts)


def _reward_rates(measures: pd.DataFrame) -> tuple[str, Any]:
    rates = with_errors(measures, "reward_rate", "reward_rate_low", "reward_rate_high")
    panel = _curves(
        rates[rates["source"] != "all"],
        "source",
        error_y="above",
        error_y_minus="below",
        custom_data=["n"],
        color_discrete_map=_SOURCE_COLORS,
    )
    panel.update_yaxes(title="reward rate", range=[-0.03, 1.03])
    reading = "share of proposals with a reward above 0, with 95 % intervals"
    return panel_title("Reward rate", reading), panel


def _entropies(measures: pd.DataFrame, families: int) -> tuple[str, Any]:
    title = "Entropy of what was chosen"
    known = measures[measures["source"] != "all"].melt(
        ["x", "tested", "source"], list(_ENTROPIES), "of", "shown"
    )
    if known["shown"].isna().all():
        return title, "the entropy of choices (no proposal was valid)"
    known["name"] = known["source"] + ", " + known["of"].map(_ENTROPIES)
    colors = {name: _SOURCE_COLORS[name.split(",")[0]] for name in known["name"].unique()}
    panel = _curves(known, "name", color_discrete_map=colors)
    alike = ""
    if families > 1:
        ends = known["x"].min() - 0.5, known["x"].max() + 0.5
        panel.add_trace(draw_reference(ends, [math.log(families)] * 2, name="alike"))
        alike = f"dotted: {families} families in equal shares; "
    panel.update_yaxes(title="nats", rangemode="tozero")
    reading = f"families and whole actions; {alike}a small n makes it small"
    return panel_title(title, reading), panel


def _family_bars(shares: pd.DataFrame) -> tuple[str, Any]:
    by_policy = (shares["source"] == "policy").any()
    own = shares[shares["source"] == ("policy" if by_policy else "all")]
    own = own.assign(family=own["family"].map(html.escape))
    names = list(dict.fromkeys(own["family"]))
    panel = px.bar(
        own,
        x="x",
        y="share",
        color="family",
        pattern_shape="family",
        custom_data=["n"],
        color_discrete_map=dict(zip(names, cycle(_FAMILY_COLORS), strict=False))
        | {NOT_VALID: GRAY},
        pattern_shape_map=dict(zip(names, cycle(_PATTERNS), strict=False)) | {NOT_VALID: ""},
    )
    panel.update_yaxes(range=[0, 1])
    title = "Families the policy chose" if by_policy else "Families of the uniform draws"
    among = "the policy's own proposals" if by_policy else "all proposals"
    return panel_title(title, f"share of each among {among}"), panel


def _curves(rows: pd.DataFrame, name: str, **more: Any) -> Any:
    """A curve a name over iterations; no line joins training and test time."""
    looks = dict.fromkeys(("color", "line_dash", "symbol"), name)
    panel = px.line(rows, x="x", y="shown", line_group="tested", markers=True, **looks, **more)
    panel.update_traces(line_width=2.5, marker_size=8)
    return panel


def _cell(measured: Mapping[Any, Any] | None) -> str:
    if measured is None:
        return ""
    count = measured["executed"]
    star = f"{_STAR}{f' ×{count}' if count > 1 else ''} " if count else ""
    share = f"{star}{measured['share']:.0%}"
    gain = measured["accuracy_gain"]
    lines = [
        f"<b>{share}</b>" if count else share,
        f"{measured['reward_rate']:.0%} rewarded",
        "no score" if math.isnan(gain) else f"{100 * gain:+.1f} points",
    ]
    return "<br>".join(lines)
