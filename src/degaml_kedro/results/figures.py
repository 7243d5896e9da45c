"""What all figures share: panels, a title, notes underneath, curves, intervals, and the page that holds a figure."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

# colors of Okabe and Ito; dashes, markers and patterns tell the same where there is no color
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"
AMBER, PINK, SKY, YELLOW = "#E69F00", "#CC79A7", "#56B4E9", "#F0E442"
TOP = 130

_LINE, _NOTE_WIDTH = 18, 150


@dataclass(frozen=True)
class Panel:
    """One part of a figure whose panels differ.

    Attributes:
        title: what it shows.
        reading: how it is read, in small letters.
        traces: what is drawn.
        x: the title of its x-axis.
        y: the title of its y-axis.
        x_axis: more about it.
        y_axis: more about it.
        lines: heights of reference lines.
        notes: what was left out of it.
        legend: the corner for it, where curves of this kind seldom go.
    """

    title: str
    reading: str
    traces: Sequence[Any]
    x: str = "step"
    y: str = ""
    x_axis: dict[str, Any] = field(default_factory=dict)
    y_axis: dict[str, Any] = field(default_factory=dict)
    lines: Sequence[float] = ()
    notes: Sequence[str] = ()
    legend: tuple[str, str] = ("top", "right")


def put_together(
    makers: Sequence[Callable[[], Panel | str]], notes: Sequence[str], heading: Sequence[str]
) -> Any:
    """Panels in two columns, with the notes underneath.

    Args:
        makers: in the order of reading; each makes a panel, or says what there is nothing of.
        notes: what to know besides.
        heading: the title and, smaller, what it is of.
    """
    made = [make() for make in makers]
    panels = [part for part in made if isinstance(part, Panel)]
    notes = [
        *(f"Not shown: {part}." for part in made if isinstance(part, str)),
        *(note for panel in panels for note in panel.notes),
        *notes,
    ]
    titles = [f"<b>{p.title}</b><br>{small(p.reading)}" for p in panels]
    figure, places = make_grid(titles, heading, notes, columns=2, horizontal_spacing=0.16)
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    for index, (panel, place) in enumerate(zip(panels, places, strict=True)):
        _place(figure, panel, index, place)
    return figure


def make_grid(
    titles: Sequence[str],
    heading: Sequence[str],
    notes: Sequence[str] = (),
    *,
    columns: int = 4,
    height: int = 270,
    gap: int = 120,
    below: int = 60,
    **spacing: Any,
) -> tuple[Any, list[dict[str, int]]]:
    """An empty figure of panels in rows.

    Args:
        titles: the panels'.
        heading: the title and, smaller, what it is of.
        notes: what stands underneath.
        columns: at most so many panels in a row.
        height: of a panel, in pixels.
        gap: between rows, likewise.
        below: between the last row and the notes, likewise.
        spacing: more for ``make_subplots``.

    Returns:
        The figure and the ``row`` and ``col`` of each panel.
    """
    rows = max(1, -(-len(titles) // columns))
    inside = rows * height + (rows - 1) * gap
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=titles,
        vertical_spacing=gap / inside if rows > 1 else 0,
        **spacing,
    )
    lines = wrapped(notes)
    bottom = below + _LINE * (len(lines) + 1)
    lay_out(figure, heading, TOP + inside + bottom, bottom)
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(showline=True, linecolor="#888888", ticks="outside")
    figure.update_yaxes(showline=True, linecolor="#888888")
    places = [{"row": n // columns + 1, "col": n % columns + 1} for n in range(rows * columns)]
    for spare in places[len(titles) :]:
        figure.update_xaxes(visible=False, **spare)
        figure.update_yaxes(visible=False, **spare)
    if lines:
        write_below(figure, "<br>".join(lines), below - 10)
    return figure, places[: len(titles)]


def lay_out(figure: Any, heading: Sequence[str], height: int, bottom: int) -> None:
    """Give a figure its title, height and look.

    Args:
        figure: the figure.
        heading: the title and, smaller, what it is of.
        height: of all of it, in pixels.
        bottom: of these, for what stands under the panels.
    """
    figure.update_layout(
        template="plotly_white",
        title={
            "text": f"<b>{html.escape(heading[0])}</b><br>{small(html.escape(heading[1]))}",
            "x": 0.01,
            "y": 1 - 30 / height,
            "yanchor": "top",
        },
        meta=heading[0],
        height=height,
        margin={"t": TOP, "b": bottom, "l": 90, "r": 90},
        font={"size": 13, "color": "#222222"},
    )


def write_below(figure: Any, text: str, shift: int) -> None:
    """Write a note under a figure's panels.

    Args:
        figure: the figure.
        text: the note, escaped.
        shift: how far below, in pixels.
    """
    figure.add_annotation(
        text=text,
        xref="paper",
        yref="paper",
        x=0,
        y=0,
        yshift=-shift,
        xanchor="left",
        yanchor="top",
        align="left",
        showarrow=False,
        font={"size": 12},
    )


def wrapped(notes: Sequence[str]) -> list[str]:
    """Notes as escaped lines that a figure is wide enough for."""
    return [html.escape(line) for note in notes for line in textwrap.wrap(note, _NOTE_WIDTH)]


def small(text: str) -> str:
    """Text in small letters, as Plotly reads it."""
    return f'<span style="font-size:11px">{text}</span>'


def draw_line(
    x: Any,
    y: Any,
    name: str,
    color: str,
    *,
    dash: str = "solid",
    width: float = 1,
    symbol: str = "",
    size: int = 8,
    opacity: float = 1.0,
    legend: bool = True,
) -> Any:
    """A line over steps, with markers where a symbol is given; a single point is a marker."""
    line = go.Scatter(
        x=[float(value) for value in x],
        y=[float(value) for value in y],
        name=name,
        mode="lines" if len(x) > 1 else "markers",
        line={"color": color, "dash": dash, "width": width},
        opacity=opacity,
        showlegend=legend,
        hovertemplate="step %{x:.0f}: %{y:.4g}",
    )
    if symbol:
        line.update(mode="lines+markers", marker={"symbol": symbol, "size": size, "color": color})
    return line


def draw_reference(x: Sequence[float], y: Sequence[float], **more: Any) -> Any:
    """A dotted line to read others against."""
    line = {"color": GRAY, "width": 1.5, "dash": "dot"} | more.pop("line", {})
    return go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", **more)


def error_bar(
    frame: pd.DataFrame, value: str, low: str, high: str, scale: float = 1
) -> dict[str, Any]:
    """The intervals of a frame's values, as a trace takes them.

    Args:
        frame: a row a point.
        value: the column of the values.
        low: the column of the intervals' lower ends.
        high: likewise, of the upper ends.
        scale: what the points are multiplied by.
    """
    return {
        "type": "data",
        "symmetric": False,
        "array": (scale * (frame[high] - frame[value])).tolist(),
        "arrayminus": (scale * (frame[value] - frame[low])).tolist(),
        "thickness": 1.5,
        "width": 3,
    }


def figure_page(figure: go.Figure) -> str:
    """A figure as a page that a browser opens from disk: the drawing program is in it, nothing is fetched.

    Args:
        figure: the figure; its title is the page's.
    """
    page: str = figure.to_html(
        include_plotlyjs=True, full_html=True, div_id="figure", config={"displaylogo": False}
    )
    title = html.escape(str(figure.layout.meta or "Figure"))
    return page.replace("<head>", f'<head><meta charset="utf-8" /><title>{title}</title>', 1)


def _place(figure: Any, panel: Panel, index: int, place: dict[str, int]) -> None:
    area = figure.get_subplot(**place)
    (left, right), (low, high) = area.xaxis.domain, area.yaxis.domain
    # not the first one: it is hidden with a single curve
    legend, (vertical, horizontal) = f"legend{index + 2}", panel.legend
    bars = any(isinstance(trace, go.Bar) for trace in panel.traces)
    for trace in panel.traces:
        if isinstance(trace, go.Heatmap):
            trace.colorbar.update(x=right + 0.005, y=(low + high) / 2, len=high - low)
        else:
            trace.legend = legend
        figure.add_trace(trace, **place)
    figure.update_layout(
        {
            legend: {
                # bars fill their panel: the legend stands beside it
                "x": right + 0.01 if bars else right if horizontal == "right" else left,
                "y": high if vertical == "top" else low,
                "xanchor": "left" if bars else horizontal,
                "yanchor": vertical,
                "bgcolor": "rgba(255,255,255,0.7)",
            }
        }
    )
    for value in panel.lines:
        figure.add_hline(y=value, line={"color": GRAY, "width": 1.5, "dash": "dot"}, **place)
    figure.update_xaxes(title_text=panel.x, **place, **panel.x_axis)
    figure.update_yaxes(title_text=panel.y or None, **place, **panel.y_axis)
