"""A generator's health as one picture: how it learned, where in the adapter it errs, and what its adapters answer."""

from __future__ import annotations

import html
import textwrap
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px  # type: ignore[import-untyped]
import plotly.graph_objects as go  # type: ignore[import-untyped]

from degaml_kedro.results.figures import (
    BLUE,
    GREEN,
    ORANGE,
    draw_reference,
    panel_title,
    put_together,
    with_errors,
)
from degaml_kedro.results.formatting import counted
from degaml_kedro.results.measures import wilson_interval

_CHECK_NUMBERS = ("step", "layer", "relative_error", "norm_ratio", "accuracy", "questions")
_SUM = "loss (weighted sum)"
_COLORS = {"mse": BLUE, "sft": ORANGE, _SUM: GREEN}
_DASHES = {"mse": "solid", "sft": "dash", _SUM: "dot"}
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


def generator_figure(steps: pd.DataFrame, checks: pd.DataFrame, title: str = "") -> go.Figure:
    """Loss, learning rate, error and norm ratio by module and layer, and error and accuracy by task over steps.

    What there is nothing of is left out, and a note under the picture says so.

    Args:
        steps: one row a training step, with ``step``, ``loss``, ``mse``, ``sft`` (NaN where it is not an objective) and
            ``learning_rate``.
        checks: one row a health check, task, layer, module and matrix, as
            :class:`~degaml_kedro.generator.health.HealthCheck` describes it; ``module`` is ``all`` for whole adapters.
        title: which generator.
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
    return put_together(panels, _heading(title, steps, whole), notes, own_legends=True)


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
            color_discrete_map=_COLORS,
            line_dash_map=_DASHES,
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
