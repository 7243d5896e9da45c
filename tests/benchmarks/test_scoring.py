from __future__ import annotations

import pytest
from benchmarks.material import Settings, peer_model, suite_examples
from benchmarks.scoring import accuracies, agreement, compare, open_harness, prompt_for

from degaml_kedro.llm.base_model import load_base_model

pytest.importorskip("lm_eval", reason="the bench extra is not installed")


@pytest.mark.parametrize("mode", ["text", "letter"])
def test_answers_are_the_harnesss_in_float32(mode):
    parameters = Settings(quick=True).model.model_copy(update={"dtype": "float32"})
    base = load_base_model(parameters)
    harness = open_harness(base, peer_model(base), 8)
    examples = suite_examples(24)
    found = compare(base, harness, examples, prompt_for(mode), mode, 12, warm_up=True)
    assert found.gold == [example.gold for example in examples[12:]]
    assert found.our_answers == found.peer_answers
    assert accuracies(found)["same_answer"] == 1.0
    assert len(found.ours) == len(found.peer) == 1


def test_agreement():
    assert agreement([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75
    assert agreement([], []) == 0
