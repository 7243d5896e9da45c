"""Kinds of things: what belongs to them, and together."""

from __future__ import annotations

import random
from functools import cache

from degaml_kedro.tasks.suite.drawing import article, enumeration, pick, word, word_lists
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

GROUP = "kinds"


@cache
def members() -> dict[str, tuple[str, ...]]:
    """The things of each kind. No thing is of two kinds, save for kinds that overlap."""
    return {kind: tuple(words.split()) for kind, words in word_lists("kinds")["kinds"].items()}


@cache
def apart(kind: str) -> tuple[str, ...]:
    """The kinds that share nothing with this one."""
    overlaps = word_lists("kinds")["overlaps"]
    return tuple(
        other
        for other in members()
        if other != kind
        and other not in overlaps.get(kind, ())
        and kind not in overlaps.get(other, ())
    )


def _others(rng: random.Random, kind: str, count: int) -> tuple[str, ...]:
    """One thing of each of ``count`` kinds that share nothing with this one."""
    return tuple(rng.choice(members()[other]) for other in pick(rng, apart(kind), count))


def _member(rng: random.Random, size: int) -> SuiteQuestion:
    kind = rng.choice(tuple(members()))
    wordings = (
        "Which of these is {article} {kind}?",
        "Which one is {article} {kind}?",
        "Which word names {article} {kind}?",
        "Find the {kind}.",
    )
    text = word(rng, wordings, kind=kind, article=article(kind))
    return SuiteQuestion(text, rng.choice(members()[kind]), _others(rng, kind, size - 1))


def _same(rng: random.Random, size: int) -> SuiteQuestion:
    kind = rng.choice(tuple(members()))
    *shown, answer = pick(rng, members()[kind], rng.choice((2, 3)))
    things = shown[0] if len(shown) == 1 else enumeration(shown)
    wordings = (
        "Which of these is the same kind of thing as {things}?",
        "What belongs with {things}?",
        "Which word fits best with {things}?",
        "Which one goes together with {things}?",
    )
    return SuiteQuestion(word(rng, wordings, things=things), answer, _others(rng, kind, size - 1))


FAMILIES = (
    Family("kind_member", GROUP, "Which of these is a given kind of thing.", _member),
    Family("kind_same", GROUP, "Which thing is of the same kind as the ones shown.", _same),
)
