"""A record of a pasted text: an example, a question without options, or a mistake; and when its fields are sound."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from degaml_kedro.errors import DegamlError
from degaml_kedro.tasks.example import Example, ExampleError, make_example, shorten

# Characters of a question, an option or a system message.
MAX_FIELD = 20_000
# Characters of a whole JSON record or CSV row: what is not closed shall not swallow all that follows.
MAX_RECORD = 3 * MAX_FIELD


class PastedError(DegamlError):
    """Pasted text that holds no examples at all, or one record of it that is wrong."""


@dataclass(frozen=True)
class Unlisted:
    """A question with its answer and no options of its own."""

    question: str
    answer: str
    system: str = ""


@dataclass(frozen=True)
class Record:
    """A record as it is found: its line, how it looks, and what it is; a text is a mistake."""

    line: int
    raw: str
    content: Example | Unlisted | str


def found(line: int, raw: str, read: Callable[[], Example | Unlisted]) -> Record:
    """A record as ``read`` reads it, with its mistake where it is wrong."""
    try:
        return Record(line, raw, _sound(read(), f"Line {line}"))
    except DegamlError as error:
        mistake = str(error)
    except RecursionError:
        mistake = (
            f"Line {line}: the record is nested too deeply; write one flat object per example."
        )
    return Record(line, raw, mistake)


def _sound(content: Example | Unlisted, where: str) -> Example | Unlisted:
    """The same, when its fields are short enough and can be encoded.

    Raises:
        PastedError: One is not.
    """
    if isinstance(content, Example):
        repeated = sorted({text for text in content.options if content.options.count(text) > 1})
        if repeated:
            raise PastedError(
                f"{where}: the option {shorten(repeated[0])} comes twice; keep one of them."
            )
        fields = {
            "question": [content.question],
            "option": content.options,
            "system message": [content.system],
        }
    else:
        fields = {
            "question": [content.question],
            "answer": [content.answer],
            "system message": [content.system],
        }
    for name, texts in fields.items():
        for text in texts:
            check_field(text, f"{where}: the {name}")
    return content


_UNTOKENIZABLE = re.compile("[\x00\ud800-\udfff]")


def check_field(text: str, what: str) -> None:
    """Refuse a field that is too long, or that cannot be encoded.

    Raises:
        PastedError: It is one of these.
    """
    if len(text) > MAX_FIELD:
        raise PastedError(
            f"{what} has {len(text):,} characters; shorten it to at most {MAX_FIELD:,}."
        )
    if odd := _UNTOKENIZABLE.search(text):
        raise PastedError(
            f"{what} has the code U+{ord(odd[0]):04X}, which is no character; remove it."
        )


def made(question: str, options: Sequence[str], gold: int, system: str, where: str) -> Example:
    """An example of sound fields.

    Raises:
        PastedError: One of them is not.
    """
    try:
        example = make_example(question, options, gold, system)
    except ExampleError as error:
        raise PastedError(f"{where}: {error}") from error
    _sound(example, where)
    return example


def unlisted(question: str, answer: str, where: str, system: str = "") -> Unlisted:
    """A question without options.

    Raises:
        PastedError: It is blank, or its answer is.
    """
    if not question.strip():
        raise PastedError(f"{where}: the question is blank; give it a text.")
    if not answer.strip():
        raise PastedError(f"{where}: the answer is blank; give it a text.")
    return Unlisted(question, answer.strip(), system)


# Control characters steer a terminal, and half a surrogate pair cannot be encoded.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with a mark for each character that cannot be shown."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)
