"""vLLM would load what we save, by the rules of its documentation; the program itself needs a GPU.

The rules are those of the pages "LoRA Adapters" and "vllm.lora.peft_helper" of docs.vllm.ai, and of what its loader
refuses (``LoRAConfig``, ``PEFTHelper``, ``parse_fine_tuned_lora_name``, ``LoRAModel.from_local_checkpoint``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from degaml_kedro.adapters.adapter import save_peft_folder
from degaml_kedro.config.schema import LoraParameters
from tests.llm.helpers import random_adapter

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<kind>[AB])\.weight")
# features of PEFT that vLLM does not have, or silently leaves out: what they may be
LEFT_OUT: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "fan_in_fan_out": (False, None),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None,),
    "alora_invocation_tokens": (None,),
}


def faults(folder: Path, model: nn.Module, max_lora_rank: int = 16) -> list[str]:
    """What vLLM would refuse or get wrong.

    Args:
        folder: a PEFT folder.
        model: the base model, for its linear layers.
        max_lora_rank: the server's; 16 is vLLM's default.
    """
    assert max_lora_rank in MAX_RANKS
    found = []
    config = json.loads((folder / "adapter_config.json").read_text())
    missing = {"r", "lora_alpha", "target_modules"} - set(config)
    if missing:
        return [f"missing: {sorted(missing)}"]
    rank = config["r"]
    if type(rank) is not int or not 1 <= rank <= max_lora_rank:
        found.append(f"r is {rank!r}")
    if type(config["lora_alpha"]) is not int:
        found.append(f"lora_alpha is {config['lora_alpha']!r}")
    if config.get("peft_type") != "LORA":
        found.append(f"peft_type is {config.get('peft_type')!r}")
    for key, allowed in LEFT_OUT.items():
        if config.get(key, allowed[0]) not in allowed:
            found.append(f"{key} is {config[key]!r}")
    targets = config["target_modules"]
    if not isinstance(targets, list):
        found.append("target_modules is no list of names")
        targets = []
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        return [*found, "no adapter_model.safetensors"]
    return found + _faults_of_tensors(load_file(weights), model, rank, targets)


def _faults_of_tensors(
    tensors: dict[str, torch.Tensor], model: nn.Module, rank: int, targets: list[str]
) -> list[str]:
    found, pairs = [], {}
    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    for name, tensor in tensors.items():
        match = NAME.fullmatch(name)
        if match is None:
            found.append(f"{name} is no LoRA weight")
            continue
        module, kind = match["module"], match["kind"]
        pairs.setdefault(module, set()).add(kind)
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            found.append(f"{name} is {tensor.dtype}")
        if module not in linear:
            found.append(f"{module} is no linear layer of the model")
            continue
        if module.rsplit(".", 1)[-1] not in targets:
            found.append(f"{module} is not among the target modules")
        outputs, inputs = linear[module].weight.shape
        wanted = (rank, inputs) if kind == "A" else (outputs, rank)
        if tuple(tensor.shape) != wanted:
            found.append(f"{name} is {tuple(tensor.shape)}, not {wanted}")
    return found + [
        f"{module} has one of A and B" for module, kinds in pairs.items() if len(kinds) < 2
    ]


def test_what_we_save_has_no_faults(tiny):
    plain = tiny.base.model
    assert faults(tiny.folder / "adapter", plain, 8) == []
    tensors = load_file(tiny.folder / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * plain.config.num_hidden_layers


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("down_proj",)])
def test_of_some_layers(tiny, tmp_path, targets):
    adapter = random_adapter(tiny.base, LoraParameters(rank=4, alpha=8, target_modules=targets))
    save_peft_folder(adapter, tmp_path / "adapter")
    assert faults(tmp_path / "adapter", tiny.base.model) == []


@pytest.mark.slow
@pytest.mark.xdist_group("interoperability")
def test_on_the_embedded_model(embedded):
    assert faults(embedded.folder / "adapter", embedded.base.model, 8) == []
    tensors = load_file(embedded.folder / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 30


def set_key(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return change


def rename(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file({k.replace(old, new, 1): t for k, t in load_file(file).items()}, file)

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (set_key("r", 4), "is (8, 32), not (4, 32)"),
        (set_key("r", 32), "r is 32"),
        (set_key("lora_alpha", 12.5), "lora_alpha is 12.5"),
        (set_key("use_dora", True), "use_dora is True"),
        (set_key("bias", "all"), "bias is 'all'"),
        (set_key("modules_to_save", ["lm_head"]), "modules_to_save is ['lm_head']"),
        (set_key("target_modules", ["q_proj"]), "v_proj is not among the target modules"),
        (set_key("target_modules", "all-linear"), "target_modules is no list"),
        (rename("lora_A.weight", "lora_A.default.weight"), "is no LoRA weight"),
        (rename("layers.0.self_attn.q_proj.lora_A", "lm_head.lora_A"), "lm_head is no linear"),
    ],
)
def test_the_rules_find_what_vllm_refuses(tiny, tmp_path, change, fault):
    save_peft_folder(tiny.adapter, tmp_path / "adapter")
    change(tmp_path / "adapter")
    assert any(fault in one for one in faults(tmp_path / "adapter", tiny.base.model))
