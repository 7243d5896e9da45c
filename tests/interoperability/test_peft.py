"""PEFT opens what we save, and computes what we compute."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from degaml_kedro.adapters.adapter import AdapterConfig, load_peft_folder
from degaml_kedro.config.schema import LoraParameters
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.strategies.state import AdaptedState, Member, Steering, Vote
from tests.interoperability.helpers import (
    PROMPT,
    TEXT,
    Place,
    best,
    log_probabilities,
    margin,
    run_documented,
    same_up_to_a_constant,
    save,
)
from tests.llm.helpers import random_adapter


def check(place: Place, model: torch.nn.Module, tolerance: float, count: int) -> None:
    examples = place.examples[:count]
    ours = score_examples(place.base, examples, PROMPT, TEXT, place.adapter)
    for example, prediction in zip(examples, ours, strict=True):
        theirs = log_probabilities(model.eval(), place.base.tokenizer, example, place.base)
        assert same_up_to_a_constant(prediction.option_scores, theirs, tolerance)
        if margin(theirs) > 2 * tolerance:
            assert prediction.predicted == best(theirs)


def test_the_documented_lines_give_our_scores(tiny, monkeypatch, tmp_path):
    monkeypatch.chdir(tiny.folder)
    names = run_documented("PEFT")
    assert isinstance(names["model"], PeftModel)
    check(tiny, names["model"], 1e-4, len(tiny.examples))
    # the adapter matters: the base model alone answers otherwise
    plain = AutoModelForCausalLM.from_pretrained("base")
    with pytest.raises(AssertionError):
        check(tiny, plain, 1e-4, len(tiny.examples))
    monkeypatch.chdir(tmp_path)
    run_documented("PEFT", 1, model=names["model"])
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert not any("lora" in name for name, _ in merged.named_modules())
    check(tiny, merged, 1e-3, len(tiny.examples))


@pytest.mark.slow
@pytest.mark.xdist_group("interoperability")
def test_on_the_embedded_model(embedded):
    plain = AutoModelForCausalLM.from_pretrained(embedded.folder / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(embedded.folder / "adapter"))
    check(embedded, model, 1e-3, 5)
    check(embedded, model.merge_and_unload(), 1e-3, 5)


def test_of_several_adapters_peft_sees_the_first_and_the_rest_is_beside_it(tiny, tmp_path):
    members = tuple(
        Member(random_adapter(tiny.base, LoraParameters(), seed=seed), torch.ones(1, 4))
        for seed in (7, 8)
    )
    vectors = torch.ones(2, tiny.base.model.config.hidden_size)
    state = AdaptedState(
        members, Vote("majority_vote"), Steering(1, 1e-3, scope="task", vectors=vectors)
    )
    save(tmp_path / "adapter", tiny.base, state)
    first = Place(tmp_path, tiny.base, members[0].adapter, tiny.examples)
    plain = AutoModelForCausalLM.from_pretrained(tiny.folder / "base")
    check(first, PeftModel.from_pretrained(plain, str(tmp_path / "adapter")), 1e-4, 4)
    beside = sorted(path.parent for path in (tmp_path / "adapter").rglob("adapter_config.json"))
    assert len(beside) == 3
    for folder, member in zip(beside[1:], members, strict=True):
        found = load_peft_folder(folder).tensors
        assert all(torch.equal(found[name], t) for name, t in member.adapter.tensors.items())
    assert "PEFT sees a part of it" in (tmp_path / "adapter" / "README.md").read_text()
    assert json.loads((tmp_path / "adapter" / "degaml.json").read_text())["more_than_peft"]


@pytest.mark.parametrize(("alpha", "written"), [(16.0, "16"), (12.5, "12.5")])
def test_a_whole_alpha_is_written_as_an_integer(tiny, tmp_path, alpha, written):
    adapter = tiny.adapter
    config = AdapterConfig(8, alpha, adapter.config.target_modules, adapter.config.base_model)
    state = AdaptedState((Member(type(adapter)(config, adapter.tensors)),))
    save(tmp_path / "adapter", tiny.base, state)
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert f'"lora_alpha": {written},' in text
    assert load_peft_folder(tmp_path / "adapter").config.alpha == alpha
