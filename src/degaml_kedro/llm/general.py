"""The way of every model: the library's own forward on separate rows, and its own logits.

Packing and the head as a matrix are faster, and are right for models whose layers mix tokens by attention alone and
whose head is nothing but a matrix. For all others a pack is laid out again as the sequences that are in it, one a row,
padded at their ends, and what the library does behind the last hidden state (bias, scale, cap) is asked of the library.

Shapes: T tokens in a pack, R rows, L longest row, C hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from degaml_kedro.llm.packing import Pack


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
    """A pack's sequences: from each group's first token, or the prefix's, to every token that nothing continues.

    Args:
        pack: the tokens; who may look at whom says what follows what.
    """
    known = 0 if pack.prefix is None else len(pack.prefix.tokens)
    allowed = (pack.bias[:, 0] == 0).cpu()
    longest = pack.gather.shape[1]
    counts = torch.bincount(pack.scatter.cpu() // longest, minlength=len(allowed)).tolist()
    gather, ids = pack.gather.cpu(), pack.input_ids[0].tolist()
    row = torch.zeros(len(ids), dtype=torch.long)
    place = torch.zeros(len(ids), dtype=torch.long)
    sequences: list[list[int]] = []
    for group, count in enumerate(counts):
        sees = allowed[group, :count, known : known + count]
        members = gather[group, :count]
        for leaf in torch.nonzero(sees.sum(dim=0) == 1)[:, 0].tolist():
            behind = int(allowed[group, leaf, :known].sum())
            path = members[sees[leaf]]
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
    """Final hidden states of a pack, [T, C], each from a row of its own sequence.

    Args:
        model: the causal language model.
        pack: the tokens.
    """
    rows = rows_of(pack)
    output = model.base_model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False)
    return output.last_hidden_state[rows.row, rows.place]  # type: ignore[no-any-return]


class _Steered(nn.Module):
    """A decoder whose final hidden states have a vector added, one for each row of the batch.

    Args:
        decoder: of the model.
        vectors: float32 [R, C].
    """

    def __init__(self, decoder: nn.Module, vectors: Tensor) -> None:
        super().__init__()
        # no child of this module, so that nobody moves or copies it
        object.__setattr__(self, "decoder", decoder)
        self.vectors = vectors[:, None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["decoder"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.decoder(*args, **kwargs)
        hidden = output.last_hidden_state
        output.last_hidden_state = (hidden.float() + self.vectors).to(hidden.dtype)
        return output


def steered(model: Any, vectors: Tensor) -> Any:
    """The model with a vector added to its final hidden states, for generation.

    Args:
        model: the causal language model; it is not changed, and shares all weights.
        vectors: float32 [R, C], one for each row of the batch.
    """
    return _with_decoder(model, lambda decoder: _Steered(decoder, vectors))


class _Given:
    """What a decoder returned, for a model that goes on from there."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, key: Any) -> Any:
        return self.last_hidden_state if key in (0, "last_hidden_state") else None

    def __getattr__(self, name: str) -> None:
        return None


class _NoDecoder(nn.Module):
    """Stands in the decoder's place: what it is given as embeddings are the final hidden states."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        # no child of this module: heads ask it for their scale
        object.__setattr__(self, "decoder", decoder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["decoder"], name)

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> _Given:
        return _Given(inputs_embeds)


def readout(model: Any) -> Any:
    """The model without its decoder: ``readout(model)(inputs_embeds=hidden).logits`` are the library's own logits.

    Args:
        model: the causal language model; it is not changed, and its head is not copied.
    """
    return _with_decoder(model, _NoDecoder)


def _with_decoder(model: Any, made: Callable[[nn.Module], nn.Module]) -> Any:
    """A copy of the model alone, with another decoder made from its own."""
    other = copy.copy(model)
    decoder = model._modules[model.base_model_prefix]
    other._modules = {**model._modules, model.base_model_prefix: made(decoder)}
    return other
