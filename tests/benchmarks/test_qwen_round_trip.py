from __future__ import annotations

import pytest
from benchmarks.material import Settings, SkippedError
from benchmarks.qwen_round_trip import FOLDER, STEPS, run


def test_adapters_and_logits_come_back_as_they_were():
    result = run(Settings(quick=True))
    share, difference, *_ = result.rows
    assert share.ours.median == 100.0
    assert difference.ours.largest == 0.0
    assert result.details["checkpoints"] == STEPS
    assert result.details["logits_moved_by_the_adapter"] > 0


def test_without_the_model_it_is_skipped(monkeypatch, tmp_path):
    monkeypatch.delenv(FOLDER, raising=False)
    with pytest.raises(SkippedError, match=f"{FOLDER} is not set; name a folder"):
        run(Settings())
    monkeypatch.setenv(FOLDER, str(tmp_path / "nowhere"))
    with pytest.raises(SkippedError, match="which is not a folder"):
        run(Settings())
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(SkippedError, match="neither config.json nor a GGUF file"):
        run(Settings())
