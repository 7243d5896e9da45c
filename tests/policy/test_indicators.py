"""Indicators against sums by hand, and what is better than what."""

from __future__ import annotations

import math
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degaml_kedro.llm.scoring import Prediction
from degaml_kedro.policy.indicators import (
    IndicatorError,
    Indicators,
    better,
    measure_indicators,
)

INF = math.inf


def scored(accuracy: float, log_probability: float) -> Indicators:
    return Indicators(9, accuracy, 0.5, 0.5, -log_probability, log_probability, (1.0,))


def prediction(scores: tuple[float, ...], gold: int, predicted: int | None = -1) -> Prediction:
    best = max(range(len(scores)), key=scores.__getitem__) if predicted == -1 else predicted
    return Prediction(scores, best, gold, "", 1)


def test_two_questions_by_hand():
    # 1/4, 3/4 up to a constant, and 1/2, 1/4, 1/4
    found = measure_indicators(
        [
            prediction((math.log(1) - 7, math.log(3) - 7), gold=1),
            prediction((math.log(2), 0.0, 0.0), gold=2),
        ]
    )
    first = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    second = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert found.n == 2
    assert found.accuracy == 0.5
    assert found.confidence == pytest.approx((0.75 + 0.5) / 2)
    assert found.entropy == pytest.approx((first + second) / 2)
    assert found.log_probability == pytest.approx((math.log(0.75) + math.log(0.25)) / 2)
    assert found.nll == -found.log_probability
    assert found.histogram == (0.5, 0.5, 0.0)


def test_a_generated_answer_has_certainty_and_a_missing_one_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure_indicators(
            [
                prediction((0.0, -INF), gold=0),
                prediction((0.0, -INF), gold=1),
                prediction((-INF, -INF), gold=0, predicted=None),
            ]
        )
        right = measure_indicators([prediction((0.0, -INF), gold=0)])
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.confidence == pytest.approx((1 + 1 + 0.5) / 3)
    assert found.entropy == pytest.approx(math.log(2) / 3)
    assert (found.log_probability, found.nll) == (-INF, INF)
    assert found.histogram == pytest.approx((2 / 3, 0.0))
    assert (right.log_probability, right.entropy) == (0.0, 0.0)
    assert math.copysign(1, right.nll) == 1


@pytest.mark.parametrize("wrong", [math.nan, INF])
def test_scores_that_are_no_log_probabilities_are_refused(wrong):
    with pytest.raises(IndicatorError, match="example 1 .*diverged"):
        measure_indicators([prediction((0.0, 1.0), 0), prediction((0.0, wrong), 0)])


def test_no_predictions_are_refused():
    with pytest.raises(IndicatorError, match="no predictions"):
        measure_indicators([])


SCORES = st.floats(-1e4, 1e4) | st.just(-INF)


@given(
    rows=st.lists(
        st.lists(SCORES, min_size=2, max_size=5).flatmap(
            lambda s: st.tuples(st.just(tuple(s)), st.integers(0, len(s) - 1))
        ),
        min_size=1,
        max_size=6,
    )
)
def test_nothing_becomes_nan(rows):
    found = measure_indicators([prediction(scores, gold) for scores, gold in rows])
    widest = max(len(scores) for scores, _ in rows)
    assert 1 / widest - 1e-9 <= found.confidence <= 1 + 1e-9
    assert -1e-9 <= found.entropy <= math.log(widest) + 1e-9
    assert found.log_probability <= 1e-9
    assert sum(found.histogram) == pytest.approx(1)
    assert len(found.histogram) == widest


@pytest.mark.parametrize(
    ("after", "before", "tie_break", "expected"),
    [
        ((0.6, -9.0), (0.5, -1.0), "none", True),
        ((0.5, -1.0), (0.6, -9.0), "log_probability", False),
        ((0.5, -1.0), (0.5, -2.0), "none", False),
        ((0.5, -1.0), (0.5, -2.0), "log_probability", True),
        ((0.5, -2.0), (0.5, -2.0), "log_probability", False),
        ((0.1 + 0.2, -3.0), (0.3, -2.0), "log_probability", False),  # a tie up to rounding
        ((0.5, -1.0), (0.5, -INF), "log_probability", True),
        ((0.5, -INF), (0.5, -INF), "log_probability", False),
        ((math.nan, -1.0), (0.5, -2.0), "log_probability", False),
        ((0.5, math.nan), (0.5, -2.0), "log_probability", False),
        ((0.5, -1.0), (0.5, math.nan), "log_probability", False),
        ((0.5, -1.0), (math.nan, -2.0), "log_probability", False),
    ],
)
def test_better_is_strict(after, before, tie_break, expected):
    assert better(scored(*after), scored(*before), tie_break) is expected


@given(
    a=st.tuples(st.floats(0, 1), st.floats(max_value=0)),
    b=st.tuples(st.floats(0, 1), st.floats(max_value=0)),
    tie_break=st.sampled_from(["none", "log_probability"]),
)
def test_two_scores_are_never_better_than_each_other(a, b, tie_break):
    one, other = scored(*a), scored(*b)
    assert not (better(one, other, tie_break) and better(other, one, tie_break))
