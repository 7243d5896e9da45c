"""Units of measurement: what they measure, which is larger, how many make another. Ratios come from pint."""

from __future__ import annotations

import random
from functools import cache

import pint

from degaml_kedro.tasks.suite.drawing import pick, word, word_lists
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion
from degaml_kedro.tasks.suite.morphology import inflected

GROUP = "units"


@cache
def _registry() -> pint.UnitRegistry[float]:
    return pint.UnitRegistry()


@cache
def ratio(unit: str, other: str) -> float:
    """How many of the other unit make one of this unit."""
    return float(_registry().Quantity(1.0, unit).to(other).magnitude)


def _spelled(unit: str) -> str:
    return unit.replace("_", " ")


def _plural(unit: str) -> str:
    return "feet" if unit == "foot" else inflected(unit, "NNS")


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


def _unit_for_thing(rng: random.Random, size: int) -> SuiteQuestion:
    quantities, things = (word_lists("units")[name] for name in ("quantities", "things"))
    quantity = rng.choice(tuple(things))
    thing = rng.choice(things[quantity])
    answer = _spelled(rng.choice(quantities[quantity].split()))
    wordings = (
        "Which unit would you use for {thing}?",
        "To tell {thing}, which unit do you need?",
        "Which of these units suits {thing}?",
    )
    others = pick(rng, quantities, size - 1, lambda other: other != quantity)
    wrong = tuple(_spelled(rng.choice(quantities[other].split())) for other in others)
    return SuiteQuestion(word(rng, wordings, thing=thing), answer, wrong)


def _larger(rng: random.Random, size: int) -> SuiteQuestion | None:
    comparable = word_lists("units")["comparable"]
    quantity = rng.choice(tuple(comparable))
    units = comparable[quantity].split()
    top = rng.random() < 0.5
    amounts = rng.choice((1, 2, 3, 5, 10))
    ranked = sorted(pick(rng, units, size), key=lambda unit: ratio(unit, units[0]), reverse=top)
    degrees = {
        "length": ("longest", "shortest"),
        "mass": ("heaviest", "lightest"),
        "time": ("longest", "shortest"),
        "volume": ("largest", "smallest"),
    }
    wordings = (
        "Which of these is the {degree}?",
        "Which amount is the {degree}?",
        "Of these {count} amounts, which is the {degree}?",
        "Find the {degree} of these.",
    )
    text = word(
        rng,
        wordings,
        degree=degrees[quantity][0 if top else 1],
        count={2: "two", 3: "three", 4: "four"}[size],
    )
    written = [f"{amounts} {unit if amounts == 1 else _plural(unit)}" for unit in ranked]
    return SuiteQuestion(text, written[0], tuple(written[1:]))


def _convert(rng: random.Random, size: int) -> SuiteQuestion:
    unit, part = rng.choice(word_lists("units")["conversions"])
    count = rng.randint(1, 12)
    factor = round(ratio(unit, part))
    shown = f"one {unit}" if count == 1 else f"{count} {_plural(unit)}"
    wordings = (
        "How many {parts} are in {shown}?",
        "{shown} is as much as how many {parts}?",
        "To fill {shown}, how many {parts} do you need?",
    )
    pool = [factor * other for other in range(1, 13)]
    pool += [other * count for other in (7, 10, 12, 24, 30, 60, 100, 1000)]
    text = word(rng, wordings, parts=_plural(part), shown=shown)
    wrong = pick(rng, pool, size - 1, lambda other: other != factor * count)
    return SuiteQuestion(text, str(factor * count), tuple(str(other) for other in wrong))


FAMILIES = (
    Family("unit_measures", GROUP, "What a unit measures.", _quantity),
    Family("unit_of_quantity", GROUP, "Which unit measures a quantity.", _unit),
    Family(
        "unit_for_thing", GROUP, "Which unit suits something that is measured.", _unit_for_thing
    ),
    Family("larger_unit", GROUP, "The largest or smallest amount by its unit.", _larger, (2, 3, 4)),
    Family("unit_conversion", GROUP, "How many of a smaller unit make a larger one.", _convert),
)
