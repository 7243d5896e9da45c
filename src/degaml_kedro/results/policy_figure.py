"""A policy as two pictures: how it learned over iterations, and which family it gave which task."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
import plotly.express as px  # type: ignore[import-untyped]
import plotly.graph_objects as go  # type: ignore[import-untyped]

from degaml_kedro.results.figures import (
    AMBER,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    draw_reference,
    lay_out,
    panel_title,
    put_together,
    with_errors,
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

_COLORS = {"policy": BLUE, "uniform": ORANGE}
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


def policy_figure(rollouts: pd.DataFrame, title: str = "") -> go.Figure:
    """Reward rate with its 95 % interval, entropy of families and actions, and families' shares over iterations.

    What there is nothing of is left out, and a note under the picture says so. Test time stands behind the last
    iteration, apart from the curves.

    Raises:
        ResultsError: columns of the rollouts are missing, see :mod:`~degaml_kedro.results.policy_measures`.
    """
    frame = prepared(rollouts)
    measures, shares = iteration_measures(frame), family_shares(frame)
    training = [i for i in iterations_of(frame) if i != TEST_TIME]
    # test time behind the last one
    at = {**{i: i for i in training}, TEST_TIME: max(training, default=0) + 1}
    for own in (measures, shares):
        if len(own):
            own["x"] = own["iteration"].map(at)
            own["tested"] = own["iteration"] == TEST_TIME
    panels = dict(
        [_reward_rates(measures), _entropies(measures, len(families_of(frame))), _families(shares)]
    )
    methods = list(dict.fromkeys(frame["method"]))
    notes = [f"Counted together: {', '.join(map(str, methods))}."] if len(methods) > 1 else []
    heading = [title or "Policy", _counts(frame)]
    figure = put_together(panels, heading, notes, own_legends=True)
    if len(measures):
        shown = training[:: max(1, -(-len(training) // _MOST_TICKS))]
        shown += [TEST_TIME] if measures["tested"].any() else []
        figure.update_xaxes(
            title="iteration",
            tickvals=[at[i] for i in shown],
            ticktext=[iteration_name(i) for i in shown],
            range=[measures["x"].min() - 0.5, measures["x"].max() + 0.5],
        )
    return figure.update_layout(barmode="stack", bargap=0.15)


def strategy_map(rollouts: pd.DataFrame, title: str = "") -> go.Figure:
    """Which family was proposed for which task, what it gained, and which was executed (the paper's F.4).

    A heat map, tasks down and families across: the color is a family's share of the task's proposals. A column of its
    own marks tasks of which nothing was executed at test time. With several methods, each has its own rows.

    Raises:
        ResultsError: columns of the rollouts are missing, see :mod:`~degaml_kedro.results.policy_measures`.
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
    shares = [[cell["share"] if cell else 0.0 for cell in row] for row in grid]
    texts = [[_cell(cell) for cell in row] for row in grid]
    counts = [[f"{cell['n'] if cell else 0} proposals" for cell in row] for row in grid]
    # in training nothing is executed, and nothing is missing
    for place, task in enumerate(tasks if len(tested) else ()):
        unrefined = not tested.get(task, True)
        shares[place].append(0.0)
        texts[place].append(f"<b>{_STAR}</b>" if unrefined else "")
        counts[place].append("nothing was executed" if unrefined else "something was executed")
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
        "In a cell: share of the task's proposals; share of these that were rewarded; mean gain in accuracy on D_val, "
        f"in points.<br>{_STAR} was executed"
    )
    if len(tested):
        note += (
            f"; {_STAR} under '{UNREFINED}': nothing was, and the generated adapter is the answer"
        )
    note = f"{'' if names else 'No proposal was valid.<br>'}{note}."
    return _map_layout(figure, heading, len(tasks), note)


def _counts(frame: pd.DataFrame) -> str:
    training = [i for i in frame["iteration"].unique() if i != TEST_TIME]
    parts = [f"{len(frame)} rollouts", counted(frame["task"].nunique(), "task")]
    if training:
        parts.append(counted(len(training), "iteration"))
    if (frame["iteration"] == TEST_TIME).any():
        parts.append("test time")
    return "; ".join(parts)


def _reward_rates(measures: pd.DataFrame) -> tuple[str, Any]:
    if measures.empty:
        return "Reward rate", f"the reward rate ({_NO_ROLLOUTS})"
    rates = with_errors(measures, "reward_rate", "reward_rate_low", "reward_rate_high")
    panel = _curves(
        rates[rates["source"] != "all"],
        "source",
        error_y="above",
        error_y_minus="below",
        custom_data=["n"],
        color_discrete_map=_COLORS,
    )
    panel.update_yaxes(title="reward rate", range=[-0.03, 1.03])
    reading = "share of proposals with a reward above 0, with 95 % intervals"
    return panel_title("Reward rate", reading), panel


def _entropies(measures: pd.DataFrame, families: int) -> tuple[str, Any]:
    title, what = "Entropy of what was chosen", "the entropy of choices"
    if measures.empty:
        return title, f"{what} ({_NO_ROLLOUTS})"
    known = measures[measures["source"] != "all"].melt(
        ["x", "tested", "source"], list(_ENTROPIES), "of", "shown"
    )
    if known["shown"].isna().all():
        return title, f"{what} (no proposal was valid)"
    known["name"] = known["source"] + ", " + known["of"].map(_ENTROPIES)
    colors = {name: _COLORS[name.split(",")[0]] for name in known["name"].unique()}
    panel = _curves(known, "name", color_discrete_map=colors)
    alike = ""
    if families > 1:
        ends = known["x"].min() - 0.5, known["x"].max() + 0.5
        panel.add_trace(draw_reference(ends, [math.log(families)] * 2, name="alike"))
        alike = f"dotted: {families} families in equal shares; "
    panel.update_yaxes(title="nats", rangemode="tozero")
    reading = f"families and whole actions; {alike}a small n makes it small"
    return panel_title(title, reading), panel


def _families(shares: pd.DataFrame) -> tuple[str, Any]:
    if shares.empty:
        return "Families", f"the share of each family ({_NO_ROLLOUTS})"
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


def _map_layout(figure: Any, heading: Sequence[str], tasks: int, note: str) -> Any:
    height = 220 + max(1, tasks) * _CELL_HEIGHT
    axis = {"type": "category", "dtick": 1, "ticks": "", "showgrid": False, "visible": tasks > 0}
    figure.update_xaxes(side="top", automargin=True, **axis)
    figure.update_yaxes(autorange="reversed", automargin=True, **axis)
    return lay_out(figure, heading, note, height, 90)
