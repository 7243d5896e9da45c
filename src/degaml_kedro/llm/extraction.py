"""What of a generated text is the answer, and whether it is the right one.

``letter``: the first option named. ``number``: the last number, without thousands separators, dollar signs and the full
stops behind it; the unit around it is left out. ``text``: all of it, normalised as SQuAD does (Rajpurkar et al., 2016),
which is in lower case, without punctuation and articles. A regular expression: the first or last thing that it finds.
The right answer is read in the same way, and two answers are the same where their texts are.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

import regex

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.config.schema import Extraction, PatternExtraction
from degaml_kedro.tasks.example import Example, Question, shorten

# an option's place, or what of a text is compared
Answer = int | str

# a run of digits, separators and dollar signs, as lm-evaluation-harness's `flexible-extract` finds it, that has a digit
_NUMBER = re.compile(r"-?[$.,]*[0-9][$0-9.,]*")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# a pattern may be a stranger's, and some take longer than anybody lives
_SECONDS = 1.0


class ExtractionError(DegamlError):
    """A text that no answer can be read from."""


def extract_answer(text: str, asked: Question | Example, extraction: Extraction) -> Answer | None:
    """What a generated text answers; None where it answers nothing.

    Raises:
        ExtractionError: the pattern takes longer than a second.
    """
    if extraction == "letter":
        return extract_option(text, asked.labels)
    if isinstance(extraction, PatternExtraction):
        found = _matched(text, extraction)
        return None if found is None else _compared(found, extraction.compare)
    return _compared(text, extraction)


def right_answer(example: Example, extraction: Extraction) -> Answer:
    """The right answer, as :func:`extract_answer` would read it.

    A pattern that finds nothing in it leaves it as it is: files have the bare answer, or a solution that ends with it.

    Raises:
        ExtractionError: there is none of the kind that is compared.
    """
    if extraction == "letter":
        if not example.labels:
            raise ExtractionError(
                f"the question {shorten(example.prompt)} has no options, so no letter can answer it; set "
                f"scoring.extraction to number, text or a regular expression"
            )
        return example.gold
    text = example.options[example.gold]
    found = extract_answer(text, example, extraction)
    if found is None and isinstance(extraction, PatternExtraction):
        found = _compared(text, extraction.compare)
    if found is None:
        raise ExtractionError(
            f"the right answer {shorten(text)} to {shorten(example.question)} has no number in it; mend it, or set "
            f"scoring.extraction to text"
        )
    return found


def extract_option(text: str, labels: Sequence[str]) -> int | None:
    """The index of the first option named in a text, in brackets if any is, else standing alone; None for none.

    Example:
        >>> extract_option("The answer is [B].", ("A", "B"))
        1
        >>> extract_option("Apples", ("A", "B")) is None
        True
    """
    names = "|".join(re.escape(label) for label in labels)
    for pattern in (rf"\[\s*({names})\s*\]", rf"(?<![\w'])({names})(?![\w'])"):
        match = re.search(pattern, text)
        if match:
            return list(labels).index(match.group(1))
    return None


def extract_number(text: str) -> str | None:
    """The last number of a text; None where it has none.

    Example:
        >>> extract_number("It costs $1,200.50 more. That is 3 times as much.")
        '3'
        >>> extract_number("So the answer is -$1,200.")
        '-1200'
    """
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "").replace("$", "").rstrip(".") if found else None


def normalize_text(text: str) -> str:
    """A text as SQuAD's metric compares it: lower case, no punctuation, no articles, single blanks.

    Example:
        >>> normalize_text("The  Cat's hat.")
        'cats hat'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _compared(text: str, how: str) -> str | None:
    if how == "number":
        return extract_number(text)
    if not text.strip():
        return None
    return normalize_text(text) if how == "text" else " ".join(text.split())


def _matched(text: str, extraction: PatternExtraction) -> str | None:
    """The first or last match; of several groups the first that is not empty."""
    try:
        found = regex.findall(extraction.regex, text, timeout=_SECONDS)
    except TimeoutError as error:
        raise ExtractionError(
            f"the pattern {shorten(extraction.regex)} takes longer than {_SECONDS:g} s to search a text of {len(text)} "
            f"characters; write one that does not try the same place in many ways (scoring.extraction.regex)"
        ) from error
    if not found:
        return None
    one = found[0 if extraction.take == "first" else -1]
    groups = one if isinstance(one, tuple) else (one,)
    return next((group for group in groups if group), None)
