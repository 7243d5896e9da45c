"""What is to be measured on a card runs on a CPU, at tiny sizes; its numbers mean nothing there."""

from __future__ import annotations

import json

import pytest
import torch
from benchmarks.material import Settings
from benchmarks.paper_memory import SMALL

from benchmarks import gpu

QUICK = Settings(quick=True)


def test_the_decoder_learns_and_every_number_is_one():
    found = gpu.decoder_steps(SMALL, steps=1)
    assert found["parameters"] > 0
    numbers = [value for value in found.values() if isinstance(value, float)]
    assert len(numbers) > 5
    assert all(number > 0 for number in numbers)
    assert len(found["losses"]) == 1 + gpu.WARM_UP


def test_the_fast_path_is_compared_with_the_modules():
    found = gpu.fast_path(QUICK)
    assert found["recognised"]
    assert found["scores"]["equal"]
    assert found["losses"]["equal"]


def test_without_a_card_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([], tmp_path)
    assert "no CUDA device here; --device cpu --quick" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--parts", "smoke,chess"], tmp_path)
    assert "there is no part 'chess'" in capsys.readouterr().err


def test_a_part_that_fails_is_in_the_file_and_the_others_are_done(tmp_path, monkeypatch):
    ended = {"smoke": {"error": "exit status 1: no"}, "scoring": {"tokens_per_second": 1.0}}
    monkeypatch.setattr(gpu, "in_child", lambda name, quick, device: ended[name])
    asked = ["--device", "cpu", "--parts", "smoke,scoring", "--output", str(tmp_path)]
    assert gpu.main(asked, tmp_path) == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"] == ended
