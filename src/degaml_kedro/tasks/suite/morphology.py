"""Forms of words: plurals, tenses, comparison, and words made from words. Forms come from lemminflect."""

from __future__ import annotations

import random
from functools import cache

from lemminflect import getInflection

from degaml_kedro.tasks.suite.drawing import pick, word, word_lists
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

GROUP = "morphology"

_VOWELS = "aeiou"

# lemminflect lists variants; these are the forms that school grammars give.
_PREFERRED = {
    ("ox", "NNS"): "oxen",
    ("person", "NNS"): "people",
    ("dream", "VBD"): "dreamed",
    ("get", "VBN"): "got",
    ("hide", "VBN"): "hidden",
    ("far", "JJR"): "farther",
    ("far", "JJS"): "farthest",
    ("good", "JJR"): "better",
    ("good", "JJS"): "best",
    ("bad", "JJR"): "worse",
    ("bad", "JJS"): "worst",
}


@cache
def inflected(lemma: str, tag: str) -> str:
    """The form of a word under a Penn Treebank tag: ``mice`` for ``mouse`` and ``NNS``."""
    return _PREFERRED.get((lemma, tag)) or getInflection(lemma, tag=tag)[0]


def _listed(name: str) -> tuple[str, ...]:
    return tuple(word_lists("morphology")[name].split())


def _joined(stem: str, ending: str) -> str:
    """The ending put on without further change, save for an e that is there already."""
    return stem + (ending[1:] if stem.endswith("e") and ending[0] == "e" else ending)


def _wrong(
    rng: random.Random, answer: str, own: list[str], others: list[str], count: int
) -> tuple[str, ...]:
    """Mostly wrong forms of the word itself, and at least one right form of another word."""
    own = [form for form in dict.fromkeys(own) if form != answer]
    chosen = pick(rng, own, min(count - 1, 2))
    return chosen + pick(rng, others, count - len(chosen), lambda form: form not in (answer, *own))


def _plural(rng: random.Random, size: int) -> SuiteQuestion:
    nouns = _listed("plurals")
    noun = rng.choice(nouns)
    answer = inflected(noun, "NNS")
    wordings = (
        "What is the plural of {noun}?",
        "One {noun}, two what?",
        "What do you call more than one {noun}?",
        "There was one {noun}, then another came. Now there are two what?",
    )
    own = [f"{noun}s", _joined(noun, "es"), f"{noun}en", f"{noun[:-1]}ies"]
    own = [
        form
        for form in own
        if form not in getInflection(noun, tag="NNS")
        and not form.startswith(answer)
        and not answer.startswith(form)
    ]
    others = [inflected(other, "NNS") for other in nouns if other != noun]
    wrong = _wrong(rng, answer, own, others, size - 1)
    return SuiteQuestion(word(rng, wordings, noun=noun), answer, wrong)


def _singular(rng: random.Random, size: int) -> SuiteQuestion:
    nouns = _listed("plurals")
    answer = rng.choice(nouns)
    plural = inflected(answer, "NNS")
    wordings = (
        "What is the singular of {plural}?",
        "Many {plural}, but one what?",
        "If there is only one of the {plural}, what is it?",
        "Take away all {plural} but one. What is left is a what?",
    )
    wrong = pick(rng, nouns, size - 1, lambda noun: noun != answer)
    return SuiteQuestion(word(rng, wordings, plural=plural), answer, wrong)


def _past(rng: random.Random, size: int) -> SuiteQuestion:
    return _verb_form(rng, size, "VBD")


def _participle(rng: random.Random, size: int) -> SuiteQuestion:
    return _verb_form(rng, size, "VBG")


_TENSE_WORDINGS = {
    "VBD": (
        "What is the past tense of {verb}?",
        "Today they {verb}. What about yesterday? Yesterday they what?",
        "Which form of {verb} goes with last year?",
        "They {verb} now. Last week they also what?",
    ),
    "VBG": (
        "What is the -ing form of {verb}?",
        "They {verb} every day. Right now they are what?",
        "Which form of {verb} comes after 'she is'?",
    ),
}


def _verb_form(rng: random.Random, size: int, tag: str) -> SuiteQuestion:
    verbs = _listed("verbs")
    verb = rng.choice(verbs)
    answer = inflected(verb, tag)
    coined = [_joined(verb, "ed"), f"{verb}t", f"{verb}ing", f"{verb}en"]
    own = [*(inflected(verb, other) for other in ("VBD", "VBG", "VBZ", "VBN")), *coined]
    own = [form for form in own if form not in getInflection(verb, tag=tag)]
    others = [inflected(other, tag) for other in verbs if other != verb]
    wrong = _wrong(rng, answer, own, others, size - 1)
    return SuiteQuestion(word(rng, _TENSE_WORDINGS[tag], verb=verb), answer, wrong)


def _degree(rng: random.Random, size: int) -> SuiteQuestion:
    adjectives = _listed("adjectives")
    adjective = rng.choice(adjectives)
    tag, other_tag = rng.choice((("JJR", "JJS"), ("JJS", "JJR")))
    answer = inflected(adjective, tag)
    wordings = (
        (
            "What is the comparative of {adjective}?",
            "This one is {adjective}, but that one is even what?",
            "If it becomes more {adjective}, it becomes what?",
        )
        if tag == "JJR"
        else (
            "What is the superlative of {adjective}?",
            "All are {adjective}, but which word describes the top one?",
            "The one that is {adjective} above all others is the what?",
        )
    )
    own = [inflected(adjective, other_tag)]
    others = [inflected(other, tag) for other in adjectives if other != adjective]
    wrong = _wrong(rng, answer, own, others, size - 1)
    return SuiteQuestion(word(rng, wordings, adjective=adjective), answer, wrong)


def _article(rng: random.Random, size: int) -> SuiteQuestion:
    right, other = rng.choice((("a", "an"), ("an", "a")))
    (answer,) = pick(rng, _listed(right), 1)
    wordings = (
        'Which word comes after "{right}" and not after "{other}"?',
        'Which of these takes the article "{right}"?',
        'Before which word do you say "{right}" instead of "{other}"?',
        'Complete with the right word: "This is {right}".',
    )
    text = word(rng, wordings, right=right, other=other)
    return SuiteQuestion(text, answer, pick(rng, _listed(other), size - 1))


def _agent(rng: random.Random, size: int) -> SuiteQuestion:
    agents = word_lists("morphology")["agents"]
    action = rng.choice(tuple(agents))
    wordings = (
        "Someone who {action} is called what?",
        "What do you call a person who {action}?",
        "A person {action}. What is that person?",
        "Which word names somebody who {action}?",
    )
    wrong = pick(rng, agents.values(), size - 1, lambda other: other != agents[action])
    return SuiteQuestion(word(rng, wordings, action=action), agents[action], wrong)


def _negative(rng: random.Random, size: int) -> SuiteQuestion:
    prefixes = word_lists("morphology")["prefixes"]
    prefix = rng.choice(tuple(prefixes))
    stem = rng.choice(prefixes[prefix].split())
    wordings = (
        "Which word means not {stem}?",
        "How do you make the opposite of {stem}?",
        "What is the negative of {stem}?",
        "With the right prefix, the opposite of {stem} is what?",
    )
    wrong = [f"{other}{stem}" for other in (*prefixes, "anti", "de") if other != prefix]
    return SuiteQuestion(
        word(rng, wordings, stem=stem), f"{prefix}{stem}", pick(rng, wrong, size - 1)
    )


FAMILIES = (
    Family("plural", GROUP, "The plural of a noun.", _plural),
    Family("singular", GROUP, "The singular of a noun.", _singular),
    Family("past_tense", GROUP, "The past tense of a verb.", _past),
    Family("present_participle", GROUP, "The -ing form of a verb.", _participle),
    Family("degree_of_adjective", GROUP, "Comparatives and superlatives.", _degree, (3, 4)),
    Family("indefinite_article", GROUP, "Which word takes a or an.", _article, (3, 4)),
    Family("agent_noun", GROUP, "What somebody who does something is called.", _agent),
    Family("negative_prefix", GROUP, "The negative of a word by its prefix.", _negative),
)
