"""CSV with a header, row by row: reading goes on after one that is broken."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from degaml_kedro.tasks.example import Example, shorten
from degaml_kedro.tasks.pasting.keyed import ANSWERS, OPTIONS, QUESTIONS, from_record, plain_key
from degaml_kedro.tasks.pasting.record import (
    MAX_RECORD,
    PastedError,
    Record,
    Unlisted,
    found,
    printable,
)

_DELIMITERS = ",;\t"


def csv_header(lines: Sequence[str]) -> tuple[list[str], str]:
    """The first line's names and their delimiter: the one that yields most known names."""
    first = next((line for line in lines if line.strip()), "")
    splits = []
    for delimiter in _DELIMITERS:
        try:
            names = next(csv.reader([first], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        known = sum(plain_key(name) in (*QUESTIONS, *ANSWERS, *OPTIONS) for name in names)
        splits.append((known, len(names), names, delimiter))
    if not splits:
        return [], ","
    _, _, names, delimiter = max(splits, key=lambda split: split[:2])
    while names and not names[-1].strip():
        names.pop()
    return names, delimiter


def csv_records(text: str, called: str) -> Iterator[Record]:
    """The rows under the header; after one with unbalanced quotes, reading goes on at the next line."""
    lines = text.split("\n")
    header, delimiter = csv_header(lines)
    names = [plain_key(name) for name in header]
    number = next(i for i, line in enumerate(lines) if line.strip()) + 1
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        raise PastedError(
            f"{called}, line {number}: the column {shorten(printable(repeated[0]))} comes twice; rename one of the "
            "two."
        )
    for what, known in (("question", QUESTIONS), ("answer", ANSWERS)):
        if not set(known).intersection(names):
            shown = shorten(printable(", ".join(header)))
            raise PastedError(
                f"{called}, line {number}: the header {shown} names no {what}; begin with a line "
                "of column names, such as: question,options,answer."
            )
    while number < len(lines):
        where = f"Line {number + 1}"
        if not lines[number].strip():
            number += 1
            continue
        try:
            cells, end = _csv_row(lines, number, delimiter, where)
        except PastedError as error:
            yield Record(number + 1, lines[number], str(error))
            number += 1
            continue
        if any(cell.strip() for cell in cells):
            raw = "\n".join(lines[number:end])
            yield found(number + 1, raw, _row_reader(cells, names, where))
        number = end


def _csv_row(lines: Sequence[str], start: int, delimiter: str, where: str) -> tuple[list[str], int]:
    """The cells of the row that begins at a line, and the line after it."""

    def fed() -> Iterator[str]:
        size = 0
        for i in range(start, len(lines)):
            size += len(lines[i]) + 1
            if size > MAX_RECORD:
                return
            yield lines[i] + "\n"

    if len(lines[start]) >= MAX_RECORD:
        raise PastedError(
            f"{where}: the row has {len(lines[start]):,} characters; shorten it to at most {MAX_RECORD:,}."
        )
    reader = csv.reader(fed(), delimiter=delimiter, strict=True)
    try:
        return next(reader, []), start + reader.line_num
    except csv.Error as error:
        if "unexpected end" in str(error):
            reason = "a quote is opened and not closed"
        else:
            reason = f"the quotes are not valid CSV ({error})"
        raise PastedError(
            f'{where}: {reason}; put the whole field in quotes, and double the quotes inside it: "say ""hi""".'
        ) from error


def _row_reader(
    cells: list[str], names: Sequence[str], where: str
) -> Callable[[], Example | Unlisted]:
    def read() -> Example | Unlisted:
        while len(cells) > len(names) and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(names):
            raise PastedError(
                f"{where}: {len(cells)} field(s) where the header has {len(names)}; put fields that have the delimiter "
                "in them in quotes."
            )
        return from_record(
            {name: cell for name, cell in zip(names, cells, strict=True) if name}, where
        )

    return read
