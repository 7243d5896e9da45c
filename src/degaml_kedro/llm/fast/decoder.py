"""Which models are computed packed, and which by the fused decoder: chosen by configuration, verified at load.

Packing and the head as a matrix are for architectures whose layers mix tokens by attention alone, in the library's
exchangeable attention function, and whose logits are hidden states times a matrix; the fused decoder
(:mod:`~degaml_kedro.llm.fast.fused`) is for one kind of block. The configuration says which of these a model is. Before
that is used, the model's first blocks are computed both ways, in float32 whatever its type is: rounding in 16 bits is
as large as the faults that are looked for.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from degaml_kedro.llm.fast.attention import ATTENTION_NAME, active_pack
from degaml_kedro.llm.fast.fused import DecoderStack, decoder_stack
from degaml_kedro.llm.general import hidden_by_rows, rope_length, rows_of
from degaml_kedro.llm.lora import AdaptableLinear, current_lora, make_adaptable
from degaml_kedro.llm.packing import Pack, TokenTree, pack_trees

if TYPE_CHECKING:
    from degaml_kedro.llm.base_model import BaseModel

logger = logging.getLogger(__name__)

# tests/llm/test_any_model.py compares each of them with the library
_PACKED = {
    "GPT2LMHeadModel", "GPTNeoXForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration",
    "GemmaForCausalLM", "Glm4ForCausalLM", "LlamaForCausalLM", "Ministral3ForCausalLM", "MistralForCausalLM",
    "MixtralForCausalLM", "OPTForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM", "OlmoForCausalLM",
    "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "SmolLM3ForCausalLM",
    "StableLmForCausalLM", "Starcoder2ForCausalLM",
}  # fmt: skip
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
# of a token's logits; rounding in float32 is a tenth of it at most
_TOLERANCE = 1e-4
# what the copy that is verified has in place of a wider window, and of a larger vocabulary
_WINDOW, _VOCABULARY = 8, 256


@dataclass(frozen=True, eq=False)
class FastDecoder:
    """How a recognised model computes packs.

    Attributes:
        window: how long a sequence may be that is packed, in tokens; None for any length. Packs of longer ones go the
            general way.
        stack: all blocks as one function, where the model has those that this is written for.
    """

    window: int | None
    stack: DecoderStack | None

    def fits(self, length: int) -> bool:
        """Whether sequences of so many tokens may be packed."""
        return self.window is None or length < self.window

    def takes(self, pack: Pack) -> bool:
        """Whether a pack is computed as it is."""
        # a prefix that was not packed left nothing to continue
        if pack.prefix is not None and not pack.prefix.layers:
            return False
        return self.fits(pack.length - 1)

    def hidden_states(self, model: Any, pack: Pack, elementary: bool) -> Tensor:
        """As :meth:`~degaml_kedro.llm.base_model.BaseModel.hidden_states`: [T, C]."""
        if not self.takes(pack):
            with active_pack(None, elementary):
                return hidden_by_rows(model, pack)
        if self.stack is not None and not elementary:
            return self.stack(pack, current_lora())
        with active_pack(pack, elementary):
            output = model.base_model(
                pack.input_ids, position_ids=pack.position_ids, use_cache=False
            )
        return output.last_hidden_state[0]  # type: ignore[no-any-return]


def fast_decoder(base: BaseModel) -> FastDecoder | str:
    """The fastest way that gives the library's logits; where there is none, why not.

    ``base`` nobody else has yet: its attention function is exchanged.
    """
    if obstacle := obstacle_to_packing(base.model):
        return obstacle
    small = first_blocks(base.model)
    first = replace(base, model=small, groups=make_adaptable(small))
    for fused in (True, False):
        tried = _decoder(first.model, fused)
        if fused and tried.stack is None:
            continue
        try:
            off = largest_difference(replace(first, fast=tried))
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            # of the model's own code, which expects something else of its attention
            logger.debug("%s could not be packed: %s", base.name, error)
            off = torch.inf
        if off < _TOLERANCE:
            return _decoder(base.model, fused)
        if fused:
            logger.warning(
                "%s (%s) is computed by the library's modules, which takes up to 1.7 times as long: by the fused "
                "decoder, its logits would be off by %.1g",
                base.name,
                type(base.model).__name__,
                off,
            )
    return "packed, its logits would be others"


def obstacle_to_packing(model: Any) -> str | None:
    """Why a model's configuration rules packing out; None where it does not."""
    config = model.config.get_text_config()
    if type(model).__name__ not in _PACKED:
        return "packing is not proven for this architecture"
    if model.get_output_embeddings().bias is not None:
        return "its head has a bias"
    return next(
        (f"its configuration sets {cap}" for cap in _CAPS if getattr(config, cap, None)), None
    )


def _decoder(model: Any, fused: bool) -> FastDecoder:
    model.set_attn_implementation(ATTENTION_NAME)
    window = longest_packed(model.config.get_text_config())
    return FastDecoder(window, decoder_stack(model) if fused else None)


def longest_packed(config: Any) -> int | None:
    """How long a sequence may be that is packed, in tokens; None for any length.

    Tokens of a longer one do not look at all tokens in front of them, or have their positions turned otherwise.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    limits = (window if slides else None, rope_length(config))
    return min((limit for limit in limits if limit), default=None)


def first_blocks(model: Any) -> Any:
    """A model's first blocks, with at least one of each kind, as a small model in float32."""
    decoder, config = model.get_decoder(), model.config.get_text_config()
    inside = set(decoder.modules())
    blocks = next(
        module
        for module in decoder.modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    )
    # what the configuration says of each block
    lists = [
        value
        for value in vars(config).values()
        if isinstance(value, (list, tuple)) and len(value) == len(blocks)
    ]
    kinds = [[one[place] for one in lists] for place in range(len(blocks))]
    count = max(2, *(kinds.index(kind) + 1 for kind in kinds))
    # what stands for a part of the model in the copy
    copied: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, AdaptableLinear):
            copied[id(module.group)] = None
        # what reads pictures or sounds
        if isinstance(module, PreTrainedModel) and not inside & {module, *module.modules()}:
            copied[id(module)] = nn.Identity()
    for weights in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        copied[id(weights)] = nn.Parameter(weights[:_VOCABULARY].clone(), requires_grad=False)
    copied[id(blocks)] = copy.deepcopy(blocks[:count], copied)
    small = copy.deepcopy(model, copied).float()
    for module in small.modules():
        if isinstance(module, AdaptableLinear):
            module.__class__ = nn.Linear  # type: ignore[assignment]
    small.get_input_embeddings().padding_idx = None
    own = small.config.get_text_config()
    if longest_packed(own) is not None:
        own.sliding_window = _WINDOW
        if rope_length(own):
            own.rope_parameters["original_max_position_embeddings"] = _WINDOW
    return small


@torch.inference_mode()
def largest_difference(base: BaseModel) -> float:
    """How far packed logits are off those of the library's own forward of each sequence, by a token's logits, at most.

    Prompts of several lengths are packed alone and beside others, behind a prefix, and with one that is longer than the
    window.
    """
    size = min(_VOCABULARY, len(base.head)) - 4
    ids = [3 + 7 * place % size for place in range(40)]
    trees = [
        TokenTree(tuple(ids[:3]), (tuple(ids[3:5]), tuple(ids[5:8]), ())),
        TokenTree(tuple(ids[8:14])),
        TokenTree((ids[14],), (tuple(ids[15:18]), (ids[18],))),
    ]
    long = TokenTree(tuple(ids[: 2 * _WINDOW]), (tuple(ids[20:22]), (ids[22],)))
    packs = (*([tree] for tree in trees), trees, [*trees, long])
    worst = [_difference(base, packed) for packed in packs]
    prefix = tuple(ids[30:34])
    worst.append(_difference(base, [trees[2], TokenTree((ids[9], ids[3]))], prefix, (4, 2)))
    return float(torch.stack(worst).max())


def _difference(
    base: BaseModel,
    trees: list[TokenTree],
    front: tuple[int, ...] = (),
    behind: tuple[int, ...] = (),
) -> Tensor:
    """The largest relative difference of one pack's logits."""
    model = base.model
    prefix = base.read_prefix(front) if front else None
    pack = pack_trees(trees, base.device, base.dtype, prefix, behind)
    mine = base.logits(base.hidden_states(pack))
    rows = rows_of(pack)
    model.set_attn_implementation("eager")
    alone = [
        model(ids[None, : mask.sum()], use_cache=False).logits[0].float()
        for ids, mask in zip(rows.ids, rows.mask, strict=True)
    ]
    model.set_attn_implementation(ATTENTION_NAME)
    places = zip(rows.row.tolist(), rows.place.tolist(), strict=True)
    theirs = torch.stack([alone[row][place] for row, place in places])
    off: Tensor = (mine - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return off.max()
