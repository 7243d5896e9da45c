"""Logistic regression on embeddings: the library's probabilities, a floor for the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from degaml_kedro.baselines.learned import BaselineError
from degaml_kedro.baselines.sentence_head import Classifier, adapt, predict
from degaml_kedro.config.schema import PromptParameters, RegressionSetting
from degaml_kedro.llm.scoring import Prediction
from degaml_kedro.tasks.example import Example, Question, make_example, make_true_false_example
from tests.baselines.helpers import setup

PLAIN = PromptParameters(format="plain", options="hidden")
SETTING = RegressionSetting(c=10.0)
COLORS = ("red", "green", "blue")


def embed(questions: Sequence[Question]) -> Tensor:
    """Two numbers of a question's text, on the unit circle."""
    angles = torch.tensor([float(sum(map(ord, question.prompt))) for question in questions])
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def fitted(support: Sequence[Example]) -> Classifier:
    return adapt(setup("sentence_head", prompt=PLAIN, embed=embed), None, support, SETTING, 0)


def asked_of(head: Classifier, asked: Sequence[Example]) -> list[Prediction]:
    return predict(setup("sentence_head", prompt=PLAIN), head, asked, 0)


def colored(count: int, start: int = 0) -> list[Example]:
    return [make_example(f"item {i}?", COLORS, i % 3) for i in range(start, start + count)]


def test_probabilities_are_the_library_s():
    support, asked = colored(9), colored(5, 20)
    found = asked_of(fitted(support), asked)
    regression = LogisticRegression(C=10.0, max_iter=1000)
    inputs = [embed([Question.of(x) for x in part]).double().numpy() for part in (support, asked)]
    regression.fit(inputs[0], np.array([x.options[x.gold] for x in support]))
    columns = [list(regression.classes_).index(color) for color in COLORS]
    expected = regression.predict_proba(inputs[1])[:, columns]
    scores = np.array([one.option_scores for one in found])
    assert np.exp(scores) == pytest.approx(expected, rel=1e-9)
    assert [one.predicted for one in found] == expected.argmax(axis=1).tolist()
    assert [(one.gold, one.tokens) for one in found] == [(x.gold, 0) for x in asked]
    assert found[0].text == COLORS[expected[0].argmax()]


def test_an_option_s_place_and_label_do_not_matter():
    head = fitted(colored(9))
    turned = make_example("item 30?", COLORS[::-1], 0)
    # the embedding reads the question with its options: the same in both
    one = asked_of(head, [make_example("item 30?", COLORS, 0)])[0]
    other = asked_of(head, [turned])[0]
    assert sorted(one.option_scores) == pytest.approx(sorted(other.option_scores))


def test_options_that_never_were_an_answer_get_the_floor():
    head = fitted(colored(9))
    asked = make_example("item 40?", ("red", "pink", "white"), 0)
    (found,) = asked_of(head, [asked])
    assert head.head.regression is not None
    inputs = embed([Question.of(asked)]).double().numpy()
    red = head.head.regression.predict_proba(inputs)[0, head.head.classes.index("red")]
    expected = np.array([red, 0.01, 0.01]) / (red + 0.02)
    assert np.exp(found.option_scores) == pytest.approx(expected)
    assert sum(map(math.exp, found.option_scores)) == pytest.approx(1)
    # nothing is known of any of them
    strangers = make_example("item 41?", ("pink", "white"), 1)
    (found,) = asked_of(head, [strangers])
    assert found.option_scores == pytest.approx([-math.log(2)] * 2)


def test_one_answer_alone_is_certain():
    head = fitted([make_true_false_example(f"item {i}?", True) for i in range(3)])
    (found,) = asked_of(head, [make_true_false_example("item 9?", False)])
    assert np.exp(found.option_scores) == pytest.approx([1 / 1.01, 0.01 / 1.01])
    assert (found.predicted, found.gold) == (0, 1)


def test_progress_nothing_to_ask_and_nothing_to_learn_from():
    told: list[tuple[int, int]] = []
    head = fitted(colored(6))
    own = setup("sentence_head", prompt=PLAIN)
    predict(own, head, colored(2), 0, lambda *done: told.append(done))
    assert told == [(2, 2)]
    assert asked_of(head, []) == []
    with pytest.raises(BaselineError, match=r"no support examples .*splits\.support"):
        fitted([])
