"""Plain text: a line or a block of lines per example (``tasks/pasted.py`` shows the forms)."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator, Sequence

from degaml_kedro.tasks.example import MAX_OPTIONS, Example, shorten
from degaml_kedro.tasks.pasting.record import PastedError, Record, Unlisted, found, made, unlisted

# A line with its number.
_Line = tuple[int, str]

_ARROW = "=>"
_ANSWER_LINE = re.compile(r"\s*(?:(?:correct |right )?answer\s*[:=]|=>)(.*)", re.IGNORECASE)
_OPTION_LINE = re.compile(r"\s*[(\[]?([A-Za-z])(?:[:)\]]|\.(?=\s|$))(.*)")
_LETTER = re.compile(r"[(\[]?([A-Za-z])[.:)\]]?")


def text_records(text: str, called: str) -> Iterator[Record]:
    """The examples of a plain text; lines that begin with # are comments."""
    numbered = enumerate(text.split("\n"), start=1)
    for unit in _units(line for line in numbered if not line[1].lstrip().startswith("#")):
        line, raw = unit[0][0], "\n".join(text for _, text in unit)
        yield found(line, raw, lambda unit=unit: _from_unit(unit))  # type: ignore[misc]


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


def _from_unit(unit: Sequence[_Line]) -> Example | Unlisted:
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
        raise PastedError(f"{where}: there is no question above this; write it on the line before.")
    if any(_ARROW in text for text in texts) or any(map(_is_starred_line, asked)):
        raise PastedError(
            f"{where}: '{_ARROW}' or a starred option stands inside a block of lines; put a blank line between two "
            "examples, or write this one as JSON or CSV."
        )
    if not first and any(_letter(text) == "A" for text in asked[1:]):
        raise PastedError(f"{where}: there is an option A but no option B below it; add it.")
    if not first:
        return unlisted(question, answer or "", where)
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
            raise PastedError(
                f"{where}: option {letter} comes where {expected or 'no more options'} should; letter the options "
                "A, B, C, … without gaps."
            )
        options.append(match[2])
    return [option.strip() for option in options]


def _from_line(text: str, where: str) -> Example | Unlisted:
    left, arrow, right = text.rpartition(_ARROW)
    question, *options = (part.strip() for part in (left if arrow else text).split("|"))
    answer = right.strip() if arrow else None
    if not options:
        if answer is None:
            raise PastedError(
                f"{where}: there is no answer; write 'question {_ARROW} answer', or options as "
                "'question | wrong option | right option*'."
            )
        return unlisted(question, answer, where)
    return _chosen(question, options, answer, where)


def _chosen(question: str, options: list[str], answer: str | None, where: str) -> Example:
    """The example of options of which one has a star, or is named by the answer."""
    starred = [i for i, option in enumerate(options) if option.endswith("*")]
    bare = [option[:-1].rstrip() if option.endswith("*") else option for option in options]
    if answer is None:
        # What is wrong with the options is said before a star is missed.
        made(question, bare, 0, "", where)
        if len(starred) != 1:
            stars = "no option has" if not starred else f"{len(starred)} options have"
            raise PastedError(
                f"{where}: {stars} a star; put a star after the right option, and after no other."
            )
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
        raise PastedError(f"{where}: the answer is blank; give the right option or its letter.")
    letter = _LETTER.fullmatch(answer)
    by_letter = ord(letter[1].upper()) - ord("A") if letter else len(options)
    if answer in options:
        by_text = options.index(answer)
        # A small letter is a letter only where it is no option.
        if by_letter < len(options) and by_letter != by_text and answer.isupper():
            raise PastedError(
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
    raise PastedError(
        f"{where}: the answer {shorten(answer)} is not among the {len(options)} options; give the option's text, or "
        f"its letter A to {string.ascii_uppercase[len(options) - 1]}."
    )
