"""Base models of many kinds: scores are those of the library's own logits, or the model is refused by name."""

from __future__ import annotations

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)
from transformers.utils import chat_template_utils

from degaml_kedro.llm.base_model import ModelError, load_base_model
from degaml_kedro.llm.finetune import target_layers
from degaml_kedro.llm.prompting import PromptError, encode_questions, render_prompt
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.parameters import (
    BaseModelParameters,
    LoraParameters,
    PromptParameters,
    ScoringParameters,
)
from degaml_kedro.tasks.example import make_example
from tests.llm.helpers import tiny_base

SMALL = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {**SMALL, "head_dim": 8, "query_pre_attn_scalar": 8}
COMPUTED = {
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, sliding_window=4096),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "gemma3": Gemma3TextConfig(**GEMMA, sliding_window=4096),
    "olmo2": Olmo2Config(**SMALL),
    "smollm3": SmolLM3Config(**SMALL),
    "stablelm": StableLmConfig(**SMALL),
}
REFUSED = {
    "a head with a bias": PhiConfig(**SMALL),
    "a scaled head": GraniteConfig(**SMALL, logits_scaling=4.0),
    "a scaled head, too": CohereConfig(**SMALL, logit_scale=0.25),
    "and another": Cohere2Config(**SMALL, logit_scale=0.25),
    "caps": Gemma2Config(**GEMMA, sliding_window=4096),
    "a cap in the attention": Gemma2Config(
        **GEMMA, sliding_window=4096, final_logit_softcapping=None, attn_logit_softcapping=1.0
    ),
    "convolutions": Lfm2Config(
        **SMALL, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
    ),
    "a recurrence": MambaConfig(vocab_size=259, hidden_size=32, state_size=8, num_hidden_layers=2),
}
PLAIN = PromptParameters(format="plain", options="hidden")
TEXT = ScoringParameters(mode="text", normalization="tokens")
SWIMS = make_example("Which bird swims and cannot fly at all?", ["a penguin", "an old owl"], 0)


def made(config, folder, tokenizer=None):
    """A random model, saved with a tokenizer of 259 tokens."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    model.save_pretrained(folder)
    (tokenizer or tiny_base().tokenizer).save_pretrained(folder)
    return folder


def opened(folder):
    source = {"kind": "folder", "path": str(folder)}
    return load_base_model(
        BaseModelParameters.model_validate({"source": source, "dtype": "float32", "device": "cpu"})
    )


@pytest.mark.parametrize("name", COMPUTED)
def test_scores_are_those_of_the_librarys_own_logits(name, tmp_path):
    base = opened(made(COMPUTED[name], tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, attn_implementation="eager"
    )
    (asked,) = encode_questions(base, [SWIMS], PLAIN, "text")
    (found,) = score_examples(base, [SWIMS], PLAIN, TEXT)
    for answer, score in zip(asked.answers, found.option_scores, strict=True):
        with torch.inference_mode():
            logs = model(torch.tensor([asked.prompt + answer])).logits[0].log_softmax(-1)
        first = len(asked.prompt) - 1
        theirs = sum(logs[first + i, token].item() for i, token in enumerate(answer)) / len(answer)
        assert score == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_scored_wrong_is_refused(name, tmp_path):
    folder = made(REFUSED[name], tmp_path / "model")
    with pytest.raises(ModelError, match="cannot be used yet: its scores would be off"):
        opened(folder)


def test_a_prompt_longer_than_the_window_is_refused(tmp_path):
    base = opened(made(MistralConfig(**SMALL, sliding_window=32), tmp_path / "model"))
    assert base.context_length > base.longest_input == 32
    with pytest.raises(PromptError, match="the window of .* is 32"):
        encode_questions(base, [SWIMS], PLAIN, "text")
    short = make_example("Which?", ["a", "b"], 0)
    assert encode_questions(base, [short], PLAIN, "text")


def test_of_a_multimodal_model_the_text_model_is_adapted(tmp_path):
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(
        text_config={**GEMMA, "max_position_embeddings": 8192}, vision_config=vision, mm_tokens_per_image=4,
        boi_token_index=3, eoi_token_index=4, image_token_index=5,
    )  # fmt: skip
    base = opened(made(config, tmp_path / "model"))
    assert base.context_length == 8192
    names = list(target_layers(base, LoraParameters(rank=2)))
    assert len(names) == 14
    assert all("language_model" in name for name in names)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer .*git lfs pull"),
        (b"", "is not whole .*download it again"),
        (None, "is not whole .*download it again"),
    ],
)
def test_weights_that_are_not_whole_are_named(content, told, tmp_path):
    folder = made(LlamaConfig(**SMALL), tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ModelError, match=f"{file} {told}"):
        opened(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "merges.txt"])
def test_what_changes_a_tokens_id_changes_the_fingerprint(name, tmp_path):
    folder = made(LlamaConfig(**SMALL), tmp_path / "model")
    (folder / name).write_text("{{ messages }}")
    first = opened(folder).fingerprint
    other = made(LlamaConfig(**SMALL), tmp_path / "other")
    (other / name).write_text("{{ messages }} ")
    assert opened(other).fingerprint != first


@pytest.mark.parametrize(
    "frame", ["<|im_start|> $A <|im_end|>", "$A <|im_end|>", "<|im_start|> $A"]
)
def test_what_a_tokenizer_appends_is_no_part_of_a_prompt(frame, tmp_path):
    tokenizer = load_base_model(
        BaseModelParameters.model_validate(
            {"source": {"kind": "random", "seed": 77}, "dtype": "float32", "device": "cpu"}
        )
    ).tokenizer
    specials = [
        (name, place) for place, name in ((1, "<|im_start|>"), (2, "<|im_end|>")) if name in frame
    ]
    core = tokenizer.backend_tokenizer
    core.post_processor = TemplateProcessing(single=frame, special_tokens=specials)
    base = opened(made(LlamaConfig(**SMALL), tmp_path / "model", tokenizer))
    (asked,) = encode_questions(base, [SWIMS], PLAIN, "text")
    assert (asked.prompt[0] == 1) == ("im_start" in frame)
    assert 2 not in asked.prompt
    texts = [base.tokenizer.decode(answer) for answer in asked.answers]
    assert texts == [" a penguin", " an old owl"]


def test_a_template_that_writes_todays_date_writes_one_date(tmp_path, monkeypatch):
    folder = made(LlamaConfig(**SMALL), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(
        "Today: {{ strftime_now('%d %b %Y') }}\n{{ messages[0]['content'] }}"
    )
    base = opened(folder)
    prompts = set()
    today = chat_template_utils.datetime
    for year in (2031, 2032):
        day = type(
            "Day", (today,), {"now": classmethod(lambda cls, tz=None, y=year: today(y, 1, 2))}
        )
        monkeypatch.setattr(chat_template_utils, "datetime", day)
        prompts.add(render_prompt(SWIMS, PromptParameters(format="chat", options="hidden"), base))
    assert len(prompts) == 1
    assert "26 Jul 2024" in prompts.pop()


def test_a_gguf_file_that_cannot_be_converted_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DEGAML_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "cut.gguf"
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    source = {"kind": "folder", "path": str(tmp_path), "gguf_file": file.name}
    with pytest.raises(ModelError, match=f"{file} cannot be converted .*safetensors"):
        load_base_model(
            BaseModelParameters.model_validate(
                {"source": source, "dtype": "float32", "device": "cpu"}
            )
        )
    assert not list((tmp_path / "cache" / "models").iterdir())
