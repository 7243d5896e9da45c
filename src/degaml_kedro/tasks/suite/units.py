"""Units of measurement and what they measure."""

from __future__ import annotations

import random

from degaml_kedro.tasks.suite.drawing import pick, word, word_lists
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

GROUP = "units"


def _spelled(unit: str) -> str:
    return unit.replace("_", " ")


def _quantity(rng: random.Random, size: int) -> SuiteQuestion:
    quantities = word_lists("units")["quantities"]
    answer = rng.choice(tuple(quantities))
    unit = _spelled(rng.choice(quantities[answer].split()))
    wordings = (
        "What does the unit {unit} measure?",
        "The {unit} is a unit of what?",
        "Which quantity is given in the unit {unit}?",
        "{unit}: a unit of what?",
    )
    wrong = pick(rng, quantities, size - 1, lambda other: other != answer)
    return SuiteQuestion(word(rng, wordings, unit=unit), answer, wrong)


def _unit(rng: random.Random, size: int) -> SuiteQuestion:
    quantities = word_lists("units")["quantities"]
    quantity = rng.choice(tuple(quantities))
    answer = _spelled(rng.choice(quantities[quantity].split()))
    wordings = (
        "Which of these is a unit of {quantity}?",
        "Which unit measures {quantity}?",
        "In which unit is {quantity} given?",
    )
    others = pick(rng, quantities, size - 1, lambda other: other != quantity)
    wrong = tuple(_spelled(rng.choice(quantities[other].split())) for other in others)
    return SuiteQuestion(word(rng, wordings, quantity=quantity), answer, wrong)


FAMILIES = (
    Family("unit_measures", GROUP, "What a unit measures.", _quantity),
    Family("unit_of_quantity", GROUP, "Which unit measures a quantity.", _unit),
)
