"""Normalisation and gating with fewer passes over memory than the model library's own modules.

The values are the library's: the same operations in the same order forward; the backward is written by hand, so
that one pass replaces the six that automatic differentiation would take. Modules are recognised by structure, not
by model family; what is not recognised keeps its own code.

Shapes: T tokens, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _RmsNorm(torch.autograd.Function):
    """y = w * x / sqrt(mean(x^2) + eps), statistics in float32 (Zhang and Sennrich, 2019)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float):  # type: ignore[no-untyped-def]
        wide = x.float()
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = inverse.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return weight * wide.mul_(inverse).to(x.dtype) if wide is not x else weight * (x * inverse)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        x, weight, inverse = ctx.saved_tensors
        normal = x.float() * inverse
        scaled = (gradient * weight).float()
        projection = torch.linalg.vecdot(scaled, normal).unsqueeze(-1).div_(x.shape[-1])
        return (scaled - normal * projection).mul_(inverse).to(x.dtype), None, None


class _Gate(torch.autograd.Function):
    """y = silu(gate) * up, keeping only its inputs (Shazeer, 2020)."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        gate, up = ctx.saved_tensors
        grad_up = nn.functional.silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * up, gate), grad_up


class LeanRmsNorm(nn.Module):
    """Stands in for a frozen RMSNorm module with ``weight`` and ``variance_epsilon``."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise hidden_states [..., C]."""
        return _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-any-return]


class LeanGatedMlp(nn.Module):
    """Stands in for a SwiGLU block with ``gate_proj``, ``up_proj``, ``down_proj``."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x [..., C]."""
        return self.down_proj(_Gate.apply(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-any-return]


def make_lean(model: nn.Module) -> None:
    """Swap the modules recognised here for lean ones, in place; parameters and their names stay."""
    for module in model.modules():
        children = dict(module.named_children())
        if (
            type(module).__name__.endswith("RMSNorm")
            and not children
            and hasattr(module, "variance_epsilon")
            and [name for name, _ in module.named_parameters()] == ["weight"]
        ):
            module.__class__ = LeanRmsNorm
        elif (
            set(children) == {"gate_proj", "up_proj", "down_proj", "act_fn"}
            and isinstance(children["act_fn"], nn.SiLU | _transformers_silu())
            and type(module).__name__.endswith("MLP")
        ):
            module.__class__ = LeanGatedMlp


def _transformers_silu() -> type[nn.Module]:
    from transformers.activations import ACT2FN

    return type(ACT2FN["silu"])
