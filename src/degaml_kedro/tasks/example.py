"""One example, and the text layout it is written in.

The layout is the one the paper's public code uses: the question, then one ``A: …`` line per option,
and the answer as ``[C]``. Questions answered by true or false have no option lines and answer
``[True]`` or ``[False]``. An open question has neither options nor labels: its answer is a text.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from degaml_kedro.common.errors import DegamlError

TRUE_FALSE = ("True", "False")
MAX_OPTIONS = len(string.ascii_uppercase)

_OPTION_LINE = re.compile(r"([A-Z]):(?: |$)")


class TaskError(DegamlError):
    """Examples that cannot be read, made, drawn or dealt out as asked."""


@dataclass(frozen=True, slots=True)
class Question:
    """An example without its answer: all that may be seen of it before it is answered.

    Attributes:
        prompt: The question with its options as ``A: …`` lines.
        system: The system message, empty for none.
        options: The option texts in order; none of an open question.
        labels: What stands for each option: ``("A", "B", …)`` or ``("True", "False")``; none of an open question.
    """

    prompt: str
    system: str
    options: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, example: Example) -> Question:
        """The question of an example."""
        options = example.options if example.labels else ()
        return cls(example.prompt, example.system, options, example.labels)

    @property
    def question(self) -> str:
        """The prompt without its option lines."""
        return _without_options(self)


@dataclass(frozen=True, slots=True)
class Example:
    """A question, its options and which of them is right: a :class:`Question` with its answer.

    Attributes:
        response: The right label in square brackets: ``[C]``, ``[True]``; of an open question the answer.
        options: As of the question; of an open one the answer alone.
        gold: The index of the right option.

    Example:
        >>> example = make_example("What is the capital of France?", ["Rome", "Paris"], gold=1)
        >>> example.response, example.options[example.gold]
        ('[B]', 'Paris')
    """

    prompt: str
    response: str
    system: str
    options: tuple[str, ...]
    labels: tuple[str, ...]
    gold: int

    @property
    def question(self) -> str:
        """The prompt without its option lines."""
        return _without_options(self)


def _without_options(one: Example | Question) -> str:
    # a dialogue may have lines that look like options
    if not one.labels or one.labels == TRUE_FALSE:
        return one.prompt
    listed = _option_lines(one.options)
    if listed and one.prompt.endswith(listed):
        return one.prompt[: -len(listed)].removesuffix("\n")
    return split_prompt(one.prompt)[0]


def shares_options(examples: Sequence[Example]) -> bool:
    """Whether all examples of a task choose among the same answers, in whatever order: a closed set of them."""
    return all(e.labels for e in examples) and len({frozenset(e.options) for e in examples}) == 1


def _option_lines(options: Sequence[str]) -> str:
    return "\n".join(
        f"{label}: {text}" for label, text in zip(string.ascii_uppercase, options, strict=False)
    )


def make_example(question: str, options: Sequence[str], gold: int, system: str = "") -> Example:
    """The example of a question and its 2 to 26 options, of which the one at ``gold`` is right.

    Raises:
        TaskError: The question or an option is blank, there are fewer than two or more than 26
            options, or ``gold`` points at none of them.
    """
    _check_question(question)
    if not 2 <= len(options) <= MAX_OPTIONS:
        raise TaskError(
            f"The question {shorten(question)} has {len(options)} option(s); "
            f"give it 2 to {MAX_OPTIONS}."
        )
    if any(not option.strip() for option in options):
        raise TaskError(
            f"An option of the question {shorten(question)} is blank; remove it or give it a text."
        )
    if not 0 <= gold < len(options):
        raise TaskError(
            f"The answer index {gold} of the question {shorten(question)} points at none of its "
            f"{len(options)} options; count from 0."
        )
    labels = tuple(string.ascii_uppercase[: len(options)])
    return Example(
        prompt=f"{question}\n{_option_lines(options)}",
        response=f"[{labels[gold]}]",
        system=system,
        options=tuple(options),
        labels=labels,
        gold=gold,
    )


def make_true_false_example(question: str, answer: bool, system: str = "") -> Example:
    """The example of a question that is answered by true or false: its prompt has no option lines."""
    _check_question(question)
    return Example(question, f"[{answer}]", system, TRUE_FALSE, TRUE_FALSE, gold=0 if answer else 1)


def make_open_example(question: str, answer: str, system: str = "") -> Example:
    """The example of a question without options, whose answer is a text.

    Raises:
        TaskError: The question or the answer is blank.
    """
    _check_question(question)
    if not answer.strip():
        raise TaskError(f"The answer to the question {shorten(question)} is blank; give it a text.")
    return Example(question, answer, system, options=(answer,), labels=(), gold=0)


def _check_question(question: str) -> None:
    if not question.strip():
        raise TaskError("The question is blank; give it a text.")


def split_prompt(prompt: str) -> tuple[str, tuple[str, ...]]:
    """The question and the option texts of a prompt: all of it and none where it has no option lines.

    The option lines are looked for from the end, so that lines of the question or of a multi-line
    option that happen to begin with a letter and a colon do no harm.

    Example:
        >>> split_prompt(make_example("Which is odd?", ["2", "3"], gold=1).prompt)
        ('Which is odd?', ('2', '3'))
    """
    lines = prompt.split("\n")
    letters = [match[1] if (match := _OPTION_LINE.match(line)) else "" for line in lines]
    # A letter without those before it has them nowhere further up either.
    incomplete: set[str] = set()
    for last in range(len(lines) - 1, 0, -1):
        if letters[last] not in ("", "A", *incomplete):
            incomplete.add(letters[last])
            starts = _chain(letters, last)
            if starts:
                ends = [*starts[1:], len(lines)]
                options = tuple(
                    "\n".join(lines[start:end])[2:].strip()
                    for start, end in zip(starts, ends, strict=True)
                )
                return "\n".join(lines[: starts[0]]), options
    return prompt, ()


def _chain(letters: Sequence[str], last: int) -> list[int]:
    """Line indices of options A, B, … up to the one at ``last``; empty where a letter is missing."""
    starts = [last]
    for letter in reversed(string.ascii_uppercase[: string.ascii_uppercase.index(letters[last])]):
        index = starts[0] - 1
        while index >= 0 and letters[index] != letter:
            index -= 1
        if index < 0:
            return []
        starts.insert(0, index)
    return starts


def did_you_mean(name: str, known: Iterable[str], otherwise: str, count: int = 1) -> str:
    """``did you mean 'x' or 'y'?`` of the known names that are near; what else is to be said where none is."""
    near = difflib.get_close_matches(name, list(known), n=count)
    quoted = " or ".join(f"'{one}'" for one in near)
    return f"did you mean {quoted}?" if near else otherwise


def shorten(text: str, width: int = 60) -> str:
    """The text on one line, quoted, cut to a width: for messages."""
    flat = " ".join(text.split())
    return f"'{flat}'" if len(flat) <= width else f"'{flat[: width - 1]}…'"
