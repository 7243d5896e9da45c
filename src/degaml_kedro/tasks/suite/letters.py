"""Letters that words begin with."""

from __future__ import annotations

import random
from functools import cache

from degaml_kedro.tasks.suite.drawing import pick, word, word_lists
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

GROUP = "letters"


@cache
def nouns() -> tuple[str, ...]:
    """Common nouns of two to eight letters."""
    return tuple(word_lists("words")["nouns"].split())


def _starts_with(rng: random.Random, size: int) -> SuiteQuestion:
    answer = rng.choice(nouns())
    wordings = (
        "Which word starts with the letter {letter}?",
        "Which of these words begins with {letter}?",
        "Find the word whose first letter is {letter}.",
        "In a dictionary, which word is listed under {letter}?",
    )
    wrong = pick(rng, nouns(), size - 1, lambda other: other[0] != answer[0])
    return SuiteQuestion(word(rng, wordings, letter=answer[0].upper()), answer, wrong)


FAMILIES = (Family("starts_with", GROUP, "Which word starts with a letter.", _starts_with, (3, 4)),)
