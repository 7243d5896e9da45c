"""PEFT's settings: what we read of a folder is what PEFT computes with it, and so is what we write of that."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from degaml_kedro.adapters.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    AdapterError,
    PeftModuleAdapter,
    average_adapters,
    load_peft_folder,
    save_peft_folder,
)
from degaml_kedro.config.schema import LoraParameters, PromptParameters, ScoringParameters
from degaml_kedro.llm.base_model import ModelError
from degaml_kedro.llm.prompting import encode_questions
from degaml_kedro.llm.scoring import compare_options, score_examples
from degaml_kedro.tasks.example import make_example
from tests.llm.helpers import plain_copy, random_adapter, tiny_base

PLAIN = PromptParameters(format="plain", options="hidden")
TEXT = ScoringParameters(mode="text", normalization="tokens")
EXAMPLE = make_example("Which bird swims under the ice?", ["a penguin", "an old owl"], gold=0)
PATTERNS = (
    "q_proj",
    "layers.1.mlp.down_proj",
    r".*\.0\..*_proj",
    r"^model\.layers\.1\..*(k|v)_proj",
)
LISTS = st.lists(
    st.sampled_from(
        [
            "q_proj",
            "v_proj",
            "k_proj",
            "gate_proj",
            "mlp.down_proj",
            "model.layers.1.self_attn.o_proj",
        ]
    ),
    min_size=1,
    unique=True,
)
TARGETS = st.one_of(
    LISTS.map(lambda names: {"target_modules": names}),
    st.builds(
        lambda names, layers, inside: {
            "target_modules": names,
            "layers_to_transform": layers,
            "layers_pattern": inside,
        },
        LISTS,
        st.sampled_from([0, 1, [1], [0, 1], [1, 7]]),
        st.sampled_from([None, "layers", ["h", "layers"]]),
    ),
    st.sampled_from(
        [r".*\.1\..*_proj", r"model\.layers\.\d+\.self_attn\.(q|v)_proj", "all-linear"]
    ).map(lambda pattern: {"target_modules": pattern}),
)


def peft_folder(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **given: Any
) -> Path:
    """What PEFT writes of an adapter of random weights.

    Raises:
        ValueError: PEFT refuses the settings.
    """
    torch.manual_seed(seed)
    model = get_peft_model(plain_copy(tiny_base()), LoraConfig(task_type="CAUSAL_LM", **given))
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad or not weights.any():
                weights.add_(0.2 * torch.randn_like(weights))
    model.save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    return folder


def opened_by_peft(folder: Path) -> Any:
    return PeftModel.from_pretrained(plain_copy(tiny_base()), str(folder)).eval()


def adapted(model: Any) -> set[str]:
    return {name for name, _ in model.named_parameters() if ".lora_A." in name}


def sums(adapter: Adapter | None) -> list[float]:
    """Summed log-probabilities of the options, by us."""
    (asked,) = encode_questions(tiny_base(), [EXAMPLE], PLAIN, "text")
    scores = score_examples(tiny_base(), [EXAMPLE], PLAIN, TEXT, adapter)[0].option_scores
    return [score * len(answer) for score, answer in zip(scores, asked.answers, strict=True)]


def sums_of(model: Any) -> list[float]:
    """The same by the library, one option at a time."""
    (asked,) = encode_questions(tiny_base(), [EXAMPLE], PLAIN, "text")
    found, first = [], len(asked.prompt) - 1
    for answer in asked.answers:
        with torch.inference_mode():
            logs = model(torch.tensor([asked.prompt + answer])).logits[0].log_softmax(-1)
        found.append(math.fsum(logs[first + i, token].item() for i, token in enumerate(answer)))
    return found


@settings(max_examples=12)
@given(
    targets=TARGETS,
    rank=st.integers(1, 6),
    alpha=st.integers(1, 32),
    stabilised=st.booleans(),
    ranks=st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 8), max_size=2),
    alphas=st.dictionaries(st.sampled_from(PATTERNS), st.sampled_from([1, 2.5, 8, 64]), max_size=2),
    excluded=st.sampled_from([None, ["k_proj"], r".*\.0\.mlp\..*"]),
    start=st.sampled_from([True, False, "gaussian", "eva", "mica"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_what_we_read_and_what_we_write_of_it_is_what_peft_computes(
    tmp_path_factory, targets, rank, alpha, stabilised, ranks, alphas, excluded, start, dtype, seed
):
    folder = tmp_path_factory.mktemp("peft")
    try:
        with warnings.catch_warnings(action="ignore"):
            peft_folder(
                folder / "theirs",
                seed,
                dtype,
                r=rank,
                lora_alpha=alpha,
                use_rslora=stabilised,
                rank_pattern=ranks,
                alpha_pattern=alphas,
                exclude_modules=excluded,
                init_lora_weights=start,
                lora_dropout=0.1,
                **targets,
            )
    except ValueError:
        assume(False)  # no layer is left
    adapter = load_peft_folder(folder / "theirs")
    theirs = opened_by_peft(folder / "theirs")
    expected = sums_of(theirs)
    assert sums(adapter) == pytest.approx(expected, rel=1e-4)
    save_peft_folder(adapter, folder / "ours")
    again = opened_by_peft(folder / "ours")
    assert adapted(again) == adapted(theirs) != set()
    assert sums_of(again) == pytest.approx(expected, rel=1e-4)
    # one rank and one kind of number, as tokens, mixing and refining need them
    assert {len(a) for a, _ in adapter.layers().values()} == {adapter.config.rank}
    assert len({tensor.dtype for tensor in adapter.tensors.values()}) == 1


def changed(folder: Path, **values: Any) -> Path:
    """Settings that somebody wrote into a finished folder."""
    file = folder / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def test_tensors_that_peft_ignores_are_not_read(tmp_path):
    folder = peft_folder(tmp_path, r=2, target_modules=["q_proj", "v_proj"])
    whole = sums(load_peft_folder(folder))
    changed(folder, layers_to_transform=[1], exclude_modules=["v_proj"])
    adapter = load_peft_folder(folder)
    assert set(adapter.layers()) == {"model.layers.1.self_attn.q_proj"}
    assert sums(adapter) == pytest.approx(sums_of(opened_by_peft(folder)), rel=1e-4) != whole


def test_peft_opens_the_layers_of_an_ending_that_is_more_than_a_name(tmp_path):
    lora = LoraParameters(target_modules=("layers.1.self_attn.q_proj", "down_proj"))
    adapter = random_adapter(tiny_base(), lora)
    save_peft_folder(adapter, tmp_path / "a")
    found = {name.split(".lora_A")[0] for name in adapted(opened_by_peft(tmp_path / "a"))}
    assert found == {f"base_model.model.{name}" for name in adapter.layers()}


OWN: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True, "rank_pattern": {"v_proj": 3}, "use_rslora": True},
    "PiSSA": {"init_lora_weights": "pissa", "alpha_pattern": {"v_proj": 3}},
    "OLoRA": {"init_lora_weights": "olora", "target_modules": r".*\.1\..*(q|v)_proj"},
    "aLoRA, invoked": {"alora_invocation_tokens": list(b"swims")},
    "aLoRA, not invoked": {"alora_invocation_tokens": [50, 51]},
    "whole head": {"modules_to_save": ["lm_head"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "whole norm and feed-forward": {"modules_to_save": ["norm", "layers.1.mlp"]},
}


def own_folder(folder: Path, what: str) -> Path:
    given = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], **OWN[what]}
    if what == "aLoRA, invoked":
        given["alora_invocation_tokens"] = tiny_base().tokenizer("swims").input_ids
    return peft_folder(folder, **given)


@pytest.mark.parametrize("what", OWN)
def test_what_is_more_than_lora_is_scored_through_peft_s_module(tmp_path, what):
    base = tiny_base()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    plain = sums(None)
    folder = own_folder(tmp_path, what)
    adapter, model = load_peft_folder(folder), opened_by_peft(folder)
    expected = sums_of(model)
    assert sums(adapter) == pytest.approx(expected, rel=1e-4)
    assert (sums(adapter) == pytest.approx(plain, rel=1e-4)) == (what == "aLoRA, not invoked")
    # generated text
    writing = ScoringParameters(mode="generate", max_new_tokens=8)
    (mine,) = score_examples(base, [EXAMPLE], PLAIN, writing, adapter)
    (asked,) = encode_questions(base, [EXAMPLE], PLAIN, "letter")
    ids = torch.tensor([asked.prompt])
    written = model.generate(
        input_ids=ids, attention_mask=ids.ne(-1), max_new_tokens=8, do_sample=False
    )
    assert mine.text == base.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    # the shared model is as it was
    assert all(torch.equal(before[name], t) for name, t in base.model.state_dict().items())
    assert sums(None) == plain


@pytest.mark.parametrize("what", OWN)
def test_what_is_more_than_lora_is_neither_refined_nor_mixed_cut_or_saved(tmp_path, what):
    adapter = load_peft_folder(own_folder(tmp_path / "a", what))
    assert isinstance(adapter, PeftModuleAdapter)
    setting = next(iter(OWN[what]))
    with pytest.raises(AdapterError, match=f"{setting} is .*more than plain LoRA"):
        _ = adapter.tensors
    with pytest.raises(AdapterError, match=setting):
        save_peft_folder(adapter, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(AdapterError, match=setting):
        average_adapters([adapter, adapter])
    with pytest.raises(AdapterError, match=setting):
        compare_options(tiny_base(), [EXAMPLE], PLAIN, TEXT, (adapter, adapter))


def test_an_answer_that_would_move_the_start_of_an_alora_is_refused(tmp_path):
    tokens = tiny_base().tokenizer("swims").input_ids
    adapter = load_peft_folder(
        peft_folder(tmp_path, r=2, target_modules=["q_proj"], alora_invocation_tokens=tokens)
    )
    example = make_example(
        "Which bird swims under the ice?", ["an owl", "what swims there"], gold=0
    )
    with pytest.raises(ModelError, match="an answer holds the invocation tokens"):
        score_examples(tiny_base(), [example], PLAIN, TEXT, adapter)


def test_an_own_module_without_its_tensors_is_refused(tmp_path):
    folder = own_folder(tmp_path, "DoRA")
    tensors = load_file(folder / WEIGHTS_FILE)
    magnitude = next(name for name in tensors if "magnitude" in name)
    save_file({n: t for n, t in tensors.items() if n != magnitude}, folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="use_dora.*PEFT cannot open .*on one side alone"):
        sums(load_peft_folder(folder))
