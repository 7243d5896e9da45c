"""The decoder layers of a Llama-shaped model as one function with a hand-written backward.

The block is RMSNorm, rotary attention with grouped keys and values, RMSNorm, gated MLP. At the batch sizes of LoRA on
few examples half the time of the library's modules goes into hundreds of small operations, each dispatched and
differentiated on its own. Here what remains is the matrix products and few passes over memory.

    x  <- x + O(attention(rope(QKV(norm(x)))))
    x  <- x + D(silu(G(norm(x))) * U(norm(x)))

Shapes: T tokens in the pack, C width, F inner width of the MLP, H heads, K key-value heads, R = H / K, D head width,
G groups of the pack, S longest group, P tokens of the pack's prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from degaml_kedro.llm.lora import (
    ActiveLora,
    AdaptableLinear,
    DenseWeights,
    GroupAdapter,
    LinearGroup,
    StackedAdapter,
)
from degaml_kedro.llm.packing import Pack

# bytes of attention weights, which grow with the square of the length, that all blocks may keep for the backward pass;
# where there are more, each block makes its own again
_WEIGHTS_KEPT = 1 << 30


@dataclass(eq=False)
class _Layer:
    """One block's frozen parts."""

    first_norm: Tensor
    second_norm: Tensor
    qkv: LinearGroup
    out: LinearGroup
    gate_up: LinearGroup
    down: LinearGroup


@dataclass(eq=False)
class DecoderStack:
    """A model of these blocks.

    Attributes:
        final_norm: [C].
        heads: H.
        kv_heads: K.
        head_width: D.
    """

    embed: nn.Embedding
    rotary: nn.Module
    layers: list[_Layer]
    final_norm: Tensor
    eps: float
    heads: int
    kv_heads: int
    head_width: int

    def __call__(self, pack: Pack, active: ActiveLora | None) -> Tensor:
        """Final hidden states [T, C] of a pack under an adapter."""
        x = self.embed(pack.input_ids)
        cos, sin = self.rotary(x, pack.position_ids)
        groups = [
            group
            for layer in self.layers
            for group in (layer.qkv, layer.out, layer.gate_up, layer.down)
        ]
        adapters = [None if active is None else active.get(id(group)) for group in groups]
        leaves = [leaf for adapter in adapters if adapter is not None for leaf in adapter.leaves]
        run = _Run(self, pack, cos[0], sin[0], adapters)
        states: Tensor = _Decode.apply(x[0], run, *leaves)  # type: ignore[no-untyped-call]
        return states


class _Run:
    """What one forward and its backward share."""

    def __init__(
        self,
        stack: DecoderStack,
        pack: Pack,
        cos: Tensor,
        sin: Tensor,
        adapters: Sequence[GroupAdapter | StackedAdapter | DenseWeights | None],
    ) -> None:
        self.stack, self.pack, self.adapters = stack, pack, adapters
        half = stack.head_width // 2
        # [T, 1, D / 2]: the two halves of cos are equal, and so are those of sin
        self.cos, self.sin = cos[:, None, :half].contiguous(), sin[:, None, :half].contiguous()
        self.groups, self.longest = pack.gather.shape
        self.gather = pack.gather.reshape(-1)
        self.repeat = stack.heads // stack.kv_heads
        # the mask for R query heads folded into the rows: [G, 1, R S, P + S]
        self.bias = pack.bias.repeat(1, 1, self.repeat, 1)
        self.scale = stack.head_width**-0.5

    def rotate(self, qk: Tensor, sign: float) -> None:
        """Rotate qk [T, H + K, D] in place; ``sign`` -1 undoes it, which is also its transpose."""
        half = qk.shape[-1] // 2
        low, high = qk[..., :half], qk[..., half:]
        turned = low * self.cos
        turned.addcmul_(high, self.sin, value=-sign)
        high.mul_(self.cos).addcmul_(low, self.sin, value=sign)
        low.copy_(turned)

    def split_heads(self, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [G K, R S, D], keys and values [G K, S, D] from [G S, (H + 2 K) D]."""
        stack, g, s = self.stack, self.groups, self.longest
        heads = grid.view(g, s, stack.heads + 2 * stack.kv_heads, stack.head_width)
        q, k, v = heads.split([stack.heads, stack.kv_heads, stack.kv_heads], dim=2)
        q = q.view(g, s, stack.kv_heads, self.repeat, -1).permute(0, 2, 3, 1, 4)
        flat = g * stack.kv_heads
        return (
            q.reshape(flat, self.repeat * s, -1),
            k.transpose(1, 2).reshape(flat, s, -1),
            v.transpose(1, 2).reshape(flat, s, -1),
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Attention of scaled queries, [G K, R S, D], and its weights, [G K, R S, P + S]."""
        prefix = self.pack.prefix
        known_k, known_v = (None, None) if prefix is None else prefix.layers[layer]
        chances = self.weights(q, k, known_k)
        mixed = torch.bmm(chances[..., -self.longest :], v)
        if known_v is not None:
            mixed += self._by_prefix(chances[..., : -self.longest], known_v)
        return mixed, chances

    def weights(self, q: Tensor, k: Tensor, known_k: Tensor | None = None) -> Tensor:
        """Attention weights of scaled queries, [G K, R S, P + S]."""
        scores = torch.bmm(q, k.transpose(1, 2))
        if known_k is not None:
            scores = torch.cat([self._by_prefix(q, known_k.transpose(1, 2)), scores], dim=-1)
        scores.view(self.groups, self.stack.kv_heads, -1, scores.shape[-1]).add_(self.bias)
        return torch.softmax(scores, dim=-1)

    def _by_prefix(self, rows: Tensor, known: Tensor) -> Tensor:
        """Rows [G K, R S, X] times the prefix's [K, X, Y], which all groups share: [G K, R S, Y]."""
        heads = self.stack.kv_heads
        rows = rows.unflatten(0, (self.groups, heads)).transpose(0, 1).flatten(1, 2)
        found = torch.bmm(rows, known).view(heads, self.groups, -1, known.shape[2])
        return found.transpose(0, 1).flatten(0, 1)

    def merge_queries(self, q: Tensor) -> Tensor:
        """[G S, H D] from [G K, R S, D]."""
        q = q.view(self.groups, self.stack.kv_heads, self.repeat, self.longest, -1)
        return q.permute(0, 3, 1, 2, 4).reshape(self.groups * self.longest, -1)

    def split_queries(self, rows: Tensor) -> Tensor:
        """[G K, R S, D] from [G S, H D]."""
        q = rows.view(self.groups, self.longest, self.stack.kv_heads, self.repeat, -1)
        flat = self.groups * self.stack.kv_heads
        return q.permute(0, 2, 3, 1, 4).reshape(flat, self.repeat * self.longest, -1)


def _norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm and its inverse root mean square [T, 1], statistics in float32."""
    wide = x.float()
    inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = inverse.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * inverse).to(x.dtype).mul_(weight), inverse


def _norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    normal = x.float().mul_(inverse)
    scaled = (gradient * weight).float()
    projection = torch.linalg.vecdot(scaled, normal).unsqueeze_(-1).div_(-x.shape[-1])
    return scaled.addcmul_(normal, projection).mul_(inverse).to(x.dtype)


def _product(
    x: Tensor, group: LinearGroup, adapter: GroupAdapter | StackedAdapter | DenseWeights | None
) -> tuple[Tensor, Tensor | None]:
    """W x + B A x for a group, and A x, which the backward needs."""
    weight = group.weight.T
    if isinstance(adapter, DenseWeights):
        weight, adapter = adapter.weight.T, adapter.low_rank
    out = x @ weight if group.bias is None else torch.addmm(group.bias, x, weight)
    if adapter is None:
        return out, None
    if isinstance(adapter, StackedAdapter):
        return adapter.add(out, x), None
    low = x @ adapter.a.T
    return out.addmm_(low, adapter.b.T), low


def _product_backward(
    gradient: Tensor,
    x: Tensor,
    low: Tensor | None,
    group: LinearGroup,
    adapter: GroupAdapter | DenseWeights | None,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of x and of the adapter's leaves."""
    weight, low_rank, low_gradient = group.weight, adapter, None
    if isinstance(low_rank, DenseWeights):
        weight, low_rank = low_rank.weight, low_rank.low_rank
    grad_x = gradient @ weight
    if low_rank is not None:
        low_gradient = gradient @ low_rank.b
        grad_x.addmm_(low_gradient, low_rank.a)
    return grad_x, _leaf_gradients(gradient, x, low, group, adapter, low_gradient)


def _leaf_gradients(
    gradient: Tensor,
    x: Tensor,
    low: Tensor | None,
    group: LinearGroup,
    adapter: GroupAdapter | DenseWeights | None,
    low_gradient: Tensor | None = None,
) -> list[Tensor]:
    """Gradients of the adapter's leaves alone; that of A x is made where it is not given."""
    leaves: list[Tensor] = []
    if isinstance(adapter, DenseWeights):
        leaves = adapter.weight_gradients(gradient, x, group)
        adapter = adapter.low_rank
    if adapter is None or low is None:
        return leaves
    if low_gradient is None:
        low_gradient = gradient @ adapter.b
    return leaves + adapter.leaf_gradients(gradient, low_gradient, x, low, group)


class _Decode(torch.autograd.Function):
    """All blocks and the final norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: _Run, *leaves: Tensor) -> Tensor:
        stack, pack = run.stack, run.pack
        adapters = iter(run.adapters)
        keep = any(ctx.needs_input_grad)
        if keep and any(isinstance(adapter, StackedAdapter) for adapter in run.adapters):
            raise RuntimeError(
                "adapters that answer together have no backward; train them one by one"
            )
        if keep and pack.prefix is not None:
            raise RuntimeError("nothing can be learned behind a prefix; pack the whole sequences")
        saved: list[tuple[Any, ...]] = []
        both = stack.heads + stack.kv_heads
        for index, layer in enumerate(stack.layers):
            x_in = x
            h_1, inverse_1 = _norm(x, layer.first_norm, stack.eps)
            qkv, low_1 = _product(h_1, layer.qkv, next(adapters))
            run.rotate(qkv[:, : both * stack.head_width].view(len(qkv), both, -1), 1.0)
            q, k, v = run.split_heads(qkv.index_select(0, run.gather))
            if pack.record is not None:
                pack.record[index] = k[: stack.kv_heads], v[: stack.kv_heads]
            mixed, chances = run.attend(q.mul_(run.scale), k, v, index)
            kept = chances if chances.nbytes * len(stack.layers) <= _WEIGHTS_KEPT else None
            mixed = run.merge_queries(mixed).index_select(0, pack.scatter)
            out, low_2 = _product(mixed, layer.out, next(adapters))
            x_mid = out.add_(x)
            h_2, inverse_2 = _norm(x_mid, layer.second_norm, stack.eps)
            gate_up, low_3 = _product(h_2, layer.gate_up, next(adapters))
            gate, up = gate_up.split(layer.gate_up.outputs, dim=-1)
            inner = nn.functional.silu(gate).mul_(up)
            out, low_4 = _product(inner, layer.down, next(adapters))
            x = out.add_(x_mid)
            if keep:
                attention = (x_in, h_1, inverse_1, low_1, q, k, v, kept, mixed, low_2)
                saved.append((*attention, x_mid, h_2, inverse_2, low_3, gate_up, low_4))
        out, inverse = _norm(x, stack.final_norm, stack.eps)
        if keep:
            # the run ends with its backward; nothing outside can change these tensors
            ctx.run, ctx.saved, ctx.last = run, saved, (x, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        run: _Run = ctx.run
        stack, pack = run.stack, run.pack
        adapters = [adapter for adapter in run.adapters if not isinstance(adapter, StackedAdapter)]
        gradients: list[list[Tensor]] = []
        both = (stack.heads + stack.kv_heads) * stack.head_width
        dx = _norm_backward(gradient, ctx.last[0], stack.final_norm, ctx.last[1])
        for index in range(len(stack.layers) - 1, -1, -1):
            layer = stack.layers[index]
            x_in, h_1, inverse_1, low_1, q, k, v, kept, mixed, low_2 = ctx.saved[index][:10]
            x_mid, h_2, inverse_2, low_3, gate_up, low_4 = ctx.saved[index][10:]
            ctx.saved[index] = ()
            to_down, to_gate_up, to_out, to_qkv = (adapters.pop() for _ in range(4))

            gate, up = gate_up.split(layer.gate_up.outputs, dim=-1)
            open_gate = nn.functional.silu(gate)
            d_inner, leaves = _product_backward(dx, open_gate * up, low_4, layer.down, to_down)
            gradients.append(leaves)
            d_gate_up = torch.empty_like(gate_up)
            d_gate, d_up = d_gate_up.split(layer.gate_up.outputs, dim=-1)
            torch.mul(d_inner, open_gate, out=d_up)
            torch.ops.aten.silu_backward.grad_input(d_inner.mul_(up), gate, grad_input=d_gate)
            dh, leaves = _product_backward(d_gate_up, h_2, low_3, layer.gate_up, to_gate_up)
            gradients.append(leaves)
            dx = dx.add_(_norm_backward(dh, x_mid, layer.second_norm, inverse_2))

            d_mixed, leaves = _product_backward(dx, mixed, low_2, layer.out, to_out)
            gradients.append(leaves)
            grid = d_mixed.new_zeros(run.groups * run.longest, d_mixed.shape[1])
            d_o = run.split_queries(grid.index_copy_(0, pack.scatter, d_mixed))
            chances = run.weights(q, k) if kept is None else kept
            d_v = torch.bmm(chances.transpose(1, 2), d_o)
            d_scores = torch.bmm(d_o, v.transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_scores, chances, -1, chances.dtype)
            d_k = torch.bmm(d_scores.transpose(1, 2), q)  # q carries the scale
            d_q = torch.bmm(d_scores, k).mul_(run.scale)
            grid = d_q.new_empty(run.groups, run.longest, layer.qkv.weight.shape[0])
            heads = grid.view(run.groups, run.longest, -1, stack.head_width)
            first, second = stack.heads, stack.heads + stack.kv_heads
            heads[:, :, :first].view(run.groups, run.longest, stack.kv_heads, run.repeat, -1).copy_(
                d_q.view(run.groups, stack.kv_heads, run.repeat, run.longest, -1).permute(
                    0, 3, 1, 2, 4
                )
            )
            shape = (run.groups, stack.kv_heads, run.longest, -1)
            heads[:, :, first:second].copy_(d_k.view(shape).transpose(1, 2))
            heads[:, :, second:].copy_(d_v.view(shape).transpose(1, 2))
            d_qkv = grid.view(run.groups * run.longest, -1).index_select(0, pack.scatter)
            run.rotate(d_qkv[:, :both].view(len(d_qkv), first + stack.kv_heads, -1), -1.0)
            if index > 0 or ctx.needs_input_grad[0]:
                dh, leaves = _product_backward(d_qkv, h_1, low_1, layer.qkv, to_qkv)
                dx = dx.add_(_norm_backward(dh, x_in, layer.first_norm, inverse_1))
            else:
                # nothing below the first block learns
                leaves = _leaf_gradients(d_qkv, h_1, low_1, layer.qkv, to_qkv)
            gradients.append(leaves)
        flat = [leaf for leaves in reversed(gradients) for leaf in leaves]
        return (dx if ctx.needs_input_grad[0] else None), None, *flat


# architectures of exactly these blocks
_FUSED = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "SmolLM3ForCausalLM"}
)


def decoder_stack(model: Any) -> DecoderStack | None:
    """The decoder of a model whose configuration says that it has these blocks; None for another."""
    config = model.config
    rope_everywhere = all(getattr(config, "no_rope_layers", None) or (True,))
    if type(model).__name__ not in _FUSED or config.hidden_act != "silu" or not rope_everywhere:
        return None
    body, layers = model.base_model, []
    for block in body.layers:
        attention, mlp = block.self_attn, block.mlp
        parts = (attention.q_proj, attention.o_proj, mlp.gate_proj, mlp.down_proj)
        groups = [part.group for part in parts if isinstance(part, AdaptableLinear)]
        # siblings of which some alone have a bias, and layers of other classes, have no common storage
        if [len(group.names) for group in groups] != [3, 1, 2, 1]:
            return None
        layers.append(
            _Layer(block.input_layernorm.weight, block.post_attention_layernorm.weight, *groups)
        )
    return DecoderStack(
        embed=body.embed_tokens,
        rotary=body.rotary_emb,
        layers=layers,
        final_norm=body.norm.weight,
        eps=config.rms_norm_eps,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=body.layers[0].self_attn.head_dim,
    )
