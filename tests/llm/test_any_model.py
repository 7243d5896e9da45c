"""Base models of many kinds, tiny and random: scores and training are those of the library and of PEFT."""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, AutoModelForCausalLM, LlamaConfig, RwkvConfig
from transformers.utils import chat_template_utils

from degaml_kedro.adapters.adapter import save_peft_folder, unflatten
from degaml_kedro.config.schema import (
    BaseModelParameters,
    LoraParameters,
    Phase,
    PromptParameters,
    RewardParameters,
    ScoringParameters,
    TrainingParameters,
)
from degaml_kedro.llm.base_model import ModelError, load_base_model
from degaml_kedro.llm.finetune import (
    answer_loss,
    answer_sequences,
    fine_tune,
    target_layers,
)
from degaml_kedro.llm.generation import write_texts
from degaml_kedro.llm.in_context import PrefixMemory, compare_in_context, encode_in_context
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.prompting import PromptError, encode_questions, render_prompt
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.indicators import measure_indicators
from degaml_kedro.policy.trial import Attempt, try_action
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.generated import generated_context, generated_state, read_questions
from degaml_kedro.strategies.latent import latent_vectors
from degaml_kedro.strategies.state import Steering
from degaml_kedro.tasks.example import Question, make_example
from tests.checkpoint.helpers import tiny_generator, tiny_settings
from tests.conftest import ROOT
from tests.llm.helpers import random_adapter, tiny_base
from tests.strategies.helpers import examples as questions_with_answers
from tests.strategies.test_writing import ACTIONS

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
HEADS = {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 259}
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
EAGER = {"Gemma2ForCausalLM", "BloomForCausalLM", "MambaForCausalLM"}
# by name: the class of its configuration, what it is given, and how it is computed
MODELS: dict[str, tuple[str, dict[str, object], str]] = {
    "Llama": ("LlamaConfig", SMALL, "fused"),
    "Mistral": ("MistralConfig", {**SMALL, "sliding_window": None}, "fused"),
    "Mistral, window 32": ("MistralConfig", {**SMALL, "sliding_window": 32}, "fused"),
    "Ministral 3": ("Ministral3Config", {**SMALL, "head_dim": 8}, "packed"),
    "Mixtral": ("MixtralConfig", {**SMALL, "num_local_experts": 4}, "packed"),
    "Qwen2": ("Qwen2Config", SMALL, "fused"),
    "Qwen3": ("Qwen3Config", {**SMALL, "head_dim": 8}, "packed"),
    "Qwen3-MoE": (
        "Qwen3MoeConfig",
        {**SMALL, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        "packed",
    ),
    "Gemma": ("GemmaConfig", {**SMALL, "head_dim": 8}, "packed"),
    "Gemma 2": ("Gemma2Config", {**GEMMA, "sliding_window": 32}, "row by row"),
    "Gemma 3": ("Gemma3TextConfig", {**GEMMA, "sliding_window": 32}, "packed"),
    "Gemma 3, multimodal": (
        "Gemma3Config",
        {
            "text_config": {**GEMMA, "sliding_window": 32, "max_position_embeddings": 8192}, "vision_config": VISION,
            "mm_tokens_per_image": 4, "boi_token_index": 3, "eoi_token_index": 4, "image_token_index": 5,
        },
        "packed",
    ),
    "Phi": ("PhiConfig", SMALL, "row by row"),
    "Phi-3": ("Phi3Config", SMALL, "packed"),
    "Phi-3, longrope": (
        "Phi3Config",
        {
            **SMALL, "original_max_position_embeddings": 40, "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                "long_factor": [4.0, 3.0, 2.0, 5.0],
            },
        },
        "packed",
    ),
    "Granite": ("GraniteConfig", {**SMALL, "logits_scaling": 4.0}, "row by row"),
    "Cohere": ("CohereConfig", {**SMALL, "logit_scale": 0.25}, "row by row"),
    "Cohere 2": ("Cohere2Config", {**SMALL, "logit_scale": 0.25, "sliding_window": 32}, "row by row"),
    "OLMo": ("OlmoConfig", SMALL, "packed"),
    "OLMo 2": ("Olmo2Config", SMALL, "packed"),
    "OLMo 3": ("Olmo3Config", {**SMALL, "sliding_window": 32}, "packed"),
    "SmolLM3": ("SmolLM3Config", {**SMALL, "no_rope_layers": [1, 0]}, "packed"),
    "StableLM": ("StableLmConfig", SMALL, "packed"),
    "Starcoder2": ("Starcoder2Config", {**SMALL, "sliding_window": None}, "packed"),
    "Falcon": ("FalconConfig", {**HEADS, "new_decoder_architecture": False}, "row by row"),
    "Falcon-H1": (
        "FalconH1Config",
        {
            **SMALL, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8,
            "mamba_chunk_size": 16,
        },
        "row by row",
    ),
    "GPT-2": ("GPT2Config", {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 259}, "packed"),
    "GPT-NeoX": ("GPTNeoXConfig", {**HEADS, "intermediate_size": 64}, "packed"),
    "OPT": ("OPTConfig", {**HEADS, "ffn_dim": 64, "word_embed_proj_dim": 32}, "packed"),
    "BLOOM": ("BloomConfig", {"hidden_size": 32, "n_head": 4, "n_layer": 2, "vocab_size": 259}, "row by row"),
    "Mamba": (
        "MambaConfig",
        {"vocab_size": 259, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2},
        "row by row",
    ),
    "LFM2": (
        "Lfm2Config",
        {**SMALL, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        "row by row",
    ),
    "DeepSeek-V3": (
        "DeepseekV3Config",
        {
            **{**SMALL, "num_key_value_heads": 4}, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
            "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        },
        "row by row",
    ),
    "Llama 4": (
        "Llama4TextConfig",
        {**SMALL, "intermediate_size_mlp": 64, "head_dim": 8, "num_local_experts": 2, "max_position_embeddings": 512},
        "row by row",
    ),
    "GLM-4": ("Glm4Config", {**SMALL, "head_dim": 8}, "packed"),
}  # fmt: skip
PLAIN = PromptParameters(format="plain", options="hidden")
CHAT = PromptParameters(format="chat", options="hidden")
TEXT = ScoringParameters(mode="text", normalization="tokens")
WRITTEN = ScoringParameters(mode="generate", extraction="text", max_new_tokens=6)
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


def library(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def scores_by_library(model, asked):
    found = []
    for answer in asked.answers:
        with torch.inference_mode():
            logs = model(torch.tensor([asked.prompt + answer])).logits[0].log_softmax(-1)
        first = len(asked.prompt) - 1
        found.append(sum(logs[first + i, token].item() for i, token in enumerate(answer)))
    return [total / len(answer) for total, answer in zip(found, asked.answers, strict=True)]


def texts_by_library(model, encoded):
    """What the model writes behind each prompt alone."""
    return [
        model.generate(
            input_ids=torch.tensor([one.prompt]), attention_mask=torch.ones(1, len(one.prompt)),
            max_new_tokens=WRITTEN.max_new_tokens, do_sample=False, pad_token_id=0, eos_token_id=2,
        )[0, len(one.prompt) :].tolist()
        for one in encoded
    ]  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """A model's name, folder and how it is computed, with what is loaded from there."""
    kind, given, way = MODELS[request.param]
    folder = made(getattr(transformers, kind)(**given), tmp_path_factory.mktemp("models") / "model")
    return request.param, folder, way, opened(folder)


def test_the_table_of_the_documentation_is_this_one():
    page = (ROOT / "docs/your-own-model.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (fused|packed|row by row) \|$", page, re.MULTILINE)
    assert rows == [(name, way) for name, (_, _, way) in MODELS.items()]


def test_it_is_computed_the_fastest_way_that_is_right(model):
    _, _, way, base = model
    if base.fast is None:
        assert way == "row by row"
    else:
        assert way == ("packed" if base.fast.stack is None else "fused")
    assert (base.fast is None) == (base.readout is not None)
    if base.fast is None:
        # caps and biases in the scores are not in scaled_dot_product_attention
        kind = "sdpa" if base.model._supports_sdpa else "eager"
        assert base.model.config.get_text_config()._attn_implementation == kind
        assert (kind == "eager") == (type(base.model).__name__ in EAGER)


def test_scores_are_those_of_the_librarys_own_logits(model):
    _, folder, _, base = model
    short = make_example("Which?", ["a", "b", "or c"], 0)
    plain = library(folder)
    for examples in ([SWIMS], [short, SWIMS]):
        for example, found in zip(
            examples, score_examples(base, examples, PLAIN, TEXT), strict=True
        ):
            (asked,) = encode_questions(base, [example], PLAIN, "text")
            theirs = scores_by_library(plain, asked)
            assert found.option_scores == pytest.approx(theirs, rel=1e-4)


def test_examples_in_the_prompt_are_read_as_one_text(model):
    _, folder, _, base = model
    shown = [
        make_example("Which is hot?", ["fire", "ice"], 0),
        make_example("Which is cold?", ["fire", "ice"], 1),
    ]
    asked = encode_in_context(base, [Question.of(SWIMS)], [shown], PLAIN, "text", shared=True)
    with active_lora(None):
        found = compare_in_context(base, asked, PLAIN, TEXT, PrefixMemory()).scores[0][0]
    assert found == pytest.approx(scores_by_library(library(folder), asked.encoded[0]), rel=1e-4)


def test_greedy_text_is_the_librarys(model):
    _, folder, _, base = model
    asked = [Question.of(make_example("Which?", ["a", "b"], 0)), Question.of(SWIMS)]
    encoded = encode_questions(base, asked, PLAIN, "text")
    found = [list(one.ids) for one in write_texts(base, encoded, PLAIN, WRITTEN)]
    assert found == texts_by_library(library(folder), encoded)


def test_a_model_that_reads_padding_as_tokens_writes_what_it_writes_alone(tmp_path):
    config = RwkvConfig(
        vocab_size=259, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2
    )
    base = opened(made(config, tmp_path / "model"))
    asked = [Question.of(make_example("Which?", ["a", "b"], 0)), Question.of(SWIMS)]
    encoded = encode_questions(base, asked, PLAIN, "text")
    found = [list(one.ids) for one in write_texts(base, encoded, PLAIN, WRITTEN)]
    assert found == texts_by_library(library(tmp_path / "model"), encoded)


def test_threads_do_not_turn_each_other_s_positions(tmp_path):
    """With longrope the library keeps the frequencies of the last call in a buffer."""
    kind, given, _ = MODELS["Phi-3, longrope"]
    base = opened(made(getattr(transformers, kind)(**given), tmp_path / "model"))
    turn = base.model.base_model.rotary_emb
    lengths = (9, 70)  # on both sides of the limit

    def turned(length):
        return turn(torch.zeros(1), torch.arange(length)[None])[0]

    expected = [turned(length) for length in lengths]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            found = threads.map(lambda n: [turned(lengths[n]) for _ in range(1000)], (0, 1))
            assert all(
                torch.equal(one, right)
                for every, right in zip(found, expected, strict=True)
                for one in every
            )
    finally:
        sys.setswitchinterval(before)


def test_training_is_that_of_peft_on_the_library(model, tmp_path):
    _, folder, _, base = model
    lora = LoraParameters(rank=2, alpha=4.0)
    start = random_adapter(base, lora)
    training = TrainingParameters(phases=(Phase(steps=3, learning_rate=1e-2),), batch_size=2)
    examples = [SWIMS, make_example("Which is hot?", ["fire", "ice"], 0)]
    steps = list(fine_tune(base, examples, PLAIN, "text", training, start, 0))
    save_peft_folder(start, tmp_path / "start")
    theirs = PeftModel.from_pretrained(library(folder), tmp_path / "start", is_trainable=True)
    weights = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=training.weight_decay)
    sequences = answer_sequences(base, examples, PLAIN, "text")
    for step in steps:
        total, count = torch.tensor(0.0), 0
        for one in sequences:
            logits = theirs(torch.tensor([one.ids])).logits[0, -one.answer - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(
                logits, torch.tensor(one.ids[-one.answer :]), reduction="sum"
            )
            count += one.answer
        loss = total / count
        assert step.loss == pytest.approx(loss.item(), rel=2e-4)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, training.max_gradient_norm)
        optimizer.step()
    save_peft_folder(steps[-1].adapter, tmp_path / "end")
    ended = PeftModel.from_pretrained(library(folder), tmp_path / "end").eval()
    (found,) = score_examples(base, [SWIMS], PLAIN, TEXT, steps[-1].adapter)
    (asked,) = encode_questions(base, [SWIMS], PLAIN, "text")
    assert found.option_scores == pytest.approx(scores_by_library(ended, asked), rel=1e-4)
    with active_lora(base.activate_adapter(steps[-1].adapter)):
        (written,) = write_texts(base, [asked], PLAIN, WRITTEN)
    assert [list(written.ids)] == texts_by_library(ended, [asked])


@pytest.mark.parametrize("name", ["Granite", "Cohere 2"])
def test_computed_row_by_row_a_gradient_has_a_derivative(name, tmp_path):
    """The library's fused attention has none."""
    kind, given, _ = MODELS[name]
    base = opened(made(getattr(transformers, kind)(**given), tmp_path / "model"))
    adapter = random_adapter(base, LoraParameters(rank=2))
    batch = answer_sequences(base, [SWIMS, make_example("Which?", ["a", "b"], 0)], PLAIN, "text")
    flat = torch.cat([tensor.reshape(-1) for tensor in adapter.tensors.values()])

    def loss(at, elementary):
        tensors = unflatten(at, adapter.tensors)
        return answer_loss(base, batch, tensors, adapter.config, elementary)

    def slope(at):
        leaf = at.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf, False), leaf)[0]

    along = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1))
    along /= along.norm()
    gradient = torch.func.grad(lambda at: loss(at, True))
    _, pull_back = torch.func.vjp(gradient, flat)
    assert torch.allclose(gradient(flat), slope(flat), atol=1e-4)
    step = 1e-2
    measured = (slope(flat + step * along) - slope(flat - step * along)) / (2 * step)
    assert (pull_back(along)[0] - measured).norm() <= 0.02 * measured.norm()


def test_a_generated_adapter_is_refined_by_every_family(model):
    _, _, _, base = model
    examples = questions_with_answers(4)
    encoder = tiny_settings().encoder
    asked = [Question.of(example) for example in examples]
    context = generated_context(
        base,
        PLAIN,
        TEXT,
        tiny_generator(base=base),
        read_questions(encoder, asked),
        range(4),
        encoder,
    )
    start = generated_state(context, 0)
    space = ActionSpace.of({family: {} for family in ACTIONS})
    before = measure_indicators(predict(context, start, examples))
    tried: list[Attempt] = []
    for family, action in ACTIONS.items():
        trial = try_action(
            context, space, start, before, examples, action, RewardParameters(), 3, tried=tried
        )
        assert trial.error is None, (family, trial.error)
        assert trial.after is not None
        assert math.isfinite(trial.after.nll)
        if trial.poolable:
            scores = tuple(one.option_scores for one in trial.predictions)
            tried.append(Attempt(action, family, 3, scores))


def test_a_vector_is_made_through_the_librarys_logits(tmp_path):
    kind, given, _ = MODELS["Gemma 2"]
    base = opened(made(getattr(transformers, kind)(**given), tmp_path / "model"))
    hidden, targets = torch.randn(5, 32), [3, 9, 27, 81, 243]
    (found,) = latent_vectors(hidden, [5], targets, Steering(3, 0.1), base.head, base.logits)
    delta = torch.zeros(32, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=0.1, eps=1e-5, weight_decay=1e-8)
    for _ in range(3):
        optimizer.zero_grad()
        logits = torch.tanh((hidden + delta) @ base.head.T / 30.0) * 30.0
        torch.nn.functional.cross_entropy(logits, torch.tensor(targets)).backward()
        optimizer.step()
    assert found == pytest.approx(delta.detach(), abs=1e-5)


def test_of_a_multimodal_model_the_text_model_is_adapted(tmp_path):
    kind, given, _ = MODELS["Gemma 3, multimodal"]
    base = opened(made(getattr(transformers, kind)(**given), tmp_path / "model"))
    assert base.context_length == 8192
    names = list(target_layers(base, LoraParameters(rank=2)))
    assert len(names) == 14
    assert all("language_model" in name for name in names)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer .*git lfs pull"),
        (b"", "is not whole .*download it again"),
        (None, "is not whole .*download it again"),
    ],
)
def test_files_that_are_not_whole_are_named(name, content, told, tmp_path):
    file = made(LlamaConfig(**SMALL), tmp_path / "model") / name
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ModelError, match=f"{file} {told}"):
        opened(file.parent)


@pytest.mark.parametrize("name", ["tokenizer.model", "chat_template.jinja", "merges.txt"])
def test_a_pointer_in_the_place_of_any_file_is_named(name, tmp_path):
    file = made(LlamaConfig(**SMALL), tmp_path / "model") / name
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match=f"{file} is a Git LFS pointer"):
        opened(file.parent)


def test_missing_parts_of_the_weights_are_named(tmp_path):
    folder = made(LlamaConfig(**SMALL), tmp_path / "model")
    library(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    parts = sorted(folder.glob("model-*.safetensors"))
    parts[1].unlink()
    told = f"lacks 1 of {len(parts)} files of weights .*{parts[1].name}.*download"
    with pytest.raises(ModelError, match=told):
        opened(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = made(LlamaConfig(**{**SMALL, "vocab_size": 200}), tmp_path / "model")
    with pytest.raises(PromptError, match="writes the token 2.* embeds 200"):
        encode_questions(opened(folder), [SWIMS], PLAIN, "text")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"num_hidden_layers": 3},
            r"lack 9 of the weights .* \(model.layers.2.input_layernorm.weight\)",
        ),
        ({"hidden_size": 64}, "21 of the weights"),
        ({"model_type": "bert"}, r"config.json \(BertLMHeadModel\)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ"),
    ],
)
def test_a_configuration_that_the_weights_do_not_fit_is_refused(given, told, tmp_path):
    file = made(LlamaConfig(**SMALL), tmp_path / "model") / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **given}))
    with pytest.raises(ModelError, match=f"cannot be loaded: .*{told}"):
        opened(file.parent)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    file = made(LlamaConfig(**SMALL), tmp_path / "model") / "model.safetensors"
    save_file(
        {key: value * torch.nan for key, value in load_file(file).items()}, file, {"format": "pt"}
    )
    with pytest.raises(ModelError, match="logits are not finite, so its weights are damaged"):
        opened(file.parent)


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
        prompts.add(render_prompt(SWIMS, CHAT, base))
    assert len(prompts) == 1
    assert "26 Jul 2024" in prompts.pop()


def with_template(template):
    base = tiny_base()
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}" + template + "{% endfor %}"
    return replace(base, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}[{{ m.content }}]",
        "{% if m.role != 'system' %}[{{ m.content }}]{% endif %}",
    ],
    ids=["refused", "left out"],
)
def test_a_system_message_without_a_place_stands_in_front_of_the_question(template):
    asked = make_example("Which?", ["a", "b"], 0, "Answer well.")
    found = render_prompt(asked, CHAT, with_template(template))
    assert found == "[Answer well.\n\nWhich?]"
    assert (
        render_prompt(asked, CHAT, with_template("[{{ m.content }}]")) == "[Answer well.][Which?]"
    )


@pytest.mark.parametrize(
    ("end", "special", "trained"),
    [("<|end|>", True, 259), ("<|end|>", False, 259), ("\n\n", False, 2)],
)
def test_what_ends_a_turn_is_trained(end, special, trained):
    base = with_template(f"{{{{ m.content }}}}{end}\n")
    assert base.tokenizer.eos_token_id == 2
    base.tokenizer.add_tokens([AddedToken(end, special=special)])
    embeds = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(260, 1))
    base = replace(base, model=embeds)
    (found,) = answer_sequences(base, [SWIMS], CHAT, "text")
    assert found.ids[-1] == trained


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
