"""What all figures share: panels side by side, a title, notes underneath, colors, and the page that holds a figure."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

# colors of Okabe and Ito; dashes, markers and patterns tell the same where there is no color
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"
AMBER, PINK, SKY, YELLOW = "#E69F00", "#CC79A7", "#56B4E9", "#F0E442"

_TOP, _LINE, _NOTE_WIDTH = 130, 18, 150
_DOTTED = {"color": GRAY, "width": 1.5, "dash": "dot"}


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
