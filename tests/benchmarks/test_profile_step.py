from __future__ import annotations

from benchmarks.profile_step import main


def test_list_has_the_products(capsys):
    assert main(["--quick", "--batch-size", "2", "--steps", "1"]) == 0
    shown = capsys.readouterr().out
    assert "ms a step" in shown
    assert "| aten::mm |" in shown
