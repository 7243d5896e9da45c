from __future__ import annotations

import pytest
from benchmarks.material import Settings
from benchmarks.paper_decoder import in_child, run


def test_a_quick_step_has_times_and_finite_gradients():
    result = run(Settings(quick=True))
    assert [row.unit for row in result.rows] == ["GB", "s", "s", "GFLOP/s"]
    assert all(row.ours.median > 0 and row.met is None for row in result.rows)
    assert result.details["gradients_are_finite"]
    assert 0.1 < result.details["tokens_mean_square"] < 10


@pytest.mark.slow
def test_child_reports_its_own_peak():
    assert 1e8 < in_child("--quick")["peak_bytes"] < 3e9
