"""What all pictures have in common: panels, a title, notes underneath, colors, and the page that holds one."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

# colors of Okabe and Ito; dashes, markers and patterns tell the same where there is no color
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"
AMBER, PINK, SKY, YELLOW = "#E69F00", "#CC79A7", "#56B4E9", "#F0E442"
TOP = 130

_ROW_HEIGHT, _LINE, _NOTE_WIDTH = 330, 18, 150


@dataclass(frozen=True)
class Panel:
    """One part of a picture.

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


def put_together(panels: Sequence[Panel], notes: Sequence[str], heading: Sequence[str]) -> Any:
    """Panels in two columns, with the notes underneath.

    Args:
        panels: in the order of reading.
        notes: what to know besides.
        heading: the title and, smaller, what it is of.
    """
    rows = max(1, -(-len(panels) // 2))
    lines = wrapped(notes)
    bottom = 60 + _LINE * (len(lines) + 1)
    inside = rows * _ROW_HEIGHT
    figure = make_subplots(
        rows=rows,
        cols=2,
        subplot_titles=[f"<b>{p.title}</b><br>{small(p.reading)}" for p in panels],
        horizontal_spacing=0.16,
        vertical_spacing=120 / inside if rows > 1 else 0,
    )
    for index, panel in enumerate(panels):
        _place(figure, panel, index)
    lay_out(figure, heading, TOP + inside + bottom, bottom)
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(showline=True, linecolor="#888888", ticks="outside", automargin=True)
    figure.update_yaxes(showline=True, linecolor="#888888", automargin=True)
    if lines:
        write_below(figure, "<br>".join(lines), 60)
    for spare in range(len(panels), 2 * rows):
        figure.update_xaxes(visible=False, row=spare // 2 + 1, col=spare % 2 + 1)
        figure.update_yaxes(visible=False, row=spare // 2 + 1, col=spare % 2 + 1)
    return figure


def lay_out(figure: Any, heading: Sequence[str], height: int, bottom: int) -> None:
    """Give a picture its title, height and look.

    Args:
        figure: the picture.
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
    """Write a note under a picture's panels.

    Args:
        figure: the picture.
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
    """Notes as escaped lines that a picture is wide enough for."""
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
    opacity: float = 1.0,
    legend: bool = True,
) -> Any:
    """A line over steps; a single point is a marker."""
    return go.Scatter(
        x=[float(value) for value in x],
        y=[float(value) for value in y],
        name=name,
        mode="lines" if len(x) > 1 else "markers",
        line={"color": color, "dash": dash, "width": width},
        opacity=opacity,
        showlegend=legend,
        hovertemplate="step %{x:.0f}: %{y:.4g}",
    )


def count_tasks(count: int) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{count} task{'' if count == 1 else 's'}"


def figure_page(figure: go.Figure) -> str:
    """A picture as a page that a browser opens from disk: the drawing program is in it, nothing is fetched.

    Args:
        figure: the picture; its title is the page's.
    """
    page: str = figure.to_html(
        include_plotlyjs=True, full_html=True, div_id="figure", config={"displaylogo": False}
    )
    title = html.escape(str(figure.layout.meta or "Figure"))
    return page.replace("<head>", f'<head><meta charset="utf-8" /><title>{title}</title>', 1)


def _place(figure: Any, panel: Panel, index: int) -> None:
    row, column = index // 2 + 1, index % 2 + 1
    area = figure.get_subplot(row, column)
    (left, right), (low, high) = area.xaxis.domain, area.yaxis.domain
    # not the first one: it is hidden with a single curve
    legend, (vertical, horizontal) = f"legend{index + 2}", panel.legend
    for trace in panel.traces:
        if isinstance(trace, go.Heatmap):
            trace.colorbar.update(x=right + 0.005, y=(low + high) / 2, len=high - low)
        else:
            trace.legend = legend
        figure.add_trace(trace, row=row, col=column)
    figure.update_layout(
        {
            legend: {
                "x": right if horizontal == "right" else left,
                "y": high if vertical == "top" else low,
                "xanchor": horizontal,
                "yanchor": vertical,
                "bgcolor": "rgba(255,255,255,0.7)",
            }
        }
    )
    for value in panel.lines:
        figure.add_hline(
            y=value, row=row, col=column, line={"color": GRAY, "width": 1.5, "dash": "dot"}
        )
    figure.update_xaxes(title_text=panel.x, row=row, col=column, **panel.x_axis)
    figure.update_yaxes(title_text=panel.y or None, row=row, col=column, **panel.y_axis)
