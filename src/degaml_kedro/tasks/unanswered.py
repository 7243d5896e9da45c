"""Questions without answers, to ask a model: in the layouts of pasted examples, with the answer left out."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from degaml_kedro.tasks.example import Question, split_prompt
from degaml_kedro.tasks.pasted import MAX_BYTES, MAX_ROWS, PastedError, read_question
from degaml_kedro.tasks.pasting.keyed import ANSWERS, OPTIONS, QUESTIONS

_ANSWER_LINE = re.compile(r"answer\s*:", re.IGNORECASE)
_OPTION_COLUMN = re.compile(r"[A-Z]")

# a question and its options, with the line they stand on
_Found = tuple[int, str, Sequence[str]]


def read_unanswered(data: bytes, name: str = "") -> list[Question] | None:
    """Read questions that have options and no answers.

    Text has a question a line, ``What comes after March? | May | April``, or blocks of a question and its ``A: …``
    lines. JSON, JSONL and CSV have a question and its options.

    Args:
        data: a file's bytes.
        name: its name, whose suffix may decide the layout.

    Returns:
        The questions; None where there is an answer, or none of these layouts: then it is for
        :func:`~degaml_kedro.tasks.pasted.read_data`, which says what is wrong with it.

    Raises:
        PastedError: a question has no options, or is otherwise none; the message names its line.

    Example:
        >>> [question] = read_unanswered(b"Which is a fruit? | apple | chair")
        >>> question.options
        ('apple', 'chair')
        >>> read_unanswered(b"Which is a fruit? | apple* | chair") is None
        True
    """
    if len(data) > MAX_BYTES or b"\0" in data:
        return None
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        return None
    suffix = Path(name).suffix.lower()
    if suffix == ".csv":
        found = _of_records(_csv_records(text))
    elif suffix in (".json", ".jsonl") or text.lstrip().startswith(("[", "{")):
        found = _of_records(_json_records(text))
    else:
        found = _of_lines(text) or _of_blocks(text)
    if not found:
        return None
    if len(found) > MAX_ROWS:
        raise PastedError(f"There are {len(found):,} questions; ask at most {MAX_ROWS:,} at once.")
    return [_question(line, question, options) for line, question, options in found]


def _question(line: int, question: str, options: Sequence[str]) -> Question:
    try:
        return read_question(question, options)
    except ValueError as error:
        raise PastedError(f"Line {line}: {error}") from error


def _of_lines(text: str) -> list[_Found] | None:
    found: list[_Found] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        question, *options = (part.strip() for part in line.split("|"))
        if not options or "=>" in line or any(option.endswith("*") for option in options):
            return None
        found.append((number, question, options))
    return found


def _of_blocks(text: str) -> list[_Found] | None:
    found: list[_Found] = []
    lines = [line for line in enumerate(text.split("\n"), start=1) if not line[1].startswith("#")]
    block: list[tuple[int, str]] = []
    for number, line in [*lines, (0, "")]:
        if line.strip():
            if _ANSWER_LINE.match(line):
                return None
            block.append((number, line))
        elif block:
            question, options = split_prompt("\n".join(part for _, part in block))
            if not options:
                return None
            found.append((block[0][0], question, options))
            block = []
    return found


def _of_records(records: Iterator[tuple[int, Any]]) -> list[_Found] | None:
    found: list[_Found] = []
    try:
        for line, record in records:
            if not isinstance(record, dict) or any(key in record for key in ANSWERS):
                return None
            question = next((record[key] for key in QUESTIONS if key in record), None)
            if not isinstance(question, str):
                return None
            options = _options(record)
            if not options:
                question, options = split_prompt(question)
            found.append((line, question, [str(option) for option in options]))
    except (ValueError, RecursionError, csv.Error):
        return None
    return found


def _options(record: Mapping[str, Any]) -> Sequence[Any]:
    """From a list, from a text with bars, or from columns called A, B and so on."""
    given = next((record[key] for key in OPTIONS if key in record), None)
    if isinstance(given, str):
        return [part.strip() for part in given.split("|")]
    if isinstance(given, list):
        return given
    columns = sorted(key for key in record if _OPTION_COLUMN.fullmatch(key))
    return [record[key] for key in columns if str(record[key]).strip()]


def _json_records(text: str) -> Iterator[tuple[int, Any]]:
    if text.lstrip().startswith("["):
        # where in the list a record stands says as much as its line
        yield from enumerate(json.loads(text), start=1)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, json.loads(line)


def _csv_records(text: str) -> Iterator[tuple[int, Any]]:
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    for record in reader:
        if None in record or None in record.values():
            # a row of another length: the strict reader tells where
            raise ValueError
        yield reader.line_num, record
