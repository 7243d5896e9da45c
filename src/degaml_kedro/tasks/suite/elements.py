"""Chemical elements, their symbols and names, from periodictable."""

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
def elements() -> dict[str, str]:
    """Names of the well-known elements by symbol."""
    return {symbol: periodictable.elements.symbol(symbol).name for symbol in WELL_KNOWN}


def _symbol(rng: random.Random, size: int) -> SuiteQuestion:
    answer = rng.choice(WELL_KNOWN)
    wordings = (
        "What is the chemical symbol of {name}?",
        "Which symbol stands for {name}?",
        "In the periodic table, {name} is written as what?",
        "How do chemists abbreviate {name}?",
    )
    wrong = pick(rng, WELL_KNOWN, size - 1, lambda other: other != answer)
    return SuiteQuestion(word(rng, wordings, name=elements()[answer]), answer, wrong)


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
        elements()[symbol],
        tuple(elements()[other] for other in wrong),
    )


FAMILIES = (
    Family("element_symbol", GROUP, "The symbol of a chemical element.", _symbol),
    Family("element_name", GROUP, "The chemical element of a symbol.", _name),
)
