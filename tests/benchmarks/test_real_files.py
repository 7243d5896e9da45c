from __future__ import annotations

import json

import pytest
from benchmarks.material import suite_examples
from benchmarks.real_files import main

pytest.importorskip("lm_eval", reason="the bench extra is not installed")


@pytest.fixture
def folder(tmp_path):
    for name in ("ARC-e", "PIQA"):
        records = [
            {"prompt": e.prompt, "response": e.response, "system": ""} for e in suite_examples(9)
        ]
        (tmp_path / f"{name}_test.json").write_text(json.dumps(records), encoding="utf-8")
    return tmp_path


def test_both_sides_agree_in_float32(folder, capsys):
    output = folder / "out" / "found.json"
    options = ["--quick", "--dtype", "float32", "--limit", "6", "--output", str(output)]
    assert main(["--datasets", str(folder), *options]) == 0
    found = json.loads(output.read_text(encoding="utf-8"))["results"]
    assert [(line["file"], line["metric"]) for line in found] == [
        ("ARC-e", "acc"),
        ("ARC-e", "acc_norm"),
        ("PIQA", "acc"),
        ("PIQA", "acc_norm"),
    ]
    for line in found:
        assert line["items"] == 6
        assert line["same_answer"] == 1.0
        assert line["accuracy"] == line["harness_accuracy"]
    assert "| ARC-e | acc | 6 |" in capsys.readouterr().out


def test_missing_file_is_a_sentence(tmp_path, capsys):
    assert main(["--datasets", str(tmp_path), "--quick"]) == 2
    assert "ARC-e_test.json" in capsys.readouterr().err
