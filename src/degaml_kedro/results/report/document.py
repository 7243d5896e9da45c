"""A report before it is a file: sections of paragraphs, tables, figures and code.

Every number is text here already, so that a page and a Markdown file made from one document show the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Span:
    """A piece of text.

    Attributes:
        text: as a person reads it; renderers escape it.
        strong: printed bold.
        code: a name or a command.
    """

    text: str
    strong: bool = False
    code: bool = False


Inline = str | Span
# None is a value that is missing, "" a place where there is none to expect
Cell = Inline | None


def code(text: str) -> Span:
    """A name or a command in a text."""
    return Span(text, code=True)


def strong(text: str) -> Span:
    """Bold text."""
    return Span(text, strong=True)


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    parts: tuple[Inline, ...]


def paragraph(*parts: Inline) -> Paragraph:
    """A paragraph from its pieces, which follow each other without a space."""
    return Paragraph(parts)


@dataclass(frozen=True)
class Bullets:
    """Paragraphs that belong to one list."""

    items: tuple[Paragraph, ...]


@dataclass(frozen=True)
class RowGroup:
    """Rows of a table that belong together.

    Attributes:
        rows: the first cell of each is its name.
        title: what they have in common; empty in a table of one group.
    """

    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under column names.

    Attributes:
        caption: what the table shows.
        columns: their names.
        groups: the rows.
        notes: how they are read.
        texts: how many of the first columns are text; all others are numbers.
        missing: what a missing value means here.
    """

    caption: str
    columns: tuple[str, ...]
    groups: tuple[RowGroup, ...]
    notes: tuple[str, ...] = ()
    texts: int = 1
    missing: str = "missing; there is no result, which is not a result of 0"

    @classmethod
    def of(
        cls,
        caption: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        notes: Sequence[str] = (),
        texts: int = 1,
        missing: str = "",
    ) -> Table:
        """A table of one group."""
        group = RowGroup(tuple(tuple(row) for row in rows))
        return cls(caption, tuple(columns), (group,), tuple(notes), texts, missing or cls.missing)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table '{self.caption}': a row has {len(row)} cells and there are {len(self.columns)} columns"
                )

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """Of all groups."""
        return [row for group in self.groups for row in group.rows]

    @property
    def has_missing(self) -> bool:
        """Whether a value is missing."""
        return any(cell is None for row in self.rows for cell in row)


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        key: names it in links; lower-case letters and dashes.
        caption: what it shows and how it is read.
        figure: Plotly's; its numbers are in a table nearby, for those who cannot see it.
    """

    key: str
    caption: str
    figure: Any


@dataclass(frozen=True)
class Listing:
    """Lines of a program, of a configuration or of a terminal."""

    text: str
    language: str = ""


Block = Paragraph | Bullets | Table | Picture | Listing


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Attributes:
        key: names it in links; lower-case letters and dashes.
        title: the heading.
        blocks: in the order of reading.
        sections: under this one.
    """

    key: str
    title: str
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: its heading.
        subtitle: what it is of.
        sections: in the order of reading.
    """

    title: str
    subtitle: str
    sections: tuple[Section, ...]

    @property
    def pictures(self) -> list[Picture]:
        """All figures, in the order of reading."""
        return [
            block
            for section in walk(self.sections)
            for block in section.blocks
            if isinstance(block, Picture)
        ]


def walk(sections: Sequence[Section]) -> list[Section]:
    """Sections and those under them, in the order of reading."""
    found = []
    for section in sections:
        found += [section, *walk(section.sections)]
    return found


MISSING_MARK = "—"


def notes_of(table: Table) -> tuple[str, ...]:
    """A table's notes, with a word on what is missing."""
    if not table.has_missing:
        return table.notes
    return (*table.notes, f"{MISSING_MARK}: {table.missing}.")
