"""Benchmarks of the Hugging Face hub: loading them, and a mapping of fields per benchmark.

A mapping turns a dataset's rows into examples. It is a pure function of the rows, so the same dataset gives the same
examples everywhere. Published data have a known form, so nothing is guessed here as in a user's own file. Rows without
a published answer become None and are left out.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar

from degaml_kedro.config.schema import HubSource
from degaml_kedro.tasks.example import (
    Example,
    TaskError,
    did_you_mean,
    make_example,
    make_open_example,
    make_true_false_example,
    shorten,
)
from degaml_kedro.tasks.file_records import data_files, whole_records
from degaml_kedro.tasks.records import random_of
from degaml_kedro.tasks.splits import check_split_names

logger = logging.getLogger(__name__)

T = TypeVar("T")
Row = Mapping[str, Any]
# an example, None where no answer is published, or why the row is none
Mapped = Example | None | TaskError
Mapper = Callable[[Sequence[Row]], list[Mapped]]

WRONG_ANSWERS = 3
_BOXES = ("\\boxed", "\\fbox")
# published benchmarks have a few rows that are no examples; more of them are a mapping that does not fit
_BAD_ROWS = 0.01


# --- mappings -------------------------------------------------------------------------------------


def _each(function: Callable[[Row], T]) -> Callable[[Sequence[Row]], list[T | TaskError]]:
    """A mapping of rows that do not depend on each other."""

    def mapped(index: int, row: Row) -> T | TaskError:
        try:
            return function(row)
        except KeyError as error:
            told = f"there is no field {error}, only {', '.join(sorted(row))}"
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            told = f"the row does not fit the mapping ({error})"
        return TaskError(f"row {index}: {told}; use the mapping that fits the dataset.")

    return lambda rows: [mapped(index, row) for index, row in enumerate(rows)]


def _chosen(question: str, options: Sequence[str], answer: Any, first: int = 0) -> Example | None:
    """The example of an answer that is a letter, in brackets or not, or a number counted from ``first``.

    None where the answer is blank or -1: it is not published.

    Raises:
        TypeError: the options are no list.
        ValueError: the answer is none of them.
    """
    if isinstance(options, str):
        raise TypeError(f"its options are a text, not a list: {shorten(options)}")
    if answer in (None, "") or answer != answer:
        return None
    # null among whole numbers makes floats of them
    text = f"{answer:g}" if isinstance(answer, float) else str(answer)
    text = text.strip().strip("[]().").upper()
    text = re.sub(r"\.0+$", "", text)
    if not re.fullmatch(r"-?\d+", text):
        return make_example(question, options, ord(text) - ord("A"))
    if int(text) == -1:
        return None
    if int(text) < first:
        raise ValueError(f"its answer is {text}, and options are counted from {first}")
    return make_example(question, options, int(text) - first)


def _arc(row: Row) -> Example | None:
    """AI2 ARC: ``question``, ``choices`` with ``text`` and ``label``, ``answerKey``."""
    choices = row["choices"]
    if not row["answerKey"]:
        return None
    return make_example(row["question"], choices["text"], choices["label"].index(row["answerKey"]))


def _hellaswag(row: Row) -> Example | None:
    """HellaSwag: ``activity_label``, ``ctx_a``, ``ctx_b``, ``endings``, ``label``."""
    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}".strip()
    question = f"{row['activity_label']}: {_without_marks(context)}"
    endings = [_without_marks(ending) for ending in row["endings"]]
    return _chosen(f"{question}\nWhich continuation is the most plausible?", endings, row["label"])


def _without_marks(text: str) -> str:
    """WikiHow text without its ``[title]`` and ``[step]`` marks."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return re.sub(r" {2,}", " ", text).strip()


def _boolq(row: Row) -> Example | None:
    """BoolQ without its passage: ``question``, ``answer``."""
    answer = row["answer"]
    if isinstance(answer, str):
        # as `datasets` writes them into a CSV file
        answer = {"true": True, "false": False, "1": True, "0": False}.get(answer.strip().lower())
    if not isinstance(answer, bool):
        return None
    return make_true_false_example(f"{row['question'].strip().removesuffix('?')}?", answer)


def _winogrande(row: Row) -> Example | None:
    """WinoGrande: ``sentence`` with a ``_`` for the gap, ``option1``, ``option2``, ``answer`` counted from 1."""
    sentence = row["sentence"].replace("_", "___")
    return _chosen(sentence, [row["option1"], row["option2"]], row["answer"], first=1)


def _socialiqa(row: Row) -> Example | None:
    """SocialIQA: ``context``, ``question``, ``answerA`` to ``answerC``, ``label`` counted from 1."""
    answers = [row["answerA"], row["answerB"], row["answerC"]]
    return _chosen(f"{row['context']} {row['question']}", answers, row["label"], first=1)


def _codemmlu(row: Row) -> Example | None:
    """CodeMMLU: ``question``, ``choices``, ``answer`` as a letter, sometimes ``problem_description``."""
    description = (row.get("problem_description") or "").strip()
    question = f"{description}\n{row['question']}" if description else row["question"]
    return _chosen(question, row["choices"], row["answer"])


def _divlogiceval(row: Row) -> Example | None:
    """DivLogicEval: ``context`` if any, ``question``, ``options`` or ``choices``, ``answer`` or ``label``."""
    answer = row["answer"] if "answer" in row else row["label"]
    options = row["options"] if "options" in row else row["choices"]
    parts = [str(row[key]).strip() for key in ("context", "question") if row.get(key)]
    return _chosen("\n".join(parts), options, answer)


def _gsm8k(row: Row) -> Example:
    """GSM8K as published: ``question``, ``answer``, a solution that ends with ``#### number``."""
    _result(row)
    return make_open_example(row["question"], row["answer"])


def _result(row: Row) -> Decimal:
    result = _number(row["answer"].rpartition("####")[2])
    if result is None:
        raise ValueError("its answer has no '#### number' line")
    return result


def _gsm8k_options(row: Row) -> Example:
    """GSM8K as multiple choice: wrong answers are results and numbers that the problem itself goes through."""
    result = _result(row)
    steps = re.findall(r"<<[^<>=]*=([^<>]*)>>", row["answer"])
    stated = re.findall(r"\d[\d,]*(?:\.\d+)?", row["question"])
    found = [number for text in (*reversed(steps), *stated) if (number := _number(text))]
    # few problems have fewer than three numbers of their own: the rest are near misses of the result
    misses = (result * 2, result / 2, result + 10, result + 1, result - 1, result + 5)
    wrong = dict.fromkeys(number for number in (*found, *misses) if number != result and number > 0)
    chosen = [_plain(number) for number in itertools.islice(wrong, WRONG_ANSWERS)]
    return _shuffled(row["question"], _plain(result), chosen)


def _number(text: str) -> Decimal | None:
    try:
        return Decimal(text.strip().replace(",", "").strip("$%. "))
    except InvalidOperation:
        return None


def _plain(number: Decimal) -> str:
    return format(number.normalize(), "f")


def _shuffled(question: str, answer: str, wrong: Iterable[str]) -> Example:
    """The example with its options in an order that depends on the question alone."""
    options = [answer, *wrong]
    random_of(question).shuffle(options)
    return make_example(question, options, options.index(answer))


def _math(row: Row) -> Example:
    """MATH as published: ``problem``, ``solution`` with its answer in the last box."""
    solution, answer = row["solution"], boxed(row["solution"])
    start = max(solution.rfind(name) for name in _BOXES)
    if not solution.startswith("\\boxed{", start):
        # \fbox, or TeX's short form without braces: written as all others are
        solution = f"{solution[:start]}$\\boxed{{{answer}}}$."
    return make_open_example(row["problem"], solution)


def _math_options(rows: Sequence[Row]) -> list[Mapped]:
    """MATH as multiple choice: wrong answers are right answers of other problems of the subject and level."""

    def solved(row: Row) -> tuple[tuple[str, str], str]:
        return (row["type"], row["level"]), boxed(row["solution"])

    of_level: dict[tuple[str, str], set[str]] = {}
    for one in _each(solved)(rows):
        if not isinstance(one, TaskError):
            of_level.setdefault(one[0], set()).add(one[1])
    pools = {level: sorted(answers) for level, answers in of_level.items()}
    everything = sorted(set().union(*pools.values()))

    def asked(row: Row) -> Example:
        level, answer = solved(row)
        rng = random_of(row["problem"])
        near = [other for other in pools[level] if other != answer]
        wrong = rng.sample(near, min(WRONG_ANSWERS, len(near)))
        rest = [other for other in everything if other != answer and other not in wrong]
        if len(wrong) + len(rest) < WRONG_ANSWERS:
            raise ValueError(f"the dataset has fewer than {WRONG_ANSWERS + 1} different answers")
        wrong += rng.sample(rest, WRONG_ANSWERS - len(wrong))
        return _shuffled(row["problem"], answer, wrong)

    return [*_each(asked)(rows)]


def boxed(solution: str) -> str:
    r"""The content of the last ``\boxed{…}`` of a solution.

    Raises:
        ValueError: There is none, or its braces are not closed.

    Example:
        >>> boxed(r"So the answer is $\boxed{\frac{1}{2}}$.")
        '\\frac{1}{2}'
    """
    start = max(solution.rfind(name) for name in _BOXES)
    text = re.sub(r"^\\f?box(ed)?\s*", "", solution[start:]) if start >= 0 else ""
    if text and text[0] != "{":
        # ``\boxed 5$``: TeX takes one token, and the formula ends with the dollar.
        return text.split("$")[0].strip()
    depth = 0
    for position, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[1:position].strip()
    raise ValueError("a closed \\boxed{…}")


MAPPINGS: dict[str, Mapper] = {
    "arc": _each(_arc),
    "hellaswag": _each(_hellaswag),
    "boolq": _each(_boolq),
    # `label` is -1 where it is not published
    "piqa": _each(lambda row: _chosen(row["goal"], [row["sol1"], row["sol2"]], row["label"])),
    "winogrande": _each(_winogrande),
    "gsm8k": _each(_gsm8k),
    "gsm8k_options": _each(_gsm8k_options),
    "math": _each(_math),
    "math_options": _math_options,
    "divlogiceval": _each(_divlogiceval),
    "socialiqa": _each(_socialiqa),
    "codemmlu": _each(_codemmlu),
}
_QUESTION_AND_ANSWER = ("question", "answer")
_PROBLEM = ("problem", "solution")
# the columns that a mapping reads; a bar is between two names of one
COLUMNS: dict[str, tuple[str, ...]] = {
    "arc": ("question", "choices", "answerKey"),
    "hellaswag": ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    "boolq": _QUESTION_AND_ANSWER,
    "piqa": ("goal", "sol1", "sol2", "label"),
    "winogrande": ("sentence", "option1", "option2", "answer"),
    "gsm8k": _QUESTION_AND_ANSWER,
    "gsm8k_options": _QUESTION_AND_ANSWER,
    "math": _PROBLEM,
    "math_options": (*_PROBLEM, "type", "level"),
    "divlogiceval": ("context|question", "options|choices", "answer|label"),
    "socialiqa": ("context", "question", "answerA", "answerB", "answerC", "label"),
    "codemmlu": ("question", "choices", "answer"),
}


# --- loading --------------------------------------------------------------------------------------


def load_hub(source: HubSource, task: str) -> dict[str, list[Example]]:
    """A hub dataset's examples by this project's split names.

    With ``local_path`` nothing is downloaded: that is a folder written by ``save_to_disk``, a folder with files named
    after the splits, or a file.

    Raises:
        TaskError: The mapping is unknown, the dataset cannot be reached or does not exist, has other columns, or more
            than one in a hundred of its rows does not fit.
    """
    if source.mapping not in MAPPINGS:
        hint = did_you_mean(source.mapping, MAPPINGS, f"use one of {', '.join(sorted(MAPPINGS))}.")
        raise TaskError(f"Task '{task}': there is no mapping '{source.mapping}'; {hint}")
    check_split_names(source.splits, "source.splits", task)
    loaded = {}
    for split, hub_split in source.splits.items():
        called = f"Task '{task}', {source.id}, split '{hub_split}'"
        try:
            rows = _rows(source, hub_split)
        except TaskError as error:
            raise TaskError(f"Task '{task}': {error}") from error
        _check_columns(source.mapping, rows, called)
        kept = _without_bad_rows(MAPPINGS[source.mapping](rows), called)
        loaded[split] = [example for example in kept if example is not None]
        if not loaded[split]:
            raise TaskError(
                f"Task '{task}': the split '{hub_split}' of {source.id} has no published answers; map '{split}' to "
                "another split of it."
            )
        if unpublished := len(kept) - len(loaded[split]):
            logger.info("%s: %d rows have no published answer.", called, unpublished)
    return loaded


def _check_columns(mapping: str, rows: Sequence[Row], called: str) -> None:
    """Refuse a dataset whose schema is not the one that the mapping was written for.

    Raises:
        TaskError: a column that it reads is in none of the rows.
    """
    found = dict.fromkeys(name for row in rows for name in row)
    expected = [name.replace("|", " or ") for name in COLUMNS[mapping]]
    missing = [name for name in expected if not found.keys() & set(name.split(" or "))]
    if found and missing:
        raise TaskError(
            f"{called}: the columns are {', '.join(found)}, and the mapping '{mapping}' reads {', '.join(expected)}: "
            f"there is no {', '.join(missing)}. Set source.revision to a commit with these columns, or use the mapping "
            "that fits the dataset."
        )


def _without_bad_rows(mapped: Sequence[Mapped], called: str) -> list[Example | None]:
    """What a benchmark's rows gave, without those that are no examples: these are counted, and the first is named.

    Raises:
        TaskError: more than one in a hundred is none.
    """
    bad: list[TaskError] = []
    kept: list[Example | None] = []
    answers: dict[str, str] = {}
    for index, one in enumerate(mapped):
        if isinstance(one, TaskError):
            bad.append(one)
        elif one and answers.setdefault(one.prompt, one.response) != one.response:
            told = f"row {index}: the question {shorten(one.question)} was there before, with another answer"
            bad.append(TaskError(told))
        else:
            kept.append(one)
    if len(bad) > _BAD_ROWS * len(mapped):
        raise TaskError(f"{called}, {bad[0]}") from bad[0]
    if bad:
        logger.warning("%s: %d of %d rows are left out. %s", called, len(bad), len(mapped), bad[0])
    return kept


def _rows(source: HubSource, split: str) -> list[Row]:
    """The rows of a split, of all the configurations that the source names, as in ``easy+hard``."""
    configs = [None] if source.config is None else source.config.split("+")
    if source.local_path is None:
        return [row for config in configs for row in _hub_rows(source, config, split)]
    path = Path(source.local_path)
    if not path.exists():
        raise TaskError(
            f"there is no local copy '{path}' of {source.id}; correct source.local_path, or remove it to download the "
            "dataset."
        )
    if path.is_file():
        return _file_rows(path)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved_rows(path, split)
    folders = [path / config if config and (path / config).is_dir() else path for config in configs]
    files = [file for folder in folders for file in _split_files(folder, split)]
    return [row for file in files for row in _file_rows(file)]


def _hub_rows(source: HubSource, config: str | None, split: str) -> list[Row]:
    # importing datasets takes over a second, and most runs never need it
    import datasets

    place = f"{source.id}{f' ({config})' if config else ''}, revision {source.revision}"
    try:
        dataset = datasets.load_dataset(source.id, config, revision=source.revision, split=split)
    # of the network, the hub, the disk, or a name that it does not have
    except (OSError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"the split '{split}' of {place} cannot be loaded ({error}); correct source.id, source.config, "
            "source.splits or source.revision, or set HF_TOKEN where it needs a login. To run offline, download it "
            "once where there is a network (datasets.load_dataset(…).save_to_disk('FOLDER')), copy the folder here "
            "and set source.local_path to it, or copy the filled cache (HF_HOME) and set HF_HUB_OFFLINE=1."
        ) from error
    rows: list[Row] = dataset.to_list()
    return rows


def _saved_rows(path: Path, split: str) -> list[Row]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise TaskError(
            f"the local copy '{path}' cannot be read ({error}); save it again with save_to_disk."
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise TaskError(
                f"the local copy '{path}' has no split '{split}', only {', '.join(saved)}; correct source.splits."
            )
        saved = saved[split]
    rows: list[Row] = saved.to_list()
    return rows


def _split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split as the hub lays them out.

    ``train-00000-of-00001.parquet``, ``train.json`` or ``train/0000.parquet``.
    """
    named = re.compile(rf"(^|[_.\-]){re.escape(split)}($|[_.\-])")
    files = [
        file
        for file in data_files(folder, "**/*")
        if named.search(file.stem) or file.parent.name == split
    ]
    if not files:
        raise TaskError(
            f"the local copy '{folder}' has no file for the split '{split}' ({split}.parquet, "
            f"{split}-00000-of-00001.parquet, {split}.json, …); correct source.splits or source.local_path."
        )
    return files


def _file_rows(path: Path) -> list[Row]:
    rows: list[Row] = [
        {key: _decoded(value) for key, value in record.items()} for record in whole_records(path)
    ]
    if not rows:
        raise TaskError(f"{path} has no records; copy or download it again.")
    return rows


def _decoded(value: Any) -> Any:
    """A CSV cell that holds a JSON list or object, decoded; anything else as it is."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value
