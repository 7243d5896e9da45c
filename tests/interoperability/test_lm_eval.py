"""lm-evaluation-harness finds our accuracy on our items, run as the documentation says."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from degaml_kedro.config.schema import PromptParameters, ScoringParameters
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.strategies.state import AdaptedState, Member
from tests.interoperability.helpers import (
    PROMPT,
    TEXT,
    Place,
    best,
    documented,
    margin,
    run_documented,
    same_up_to_a_constant,
    save,
    write_examples,
)

pytest.importorskip("lm_eval", reason="the bench extra is not installed: pip install '.[bench]'")
# a command line of its own, which imports for seconds
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("interoperability")]

SECTION = "lm-evaluation-harness"


def evaluate(place: Place, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Follow the documentation in a folder: the items, the task, the command.

    Returns:
        The harness's results and its samples.
    """
    for name in ("base", "adapter"):
        (folder / name).symlink_to(place.folder / name)
    monkeypatch.chdir(folder)
    write_examples(Path("examples.jsonl"), place.examples)
    run_documented(SECTION)
    Path("my_items.yaml").write_text(documented(SECTION, "yaml"), encoding="utf-8")
    program, *arguments = shlex.split(documented(SECTION, "sh"))
    assert program == "lm_eval"
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments],
        env={**os.environ, "HF_HOME": str(folder / "hub"), "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = Path("results").rglob("results_*.json")
    (samples,) = Path("results").rglob("samples_*.jsonl")
    return {
        "results": json.loads(results.read_text())["results"]["my_items"],
        "samples": [json.loads(line) for line in samples.read_text().splitlines()],
    }


def check(
    place: Place,
    found: dict[str, Any],
    tolerance: float,
    prompt: PromptParameters = PROMPT,
    scoring: ScoringParameters = TEXT,
) -> None:
    ours = score_examples(place.base, place.examples, prompt, scoring, place.adapter)
    samples = sorted(found["samples"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(ours)
    differing = []
    for number, (prediction, sample) in enumerate(zip(ours, samples, strict=True)):
        theirs = [float(response[0]) for response in sample["filtered_resps"]]
        assert int(sample["target"]) == prediction.gold
        assert same_up_to_a_constant(prediction.option_scores, theirs, tolerance), number
        if best(theirs) != prediction.predicted:
            # only what is a tie within the tolerance may differ
            assert margin(theirs) <= 2 * tolerance
            differing.append(number)
    right = sum(p.predicted == p.gold for p in ours)
    their_right = round(found["results"]["acc,none"] * len(ours))
    assert abs(right - their_right) <= len(differing)


def test_of_a_tiny_model_that_answers_in_letters(tiny, tmp_path, monkeypatch):
    prompt, scoring = PromptParameters(format="chat"), ScoringParameters(mode="letter")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "base").symlink_to(tiny.folder / "base")
    state = AdaptedState((Member(tiny.adapter),))
    save(tmp_path / "saved" / "adapter", tiny.base, state, prompt, scoring)
    letters = dataclasses.replace(tiny, folder=tmp_path / "saved")
    check(letters, evaluate(letters, tmp_path, monkeypatch), 1e-4, prompt, scoring)


def test_of_the_embedded_model(embedded, tmp_path, monkeypatch):
    found = evaluate(embedded, tmp_path, monkeypatch)
    check(embedded, found, 1e-3)
    # it has learned something, and the harness sees it: otherwise an adapter that was ignored would pass
    base = score_examples(embedded.base, embedded.examples, PROMPT, TEXT)
    before = sum(p.predicted == p.gold for p in base) / len(base)
    assert found["results"]["acc,none"] >= before + 0.1
