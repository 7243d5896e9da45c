"""Attention over a pack: each group is gathered into a [G, S] grid, attends under its own mask, and is scattered back.

All other layers see one row of T tokens, none of them padding.

Shapes: T tokens in the pack, G groups, S longest group, P tokens of the prefix, H heads, K key-value heads, D head
width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from degaml_kedro.llm.packing import Pack

ATTENTION_NAME = "degaml_packed"

_ACTIVE: ContextVar[Pack | None] = ContextVar("degaml_active_pack", default=None)
_ELEMENTARY: ContextVar[bool] = ContextVar("degaml_elementary_attention", default=False)


@contextmanager
def active_pack(pack: Pack | None, elementary: bool = False) -> Iterator[None]:
    """Make the model's attention read ``pack``, or a batch of rows, inside the block (per thread and task).

    ``elementary`` attention has derivatives of every order; fused kernels have a first one only, and the library's
    switch between them is one for all threads.
    """
    tokens = _ACTIVE.set(pack), _ELEMENTARY.set(elementary)
    try:
        yield
    finally:
        _ACTIVE.reset(tokens[0])
        _ELEMENTARY.reset(tokens[1])


def _packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in Transformers' calling convention; without an active pack it is plain SDPA.

    The query is [1, H, T, D], key and value are [1, K, T, D]; ``scaling`` is 1/sqrt(D) when None. The mask is only read
    without a pack, and so is dropout: the base model is frozen.

    Returns:
        [1, T, H, D] and None in place of the attention weights.
    """
    pack = _ACTIVE.get()
    elementary = _ELEMENTARY.get()
    if pack is None and not elementary:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    heads, width = query.shape[1], query.shape[3]
    shared = heads // key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    if pack is None:
        k, v = (states.repeat_interleave(shared, dim=1) for states in (key, value))
        return _elementary(query * scale, k, v, attention_mask).transpose(1, 2), None
    groups, longest = pack.gather.shape
    gather = pack.gather.reshape(-1)

    def grid(states: Tensor) -> Tensor:  # [1, X, T, D] -> [G, X, S, D]
        rows = states[0].transpose(0, 1).index_select(0, gather)
        return rows.view(groups, longest, -1, width).transpose(1, 2)

    q, k, v = grid(query), grid(key), grid(value)
    if pack.record is not None:
        pack.record[module.layer_idx] = k[0], v[0]  # type: ignore[index]
    if pack.prefix is not None:
        known_k, known_v = pack.prefix.layers[module.layer_idx]  # type: ignore[index]
        k = torch.cat([known_k.expand(groups, -1, -1, -1), k], dim=2)
        v = torch.cat([known_v.expand(groups, -1, -1, -1), v], dim=2)
    if shared > 1:
        # query heads of one key-value head stand together: fold them into the batch
        k = k.repeat_interleave(shared, dim=1)
        v = v.repeat_interleave(shared, dim=1)
    if elementary:
        mixed = _elementary(q * scale, k, v, pack.bias)
    else:
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=pack.bias, scale=scale
        )
    rows = mixed.transpose(1, 2).reshape(groups * longest, heads, width)
    return rows.index_select(0, pack.scatter).unsqueeze(0), None


def _elementary(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of scaled queries, [B, H, S, D], from operations that have derivatives of every order."""
    scores = q @ k.transpose(2, 3)
    return torch.softmax(scores if bias is None else scores + bias, dim=-1) @ v


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask that goes with :func:`_packed_attention`: none under a pack, else one that is added, or SDPA's."""
    if _ACTIVE.get() is not None:
        return None
    return (eager_mask if _ELEMENTARY.get() else sdpa_mask)(*args, **kwargs)


AttentionInterface.register(ATTENTION_NAME, _packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)
