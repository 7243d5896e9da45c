"""What tasks that only examples define are drawn from: tables of rules, word sets, message templates, label words.

All of it is data (``data/*.json``). ``data/pools.json`` says which of it belongs to a held-out pool; the rest is for
training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from degaml_kedro.tasks.suite.data import read_data, read_folder

# by input, the right answers; the first one is shown
Rule = Mapping[str, tuple[str, ...]]
# the classes that words are dealt into, by name
Classes = Mapping[str, Sequence[str]]

TRAIN = "train"
HELD_OUT_POOLS = ("development", "final_1", "final_2", "final_3")
STYLES = ("words", "codes", "names")


@cache
def rules() -> Mapping[str, Mapping[str, Rule]]:
    """Every rule's table, by domain and rule."""
    return {
        content["domain"]: {
            name: {
                asked: tuple(answer) if isinstance(answer, list) else (answer,)
                for asked, answer in rule["answers"].items()
            }
            for name, rule in content["rules"].items()
        }
        for content in read_folder("rules")
    }


def word_sets() -> Mapping[str, Classes]:
    """Words by class, by set."""
    content: Mapping[str, Classes] = read_data("word_sets")
    return content


@cache
def topics() -> Mapping[str, Mapping[str, Any]]:
    """Messages by topic: ``intents``, each with a ``label`` and ``templates`` with slots in braces, and ``slots``."""
    return {content["topic"]: content for content in read_folder("messages")}


def pool_of_rule(domain: str, rule: str) -> tuple[str, str]:
    """The pool that a rule belongs to, and what is unseen in it: ``domains``, ``rules`` or nothing."""
    for pool in HELD_OUT_POOLS:
        if domain in _pools()["domains"][pool]["rules"]:
            return pool, "domains"
        if rule in _pools()["rules"][pool].get(domain, ()):
            return pool, "rules"
    return TRAIN, ""


def pool_of_subject(form: str, subject: str) -> str:
    """The pool that a word set (form ``words``) or a topic (form ``messages``) belongs to."""
    for pool in HELD_OUT_POOLS:
        if subject in _pools()["domains"][pool][form]:
            return pool
    return TRAIN


@cache
def label_words(pool: str) -> Mapping[str, tuple[str, ...]]:
    """The words that stand for labels in tasks of a pool, by style (``words``, ``codes``, ``names``).

    No two pools share one.
    """
    held = _pools()["label_words"]
    if pool != TRAIN:
        return {style: tuple(held[pool][style]) for style in STYLES}
    taken = {word for other in held.values() for words in other.values() for word in words}
    every = read_data("label_words")
    return {style: tuple(word for word in every[style] if word not in taken) for style in STYLES}


def templates_of(templates: Sequence[str], pool: str) -> list[str]:
    """An intent's templates that belong to a pool: those at certain places of every ten."""
    places = _pools()["template_places"]
    mine = set(places[pool]) if pool != TRAIN else set(range(10)) - set().union(*places.values())
    return [template for number, template in enumerate(templates) if number % 10 in mine]


def _pools() -> dict[str, Any]:
    content: dict[str, Any] = read_data("pools")
    return content
