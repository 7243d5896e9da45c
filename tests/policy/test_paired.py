from __future__ import annotations

import math

import numpy as np
import pytest

from degaml_kedro.policy.paired import deal_folds, preference_p_value
from degaml_kedro.tasks.example import make_example


def closed(count, labels=3):
    """Examples that share one set of options, in an order of their own each."""
    names = ["red", "green", "blue", "gray"][:labels]
    turned = [names[i % 2 :] + names[: i % 2] for i in range(count)]
    return [
        make_example(f"Question {i}?", options, gold=options.index(names[i % labels]))
        for i, options in enumerate(turned)
    ]


def test_p_is_the_share_of_signs_with_ranks_as_large():
    # by hand: of the 2^n equally likely signs, those whose positive ranks sum to at least what was seen
    gains = np.array([0.5, -0.2, 1.5, 0.9, -0.1, 2.0, 0.7])
    ranks = np.argsort(np.argsort(np.abs(gains))) + 1
    seen = ranks[gains > 0].sum()
    signs = (np.arange(2**7)[:, None] >> np.arange(7)) & 1
    expected = np.mean(signs @ ranks >= seen)
    before = np.linspace(-3, -1, 7)
    assert preference_p_value(before + gains, before) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [5, 8, 12, 20])
def test_p_of_what_is_better_throughout_and_worse_throughout(count):
    before = -np.arange(1.0, count + 1)
    assert preference_p_value(before / 2, before) == pytest.approx(2.0**-count)
    assert preference_p_value(before, before / 2) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_fewer_than_five_examples_cannot_tell(count):
    assert preference_p_value([-0.1] * count, [-9.0] * count) == 1.0


def test_examples_that_do_not_differ_are_left_out():
    before = [-1.0, -2.0, -3.0, -4.0, -5.0]
    after = [b / 2 for b in before]
    p = preference_p_value(after, before)
    assert preference_p_value([*after, -7.0, -8.0], [*before, -7.0, -8.0]) == p
    # nor does the rounding of another batch count
    assert preference_p_value([*after, -7.0], [*before, -7.00001]) == p
    assert preference_p_value(before, before) == 1.0


def test_ties_and_impossible_answers_are_values():
    before = [-2.0] * 10
    assert preference_p_value([-1.0] * 10, before) < 0.01
    assert preference_p_value([-1.0] * 9 + [-math.inf], before) < 0.2
    assert preference_p_value([-math.inf] * 10, [-math.inf] * 10) == 1.0


def test_one_question_does_not_decide():
    # a mean would be worse after: one overconfident answer of twenty
    rng = np.random.default_rng(0)
    before = -rng.uniform(1, 2, 20)
    after = before + rng.uniform(0.2, 0.5, 20)
    after[3] = before[3] - 30
    assert after.mean() < before.mean()
    assert preference_p_value(after, before) < 0.01


# --- folds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "folds"), [(20, 2), (20, 5), (7, 3), (3, 10), (1, 2)])
def test_every_example_is_in_one_fold(count, folds):
    dealt = deal_folds(closed(count), folds, 1)
    assert sorted(place for fold in dealt for place in fold) == list(range(count))
    assert len(dealt) == min(count, folds)
    sizes = [len(fold) for fold in dealt]
    assert max(sizes) - min(sizes) <= 1
    assert deal_folds(closed(count), folds, 1) == dealt


def test_folds_share_out_the_right_answers_of_a_closed_set():
    examples = closed(20, labels=4)
    for seed in range(5):
        for fold in deal_folds(examples, 4, seed):
            answers = [examples[place].options[examples[place].gold] for place in fold]
            assert sorted(answers.count(answer) for answer in set(answers)) == [1, 1, 1, 2]
    assert deal_folds(examples, 4, 0) != deal_folds(examples, 4, 1)


def test_open_answers_are_shuffled():
    examples = [make_example(f"{i}?", [str(i), "no"], gold=0) for i in range(12)]
    assert len({deal_folds(examples, 2, seed) for seed in range(6)}) == 6
