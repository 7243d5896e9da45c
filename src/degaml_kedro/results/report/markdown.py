"""A document as Markdown (GitHub's): tables as text, figures as captions that point to the page."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
    Span,
    Table,
    notes_of,
)

# an underscore inside a word is only an underscore
_SPECIAL = re.compile(r"[\\`*\[\]<>&|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# what makes a line a heading or part of a list
_LINE_START = re.compile(r"^(\d*)([#+\-=.)])")


def markdown_text(document: Document, page: str) -> str:
    """Write a document as Markdown.

    Args:
        document: the document.
        page: the file name of the HTML page with the figures, in the same folder.
    """
    parts = [f"# {_escaped(document.title)}", _escaped(document.subtitle)]
    for section in document.sections:
        parts += _section(section, 2, page)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section, level: int, page: str) -> list[str]:
    parts = [f"{'#' * level} {_escaped(section.title)}"]
    for block in section.blocks:
        parts += _block(block, page)
    for inner in section.sections:
        parts += _section(inner, level + 1, page)
    return parts


def _block(block: Block, page: str) -> list[str]:
    match block:
        case Paragraph():
            return [_paragraph(block)]
        case Bullets():
            return ["\n".join(f"- {_paragraph(item)}" for item in block.items)]
        case Table():
            return _table(block)
        case Picture():
            return [f"[Figure](<{page}#figure-{block.key}>): {_escaped(block.caption)}"]
        case Listing():
            return [_listing(block)]


def _paragraph(paragraph: Paragraph) -> str:
    text = "".join(_inline(part) for part in paragraph.parts)
    return _LINE_START.sub(r"\1\\\2", text)


def _table(table: Table) -> list[str]:
    rows = [[_escaped(name) for name in table.columns]]
    for group in table.groups:
        rows += _rows(group, len(table.columns))
    notes = [_escaped(note) for note in notes_of(table)]
    return [f"**{_escaped(table.caption)}**", _aligned(rows, table.texts), *notes]


def _aligned(rows: Sequence[Sequence[str]], texts: int) -> str:
    """Columns that line up: texts to the left, numbers to the right."""
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * width if column < texts else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def _rows(group: RowGroup, columns: int) -> list[list[str]]:
    head = [[f"*{_escaped(group.title)}*", *[""] * (columns - 1)]] if group.title else []
    return head + [[_cell(cell) for cell in row] for row in group.rows]


def _cell(cell: Cell) -> str:
    if cell is None:
        return MISSING_MARK
    if isinstance(cell, Span) and cell.code:
        # a bar would end the cell, also inside of code
        return _inline(cell).replace("|", "\\|")
    return _inline(cell)


def _inline(part: Inline) -> str:
    if isinstance(part, str):
        return _escaped(part)
    if not part.text:
        return ""
    text = _code(part.text) if part.code else _escaped(part.text)
    return f"**{text}**" if part.strong else text


def _code(text: str) -> str:
    text = _one_line(text)
    fence = "`" * (_longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _listing(listing: Listing) -> str:
    fence = "`" * max(3, _longest_run(listing.text) + 1)
    return f"{fence}{listing.language}\n{listing.text}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", _one_line(text))


def _one_line(text: str) -> str:
    parts = " ".join(text.split())
    lead = " " if text[:1].isspace() and parts else ""
    tail = " " if text[-1:].isspace() and parts else ""
    return f"{lead}{parts}{tail}"
