"""Numbers: their words, their order, small sums and sequences."""

from __future__ import annotations

import random
from functools import cache

from num2words import num2words

from degaml_kedro.tasks.suite.drawing import pick, word
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

GROUP = "numbers"


@cache
def in_words(number: int) -> str:
    """``forty-two`` for 42."""
    return str(num2words(number)).replace(" and ", " ")


@cache
def ordinal(number: int) -> str:
    """``forty-second`` for 42."""
    return str(num2words(number, to="ordinal"))


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


def _to_words(rng: random.Random, size: int) -> SuiteQuestion:
    number = rng.randint(11, 999)
    wordings = (
        "How is the number {number} written in words?",
        "How do you say {number}?",
        "Which words stand for {number}?",
        "Spell out {number}.",
    )
    low, high = (10, 99) if number < 100 else (100, 999)
    wrong = tuple(in_words(other) for other in _near(rng, number, size - 1, low, high))
    return SuiteQuestion(word(rng, wordings, number=number), in_words(number), wrong)


def _to_digits(rng: random.Random, size: int) -> SuiteQuestion:
    number = rng.randint(11, 999)
    wordings = (
        "How is {words} written in digits?",
        "Which number is {words}?",
        "Write {words} as a number.",
        "Someone says {words}. Which number do they mean?",
    )
    low, high = (10, 99) if number < 100 else (100, 999)
    wrong = tuple(str(other) for other in _near(rng, number, size - 1, low, high))
    return SuiteQuestion(word(rng, wordings, words=in_words(number)), str(number), wrong)


def _ordinal(rng: random.Random, size: int) -> SuiteQuestion:
    number = rng.randint(1, 99)
    wordings = (
        "What is the ordinal of {number}?",
        "After {before} people, a runner comes in. In which place?",
        "Which word gives place number {number}?",
        "Someone is number {number} in line. Which place is that?",
    )
    text = word(rng, wordings, number=number, before=number - 1)
    wrong = tuple(ordinal(other) for other in _near(rng, number, size - 1, 1, 99))
    return SuiteQuestion(text, ordinal(number), wrong)


def _extreme(rng: random.Random, size: int) -> SuiteQuestion:
    largest = rng.random() < 0.5
    digits = rng.choice((1, 2, 2, 3))
    numbers = pick(rng, range(10 ** (digits - 1), 10**digits), size)
    ranked = sorted(numbers, reverse=largest)
    wordings = (
        "Which of these numbers is the {degree}?",
        "Which number is the {degree}?",
        "Find the {degree} number.",
        "Which number is {comparison} than the others?",
    )
    text = word(
        rng,
        wordings,
        degree="largest" if largest else "smallest",
        comparison="larger" if largest else "smaller",
    )
    return SuiteQuestion(text, str(ranked[0]), tuple(str(number) for number in ranked[1:]))


def _extreme_words(rng: random.Random, size: int) -> SuiteQuestion:
    largest = rng.random() < 0.5
    ranked = sorted(pick(rng, range(1, 101), size), reverse=largest)
    wordings = (
        "Which of these numbers is the {degree}?",
        "Which number is the {degree}?",
        "Which of these numbers comes {place} when you count?",
    )
    text = word(
        rng,
        wordings,
        degree="largest" if largest else "smallest",
        place="last" if largest else "first",
    )
    return SuiteQuestion(
        text, in_words(ranked[0]), tuple(in_words(number) for number in ranked[1:])
    )


def _bound(rng: random.Random, size: int) -> SuiteQuestion | None:
    bound, above = rng.randint(20, 89), rng.random() < 0.5
    over, under = range(bound + 1, 100), range(10, bound)
    (answer,) = pick(rng, over if above else under, 1)
    wrong = pick(rng, under if above else over, size - 1)
    wordings = (
        "Which number is {comparison} than {bound}?",
        "Only one of these is {comparison} than {bound}. Which?",
        "Which of these is {side} {bound}?",
    )
    text = word(
        rng,
        wordings,
        bound=bound,
        comparison="larger" if above else "smaller",
        side="above" if above else "below",
    )
    return SuiteQuestion(text, str(answer), tuple(str(number) for number in wrong))


def _parity(rng: random.Random, size: int) -> SuiteQuestion:
    even = rng.random() < 0.5
    (answer,) = pick(rng, range(10, 100), 1, lambda number: (number % 2 == 0) == even)
    wrong = pick(rng, range(10, 100), size - 1, lambda number: (number % 2 == 0) != even)
    wordings = (
        "Which of these numbers is {kind}?",
        "Which one is an {kind} number?",
        "Find the {kind} number.",
        "All but one are {other} numbers. Which one is {kind}?",
    )
    text = word(rng, wordings, kind="even" if even else "odd", other="odd" if even else "even")
    return SuiteQuestion(text, str(answer), tuple(str(number) for number in wrong))


def _sequence(rng: random.Random, size: int) -> SuiteQuestion | None:
    step = rng.choice((1, 2, 3, 4, 5, 10)) * rng.choice((1, 1, -1))
    start = rng.randint(1, 90)
    *shown, answer = (start + step * place for place in range(rng.choice((4, 5))))
    if min(*shown, answer) < 1 or answer < 10:
        return None
    wordings = (
        "What comes next: {shown}?",
        "Which number continues {shown}?",
        "After {shown}, which number follows?",
    )
    text = word(rng, wordings, shown=", ".join(str(number) for number in shown))
    low, high = (10, 99) if answer < 100 else (100, 999)
    wrong = tuple(str(other) for other in _near(rng, answer, size - 1, low, high))
    return SuiteQuestion(text, str(answer), wrong)


def _sum(rng: random.Random, size: int) -> SuiteQuestion:
    a, b = rng.randint(2, 49), rng.randint(2, 49)
    wordings = (
        "What is {a} plus {b}?",
        "{a} + {b} = ?",
        "Add {b} to {a}. What do you get?",
        "There were {a} birds and {b} more came. How many now?",
    )
    return _calculated(rng, word(rng, wordings, a=a, b=b), a + b, size)


def _difference(rng: random.Random, size: int) -> SuiteQuestion:
    b, answer = rng.randint(2, 49), rng.randint(2, 49)
    wordings = (
        "What is {a} minus {b}?",
        "{a} - {b} = ?",
        "Take {b} away from {a}. What is left?",
        "Of {a} cookies, {b} were eaten. How many are left?",
    )
    return _calculated(rng, word(rng, wordings, a=answer + b, b=b), answer, size)


def _product(rng: random.Random, size: int) -> SuiteQuestion:
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    wordings = (
        "What is {a} times {b}?",
        "{a} x {b} = ?",
        "Multiply {a} by {b}. What do you get?",
        "There are {a} boxes with {b} eggs each. How many eggs?",
    )
    return _calculated(rng, word(rng, wordings, a=a, b=b), a * b, size)


def _double_or_half(rng: random.Random, size: int) -> SuiteQuestion:
    half = rng.randint(2, 49)
    doubling = rng.random() < 0.5
    doubles = (
        "What is twice {half}?",
        "What is {half} doubled?",
        "A book costs {half} dollars. What do two cost?",
    )
    halves = (
        "What is half of {whole}?",
        "Two friends share {whole} coins. How many does each get?",
        "What is {whole} divided by two?",
    )
    text = word(rng, doubles if doubling else halves, half=half, whole=2 * half)
    return _calculated(rng, text, 2 * half if doubling else half, size)


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


def _to_roman(rng: random.Random, size: int) -> SuiteQuestion:
    number = rng.randint(1, 89)
    wordings = (
        "How is {number} written as a Roman numeral?",
        "Which Roman numeral means {number}?",
        "How did the Romans write {number}?",
    )
    wrong = tuple(roman(other) for other in _near(rng, number, size - 1, 1, 89))
    return SuiteQuestion(word(rng, wordings, number=number), roman(number), wrong)


FAMILIES = (
    Family("number_to_words", GROUP, "A number written in words.", _to_words),
    Family("words_to_number", GROUP, "Number words written in digits.", _to_digits),
    Family("ordinal_number", GROUP, "The ordinal of a number.", _ordinal),
    Family("number_extreme", GROUP, "The largest or smallest number.", _extreme, (3, 4, 5)),
    Family(
        "number_word_extreme",
        GROUP,
        "The largest or smallest number in words.",
        _extreme_words,
        (3, 4),
    ),
    Family("number_bound", GROUP, "Which number is above or below a bound.", _bound),
    Family("even_or_odd", GROUP, "Which number is even or odd.", _parity, (3, 4)),
    Family("number_sequence", GROUP, "The next number of a sequence.", _sequence),
    Family("addition", GROUP, "Small sums.", _sum),
    Family("subtraction", GROUP, "Small differences.", _difference),
    Family("multiplication", GROUP, "Small products.", _product),
    Family("double_or_half", GROUP, "Twice or half a number.", _double_or_half),
    Family("from_roman", GROUP, "The number of a Roman numeral.", _from_roman),
    Family("to_roman", GROUP, "The Roman numeral of a number.", _to_roman),
)
