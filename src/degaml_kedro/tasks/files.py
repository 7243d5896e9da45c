"""Examples in JSON, JSONL and CSV files, read strictly: each oddity is an error with its place.

Two layouts are known. ``messages`` has one ``{"prompt", "response", "system"}`` record per example,
as the paper's public code writes them. ``columns`` has a question, its options and the answer in
columns of their own.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from degaml_kedro.errors import DegamlError
from degaml_kedro.parameters import FileSource
from degaml_kedro.tasks.example import (
    Example,
    ExampleError,
    make_example,
    parse_example,
    shorten,
)
from degaml_kedro.tasks.splits import ALL, SPLITS

logger = logging.getLogger(__name__)

SUFFIXES = (".json", ".jsonl", ".csv")
SPLIT_MARK = "{split}"
Layout = Literal["messages", "columns"]

# A record with the place it was read from.
Record = tuple[str, dict[str, Any]]


class FileError(DegamlError):
    """A file of examples that is missing, damaged or not in a known layout."""


class CutOffError(FileError):
    """A record that has no end."""


def load_files(source: FileSource, task: str) -> dict[str, list[Example]]:
    """Read a task's file or files.

    Args:
        source: Where the files are and how they are laid out.
        task: The task's name, for messages.

    Returns:
        The examples by split where the source has a file per split, else all of them as ``"all"``.

    Raises:
        FileError: A file is missing, empty, cut off, not UTF-8, or its layout is unknown.
        ExampleError: A record is not a well-formed example.
    """
    paths = find_files(source, task)
    return {split: read_examples(path, source) for split, path in paths.items()}


def find_files(source: FileSource, task: str) -> dict[str, Path]:
    """The file of each split, or one file as ``"all"``.

    Splits come from ``split_files``, from ``{split}`` in the path, or, in a folder, from file names
    that are or end with a split's name (``test.jsonl``, ``arc_test.json``).
    """
    path = Path(source.path)
    if source.split_files is not None:
        return {
            split: _existing(path / name, task)
            for split, name in _known_splits(source.split_files, task).items()
        }
    if SPLIT_MARK in source.path:
        paths = {split: Path(source.path.replace(SPLIT_MARK, split)) for split in SPLITS}
        found = {split: file for split, file in paths.items() if file.exists()}
        if not found:
            raise FileError(
                f"Task '{task}': there is no file '{source.path}' with {SPLIT_MARK} replaced by "
                "any of "
                f"{', '.join(SPLITS)}; correct the task's source.path."
            )
        return found
    if path.is_dir():
        return _files_of_folder(path, task)
    return {ALL: _existing(path, task)}


def _known_splits(split_files: Mapping[str, str], task: str) -> Mapping[str, str]:
    for split in split_files:
        if split not in SPLITS:
            raise FileError(
                f"Task '{task}': source.split_files names the unknown split '{split}'; "
                f"use {', '.join(SPLITS)}."
            )
    return split_files


def _existing(path: Path, task: str) -> Path:
    if path.is_file():
        return path
    beside = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "correct the task's source.path."
    raise FileError(f"Task '{task}': there is no file '{path}'; {hint}")


def _files_of_folder(folder: Path, task: str) -> dict[str, Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    found: dict[str, Path] = {}
    for split in SPLITS:
        named = [path for path in files if re.search(rf"(^|[_.\-]){split}$", path.stem)]
        if len(named) > 1:
            raise FileError(
                f"Task '{task}': the folder '{folder}' has several files for the split '{split}' "
                f"({', '.join(path.name for path in named)}); say which in the task's "
                "source.split_files, or put "
                f"{SPLIT_MARK} into its source.path."
            )
        if named:
            found[split] = named[0]
    if found:
        return found
    if len(files) == 1:
        return {ALL: files[0]}
    raise FileError(
        f"Task '{task}': the folder '{folder}' has {len(files)} {', '.join(SUFFIXES)} file(s) and "
        "none is named after "
        "a split; name them train.jsonl, test.jsonl, …, or list them in the task's "
        "source.split_files."
    )


# --- records --------------------------------------------------------------------------------------


def read_records(path: Path) -> list[Record]:
    """The records of a JSON list, a JSONL file or a CSV file with a header, each with its place.

    Raises:
        FileError: The file cannot be read, is empty, is cut off, is not UTF-8, or a key comes twice
            in a record.
    """
    readers = {".json": _json_records, ".jsonl": _jsonl_records, ".csv": _csv_records}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise FileError(
            f"{path}: files of the type '{path.suffix}' are not known; convert it to "
            f"{', '.join(SUFFIXES)}."
        )
    records = list(reader(path, _text(path)))
    if not records:
        raise FileError(
            f"{path}: the file has no records; add examples or point the task elsewhere."
        )
    return records


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(
            f"{path}: the file cannot be read ({error.strerror}); check its path and permissions."
        ) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileError(
            f"{path}, line {line}: byte {error.start} is not UTF-8; save the file as UTF-8 "
            f"(for example: iconv -f latin1 -t utf-8)."
        ) from error
    if not text.strip():
        raise FileError(f"{path}: the file is empty; copy or download it again.")
    return text


class _DuplicateKeyError(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record:
            raise _DuplicateKeyError(key)
        record[key] = value
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
_BLANK = re.compile(r"[ \t\r\n]*")


def skip_blanks(text: str, position: int) -> int:
    """The position of the next character of JSON that is no blank."""
    match = _BLANK.match(text, position)
    return match.end() if match else position


def decode_record(text: str, start: int, where: str) -> tuple[dict[str, Any], int]:
    """The JSON object that begins at ``start``, and where it ends.

    Args:
        text: JSON, or several records of it.
        start: The record's first character.
        where: Its place, for messages.

    Raises:
        CutOffError: It has no end.
        FileError: It is not valid JSON or no object, is nested too deeply, or a key comes twice in it.
    """
    try:
        record, end = _DECODER.raw_decode(text, start)
    except _DuplicateKeyError as error:
        raise FileError(f"{where}: the key '{error}' comes twice; keep one of them.") from error
    except json.JSONDecodeError as error:
        if skip_blanks(text, error.pos) == len(text) or error.msg.startswith("Unterminated"):
            raise CutOffError(f"{where}: {_CUT_OFF}") from error
        raise FileError(
            f"{where}: not valid JSON ({error.msg} at line {error.lineno}, column {error.colno}); "
            "correct it there."
        ) from error
    except RecursionError as error:
        raise FileError(f"{where}: {_TOO_DEEP}") from error
    except ValueError as error:
        raise FileError(f"{where}: {_TOO_LONG}") from error
    if not isinstance(record, dict):
        raise FileError(
            f"{where}: expected an object like {{…}}, found {type(record).__name__}; write one "
            "object per example."
        )
    return record, end


_CUT_OFF = "the file ends in the middle of a record; it looks cut off: copy or download it again."
_TOO_DEEP = "it is nested too deeply; write one flat object per example."
_TOO_LONG = "a number has too many digits; write it as a text in quotes."


def _json_records(path: Path, text: str) -> Iterator[Record]:
    """The items of a JSON list, decoded one by one so that each error knows its item."""
    position = skip_blanks(text, 0)
    if text[position] != "[":
        hint = "name the file .jsonl" if text[position] == "{" else "see the layouts in docs"
        raise FileError(f"{path}: expected a JSON list [ … ] of records; {hint}.")
    position = skip_blanks(text, position + 1)
    item, line, counted = 0, 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        where = f"{path}, item {item} (line {line})"
        if position >= len(text):
            raise FileError(f"{where}: {_CUT_OFF}")
        record, end = decode_record(text, position, where)
        yield where, record
        position = skip_blanks(text, end)
        if text[position : position + 1] == ",":
            position = skip_blanks(text, position + 1)
        elif text[position : position + 1] != "]":
            missing = "a comma or the closing bracket is missing after it; add it."
            raise FileError(f"{where}: {_CUT_OFF if position >= len(text) else missing}")
        item += 1
    if skip_blanks(text, position + 1) < len(text):
        raise FileError(f"{path}: there is text after the closing bracket of the list; remove it.")


def _jsonl_records(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            record, end = decode_record(line, len(line) - len(line.lstrip()), where)
            if line[end:].strip():
                raise FileError(
                    f"{where}: there is text after the record; write one record a line."
                )
            yield where, record


def _csv_records(path: Path, text: str) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader)
        repeated = sorted(name for name, count in Counter(header).items() if count > 1)
        if repeated:
            raise FileError(
                f"{path}, line 1: the column '{repeated[0]}' comes twice; rename one of the two."
            )
        start = reader.line_num + 1
        for row in reader:
            where = f"{path}, line {start}"
            start = reader.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                raise FileError(
                    f"{where}: {len(row)} fields where the header has {len(header)}; "
                    f"put fields with commas in quotes."
                )
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise FileError(f"{path}, line {reader.line_num}: {_CUT_OFF}") from error
        raise FileError(
            f"{path}, line {reader.line_num}: not valid CSV ({error}); correct the quotes there."
        ) from error


# --- examples -------------------------------------------------------------------------------------


def read_examples(path: Path, source: FileSource) -> list[Example]:
    """The examples of one file in the source's layout, which is found from the keys when it is not given."""
    records = read_records(path)
    layout = source.layout or _layout_of(records[0], source)
    if layout == "columns":
        return [from_columns(record, source, where) for where, record in records]
    examples = [parse_example(record, where) for where, record in records]
    repeats = [
        where
        for (where, _), example in zip(records, examples, strict=True)
        if len(set(example.options)) < len(example.options)
    ]
    if repeats:
        # Published benchmarks have a few such questions, and dropping them would change what is
        # measured.
        logger.warning(
            "%s: %d example(s) list an option twice, the first at %s.",
            path,
            len(repeats),
            repeats[0],
        )
    return examples


def _layout_of(first: Record, source: FileSource) -> Layout:
    where, record = first
    if "prompt" in record or "response" in record:
        return "messages"
    if source.question in record:
        return "columns"
    raise FileError(
        f"{where}: the layout is unknown, as the keys are {_listed(record)}; use 'prompt' and "
        "'response', or name the "
        f"columns in the task's source.question, source.options and source.answer."
    )


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _value(record: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in record:
        near = difflib.get_close_matches(column, list(record), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {_listed(record)}."
        raise FileError(f"{where}: there is no column '{column}'; {hint}")
    return record[column]


def from_columns(record: Mapping[str, Any], source: FileSource, where: str) -> Example:
    """Read a record with its question, options and answer under keys of their own.

    Args:
        record: The record.
        source: Says which keys these are.
        where: The record's place, for messages.

    Raises:
        FileError: A key is missing.
        ExampleError: The record is not a well-formed example.
    """
    question = _value(record, source.question, where)
    if not isinstance(question, str):
        raise ExampleError(
            f"{where}, key '{source.question}': expected a text, found {type(question).__name__}; "
            "put it in quotes."
        )
    options = _options(record, source, where)
    repeated = sorted(option for option, count in Counter(options).items() if count > 1)
    if repeated:
        raise ExampleError(
            f"{where}, key {_option_keys(source)}: the option {shorten(repeated[0])} comes twice; "
            "keep one of them."
        )
    try:
        # The number of options is checked before the answer, or the answer would be blamed for
        # their lack.
        make_example(question, options, 0)
        gold = _gold(
            _value(record, source.answer, where), options, f"{where}, key '{source.answer}'"
        )
        system = record.get("system") or ""
        return make_example(question, options, gold, system if isinstance(system, str) else "")
    except ExampleError as error:
        message = str(error)
        raise ExampleError(
            message if message.startswith(where) else f"{where}: {message}"
        ) from error


def _option_keys(source: FileSource) -> str:
    return f"'{source.options}'" if isinstance(source.options, str) else _listed(source.options)


def _options(record: Mapping[str, Any], source: FileSource, where: str) -> list[str]:
    """The options from a list, a JSON list in a text, a text with bars, or one column each."""
    if isinstance(source.options, tuple):
        cells = [_value(record, column, where) for column in source.options]
        # Questions with fewer options leave the last columns blank.
        while cells and (cells[-1] is None or not str(cells[-1]).strip()):
            cells.pop()
    else:
        cell = _value(record, source.options, where)
        cells = _listed_cell(cell, f"{where}, key '{source.options}'")
    return [_option_text(cell, f"{where}, key {_option_keys(source)}") for cell in cells]


def _listed_cell(cell: Any, where: str) -> list[Any]:
    if isinstance(cell, list):
        return cell
    if not isinstance(cell, str):
        raise ExampleError(
            f'{where}: expected a list of options, found {type(cell).__name__}; write ["…", "…"] or …|…'
        )
    if not cell.strip().startswith("["):
        return [part.strip() for part in cell.split("|")]
    try:
        decoded = json.loads(cell)
    except json.JSONDecodeError as error:
        raise ExampleError(
            f"{where}: begins with a bracket but is not a JSON list ({error.msg} at column "
            f"{error.colno}); write it "
            f'with double quotes: ["…", "…"].'
        ) from error
    except RecursionError as error:
        raise ExampleError(f"{where}: {_TOO_DEEP}") from error
    except ValueError as error:
        raise ExampleError(f"{where}: {_TOO_LONG}") from error
    if not isinstance(decoded, list):
        raise ExampleError(f'{where}: expected a JSON list of options; write ["…", "…"].')
    return decoded


def _option_text(cell: Any, where: str) -> str:
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return str(cell)
    raise ExampleError(
        f"{where}: an option is {type(cell).__name__}, not a text; put it in quotes."
    )


def _gold(answer: Any, options: Sequence[str], where: str) -> int:
    """The index of the right option.

    An answer may be the option's text, its letter (``C``, ``[C]``) or, as a number, its index
    counted from 0. Where two of these readings name different options, the answer is refused rather
    than guessed.
    """
    readings: dict[str, int] = {}
    if isinstance(answer, int) and not isinstance(answer, bool):
        readings["index"] = answer
        if str(answer) in options:
            readings["text"] = options.index(str(answer))
    elif isinstance(answer, str):
        given = answer.strip()
        if given in options:
            readings["text"] = options.index(given)
        letter = given.removeprefix("[").removesuffix("]")
        if len(letter) == 1 and letter.isascii() and letter.isupper():
            readings["letter"] = ord(letter) - ord("A")
        # Python refuses to convert very many digits, and none of them could be an index.
        if given.isascii() and given.isdigit() and len(given) < 10:
            readings["index"] = int(given)
    elif isinstance(answer, float) and str(answer) in options:
        readings["text"] = options.index(str(answer))
    valid = {reading: index for reading, index in readings.items() if 0 <= index < len(options)}
    if not valid:
        raise ExampleError(
            f"{where}: {shorten(str(answer))} is not among the {len(options)} options; give the "
            "option's text, its "
            f"letter A to {chr(ord('A') + len(options) - 1)}, or its index counted from 0."
        )
    if len(set(valid.values())) > 1:
        raise ExampleError(
            f"{where}: {shorten(str(answer))} can be read as {' or '.join(sorted(valid))} of "
            "different options; "
            f"give its letter in square brackets, like [A]."
        )
    return next(iter(valid.values()))
