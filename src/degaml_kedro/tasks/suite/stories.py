"""Short stories with a question: who has what."""

from __future__ import annotations

import random

from degaml_kedro.tasks.suite.drawing import enumeration, pick, word_lists
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

GROUP = "stories"


def _names(rng: random.Random, count: int) -> tuple[str, ...]:
    return pick(rng, word_lists("words")["names"].split(), count)


def _listed(name: str) -> tuple[str, ...]:
    return tuple(word_lists("stories")[name].split())


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


FAMILIES = (
    Family("who_owns", GROUP, "Who has a given thing.", _owner, (2, 3)),
    Family("what_is_owned", GROUP, "What a given person has.", _owned, (2, 3, 4)),
)
