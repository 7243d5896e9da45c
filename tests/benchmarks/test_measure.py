from __future__ import annotations

import pytest
import torch
from benchmarks.measure import OtherLoad, Result, Row, Spread, compared, now, table


def test_spread_is_median_and_range():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)


def test_ratios_are_taken_within_pairs():
    # the second pair met a machine half as fast; its ratio is the same
    row = compared("speed", "tokens/s", [30.0, 15.0], [10.0, 5.0], at_least=2.0)
    assert row.ratio == Spread(3.0, 3.0, 3.0, 2)
    assert row.met is True


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (Row("a", "GB", Spread.of([2.0]), at_most=3.0), True),
        (Row("a", "GB", Spread.of([4.0]), at_most=3.0), False),
        (Row("a", "GB", Spread.of([4.0])), None),
        (Row("a", "x", Spread.of([9.0]), Spread.of([9.0]), Spread.of([1.0]), at_least=1.5), False),
    ],
)
def test_targets_are_for_the_ratio_where_there_is_one(row, met):
    assert row.met is met


def test_table_shows_misses_and_skips():
    results = [
        Result("memory", [Row("peak", "GB", Spread.of([4.0]), at_most=3.0)]),
        Result("scoring", skipped="lm_eval is not installed"),
    ]
    text = table(results)
    assert "| peak | 4 GB | – | – | ≤ 3 | NO |" in text
    assert "skipped: scoring: lm_eval is not installed" in text
    assert results[0].as_json()["rows"][0]["met"] is False


def test_load_of_others_is_a_share():
    share = OtherLoad().share()
    assert share is None or share >= 0


def test_clock_runs():
    assert now(torch.device("cpu")) <= now(torch.device("cpu"))
