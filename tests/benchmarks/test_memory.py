from __future__ import annotations

import pytest
import torch
from benchmarks.material import Settings
from benchmarks.memory import in_child, node, peak_bytes


def test_peak_grows_with_what_is_held():
    before = peak_bytes()
    held = torch.ones(64 << 20, dtype=torch.uint8)
    assert peak_bytes() >= before
    assert before > 1 << 20
    del held


def test_node_runs_to_its_end():
    node(Settings(quick=True))


@pytest.mark.slow
def test_child_reports_its_own_peak():
    assert 1e8 < in_child("--quick") < 3e9
