"""The way of every model: the library's own forward on separate rows, and its own logits.

Packing and the head as a matrix are faster, and are right for models whose layers mix tokens by attention alone and
whose head is nothing but a matrix. For all others a pack is laid out again as the sequences that are in it, one a row,
padded at their ends, and what the library does behind the last hidden state (bias, scale, cap) is asked of the library.

Shapes: T tokens in a pack, R rows, L longest row, C hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from degaml_kedro.llm.lora import AdaptableLinear, adapters_at_once, current_lora
from degaml_kedro.llm.packing import Pack, batches_by_length

# rows are computed in batches of so many tokens: every option of a question is a row of its own
_TOKENS_AT_ONCE = 4096
# models of the library that read padding as tokens
_ALONE = ("rwkv",)


@dataclass(frozen=True, eq=False)
class Rows:
    """The sequences of a pack.

    Attributes:
        ids: [R, L], zeros behind a sequence's end.
        mask: [R, L], 1 where a token stands.
        row: [T], a row that each token of the pack stands in.
        place: [T], where in that row.
    """

    ids: Tensor
    mask: Tensor
    row: Tensor
    place: Tensor


def rows_of(pack: Pack) -> Rows:
    """A pack's sequences: from each group's first token, or the prefix's, to every token that nothing continues."""
    entry, leaving = pack.entry.cpu(), pack.leaving.cpu()
    in_front = [0] * len(entry) if pack.behind is None else pack.behind.tolist()
    longest = pack.gather.shape[1]
    counts = torch.bincount(pack.scatter.cpu() // longest, minlength=len(entry)).tolist()
    gather, ids = pack.gather.cpu(), pack.input_ids[0].tolist()
    row = torch.zeros(len(ids), dtype=torch.long)
    place = torch.zeros(len(ids), dtype=torch.long)
    sequences: list[list[int]] = []
    for group, count in enumerate(counts):
        first, last, behind = entry[group, :count], leaving[group, :count], in_front[group]
        members = gather[group, :count]
        for leaf in torch.nonzero(last == first + 1)[:, 0].tolist():
            path = members[(first <= first[leaf]) & (first[leaf] < last)]
            row[path] = len(sequences)
            place[path] = torch.arange(behind, behind + len(path))
            front = [] if pack.prefix is None else list(pack.prefix.tokens[:behind])
            sequences.append(front + [ids[token] for token in path.tolist()])
    width = max(map(len, sequences))
    laid = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for number, sequence in enumerate(sequences):
        laid[number, : len(sequence)] = torch.tensor(sequence)
        mask[number, : len(sequence)] = 1
    device = pack.input_ids.device
    return Rows(laid.to(device), mask.to(device), row.to(device), place.to(device))


def hidden_by_rows(model: Any, pack: Pack) -> Tensor:
    """Final hidden states of a pack, [T, C], each from a row of its own sequence, under the active adapters."""
    rows = rows_of(pack)
    # equal parts of the pack that each have an adapter of their own
    shares = adapters_at_once(current_lora())
    lengths = rows.mask.sum(dim=1).tolist()
    count = len(lengths) // shares
    states: list[Tensor] = []
    # of each row's first token in all states
    starts, computed = torch.zeros_like(rows.mask[:, 0]), 0
    for batch in row_batches(model, lengths[:count], _TOKENS_AT_ONCE // shares):
        chosen = [share * count + row for share in range(shares) for row in batch]
        width = max(lengths[row] for row in chosen)
        output = model.base_model(
            input_ids=rows.ids[chosen, :width],
            attention_mask=rows.mask[chosen, :width],
            use_cache=False,
        )
        states.append(output.last_hidden_state.flatten(0, 1))
        starts[chosen] = computed + width * torch.arange(len(chosen), device=starts.device)
        computed += len(states[-1])
    return torch.cat(states)[starts[rows.row] + rows.place]


def with_eager_attention(model: Any) -> Any:
    """A copy of a model whose attention is the library's own products and softmax; the weights are shared.

    The library's switch is one for all threads, and fused kernels have no second derivative.
    """
    shared = [*model.parameters(), *model.buffers()]
    shared += [module.group for module in model.modules() if isinstance(module, AdaptableLinear)]
    other = copy.deepcopy(model, {id(one): one for one in shared})
    other.set_attn_implementation("eager")
    return other


def row_batches(model: Any, lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices of rows that may be computed beside each other, in batches."""
    limit = rope_length(model.config.get_text_config())
    # beyond the limit, how positions are turned depends on the longest row
    if model.config.model_type in _ALONE or (limit is not None and max(lengths) > limit):
        return [[row] for row in range(len(lengths))]
    return list(batches_by_length(lengths, tokens))


def rope_length(config: Any) -> int | None:
    """The length beyond which longrope turns all positions of a batch otherwise; None where nothing does."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return int(rope["original_max_position_embeddings"])


def turn_one_at_a_time(model: nn.Module) -> None:
    """Let one thread at a time compute longrope's cosines and sines.

    The library keeps the frequencies, which follow from the longest row of a call, in a buffer of the model: threads
    with long and with short rows would compute with each other's.
    """
    for module in model.modules():
        # by kind of layer, or one for all
        kinds = getattr(module, "rope_type", None)
        if kinds == "longrope" or (isinstance(kinds, dict) and "longrope" in kinds.values()):
            module.forward = _locked(module.forward)


def _locked(function: Callable[..., Any]) -> Callable[..., Any]:
    lock = threading.Lock()

    def one_at_a_time(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return function(*args, **kwargs)

    return one_at_a_time


class _InPlaceOf(nn.Module):
    """In a decoder's place: heads and ``generate`` ask it for what they ask of the decoder."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        # no child of this module, so that nobody moves or copies it
        object.__setattr__(self, "decoder", decoder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["decoder"], name)


class _Steered(_InPlaceOf):
    """A decoder whose final hidden states have a vector added, one (float32 [R, C]) for each row of the batch."""

    def __init__(self, decoder: nn.Module, vectors: Tensor) -> None:
        super().__init__(decoder)
        self.vectors = vectors[:, None]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.decoder(*args, **kwargs)
        hidden = output.last_hidden_state
        output.last_hidden_state = (hidden.float() + self.vectors).to(hidden.dtype)
        return output


def steered(model: Any, vectors: Tensor) -> Any:
    """The model with vectors [R, C] in float32 added to its final hidden states, one a row, for generation."""
    return _with_decoder(model, lambda decoder: _Steered(decoder, vectors))


class _Given:
    """What a decoder returned, for a model that goes on from there."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, key: Any) -> Any:
        return self.last_hidden_state if key in (0, "last_hidden_state") else None

    def __getattr__(self, name: str) -> None:
        return None


class _NoDecoder(_InPlaceOf):
    """What it is given as embeddings are the final hidden states."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> _Given:
        return _Given(inputs_embeds)


def readout(model: Any) -> Any:
    """The model without its decoder: ``readout(model)(inputs_embeds=hidden).logits`` are the library's own logits.

    Raises:
        ValueError: its logits are not finite, or made of more than the decoder's final hidden states, or these of what
            comes later.
    """
    states: list[Tensor] = []
    try:
        found = _with_decoder(model, _NoDecoder)
        hook = model.base_model.register_forward_hook(
            lambda _, args, output: states.append(output.last_hidden_state)
        )
        with torch.inference_mode():
            logits = model(torch.tensor([[3, 1, 4]], device=model.device), use_cache=False).logits
            hook.remove()
            if not logits.isfinite().all():
                raise ValueError("its logits are not finite, so its weights are damaged")
            before = model(torch.tensor([[3, 1]], device=model.device), use_cache=False).logits
            if not torch.allclose(before, logits[:, :2], rtol=0.01, atol=0.01 * logits.std()):
                raise ValueError("its tokens look at those behind them, and so none is predicted")
            # the same products of the same tensors: nothing is rounded otherwise
            if torch.equal(found(inputs_embeds=states[0]).logits, logits):
                return found
    except (RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"its logits cannot be computed apart from its decoder ({error})"
        ) from error
    raise ValueError("its logits are made of more than its final hidden states")


def _with_decoder(model: Any, made: Callable[[nn.Module], nn.Module]) -> Any:
    """A copy of the model alone, with another decoder made from its own."""
    other = copy.copy(model)
    decoder = model._modules[model.base_model_prefix]
    other._modules = {**model._modules, model.base_model_prefix: made(decoder)}
    return other
