"""What the keys of a record mean, and what an answer names: one model of a record for every kind of file.

A :class:`Found` is what one record says: a question, its options and its answer, each of which may be missing. What
only the whole file can tell (what numbers are counted from, which answers a file without options has) is decided in
:mod:`~degaml_kedro.tasks.pasted`.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import random
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from degaml_kedro.tasks.example import (
    MAX_OPTIONS,
    TRUE_FALSE,
    Example,
    TaskError,
    did_you_mean,
    make_example,
    make_true_false_example,
    shorten,
    split_prompt,
)
from degaml_kedro.texts import printable

# records of a file that somebody brings
MAX_ROWS = 2000
# characters of a question, an option or a system message
MAX_FIELD = 20_000
# characters of a whole JSON record or CSV row: what is not closed shall not swallow all that follows
MAX_RECORD = 3 * MAX_FIELD

# names of keys and columns, best first, as `plain_key` makes them
QUESTIONS = (
    *("question", "input", "text", "prompt", "sentence", "utterance", "message", "query", "goal", "ctx"),
    *("hypothesis", "problem", "stem", "question_stem", "review", "tweet", "content"),
    *("sentence2", "question2", "text2", "q"),
)  # fmt: skip
ANSWERS = (
    *("answer", "output", "label", "response", "intent", "answerkey", "answer_key", "correct_answer", "correct_option"),
    *("correct", "target", "class", "category", "completion", "gold", "sentiment", "topic"),
)  # fmt: skip
OPTIONS = ("options", "choices", "endings", "candidates", "alternatives", "answers")
# what stands in front of the question
CONTEXTS = (
    *("passage", "context", "article", "paragraph", "premise", "sentence1", "question1", "text1"),
    "instruction",
)
# what numbers rows: nobody misses it
_ROW_NUMBERS = {"id", "idx", "index", "uid", "guid", "unnamed:_0"}
_OPTION_COLUMN = re.compile(
    r"(?P<word>option|choice|opt|op|answer|ans|ending|solution|sol)_?(?:(?P<letter>[a-z])|(?P<number>\d{1,2}))|"
    r"(?P<bare>[a-z])"
)
# wrong answers beside the right one: one key each, or a list
_WRONG = ("incorrect_answers", "wrong_answers", "distractors")
_DISTRACTOR = re.compile(r"(?:distractor|wrong(?:_answer)?|incorrect(?:_answer)?)_?\d{1,2}")
# keys among which a misspelled one is looked for
_MAX_KEYS = 50


class RecordError(TaskError):
    """A text or file that holds no examples, or one record of it that is wrong."""


@dataclass(frozen=True)
class Reading:
    """How records are read.

    Attributes:
        question: key of the question; None for the usual names.
        options: key of a list of options, or one key an option; None for the usual names.
        answer: key of the answer; None for the usual names.
        labels: options of questions that have none of their own; without them these are all answers that occur.
        answered: a question without an answer is a mistake.
        open_answers: questions without options stay so, each with an answer of its own.
        most: records at most; None for no bound.
        repeats: a prompt may list an option twice, as some of published benchmarks do.
    """

    question: str | None = None
    options: str | tuple[str, ...] | None = None
    answer: str | None = None
    labels: tuple[str, ...] = ()
    answered: bool = True
    open_answers: bool = False
    most: int | None = MAX_ROWS
    repeats: bool = False


EXAMPLES = Reading()


@dataclass(frozen=True)
class Found:
    """What a record says.

    Attributes:
        question: with its context in front.
        options: their texts; None where the record has none of its own.
        answer: as it stands there; None where there is none.
        system: the system message.
        labels: what the options are called in the record; none where they have no names of their own.
        counted_from: what the options' columns are numbered from; None where they are not.
        lettered: the options' columns have no numbers, but letters or names of their own.
        numbered: the answer may be an option's number.
        gold: the place of the right option, where the record marks it.
        prompt: the whole prompt, where the options stand in it; the question, where they are true and false, which are
            no option lines.
    """

    question: str
    options: tuple[str, ...] | None = None
    answer: str | int | float | bool | None = None
    system: str = ""
    labels: tuple[str, ...] = ()
    counted_from: int | None = None
    lettered: bool = False
    numbered: bool = True
    gold: int | None = None
    prompt: str | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the record has an answer."""
        return self.answer is not None or self.gold is not None

    @property
    def number(self) -> int | None:
        """The answer as a number, where it is one and no text or label of an option."""
        if self.options is None or self.answer is None or isinstance(self.answer, bool):
            return None
        if not self.numbered or self.gold is not None:
            return None
        text = plain_text(str(self.answer)).strip("[]()")
        # Python refuses to convert very many digits, and none of them could be a number of an option
        if not re.fullmatch(r"\d{1,9}", text) or text in self.labels:
            return None
        return int(text)


def plain_key(key: str) -> str:
    """A key or a column's name as it is compared: spreadsheets write ``Correct Answer``."""
    return re.sub(r"[\s_-]+", "_", key.strip().casefold())


_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))


def plain_text(text: str) -> str:
    """A text as it is compared with others: composed characters, no invisible ones, single blanks."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_INVISIBLE).split())


# --- what keys mean -------------------------------------------------------------------------------


def read_record(
    given: Mapping[str, Any], where: str, reading: Reading = EXAMPLES
) -> tuple[Found, list[str]]:
    """What a record with keys says, and which of its keys say nothing.

    The documentation lists the layouts (``docs/command-line.md``); ``where`` is the record's place, for messages.

    Raises:
        RecordError: it is no question.
    """
    record: dict[str, Any] = {}
    for key, value in given.items():
        if plain_key(key) in record:
            raise RecordError(f"{where}: the key {shorten(key)} comes twice; keep one of them.")
        record[plain_key(key)] = value
    if reading.question is reading.options is reading.answer is None:
        for name in ("messages", "conversations"):
            if isinstance(record.get(name), list):
                record |= _of_chat(record.pop(name), where)
        if isinstance(nested := record.get("question"), Mapping) and "stem" in nested:
            # ARC as AI2 publishes it
            record |= {plain_key(str(key)): value for key, value in nested.items()}
            record["question"] = record.pop("stem")
    question = _question_key(record, reading, where)
    keys, found = _options(record, reading, where)
    answer = _answer_key(record, reading, keys, where)
    system = record.get("system")
    found = replace(
        found,
        question=_question_text(record, question, where),
        answer=_answer_value(record, answer, where),
        system=system if isinstance(system, str) else "",
    )
    if any(_is_wrong(key) for key in keys):
        found = _with_right_answer(found, where)
    elif question == "prompt" and not keys and "response" in record:
        found = _with_options_of_prompt(found, record["prompt"], where)
    read = {question, answer, "system", *_ROW_NUMBERS, *keys, *CONTEXTS}
    return found, [key for key in record if key and key not in read]


def _question_text(record: Mapping[str, Any], question: str, where: str) -> str:
    """The question with its context in front."""
    parts = [record[key] for key in CONTEXTS if key != question and _is_filled(record.get(key))]
    for key, text in ((question, record[question]), *(("context", part) for part in parts)):
        _check_text(text, f"{where}, key '{key}'")
    # Alpaca's input may be blank where the instruction says all
    if record[question].strip():
        parts.append(record[question])
    elif question != "input" or not parts:
        raise RecordError(f"{where}: the question is blank; give it a text.")
    return "\n".join(part.strip() for part in parts)


def _check_text(value: object, where: str) -> None:
    if not isinstance(value, str):
        raise RecordError(f"{where}: expected a text, found {kind_of(value)}; put it in quotes.")


def _answer_value(
    record: Mapping[str, Any], key: str | None, where: str
) -> str | int | float | bool | None:
    """An answer as it stands there; None where it is blank."""
    value = None if key is None else record[key]
    if isinstance(value, float) and value.is_integer():
        # whole numbers in a column with gaps are floats
        value = int(value)
    _check_number(value, f"{where}, key '{key}'")
    if isinstance(value, list | dict):
        raise RecordError(
            f"{where}, key '{key}': expected a text, found {kind_of(value)}; give one answer."
        )
    return value if _is_filled(value) else None


def _with_options_of_prompt(found: Found, given: str, where: str) -> Found:
    """The paper's ``{"prompt", "response": "[B]", "system"}``: options are lines of the prompt, which stays."""
    response = str(found.answer or "").strip()
    if not re.fullmatch(r"\[.*\]|\d+", response):
        return found
    check_field(found.question, f"{where}: the prompt")
    prompt = given if given.strip() == found.question else found.question
    if response in ("[True]", "[False]"):
        gold = TRUE_FALSE.index(response[1:-1])
        return replace(found, question=prompt, options=TRUE_FALSE, gold=gold, prompt=prompt)
    question, options = split_prompt(prompt)
    if not options:
        raise RecordError(
            f"{where}, key 'prompt': fewer than two option lines found; end the prompt with at least two lines "
            "'A: …', 'B: …', or answer with [True] or [False]."
        )
    return replace(
        found, question=question, options=options, answer=response, numbered=False, prompt=prompt
    )


def _of_chat(turns: Sequence[Any], where: str) -> dict[str, str]:
    """The keys of a record of ``[{"role": "user", "content": …}, …]``, as chat models are trained on."""
    said: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    names = {"human": "user", "gpt": "assistant", "developer": "system"}
    for turn in turns:
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        text = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if isinstance(text, list) and all(isinstance(p, Mapping) and "text" in p for p in text):
            text = "\n".join(str(part["text"]) for part in text)
        role = names.get(str(role), str(role))
        if role not in said or not isinstance(text, str):
            raise RecordError(
                f'{where}: a turn is not {{"role": "user" or "assistant", "content": "a text"}}; write it so.'
            )
        said[role].append(text.strip())
    if len(said["user"]) != 1 or len(said["assistant"]) > 1:
        raise RecordError(
            f"{where}: the chat has {len(said['user'])} user and {len(said['assistant'])} assistant turns; give one of "
            "each a record."
        )
    return {
        "system": "\n".join(said["system"]),
        "question": said["user"][0],
        "answer": "".join(said["assistant"]),
    }


def _question_key(record: Mapping[str, Any], reading: Reading, where: str) -> str:
    if reading.question is not None:
        return _named_key(record, reading.question, where)
    for name in (*QUESTIONS, "instruction"):
        if name in record:
            return name
    raise _no_key(record, QUESTIONS, "question", where)


def _answer_key(
    record: Mapping[str, Any], reading: Reading, options: Sequence[str], where: str
) -> str | None:
    """The key of the answer; None where there is none, and none is needed."""
    names = ANSWERS if reading.answer is None else (plain_key(reading.answer),)
    found = next((name for name in names if name in record and name not in options), None)
    if found is None and reading.answered:
        raise _no_key(record, ANSWERS, "answer", where)
    return found


def check_columns(names: Sequence[str], reading: Reading, where: str) -> None:
    """Refuse columns, as :func:`plain_key` makes them, none of which is a question's or an answer's.

    Raises:
        RecordError: there is no such column.
    """
    record = dict.fromkeys(names)
    _question_key(record, reading, where)
    _answer_key(record, reading, (), where)


def _named_key(record: Mapping[str, Any], column: str, where: str) -> str:
    name = plain_key(column)
    if name not in record:
        keys = list(itertools.islice(record, _MAX_KEYS))
        hint = did_you_mean(name, keys, f"there are {_listed(keys)}.")
        raise RecordError(f"{where}: there is no column '{column}'; {hint}")
    return name


def _no_key(record: Mapping[str, Any], names: Sequence[str], what: str, where: str) -> RecordError:
    near = [
        key
        for key in itertools.islice(record, _MAX_KEYS)
        if difflib.get_close_matches(key[:40], names, n=1, cutoff=0.7)
    ]
    hint = f"rename {shorten(near[0])} to '{what}'." if near else f"name it '{what}'."
    keys = shorten(printable(", ".join(record))) if record else "none"
    return RecordError(f"{where}: there is no {what} (the keys are {keys}); {hint}")


def _options(
    record: Mapping[str, Any], reading: Reading, where: str
) -> tuple[Sequence[str], Found]:
    """The keys that a record's options are read from, and what these say, as yet without a question.

    Of keys of wrong answers (see ``_is_wrong``) the options are these alone.
    """
    if reading.options is not None and not isinstance(reading.options, str):
        keys = [_named_key(record, column, where) for column in reading.options]
        return keys, _of_columns(record, keys, where)
    listed = reading.options and _named_key(record, reading.options, where)
    listed = listed or next((name for name in OPTIONS if name in record), None)
    if listed is not None:
        if not _is_filled(record[listed]):
            return [listed], Found("")
        cells, labels = _listed_cell(record[listed], f"{where}, key '{listed}'")
        return [listed], Found("", _texts(cells, [listed], where), labels=labels)
    wrong = [key for key in record if _DISTRACTOR.fullmatch(key) and _is_filled(record[key])]
    if wrong:
        return wrong, Found("", _texts([record[key] for key in wrong], wrong, where))
    for key in _WRONG:
        if isinstance(record.get(key), list) and record[key]:
            return [key], Found("", _texts(record[key], [key], where))
    if keys := option_columns(record):
        return keys, _of_columns(record, keys, where)
    for key in itertools.islice(record, _MAX_KEYS):
        if difflib.get_close_matches(key[:40], OPTIONS[:2], n=1, cutoff=0.75):
            raise RecordError(
                f"{where}: the key {shorten(key)} is not known; did you mean '{OPTIONS[0]}'?"
            )
    return [], Found("")


def _is_wrong(key: str) -> bool:
    return key in _WRONG or _DISTRACTOR.fullmatch(key) is not None


def _of_columns(record: Mapping[str, Any], keys: Sequence[str], where: str) -> Found:
    cells = [record[key] for key in keys]
    # questions with fewer options leave the last columns blank
    while cells and not _is_filled(cells[-1]):
        cells.pop()
    if not cells:
        return Found("")
    marks = [match for key in keys if (match := re.fullmatch(r"(.*?)_?(\d{1,4})", key))]
    numbers = [int(match[2]) for match in marks]
    first = None
    if len(marks) == len(keys) and numbers == list(range(numbers[0], numbers[0] + len(keys))):
        # PIQA's two solutions are numbered from 1, and its labels from 0
        first = 0 if marks[0][1] == "sol" else numbers[0]
    texts = _texts(cells, keys[: len(cells)], where)
    # an answer may name the column, too
    labels = tuple(keys[: len(cells)])
    return Found("", texts, labels=labels, counted_from=first, lettered=first is None)


def _texts(cells: Sequence[Any], keys: Sequence[str], where: str) -> tuple[str, ...]:
    return tuple(_option_text(cell, f"{where}, key {_listed(keys)}") for cell in cells)


def _with_right_answer(found: Found, where: str) -> Found:
    """Wrong answers and the right one, in an order that depends on the question alone."""
    if found.answer is None:
        raise RecordError(
            f"{where}: there are wrong answers and no right one; without answers give 'options'."
        )
    right = str(found.answer).strip()
    options = [right, *(found.options or ())]
    random_of(found.question).shuffle(options)
    return replace(found, options=tuple(options), gold=options.index(right))


def random_of(question: str) -> random.Random:
    """Randomness that depends on a question alone, for the order of its options."""
    return random.Random(hashlib.sha256(question.encode("utf-8", "replace")).digest())


def option_columns(names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """The columns A, B, C, … or option 1, option 2, …, where at least the first two of one kind are there."""
    kinds: dict[tuple[str, bool], dict[int, str]] = {}
    for key in names:
        if match := _OPTION_COLUMN.fullmatch(key):
            letter = match["letter"] or match["bare"]
            place = ord(letter) - ord("a") + 1 if letter else int(match["number"])
            kinds.setdefault((match["word"] or "", bool(letter)), {})[place] = key
    for numbered in kinds.values():
        counted = itertools.takewhile(
            numbered.__contains__, itertools.count(0 if 0 in numbered else 1)
        )
        keys = [numbered[number] for number in counted]
        if len(keys) > 1:
            return keys
    return []


def _listed_cell(cell: Any, where: str) -> tuple[list[Any], tuple[str, ...]]:
    """Options from a list, an object by labels, JSON in a text or a text with bars; and their labels."""
    if isinstance(cell, str):
        if not cell.strip().startswith(("[", "{")):
            return [part.strip() for part in cell.split("|")], ()
        try:
            cell = json.loads(cell)
        except (RecursionError, ValueError) as error:
            raise RecordError(
                f"{where}: begins with a bracket but is not a JSON list ({error}); write it flat and with double "
                'quotes: ["…", "…"].'
            ) from error
    if isinstance(cell, Mapping):
        texts, labels = cell.get("text"), cell.get("label")
        if isinstance(texts, list) and isinstance(labels, list):
            if len(texts) != len(labels):
                raise RecordError(
                    f"{where}: there are {len(texts)} texts and {len(labels)} labels; give each text one label."
                )
            return list(texts), tuple(str(label).strip() for label in labels)
        return list(cell.values()), tuple(str(key).strip() for key in cell)
    if not isinstance(cell, list):
        raise RecordError(
            f'{where}: expected a list of options, found {kind_of(cell)}; write ["…", "…"] or …|…'
        )
    if cell and all(isinstance(one, Mapping) and {"text", "label"} <= set(one) for one in cell):
        return [one["text"] for one in cell], tuple(str(one["label"]).strip() for one in cell)
    return cell, ()


def _option_text(cell: Any, where: str) -> str:
    _check_number(cell, where)
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return str(cell)
    raise RecordError(f"{where}: an option is {kind_of(cell)}, not a text; put it in quotes.")


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def _is_filled(cell: object) -> bool:
    # NaN is how tables of numbers write what is missing
    is_nan = isinstance(cell, float) and math.isnan(cell)
    return cell is not None and not is_nan and not (isinstance(cell, str) and not cell.strip())


def kind_of(value: object) -> str:
    """What a value of JSON is called in messages."""
    names = {
        dict: "an object",
        list: "a list",
        bool: "true or false",
        type(None): "null",
        str: "a text",
    }
    return names.get(type(value), "a number")


def _check_number(value: object, where: str) -> None:
    if isinstance(value, float) and math.isinf(value):
        raise RecordError(
            f"{where}: a number is not finite, or too large; write it as a text in quotes."
        )


# --- options in the question's own lines ------------------------------------------------------------

_LETTERED_LINE = re.compile(r"\s*[(\[]?([A-Za-z])(?:[:)\]]|\.(?=\s|$))(.*)")
_ASKED_AGAIN = re.compile(
    r"\s*(?:(?:the )?(?:correct |right )?answer(?: is)?\s*:?)?\s*", re.IGNORECASE
)


def with_option_lines(found: Found, labels: Sequence[str]) -> Found | None:
    """A record without options, whose question ends with them: ``A: …``, ``B) …`` or ``(C) …`` lines; None for another.

    The answer, if there is one, has to name one of them; without it, no letter may come twice, as in dialogues.

    Args:
        found: the record.
        labels: what all options have to be among; none for any.
    """
    lines = found.question.split("\n")
    while lines and _ASKED_AGAIN.fullmatch(lines[-1]):
        lines.pop()
    marks = [
        (place, mark) for place, line in enumerate(lines) if (mark := _LETTERED_LINE.match(line))
    ]
    first = max((i for i, (_, mark) in enumerate(marks) if mark[1].upper() == "A"), default=0)
    own = marks[first:]
    letters = "".join(mark[1].upper() for _, mark in own)
    if len(own) < 2 or letters != string.ascii_uppercase[: len(own)]:
        return None
    ends = [*(place for place, _ in own[1:]), len(lines)]
    options = tuple(
        "\n".join([mark[2], *lines[place + 1 : end]]).strip()
        for (place, mark), end in zip(own, ends, strict=True)
    )
    question = "\n".join(lines[: own[0][0]]).strip()
    if labels and not {*map(plain_text, options)} <= {*map(plain_text, labels)}:
        return None
    if not question or not all(options):
        return None
    with_options = replace(found, question=question, options=options, numbered=False)
    if split_prompt(found.question) == (question, options):
        with_options = replace(with_options, prompt=found.question)
    if found.answer is None:
        return with_options if not first else None
    try:
        named_option(with_options, None, "")
    except RecordError:
        return None
    return with_options


# --- answers --------------------------------------------------------------------------------------


# "B) April", where option B is April
_LETTER_AND_TEXT = re.compile(r"[(\[]?(?P<letter>[A-Za-z])[:.)\]] ?(?P<text>.+)")


def named_option(found: Found, counted_from: int | None, where: str) -> int:
    """The place of the right option.

    An answer is an option's text, its label, its letter in any case, with or without brackets, both letter and text, or
    a number. Where two of these name different options, it is refused rather than guessed.

    Args:
        found: a record with options and an answer.
        counted_from: what numbers are counted from; None where the file does not say.
        where: its place, for messages.

    Raises:
        RecordError: it names none of the options, or several.
    """
    options = found.options or ()
    given = plain_text(str(found.answer))
    readings: dict[str, int] = {}
    texts = [plain_text(option) for option in options]
    if given in texts:
        readings["text"] = texts.index(given)
    if isinstance(found.answer, bool) and given not in texts:
        raise RecordError(_not_among(found, where))
    bare = given.strip("[]().:")
    labels = [plain_key(label) for label in found.labels]
    if plain_key(bare) in labels:
        readings["label"] = labels.index(plain_key(bare))
    elif (
        len(bare) == 1
        and bare.isascii()
        and bare.isalpha()
        and not (bare == given and bare in texts and bare.islower())
    ):
        place = ord(bare.upper()) - ord("A")
        if place < len(options):
            readings["letter"] = place
    elif not readings and (both := _LETTER_AND_TEXT.fullmatch(given)):
        place = ord(both["letter"].upper()) - ord("A")
        if place < len(options) and texts[place] == both["text"]:
            readings["letter"] = place
    if (number := found.number) is not None:
        if counted_from is None and "text" not in readings:
            raise RecordError(
                f"{where}: the answer {number} may be counted from 0 or from 1, and the file does not tell; write the "
                "option's text or its letter."
            )
        if counted_from is not None and 0 <= number - counted_from < len(options):
            readings["number"] = number - counted_from
    if not readings:
        raise RecordError(_not_among(found, where, counted_from))
    if len(set(readings.values())) > 1:
        kinds = " or ".join(sorted(readings))
        raise RecordError(
            f"{where}: {shorten(str(found.answer))} can be read as {kinds} of different options; give its letter in "
            "square brackets, like [A]."
        )
    return next(iter(readings.values()))


def _not_among(found: Found, where: str, counted_from: int | None = None) -> str:
    count = len(found.options or ())
    last = string.ascii_uppercase[count - 1] if 0 < count <= MAX_OPTIONS else "…"
    by_number = counted_from is not None and found.numbered
    number = f", or its number counted from {counted_from}" if by_number else ""
    return (
        f"{where}: the answer {shorten(str(found.answer))} is not among the {count} options; give the option's text, "
        f"or its letter A to {last}{number}."
    )


# --- sound fields ---------------------------------------------------------------------------------

_UNTOKENIZABLE = re.compile("[\x00\ud800-\udfff]")


def check_field(text: str, what: str) -> None:
    """Refuse a field that is too long, or that cannot be encoded.

    Raises:
        RecordError: it is one of these.
    """
    if len(text) > MAX_FIELD:
        raise RecordError(
            f"{what} has {len(text):,} characters; shorten it to at most {MAX_FIELD:,}."
        )
    if odd := _UNTOKENIZABLE.search(text):
        raise RecordError(
            f"{what} has the code U+{ord(odd[0]):04X}, which is no character; remove it."
        )


def check_fields(found: Found, where: str) -> None:
    """Refuse fields that are too long, or that cannot be encoded.

    Raises:
        RecordError: one is.
    """
    check_field(found.question, f"{where}: the question")
    check_field(found.system, f"{where}: the system message")
    for option in found.options or ():
        check_field(option, f"{where}: the option")
    if found.answer is not None and found.options is None:
        check_field(str(found.answer), f"{where}: the answer")


def has_repeats(options: Sequence[str]) -> bool:
    """Whether two options read the same."""
    return len({plain_text(option) for option in options}) < len(options)


def check_repeats(options: Sequence[str], where: str) -> None:
    """Refuse options of which two read the same.

    Raises:
        RecordError: one comes twice.
    """
    repeated = [text for text, count in Counter(map(plain_text, options)).items() if count > 1]
    if repeated:
        raise RecordError(
            f"{where}: the option {shorten(repeated[0])} comes twice; keep one of them."
        )


def example_of(found: Found, gold: int, where: str) -> Example:
    """The example of a record with options, of which one is right.

    Raises:
        RecordError: the question or an option is blank, or there are too few or too many options.
    """
    options = found.options or ()
    try:
        if found.prompt == found.question and set(options) == set(TRUE_FALSE):
            is_true = options[gold] == TRUE_FALSE[0]
            return make_true_false_example(found.question, is_true, found.system)
        example = make_example(found.question, options, gold, found.system)
    except TaskError as error:
        raise RecordError(f"{where}: {error}") from error
    return example if found.prompt is None else replace(example, prompt=found.prompt)


_FLAT = "write one flat object per example."
TOO_DEEP = f"it is nested too deeply; {_FLAT}"
TOO_LONG = "a number has too many digits; write it as a text in quotes."
