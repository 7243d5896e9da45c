"""The word lists leave no question two right answers."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from degaml_kedro.tasks.suite.data import read_data

FILES = ("dates", "geography", "kinds", "stories", "units", "wordings", "words")


def repeated(words):
    return [word for word, count in Counter(words).items() if count > 1]


@pytest.mark.parametrize("name", FILES)
def test_every_list_can_be_read(name):
    assert read_data(name)


def test_no_thing_is_of_two_kinds():
    kinds = read_data("kinds")["kinds"]
    things = [thing.lower() for words in kinds.values() for thing in words.split()]
    assert repeated(things) == []
    assert len(kinds) >= 12
    assert min(len(words.split()) for words in kinds.values()) >= 5


def test_overlaps_name_kinds():
    lists = read_data("kinds")
    assert set(lists["overlaps"]) <= set(lists["kinds"])
    assert set(itertools.chain(*lists["overlaps"].values())) <= set(lists["kinds"])


@pytest.mark.parametrize("name", ["names", "nouns"])
def test_names_and_nouns_come_once(name):
    assert repeated(read_data("words")[name].split()) == []


def test_units_measure_one_quantity():
    quantities = read_data("units")["quantities"]
    assert repeated(unit for units in quantities.values() for unit in units.split()) == []
