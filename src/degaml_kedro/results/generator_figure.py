"""A generator's health as one picture: how it learned, where in the adapter it errs, and what its adapters answer."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go  # type: ignore[import-untyped]

from degaml_kedro.results.figures import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    Panel,
    draw_line,
    error_bar,
    put_together,
)
from degaml_kedro.results.formatting import counted
from degaml_kedro.results.measures import wilson_interval

STEP_COLUMNS = ("step", "loss", "mse", "sft", "learning_rate")
CHECK_COLUMNS = (
    "step",
    "task",
    "held_out",
    "layer",
    "module",
    "matrix",
    "relative_error",
    "norm_ratio",
    "accuracy",
    "questions",
)

_STYLES = {
    False: {"name": "seen", "color": BLUE, "dash": "solid", "symbol": "circle"},
    True: {"name": "held out", "color": ORANGE, "dash": "dash", "symbol": "square"},
}
_OBJECTIVES = {"mse": (BLUE, "solid"), "sft": (ORANGE, "dash")}
# its lightness rises all the way, so that it is read in gray as well
_SCALE = "Cividis"
_WHOLE = "all"
_MOST_POINTS = 1000
_MOST_WRITTEN_LAYERS = 12


def generator_figure(steps: pd.DataFrame, checks: pd.DataFrame, title: str = "") -> go.Figure:
    """Draw a generator's training and health.

    What there is nothing of is left out, and a note under the picture says so.

    Args:
        steps: one row a training step, with ``step``, ``loss``, ``mse``, ``sft`` (NaN where it is not an objective) and
            ``learning_rate``.
        checks: one row a health check, task, layer, module and matrix, as
            :class:`~degaml_kedro.generator.health.HealthCheck` describes it; ``module`` is ``all`` for whole adapters.
        title: which generator.

    Returns:
        Loss, learning rate, relative error and norm ratio by module and layer, and error and accuracy by task over
        steps.
    """
    steps = steps.reindex(columns=list(STEP_COLUMNS)).astype("float64")
    checks = _as_numbers(checks.reindex(columns=list(CHECK_COLUMNS)))
    whole, parts = checks[checks["module"] == _WHOLE], checks[checks["module"] != _WHOLE]
    makers: tuple[Callable[[], Panel | str], ...] = (
        lambda: _loss(steps),
        lambda: _learning_rate(steps),
        lambda: _map(parts, "relative_error"),
        lambda: _map(parts, "norm_ratio"),
        lambda: _error(whole),
        lambda: _accuracy(whole),
    )
    notes = []
    if len(steps) and steps["mse"].isna().all() and not parts.empty:
        notes.append(
            "This generator learned from answers alone (sft). It does not aim at the checkpoints, so errors and norm "
            "ratios far from theirs are no fault."
        )
    return put_together(makers, notes, _heading(title, steps, whole))


def _as_numbers(checks: pd.DataFrame) -> pd.DataFrame:
    # a column that nothing was measured of holds None only, and has no number type
    numbers = ["step", "layer", "relative_error", "norm_ratio", "accuracy", "questions"]
    types = {**dict.fromkeys(numbers, "float64"), "held_out": "bool"}
    return checks.fillna({"held_out": False}).astype(types)


def _heading(title: str, steps: pd.DataFrame, whole: pd.DataFrame) -> list[str]:
    tasks = whole.drop_duplicates("task")
    held_out = tasks[tasks["held_out"]]["task"].tolist()
    parts = [f"{len(steps)} steps"]
    if len(tasks):
        parts.append(f"{counted(len(tasks) - len(held_out), 'task')} seen")
        named = f": {', '.join(held_out)}" if held_out else ""
        parts.append(f"{len(held_out)} held out{named}")
        parts.append(f"last check at step {whole['step'].max():.0f}")
    return [title or "Generator", textwrap.shorten("; ".join(parts), 160, placeholder=" …")]


def _loss(steps: pd.DataFrame) -> Panel | str:
    found = [name for name in _OBJECTIVES if steps[name].notna().any()]
    if steps["loss"].notna().sum() == 0:
        return "the loss (no step was recorded)"
    curves = {name: _OBJECTIVES[name] for name in found}
    if len(found) != 1:
        # with one objective the loss is that objective
        curves["loss"] = (GREEN, "dot")
    thin, each = _thinned(steps)
    window = max(1, len(thin) // 20)
    traces = []
    for name, (color, dash) in curves.items():
        label = "loss (weighted sum)" if name == "loss" else name
        if window > 1:
            traces.append(
                draw_line(thin["step"], thin[name], label, color, opacity=0.25, legend=False)
            )
        smooth = thin[name].rolling(window, min_periods=1).mean()
        traces.append(draw_line(thin["step"], smooth, label, color, dash=dash, width=2.5))
    reading = "mse: squared error of normalized tokens; sft: nats an answer token"
    if window > 1:
        reading += f"; dark: mean of {window * each} steps"
    values = thin[list(curves)].to_numpy()
    values = values[np.isfinite(values)]
    wide = values.min() > 0 and values.max() > 10 * values.min()
    axis = {"type": "log", "dtick": 1} if wide else {"rangemode": "tozero"}
    return Panel("Loss", reading, traces, y="loss", y_axis=axis)


def _learning_rate(steps: pd.DataFrame) -> Panel | str:
    if steps["learning_rate"].notna().sum() == 0:
        return "the learning rate (none was recorded)"
    thin, _ = _thinned(steps)
    line = draw_line(thin["step"], thin["learning_rate"], "learning rate", GRAY, width=2.5)
    line.showlegend = False
    axis = {"rangemode": "tozero", "exponentformat": "e"}
    return Panel("Learning rate", "warm-up, then cosine", [line], y="learning rate", y_axis=axis)


_MAPS = {
    "relative_error": (
        "Relative error by module and layer",
        "‖made − last checkpoint‖ / ‖last checkpoint‖, normalized; making the mean adapter scores 1",
        "error",
    ),
    "norm_ratio": (
        "Norm ratio by module and layer",
        "‖made‖ / ‖last checkpoint‖, normalized; 1: as large as the checkpoint",
        "ratio",
    ),
}


def _map(parts: pd.DataFrame, column: str) -> Panel | str:
    title, reading, name = _MAPS[column]
    what = title.lower()
    if parts.empty:
        return f"{what} (no check with checkpoints to compare with)"
    last = parts[parts["step"] == parts["step"].max()]
    own, kind = last[~last["held_out"]], "seen"
    if own.empty:
        own, kind = last, "held out"
    finite = own[np.isfinite(own[column])]
    if finite.empty:
        return f"{what} (no value is finite: the checkpoints' weights are all at their mean)"
    rows = list(dict.fromkeys(zip(own["module"], own["matrix"], strict=True)))
    layers = sorted(own["layer"].unique())
    means = finite.groupby(["module", "matrix", "layer"])[column].mean()
    grid = [[means.get((*row, layer), np.nan) for layer in layers] for row in rows]
    values = np.array(grid, dtype=np.float64)
    # one odd matrix must not take the color from all others
    high = float(np.nanpercentile(values, 98))
    highest = float(np.nanmax(values))
    top = max(1.0, high if highest > 2 * high else highest)
    ticks = np.linspace(0, top, 5)
    labels = [f"{tick:.2g}" for tick in ticks]
    if highest > top:
        labels[-1] = f"≥ {labels[-1]}"
    heat = go.Heatmap(
        z=values.tolist(),
        x=["none" if layer < 0 else f"{layer:.0f}" for layer in layers],
        y=_short(rows),
        zmin=0,
        zmax=top,
        colorscale=_SCALE,
        colorbar={"tickvals": ticks.tolist(), "ticktext": labels, "thickness": 12},
        hovertemplate=f"layer %{{x}}, %{{y}}<br>{name} %{{z:.3f}}<extra></extra>",
        texttemplate="%{z:.2f}" if len(layers) <= _MOST_WRITTEN_LAYERS else None,
        xgap=1,
        ygap=1,
    )
    count = own["task"].nunique()
    step = f"{own['step'].iloc[0]:.0f}"
    notes = []
    if len(finite) < len(own):
        notes.append(
            f"{title}: {len(own) - len(finite)} of {len(own)} values are infinite or missing and left out; the "
            f"checkpoint's weights are all at their mean there."
        )
    return Panel(
        title,
        f"{reading}<br>mean of {counted(count, 'task')} ({kind}), step {step}",
        [heat],
        x="layer",
        x_axis={"type": "category"},
        y_axis={"type": "category", "autorange": "reversed", "dtick": 1, "ticks": ""},
        notes=notes,
    )


def _error(whole: pd.DataFrame) -> Panel | str:
    known = whole[np.isfinite(whole["relative_error"])]
    if known.empty:
        return "error by task (no check with checkpoints to compare with)"
    traces = []
    for held_out, own in known.groupby("held_out"):
        mean = own.groupby("step")["relative_error"].mean()
        traces += _tasks(own, "relative_error", bool(held_out))
        traces.append(_curve(mean.index, mean, bool(held_out), own["task"].nunique()))
    notes = []
    if len(known) < len(whole):
        notes.append(
            f"Error by task: {len(whole) - len(known)} of {len(whole)} values are infinite or missing and left out."
        )
    return Panel(
        "Error of whole adapters by task",
        "thick: mean over tasks; thin: each task; dotted: making the mean adapter",
        traces,
        y="relative error",
        y_axis={"rangemode": "tozero"},
        lines=[1.0],
        notes=notes,
        legend=("bottom", "left"),
    )


def _accuracy(whole: pd.DataFrame) -> Panel | str:
    known = whole[whole["accuracy"].notna() & (whole["questions"] > 0)]
    if known.empty:
        return "accuracy of generated adapters (no questions were asked; training.check_every asks them)"
    traces = []
    for held_out, own in known.groupby("held_out"):
        traces += _tasks(own, "accuracy", bool(held_out))
        asked = own.assign(right=own["accuracy"] * own["questions"])
        sums = asked.groupby("step")[["right", "questions"]].sum()
        sums["accuracy"] = sums["right"].round() / sums["questions"]
        ends = [
            wilson_interval(round(r), int(n)) for r, n in sums[["right", "questions"]].to_numpy()
        ]
        sums[["low", "high"]] = ends
        curve = _curve(sums.index, sums["accuracy"], bool(held_out), own["task"].nunique())
        curve.error_y = error_bar(sums, "accuracy", "low", "high")
        traces.append(curve)
    counts = sorted({int(count) for count in known["questions"]})
    asked_text = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return Panel(
        "Accuracy of generated adapters",
        f"{asked_text} validation questions a task; thick: all tasks' questions, with 95 % intervals",
        traces,
        y="accuracy",
        y_axis={"range": [-0.03, 1.03]},
        legend=("bottom", "right"),
    )


def _tasks(own: pd.DataFrame, column: str, held_out: bool) -> list[Any]:
    """A thin line a task, where there are several."""
    if own["task"].nunique() < 2:
        return []
    color = _STYLES[held_out]["color"]
    # a single check has no line
    look: dict[str, Any] = {"symbol": "circle", "size": 4, "opacity": 0.35, "legend": False}
    return [
        draw_line(of_task["step"], of_task[column], html.escape(str(task)), color, **look)
        for task, of_task in own.groupby("task", sort=False)
    ]


def _curve(x: Any, y: Any, held_out: bool, tasks: int) -> Any:
    style = _STYLES[held_out]
    label = f"{counted(tasks, 'task')} {style['name']}"
    dash, symbol = style["dash"], style["symbol"]
    return draw_line(x, y, label, style["color"], width=3, dash=dash, symbol=symbol, size=9)


def _thinned(steps: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Means of equally many steps each where there are too many to draw, and of how many."""
    each = -(-len(steps) // _MOST_POINTS)
    if each <= 1:
        return steps, 1
    return steps.groupby(np.arange(len(steps)) // each).mean(), each


def _short(rows: Sequence[tuple[str, str]]) -> list[str]:
    """``q_proj A``; with the whole path where two modules end alike."""
    ends = {module: module.rsplit(".", 1)[-1] for module, _ in rows}
    unique = len(set(ends.values())) == len(ends)
    return [f"{ends[module] if unique else module} {matrix}" for module, matrix in rows]
