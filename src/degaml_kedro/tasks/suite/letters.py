"""Letters in words: how words begin and end, how long they are, how they are sorted, what rhymes."""

from __future__ import annotations

import itertools
import random
import string
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


def _ends_with(rng: random.Random, size: int) -> SuiteQuestion:
    answer = rng.choice(nouns())
    wordings = (
        "Which word ends with the letter {letter}?",
        "Which of these words has {letter} at its end?",
        "Find the word whose last letter is {letter}.",
    )
    wrong = pick(rng, nouns(), size - 1, lambda other: other[-1] != answer[-1])
    return SuiteQuestion(word(rng, wordings, letter=answer[-1].upper()), answer, wrong)


def _contains(rng: random.Random, size: int) -> SuiteQuestion:
    answer = rng.choice(nouns())
    letter = rng.choice(answer)
    wordings = (
        "Which word contains the letter {letter}?",
        "Which of these words is spelled with {letter}?",
        "Find the word that has {letter} in it.",
    )
    wrong = pick(rng, nouns(), size - 1, lambda other: letter not in other)
    return SuiteQuestion(word(rng, wordings, letter=letter.upper()), answer, wrong)


def _length(rng: random.Random, size: int) -> SuiteQuestion | None:
    longest = rng.random() < 0.5
    ranked = sorted(pick(rng, nouns(), size), key=len, reverse=longest)
    # One letter more is hard to see for a model that reads pieces of words.
    if abs(len(ranked[0]) - len(ranked[1])) < 2:
        return None
    wordings = (
        "Which of these words is the {degree}?",
        "Which word has the {amount} letters?",
        "Find the {degree} word.",
    )
    text = word(
        rng,
        wordings,
        degree="longest" if longest else "shortest",
        amount="most" if longest else "fewest",
    )
    return SuiteQuestion(text, ranked[0], tuple(ranked[1:]))


def _alphabetical(rng: random.Random, size: int) -> SuiteQuestion | None:
    first = rng.random() < 0.5
    ranked = sorted(pick(rng, nouns(), size), reverse=not first)
    if ranked[0][0] == ranked[1][0]:
        return None
    wordings = (
        "Which word comes {place} in alphabetical order?",
        "Sorted from A to Z, which word is {place}?",
        "In a dictionary, which of these words comes {place}?",
    )
    text = word(rng, wordings, place="first" if first else "last")
    return SuiteQuestion(text, ranked[0], tuple(ranked[1:]))


def _next_letter(rng: random.Random, size: int) -> SuiteQuestion:
    step = rng.choice((1, -1))
    letters = string.ascii_uppercase
    index = rng.randrange(1, 25)
    shown, answer = letters[index], letters[index + step]
    wordings = (
        "Which letter comes right {side} {shown} in the alphabet?",
        "What is the letter {side} {shown}?",
        "In the alphabet, {shown} comes right {other} which letter?",
    )
    text = word(
        rng,
        wordings,
        shown=shown,
        side="after" if step == 1 else "before",
        other="before" if step == 1 else "after",
    )
    wrong = pick(rng, letters, size - 1, lambda letter: letter not in (shown, answer))
    return SuiteQuestion(text, answer, wrong)


def _rhyme(rng: random.Random, size: int) -> SuiteQuestion:
    sets = [rhymes.split() for rhymes in word_lists("words")["rhymes"]]
    chosen = pick(rng, range(len(sets)), size)
    shown, answer = pick(rng, sets[chosen[0]], 2)
    wordings = (
        "Which word rhymes with {shown}?",
        "A poem has a line that ends in {shown}. Which word rhymes?",
        "Which of these sounds like {shown} at the end?",
        "Find a rhyme for {shown}.",
    )
    wrong = tuple(rng.choice(sets[index]) for index in chosen[1:])
    return SuiteQuestion(word(rng, wordings, shown=shown), answer, wrong)


def _spelling(rng: random.Random, size: int) -> SuiteQuestion | None:
    answer = rng.choice(nouns())
    backwards = rng.random() < 0.5
    wordings = (
        ("Which word is {shown} backwards?", "Read {shown} from the end. Which word is it?")
        if backwards
        else ("Which word is spelled {shown}?", "The letters {shown} make which word?")
    )
    shown = answer[::-1] if backwards else "-".join(answer.upper())
    wrong = pick(rng, nouns(), size - 1, lambda other: other != answer)
    return SuiteQuestion(word(rng, wordings, shown=shown), answer, wrong)


def _double_letter(rng: random.Random, size: int) -> SuiteQuestion:
    def doubled(noun: str) -> bool:
        return any(a == b for a, b in itertools.pairwise(noun))

    (answer,) = pick(rng, nouns(), 1, doubled)
    wrong = pick(rng, nouns(), size - 1, lambda noun: not doubled(noun))
    wordings = (
        "Which word has a double letter?",
        "Which word has the same letter twice in a row?",
        "Find the word with two equal letters side by side.",
    )
    return SuiteQuestion(word(rng, wordings), answer, wrong)


def _letter_of(rng: random.Random, size: int) -> SuiteQuestion:
    noun = rng.choice(nouns())
    first = rng.random() < 0.5
    wordings = (
        'What is the {place} letter of the word "{noun}"?',
        'Which letter does the word "{noun}" {verb} with?',
        'The word "{noun}" {verb}s with which letter?',
    )
    text = word(
        rng,
        wordings,
        noun=noun,
        place="first" if first else "last",
        verb="start" if first else "end",
    )
    answer = noun[0 if first else -1].upper()
    wrong = pick(rng, string.ascii_uppercase, size - 1, lambda letter: letter != answer)
    return SuiteQuestion(text, answer, wrong)


FAMILIES = (
    Family("starts_with", GROUP, "Which word starts with a letter.", _starts_with, (3, 4)),
    Family("ends_with", GROUP, "Which word ends with a letter.", _ends_with, (3, 4)),
    Family("contains_letter", GROUP, "Which word contains a letter.", _contains, (3, 4)),
    Family("word_length", GROUP, "The longest or shortest word.", _length, (3, 4)),
    Family(
        "alphabetical_order",
        GROUP,
        "The first or last word by the alphabet.",
        _alphabetical,
        (3, 4),
    ),
    Family("next_letter", GROUP, "The letter before or after a letter.", _next_letter),
    Family("rhyme", GROUP, "Which word rhymes.", _rhyme),
    Family("spelling", GROUP, "A word spelled out or backwards.", _spelling),
    Family("double_letter", GROUP, "Which word has a double letter.", _double_letter, (3, 4)),
    Family("letter_of_word", GROUP, "The first or last letter of a word.", _letter_of),
)
