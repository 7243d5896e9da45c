"""Short stories with a question: who is ahead, who has what, what follows."""

from __future__ import annotations

import itertools
import random

from degaml_kedro.tasks.suite.drawing import article, enumeration, pick, word, word_lists
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion
from degaml_kedro.tasks.suite.kinds import apart, members

GROUP = "stories"


def _names(rng: random.Random, count: int) -> tuple[str, ...]:
    return pick(rng, word_lists("words")["names"].split(), count)


def _listed(name: str) -> tuple[str, ...]:
    return tuple(word_lists("stories")[name].split())


def _comparison(rng: random.Random, size: int) -> SuiteQuestion:
    more, less, most, least = rng.choice(word_lists("stories")["comparisons"])
    names = _names(rng, size)
    links = [
        rng.choice((f"{a} is {more} than {b}", f"{b} is {less} than {a}"))
        for a, b in itertools.pairwise(names)
    ]
    rng.shuffle(links)
    top = rng.random() < 0.5
    degree, comparative = (most, more) if top else (least, less)
    asked = f"Who is {comparative if size == 2 else f'the {degree}'}?"
    answer = names[0 if top else -1]
    wrong = tuple(name for name in names if name != answer)
    return SuiteQuestion(f"{'. '.join(links)}. {asked}", answer, wrong)


def _more(rng: random.Random, size: int) -> SuiteQuestion:
    names = _names(rng, size)
    goods = rng.choice(_listed("goods"))
    counts = rng.sample(range(2, 21), size)
    most = rng.random() < 0.5
    wordings = (
        "{story}. Who has the {degree} {goods}?",
        "{story}. Which of them has the {degree}?",
    )
    story = enumeration(
        [f"{name} has {count} {goods}" for name, count in zip(names, counts, strict=True)]
    )
    answer = names[counts.index(max(counts) if most else min(counts))]
    text = word(rng, wordings, story=story, goods=goods, degree="most" if most else "fewest")
    return SuiteQuestion(text, answer, tuple(name for name in names if name != answer))


def _likes(rng: random.Random, size: int) -> SuiteQuestion:
    (name,) = _names(rng, 1)
    *disliked, liked = pick(rng, _listed("likes"), size)
    negative = rng.random() < 0.5
    many = " or ".join(disliked)
    if negative:
        wordings = (
            "{name} likes {many} but not {one}. What does {name} not like?",
            "{name} enjoys {many}, yet hates {one}. What should {name} not get?",
            "{name} would take {many}, but never {one}. What does {name} refuse?",
        )
        many = " and ".join(disliked)
    else:
        wordings = (
            "{name} likes {one} but not {many}. What does {name} like?",
            "{name} does not like {many}, only {one}. What should {name} get?",
            "{name} never asks for {many}, always for {one}. What does {name} want?",
        )
    text = word(rng, wordings, name=name, one=liked, many=many)
    return SuiteQuestion(text, liked, tuple(disliked))


def _owner(rng: random.Random, size: int) -> SuiteQuestion:
    names = _names(rng, size)
    things = pick(rng, _listed(rng.choice(("pets", "belongings"))), size)
    verb = rng.choice(("has", "owns", "looks after"))
    story = enumeration(
        [f"{name} {verb} the {thing}" for name, thing in zip(names, things, strict=True)]
    )
    index = rng.randrange(size)
    wrong = tuple(name for name in names if name != names[index])
    return SuiteQuestion(f"{story}. Who {verb} the {things[index]}?", names[index], wrong)


def _owned(rng: random.Random, size: int) -> SuiteQuestion:
    names = _names(rng, size)
    things = pick(rng, _listed(rng.choice(("pets", "belongings"))), size)
    verb, base = rng.choice(
        (("has", "have"), ("bought", "buy"), ("found", "find"), ("drew", "draw"))
    )
    story = enumeration(
        [f"{name} {verb} a {thing}" for name, thing in zip(names, things, strict=True)]
    )
    did = "does" if verb == "has" else "did"
    index = rng.randrange(size)
    wrong = tuple(thing for thing in things if thing != things[index])
    return SuiteQuestion(f"{story}. What {did} {names[index]} {base}?", things[index], wrong)


def _place(rng: random.Random, size: int) -> SuiteQuestion:
    things = pick(rng, _listed("belongings"), size)
    places = pick(rng, _listed("containers"), size, lambda place: place not in things)
    story = enumeration(
        [f"the {thing} is in the {place}" for thing, place in zip(things, places, strict=True)]
    )
    index = rng.randrange(size)
    wordings = ("{story}. Where is the {thing}?", "{story}. Where do you find the {thing}?")
    text = word(rng, wordings, story=story, thing=things[index])
    wrong = tuple(place for place in places if place != places[index])
    return SuiteQuestion(text[0].upper() + text[1:], places[index], wrong)


def _handed_on(rng: random.Random, size: int) -> SuiteQuestion:
    names = _names(rng, size)
    thing = rng.choice(_listed("belongings"))
    steps = [f"{a} gave the {thing} to {b}" for a, b in itertools.pairwise(names)]
    last = rng.random() < 0.7
    wordings = (
        ("{story}. Who has the {thing} now?", "{story}. With whom is the {thing}?")
        if last
        else ("{story}. Who had the {thing} first?", "{story}. With whom did the {thing} start?")
    )
    text = word(rng, wordings, story=". Then ".join(steps), thing=thing)
    answer = names[-1 if last else 0]
    return SuiteQuestion(text, answer, tuple(name for name in names if name != answer))


def _elimination(rng: random.Random, size: int) -> SuiteQuestion:
    thing = rng.choice(_listed("belongings"))
    rooms = rng.random() < 0.5
    places = pick(rng, _listed("rooms" if rooms else "containers"), size, lambda p: p != thing)
    answer = places[rng.randrange(size)]
    wrong = [place for place in places if place != answer]
    rng.shuffle(wrong)
    wordings = (
        "The {thing} is in the {all}. It is not in the {wrong}. Where is it?",
        "The {thing} was lost in the {all}. The {wrong} was searched in vain. Where is it?"
        if size == 2
        else "The {thing} was lost in the {all}. It was not in the {wrong}. Where is it?",
    )
    text = word(
        rng,
        wordings,
        thing=thing,
        all=", the ".join(places[:-1]) + f" or the {places[-1]}",
        wrong=" or the ".join(wrong),
    )
    return SuiteQuestion(text, answer, tuple(wrong))


def _rule(rng: random.Random, size: int) -> SuiteQuestion:
    kinds = pick(rng, _listed("coined"), size)
    colors = pick(rng, _listed("colors"), size)
    (name,) = _names(rng, 1)
    index = rng.randrange(size)
    rules = enumeration(
        [f"every {kind} is {color}" for kind, color in zip(kinds, colors, strict=True)]
    )
    wordings = (
        "{rules}. {name} has a {kind}. What color is it?",
        "{rules}. What color is {name}'s {kind}?",
        "{rules}. {name} sees a {kind}. Which color is that?",
    )
    text = word(rng, wordings, rules=rules, name=name, kind=kinds[index])
    wrong = tuple(color for color in colors if color != colors[index])
    return SuiteQuestion(text[0].upper() + text[1:], colors[index], wrong)


def _statement(rng: random.Random, size: int) -> SuiteQuestion:
    true = rng.random() < 0.5
    kinds = pick(rng, members(), size)

    def state(kind: str, right: bool) -> str:
        shown = kind if right else rng.choice(apart(kind))
        return f"{rng.choice(members()[kind])} is {article(shown)} {shown}"

    wordings = (
        "Which of these statements is {truth}?",
        "Which sentence is {truth}?",
        "Only one of these is {truth}. Which?",
    )
    text = word(rng, wordings, truth="true" if true else "false")
    return SuiteQuestion(
        text, state(kinds[0], true), tuple(state(kind, not true) for kind in kinds[1:])
    )


def _yes_or_no(rng: random.Random, size: int) -> SuiteQuestion:
    kind = rng.choice(tuple(members()))
    first, second = pick(rng, members()[kind], 2)
    yes = rng.random() < 0.5
    if rng.random() < 0.5:
        shown = kind if yes else rng.choice(apart(kind))
        wordings = (
            'Are "{first}" and "{second}" both names of a kind of {kind}?',
            "Does the word {kind} cover both {first} and {second}?",
            "{first} and {second}: are they each {article} {kind}?",
        )
    else:
        shown = ""
        second = second if yes else rng.choice(members()[rng.choice(apart(kind))])
        wordings = (
            "Are {first} and {second} the same kind of thing?",
            "Do {first} and {second} belong together?",
            "Is {first} something of the same sort as {second}?",
        )
    text = word(
        rng,
        wordings,
        first=first,
        second=second,
        kind=shown,
        article=article(shown) if shown else "",
    )
    return SuiteQuestion(text, *(("yes", ("no",)) if yes else ("no", ("yes",))))


FAMILIES = (
    Family(
        "comparison_chain",
        GROUP,
        "Who is the tallest, youngest, … of two or three.",
        _comparison,
        (2, 3),
    ),
    Family("who_has_most", GROUP, "Who has the most or fewest things.", _more, (2, 3)),
    Family("likes_and_dislikes", GROUP, "What somebody likes or does not like.", _likes, (2, 3)),
    Family("who_owns", GROUP, "Who has a given thing.", _owner, (2, 3)),
    Family("what_is_owned", GROUP, "What a given person has.", _owned, (2, 3, 4)),
    Family("where_is_it", GROUP, "In which place a thing is.", _place, (2, 3)),
    Family("handed_on", GROUP, "Who has a thing that was handed on.", _handed_on, (2, 3)),
    Family("elimination", GROUP, "The one place that is left.", _elimination, (2, 3)),
    Family("rule_to_case", GROUP, "A rule about made-up things, applied.", _rule, (2, 3)),
    Family("true_statement", GROUP, "Which statement is true or false.", _statement, (2, 3)),
    Family("yes_or_no", GROUP, "Whether things are of a kind.", _yes_or_no, (2,)),
)
