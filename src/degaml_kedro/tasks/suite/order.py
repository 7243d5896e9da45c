"""Places in a list, in a line and on a journey."""

from __future__ import annotations

import itertools
import random

from degaml_kedro.tasks.suite.drawing import enumeration, pick, word, word_lists
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion
from degaml_kedro.tasks.suite.kinds import members
from degaml_kedro.tasks.suite.letters import nouns

GROUP = "order"

PLACES = ("first", "second", "third", "fourth", "fifth")


def _items(rng: random.Random, count: int) -> tuple[str, ...]:
    return pick(rng, nouns(), count)


def _names(rng: random.Random, count: int) -> tuple[str, ...]:
    return pick(rng, word_lists("words")["names"].split(), count)


def _at_place(rng: random.Random, size: int) -> SuiteQuestion:
    items = _items(rng, size)
    place = rng.randrange(size)
    named = "last" if place == size - 1 and rng.random() < 0.7 else PLACES[place]
    wordings = (
        "The list is: {items}. Which word is {place}?",
        "Someone says: {items}. Which word comes {place}?",
        "Read this list: {items}. What is the {place} word?",
        "{items}: which of these is the {place} one?",
    )
    text = word(rng, wordings, items=", ".join(items), place=named)
    return SuiteQuestion(text, items[place], tuple(item for item in items if item != items[place]))


def _beside(rng: random.Random, size: int, step: int) -> SuiteQuestion:
    items = _items(rng, size + 1)
    place = rng.randrange(size) if step == 1 else rng.randrange(1, size + 1)
    shown, answer = items[place], items[place + step]
    wordings = (
        "The list is: {items}. Which word comes right {side} {shown}?",
        "Someone says: {items}. What do they say right {side} {shown}?",
        "In the list {items}, what stands just {side} {shown}?",
    )
    text = word(
        rng,
        wordings,
        items=", ".join(items),
        shown=shown,
        side="after" if step == 1 else "before",
    )
    return SuiteQuestion(text, answer, tuple(item for item in items if item not in (shown, answer)))


def _after(rng: random.Random, size: int) -> SuiteQuestion:
    return _beside(rng, size, 1)


def _before(rng: random.Random, size: int) -> SuiteQuestion:
    return _beside(rng, size, -1)


def _race(rng: random.Random, size: int) -> SuiteQuestion:
    names = _names(rng, size)
    first = rng.random() < 0.5
    wordings = (
        "{order} crossed the line in this order. Who {won} the race?",
        "In the race, {chain}. Who came {place}?",
        "In line for tickets, {ahead}. Who is {end} the line?",
    )
    text = word(
        rng,
        wordings,
        order=enumeration(names),
        chain=", and ".join(f"{a} was faster than {b}" for a, b in itertools.pairwise(names)),
        ahead=", and ".join(f"{a} stands before {b}" for a, b in itertools.pairwise(names)),
        won="won" if first else "lost",
        place="first" if first else "last",
        end="at the front of" if first else "at the back of",
    )
    answer = names[0 if first else -1]
    return SuiteQuestion(text, answer, tuple(name for name in names if name != answer))


def _row(rng: random.Random, size: int) -> SuiteQuestion:
    names = _names(rng, 3)
    left = rng.random() < 0.5
    a, b, c = names
    chains = (
        f"{a} sits to the left of {b}, and {b} sits to the left of {c}",
        f"{c} sits to the right of {b}, and {b} sits to the right of {a}",
        f"{b} sits to the right of {a} and to the left of {c}",
        f"{b} sits between {a} on the left and {c} on the right",
    )
    questions = (
        ("Who sits farthest to the left?", "Who is at the left end?")
        if left
        else ("Who sits farthest to the right?", "Who is at the right end?")
    )
    answer = a if left else c
    wrong = [name for name in names if name != answer]
    return SuiteQuestion(
        f"{rng.choice(chains)}. {rng.choice(questions)}", answer, pick(rng, wrong, size - 1)
    )


def _route(rng: random.Random, size: int) -> SuiteQuestion:
    place_names = pick(rng, members()["building"], size)
    (name,) = _names(rng, 1)
    place = rng.choice((0, size - 1))
    wordings = (
        "{name} visits the {items}. Where does {name} go {place}?",
        "{name} walks past the {items}, in this order. Which is {place}?",
        "First to last, {name} saw the {items}. What did {name} see {place}?",
    )
    text = word(
        rng,
        wordings,
        name=name,
        items=", the ".join(place_names[:-1]) + f" and then the {place_names[-1]}",
        place="first" if place == 0 else "last",
    )
    answer = place_names[place]
    return SuiteQuestion(text, answer, tuple(item for item in place_names if item != answer))


FAMILIES = (
    Family(
        "list_place", GROUP, "The first, second, … or last word of a list.", _at_place, (3, 4, 5)
    ),
    Family("list_after", GROUP, "The word after a word of a list.", _after, (3, 4)),
    Family("list_before", GROUP, "The word before a word of a list.", _before, (3, 4)),
    Family("race_order", GROUP, "Who is first or last in a race or line.", _race, (2, 3)),
    Family("row_order", GROUP, "Who sits at the left or right end.", _row, (2, 3)),
    Family("route_order", GROUP, "The first or last stop of a walk.", _route, (2, 3, 4)),
)
