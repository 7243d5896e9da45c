"""The report's two formats: HTML and Markdown from one text, ``report.j2``, in which every value is escaped."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from degaml_kedro.results.formatting import (
    counted,
    in_short,
    interval_of_points,
    listed,
    markdown_table,
    p_value,
    percent,
    points,
    seconds,
)
from degaml_kedro.results.glossary import meaning

# the page's file name, which the Markdown points to
PAGE = "report.html"
MISSING_MARK = "—"
# wide enough for the notes under a figure; print makes it smaller as a whole
_FIGURE_WIDTH = 1060
_NO_RESULT = "missing; there is no result, which is not a result of 0"
_FUNCTIONS = (
    counted,
    in_short,
    interval_of_points,
    listed,
    meaning,
    p_value,
    percent,
    points,
    seconds,
)
# an underscore inside a word is only an underscore
_SPECIAL = re.compile(r"[\\`*\[\]<>&|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# what makes a line a heading or part of a list
_LINE_START = re.compile(r"^(\d*)([#+\-=.)])")


class Code(str):
    """A name or a command."""


class Strong(str):
    """Text in bold."""


# None is a value that is missing, "" a place where there is none to expect
Cell = str | None


@dataclass(frozen=True)
class Table:
    """Rows under column names; every number is text already, so that page and Markdown show the same.

    Attributes:
        caption: what the table shows.
        columns: their names.
        groups: rows that belong together, each under a title ("" in a table of one group); a row's first cell is its
            name.
        notes: how they are read.
        texts: how many of the first columns are text; all others are numbers.
        missing: what a missing value means here.
    """

    caption: str
    columns: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[Cell]]]]
    notes: Sequence[str] = ()
    texts: int = 1
    missing: str = _NO_RESULT

    @property
    def all_notes(self) -> list[str]:
        """The notes, with one on what is missing."""
        gaps = any(cell is None for _, rows in self.groups for row in rows for cell in row)
        return [*self.notes, *([f"{MISSING_MARK}: {self.missing}."] if gaps else [])]


@dataclass(frozen=True)
class Picture:
    """A figure in the report.

    Attributes:
        figure: Plotly's; its numbers are in a table nearby, for those who cannot see it.
        title: which one it is, where there are several.
    """

    figure: Any
    title: str = ""

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.figure.layout.height or 450)

    @property
    def drawing(self) -> str:
        """As JSON for a page: Plotly writes "<" as an escape, so that nothing in it ends the page's element."""
        # the catalog keeps the figure as it is
        return str(copy.deepcopy(self.figure).update_layout(width=_FIGURE_WIDTH).to_json())


def render_html(values: Mapping[str, Any]) -> str:
    """The report as one HTML page: nothing is fetched, and a policy in the page forbids it.

    Args:
        values: what the text fills in.
    """
    templates = _templates(_as_html)
    templates.filters |= {"one_line": _one_line, "digest": _digest}
    return templates.get_template("report.html.j2").render(values, plotly=get_plotlyjs())


def render_markdown(values: Mapping[str, Any]) -> str:
    """The report as GitHub's Markdown.

    Args:
        values: what the text fills in.
    """
    templates = _templates(_as_markdown)
    templates.filters |= {
        "one_line": _one_line,
        "paragraph": _paragraph,
        "fenced": _fenced,
        "aligned": _aligned,
    }
    text = templates.get_template("report.md.j2").render(values, page=PAGE)
    return re.sub("\n{3,}", "\n\n", text).strip() + "\n"


def _templates(written: Callable[[Any], Markup]) -> Environment:
    """Templates in which every value passes through ``written``, which escapes it for the format."""
    templates = Environment(
        loader=PackageLoader(__package__, ""),
        # what has been escaped is not escaped again
        autoescape=True,
        finalize=written,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    templates.globals |= {function.__name__: function for function in _FUNCTIONS}
    templates.globals |= {"code": Code, "strong": Strong, "equals": _equals}
    return templates


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _as_html(value: Any) -> Markup:
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup(f'<abbr title="missing">{MISSING_MARK}</abbr>')
    text = escape(str(value))
    if isinstance(value, Code):
        return Markup("<code>{}</code>").format(text)
    return Markup("<strong>{}</strong>").format(text) if isinstance(value, Strong) else text


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _as_markdown(value: Any) -> Markup:
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup(MISSING_MARK)
    text = " ".join(str(value).split())
    if isinstance(value, Code) and text:
        fence = "`" * (_longest_run(text) + 1)
        space = " " if text.startswith("`") or text.endswith("`") else ""
        return Markup(f"{fence}{space}{text}{space}{fence}")
    text = _SPECIAL.sub(r"\\\g<0>", text)
    return Markup(f"**{text}**" if isinstance(value, Strong) and text else text)


def _one_line(text: str) -> Markup:
    return Markup(" ".join(text.split()))


def _paragraph(text: str) -> Markup:
    return Markup(_LINE_START.sub(r"\1\\\2", _one_line(text)))


def _fenced(text: str, language: str) -> Markup:
    fence = "`" * max(3, _longest_run(text) + 1)
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _aligned(table: Table) -> Markup:
    rows = [[_as_markdown(name) for name in table.columns]]
    for title, own in table.groups:
        if title:
            rows.append([Markup(f"*{_as_markdown(title)}*"), *[Markup()] * (len(rows[0]) - 1)])
        # a bar would end the cell, also inside of code
        rows += [
            [
                _as_markdown(c).replace("|", "\\|") if isinstance(c, Code) else _as_markdown(c)
                for c in row
            ]
            for row in own
        ]
    return Markup(markdown_table(rows, table.texts))
