"""Adapter folders: PEFT opens ours, we open PEFT's, and what cannot be used is named. And their mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from degaml_kedro.adapters.adapter import (
    CONFIG_FILE,
    MAX_JSON,
    WEIGHTS_FILE,
    Adapter,
    AdapterConfig,
    AdapterError,
    average_adapters,
    load_peft_folder,
    save_peft_folder,
    tensor_key,
)
from degaml_kedro.config.schema import LoraParameters
from degaml_kedro.llm.lora import active_lora
from tests.llm.helpers import peft_copy, plain_copy, random_adapter, tiny_base


@settings(max_examples=20)
@given(
    rank=st.integers(1, 6),
    alpha=st.floats(0.5, 64),
    shapes=st.dictionaries(
        st.sampled_from(["model.layers.0.q_proj", "model.layers.1.mlp.up_proj", "h.0.attn.w"]),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        min_size=1,
    ),
    seed=st.integers(0, 1000),
)
def test_a_folder_round_trips(
    tmp_path_factory: pytest.TempPathFactory,
    rank: int,
    alpha: float,
    shapes: dict[str, tuple[int, int]],
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (outputs, inputs) in shapes.items():
        tensors[tensor_key(name, "A")] = torch.randn(rank, inputs, generator=generator)
        tensors[tensor_key(name, "B")] = torch.randn(outputs, rank, generator=generator)
    targets = tuple(sorted({name.rsplit(".", 1)[-1] for name in shapes}))
    adapter = Adapter(AdapterConfig(rank, alpha, targets, "a/model"), tensors)
    folder = tmp_path_factory.mktemp("adapter") / "x"
    save_peft_folder(adapter, folder)
    again = load_peft_folder(folder)
    assert again.config == adapter.config
    assert set(again.tensors) == set(tensors)
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in tensors.items())


def test_plain_peft_opens_our_folder_and_computes_the_same(tmp_path: Path) -> None:
    base = tiny_base()
    adapter = random_adapter(base, LoraParameters(rank=3, alpha=7))
    save_peft_folder(adapter, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(plain_copy(base), str(tmp_path / "adapter"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), active_lora(base.activate_adapter(adapter)):
        mine = base.model(ids).logits
    with torch.no_grad():
        assert torch.allclose(mine, theirs(ids).logits, atol=1e-4)


def test_we_open_peft_s_folder(tmp_path: Path) -> None:
    base = tiny_base()
    adapter = random_adapter(base, LoraParameters(rank=3, alpha=7))
    peft_copy(base, adapter).save_pretrained(tmp_path)
    again = load_peft_folder(tmp_path)
    assert again.config.rank == 3
    assert again.config.alpha == 7
    assert all(torch.equal(again.tensors[key], t) for key, t in adapter.tensors.items())


def test_saving_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    base = tiny_base()
    for rank in (2, 3):
        save_peft_folder(random_adapter(base, LoraParameters(rank=rank)), tmp_path / "a")
    assert load_peft_folder(tmp_path / "a").config.rank == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_save_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    save_peft_folder(random_adapter(base, LoraParameters(rank=2)), tmp_path / "a")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("degaml_kedro.adapters.adapter.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_peft_folder(random_adapter(base, LoraParameters(rank=3)), tmp_path / "a")
    assert load_peft_folder(tmp_path / "a").config.rank == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def damage(folder: Path, what: str) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    weights = folder / WEIGHTS_FILE
    tensors = dict(load_peft_folder(folder).tensors)
    key = next(key for key in tensors if "lora_B" in key)
    if what == "no config":
        (folder / CONFIG_FILE).unlink()
    elif what == "no weights":
        weights.unlink()
    elif what == "bad json":
        (folder / CONFIG_FILE).write_text("{")
    elif what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif what == "another kind":
        (folder / CONFIG_FILE).write_text(json.dumps({**config, "peft_type": "IA3"}))
    elif what == "another rank":
        (folder / CONFIG_FILE).write_text(json.dumps({**config, "r": 5}))
    elif what == "half a layer":
        save_file({k: t for k, t in tensors.items() if k != key}, weights)
    elif what == "not finite":
        tensors[key] = tensors[key] * float("nan")
        save_file(tensors, weights)
    elif what == "nothing":
        save_file({}, weights)
    elif what == "other tensors":
        save_file({"weight": torch.zeros(2)}, weights)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no config", "has no adapter_config.json"),
        ("no weights", "has no adapter_model.safetensors"),
        ("bad json", "is not valid JSON"),
        ("truncated", "truncated or damaged"),
        ("another kind", "only LORA adapters"),
        ("another rank", "says r = 5"),
        ("half a layer", "has no lora_B tensor"),
        ("not finite", "NaN or infinite"),
        ("nothing", "holds no tensors"),
        ("other tensors", "not the name of a LoRA tensor"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, what: str, message: str) -> None:
    save_peft_folder(random_adapter(tiny_base(), LoraParameters(rank=2)), tmp_path / "a")
    damage(tmp_path / "a", what)
    with pytest.raises(AdapterError, match=message):
        load_peft_folder(tmp_path / "a")


GONE = object()
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no r": ({"r": GONE}, "there is no r "),
    "r 0": ({"r": 0}, "r is '0' "),
    "negative r": ({"r": -1}, "r is '-1'"),
    "r as text": ({"r": "2"}, "r is '2'"),
    "r null": ({"r": None}, "r is 'None'"),
    "r true": ({"r": True}, "r is 'True'"),
    "huge r": ({"r": 10**30}, "r is '1000"),
    "no alpha": ({"lora_alpha": GONE}, "there is no lora_alpha"),
    "alpha as text": ({"lora_alpha": "nan"}, "lora_alpha is 'nan'"),
    "NaN alpha": ({"lora_alpha": float("nan")}, "lora_alpha is 'nan'"),
    "infinite alpha": ({"lora_alpha": float("inf")}, "lora_alpha is 'inf'"),
    "absurd alpha": ({"lora_alpha": 1e308}, "lora_alpha is '1e.308'"),
    "huge whole alpha": ({"lora_alpha": 10**400}, "lora_alpha is '1000"),
    "alpha 0": ({"lora_alpha": 0}, "lora_alpha is '0'"),
    "alpha null": ({"lora_alpha": None}, "lora_alpha is 'None'"),
    "no targets": ({"target_modules": GONE}, "there is no target_modules"),
    "targets null": ({"target_modules": None}, "target_modules is 'None'"),
    "empty targets": ({"target_modules": []}, "target_modules is"),
    "a number as targets": ({"target_modules": 5}, "target_modules is '5'"),
    "numbers among targets": ({"target_modules": [1, "a"]}, "target_modules is"),
    "no pattern of ranks": ({"rank_pattern": [3]}, "rank_pattern is .*valid dictionary"),
    "rank 0 in a pattern": ({"rank_pattern": {"q_proj": 0}}, "rank_pattern is .*greater than"),
    "NaN in a pattern": ({"alpha_pattern": {"q": float("nan")}}, "alpha_pattern is .*greater than"),
    "rsLoRA as text": ({"use_rslora": "yes"}, "use_rslora is 'yes' .*valid boolean"),
    "layers as text": ({"layers_to_transform": "0"}, "layers_to_transform is '0'"),
    "no such layer": ({"layers_to_transform": [9]}, "names no layer that"),
    "a number as exclusion": ({"exclude_modules": 5}, "exclude_modules is '5'"),
    "no expression": ({"alpha_pattern": {"(": 1}}, "no regular expression"),
    "no expression for targets": ({"target_modules": "*"}, "no regular expression"),
    "an endless expression": ({"exclude_modules": "(a+)+b"}, "repeats a group"),
    "many repeats": ({"alpha_pattern": {".*" * 7 + "x": 1}}, "or more than 6 times"),
    "layers without a pattern": ({"layers_pattern": "h"}, "is refused by PEFT: .*layers_pattern"),
    "a number as base": ({"base_model_name_or_path": 5}, "base_model_name_or_path is '5'"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_of_strangers_is_checked(tmp_path: Path, what: str) -> None:
    folder, (changes, message) = tmp_path / "a", CONFIGS[what]
    save_peft_folder(random_adapter(tiny_base(), LoraParameters(rank=2)), folder)
    changed = {**json.loads((folder / CONFIG_FILE).read_text()), **changes}
    text = json.dumps({k: v for k, v in changed.items() if v is not GONE})
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(AdapterError, match=message) as caught:
        load_peft_folder(folder)
    assert str(folder / CONFIG_FILE) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe{", "is not valid JSON"),
        (" " * (MAX_JSON + 1), "larger than 16 MB"),
    ],
    ids=["a list", "null", "deep", "another coding", "huge"],
)
def test_a_config_that_is_none_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    save_peft_folder(random_adapter(tiny_base(), LoraParameters(rank=2)), tmp_path / "a")
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "a" / CONFIG_FILE).write_bytes(data)
    with pytest.raises(AdapterError, match=message):
        load_peft_folder(tmp_path / "a")


TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "flat": lambda t: t.flatten(),
    "a number": lambda t: t.sum(),
    "three axes": lambda t: t[None],
    "whole numbers": lambda t: t.to(torch.int64),
    "truth values": lambda t: t > 0,
    "no inputs": lambda t: t[:, :0],
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_are_no_matrices_of_numbers_are_named(tmp_path: Path, what: str) -> None:
    adapter = random_adapter(tiny_base(), LoraParameters(rank=2))
    save_peft_folder(adapter, tmp_path / "a")
    changed = {k: TENSORS[what](t).clone() for k, t in adapter.tensors.items()}
    save_file(changed, tmp_path / "a" / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="LoRA has matrices of floating-point numbers"):
        load_peft_folder(tmp_path / "a")


# --- the mean -------------------------------------------------------------------------------------


def test_the_mean_is_element_wise_of_a_and_b_apart() -> None:
    base = tiny_base()
    adapters = [random_adapter(base, LoraParameters(rank=2), seed=seed) for seed in range(3)]
    mean = average_adapters(adapters)
    assert mean.config == adapters[0].config
    assert list(mean.tensors) == list(adapters[0].tensors)
    for key, tensor in mean.tensors.items():
        every = torch.stack([adapter.tensors[key] for adapter in adapters]).double()
        assert torch.equal(tensor, every.mean(dim=0).float()), key


def test_the_mean_is_float32_whatever_it_is_of_and_changes_nothing() -> None:
    base = tiny_base()
    adapter = random_adapter(base, LoraParameters(rank=2))
    half = Adapter(adapter.config, {k: t.bfloat16() for k, t in adapter.tensors.items()})
    before = {key: tensor.clone() for key, tensor in half.tensors.items()}
    mean = average_adapters([half, half])
    assert all(tensor.dtype == torch.float32 for tensor in mean.tensors.values())
    assert all(torch.equal(mean.tensors[key], t.float()) for key, t in before.items())
    assert all(torch.equal(half.tensors[key], t) for key, t in before.items())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (LoraParameters(rank=3), "rank is 2 in adapter 1 and 3 in adapter 3"),
        (LoraParameters(rank=2, alpha=1), "alpha is 16.0 in adapter 1 and 1.0 in adapter 3;"),
        (LoraParameters(rank=2, target_modules=("q_proj",)), "missing in adapter 3"),
    ],
)
def test_adapters_of_different_shapes_have_no_mean(other: LoraParameters, message: str) -> None:
    base = tiny_base()
    one = random_adapter(base, LoraParameters(rank=2))
    with pytest.raises(AdapterError, match=message):
        average_adapters([one, one, random_adapter(base, other)])


def test_nothing_has_no_mean() -> None:
    with pytest.raises(AdapterError, match="no adapters.*at least one task"):
        average_adapters([])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "corda"),
        ("use_dora", "yes"),
        ("modules_to_save", "lm_head"),
        ("modules_to_save", ["(.*)*x"]),
        ("alora_invocation_tokens", [True]),
        ("bias", "all"),
        ("kasa_config", {"beta": 1}),
        ("megatron_config", {"tensor_model_parallel_size": 1}),
        ("a_setting_of_tomorrow", 1),
    ],
)
def test_settings_that_nothing_here_computes_are_refused_by_name(key, value, tmp_path):
    save_peft_folder(random_adapter(tiny_base(), LoraParameters(rank=2)), tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(AdapterError, match=f"{key} is .*not plain LoRA"):
        load_peft_folder(tmp_path / "a")


def test_a_file_that_one_rank_for_all_would_blow_up_is_refused(tmp_path):
    save_peft_folder(
        Adapter(
            AdapterConfig(1, 1.0, ("wide", "thin"), "m"),
            {
                tensor_key("layers.0.thin", "A"): torch.ones(9000, 1),
                tensor_key("layers.0.thin", "B"): torch.ones(1, 9000),
                tensor_key("layers.0.wide", "A"): torch.ones(1, 9000),
                tensor_key("layers.0.wide", "B"): torch.ones(9000, 1),
            },
        ),
        tmp_path / "a",
    )
    file = tmp_path / "a" / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "rank_pattern": {"thin": 9000}}))
    with pytest.raises(AdapterError, match="its largest rank is 9000"):
        load_peft_folder(tmp_path / "a")


def test_a_pattern_of_target_modules_becomes_the_layers_that_it_matched(tmp_path):
    pattern = r"model\.layers\.\d+\.self_attn\.(q|v)_proj"
    config = LoraConfig(r=2, target_modules=pattern, task_type="CAUSAL_LM")
    first = get_peft_model(plain_copy(tiny_base()), config)
    first.save_pretrained(tmp_path / "a")
    save_peft_folder(load_peft_folder(tmp_path / "a"), tmp_path / "b")
    second = PeftModel.from_pretrained(plain_copy(tiny_base()), tmp_path / "b")
    adapted = [[n for n, _ in m.named_parameters() if ".lora_A." in n] for m in (first, second)]
    assert adapted[0] == adapted[1] != []
