"""What the configuration allows is verified in float32 at load; what fails goes a slower way, and is told."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import BertConfig

from degaml_kedro.config.schema import BaseModelParameters, PromptParameters, ScoringParameters
from degaml_kedro.llm.base_model import ModelError, load_base_model
from degaml_kedro.llm.fast import decoder
from degaml_kedro.llm.fast.decoder import FastDecoder, first_blocks
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.tasks.example import make_example
from tests.llm.test_any_model import GEMMA, MODELS, made, opened


def loaded(name, folder, caplog, dtype="float32", **given):
    """A model by its name in the table, and what was logged at loading."""
    kind, usual, _ = MODELS[name]
    made(getattr(transformers, kind)(**{**usual, **given}), folder)
    source = {"kind": "folder", "path": str(folder)}
    parameters = {"source": source, "dtype": dtype, "device": "cpu"}
    with caplog.at_level(logging.WARNING, "degaml_kedro.llm"):
        return load_base_model(BaseModelParameters.model_validate(parameters))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["Gemma 2", "Granite", "LFM2", "Cohere 2", "Phi", "DeepSeek-V3"])
def test_what_is_not_right_packed_is_found_whatever_the_configuration_says(
    name, dtype, tmp_path, caplog, monkeypatch
):
    class Anything:
        def __contains__(self, name):
            return True

    monkeypatch.setattr(decoder, "_PACKED", Anything())
    monkeypatch.setattr(decoder, "_CAPS", ())
    if name == "Phi":
        monkeypatch.setattr(decoder, "obstacle_to_packing", lambda model: None)
    base = loaded(name, tmp_path / "model", caplog, dtype)
    assert base.fast is None
    assert "row by row, which takes several times as long: packed, its logits" in caplog.text


def test_a_wrong_fused_decoder_is_found(tmp_path, caplog, monkeypatch):
    right = decoder.decoder_stack
    monkeypatch.setattr(decoder, "decoder_stack", lambda model: replace(right(model), eps=0.1))
    base = loaded("Llama", tmp_path / "model", caplog, "bfloat16")
    assert base.fast is not None
    assert base.fast.stack is None
    assert "by the library's modules, which takes up to 1.7 times as long" in caplog.text


@pytest.mark.parametrize("name", ["Mistral, window 32", "Gemma 3", "Phi-3, longrope"])
def test_a_window_that_is_overlooked_is_found(name, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(FastDecoder, "takes", lambda self, pack: True)
    assert loaded(name, tmp_path / "model", caplog).fast is None


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("Gemma 3", {"final_logit_softcapping": 5.0}, "configuration sets final_logit_softcapping"),
        ("Gemma 3", {"attn_logit_softcapping": 5.0}, "configuration sets attn_logit_softcapping"),
        ("BLOOM", {}, "packing is not proven for this architecture"),
    ],
)
def test_what_the_configuration_rules_out_is_told_in_one_line(name, given, told, tmp_path, caplog):
    base = loaded(name, tmp_path / "model", caplog, **given)
    assert base.fast is None
    (line,) = (record.getMessage() for record in caplog.records)
    assert "is computed row by row, which takes several times as long" in line
    assert told in line
    assert ("grows with the square of the length" in line) == (name == "BLOOM")


@pytest.mark.parametrize(
    ("name", "given", "fused"),
    [
        ("Llama", {"hidden_act": "gelu"}, False),
        ("Llama", {"attention_bias": True, "mlp_bias": True}, True),
        ("SmolLM3", {"no_rope_layers": [1, 1]}, True),
        ("SmolLM3", {"no_rope_layers": [1, 0]}, False),
        ("StableLM", {"qk_layernorm": True}, False),
    ],
)
def test_the_fused_decoder_is_for_one_kind_of_block(name, given, fused, tmp_path, caplog):
    base = loaded(name, tmp_path / "model", caplog, **given)
    assert base.fast is not None
    assert (base.fast.stack is not None) == fused
    assert not caplog.records


def test_a_model_gives_the_same_scores_without_the_fast_way(tmp_path, caplog, monkeypatch):
    fast = loaded("Llama", tmp_path / "fast", caplog)
    monkeypatch.setattr("degaml_kedro.llm.base_model.fast_decoder", lambda base: "it is not asked")
    plain = loaded("Llama", tmp_path / "plain", caplog)
    assert fast.fast is not None
    assert plain.fast is None
    assert "it is not asked" in caplog.text
    asked = [make_example(f"Which one is {i}?", ["a", "b b", "c"], 0) for i in range(3)]
    scoring = ScoringParameters(mode="text", normalization="tokens")
    for one, other in zip(
        score_examples(fast, asked, PromptParameters(format="plain"), scoring),
        score_examples(plain, asked, PromptParameters(format="plain"), scoring),
        strict=True,
    ):
        assert one.option_scores == pytest.approx(other.option_scores, abs=1e-4)


def test_a_model_whose_tokens_see_what_comes_later_is_refused(tmp_path, caplog):
    config = BertConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
    )
    with pytest.raises(ModelError, match="cannot be used: its tokens look at those behind them"):
        opened(made(config, tmp_path / "bert"))
    with pytest.raises(ModelError, match="cannot be used: its tokens look at those behind them"):
        loaded("Gemma 3", tmp_path / "model", caplog, use_bidirectional_attention=True)


def test_the_verified_copy_has_a_block_of_each_kind_and_nothing_of_the_model():
    kinds = ["sliding_attention"] * 4 + ["full_attention"] + ["sliding_attention"] * 3
    given = {**GEMMA, "num_hidden_layers": 8, "layer_types": kinds, "vocab_size": 1000}
    config = transformers.Gemma3TextConfig(**given, sliding_window=512)
    torch.manual_seed(0)
    model = transformers.Gemma3ForCausalLM(config).eval().to(torch.bfloat16)
    small = first_blocks(model)
    assert len(small.model.layers) == 5
    assert small.dtype == torch.float32
    assert small.config.sliding_window == 8
    assert model.config.sliding_window == 512
    assert len(small.get_input_embeddings().weight) == 256
    assert torch.equal(
        small.model.layers[4].mlp.up_proj.weight, model.model.layers[4].mlp.up_proj.weight.float()
    )
    mine = {weights.data_ptr() for weights in small.parameters()}
    assert not mine & {weights.data_ptr() for weights in model.parameters()}


def test_what_reads_pictures_is_not_copied():
    kind, given, _ = MODELS["Gemma 3, multimodal"]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**given))
    assert not any("vision" in name for name, _ in first_blocks(model).named_parameters())
    assert any("vision" in name for name, _ in model.named_parameters())
