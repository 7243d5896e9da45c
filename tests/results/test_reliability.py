"""Reliability bins against the calibration error."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from degaml_kedro.results.measures import calibration_error, wilson_interval
from degaml_kedro.results.reliability import reliability

shares = st.floats(0, 1) | st.integers(0, 15).map(lambda number: number / 15)


@given(st.lists(st.tuples(shares, st.integers(0, 1)), min_size=1, max_size=60))
def test_the_bins_add_up_to_the_calibration_error(pairs):
    frame = pd.DataFrame(pairs, columns=["confidence", "right"])
    found = reliability(frame)
    bins = found.bins[found.bins["n"] > 0]
    gaps = (bins["accuracy"] - bins["confidence"]).abs()
    assert bins["n"].sum() == found.n == len(pairs)
    assert found.ece == calibration_error(frame["confidence"], frame["right"])
    assert (gaps * bins["n"]).sum() / found.n == pytest.approx(found.ece, abs=1e-12)


def test_a_bin_holds_its_upper_edge_and_has_wilsons_interval():
    answers = pd.DataFrame({"confidence": [0.0, 0.2, 0.21, 0.25, 1.0], "right": [0, 1, 1, 0, 1]})
    bins = reliability(answers, bins=5).bins
    assert bins["n"].tolist() == [2, 2, 0, 0, 1]
    assert bins["lower"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    second = bins.iloc[1]
    assert (second["confidence"], second["accuracy"]) == (pytest.approx(0.23), 0.5)
    assert (second["accuracy_low"], second["accuracy_high"]) == wilson_interval(1, 2)
    assert bins.iloc[2][["confidence", "accuracy", "accuracy_low"]].isna().all()
    assert len(reliability(answers).bins) == 15


def test_answers_without_a_confidence_are_left_out_and_counted():
    answers = pd.DataFrame({"confidence": [0.9, np.nan, None], "right": [1, 0, 1]})
    found = reliability(answers)
    assert (found.n, found.left_out) == (1, 2)
    assert found.ece == pytest.approx(0.1)
    nothing = reliability(answers.iloc[1:])
    assert (nothing.n, nothing.left_out, nothing.ece) == (0, 2, None)
    assert nothing.bins["n"].sum() == 0
    assert reliability(answers.iloc[:0]).ece is None
