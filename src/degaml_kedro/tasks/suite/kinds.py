"""Kinds of things: membership, naming the kind, what belongs together and what does not."""

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


def _naming(rng: random.Random, size: int) -> SuiteQuestion:
    kind = rng.choice(tuple(members()))
    wordings = (
        'What kind of thing is "{thing}"?',
        'What does the word "{thing}" name?',
        "What is {thing} an example of?",
        "{thing} is an example of what?",
    )
    text = word(rng, wordings, thing=rng.choice(members()[kind]))
    wrong = tuple(f"{article(other)} {other}" for other in pick(rng, apart(kind), size - 1))
    return SuiteQuestion(_capital(text), f"{article(kind)} {kind}", wrong)


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


def _odd(rng: random.Random, size: int) -> SuiteQuestion:
    kind = rng.choice(tuple(members()))
    wordings = (
        "Which of these does not belong with the others?",
        "Which word is the odd one out?",
        "Which one is different from the rest?",
        "All but one are the same kind of thing. Which one is not?",
    )
    (answer,) = _others(rng, kind, 1)
    return SuiteQuestion(word(rng, wordings), answer, pick(rng, members()[kind], size - 1))


def _not_member(rng: random.Random, size: int) -> SuiteQuestion:
    kind = rng.choice(tuple(members()))
    wordings = (
        "Which of these is not {article} {kind}?",
        "Which one is something other than {article} {kind}?",
        "Only one of these is not {article} {kind}. Which one?",
    )
    (answer,) = _others(rng, kind, 1)
    text = word(rng, wordings, kind=kind, article=article(kind))
    return SuiteQuestion(text, answer, pick(rng, members()[kind], size - 1))


def _common(rng: random.Random, size: int) -> SuiteQuestion:
    kind = rng.choice(tuple(members()))
    things = enumeration(pick(rng, members()[kind], rng.choice((2, 3))))
    wordings = (
        "What do {things} have in common?",
        "Which kind includes {things}?",
        "{things} are all examples of what?",
        "Which word covers {things}?",
    )
    text = _capital(word(rng, wordings, things=things))
    return SuiteQuestion(text, kind, pick(rng, apart(kind), size - 1))


def _everyday(rng: random.Random, size: int) -> SuiteQuestion:
    relation = word_lists("kinds")["everyday"][rng.choice(tuple(word_lists("kinds")["everyday"]))]
    thing, answer = rng.choice(tuple(relation["pairs"].items()))
    text = word(rng, relation["wordings"], thing=thing)
    wrong = pick(rng, relation["pairs"].values(), size - 1, lambda other: other != answer)
    return SuiteQuestion(text, answer, wrong)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


FAMILIES = (
    Family("kind_member", GROUP, "Which of these is a given kind of thing.", _member),
    Family("kind_naming", GROUP, "What kind of thing a word names.", _naming),
    Family("kind_same", GROUP, "Which thing is of the same kind as the ones shown.", _same),
    Family("kind_odd_one_out", GROUP, "Which thing is of another kind than the rest.", _odd),
    Family("kind_not_member", GROUP, "Which of these is not a given kind of thing.", _not_member),
    Family("kind_in_common", GROUP, "Which kind the things shown have in common.", _common),
    Family("everyday_facts", GROUP, "Young, sounds, homes, uses, colors and parts.", _everyday),
)
