"""Examples as people paste them: plain text, JSON, JSONL or CSV, with the mistakes marked by line.

Files of a task are read strictly (``tasks/files.py``): the first oddity is an error. Here every record is read by
itself, and one that is wrong becomes a row with its mistake beside the right ones. Plain text has three forms::

    # the options are all the answers that occur
    What month comes after March? => April

    # options of its own, the right one with a star (or "=> April" at the end)
    What month comes after March? | May | April* | June

    What month comes after March?
    A: May
    B: April
    Answer: B
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from degaml_kedro.tasks.example import MAX_OPTIONS, Example, Question, shorten
from degaml_kedro.tasks.pasting.csv_text import csv_header, csv_records
from degaml_kedro.tasks.pasting.json_text import json_records, jsonl_records
from degaml_kedro.tasks.pasting.keyed import ANSWERS, QUESTIONS, plain_key
from degaml_kedro.tasks.pasting.plain import text_records
from degaml_kedro.tasks.pasting.record import (
    MAX_FIELD,
    PastedError,
    Record,
    Unlisted,
    made,
    printable,
)

__all__ = [
    "MAX_BYTES",
    "MAX_FIELD",
    "MAX_ROWS",
    "MAX_SHOWN",
    "Pasted",
    "PastedError",
    "PastedRow",
    "read_data",
    "read_file",
    "read_pasted",
    "read_question",
]

MAX_BYTES = 1 << 20
MAX_ROWS = 2000
MAX_SHOWN = 200
_MAX_MESSAGE = 500

Layout = Literal["text", "json", "jsonl", "csv"]

_LAYOUTS: dict[str, Layout] = {
    ".txt": "text",
    ".md": "text",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}


@dataclass(frozen=True)
class PastedRow:
    """One record of a pasted text.

    Attributes:
        line: The line it begins at, from 1.
        shown: What stands there, on one line and cut to 200 characters.
        example: What it was read as; None for a mistake.
        mistake: What is wrong, and the way out; None for an example.
    """

    line: int
    shown: str
    example: Example | None
    mistake: str | None


@dataclass(frozen=True)
class Pasted:
    """A pasted text, read.

    Attributes:
        layout: What it was read as.
        rows: Its records in order.
    """

    layout: Layout
    rows: tuple[PastedRow, ...]

    @property
    def examples(self) -> tuple[Example, ...]:
        """The examples in order."""
        return tuple(row.example for row in self.rows if row.example is not None)

    @property
    def mistakes(self) -> tuple[PastedRow, ...]:
        """The rows that are no examples."""
        return tuple(row for row in self.rows if row.mistake is not None)


def read_file(path: Path) -> Pasted:
    """Read a file of examples; its suffix decides the layout.

    Raises:
        PastedError: The file cannot be read, or see ``read_data``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PastedError(
            f"The file '{path}' cannot be read ({reason}); check its path and permissions."
        ) from error
    return read_data(data, path.name)


def read_data(data: bytes, name: str) -> Pasted:
    """Read what a file holds.

    Args:
        data: Its bytes.
        name: Its name, whose suffix decides the layout.

    Raises:
        PastedError: It is too large, binary or not UTF-8, or see ``read_pasted``.
    """
    called = _called(name)
    if len(data) > MAX_BYTES:
        raise PastedError(_too_large(called))
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PastedError(f"{called} is UTF-16; save it as UTF-8.")
    if b"\0" in data:
        raise PastedError(_binary(called, data.count(b"\n", 0, data.index(b"\0")) + 1))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PastedError(
            f"{called}, line {line}: byte 0x{data[error.start]:02X} is not UTF-8; save the file as UTF-8, or as "
            "CSV, JSON, JSONL or plain text if it is none of these."
        ) from error
    return read_pasted(text, name)


def read_pasted(text: str, name: str = "") -> Pasted:
    r"""Read examples from a text.

    Records without options of their own are given all the answers of such records as options, in the order in which
    they first occur. Everything is kept as it is written, apart from line ends and blanks around a field.

    Args:
        text: The text: plain, JSON, JSONL or CSV with a header.
        name: The name of the file that it comes from, whose suffix decides the layout; without a known one the
            layout is found from the text.

    Returns:
        The records in order, examples and mistakes.

    Raises:
        PastedError: The text is empty, too large or binary, has too many records, or its layout cannot be read at
            all; or no record has options of its own, and their answers are fewer than 2 or more than 26.

    Example:
        >>> pasted = read_pasted("Is fire hot? => yes\nIs ice hot? => no\nIs it?")
        >>> pasted.examples[1].options, pasted.examples[1].gold
        (('yes', 'no'), 1)
        >>> [row.line for row in pasted.mistakes]
        [3]
    """
    called = _called(name)
    # The length is looked at first: a text of gigabytes is not encoded to be measured.
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise PastedError(_too_large(called))
    if "\0" in text:
        raise PastedError(_binary(called, text.count("\n", 0, text.index("\0")) + 1))
    text = _with_line_feeds(text.removeprefix("\ufeff"))
    if not text.strip():
        raise PastedError(f"{called} is empty; write at least two examples. {_FORMS}")

    suffix = PurePath(name).suffix.lower()
    layout = _LAYOUTS.get(suffix) or _layout_of(text)
    readers: dict[Layout, Callable[[str, str], Iterator[Record]]] = {
        "text": text_records,
        "json": json_records,
        "jsonl": jsonl_records,
        "csv": csv_records,
    }
    records = list(itertools.islice(readers[layout](text, called), MAX_ROWS + 1))
    if len(records) > MAX_ROWS:
        raise PastedError(
            f"{called} has more than {MAX_ROWS:,} examples; keep at most {MAX_ROWS:,} of them."
        )
    if not records:
        raise PastedError(f"{called} has no examples; write at least two. {_FORMS}")
    return Pasted(layout, tuple(_rows(records)))


def read_question(text: str, options: Sequence[str]) -> Question:
    """A question of one's own, with its options.

    Args:
        text: The question.
        options: The option texts; blank ones are left out.

    Raises:
        PastedError: The question is blank or too long, an option comes twice, or there are fewer than 2 or more
            than 26.
    """
    question = _with_line_feeds(text).strip()
    texts = [option for given in options if (option := _with_line_feeds(given).strip())]
    if not question:
        raise PastedError("The question is blank; write one.")
    return Question.of(made(question, texts, 0, "", "The question"))


_FORMS = "Forms: 'question => answer', or 'question | wrong option | right option*'."


def _called(name: str) -> str:
    return f"The file {shorten(printable(PurePath(name).name))}" if name.strip() else "The text"


def _too_large(called: str) -> str:
    return (
        f"{called} is larger than {MAX_BYTES // 1024:,} KiB; keep fewer or shorter examples "
        "(a few dozen are enough to adapt to)."
    )


def _binary(called: str, line: int) -> str:
    return (
        f"{called} is binary, not text (line {line} has a zero byte); save it as CSV, JSON, JSONL or plain text in "
        "UTF-8."
    )


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _on_one_line(text: str, width: int) -> str:
    # Blanks may shrink to nothing, so a little more than the width is looked at; all of it would be slow.
    flat = printable(" ".join(text[: 10 * width].split()))
    return flat if len(flat) <= width else f"{flat[: width - 1]}…"


# --- rows -----------------------------------------------------------------------------------------


def _rows(records: Sequence[Record]) -> Iterator[PastedRow]:
    """Rows for people: records without options are given them, and contradictions are found."""
    answers = list(
        dict.fromkeys(r.content.answer for r in records if isinstance(r.content, Unlisted))
    )
    unfit = _unfit(answers)
    if unfit and all(isinstance(record.content, Unlisted) for record in records):
        raise PastedError(unfit)
    first: dict[str, tuple[int, Example]] = {}
    for record in records:
        content, where = record.content, f"Line {record.line}"
        if isinstance(content, Unlisted):
            alone = f"{where} has no options of its own. {unfit}"
            content = alone if unfit else _listing(content, answers, where)
        if isinstance(content, Example):
            line, other = first.setdefault(content.prompt, (record.line, content))
            if other.gold != content.gold:
                right = shorten(other.options[other.gold])
                content = f"{where}: the same question has the answer {right} in line {line}; keep the right one."
        shown = _on_one_line(record.raw, MAX_SHOWN)
        if isinstance(content, str):
            yield PastedRow(record.line, shown, None, _on_one_line(content, _MAX_MESSAGE))
        else:
            yield PastedRow(record.line, shown, content, None)


def _unfit(answers: Sequence[str]) -> str | None:
    """Why the answers of all records without options cannot be their options."""
    own = "give the questions options of their own: 'question | wrong option | right option*'."
    if len(answers) == 1:
        return f"Examples without options all have the answer {shorten(answers[0])}; add some with another, or {own}"
    if len(answers) > MAX_OPTIONS:
        return (
            f"There are {len(answers)} different answers, and a question has at most {MAX_OPTIONS} options; use "
            f"fewer, or {own}"
        )
    return None


def _listing(given: Unlisted, answers: Sequence[str], where: str) -> Example | str:
    gold = answers.index(given.answer)
    try:
        return made(given.question, answers, gold, given.system, where)
    except PastedError as error:
        return str(error)


# --- layouts --------------------------------------------------------------------------------------

_LOOKS_LIKE_LIST = re.compile(r"\s*\[\s*(?:[\[{\]]|\Z)")
_LOOKS_LIKE_OBJECT = re.compile(r"\s*\{\s*(?:[\"}]|\Z)")


def _layout_of(text: str) -> Layout:
    if _LOOKS_LIKE_LIST.match(text):
        return "json"
    if _LOOKS_LIKE_OBJECT.match(text):
        return "jsonl"
    header, _ = csv_header(text.split("\n"))
    names = {plain_key(name) for name in header}
    return "csv" if names.intersection(QUESTIONS) and names.intersection(ANSWERS) else "text"
