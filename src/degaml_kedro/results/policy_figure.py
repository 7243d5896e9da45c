"""A policy as two pictures: how it learned over iterations, and which family it gave which task."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go  # type: ignore[import-untyped]

from degaml_kedro.results.figures import (
    AMBER,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    TOP,
    YELLOW,
    Panel,
    draw_line,
    error_bar,
    lay_out,
    put_together,
    write_below,
)
from degaml_kedro.results.formatting import counted
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

UNREFINED = "unrefined"

_SOURCES: dict[str, dict[str, str]] = {
    "policy": {"color": BLUE, "symbol": "circle"},
    "uniform": {"color": ORANGE, "symbol": "square"},
}
_ENTROPIES = {
    "family_entropy": ("families", "solid", ""),
    "action_entropy": ("actions", "dash", "-open"),
}
# more colors of Okabe and Ito; patterns tell the same where there is no color
_COLORS = (BLUE, AMBER, GREEN, PINK, SKY, ORANGE, YELLOW)
_PATTERNS = ("", "/", ".", "x", "\\", "-", "|")
_STAR = "★"
# light enough throughout for dark text
_SHARES = [[0, "#F1F4F6"], [1, SKY]]
_NO_ROLLOUTS = "no rollouts were recorded"
_MOST_TICKS = 12
_CELL_HEIGHT, _MAP_BOTTOM = 62, 90


def policy_figure(rollouts: pd.DataFrame, title: str = "") -> go.Figure:
    """Draw how a policy learned.

    What there is nothing of is left out, and a note under the picture says so.

    Args:
        rollouts: one row a trial, as :mod:`~degaml_kedro.results.policy_measures` takes them.
        title: which policy.

    Returns:
        Reward rate with its 95 % interval, entropy of families and actions, and the share of each family, over
        iterations. Test time stands behind the last iteration, apart from the curves.

    Raises:
        ResultsError: columns are missing.
    """
    frame = prepared(rollouts)
    measures = iteration_measures(frame)
    shares = family_shares(frame)
    iterations = iterations_of(frame)
    axis = _iteration_axis(iterations)
    at = _places(iterations)
    makers: tuple[Callable[[], Panel | str], ...] = (
        lambda: _reward_rates(measures, at, axis),
        lambda: _entropies(measures, at, axis, len(families_of(frame))),
        lambda: _families(shares, at, axis),
    )
    methods = list(dict.fromkeys(frame["method"]))
    notes = [f"Counted together: {', '.join(map(str, methods))}."] if len(methods) > 1 else []
    figure = put_together(makers, notes, [title or "Policy", _counts(frame)])
    return figure.update_layout(barmode="stack", bargap=0.15)


def strategy_map(rollouts: pd.DataFrame, title: str = "") -> go.Figure:
    """Draw which family was proposed for which task, what it gained, and which was executed (the paper's F.4).

    Args:
        rollouts: one row a trial, as :mod:`~degaml_kedro.results.policy_measures` takes them; ``executed`` marks those
            that were executed in the end.
        title: which policy.

    Returns:
        A heat map, tasks down and families across: the color is a family's share of the task's proposals. A column of
        its own marks tasks of which nothing was executed at test time. With several methods, each has its own rows.

    Raises:
        ResultsError: columns are missing.
    """
    frame = prepared(rollouts)
    heading = [title or "Strategies", _counts(frame)]
    if frame.empty:
        return _map_layout(go.Figure(), heading, 0, f"Not shown: {_NO_ROLLOUTS}.")
    if frame["method"].nunique() > 1:
        frame["task"] = [f"{t} ({m})" for t, m in zip(frame["task"], frame["method"], strict=True)]
    names = families_of(frame)
    tasks = [str(task) for task in dict.fromkeys(frame["task"])]
    cells = family_measures(frame).set_index(["task", "family"]).to_dict("index")
    grid = [[cells.get((task, name)) for name in names] for task in tasks]
    tested = frame[frame["iteration"] == TEST_TIME].groupby("task")["executed"].any()
    # in training nothing is executed, and nothing is missing
    unrefined = [not tested.get(task, True) for task in tasks] if len(tested) else []
    # names may be anybody's, and Plotly reads tags in them
    across, down = [html.escape(name) for name in names], [html.escape(task) for task in tasks]
    figure = go.Figure()
    if names:
        figure.add_trace(
            _heat(
                [[cell["share"] if cell else 0.0 for cell in row] for row in grid],
                across,
                down,
                text=[[_cell(cell) for cell in row] for row in grid],
                customdata=[[cell["n"] if cell else 0 for cell in row] for row in grid],
                hovertemplate="%{y}, %{x}<br>%{customdata} proposals<br>%{text}<extra></extra>",
                colorscale=_SHARES,
                colorbar={
                    "title": {"text": "share"},
                    "tickformat": ".0%",
                    "dtick": 0.5,
                    "thickness": 12,
                    "lenmode": "pixels",
                    "len": max(2, len(tasks)) * _CELL_HEIGHT,
                    "y": 1,
                    "yanchor": "top",
                },
                name="share",
            )
        )
    if unrefined:
        figure.add_trace(
            _heat(
                [[1.0 if mark else None] for mark in unrefined],
                [UNREFINED],
                down,
                text=[[f"<b>{_STAR}</b>" if mark else ""] for mark in unrefined],
                hovertemplate="%{y}: nothing was executed<extra></extra>",
                colorscale=[[0, "#DDDDDD"], [1, "#DDDDDD"]],
                showscale=False,
                name=UNREFINED,
            )
        )
    note = (
        "In a cell: share of the task's proposals; share of these that were rewarded; mean gain in accuracy on D_val, "
        f"in points.<br>{_STAR} was executed"
    )
    if unrefined:
        note += (
            f"; {_STAR} under '{UNREFINED}': nothing was, and the generated adapter is the answer"
        )
    note += "."
    if not names:
        note = f"No proposal was valid.<br>{note}"
    return _map_layout(figure, heading, len(tasks), note)


def _counts(frame: pd.DataFrame) -> str:
    training = [i for i in frame["iteration"].unique() if i != TEST_TIME]
    parts = [f"{len(frame)} rollouts", counted(frame["task"].nunique(), "task")]
    if training:
        parts.append(counted(len(training), "iteration"))
    if (frame["iteration"] == TEST_TIME).any():
        parts.append("test time")
    return "; ".join(parts)


def _places(iterations: Sequence[int]) -> dict[int, int]:
    """Where each iteration stands: training at its number, test time behind the last one."""
    last = max(iterations, default=0)
    return {i: last + 1 if i == TEST_TIME else i for i in iterations}


def _iteration_axis(iterations: Sequence[int]) -> dict[str, Any]:
    at = _places(iterations)
    if not at:
        return {}
    training = [i for i in iterations if i != TEST_TIME]
    shown = training[:: max(1, -(-len(training) // _MOST_TICKS))]
    shown += [TEST_TIME] if TEST_TIME in at else []
    return {
        "tickvals": [at[i] for i in shown],
        "ticktext": [iteration_name(i) for i in shown],
        "range": [min(at.values()) - 0.5, max(at.values()) + 0.5],
    }


def _reward_rates(measures: pd.DataFrame, at: dict[int, int], axis: dict[str, Any]) -> Panel | str:
    if measures.empty:
        return f"the reward rate ({_NO_ROLLOUTS})"
    traces = []
    for source, style in _SOURCES.items():
        for own, legend in _apart(measures[measures["source"] == source]):
            curve = _curve(own, "reward_rate", source, at, style, legend=legend)
            curve.error_y = error_bar(own, "reward_rate", "reward_rate_low", "reward_rate_high")
            curve.customdata = own["n"].tolist()
            curve.hovertemplate = "%{y:.3f} of %{customdata}"
            traces.append(curve)
    return Panel(
        "Reward rate",
        "share of proposals with a reward above 0, with 95 % intervals",
        traces,
        x="iteration",
        y="reward rate",
        x_axis=axis,
        y_axis={"range": [-0.03, 1.03]},
        legend=("top", "left"),
    )


def _entropies(
    measures: pd.DataFrame, at: dict[int, int], axis: dict[str, Any], families: int
) -> Panel | str:
    what = "the entropy of choices"
    if measures.empty:
        return f"{what} ({_NO_ROLLOUTS})"
    if measures["family_entropy"].isna().all():
        return f"{what} (no proposal was valid)"
    traces = []
    for source, style in _SOURCES.items():
        for column, (name, dash, symbol) in _ENTROPIES.items():
            look = {**style, "symbol": style["symbol"] + symbol}
            for own, legend in _apart(measures[measures["source"] == source]):
                label = f"{source}, {name}"
                curve = _curve(own, column, label, at, look, dash=dash, legend=legend)
                curve.hovertemplate = "%{y:.3f} nats"
                traces.append(curve)
    highest = measures[list(_ENTROPIES)].max().max()
    top = max(float(highest), math.log(max(2, families)))
    return Panel(
        "Entropy of what was chosen",
        _entropy_reading(families),
        traces,
        x="iteration",
        y="nats",
        x_axis=axis,
        # the upper part is the legend's: entropies may be anywhere below
        y_axis={"range": [-0.03 * top, 1.8 * top]},
        lines=[math.log(families)] if families > 1 else [],
        legend=("top", "left"),
    )


def _entropy_reading(families: int) -> str:
    alike = f"dotted: {families} families in equal shares; " if families > 1 else ""
    return f"families and whole actions; {alike}a small n makes it small"


def _families(shares: pd.DataFrame, at: dict[int, int], axis: dict[str, Any]) -> Panel | str:
    if shares.empty:
        return f"the share of each family ({_NO_ROLLOUTS})"
    by_policy = (shares["source"] == "policy").any()
    own = shares[shares["source"] == ("policy" if by_policy else "all")]
    names = list(dict.fromkeys(own["family"]))
    traces = []
    for index, name in enumerate(names):
        of_family = own[own["family"] == name]
        color, pattern = _COLORS[index % len(_COLORS)], _PATTERNS[index % len(_PATTERNS)]
        if name == NOT_VALID:
            color, pattern = GRAY, ""
        traces.append(
            go.Bar(
                x=[at[i] for i in of_family["iteration"]],
                y=of_family["share"].tolist(),
                name=html.escape(str(name)),
                customdata=of_family["n"].tolist(),
                marker={
                    "color": color,
                    "pattern": {"shape": pattern, "fgcolor": "white", "solidity": 0.25, "size": 7},
                },
                hovertemplate="%{y:.3f} (%{customdata} proposals)",
            )
        )
    return Panel(
        "Families the policy chose" if by_policy else "Families of the uniform draws",
        "share of each among " + ("the policy's own proposals" if by_policy else "all proposals"),
        traces,
        x="iteration",
        y="share",
        x_axis=axis,
        y_axis={"range": [0, 1]},
    )


def _apart(own: pd.DataFrame) -> list[tuple[pd.DataFrame, bool]]:
    """Training and test time, which no line joins, and whether each has a place in the legend."""
    test = own["iteration"] == TEST_TIME
    parts = [part for part in (own[~test], own[test]) if len(part)]
    return [(part, index == 0) for index, part in enumerate(parts)]


def _curve(
    own: pd.DataFrame,
    column: str,
    name: str,
    at: dict[int, int],
    style: dict[str, str],
    *,
    legend: bool,
    dash: str = "solid",
) -> Any:
    curve = draw_line(
        [at[i] for i in own["iteration"]],
        own[column],
        name,
        style["color"],
        dash=dash,
        width=2.5,
        symbol=style["symbol"],
        legend=legend,
    )
    curve.legendgroup = name
    return curve


def _heat(z: list[list[float | None]], x: list[str], y: list[str], **more: Any) -> Any:
    look = {"texttemplate": "%{text}", "textfont": {"size": 11, "color": "#222222"}}
    return go.Heatmap(z=z, x=x, y=y, zmin=0, zmax=1, xgap=2, ygap=2, **look, **more)


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


def _map_layout(figure: Any, heading: Sequence[str], tasks: int, note: str) -> Any:
    height = TOP + max(1, tasks) * _CELL_HEIGHT + _MAP_BOTTOM
    lay_out(figure, heading, height, _MAP_BOTTOM)
    axis = {"type": "category", "dtick": 1, "ticks": "", "showgrid": False, "visible": tasks > 0}
    figure.update_xaxes(side="top", automargin=True, **axis)
    figure.update_yaxes(autorange="reversed", automargin=True, **axis)
    write_below(figure, note, 15)
    return figure
