"""Meanings of words: opposites, synonyms, analogies, and what everybody knows of size, weight, speed and age."""

from __future__ import annotations

import random
from functools import cache

from degaml_kedro.tasks.suite.drawing import pick, word, word_lists
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

GROUP = "meaning"


@cache
def _pairs(listed: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(pair.split(":")) for pair in listed.split())


def _opposite(rng: random.Random, size: int) -> SuiteQuestion:
    pairs = _pairs(word_lists("meaning")["opposites"])
    chosen = pick(rng, pairs, size)
    shown, answer = rng.sample(chosen[0], 2)
    wordings = (
        "What is the opposite of {shown}?",
        "Which word means the opposite of {shown}?",
        "If it is not {shown} but the reverse, what is it?",
    )
    wrong = tuple(rng.choice(pair) for pair in chosen[1:])
    return SuiteQuestion(word(rng, wordings, shown=shown), answer, wrong)


def _synonym(rng: random.Random, size: int) -> SuiteQuestion:
    sets = _pairs(word_lists("meaning")["synonyms"])
    chosen = pick(rng, sets, size)
    shown, answer = rng.sample(chosen[0], 2)
    wordings = (
        "Which word means the same as {shown}?",
        "What is another word for {shown}?",
        "Which word is closest in meaning to {shown}?",
        "Instead of {shown}, you can say what?",
    )
    wrong = tuple(rng.choice(words) for words in chosen[1:])
    return SuiteQuestion(word(rng, wordings, shown=shown), answer, wrong)


def _same_or_opposite(rng: random.Random, size: int) -> SuiteQuestion:
    """The opposite of a word, with the word's own kind of decoy, or the other way round."""
    pairs = _pairs(word_lists("meaning")["opposites"])
    chosen = pick(rng, pairs, size)
    wordings = (
        "Which two words are opposites?",
        "Which pair of words is a pair of opposites?",
        "In which pair does one word mean the reverse of the other?",
    )
    answer = " and ".join(rng.sample(chosen[0], 2))
    firsts = [rng.choice(pair) for pair in chosen]
    seconds = firsts[1:] + firsts[:1]
    wrong = tuple(f"{a} and {b}" for a, b in zip(firsts[1:], seconds[1:], strict=True))
    return SuiteQuestion(word(rng, wordings), answer, wrong)


def _analogy(rng: random.Random, size: int) -> SuiteQuestion:
    relations = word_lists("meaning")["analogies"]
    pairs = _pairs(relations[rng.choice(tuple(relations))])
    (a, b), (c, answer), *others = pick(rng, pairs, size + 1)
    wordings = (
        "{a} is to {b} as {c} is to what?",
        "{a} goes with {b} just as {c} goes with what?",
        "{a} and {b} belong together. What belongs with {c} in the same way?",
        "As {a} is to {b}, so {c} is to what?",
    )
    text = word(rng, wordings, a=a, b=b, c=c)
    return SuiteQuestion(text, answer, tuple(other for _, other in others))


_SCALES = {
    "sizes": ("largest", "smallest"),
    "weights": ("heaviest", "lightest"),
    "speeds": ("fastest", "slowest"),
    "ages": ("oldest", "youngest"),
}


def _scale(rng: random.Random, size: int) -> SuiteQuestion:
    scale = rng.choice(("sizes", "sizes", "weights", "weights", "speeds", "ages"))
    steps = word_lists("meaning")[scale].split(",")
    top = rng.random() < 0.5
    ranked = sorted(pick(rng, steps, size), key=steps.index, reverse=top)
    degree = _SCALES[scale][0 if top else 1]
    wordings = (
        "Which of these is usually the {degree}?",
        "Which one is the {degree}?",
        "What is the {degree} of these?",
        "If you had to pick the {degree}, what would it be?",
        "Compared with the others, which is the {degree}?",
    )
    return SuiteQuestion(word(rng, wordings, degree=degree), ranked[0], tuple(ranked[1:]))


FAMILIES = (
    Family("opposite", GROUP, "The opposite of a word.", _opposite),
    Family("synonym", GROUP, "Another word for a word.", _synonym),
    Family("pair_of_opposites", GROUP, "Which two words are opposites.", _same_or_opposite, (3, 4)),
    Family("analogy", GROUP, "A is to B as C is to what.", _analogy),
    Family(
        "scale_of_things",
        GROUP,
        "The largest, heaviest, fastest or oldest thing.",
        _scale,
        (2, 3, 4),
    ),
)
