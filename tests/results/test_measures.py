from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from degaml_kedro.results.measures import (
    ResultsError,
    calibration_error,
    measure,
    measure_draws,
    reliability,
    wilson_interval,
)


def frame(gold, predicted, scores, seconds=0.5, tokens=3):
    n = len(gold)
    return pd.DataFrame(
        {
            "index": range(n),
            "gold": gold,
            "predicted": pd.array(predicted, dtype="Int64"),
            "scores": scores,
            "text": [""] * n,
            "seconds": [seconds] * n,
            "tokens": [tokens] * n,
        }
    )


def wilson_by_hand(k, n, z=1.959963984540054):
    p = k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_the_closed_form(kn):
    assert wilson_interval(*kn) == pytest.approx(wilson_by_hand(*kn), abs=1e-12)


def test_accuracy_cost_and_chance():
    scores = [[0.0, -1.0], [0.0, -1.0, -2.0, -3.0], [-1.0, 0.0], [0.0, -1.0]]
    result = measure(frame([0, 1, 1, 1], [0, 1, 1, 0], scores))
    assert result["n"] == 4
    assert result["accuracy"] == 0.75
    assert (result["accuracy_low"], result["accuracy_high"]) == pytest.approx(wilson_by_hand(3, 4))
    assert result["chance"] == pytest.approx((0.5 + 0.25 + 0.5 + 0.5) / 4)
    assert result["invalid"] == 0
    assert result["seconds"] == 2.0
    assert result["tokens"] == 12


def test_likelihood_is_that_of_the_softmax_over_options():
    # scores that are off by a constant, as a scorer may leave them
    p = np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]])
    result = measure(frame([0, 0], [0, 1], list(np.log(p) + np.array([[5.0], [-3.0]]))))
    assert result["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.25)) / 2)
    # right with 0.7, wrong with 0.5, each alone in its bin
    assert result["ece"] == pytest.approx((0.3 + 0.5) / 2)


def test_no_valid_answer_is_wrong_and_counted():
    scores = [[-math.inf, -math.inf], [0.0, -math.inf]]
    result = measure(frame([0, 0], [None, 0], scores))
    assert result["invalid"] == 0.5
    assert result["accuracy"] == 0.5
    assert result["chance"] == 0.5
    assert result["nll"] is None
    assert result["ece"] is None


def test_calibration_error_in_closed_form():
    # one bin holds its upper edge; 1.0 is in the last
    assert calibration_error([1.0, 1.0], [True, False]) == pytest.approx(0.5)
    assert calibration_error([0.2, 0.4], [False, False], bins=5) == pytest.approx(0.3)
    assert calibration_error([0.61, 0.69], [True, False], bins=10) == pytest.approx(0.15)
    # in two bins the gaps no longer cancel
    assert calibration_error([0.61, 0.71], [True, False], bins=10) == pytest.approx(
        (0.39 + 0.71) / 2
    )


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_calibration_error_is_a_share(pairs):
    confidence, correct = zip(*pairs, strict=True)
    assert 0 <= calibration_error(confidence, correct) <= 1


def test_nothing_to_measure_names_the_place_and_the_way_out():
    with pytest.raises(
        ResultsError, match=r"capitals\.base\.predictions holds no predictions.*test"
    ):
        measure(frame([], [], []), "capitals.base.predictions")


def test_a_score_that_is_no_number_is_an_error():
    with pytest.raises(ResultsError, match="prediction 1.*damaged weights"):
        measure(frame([0, 0], [0, 0], [[0.0, -1.0], [math.nan, 0.0]]))


def test_survives_parquet(tmp_path):
    table = frame([0, 1], [0, None], [[0.0, -1.0], [0.0, -1.0, -2.0]])
    table.to_parquet(tmp_path / "p.parquet")
    assert measure(pd.read_parquet(tmp_path / "p.parquet")) == measure(table)


# --- reliability ----------------------------------------------------------------------------------

shares = st.floats(0, 1) | st.integers(0, 15).map(lambda number: number / 15)


@given(st.lists(st.tuples(shares, st.integers(0, 1)), min_size=1, max_size=60))
def test_the_bins_add_up_to_the_calibration_error(pairs):
    frame = pd.DataFrame(pairs, columns=["confidence", "right"])
    bins = reliability(frame)
    bins = bins[bins["n"] > 0]
    gaps = (bins["accuracy"] - bins["confidence"]).abs()
    assert bins["n"].sum() == len(pairs)
    error = calibration_error(frame["confidence"], frame["right"])
    assert set(bins["ece"]) == {error}
    assert (gaps * bins["n"]).sum() / len(pairs) == pytest.approx(error, abs=1e-12)


def test_a_bin_holds_its_upper_edge_and_has_wilsons_interval():
    answers = pd.DataFrame({"confidence": [0.0, 0.2, 0.21, 0.25, 1.0], "right": [0, 1, 1, 0, 1]})
    bins = reliability(answers, bins=5)
    assert bins["n"].tolist() == [2, 2, 0, 0, 1]
    assert bins["lower"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    second = bins.iloc[1]
    assert (second["confidence"], second["accuracy"]) == (pytest.approx(0.23), 0.5)
    assert (second["accuracy_low"], second["accuracy_high"]) == wilson_interval(1, 2)
    assert bins.iloc[2][["confidence", "accuracy", "accuracy_low"]].isna().all()
    assert len(reliability(answers)) == 15


def test_answers_without_a_confidence_are_left_out_and_counted():
    answers = pd.DataFrame({"confidence": [0.9, np.nan, None], "right": [1, 0, 1]})
    found = reliability(answers)
    assert (found["n"].sum(), set(found["left_out"])) == (1, {2})
    assert found["ece"].tolist() == pytest.approx([0.1] * 15)
    for nothing in (reliability(answers.iloc[1:]), reliability(answers.iloc[:0])):
        assert nothing["n"].sum() == 0
        assert nothing["ece"].isna().all()


# --- draws ----------------------------------------------------------------------------------------


def drawn(*frames):
    return pd.concat(
        [part.assign(draw=draw) for draw, part in enumerate(frames)], ignore_index=True
    )


SCORES = [[0.0, -1.0], [0.0, -1.0], [0.0, -2.0], [-1.0, 0.0]]


def test_draws_are_averaged_and_questions_counted_once():
    parts = [frame([0, 0, 0, 0], said, SCORES) for said in ([0, 0, 0, 0], [0, 0, 1, None])]
    result = measure_draws(drawn(*parts))
    alone = [measure(part) for part in parts]
    assert result["n"] == 4
    assert result["draws"] == 2
    assert result["accuracy"] == 0.75
    # standard deviation of 1 and 0.5
    assert result["accuracy_spread"] == pytest.approx(0.5 / math.sqrt(2))
    # three of four right: as many questions as there are, not as many as were asked
    assert (result["accuracy_low"], result["accuracy_high"]) == pytest.approx(wilson_by_hand(3, 4))
    assert result["invalid"] == 0.125
    assert result["nll"] == pytest.approx((alone[0]["nll"] + alone[1]["nll"]) / 2)
    assert result["ece"] == pytest.approx((alone[0]["ece"] + alone[1]["ece"]) / 2)
    # of one draw
    assert result["tokens"] == 12
    assert isinstance(result["tokens"], int)
    assert result["seconds"] == pytest.approx(2.0)


def test_one_draw_is_measured_as_without_draws():
    part = frame([0, 1, 0, 0], [0, 0, 0, 1], SCORES)
    expected = {**measure(part), "draws": 1, "accuracy_spread": 0.0}
    assert measure_draws(part) == expected
    assert measure_draws(drawn(part)) == pytest.approx(expected)


def test_equal_draws_have_no_spread():
    part = frame([0, 1, 0, 0], [0, 0, 0, 1], SCORES)
    result = measure_draws(drawn(part, part, part))
    assert result["accuracy_spread"] == 0
    assert {**result, "draws": 1} == pytest.approx(measure_draws(part))


@pytest.mark.parametrize("order", [1, -1])
def test_a_draw_without_likelihood_leaves_none(order):
    ruled_out = [[-math.inf, 0.0], *SCORES[1:]]
    parts = [frame([0] * 4, [0] * 4, scores) for scores in (SCORES, ruled_out)][::order]
    result = measure_draws(drawn(*parts))
    assert result["nll"] is None
    assert result["ece"] is None
    assert result["accuracy"] == 1


def test_draws_must_answer_the_same_questions():
    parts = [frame([0] * n, [0] * n, SCORES[:n]) for n in (4, 3)]
    with pytest.raises(ResultsError, match="p: the draws answered 4, 3 questions"):
        measure_draws(drawn(*parts), "p")


def test_a_draw_s_mistake_names_the_draw():
    parts = [frame([0], [0], [[0.0, value]]) for value in (-1.0, math.nan)]
    with pytest.raises(ResultsError, match="p, draw 1, prediction 0"):
        measure_draws(drawn(*parts), "p")
    with pytest.raises(ResultsError, match="holds no predictions"):
        measure_draws(frame([], [], []).assign(draw=0))
