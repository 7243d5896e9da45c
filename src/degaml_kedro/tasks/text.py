"""Plain text: a line or a block of lines a question (:mod:`~degaml_kedro.tasks.pasted` shows the forms), and quizzes.

Aiken (a question, ``A. option`` lines, ``ANSWER: B``) is one of the forms of a block; GIFT, in which quizzes of Moodle
are kept, has its answers in braces: ``Which is hot? {=fire ~ice}``. An answer may be missing: then it is a question.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence

from degaml_kedro.tasks.example import (
    MAX_OPTIONS,
    Example,
    Question,
    make_true_false_example,
    shorten,
)
from degaml_kedro.tasks.records import (
    Content,
    Found,
    Record,
    RecordError,
    found_at,
    made,
    made_question,
    plain_text,
)

# A line with its number.
_Line = tuple[int, str]

_ARROW = "=>"
_ANSWER_LINE = re.compile(r"\s*(?:(?:correct |right )?answer\s*[:=]|=>)(.*)", re.IGNORECASE)
_OPTION_LINE = re.compile(r"\s*[(\[]?([A-Za-z])(?:[:)\]]|\.(?=\s|$))(.*)")
_LETTER = re.compile(r"[(\[]?([A-Za-z])[.:)\]]?")


# what an open brace of GIFT is followed by
_GIFT = re.compile(r"(?<!\\)\{\s*(?:[=~]|(?:T|F|TRUE|FALSE)\s*(?:#[^}]*)?\})", re.IGNORECASE)
_GIFT_UNIT = re.compile(
    r"(?:\s*::.*?::)?(?P<asked>.*?)(?<!\\)\{(?P<body>.*)(?<!\\)\}(?P<rest>.*)", re.DOTALL
)
_GIFT_WEIGHT = re.compile(r"%(-?\d+(?:\.\d+)?)%")


def text_records(text: str, called: str) -> Iterator[Record]:
    """The questions of a plain text; lines that begin with # are comments, in GIFT those that begin with //."""
    numbered = list(enumerate(text.split("\n"), start=1))
    if _GIFT.search(text):
        lines = [one for one in numbered if not one[1].lstrip().startswith(("//", "$CATEGORY"))]
        for block in _blocks(lines):
            raw = "\n".join(text for _, text in block)
            yield _found(block[0][0], raw, lambda raw=raw, line=block[0][0]: _from_gift(raw, line))
        return
    for unit in _units(line for line in numbered if not line[1].lstrip().startswith("#")):
        raw = "\n".join(text for _, text in unit)
        yield _found(unit[0][0], raw, lambda unit=unit: _from_unit(unit))


def _found(line: int, raw: str, read: Callable[..., Content]) -> Record:
    return found_at(line, raw, lambda: (read(), ()))


# --- GIFT -----------------------------------------------------------------------------------------


def _blocks(lines: Iterable[_Line]) -> Iterator[list[_Line]]:
    """Lines between blank ones."""
    for filled, block in itertools.groupby(lines, key=lambda line: bool(line[1].strip())):
        if filled:
            yield list(block)


def _from_gift(raw: str, line: int) -> Content:
    where = f"Line {line}"
    match = _GIFT_UNIT.fullmatch(raw)
    if match is None:
        raise RecordError(
            f"{where}: there are no answers in braces; write 'question {{=right ~wrong}}'."
        )
    asked, rest = (_unescaped(match[name]).strip() for name in ("asked", "rest"))
    question = re.sub(r"^\[(?:html|plain|markdown|moodle)\]", "", asked).strip()
    question += f" _____ {rest}" if rest else ""
    body = match["body"].strip()
    verdict = body.partition("#")[0].strip().upper()
    if verdict in ("T", "TRUE", "F", "FALSE"):
        return make_true_false_example(question, verdict.startswith("T"))
    parts = re.split(r"(?<!\\)(?=[=~])", body)
    rights: list[int] = []
    options: list[str] = []
    for part in parts[1:]:
        text = re.split(r"(?<!\\)#", part[1:])[0].strip()
        weight = _GIFT_WEIGHT.match(text)
        text = _unescaped(text[weight.end() :] if weight else text).strip()
        if part[0] == "=" or (weight and float(weight[1]) == 100):
            rights.append(len(options))
        options.append(text)
    matching = any("->" in option for option in options)
    if (
        parts[0].strip()
        or matching
        or not rights
        or (len(rights) > 1 and len(rights) < len(options))
    ):
        raise RecordError(
            f"{where}: only questions with one right answer, true or false, and short answers are read, not those to "
            "be matched, with numbers, several right answers or none; write '{=right ~wrong ~wrong}'."
        )
    if len(rights) == len(options):
        return _asked(question, options[0], where)
    return made(question, options, rights[0], "", where)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([~=#{}:\\])", r"\1", text).replace("\\n", "\n")


# --- lines and blocks -----------------------------------------------------------------------------


def _asked(question: str, answer: str | None, where: str) -> Found:
    """A question without options of its own.

    Raises:
        RecordError: it is blank, or its answer is.
    """
    if not question.strip():
        raise RecordError(f"{where}: the question is blank; give it a text.")
    if answer is not None and not answer.strip():
        raise RecordError(f"{where}: the answer is blank; give it a text.")
    return Found(question, answer=None if answer is None else answer.strip())


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


def _groups(lines: Iterable[_Line]) -> Iterator[list[_Line]]:
    """Lines between blank ones; options and an answer belong to the question above them all the same."""
    group: list[_Line] = []
    blank = False
    for line in lines:
        text = line[1]
        if not text.strip():
            blank = True
            continue
        if blank and group and not (_continues(text) and _is_open(group[-1][1])):
            yield group
            group = []
        blank = False
        group.append(line)
    if group:
        yield group


def _continues(text: str) -> bool:
    return _answer(text) is not None or (_letter(text) == "A" and not _is_example_line(text))


def _is_open(text: str) -> bool:
    """Whether an example cannot end with this line."""
    return _answer(text) is None and not _is_example_line(text)


def _is_example_line(text: str) -> bool:
    return _ARROW in text or "|" in text


def _is_starred_line(text: str) -> bool:
    return any(part.rstrip().endswith("*") for part in text.split("|")[1:])


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


def _from_unit(unit: Sequence[_Line]) -> Content:
    where = f"Line {unit[0][0]}"
    texts = [text.rstrip() for _, text in unit]
    answer = _answer(texts[-1])
    if answer is None and len(texts) == 1:
        return _from_line(texts[0], where)
    if answer is not None:
        texts.pop()
    first = _option_lines(texts)
    asked = texts[:first] if first else texts
    question = "\n".join(asked).strip()
    if not question or (not first and len(asked) > 1 and _letter(asked[0]) == "A"):
        raise RecordError(f"{where}: there is no question above this; write it on the line before.")
    if any(_ARROW in text for text in texts) or any(map(_is_starred_line, asked)):
        raise RecordError(
            f"{where}: '{_ARROW}' or a starred option stands inside a block of lines; put a blank line between two "
            "examples, or write this one as JSON or CSV."
        )
    if not first and any(_letter(text) == "A" for text in asked[1:]):
        raise RecordError(f"{where}: there is an option A but no option B below it; add it.")
    if not first:
        return _asked(question, answer, where)
    return _chosen(question, _options(texts[first:], where), answer, where)


def _options(texts: Sequence[str], where: str) -> list[str]:
    """The options of ``A: …`` lines; a line without a letter goes on with the option above it."""
    options: list[str] = []
    for text in texts:
        letter, match = _letter(text), _OPTION_LINE.match(text)
        if not letter or match is None:
            options[-1] += f"\n{text}"
            continue
        expected = string.ascii_uppercase[len(options)] if len(options) < MAX_OPTIONS else ""
        if letter != expected:
            raise RecordError(
                f"{where}: option {letter} comes where {expected or 'no more options'} should; letter the options "
                "A, B, C, … without gaps."
            )
        options.append(match[2])
    return [option.strip() for option in options]


def _from_line(text: str, where: str) -> Content:
    left, arrow, right = text.rpartition(_ARROW)
    question, *options = (part.strip() for part in (left if arrow else text).split("|"))
    answer = right.strip() if arrow else None
    if not options:
        return _asked(question, answer, where)
    return _chosen(question, options, answer, where)


def _chosen(
    question: str, options: list[str], answer: str | None, where: str
) -> Example | Question:
    """The example of options of which one has a star, or is named by the answer; a question where none is."""
    starred = [i for i, option in enumerate(options) if option.endswith("*")]
    bare = [option[:-1].rstrip() if option.endswith("*") else option for option in options]
    if answer is None:
        # What is wrong with the options is said before a star is missed.
        made(question, bare, 0, "", where)
        if len(starred) > 1:
            raise RecordError(
                f"{where}: {len(starred)} options have a star; put a star after the right option, and after no other."
            )
        if not starred:
            return made_question(question, bare, "", where)
        return made(question, bare, starred[0], "", where)
    made(question, options, 0, "", where)
    # A star belongs to the option's text, unless it says the same as the answer.
    if answer not in options and starred == [_named(answer, bare, where)]:
        options = bare
    return made(question, options, _named(answer, options, where), "", where)


def _named(answer: str, options: Sequence[str], where: str) -> int:
    """The index of the option that an answer names by its text or its letter, or by both.

    Numbers are texts here, never indices: people write ``1 + 1 = | 1 | 2 | 3 => 2``.
    """
    if not answer:
        raise RecordError(f"{where}: the answer is blank; give the right option or its letter.")
    letter = _LETTER.fullmatch(answer)
    by_letter = ord(letter[1].upper()) - ord("A") if letter else len(options)
    plain = [plain_text(option) for option in options]
    if plain_text(answer) in plain:
        by_text = plain.index(plain_text(answer))
        # A small letter is a letter only where it is no option.
        if by_letter < len(options) and by_letter != by_text and answer.isupper():
            raise RecordError(
                f"{where}: the answer {shorten(answer)} is the text of one option and the letter of another; put a "
                "star after the right option, or choose other texts."
            )
        return by_text
    if by_letter < len(options):
        return by_letter
    both = _OPTION_LINE.match(answer)
    if both:
        index = ord(both[1].upper()) - ord("A")
        if index < len(options) and both[2].strip() == options[index]:
            return index
    raise RecordError(
        f"{where}: the answer {shorten(answer)} is not among the {len(options)} options; give the option's text, or "
        f"its letter A to {string.ascii_uppercase[len(options) - 1]}."
    )
