"""Transformers' text-generation pipeline continues a prompt as we do."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from degaml_kedro.config.schema import ScoringParameters
from degaml_kedro.llm.prompting import render_prompt
from degaml_kedro.llm.scoring import score_examples
from tests.interoperability.helpers import PROMPT, Place, run_documented

NEW_TOKENS = 8
GENERATE = ScoringParameters(mode="generate", max_new_tokens=NEW_TOKENS)


def check(place: Place, write, count: int) -> list[str]:
    examples = place.examples[:count]
    ours = score_examples(place.base, examples, PROMPT, GENERATE, place.adapter)
    texts = []
    for example, prediction in zip(examples, ours, strict=True):
        (found,) = write(
            render_prompt(example, PROMPT, place.base),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            return_full_text=False,
        )
        texts.append(found["generated_text"].strip())
        assert texts[-1] == prediction.text
    return texts


@pytest.mark.parametrize("number", [0, 1], ids=["load_adapter", "one line"])
def test_the_documented_lines_continue_as_we_do(tiny, monkeypatch, number):
    monkeypatch.chdir(tiny.folder)
    names = run_documented("Transformers", number, pipeline=pipeline)
    texts = check(tiny, names["write"], 6)
    assert any(texts)
    plain = score_examples(tiny.base, tiny.examples[:6], PROMPT, GENERATE)
    assert [prediction.text for prediction in plain] != texts


@pytest.mark.slow
@pytest.mark.xdist_group("interoperability")
def test_on_the_embedded_model(embedded):
    place = str(embedded.folder / "base")
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    model.load_adapter(str(embedded.folder / "adapter"))
    tokenizer = AutoTokenizer.from_pretrained(place)
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert all(check(embedded, write, 4))
