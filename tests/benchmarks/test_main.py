from __future__ import annotations

import json

import pytest
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.material import SkippedError
from benchmarks.measure import describe_machine, write


def test_quick_run_prints_a_table_and_writes_results(tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="the bench extra is not installed")
    pytest.importorskip("accelerate", reason="the bench extra is not installed")
    assert main(["--quick", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for name in BENCHMARKS:
        result = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert result["benchmark"] == name
        assert result["quick"] is True
        assert result["machine"]["packages"]["torch"]
        for row in result["rows"]:
            assert row["name"] in shown
            # a random model's speed says nothing
            assert row["met"] is None


def test_missing_extra_skips_with_a_sentence(capsys, monkeypatch):
    def missing(settings):
        raise SkippedError("lm_eval is not installed; run something")

    monkeypatch.setitem(BENCHMARKS, "scoring_text", missing)
    assert main(["scoring_text", "--quick"]) == 0
    assert (
        "skipped: scoring_text: lm_eval is not installed; run something" in capsys.readouterr().out
    )


def test_unknown_name_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["trainig"])
    assert "there is no benchmark 'trainig'" in capsys.readouterr().err


def test_results_are_short(tmp_path):
    content = {"rates": [1.23456789, 2e-7, 3.0], "none": None}
    write(tmp_path / "deep" / "x.json", content, describe_machine())
    text = (tmp_path / "deep" / "x.json").read_text(encoding="utf-8")
    assert "[ 1.2346, 2e-07, 3.0 ]" in text
    assert json.loads(text)["rates"] == [1.2346, 2e-07, 3.0]
