from __future__ import annotations

from benchmarks.fused import run
from benchmarks.material import Settings


def test_both_ways_have_a_rate():
    rows = run(Settings(quick=True)).rows
    assert len(rows) == 2
    assert all(row.ratio is not None and row.ours.median > 0 for row in rows)
