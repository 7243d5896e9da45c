"""Chemical elements: symbols, names and atomic numbers, from periodictable."""

from __future__ import annotations

import random
from functools import cache

import periodictable

from degaml_kedro.tasks.suite.drawing import pick, word
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

GROUP = "elements"

_WELL_KNOWN_SYMBOLS = (
    "H He Li B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Ti Cr Mn Fe Co Ni Cu Zn As Br Kr "
    "Ag Sn I Xe Ba W Pt Au Hg Pb Rn Ra U Pu"
)
WELL_KNOWN = tuple(_WELL_KNOWN_SYMBOLS.split())


@cache
def elements() -> dict[str, tuple[str, int, float]]:
    """Name, atomic number and mass of the well-known elements, by symbol."""
    known = {symbol: periodictable.elements.symbol(symbol) for symbol in WELL_KNOWN}
    return {
        symbol: (element.name, element.number, element.mass) for symbol, element in known.items()
    }


def _symbol(rng: random.Random, size: int) -> SuiteQuestion:
    answer = rng.choice(WELL_KNOWN)
    wordings = (
        "What is the chemical symbol of {name}?",
        "Which symbol stands for {name}?",
        "In the periodic table, {name} is written as what?",
        "How do chemists abbreviate {name}?",
    )
    wrong = pick(rng, WELL_KNOWN, size - 1, lambda other: other != answer)
    return SuiteQuestion(word(rng, wordings, name=elements()[answer][0]), answer, wrong)


def _name(rng: random.Random, size: int) -> SuiteQuestion:
    symbol = rng.choice(WELL_KNOWN)
    wordings = (
        "Which element has the symbol {symbol}?",
        "What does the chemical symbol {symbol} stand for?",
        "{symbol} is the symbol of which element?",
        "In chemistry, {symbol} means what?",
    )
    wrong = pick(rng, WELL_KNOWN, size - 1, lambda other: other != symbol)
    return SuiteQuestion(
        word(rng, wordings, symbol=symbol),
        elements()[symbol][0],
        tuple(elements()[other][0] for other in wrong),
    )


def _atomic_number(rng: random.Random, size: int) -> SuiteQuestion:
    symbol = rng.choice(WELL_KNOWN[:30])
    name, number, _ = elements()[symbol]
    wordings = (
        "What is the atomic number of {name}?",
        "How many protons does an atom of {name} have?",
        "Which number does {name} have in the periodic table?",
    )
    numbers = [other for _, other, _ in elements().values() if len(str(other)) == len(str(number))]
    wrong = pick(rng, numbers, size - 1, lambda other: other != number)
    return SuiteQuestion(
        word(rng, wordings, name=name), str(number), tuple(str(other) for other in wrong)
    )


def _heavier(rng: random.Random, size: int) -> SuiteQuestion | None:
    heaviest = rng.random() < 0.5
    chosen = pick(rng, elements().values(), size)
    ranked = sorted(chosen, key=lambda element: element[1], reverse=heaviest)
    # Potassium is lighter than argon though it comes later: there the wordings would disagree.
    if ranked[0] != sorted(chosen, key=lambda element: element[2], reverse=heaviest)[0]:
        return None
    wordings = (
        "Which of these elements has the {degree} atoms?",
        "Which element comes {place} in the periodic table?",
        "Which of these elements has the {number} atomic number?",
    )
    text = word(
        rng,
        wordings,
        degree="heaviest" if heaviest else "lightest",
        place="last" if heaviest else "first",
        number="highest" if heaviest else "lowest",
    )
    return SuiteQuestion(text, ranked[0][0], tuple(element[0] for element in ranked[1:]))


FAMILIES = (
    Family("element_symbol", GROUP, "The symbol of a chemical element.", _symbol),
    Family("element_name", GROUP, "The chemical element of a symbol.", _name),
    Family("element_number", GROUP, "The atomic number of an element.", _atomic_number),
    Family("element_order", GROUP, "The heaviest or lightest element.", _heavier, (2, 3, 4)),
)
