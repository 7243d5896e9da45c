"""A tiny model, and adapters on it whose B is not zero."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from transformers import LlamaForCausalLM

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.config.schema import BaseModelParameters, LoraParameters
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.finetune import initial_adapter


def tiny_base(seed: int = 0) -> BaseModel:
    """A random two-layer Llama in float32; the same object every time (the loader keeps it)."""
    return load_base_model(
        BaseModelParameters.model_validate(
            {"source": {"kind": "random", "seed": seed}, "dtype": "float32", "device": "cpu"}
        )
    )


def by_modules(base: BaseModel) -> BaseModel:
    """The same model, packed, without the fused decoder."""
    assert base.fast is not None
    return replace(base, fast=replace(base.fast, stack=None))


def random_adapter(base: BaseModel, lora: LoraParameters, seed: int = 0) -> Adapter:
    """An adapter with nothing zero in it."""
    start = initial_adapter(base, lora)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        key: 0.2 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in start.tensors.items()
    }
    return Adapter(start.config, tensors)


def plain_copy(base: BaseModel) -> Any:
    """The library's own model with the same weights: none of this project's code runs in it."""
    config = type(base.model.config).from_dict(base.model.config.to_dict())
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config)
    model.load_state_dict(base.model.state_dict())
    model.tie_weights()
    return model.eval()


def peft_copy(base: BaseModel, adapter: Adapter) -> Any:
    """Plain PEFT on a plain copy, holding the adapter."""
    config = LoraConfig(
        r=adapter.config.rank,
        lora_alpha=adapter.config.alpha,  # type: ignore[arg-type]
        target_modules=list(adapter.config.target_modules),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(plain_copy(base), config)
    set_peft_model_state_dict(model, dict(adapter.tensors))
    return model


def merged_reference(base: BaseModel, adapter: Adapter) -> Any:
    """A plain copy with the adapter merged into its weights by PEFT."""
    return peft_copy(base, adapter).merge_and_unload()
