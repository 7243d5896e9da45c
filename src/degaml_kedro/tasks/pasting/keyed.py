"""A record with keys, of JSON or CSV: every layout that files of a task may have, and records without options."""

from __future__ import annotations

import difflib
import itertools
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from degaml_kedro.parameters import FileSource
from degaml_kedro.tasks.example import Example, parse_example, shorten, split_prompt
from degaml_kedro.tasks.files import from_columns
from degaml_kedro.tasks.pasting.record import PastedError, Unlisted, check_field, unlisted

QUESTIONS = ("question", "input", "text", "prompt")
ANSWERS = ("answer", "output", "label", "response")
OPTIONS = ("options", "choices")
_OPTION_COLUMN = re.compile(r"(?:(?:option|choice|opt|op)[ _-]?)([a-z]|[0-9]{1,2})|([a-z])")
# Keys among which a misspelled one is looked for.
_MAX_KEYS = 50


def plain_key(key: str) -> str:
    """A key or a column's name as it is compared: spreadsheets write ``Question``."""
    return key.strip().casefold()


def from_record(given: Mapping[str, Any], where: str) -> Example | Unlisted:
    """A record of JSON or CSV, in any layout that files of a task may have, or without options."""
    record: dict[str, Any] = {}
    for key, value in given.items():
        if plain_key(key) in record:
            raise PastedError(f"{where}: the key {shorten(key)} comes twice; keep one of them.")
        record[plain_key(key)] = value
    question = _known_key(record, QUESTIONS, "question", where)
    answer = _known_key(record, ANSWERS, "answer", where)
    options = _options_key(record, where)
    if (question, answer, options) == ("prompt", "response", None):
        for key in ("prompt", "response"):
            if isinstance(record[key], str):
                check_field(record[key], f"{where}: the {key}")
        if not _is_bare_answer(record):
            return parse_example(record, where)
    for key in (question, answer, *([options] if isinstance(options, str) else options or ())):
        _check_number(record[key], f"{where}, key '{key}'")
    if isinstance(record[question], str):
        record[question] = record[question].strip()
    if options is None:
        return _from_answer(record, question, answer, where)
    if isinstance(options, str) and isinstance(record[options], dict):
        record[options] = _lettered(record[options], f"{where}, key '{options}'")
    source = FileSource(kind="file", path="", question=question, options=options, answer=answer)
    return from_columns(record, source, where)


def _known_key(record: Mapping[str, Any], names: Sequence[str], what: str, where: str) -> str:
    for name in names:
        if name in record:
            return name
    near = [
        key
        for key in itertools.islice(record, _MAX_KEYS)
        if difflib.get_close_matches(key[:40], names, n=1, cutoff=0.7)
    ]
    hint = f"rename {shorten(near[0])} to '{what}'." if near else f"name it '{what}'."
    keys = shorten(", ".join(record)) if record else "none"
    raise PastedError(f"{where}: there is no {what} (the keys are {keys}); {hint}")


def _options_key(record: Mapping[str, Any], where: str) -> str | tuple[str, ...] | None:
    """The key or keys of the options; None where the record has none, or they are left blank."""
    for name in OPTIONS:
        if name in record:
            return name if _is_filled(record[name]) else None
    columns = _option_columns(record)
    if columns:
        return columns if any(_is_filled(record[key]) for key in columns) else None
    for key in itertools.islice(record, _MAX_KEYS):
        if difflib.get_close_matches(key[:40], OPTIONS, n=1, cutoff=0.75):
            raise PastedError(
                f"{where}: the key {shorten(key)} is not known; did you mean '{OPTIONS[0]}'?"
            )
    return None


def _option_columns(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys A, B, C, … or option 1, option 2, …, where the record has at least the first two of them."""
    numbered: dict[int, str] = {}
    for key in record:
        match = _OPTION_COLUMN.fullmatch(key)
        if match:
            mark = match[1] or match[2]
            numbered[int(mark) if mark.isdigit() else ord(mark) - ord("a") + 1] = key
    first = 0 if 0 in numbered else 1
    counted = itertools.takewhile(numbered.__contains__, itertools.count(first))
    keys = tuple(numbered[number] for number in counted)
    return keys if len(keys) > 1 else ()


def _is_filled(cell: object) -> bool:
    return cell is not None and not (isinstance(cell, str) and not cell.strip())


def _is_bare_answer(record: Mapping[str, Any]) -> bool:
    """Whether a prompt without option lines is answered by a text."""
    prompt, response = record["prompt"], record["response"]
    return (
        isinstance(prompt, str)
        and isinstance(response, str)
        and not re.fullmatch(r"\s*\[.*\]\s*", response)
        and not split_prompt(prompt)[1]
    )


def _from_answer(record: Mapping[str, Any], question: str, answer: str, where: str) -> Unlisted:
    text, given, system = record[question], record[answer], record.get("system") or ""
    if not isinstance(text, str):
        raise PastedError(
            f"{where}, key '{question}': expected a text, found {_kind(text)}; put it in quotes."
        )
    if given is None or isinstance(given, list | dict):
        raise PastedError(
            f"{where}, key '{answer}': expected a text, found {_kind(given)}; give one answer."
        )
    return unlisted(text, str(given), where, system if isinstance(system, str) else "")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _check_number(value: object, where: str) -> None:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise PastedError(
                f"{where}: a number is not finite, or too large; write it as a text in quotes."
            )


def _lettered(options: Mapping[str, Any], where: str) -> list[Any]:
    """The values of ``{"A": …, "B": …}``."""
    letters = list(string.ascii_uppercase[: len(options)])
    if [key.strip().upper() for key in options] != letters:
        raise PastedError(f'{where}: write the options as a list, ["…", "…"].')
    return list(options.values())
