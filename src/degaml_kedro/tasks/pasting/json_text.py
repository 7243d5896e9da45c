"""JSON and JSONL, record by record: reading goes on after one that is broken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from degaml_kedro.errors import DegamlError
from degaml_kedro.tasks.example import Example, shorten
from degaml_kedro.tasks.files import CutOffError, FileError, decode_record, skip_blanks
from degaml_kedro.tasks.pasting.keyed import from_record
from degaml_kedro.tasks.pasting.record import (
    MAX_RECORD,
    PastedError,
    Record,
    Unlisted,
    found,
    printable,
)

_BRACE = re.compile(r"(?=\{)")
# The brace that opens the item after one in braces.
_NEXT_ITEM = re.compile(r"(?<=\})\s*+,?\s*+(?=\{)")


def json_records(text: str, called: str) -> Iterator[Record]:
    """The items of a JSON list; after one that is no JSON, reading goes on where the next one seems to begin."""
    position = skip_blanks(text, 0)
    if text[position] != "[":
        also = ", or name the file .jsonl" if text[position] == "{" else ""
        raise PastedError(
            f"{called} should be a JSON list of records, [{{…}}, {{…}}], but begins with "
            f"{shorten(printable(text[position]))}; put its records in square brackets{also}."
        )
    position = skip_blanks(text, position + 1)
    line, counted = 1, 0
    while position < len(text) and text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            record, end = _decoded(text[position : position + MAX_RECORD], line)
        except DegamlError as error:
            next_item = _NEXT_ITEM if text[position] == "{" else _BRACE
            follows = next_item.search(text, position + 1)
            end = follows.end() if follows else len(text)
            yield Record(line, text[position:end], str(error))
            if not follows:
                return
            position = end
            continue
        yield found(line, text[position : position + end], _reader(record, f"Line {line}"))
        position = skip_blanks(text, position + end)
        if text[position : position + 1] == ",":
            position = skip_blanks(text, position + 1)
    line += text.count("\n", counted, position)
    if position >= len(text):
        mistake = "the list has no closing bracket; it looks cut off: copy it again, or add ']'."
        yield Record(line, "", f"Line {line}: {mistake}")
        return
    rest = skip_blanks(text, position + 1)
    if rest < len(text):
        line += text.count("\n", position, rest)
        mistake = "there is text after the closing bracket of the list; remove it."
        yield Record(line, text[rest:], f"Line {line}: {mistake}")


def jsonl_records(text: str, called: str) -> Iterator[Record]:
    """The objects of the lines."""
    if _is_one_object(text):
        raise PastedError(
            f"{called} is one JSON object over several lines; put the records in a list, [{{…}}, {{…}}], or write each "
            "on a line of its own."
        )
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield found(number, line, _line_reader(line.strip(), number))


def _is_one_object(text: str) -> bool:
    """Whether the text begins with an object that does not end on its line."""
    try:
        _, end = decode_record(text, skip_blanks(text, 0), "")
    except (DegamlError, RecursionError):
        return text.strip().partition("\n")[0].strip() == "{"
    return "\n" in text[:end].strip()


def _decoded(text: str, line: int) -> tuple[dict[str, Any], int]:
    """The object that a text begins with, and where it ends.

    Raises:
        DegamlError: It does not begin with a JSON object.
    """
    where = f"Line {line}"
    try:
        return decode_record(text[:MAX_RECORD], 0, where)
    except FileError as error:
        cause = error.__cause__
        if not isinstance(cause, json.JSONDecodeError):
            raise
        cut_off = isinstance(error, CutOffError)
        # The window may end in the middle of a word.
        if len(text) >= MAX_RECORD and (cut_off or cause.pos > MAX_RECORD - 10):
            reason = (
                f"the record does not end within {MAX_RECORD:,} characters; shorten it, or close its quotes and "
                "brackets."
            )
        elif cut_off:
            reason = "the record has no end; it looks cut off: copy it again."
        else:
            where = f"Line {line + text.count(chr(10), 0, cause.pos)}"
            there = shorten(text[cause.pos : cause.pos + 30].partition("\n")[0])
            reason = (
                f"this is not valid JSON ({cause.msg}, but there is {there}); correct it there."
            )
        raise PastedError(f"{where}: {reason}") from error


def _line_reader(text: str, line: int) -> Callable[[], Example | Unlisted]:
    def read() -> Example | Unlisted:
        record, end = _decoded(text, line)
        if text[end:].strip(" \t,"):
            raise PastedError(
                f"Line {line}: there is text after the record; write one record a line."
            )
        return from_record(record, f"Line {line}")

    return read


def _reader(record: Mapping[str, Any], where: str) -> Callable[[], Example | Unlisted]:
    return lambda: from_record(record, where)
