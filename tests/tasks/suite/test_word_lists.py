"""The word lists leave no question two right answers."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from degaml_kedro.tasks.suite.drawing import word_lists

FILES = ("dates", "geography", "kinds", "meaning", "morphology", "stories", "units", "words")


def repeated(words):
    return [word for word, count in Counter(words).items() if count > 1]


@pytest.mark.parametrize("name", FILES)
def test_every_list_can_be_read(name):
    assert word_lists(name)


def test_no_thing_is_of_two_kinds():
    kinds = word_lists("kinds")["kinds"]
    things = [thing.lower() for words in kinds.values() for thing in words.split()]
    assert repeated(things) == []
    assert len(kinds) >= 12
    assert min(len(words.split()) for words in kinds.values()) >= 5


def test_overlaps_name_kinds():
    lists = word_lists("kinds")
    assert set(lists["overlaps"]) <= set(lists["kinds"])
    assert set(itertools.chain(*lists["overlaps"].values())) <= set(lists["kinds"])


@pytest.mark.parametrize("name", ["opposites", "synonyms"])
def test_no_word_is_in_two_sets_of_meanings(name):
    sets = word_lists("meaning")[name].split()
    assert repeated(word for words in sets for word in words.split(":")) == []


def test_rhymes_are_apart():
    assert (
        repeated(word for rhymes in word_lists("words")["rhymes"] for word in rhymes.split()) == []
    )


@pytest.mark.parametrize("name", ["names", "nouns"])
def test_names_and_nouns_come_once(name):
    assert repeated(word_lists("words")[name].split()) == []


def test_analogies_are_one_to_one():
    for relation, pairs in word_lists("meaning")["analogies"].items():
        lefts, rights = zip(*(pair.split(":") for pair in pairs.split()), strict=True)
        assert repeated(lefts) == repeated(rights) == [], relation


def test_agents_are_apart():
    assert repeated(word_lists("morphology")["agents"].values()) == []


def test_articles_are_apart():
    lists = word_lists("morphology")
    assert set(lists["a"].split()).isdisjoint(lists["an"].split())


def test_units_measure_one_quantity():
    quantities = word_lists("units")["quantities"]
    assert repeated(unit for units in quantities.values() for unit in units.split()) == []
