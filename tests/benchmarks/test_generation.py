from __future__ import annotations

import pytest
from benchmarks.generation import run
from benchmarks.material import Settings


def test_the_parts_add_up_to_the_whole():
    whole, *parts = run(Settings(quick=True)).rows
    assert [part.name for part in parts] == ["… encode", "… decode", "… write"]
    assert whole.ours.median == pytest.approx(sum(part.ours.median for part in parts))
    assert all(row.ours.median > 0 and row.met is None for row in (whole, *parts))
