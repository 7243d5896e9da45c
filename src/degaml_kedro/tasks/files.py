"""A task's examples in files: which file has which split, and all that is wrong in them."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from degaml_kedro.config.schema import FileSource
from degaml_kedro.tasks.example import Example, TaskError, did_you_mean
from degaml_kedro.tasks.file_records import SUFFIXES, data_files, file_records
from degaml_kedro.tasks.pasted import read_rows
from degaml_kedro.tasks.records import Reading, RecordError, repeated_option
from degaml_kedro.tasks.splits import ALL, SPLITS, check_split_names

logger = logging.getLogger(__name__)

SPLIT_MARK = "{split}"


def load_files(source: FileSource, task: str) -> dict[str, list[Example]]:
    """A task's examples by split where the source has a file per split, else all of them as ``"all"``.

    Raises:
        TaskError: A file is missing or cannot be read, or a record of it is no well-formed example.
    """
    paths = find_files(source, task)
    return {split: read_examples(path, source) for split, path in paths.items()}


def find_files(source: FileSource, task: str) -> dict[str, Path]:
    """The file of each split, or one file as ``"all"``.

    Splits come from ``split_files``, from ``{split}`` in the path, or, in a folder, from file names
    that are or end with a split's name (``test.jsonl``, ``arc_test.json``).

    Raises:
        TaskError: There is no such file, or none that a split's name fits.
    """
    path = Path(source.path)
    if source.split_files is not None:
        check_split_names(source.split_files, "source.split_files", task)
        return {split: _existing(path / name, task) for split, name in source.split_files.items()}
    if SPLIT_MARK in source.path:
        paths = split_paths(source.path)
        if found := {split: file for split, file in paths.items() if file.exists()}:
            return found
        raise TaskError(
            f"Task '{task}': there is no file '{source.path}' with {SPLIT_MARK} replaced by any of "
            f"{', '.join(SPLITS)}; correct the task's source.path."
        )
    if path.is_dir():
        return _files_of_folder(path, task)
    return {ALL: _existing(path, task)}


def split_paths(path: str) -> dict[str, Path]:
    """The file of each split, by ``{split}`` in a path; one for all where that is not in it."""
    return {split: Path(path.replace(SPLIT_MARK, split)) for split in SPLITS}


def _existing(path: Path, task: str) -> Path:
    if path.is_file():
        return path
    beside = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, beside, "correct the task's source.path.")
    raise TaskError(f"Task '{task}': there is no file '{path}'; {hint}")


def _files_of_folder(folder: Path, task: str) -> dict[str, Path]:
    files = data_files(folder)
    found: dict[str, Path] = {}
    for split in SPLITS:
        named = [path for path in files if re.search(rf"(^|[_.\-]){split}$", path.stem)]
        if len(named) > 1:
            raise TaskError(
                f"Task '{task}': the folder '{folder}' has several files for the split '{split}' "
                f"({', '.join(path.name for path in named)}); say which in the task's source.split_files, or put "
                f"{SPLIT_MARK} into its source.path."
            )
        if named:
            found[split] = named[0]
    if found or len(files) == 1:
        return found or {ALL: files[0]}
    raise TaskError(
        f"Task '{task}': the folder '{folder}' has {len(files)} {', '.join(SUFFIXES)} file(s) and none is named after "
        "a split; name them train.jsonl, test.jsonl, …, or list them in the task's source.split_files."
    )


def read_examples(path: Path, source: FileSource) -> list[Example]:
    """The examples of one file, whose entry may name its keys; every record that is wrong is named.

    Raises:
        TaskError: It cannot be read, or a record is no well-formed example.
    """
    # published benchmarks have a few prompts with an option twice; dropping them would change what is measured
    reading = Reading(
        source.question,
        source.options,
        source.answer,
        open_answers=source.open_answers,
        most=None,
        repeats=True,
    )
    try:
        read = read_rows(file_records(path, reading), path.suffix[1:], str(path), reading)
    except RecordError as error:
        told = str(error)
        raise TaskError(told if str(path) in told else f"{path}: {told}") from error
    if read.mistakes:
        told = "\n".join(read.told_mistakes())
        if not source.skip_mistakes:
            raise TaskError(
                f"{path}: {told}\nCorrect them, or go on without them with the source's 'skip_mistakes: true'."
            )
        count, of = len(read.mistakes), len(read.rows)
        logger.warning("%s: %d of %d records are left out. %s", path, count, of, told)
    if read.unread:
        logger.warning("%s: these keys are not read: %s.", path, ", ".join(read.unread))
    if repeats := [
        row for row in read.rows if row.example and repeated_option(row.example.options)
    ]:
        told = "%s: %d example(s) list an option twice, the first in line %d."
        logger.warning(told, path, len(repeats), repeats[0].line)
    return list(read.examples)
