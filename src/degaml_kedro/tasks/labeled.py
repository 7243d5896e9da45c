"""Files of texts with their labels, which classification tasks are drawn from.

A table (CSV, TSV, JSON Lines, JSON records, Parquet) has a column of texts and one of labels, and may have one of
groups (only labels of one group are asked together) and one of splits. JSON may also be nested,
``{group: {label: {split: [text, …]}}}``, with or without the splits, under one key or none, and with notes beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from degaml_kedro.errors import DegamlError
from degaml_kedro.parameters import LabelFile
from degaml_kedro.tasks.file_records import file_records
from degaml_kedro.tasks.records import RecordError

# by group, by label, by split; a file without groups has the group "all", and one without splits the split "all"
LabeledTexts = Mapping[str, Mapping[str, Mapping[str, tuple[str, ...]]]]
ALL = "all"
_SPLIT_NAMES = {"train", "test", "validation", "valid", "dev", "support"}


class LabelFileError(DegamlError):
    """A file of labeled texts that cannot be read."""


def read_labeled_texts(file: LabelFile) -> LabeledTexts:
    """Texts by group, label and split, each text once a label, in the file's order.

    Args:
        file: where they are, and what the columns are called.

    Raises:
        LabelFileError: there is no such file, it is of no known kind or damaged, or a column is missing.
    """
    path = Path(file.path)
    if not path.is_file():
        raise LabelFileError(f"there is no file {path}; check the distribution's file.path")
    return _read(file, path.stat().st_mtime_ns)


@cache
def _read(file: LabelFile, modified: int) -> LabeledTexts:
    del modified  # a file that was changed is read again
    path = Path(file.path)
    if path.suffix.lower() == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, OSError) as error:
            raise LabelFileError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
        if isinstance(content, dict):
            return _nested(content, path)
    try:
        rows = [record for _, _, record in file_records(path)]
    except RecordError as error:
        raise LabelFileError(str(error)) from error
    if mistake := next((row for row in rows if isinstance(row, str)), None):
        raise LabelFileError(f"{path}: {mistake}")
    return _of_table([row for row in rows if isinstance(row, dict)], file)


def _of_table(rows: Sequence[Mapping[str, Any]], file: LabelFile) -> LabeledTexts:
    known = {key: None for row in rows for key in row}
    for column in (file.text, file.label, file.group, file.split):
        if column is not None and column not in known:
            raise LabelFileError(
                f"{file.path} has no column '{column}'; it has {', '.join(map(str, known))}"
            )
    texts: dict[str, dict[str, dict[str, dict[str, None]]]] = {}
    for row in rows:
        text, label = (
            "" if row.get(column) is None else str(row[column]).strip()
            for column in (file.text, file.label)
        )
        group = str(row.get(file.group)) if file.group else ALL
        split = str(row.get(file.split)) if file.split else ALL
        if text and label:
            texts.setdefault(group, {}).setdefault(label, {}).setdefault(split, {})[text] = None
    return _frozen(texts)


def _nested(content: Mapping[str, Any], path: Path) -> LabeledTexts:
    # what describes the file stands beside the groups, or these stand under one key
    groups = {name: inner for name, inner in content.items() if isinstance(inner, dict)}
    if len(groups) == 1 and _holds_groups(inner := next(iter(groups.values()))):
        groups = inner
    texts: dict[str, dict[str, dict[str, Any]]] = {}
    for group, found in groups.items():
        for label, splits in found.items() if isinstance(found, dict) else ():
            by_split = splits if isinstance(splits, dict) else {ALL: splits}
            for split, own in by_split.items():
                if not _is_texts(own):
                    raise LabelFileError(f"{path}: {group}, {label}, {split} is no list of texts")
                kept = dict.fromkeys(text.strip() for text in own if text.strip())
                texts.setdefault(str(group), {}).setdefault(str(label), {})[str(split)] = kept
    if not texts:
        raise LabelFileError(f"{path} holds no labels; use {{group: {{label: {{split: [text]}}}}}}")
    return _frozen(texts)


def _holds_groups(content: Mapping[str, Any]) -> bool:
    """Whether groups of labels stand in it, and not labels."""
    parts = [part for part in content.values() if isinstance(part, dict)]
    return len(parts) == len(content) > 0 and not all(set(part) <= _SPLIT_NAMES for part in parts)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _frozen(texts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> LabeledTexts:
    return {
        group: {
            label: {split: tuple(found) for split, found in splits.items()}
            for label, splits in labels.items()
        }
        for group, labels in texts.items()
    }
