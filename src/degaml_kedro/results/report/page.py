"""A document as one HTML page that opens from disk: style, figures and the program that draws them are inside."""

from __future__ import annotations

import base64
import copy
import hashlib
import html

from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from degaml_kedro.results.report.document import (
    MISSING_MARK,
    Block,
    Bullets,
    Cell,
    Document,
    Inline,
    Listing,
    Paragraph,
    Picture,
    RowGroup,
    Section,
    Table,
    notes_of,
)
from degaml_kedro.results.report.style import DRAW, STYLE

# wide enough for the notes under a figure; print makes it smaller as a whole
FIGURE_WIDTH = 1060
_DEEPEST_HEADING = 6


def html_page(document: Document) -> str:
    """Write a document as a page.

    Nothing is fetched, and a policy in the page forbids it; only the two programs of the page itself may run. All text
    is escaped.

    Args:
        document: the document.
    """
    drawn = bool(document.pictures)
    scripts = [get_plotlyjs(), DRAW] if drawn else []
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    )
    title, subtitle = html.escape(document.title), html.escape(document.subtitle)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            '<a class="skip" href="#content">Skip to the content</a>',
            f"<header><h1>{title}</h1><p>{subtitle}</p></header>",
            f'<nav aria-labelledby="contents"><h2 id="contents">Contents</h2>{_contents(document.sections)}</nav>',
            '<main id="content">',
            *(_section(section, 2) for section in document.sections),
            "</main>",
            *(f"<script>{script}</script>" for script in scripts),
            "</body>",
            "</html>",
            "",
        ]
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _contents(sections: tuple[Section, ...]) -> str:
    if not sections:
        return ""
    items = "".join(
        f'<li><a href="#{html.escape(s.key)}">{html.escape(s.title)}</a>{_contents(s.sections)}</li>'
        for s in sections
    )
    return f"<ol>{items}</ol>"


def _section(section: Section, level: int) -> str:
    key, heading = html.escape(section.key), f"h{min(level, _DEEPEST_HEADING)}"
    blocks = [_block(block) for block in section.blocks]
    inner = [_section(part, level + 1) for part in section.sections]
    return "\n".join(
        [
            f'<section aria-labelledby="{key}">',
            f'<{heading} id="{key}">{html.escape(section.title)}</{heading}>',
            *blocks,
            *inner,
            "</section>",
        ]
    )


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return f"<p>{_paragraph(block)}</p>"
        case Bullets():
            items = "".join(f"<li>{_paragraph(item)}</li>" for item in block.items)
            return f"<ul>{items}</ul>"
        case Table():
            return _table(block)
        case Picture():
            return _picture(block)
        case Listing():
            # keyboards reach what is scrolled
            return f'<pre tabindex="0"><code>{html.escape(block.text)}</code></pre>'


def _paragraph(paragraph: Paragraph) -> str:
    return "".join(_inline(part) for part in paragraph.parts)


def _inline(part: Inline) -> str:
    if isinstance(part, str):
        return html.escape(part)
    text = html.escape(part.text)
    if part.code:
        text = f"<code>{text}</code>"
    return f"<strong>{text}</strong>" if part.strong else text


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_kind(table, column)}>{_breakable(name)}</th>'
        for column, name in enumerate(table.columns)
    )
    bodies = "".join(_group(table, group) for group in table.groups)
    caption = html.escape(table.caption)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in notes_of(table))
    notes = f'<div class="notes">{notes}</div>' if notes else ""
    return (
        f'<div class="table"><div class="wide" role="region" aria-label="{caption}" tabindex="0">'
        f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>{bodies}</table></div>"
        f"{notes}</div>"
    )


def _breakable(name: str) -> str:
    """A column's name that may go on in a second line after an underscore."""
    return html.escape(name).replace("_", "_<wbr>")


def _kind(table: Table, column: int) -> str:
    return "" if column < table.texts else ' class="number"'


def _group(table: Table, group: RowGroup) -> str:
    title = ""
    if group.title:
        # spans all columns, and names the rows under it
        title = (
            f'<tr><th class="group" scope="rowgroup" colspan="{len(table.columns)}">'
            f"{html.escape(group.title)}</th></tr>"
        )
    rows = "".join(f"<tr>{_cells(table, row)}</tr>" for row in group.rows)
    return f"<tbody>{title}{rows}</tbody>"


def _cells(table: Table, row: tuple[Cell, ...]) -> str:
    cells = []
    for column, cell in enumerate(row):
        kind = _kind(table, column)
        if column == 0:
            cells.append(f'<th scope="row">{_cell(cell)}</th>')
        else:
            cells.append(f"<td{kind}>{_cell(cell)}</td>")
    return "".join(cells)


def _cell(cell: Cell) -> str:
    return f'<abbr title="missing">{MISSING_MARK}</abbr>' if cell is None else _inline(cell)


def _picture(picture: Picture) -> str:
    key, caption = html.escape(picture.key), html.escape(picture.caption)
    # the catalog keeps the figure as it is
    figure = copy.deepcopy(picture.figure).update_layout(width=FIGURE_WIDTH)
    # Plotly writes "<" as an escape: nothing in it ends the element
    drawing = figure.to_json()
    return (
        f'<figure id="figure-{key}">'
        f'<div class="wide" role="region" aria-label="Figure" tabindex="0">'
        f'<div class="plot" role="img" aria-label="{caption}" style="height:{figure.layout.height or 450}px">'
        f"<noscript>Figures are drawn by JavaScript, which is switched off here.</noscript></div></div>"
        f'<script type="application/json">{drawing}</script>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
