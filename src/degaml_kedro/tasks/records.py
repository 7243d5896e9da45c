"""What the keys of a record mean, and what an answer names: one model of a record for every kind of file.

A :class:`Found` is what one record says: a question, its options and its answer, each of which may be missing. What
only the whole file can tell (what numbers are counted from, which answers a file without options has) is decided in
:mod:`~degaml_kedro.tasks.pasted`, which also puts the record's line in front of what is wrong with it.
"""

from __future__ import annotations

import ast
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from degaml_kedro.common.texts import printable
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
    *("correctanswer", "correctoption", "answer_index", "answer_idx", "answerindex", "correct_index", "correctindex"),
    *("correct", "target", "class", "category", "completion", "gold", "gold_label", "sentiment", "topic"),
)  # fmt: skip
# names of a text's label, which may also stand beside an answer; beside options they say what a question is about
_ABOUT = ("intent", "class", "category", "sentiment", "topic")
_LABELS = ("label", "intent", "target", "class", "gold", "gold_label")
OPTIONS = ("options", "choices", "endings", "candidates", "alternatives", "answers")
# what stands in front of the question
CONTEXTS = (
    *("passage", "context", "article", "paragraph", "premise", "sentence1", "question1", "text1"),
    "instruction",
)
# the first of two texts, or what a question is asked about, where the question has a key of its own
_FIRST_TEXTS = ("question", "text", "sentence")
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
        numbers: what the options are numbered with; none where they are not.
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
    numbers: tuple[int, ...] = ()
    numbered: bool = True
    gold: int | None = None
    prompt: str | None = None

    @property
    def number(self) -> int | None:
        """The answer as a number, where it is one and no text or label of an option."""
        if self.options is None or self.answer is None or isinstance(self.answer, bool):
            return None
        if not self.numbered or self.gold is not None:
            return None
        # tables write whole numbers as 2.0 where some are missing; of very many digits none is an option's number
        match = re.fullmatch(r"(\d{1,9})(?:\.0+)?", plain_text(str(self.answer)).strip("[]()"))
        return int(match[1]) if match else None


def plain_key(key: str) -> str:
    """A key or a column's name as it is compared: spreadsheets write ``Correct Answer``."""
    return re.sub(r"[\s_-]+", "_", key.strip().casefold())


_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))


def _plain_label(text: str) -> str:
    """A label or a letter as it is compared: ``(B)``, ``B.`` and ``b`` are one."""
    return plain_key(plain_text(text).strip("[]().:"))


def plain_text(text: str) -> str:
    """A text as it is compared with others: composed characters, no invisible ones, single blanks."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_INVISIBLE).split())


# --- what keys mean -------------------------------------------------------------------------------


def read_record(given: Mapping[str, Any], reading: Reading) -> tuple[Found, dict[str, Any]]:
    """What a record with keys says, and those of its cells that say nothing.

    The documentation lists the layouts (``docs/command-line.md``).

    Raises:
        RecordError: it is no question.
    """
    record: dict[str, Any] = {}
    for key, value in given.items():
        if plain_key(key) in record:
            raise RecordError(f"the key {shorten(key)} comes twice; keep one of them.")
        record[plain_key(key)] = value
    if reading.question is None and reading.options is None:
        for name in ("messages", "conversations"):
            if isinstance(record.get(name), list):
                chat = _of_chat(record.pop(name))
                if both := [key for key in chat if _is_filled(record.get(key))]:
                    raise RecordError(
                        f"beside the chat in '{name}' there is the key '{both[0]}', which the chat has, too; keep one "
                        "of them."
                    )
                record |= chat
        if isinstance(nested := record.get("question"), Mapping) and "stem" in nested:
            # ARC as AI2 publishes it
            record |= {plain_key(str(key)): value for key, value in nested.items()}
            record["question"] = record.pop("stem")
    question = _question_key(record, reading)
    keys, found = _options(record, reading, question)
    answer = _answer_key(record, reading, (question, *keys))
    contexts = (*CONTEXTS, *(_FIRST_TEXTS if reading.question is None else ()))
    system = record.get("system")
    found = replace(
        found,
        question=_question_text(record, question, contexts),
        answer=None if answer is None else _answer_value(record[answer], answer, reading),
        system=system if isinstance(system, str) else "",
    )
    if any(key in _WRONG or _DISTRACTOR.fullmatch(key) for key in keys):
        found = _with_right_answer(found)
    elif question == "prompt" and not keys and "response" in record:
        found = _with_options_of_prompt(found, record["prompt"])
    read = {question, answer, "system", *_ROW_NUMBERS, *keys, *contexts}
    return found, {key: cell for key, cell in record.items() if key and key not in read}


def _question_text(record: Mapping[str, Any], question: str, contexts: Sequence[str]) -> str:
    """The question with its context in front."""
    above = [key for key in contexts if key != question and _is_filled(record.get(key))]
    for key in (question, *above):
        if not isinstance(record[key], str):
            raise RecordError(
                f"key '{key}': expected a text, found {kind_of(record[key])}; put it in quotes."
            )
    texts = [record[key].strip() for key in (*above, question)]
    # Alpaca's input may be blank where the instruction says all
    if not texts[-1] and (question != "input" or not above):
        raise RecordError("the question is blank; give it a text.")
    return "\n".join(filter(None, texts))


def _answer_value(value: Any, key: str, reading: Reading) -> str | int | float | bool | None:
    """An answer as it stands there; None where it is blank, or -1 where answers may be missing: it is not published."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        # whole numbers in a column with gaps are floats
        value = int(value)
    _check_number(value, f"key '{key}'")
    if isinstance(value, list | dict):
        raise RecordError(f"key '{key}': expected a text, found {kind_of(value)}; give one answer.")
    if not reading.answered and str(value).strip() == "-1":
        return None
    return value if _is_filled(value) else None


def _with_options_of_prompt(found: Found, given: str) -> Found:
    """The paper's ``{"prompt", "response": "[B]", "system"}``: options are lines of the prompt, which stays."""
    response = str(found.answer or "").strip()
    if not re.fullmatch(r"\[.*\]|\d+", response):
        return found
    check_field(found.question, "the prompt")
    prompt = given if given.strip() == found.question else found.question
    if response in ("[True]", "[False]"):
        gold = TRUE_FALSE.index(response[1:-1])
        return replace(found, question=prompt, options=TRUE_FALSE, gold=gold, prompt=prompt)
    question, options = split_prompt(prompt)
    if not options:
        raise RecordError(
            "key 'prompt': fewer than two option lines found; end the prompt with at least two lines 'A: …', 'B: …', "
            "or answer with [True] or [False]."
        )
    return replace(
        found, question=question, options=options, answer=response, numbered=False, prompt=prompt
    )


def _of_chat(turns: Sequence[Any]) -> dict[str, str]:
    """The keys of a record of ``[{"role": "user", "content": …}, …]``, as chat models are trained on."""
    said: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    roles = {"human": "user", "gpt": "assistant", "developer": "system"}
    for turn in turns:
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        text = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if isinstance(text, list) and all(isinstance(p, Mapping) and "text" in p for p in text):
            text = "\n".join(str(part["text"]) for part in text)
        role = roles.get(str(role), str(role))
        if role not in said or not isinstance(text, str):
            raise RecordError(
                'a turn is not {"role": "user" or "assistant", "content": "a text"}; write it so.'
            )
        said[role].append(text.strip())
    if len(said["user"]) != 1 or len(said["assistant"]) > 1:
        raise RecordError(
            f"the chat has {len(said['user'])} user and {len(said['assistant'])} assistant turns; give one of each a "
            "record."
        )
    names = {"system": "system", "question": "user", "answer": "assistant"}
    return {key: "\n".join(said[role]) for key, role in names.items() if said[role]}


def _question_key(record: Mapping[str, Any], reading: Reading) -> str:
    if reading.question is not None:
        return _named_key(record, reading.question)
    for name in (*QUESTIONS, "instruction"):
        if name in record:
            # of a pair the first text stands in front
            second = f"{name}2"
            return second if name in _FIRST_TEXTS and _is_filled(record.get(second)) else name
    raise _no_key(record, QUESTIONS, "question", ())


def _answer_key(record: Mapping[str, Any], reading: Reading, used: Sequence[str]) -> str | None:
    """The key of the answer; None where there is none, and none is needed.

    ``used`` are the keys of the question and its options.

    Raises:
        RecordError: there is none, or one of an answer in words and one of a label.
    """
    if reading.answer is not None:
        names: tuple[str, ...] = (plain_key(reading.answer),)
    else:
        names = tuple(name for name in ANSWERS if len(used) < 2 or name not in _ABOUT)
    found = [name for name in names if name in record and name not in used]
    if not found and reading.answered:
        raise _no_key(record, ANSWERS, "answer", used)
    if len(used) < 2 and found and reading.answered and record[found[0]] is not None:
        about = _LABELS if found[0] == "answer" else (*_LABELS, *_ABOUT)
        in_words = found[0] in ("answer", "output", "response", "completion")
        other = next((name for name in found[1:] if in_words and name in about), None)
        if other is not None and _is_filled(record[other]):
            raise RecordError(
                f"the answer may be '{found[0]}' or '{other}'; say which (--answer-column, or the source's 'answer'), "
                "or leave one out."
            )
    return found[0] if found else None


def check_columns(names: Sequence[str], reading: Reading) -> None:
    """Refuse columns, as :func:`plain_key` makes them, none of which is a question's or an answer's.

    Raises:
        RecordError: there is no such column.
    """
    record = dict.fromkeys(names)
    _question_key(record, reading)
    _answer_key(record, reading, ())


def _named_key(record: Mapping[str, Any], column: str) -> str:
    name = plain_key(column)
    if name not in record:
        keys = list(itertools.islice(record, _MAX_KEYS))
        hint = did_you_mean(name, keys, f"there are {_listed(keys)}.")
        raise RecordError(f"there is no column '{column}'; {hint}")
    return name


def _no_key(
    record: Mapping[str, Any], names: Sequence[str], what: str, used: Sequence[str]
) -> RecordError:
    near = _near_key((key for key in record if key not in used), names, 0.7)
    hint = f"rename {shorten(near)} to '{what}'." if near else f"name it '{what}'."
    keys = shorten(printable(", ".join(record))) if record else "none"
    return RecordError(f"there is no {what} (the keys are {keys}); {hint}")


def _near_key(keys: Iterable[str], names: Sequence[str], cutoff: float) -> str | None:
    """The first key that is spelled almost as one of some names."""
    for key in itertools.islice(keys, _MAX_KEYS):
        if difflib.get_close_matches(key[:40], names, n=1, cutoff=cutoff):
            return key
    return None


def _options(
    record: Mapping[str, Any], reading: Reading, question: str
) -> tuple[Sequence[str], Found]:
    """The keys that a record's options are read from, and what these say, as yet without a question.

    Of keys of wrong answers the options are these alone.
    """
    if reading.options is not None and not isinstance(reading.options, str):
        keys = [_named_key(record, column) for column in reading.options]
        return keys, _of_columns(record, keys)
    listed = reading.options and _named_key(record, reading.options)
    listed = listed or next((name for name in OPTIONS if name in record), None)
    if listed is not None:
        return [listed], _of_cell(record[listed], listed)
    others = {question, plain_key(reading.answer or "")}
    if keys := option_columns([key for key in record if key not in others]):
        return keys, _of_columns(record, keys)
    wrong = [key for key in record if _DISTRACTOR.fullmatch(key) and _is_filled(record[key])]
    if wrong:
        return wrong, Found("", _texts([record[key] for key in wrong], wrong))
    for key in _WRONG:
        if _is_filled(record.get(key)) and record[key]:
            return [key], replace(_of_cell(record[key], key), labels=(), numbers=())
    if near := _near_key(record, OPTIONS[:2], 0.75):
        raise RecordError(f"the key {shorten(near)} is not known; did you mean '{OPTIONS[0]}'?")
    return [], Found("")


def _of_columns(record: Mapping[str, Any], keys: Sequence[str]) -> Found:
    cells = [record[key] for key in keys]
    # questions with fewer options leave the last columns blank
    while cells and not _is_filled(cells[-1]):
        cells.pop()
    if not cells:
        return Found("")
    names = tuple(keys[: len(cells)])
    # an answer may name the column, too
    found = _numbered(Found("", _texts(cells, names), labels=names))
    # PIQA's two solutions are numbered from 1, and its labels from 0
    return replace(found, numbers=(0, 1)) if keys[:2] == ["sol1", "sol2"] else found


def _of_cell(cell: Any, key: str) -> Found:
    """What one key says of the options: their texts, and what they are called there or in front of their texts."""
    if not _is_filled(cell):
        return Found("")
    cells, names = _listed_cell(cell, f"key '{key}'")
    texts, labels = _texts(cells, [key]), tuple(str(name).strip() for name in names)
    marks = tuple(mark[1] for text in texts if (mark := _OWN_LABEL.match(text)))
    if not labels and len({*map(str.casefold, marks)}) == len(texts):
        labels = marks
    return _numbered(Found("", texts, labels=labels))


_OWN_LABEL = re.compile(r"[(\[]?([A-Za-z]|\d{1,2})[.:)\]]\s")


def _numbered(found: Found) -> Found:
    """The options with their numbers, where all labels are numbers, or one name with different numbers."""
    marks = [re.fullmatch(r"(.*?)_?(\d{1,4})", _plain_label(label)) for label in found.labels]
    named = [(mark[1], int(mark[2])) for mark in marks if mark]
    if not named or len({*named}) < len(found.labels) or len({name for name, _ in named}) > 1:
        return found
    numbers = tuple(number for _, number in named)
    # a label that is a number is one, and no name
    return replace(found, numbers=numbers, labels=found.labels if named[0][0] else ())


def _texts(cells: Sequence[Any], keys: Sequence[str]) -> tuple[str, ...]:
    """The texts of options; numbers are written out."""
    place = f"key {_listed(keys)}"
    for cell in cells:
        _check_number(cell, place)
        if isinstance(cell, bool) or not isinstance(cell, str | int | float):
            raise RecordError(
                f"{place}: an option is {kind_of(cell)}, not a text; put it in quotes."
            )
    return tuple(str(cell).strip() for cell in cells)


def _with_right_answer(found: Found) -> Found:
    """Wrong answers and the right one, in an order that depends on the question alone."""
    if found.answer is None:
        raise RecordError(
            "there are wrong answers and no right one; without answers give 'options'."
        )
    right = str(found.answer).strip()
    options = [right, *(found.options or ())]
    random_of(found.question).shuffle(options)
    return replace(found, options=tuple(options), gold=options.index(right))


def random_of(question: str) -> random.Random:
    """Randomness that depends on a question alone, for the order of its options."""
    return random.Random(hashlib.sha256(question.encode("utf-8", "replace")).digest())


def option_columns(names: Iterable[str]) -> list[str]:
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


def _listed_cell(cell: Any, place: str) -> tuple[Sequence[Any], Sequence[Any]]:
    """Options from a list, an object by labels, JSON in a text or a text with bars; and their labels."""
    if isinstance(cell, str) and not cell.strip().startswith(("[", "{")):
        return cell.split("|"), ()
    if isinstance(cell, str):
        cell = _decoded_list(cell, place)
    if isinstance(cell, Mapping):
        texts, labels = cell.get("text"), cell.get("label")
        if isinstance(texts, list) and isinstance(labels, list):
            if len(texts) != len(labels):
                raise RecordError(
                    f"{place}: there are {len(texts)} texts and {len(labels)} labels; give each text one label."
                )
            return texts, labels
        return [*cell.values()], [*cell]
    if not isinstance(cell, list):
        raise RecordError(
            f'{place}: expected a list of options, found {kind_of(cell)}; write ["…", "…"] or …|…'
        )
    for name in ("label", "id"):
        if cell and all(isinstance(one, Mapping) and {"text", name} <= set(one) for one in cell):
            return [one["text"] for one in cell], [one[name] for one in cell]
    return cell, ()


def _decoded_list(text: str, place: str) -> Any:
    """A list or an object in a cell, as JSON or as Python writes it."""
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:
        try:
            # tables that pandas wrote have ['a', 'b']
            return ast.literal_eval(text.strip())
        except (MemoryError, RecursionError, SyntaxError, ValueError):
            raise RecordError(
                f"{place}: begins with a bracket but is not a JSON list ({error}); write it flat and with double "
                'quotes: ["…", "…"].'
            ) from error


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def _is_filled(cell: object) -> bool:
    # NaN is how tables of numbers write what is missing
    is_nan = isinstance(cell, float) and math.isnan(cell)
    return cell is not None and not is_nan and not (isinstance(cell, str) and not cell.strip())


_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    bool: "true or false",
    type(None): "null",
    str: "a text",
}


def kind_of(value: object) -> str:
    """What a value of JSON is called in messages."""
    return _KINDS.get(type(value), "a number")


def _check_number(value: object, place: str) -> None:
    if isinstance(value, float) and math.isinf(value):
        raise RecordError(
            f"{place}: a number is not finite, or too large; write it as a text in quotes."
        )


# --- options in the question's own lines ------------------------------------------------------------

_MARKED_LINE = re.compile(
    r"\s*(?:[(\[]?(?P<mark>[A-Za-z]|\d{1,2})(?:[:)\]]|\.(?=\s|$))|(?P<bullet>[-*•])\s)(?P<text>.*)"
)
# AI2's ARC: "Which is hot? (A) ice (B) fire"
_MARK_INSIDE = re.compile(r"[ \t]+(?=[(\[][A-Z1-9][)\]]\s)")
_ASKED_AGAIN = re.compile(
    r"\s*(?:(?:(?:the|your) )?(?:correct |right |final )?answer(?: is)?\s*:?)?\s*", re.IGNORECASE
)
_INSTRUCTION = re.compile(
    r"\s*(?:please )?(?:(?:your )?answer|choose|select|pick|reply|respond|give|write|return)\b.*",
    re.IGNORECASE,
)


def marked_lines(question: str) -> list[tuple[int, re.Match[str]]]:
    """The lines of a question that look like options: their places and what they look like."""
    lines = question.split("\n")
    return [(place, mark) for place, line in enumerate(lines) if (mark := _MARKED_LINE.match(line))]


def with_option_lines(found: Found, labels: Sequence[str]) -> Found | str | None:
    """A record without options, whose question ends with them; its mistake; or None for another record.

    Options are lines ``A: …``, ``B) …``, ``(C) …`` or ``1. …``, parts ``(A) …`` of a line, or lines with bullets, of
    which the answer is one. The answer, if there is one, has to name one of them; without it, no letter may come twice,
    as in dialogues. Where there are ``labels``, all options have to be among them.
    """
    question = found.question
    if len(marked_lines(question)) < 2 <= len(_MARK_INSIDE.findall(question)):
        question = _MARK_INSIDE.sub("\n", question)
    lines = question.split("\n")
    while lines and _ASKED_AGAIN.fullmatch(lines[-1]):
        lines.pop()
    marks = marked_lines("\n".join(lines))
    names = [(mark["mark"] or "").upper() for _, mark in marks]
    first = max((i for i, name in enumerate(names) if name in ("A", "1")), default=0)
    own, names = marks[first:], names[first:]
    count = len(own)
    numbers = tuple(range(1, count + 1)) if names == [*map(str, range(1, count + 1))] else ()
    is_lettered = "".join(names) == string.ascii_uppercase[:count]
    has_bullets = not any(names)
    if count < 2 or not (numbers or is_lettered or has_bullets):
        return None
    ends = [*(place for place, _ in own[1:]), len(lines)]
    texts = without_instruction(
        [
            [mark["text"], *lines[place + 1 : end]]
            for (place, mark), end in zip(own, ends, strict=True)
        ]
    )
    options = tuple("\n".join(text).strip() for text in texts)
    asked = "\n".join(lines[: own[0][0]]).strip()
    among = {*map(plain_text, options)} <= {*map(plain_text, labels or options)}
    if not (among and asked and all(options)):
        return None
    with_options = replace(
        found, question=asked, options=options, numbers=numbers, numbered=bool(numbers)
    )
    if split_prompt(found.question) == (asked, options):
        with_options = replace(with_options, prompt=found.question)
    if found.answer is None:
        return with_options if is_lettered and not first else None
    if has_bullets and plain_text(str(found.answer)) not in map(plain_text, options):
        return None
    try:
        named_option(with_options, (1,) if numbers else UNKNOWN_BASE)
    except RecordError:
        return None
    return GOES_ON if goes_on_alone(texts) else with_options


GOES_ON = (
    "the last option goes on in another line, and no other option does; put it in one line, or what follows in front "
    "of the options."
)


def without_instruction(options: list[list[str]]) -> list[list[str]]:
    """The lines of options, without "Answer with a letter." under the last one of several that have one line each."""
    if goes_on_alone(options) and all(map(_INSTRUCTION.fullmatch, options[-1][1:])):
        return [*options[:-1], options[-1][:1]]
    return options


def goes_on_alone(options: Sequence[Sequence[str]]) -> bool:
    """Whether the last option has several lines, and the others have one: what follows may be no part of it."""
    return len(options[-1]) > 1 and all(len(lines) == 1 for lines in options[:-1])


# --- answers --------------------------------------------------------------------------------------


# "B) April", where option B is April
_LETTER_AND_TEXT = re.compile(r"[(\[]?(?P<letter>[A-Za-z])[:.)\]] ?(?P<text>.+)")


# what numbers may be counted from, where a file does not tell
UNKNOWN_BASE = (0, 1)


def named_option(found: Found, bases: tuple[int, ...]) -> int:
    """The place of the right option.

    An answer is an option's text, its label, its letter in any case, with or without brackets, both letter and text, or
    a number. Where two of these name different options, it is refused rather than guessed.

    ``bases`` are what numbers may be counted from; none where numbers are texts.

    Raises:
        RecordError: it names none of the options, or several.
    """
    options = found.options or ()
    given = plain_text(str(found.answer))
    readings: dict[str, int] = {}
    texts = [plain_text(option) for option in options]
    if given in texts:
        readings["text"] = texts.index(given)
    elif isinstance(found.answer, bool):
        raise _not_among(found)
    bare = given.strip("[]().:")
    labels = [_plain_label(label) for label in found.labels]
    # letters of their own are these, and no others
    letters = labels if all(len(label) == 1 for label in labels) else []
    letters = letters or list(string.ascii_lowercase[: len(options)])
    is_letter = len(bare) == 1 and bare.isascii() and bare.isalpha()
    if plain_key(bare) in labels:
        readings["label"] = labels.index(plain_key(bare))
    elif is_letter and not (bare == given and bare in texts and bare.islower()):
        if bare.lower() in letters:
            readings["letter"] = letters.index(bare.lower())
    elif not readings and (both := _LETTER_AND_TEXT.fullmatch(given)):
        letter = both["letter"].lower()
        if letter in letters and texts[letters.index(letter)] == both["text"]:
            readings["letter"] = letters.index(letter)
    if (number := found.number) is not None and "label" not in readings:
        places = _places_of(number, found, bases)
        if len(places) > 1 or (len(bases) > 1 and {*readings.values()} < places):
            raise RecordError(
                f"the answer {number} may be counted from 0 or from 1, and the file does not tell; write the option's "
                "text or its letter."
            )
        for place in places:
            readings["number"] = place
    if not readings:
        raise _not_among(found, bases)
    if len(set(readings.values())) > 1:
        kinds = " or ".join(sorted(readings))
        raise RecordError(
            f"{shorten(str(found.answer))} can be read as {kinds} of different options; give its letter in square "
            "brackets, like [A]."
        )
    return next(iter(readings.values()))


def _places_of(number: int, found: Found, bases: tuple[int, ...]) -> set[int]:
    """The places of the options that a number may mean."""
    if found.numbers and len(bases) == 1:
        return {found.numbers.index(number)} if number in found.numbers else set()
    count = len(found.options or ())
    return {number - base for base in bases if 0 <= number - base < count}


def _not_among(found: Found, bases: tuple[int, ...] = ()) -> RecordError:
    count = len(found.options or ())
    last = string.ascii_uppercase[count - 1] if 0 < count <= MAX_OPTIONS else "…"
    by_number = found.numbered and len(bases) == 1
    number = f", or its number counted from {bases[0]}" if by_number else ""
    return RecordError(
        f"the answer {shorten(str(found.answer))} is not among the {count} options; give the option's text, or its "
        f"letter A to {last}{number}."
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


def check_fields(found: Found) -> None:
    """Refuse fields that are too long, or that cannot be encoded.

    Raises:
        RecordError: one is.
    """
    check_field(found.question, "the question")
    check_field(found.system, "the system message")
    for option in found.options or ():
        check_field(option, "the option")
    if found.answer is not None and found.options is None:
        check_field(str(found.answer), "the answer")


def repeated_option(options: Sequence[str]) -> str | None:
    """An option that another one reads like; None where all differ."""
    counts = Counter(map(plain_text, options))
    return next((text for text, count in counts.items() if count > 1), None)


def check_repeats(options: Sequence[str]) -> None:
    """Refuse options of which two read the same.

    Raises:
        RecordError: one comes twice.
    """
    if (repeated := repeated_option(options)) is not None:
        raise RecordError(f"the option {shorten(repeated)} comes twice; keep one of them.")


def example_of(found: Found, gold: int) -> Example:
    """The example of a record with options, of which one is right.

    Raises:
        TaskError: the question or an option is blank, or there are too few or too many options.
    """
    options = found.options or ()
    if found.prompt == found.question and set(options) == set(TRUE_FALSE):
        is_true = options[gold] == TRUE_FALSE[0]
        return make_true_false_example(found.question, is_true, found.system)
    example = make_example(found.question, options, gold, found.system)
    return example if found.prompt is None else replace(example, prompt=found.prompt)


TOO_DEEP = "it is nested too deeply; write one flat object per example."
TOO_LONG = "a number has too many digits; write it as a text in quotes."
