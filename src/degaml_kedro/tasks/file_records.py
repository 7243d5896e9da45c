"""The records of CSV, TSV, JSON, JSON Lines and Parquet as they stand there: reading goes on after one that is broken.

Rows are cut by :mod:`csv` and :mod:`json` themselves and not by pandas, which knows neither the line of a row nor how
to go on behind a broken one; Parquet is read by pyarrow.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import string
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from degaml_kedro.common.texts import printable
from degaml_kedro.tasks.example import shorten
from degaml_kedro.tasks.records import (
    ANSWERS,
    CONTEXTS,
    MAX_RECORD,
    OPTIONS,
    QUESTIONS,
    TOO_DEEP,
    TOO_LONG,
    Reading,
    RecordError,
    check_columns,
    kind_of,
    option_columns,
    plain_key,
)

LAYOUTS = {
    ".txt": "text",
    ".md": "text",
    ".gift": "text",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}

# of files that hold records
SUFFIXES = tuple(suffix for suffix, layout in LAYOUTS.items() if layout != "text")


def data_files(folder: Path, pattern: str = "*") -> list[Path]:
    """A folder's files of records; what is hidden below it is a backup or a system's own, never data."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def decode_text(data: bytes, called: str) -> str:
    """A file's bytes as text with line feeds: UTF-8 or UTF-16, with or without a byte order mark.

    Raises:
        RecordError: it is neither.
    """
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecordError(
            f"{called}, line {line}: byte 0x{data[error.start]:02X} is not UTF-8; save the file as UTF-8 (Excel: 'CSV "
            "UTF-8'; or iconv -f cp1252 -t utf-8), or as CSV, JSON, JSONL or plain text if it is none of these."
        ) from error
    return with_line_feeds(text)


def with_line_feeds(text: str) -> str:
    """The text with the line ends of Unix."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def layout_of(text: str, reading: Reading) -> str:
    """What a text looks like that its file's suffix says nothing of: ``json``, ``jsonl``, ``csv`` or ``text``."""
    if re.match(r"\s*\[\s*(?:[\[{\]]|\Z)", text):
        return "json"
    if re.match(r"\s*\{\s*(?:[\"}]|\Z)", text):
        return "jsonl"
    header, delimiter, _ = table_header(text.split("\n"))
    names = {plain_key(name) for name in header}
    if reading.question is not None:
        return "csv" if plain_key(reading.question) in names else "text"
    told = names.intersection(ANSWERS) or names.intersection(OPTIONS) or option_columns([*names])
    first = next((line.strip() for line in text.split("\n") if line.strip()), " ")
    if not reading.answered and " " not in first:
        told = names
    is_table = delimiter != "|" and names.intersection(QUESTIONS) and told
    return "csv" if is_table else "text"


# --- JSON -----------------------------------------------------------------------------------------

# where a record begins (from 1; of Parquet the row), how it looks, and its keys or its mistake
Raw = tuple[int, str, "dict[str, Any] | str"]


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record:
            raise RecordError(f"the key '{key}' comes twice; keep one of them.")
        record[key] = value
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
_BLANK = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"[ \t\r\n]*(?:,[ \t\r\n]*)?")
_BRACE = re.compile(r"(?=\{)")
# the brace that opens the item after one in braces, or the next line's object
_NEXT_ITEM = re.compile(r"(?<=\})\s*+,?\s*+(?=\{)")
_NEXT_LINE = re.compile(r"\n(?=\{)")


def _skip(text: str, position: int, pattern: re.Pattern[str] = _BLANK) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


def _decoded(text: str, line: int) -> tuple[dict[str, Any], int]:
    """The object that a text begins with, and where it ends.

    Raises:
        RecordError: it does not begin with a JSON object, or a key comes twice in it.
    """
    try:
        record, end = _DECODER.raw_decode(text)
    except RecordError as error:
        reason = str(error)
    except json.JSONDecodeError as error:
        line += text.count("\n", 0, error.pos)
        there = shorten(text[error.pos : error.pos + 30].partition("\n")[0])
        reason = (
            f"this is not valid JSON ({error.msg}, but there is {there}); correct it there: it may be cut off, or "
            f"longer than {MAX_RECORD:,} characters."
        )
    except RecursionError:
        reason = TOO_DEEP
    except ValueError:
        reason = TOO_LONG
    else:
        if isinstance(record, dict):
            return record, end
        reason = (
            f"expected an object like {{…}}, found {kind_of(record)}; write one object per example."
        )
    raise RecordError(f"Line {line}: {reason}")


def json_records(text: str) -> Iterator[Raw]:
    """The objects of a JSON list, or those that follow each other; after a broken one, reading goes on at the next."""
    position = _skip(text, 0)
    is_list = text[position] == "["
    position = _skip(text, position + is_list)
    line, counted = 1, 0
    while position < len(text) and not (is_list and text[position] == "]"):
        line, counted = line + text.count("\n", counted, position), position
        try:
            record, end = _decoded(text[position : position + MAX_RECORD], line)
        except RecordError as error:
            in_list = _NEXT_ITEM if text[position] == "{" else _BRACE
            follows = (in_list if is_list else _NEXT_LINE).search(text, position)
            end = follows.end() if follows else len(text)
            yield line, text[position:end], str(error)
            if not follows:
                return
            position = end
            continue
        yield line, text[position : position + end], record
        position = _skip(text, position + end, _BETWEEN)
    rest = _skip(text, position + 1)
    line += text.count("\n", counted, rest)
    if is_list and position >= len(text):
        mistake = "the list has no closing bracket; it looks cut off: copy it again, or add ']'."
        yield line, "", f"Line {line}: {mistake}"
    elif is_list and rest < len(text):
        mistake = "there is text after the closing bracket of the list; remove it."
        yield line, text[rest:], f"Line {line}: {mistake}"


# --- tables ---------------------------------------------------------------------------------------

_DELIMITERS = ",;\t|"
# what else may stand between cells: nothing that names or texts are made of
_OTHER_DELIMITER = re.compile(r"[^\w\s\"'().?!:-]")
_MAX_DELIMITERS = 20
# of a first row, whose cells may have line feeds
_MAX_LINES = 50
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)
_HEADERLESS = ("question", *string.ascii_lowercase[:24])


def _first_row(lines: Sequence[str], delimiter: str) -> tuple[list[str], int]:
    """The cells of the row that some lines begin with, and how many lines it has; none where it is no row."""
    reader = csv.reader(iter(lines), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        return next(reader, []), reader.line_num
    except csv.Error:
        return [], 0


def _has_no_header(cells: Sequence[str]) -> bool:
    """Whether a first row is a question, options and a letter of one of these, as in MMLU's files."""
    # a question is no number: that is the row's
    options = max(len(cells) - 2 - cells[0].strip().isdigit(), 0) if cells else 0
    return options >= 2 and cells[-1].strip() in {*string.ascii_uppercase[:options]}


def table_header(lines: Sequence[str]) -> tuple[list[str], str, int]:
    """A table's column names, their delimiter, and how many of its lines stand above the first row.

    The delimiter is the one that yields most known names. A line ``sep=;`` above the header, as Excel writes it, names
    the delimiter. Where no column has a known name and the last cell is a letter of one of those before it, there is no
    header, as in MMLU's files: question, options, letter; a row's number may stand before them.
    """
    above = next((place for place, line in enumerate(lines) if line.strip()), 0)
    delimiters = _DELIMITERS
    if lines and (match := _SEPARATOR_LINE.fullmatch(lines[above])):
        delimiters = match[1]
        above = next((p for p in range(above + 1, len(lines)) if lines[p].strip()), len(lines))
    first = lines[above] if above < len(lines) else ""
    if len(delimiters) > 1:
        others = dict.fromkeys(_OTHER_DELIMITER.findall(first))
        delimiters += "".join(itertools.islice(others, _MAX_DELIMITERS))
    start = lines[above : above + _MAX_LINES]
    rows = {delimiter: _first_row(start, delimiter) for delimiter in delimiters}

    def known_names(delimiter: str) -> tuple[int, bool, int]:
        cells, _ = rows[delimiter]
        plain = [plain_key(name) for name in cells]
        known = sum(name in _KNOWN for name in plain) + len(option_columns(plain))
        return known, _has_no_header(cells), len(plain)

    delimiter = max(delimiters, key=known_names)
    names, taken = rows[delimiter]
    if _has_no_header(names) and not known_names(delimiter)[0]:
        numbered = names[0].strip().isdigit()
        shown = [*_HEADERLESS[: len(names) - 1 - numbered], "answer"]
        return ["index", *shown] if numbered else shown, delimiter, above
    while names and not names[-1].strip():
        names.pop()
    return names, delimiter, above + max(taken, 1)


_KNOWN = {*QUESTIONS, *ANSWERS, *OPTIONS, *CONTEXTS, "system"}


def table_records(text: str, called: str, reading: Reading | None = None) -> Iterator[Raw]:
    """The rows of a CSV or TSV text; after one with unbalanced quotes, reading goes on at the next line.

    Raises:
        RecordError: a column comes twice, or the header lacks what ``reading`` wants.
    """
    lines = [f"{line}\n" for line in text.split("\n")]
    names, delimiter, number = table_header(lines)
    counts = Counter(plain_key(name) for name in names)
    if repeated := [name for name, count in counts.items() if name and count > 1]:
        raise RecordError(
            f"{called}, line {number}: the column {shorten(printable(repeated[0]))} comes twice; rename one of the "
            "two."
        )
    if reading is not None:
        try:
            check_columns(list(counts), reading)
        except RecordError as error:
            raise RecordError(
                f"{called}, line {number}: {error} The first line of a table names its columns."
            ) from None
    # cells that a row may lack at its end, where they may be blank
    optional = {name for name in counts if name not in _KNOWN} | {*option_columns([*counts])}
    if reading is not None and not reading.answered:
        optional |= {*ANSWERS, plain_key(reading.answer or "")}
    while number < len(lines):
        start, number = number, number + 1
        if not lines[start].strip():
            continue
        content: dict[str, Any] | str
        try:
            cells, number = _table_row(lines, start, delimiter, len(names))
            content = _record_of(cells, names, optional)
        except RecordError as error:
            content = f"Line {start + 1}: {error}"
        if content:
            yield start + 1, "".join(lines[start:number]), content


def _record_of(cells: list[str], names: Sequence[str], optional: Container[str]) -> dict[str, str]:
    """The cells by their columns' names; nothing of a blank row."""
    if not any(cell.strip() for cell in cells):
        return {}
    while len(cells) > len(names) and not cells[-1].strip():
        cells.pop()
    if all(plain_key(name) in optional for name in names[len(cells) :]):
        cells += [""] * (len(names) - len(cells))
    if len(cells) != len(names):
        raise RecordError(
            f"{len(cells)} field(s) where the header has {len(names)}; put fields that have the delimiter in them in "
            "quotes."
        )
    return {name: cell for name, cell in zip(names, cells, strict=True) if name.strip()}


def _table_row(
    lines: Sequence[str], start: int, delimiter: str, width: int
) -> tuple[list[str], int]:
    """The cells of the row that begins at a line, and the line after it."""
    tabs, line = delimiter == "\t", lines[start].removesuffix("\n")
    # between tabs a quote is a character, unless it opens and closes whole cells
    if tabs and not _first_row([line], delimiter)[0] and line.count("\t") + 1 == width:
        return line.split("\t"), start + 1
    rest = map(lines.__getitem__, range(start, len(lines)))
    reader = csv.reader(rest, delimiter=delimiter, skipinitialspace=not tabs, strict=True)
    try:
        return next(reader, []), start + reader.line_num
    except csv.Error as error:
        # what is not closed goes on to the end, or until csv's own limit of a field
        is_open = "unexpected end" in str(error) or "field larger" in str(error)
        reason = f"the quotes are not valid CSV ({error})"
        raise RecordError(
            f"{'a quote is opened and not closed' if is_open else reason}; put the whole field in quotes, and double "
            'the quotes inside it: "say ""hi""".'
        ) from error


def file_records(path: Path, reading: Reading | None = None) -> Iterator[Raw]:
    """The records of a file of any size as they stand there; of a table that has the columns of ``reading``.

    Raises:
        RecordError: it cannot be read, is empty, or its suffix is of no kind of records.
    """
    layout = LAYOUTS.get(path.suffix.lower(), "text")
    if layout == "text":
        raise RecordError(
            f"{path}: files of the type '{path.suffix}' are not known; convert it to {', '.join(SUFFIXES)}."
        )
    if layout == "parquet":
        yield from parquet_records(path)
        return
    try:
        text = decode_text(path.read_bytes(), str(path))
    except OSError as error:
        raise RecordError(
            f"{path}: the file cannot be read ({error.strerror}); check its path and permissions."
        ) from error
    if not text.strip():
        raise RecordError(f"{path}: the file is empty; copy or download it again.")
    yield from table_records(text, str(path), reading) if layout == "csv" else json_records(text)


def whole_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file in which none is broken.

    Raises:
        RecordError: one is, or the file cannot be read.
    """
    records = []
    for _, _, record in file_records(path):
        if isinstance(record, str):
            raise RecordError(f"{path}: {record}")
        records.append(record)
    return records


def parquet_records(path: Path, most: int | None = None) -> Iterator[Raw]:
    """The rows of a Parquet file; ``most`` of them where it is given.

    The file is one's own: a stranger's bytes, which may be packed a thousand times smaller, are not read.

    Raises:
        RecordError: it is no whole Parquet file.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=min(most or 1000, 1000))
            rows = itertools.islice((row for batch in batches for row in batch.to_pylist()), most)
            for number, row in enumerate(rows, start=1):
                yield number, json.dumps(row, ensure_ascii=False, default=str), row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RecordError(
            f"{path} is not a whole Parquet file ({reason}); copy or download it again."
        ) from error
