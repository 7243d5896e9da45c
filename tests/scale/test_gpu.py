"""Every part of what is to be measured on a card, on a CPU at tiny sizes, in processes of their own."""

from __future__ import annotations

import json

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_every_part_runs(tmp_path):
    pytest.importorskip("lm_eval")
    asked = ["--quick", "--device", "cpu", "--output", str(tmp_path)]
    assert gpu.main(asked, tmp_path) == 0
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts.keys() == gpu.PARTS.keys()
    assert not [name for name, part in parts.items() if "error" in part]
