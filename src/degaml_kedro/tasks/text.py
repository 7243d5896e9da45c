"""Plain text: a line or a block of lines a question (:mod:`~degaml_kedro.tasks.pasted` shows the forms), and quizzes.

Aiken (a question, ``A. option`` lines, ``ANSWER: B``) is one of the forms of a block; GIFT, in which quizzes of Moodle
are kept, has its answers in braces: ``Which is hot? {=fire ~ice}``. An answer may be missing: then it is a question.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterable, Iterator, Sequence

from degaml_kedro.tasks.example import MAX_OPTIONS, TRUE_FALSE
from degaml_kedro.tasks.records import (
    GOES_ON,
    UNKNOWN_BASE,
    Found,
    RecordError,
    goes_on_alone,
    named_option,
    without_instruction,
)

# A line with its number.
_Line = tuple[int, str]

_ARROW = "=>"
# "#late again" is a message
_COMMENT = re.compile(r"\s*#+(?:\s|$)")
_ANSWER_LINE = re.compile(r"\s*(?:(?:correct |right )?answer\s*[:=]|=>)(.*)", re.IGNORECASE)
_OPTION_LINE = re.compile(r"\s*[(\[]?([A-Za-z])(?:[:)\]]|\.(?=\s|$))(.*)")

# what an open brace of GIFT is followed by
_GIFT = re.compile(r"(?<!\\)\{\s*(?:[=~]|(?:T|F|TRUE|FALSE)\s*(?:#[^}]*)?\})", re.IGNORECASE)
_GIFT_UNIT = re.compile(
    r"(?:\s*::.*?::)?(?P<asked>.*?)(?<!\\)\{(?P<body>.*)(?<!\\)\}(?P<rest>.*)", re.DOTALL
)
_GIFT_WEIGHT = re.compile(r"%(-?\d+(?:\.\d+)?)%")


def text_records(text: str) -> Iterator[tuple[int, str, Found | str]]:
    """The questions of a plain text: their lines, how they look, and what they say or their mistakes.

    Lines that begin with # and a blank are comments, in GIFT those that begin with //.
    """
    lines: Iterable[_Line] = enumerate(text.split("\n"), start=1)
    if is_gift := _GIFT.search(text) is not None:
        lines = (one for one in lines if not one[1].lstrip().startswith(("//", "$CATEGORY")))
    else:
        lines = (one for one in lines if not _COMMENT.match(one[1]))
    for unit in _groups(lines, is_gift) if is_gift else _units(lines):
        raw = "\n".join(text for _, text in unit)
        line = unit[0][0]
        try:
            found: Found | str = _from_gift(raw) if is_gift else _from_unit(unit)
        except RecordError as error:
            found = f"Line {line}: {error}"
        yield line, raw, found


# --- GIFT -----------------------------------------------------------------------------------------


def _from_gift(raw: str) -> Found:
    match = _GIFT_UNIT.fullmatch(raw)
    if match is None:
        raise RecordError("there are no answers in braces; write 'question {=right ~wrong}'.")
    asked, rest = (_unescaped(match[name]).strip() for name in ("asked", "rest"))
    question = re.sub(r"^\[(?:html|plain|markdown|moodle)\]", "", asked).strip()
    question += f" _____ {rest}" if rest else ""
    body = match["body"].strip()
    verdict = body.partition("#")[0].strip().upper()
    if verdict in ("T", "TRUE", "F", "FALSE"):
        gold = int(verdict.startswith("F"))
        return Found(question, TRUE_FALSE, gold=gold, prompt=question)
    before, *parts = re.split(r"(?<!\\)(?=[=~])", body)
    options: list[str] = []
    # of the points, in percent
    shares: list[float] = []
    for part in parts:
        text = re.split(r"(?<!\\)#", part[1:])[0].strip()
        weight = _GIFT_WEIGHT.match(text)
        options.append(_unescaped(text[weight.end() :] if weight else text).strip())
        shares.append(float(weight[1]) if weight else 100.0 * (part[0] == "="))
    rights = shares.count(100)
    is_read = rights in {1, len(options)} and not any(0 < share < 100 for share in shares)
    if before.strip() or not options or not is_read or any("->" in one for one in options):
        raise RecordError(
            "only questions with one right answer, true or false, and short answers are read, not those to "
            "be matched, with numbers, several right or partly right answers or none; write '{=right ~wrong ~wrong}'."
        )
    if rights == len(options):
        return Found(question, answer=options[0] or None)
    return Found(question, tuple(options), gold=shares.index(100))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([~=#{}:\\])", r"\1", text).replace("\\n", "\n")


# --- lines and blocks -----------------------------------------------------------------------------


def _units(lines: Iterable[_Line]) -> Iterator[list[_Line]]:
    """The lines of each example: a block up to its answer, else a line."""
    for group in _groups(lines):
        unit: list[_Line] = []
        for line in group:
            unit.append(line)
            if _answer(line[1]) is not None:
                yield unit
                unit = []
        texts = [text for _, text in unit]
        if not all(map(_is_example_line, texts)) and _option_lines(texts):
            yield unit
        else:
            yield from ([line] for line in unit)


def _groups(lines: Iterable[_Line], strictly: bool = False) -> Iterator[list[_Line]]:
    """Lines between blank ones; unless ``strictly``, options and an answer belong to a question above them, too."""
    group: list[_Line] = []
    for filled, block in itertools.groupby(lines, key=lambda line: bool(line[1].strip())):
        if not filled:
            continue
        own = list(block)
        if group and (strictly or not _goes_on(group[-1][1], own[0][1])):
            yield group
            group = []
        group += own
    if group:
        yield group


def _goes_on(above: str, below: str) -> bool:
    """Whether a question ends with the line above, and its options or its answer begin with the one below."""
    if _answer(above) is not None or _is_example_line(above):
        return False
    return _answer(below) is not None or (_letter(below) == "A" and not _is_example_line(below))


def _is_example_line(text: str) -> bool:
    return _ARROW in text or "|" in text


def _answer(text: str) -> str | None:
    """What an answer line says; None for another line."""
    match = _ANSWER_LINE.match(text)
    return match[1].strip() if match and _ARROW not in match[1] else None


def _letter(text: str) -> str:
    match = _OPTION_LINE.match(text)
    return match[1].upper() if match and _ARROW not in text else ""


def _option_lines(texts: Sequence[str]) -> int:
    """Index of the first option's line; 0 where there are no options under a question."""
    first = 0
    for i, text in enumerate(texts[1:], start=1):
        letter = _letter(text)
        if letter == "A":
            first = i
        elif letter == "B" and first:
            return first
    return 0


def _from_unit(unit: Sequence[_Line]) -> Found:
    texts = [text.rstrip() for _, text in unit]
    answer = _answer(texts[-1])
    if answer is None and len(texts) == 1:
        return _from_line(texts[0])
    if answer is not None:
        texts.pop()
    first = _option_lines(texts)
    asked = texts[:first] if first else texts
    question = "\n".join(asked).strip()
    if not question or (not first and len(asked) > 1 and _letter(asked[0]) == "A"):
        raise RecordError("there is no question above this; write it on the line before.")
    starred = (part.rstrip().endswith("*") for text in asked for part in text.split("|")[1:])
    if any(_ARROW in text for text in texts) or any(starred):
        raise RecordError(
            f"'{_ARROW}' or a starred option stands inside a block of lines; put a blank line between two "
            "examples, or write this one as JSON or CSV."
        )
    if not first and any(_letter(text) == "A" for text in asked[1:]):
        raise RecordError("there is an option A but no option B below it; add it.")
    if not first:
        return Found(question, answer=answer or None)
    return _chosen(question, _options(texts[first:]), answer)


def _options(texts: Sequence[str]) -> list[str]:
    """The options of ``A: …`` lines; a line without a letter goes on with the option above it."""
    options: list[list[str]] = []
    for text in texts:
        letter, match = _letter(text), _OPTION_LINE.match(text)
        if not letter or match is None:
            options[-1].append(text)
            continue
        expected = string.ascii_uppercase[len(options)] if len(options) < MAX_OPTIONS else ""
        if letter != expected:
            raise RecordError(
                f"option {letter} comes where {expected or 'no more options'} should; letter the options "
                "A, B, C, … without gaps."
            )
        options.append([match[2]])
    options = without_instruction(options)
    if goes_on_alone(options):
        raise RecordError(GOES_ON)
    return ["\n".join(lines).strip() for lines in options]


def _from_line(text: str) -> Found:
    left, arrow, right = text.rpartition(_ARROW)
    question, *options = (part.strip() for part in (left if arrow else text).split("|"))
    answer = right.strip() if arrow else None
    if not options:
        return Found(question, answer=answer or None)
    return _chosen(question, options, answer)


def _chosen(question: str, options: list[str], answer: str | None) -> Found:
    """A question with options, of which one has a star or is named by the answer; unanswered where none is.

    Numbers are texts here, never those of options: people write ``1 + 1 = | 1 | 2 | 3 => 2``.
    """
    starred = [i for i, option in enumerate(options) if option.endswith("*")]
    bare = [option[:-1].rstrip() if option.endswith("*") else option for option in options]
    if not answer:
        if len(starred) > 1:
            raise RecordError(
                f"{len(starred)} options have a star; put a star after the right option, and after no other."
            )
        return Found(question, tuple(bare), gold=starred[0] if starred else None)
    # a star belongs to the option's text, unless it says the same as the answer
    if answer not in options and len(starred) == 1:
        found = Found(question, tuple(bare), answer, numbered=False)
        if named_option(found, UNKNOWN_BASE) == starred[0]:
            return found
    return Found(question, tuple(options), answer, numbered=False)
