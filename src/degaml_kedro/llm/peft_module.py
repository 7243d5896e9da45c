"""Adapters that only PEFT's own modules compute: DoRA, PiSSA, OLoRA, aLoRA and ``modules_to_save``.

Shapes: R rows, L longest row.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

from torch import Tensor

from degaml_kedro.adapters.adapter import FREEZING_STARTS, PeftModuleAdapter
from degaml_kedro.llm.base_model import BaseModel, ModelError, first_line, library_weights
from degaml_kedro.llm.general import readout
from degaml_kedro.llm.prompting import common_start


# the last one: what asks batch by batch would load it with each
@lru_cache(maxsize=1)
def through_peft(base: BaseModel, adapter: PeftModuleAdapter) -> BaseModel:
    """The base model with an adapter in PEFT's own modules; it goes the general way and takes no other adapter.

    PEFT writes into the model that it is given: a copy, of the weights too where the adapter's start changes them.

    Raises:
        ModelError: PEFT refuses the adapter on this model, or the two do not have the same layers.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    shared = [*base.groups]
    if adapter.settings.init_lora_weights in FREEZING_STARTS:
        shared += [*base.model.parameters()]
    try:
        with library_weights():
            whole: Any = get_peft_model(
                copy.deepcopy(base.model, {id(part): part for part in shared}),
                copy.deepcopy(adapter.settings),
            )
        loaded: Any = set_peft_model_state_dict(whole, dict(adapter.weights))
        odd = [key for key in loaded.missing_keys if "lora_" in key] + loaded.unexpected_keys
        if odd:
            raise ValueError(f"the tensor {odd[0]} is on one side alone")
        if adapter.settings.alora_invocation_tokens:
            _start_where_invoked(whole)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{adapter.why}; with it PEFT cannot open the adapter on {base.name}: {first_line(error)}"
        ) from error
    model = whole.get_base_model().eval()
    return replace(base, model=model, groups=[], fast=None, readout=readout(model))


def _start_where_invoked(whole: Any) -> None:
    """Tell the layers of an aLoRA where in each row they start, in every call of the decoder.

    PEFT does so in its own ``forward`` and ``generate``, with hooks that all threads share.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.variants import calculate_alora_offsets

    decoder = whole.get_base_model().base_model
    layers: list[Any] = [module for module in decoder.modules() if isinstance(module, LoraLayer)]
    if len(layers) < sum(isinstance(module, LoraLayer) for module in whole.modules()):
        raise ValueError("aLoRA outside the decoder is not computed")
    offsets: ContextVar[Sequence[int | None]] = ContextVar("offsets")

    def find(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        # while it writes, an answer does not move the start
        if cache is None or cache.get_seq_length() == 0:
            ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
            # what fills a row up invokes nothing
            ids = ids if mask is None else ids.masked_fill(mask == 0, -1)
            found = calculate_alora_offsets(whole.peft_config, whole.active_adapter, ids)
            _check_starts(ids, found)
            offsets.set(found)

    def hand_on(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "alora_offsets": offsets.get()}

    decoder.register_forward_pre_hook(find, with_kwargs=True)
    for layer in layers:
        layer.register_forward_pre_hook(hand_on, with_kwargs=True)


def _check_starts(ids: Tensor, offsets: Sequence[int | None]) -> None:
    """Refuse rows [R, L] of one prompt in which an aLoRA starts at different places (from the end) of the prompt."""
    starts = [ids.shape[1] - (offset or 0) for offset in offsets]
    for (one, first), (other, second) in pairwise(sorted(zip(ids.tolist(), starts, strict=True))):
        if first != second and min(first, second) < common_start(one, other):
            raise ModelError(
                "an answer holds the invocation tokens of the aLoRA adapter, and so would move its start in the prompt "
                "that all answers share; ask without that answer"
            )
