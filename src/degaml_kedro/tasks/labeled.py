"""Files of texts with their labels, which classification tasks are drawn from.

A table (CSV, TSV, JSON Lines, JSON records, Parquet) has a column of texts and one of labels, and may have one of
groups (only labels of one group are asked together) and one of splits. JSON may also be nested,
``{group: {label: {split: [text, …]}}}``, under one key or none, and with notes beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from degaml_kedro.config.schema import LabelFile
from degaml_kedro.tasks.example import TaskError
from degaml_kedro.tasks.file_records import decode_text, whole_records

# by group, by label, by split; a file without groups has the group "all", and one without splits the split "all"
LabeledTexts = Mapping[str, Mapping[str, Mapping[str, tuple[str, ...]]]]
ALL = "all"
_NESTED = TypeAdapter(dict[str, dict[str, dict[str, list[str]]]])
# its group, label and split, and the text
_Row = tuple[str, str, str, str]


def read_labeled_texts(file: LabelFile) -> LabeledTexts:
    """Texts by group, label and split, each text once a label, in the file's order.

    Raises:
        TaskError: there is no such file, it is of no known kind or damaged, or a column is missing.
    """
    path = Path(file.path)
    if not path.is_file():
        raise TaskError(f"there is no file {path}; check the distribution's file.path")
    return _read(file, path.stat().st_mtime_ns)


@cache
def _read(file: LabelFile, modified: int) -> LabeledTexts:
    del modified  # a file that was changed is read again
    path = Path(file.path)
    nested = None
    if path.suffix.lower() == ".json":
        text = decode_text(path.read_bytes(), str(path))
        nested = text if text.lstrip().startswith("{") else None
    rows = _rows_of_table(file, path) if nested is None else _rows_of_nested(nested, path)
    texts = pd.DataFrame([*rows], columns=["group", "label", "split", "text"]).drop_duplicates()
    found: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {}
    for (group, label), own in texts.groupby(["group", "label"], sort=False):
        found.setdefault(str(group), {})[str(label)] = {
            str(split): tuple(some) for split, some in own.groupby("split", sort=False)["text"]
        }
    if not found:
        raise TaskError(f"{path} holds no labels; use {{group: {{label: {{split: [text]}}}}}}")
    return found


def _rows_of_table(file: LabelFile, path: Path) -> Iterator[_Row]:
    rows = whole_records(path)
    known = {key: None for row in rows for key in row}
    for column in (file.text, file.label, file.group, file.split):
        if column is not None and column not in known:
            raise TaskError(
                f"{file.path} has no column '{column}'; it has {', '.join(map(str, known))}"
            )
    for row in rows:
        text, label = (
            "" if row.get(column) is None else str(row[column]).strip()
            for column in (file.text, file.label)
        )
        group, split = (
            str(row.get(column)) if column else ALL for column in (file.group, file.split)
        )
        if text and label:
            yield group, label, split, text


def _rows_of_nested(text: str, path: Path) -> Iterator[_Row]:
    try:
        content = json.loads(text)
        # what describes the file stands beside the groups, or these stand under one key
        nested = {name: inner for name, inner in content.items() if isinstance(inner, dict)}
        try:
            groups = _NESTED.validate_python(nested)
        except ValidationError:
            (only,) = nested.values()
            groups = _NESTED.validate_python(only)
    except (ValueError, RecursionError) as error:
        raise TaskError(
            f"{path} cannot be read as {{group: {{label: {{split: [text]}}}}}}, under one key or none: {error}"
        ) from error
    for group, labels in groups.items():
        for label, splits in labels.items():
            for split, own in splits.items():
                yield from ((group, label, split, one.strip()) for one in own if one.strip())
