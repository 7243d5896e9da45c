"""The report as Markdown, from ``report.md.j2``, and as an HTML page of the same Markdown with its figures."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd
import plotly.io  # type: ignore[import-untyped]
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from degaml_kedro.results import formatting
from degaml_kedro.results.glossary import meaning

# the page's file name, which the Markdown points to
PAGE = "report.html"
MISSING_MARK = "—"
# wide enough for the notes under a figure; print makes it smaller as a whole
_FIGURE_WIDTH = 1060
_NO_RESULT = "missing; there is no result, which is not a result of 0"
# an underscore inside a word is only an underscore
_SPECIAL = re.compile(r"[\\`*\[\]<>&|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# what makes a line a heading or part of a list
_LINE_START = re.compile(r"^(\d*)([#+\-=.)])(?=[\s#=-]|$)")
_SCRIPT = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)
_FIGURE = re.compile(rf'<p><a href="{PAGE}#figure-([\w-]+)">Figure</a>: (.*?)</p>', re.DOTALL)


class Code(str):
    """A name or a command."""


class Strong(str):
    """Text in bold."""


class Emphasis(str):
    """Text in italics: the title of a group of rows."""


# None is a value that is missing, "" a place where there is none to expect
Cell = str | None


@dataclass(frozen=True)
class Table:
    """Rows under column names; every number is text already, so that page and Markdown show the same.

    Attributes:
        caption: what the table shows.
        columns: their names.
        rows: as many cells each.
        notes: how they are read.
        texts: how many of the first columns are text; all others are numbers.
        missing: what a missing value means here.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    texts: int = 1
    missing: str = _NO_RESULT

    @property
    def all_notes(self) -> list[str]:
        """The notes, with one on what is missing."""
        gaps = any(cell is None for row in self.rows for cell in row)
        return [*self.notes, *([f"{MISSING_MARK}: {self.missing}."] if gaps else [])]


def render_markdown(values: Mapping[str, Any]) -> str:
    """The report as GitHub's Markdown, in which every value of ``report.md.j2`` is escaped."""
    templates = Environment(
        loader=PackageLoader(__package__, ""),
        finalize=_escaped,
        # so that what has been escaped is not escaped again
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= vars(formatting)
    templates.globals |= {"meaning": meaning, "code": Code, "strong": Strong, "page": PAGE}
    templates.globals |= {"grid": _grid, "fenced": _fenced}
    text = templates.get_template("report.md.j2").render(values)
    return re.sub("\n{3,}", "\n\n", text).strip() + "\n"


def render_html(text: str, figures: Mapping[str, Any]) -> str:
    """The report's Markdown as one HTML page: nothing is fetched, and a policy in the page forbids it.

    HTML in the text stays text. It points to the figures, which are Plotly's, by their names.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    contents = _name_headings(tokens)
    for token in tokens:
        if token.type == "th_open":
            token.attrSet("scope", "col")
    drawings = {
        name: plotly.io.to_html(
            figure,
            full_html=False,
            # the drawing program once
            include_plotlyjs=number == 0,
            div_id=f"plot-{name}",
            default_width=f"{_FIGURE_WIDTH}px",
            config={"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""},
        )
        for number, (name, figure) in enumerate(figures.items())
    }
    body = markdown.renderer.render(tokens, markdown.options, {})
    body = body.replace("<table>", '<div class="wide" role="region" tabindex="0"><table>')
    body = body.replace("</table>", "</table></div>")
    body = _FIGURE.sub(lambda found: _figure(found[1], found[2], drawings[found[1]]), body)
    programs = [own for drawing in drawings.values() for own in _SCRIPT.findall(drawing)]
    templates = Environment(
        loader=PackageLoader(__package__, ""), autoescape=True, trim_blocks=True
    )
    return templates.get_template("report.html.j2").render(
        title=contents[0][2],
        contents=contents[1:],
        body=Markup(body),
        allowed=Markup(" ".join(map(_digest, programs)) or "'none'"),
    )


def _name_headings(tokens: Sequence[Token]) -> list[tuple[int, str, str]]:
    """Give headings an id to point to; level, id and text of each."""
    found = []
    for token, inside in pairwise(tokens):
        if token.type == "heading_open":
            title = "".join(part.content for part in inside.children or ())
            name = re.sub(r"\W+", "-", title.lower()).strip("-")
            token.attrSet("id", name)
            found.append((int(token.tag[1]), name, title))
    return found


def _figure(name: str, caption: str, drawing: str) -> str:
    words = html.escape(html.unescape(re.sub("<[^>]*>", "", caption)))
    return (
        f'<figure id="figure-{name}"><div class="wide plot" role="img" aria-label="{words}" tabindex="0">{drawing}'
        f"</div><figcaption>{caption}</figcaption></figure>"
    )


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _escaped(value: Any) -> Markup:
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup(MISSING_MARK)
    text = " ".join(str(value).split())
    if isinstance(value, Code) and text:
        fence = "`" * (_longest_run(text) + 1)
        space = " " if text.startswith("`") or text.endswith("`") else ""
        return Markup(f"{fence}{space}{text}{space}{fence}")
    text = _LINE_START.sub(r"\1\\\2", _SPECIAL.sub(r"\\\g<0>", text))
    mark = "**" if isinstance(value, Strong) else "*" if isinstance(value, Emphasis) else ""
    return Markup(f"{mark}{text}{mark}" if text else "")


def _fenced(text: str, language: str) -> Markup:
    fence = "`" * max(3, _longest_run(text) + 1)
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _grid(table: Table) -> Markup:
    # a bar would end the cell, also inside of code
    cells = [
        [
            _escaped(cell).replace("|", r"\|") if isinstance(cell, Code) else _escaped(cell)
            for cell in row
        ]
        for row in (table.columns, *table.rows)
    ]
    return Markup(formatting.markdown_table(pd.DataFrame(cells[1:], columns=cells[0]), table.texts))
