"""Small sums and Roman numerals."""

from __future__ import annotations

import random

from degaml_kedro.tasks.suite.drawing import pick, word
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

GROUP = "numbers"


def roman(number: int) -> str:
    """``XLII`` for 42; up to 399."""
    letters = ""
    for value, symbol in (
        (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
    ):  # fmt: skip
        letters += symbol * (number // value)
        number %= value
    return letters


def _near(rng: random.Random, number: int, count: int, low: int = 10, high: int = 99) -> list[int]:
    """Other numbers that are easily taken for this one: near, ten away, digits swapped, or any."""
    swapped = int(str(number)[::-1])
    pool = {number + step for step in (-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20)} | {swapped}
    pool |= set(rng.sample(range(low, high + 1), 6))
    return list(pick(rng, sorted(pool), count, lambda n: low <= n <= high and n != number))


def _sum(rng: random.Random, size: int) -> SuiteQuestion:
    a, b = rng.randint(2, 49), rng.randint(2, 49)
    wordings = (
        "What is {a} plus {b}?",
        "{a} + {b} = ?",
        "Add {b} to {a}. What do you get?",
        "There were {a} birds and {b} more came. How many now?",
    )
    return _calculated(rng, word(rng, wordings, a=a, b=b), a + b, size)


def _calculated(rng: random.Random, text: str, answer: int, size: int) -> SuiteQuestion:
    """A question whose wrong answers have as many digits as the right one."""
    digits = len(str(answer))
    low, high = 10 ** (digits - 1), 10**digits - 1
    if digits == 1:
        wrong = pick(rng, range(1, 10), size - 1, lambda other: other != answer)
    else:
        wrong = tuple(_near(rng, answer, size - 1, low, high))
    return SuiteQuestion(text, str(answer), tuple(str(other) for other in wrong))


def _from_roman(rng: random.Random, size: int) -> SuiteQuestion:
    number = rng.randint(1, 89)
    wordings = (
        "Which number is the Roman numeral {roman}?",
        "What does {roman} mean in Roman numerals?",
        "The Romans wrote {roman}. Which number is that?",
        "Chapter {roman} of a book is which chapter?",
    )
    return _calculated(rng, word(rng, wordings, roman=roman(number)), number, size)


FAMILIES = (
    Family("addition", GROUP, "Small sums.", _sum),
    Family("from_roman", GROUP, "The number of a Roman numeral.", _from_roman),
)
