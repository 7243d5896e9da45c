"""LoRA on a frozen model without changing it: y = W x + (alpha / r) B A x.

Every linear layer of the base model becomes an :class:`AdaptableLinear` once, when the model is loaded. It reads
the adapter that is active in the current thread, so that the one shared model serves many adapters, in several
threads, without copies and without ever writing to it.

Layers that read the same input (query, key and value; gate and up) are computed as one product of their stacked
weights, and their adapters as one product of stacked A and block-diagonal B: on a CPU the small products of LoRA
cost more in calls than in arithmetic.

Shapes: T tokens, I inputs, O outputs, r rank, M layers of a group.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(eq=False)
class LinearGroup:
    """Linear layers that read the same input, with their weights stacked.

    Attributes:
        names: module names, in the order of their rows in ``weight``.
        weight: [O, I], the layers' weights one above the other; each layer's own weight is a view of it.
        bias: [O] or None.
        outputs: output width of each layer; they add up to O.
    """

    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor | None
    outputs: tuple[int, ...]


@dataclass(eq=False)
class GroupAdapter:
    """The adapter of one group, ready to compute with.

    Attributes:
        leaves: the A [r, I] and B [O_m, r] tensors the gradient goes to: A of every adapted layer, then B of each.
        members: which layers of the group are adapted, as indices.
        a: [M r, I] in the model's dtype.
        b: [O, M r] in the model's dtype, block-diagonal, times the scale.
        scale: alpha / r.
    """

    leaves: tuple[Tensor, ...]
    members: tuple[int, ...]
    a: Tensor
    b: Tensor
    scale: float

    def leaf_gradients(
        self, gradient: Tensor, low_gradient: Tensor, x: Tensor, low: Tensor, group: LinearGroup
    ) -> list[Tensor]:
        """Gradients of the leaves, in their order.

        Args:
            gradient: of the group's output, [T, O].
            low_gradient: of A x, [T, M r].
            x: the group's input, [T, I].
            low: A x, [T, M r].
            group: the layers.
        """
        kind, rank = self.leaves[0].dtype, self.leaves[0].shape[0]
        gradients = list((low_gradient.T @ x).to(kind).split(rank))
        for column, member in enumerate(self.members):
            row = sum(group.outputs[:member])
            block = gradient[:, row : row + group.outputs[member]].T
            product = block @ low[:, column * rank : (column + 1) * rank]
            gradients.append(product.to(kind).mul_(self.scale))
        return gradients


def group_adapter(
    group: LinearGroup, tensors: Mapping[str, tuple[Tensor, Tensor]], scale: float
) -> GroupAdapter | None:
    """Stack the adapters of a group's layers.

    Args:
        group: the layers.
        tensors: by layer name, A [r, I] and B [O_m, r]; layers without an entry are not adapted.
        scale: alpha / r.

    Returns:
        None when no layer of the group is adapted.
    """
    members = tuple(i for i, name in enumerate(group.names) if name in tensors)
    if not members:
        return None
    a_parts = [tensors[group.names[i]][0] for i in members]
    b_parts = [tensors[group.names[i]][1] for i in members]
    dtype = group.weight.dtype
    rank = a_parts[0].shape[0]
    with torch.no_grad():
        a = torch.cat([part.detach().to(dtype) for part in a_parts])
        b = torch.zeros(
            group.weight.shape[0], rank * len(members), dtype=dtype, device=group.weight.device
        )
        for column, (member, part) in enumerate(zip(members, b_parts, strict=True)):
            row = sum(group.outputs[:member])
            b[row : row + group.outputs[member], column * rank : (column + 1) * rank] = (
                part.detach() * scale
            )
    return GroupAdapter((*a_parts, *b_parts), members, a, b, scale)


class _LoraProduct(torch.autograd.Function):
    """The adapted product of a group, backward by hand: W gets no gradient, only x and A x are kept."""

    @staticmethod
    def forward(ctx, x: Tensor, group: LinearGroup, adapter: GroupAdapter, *leaves: Tensor):  # type: ignore[no-untyped-def]
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ adapter.a.T
        if group.bias is None:
            out = rows @ group.weight.T
        else:
            out = torch.addmm(group.bias, rows, group.weight.T)
        out.addmm_(low, adapter.b.T)
        ctx.save_for_backward(rows, low)
        ctx.group, ctx.adapter, ctx.shape = group, adapter, x.shape
        out = out.view(*x.shape[:-1], -1)
        return out if len(group.outputs) == 1 else out.split(group.outputs, dim=-1)

    @staticmethod
    def backward(ctx, *gradients: Tensor):  # type: ignore[no-untyped-def]
        rows, low = ctx.saved_tensors
        group, adapter = ctx.group, ctx.adapter
        gradient = gradients[0] if len(gradients) == 1 else torch.cat(gradients, dim=-1)
        gradient = gradient.reshape(-1, gradient.shape[-1])
        low_gradient = gradient @ adapter.b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = gradient @ group.weight
            grad_x.addmm_(low_gradient, adapter.a)
            grad_x = grad_x.view(ctx.shape)
        leaves = adapter.leaf_gradients(gradient, low_gradient, rows, low, group)
        return grad_x, None, None, *leaves


ActiveLora = Mapping[int, GroupAdapter]
_ACTIVE: ContextVar[ActiveLora | None] = ContextVar("degaml_active_lora", default=None)


class _Pending(threading.local):
    """Outputs of a group computed when its first layer ran, waiting for its siblings in the same thread."""

    group: LinearGroup | None = None
    x: Tensor | None = None
    outputs: tuple[Tensor, ...] = ()


_PENDING = _Pending()


class AdaptableLinear(nn.Linear):
    """A frozen ``nn.Linear`` that adds the active adapter's product."""

    group: LinearGroup
    member: int

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x [..., I] -> [..., O]."""
        group = self.group
        if len(group.names) > 1:
            if _PENDING.group is group and _PENDING.x is x:
                output = _PENDING.outputs[self.member]
                if self.member == len(group.names) - 1:
                    _PENDING.group, _PENDING.x, _PENDING.outputs = None, None, ()
                return output
        active = _ACTIVE.get()
        adapter = None if active is None else active.get(id(group))
        if adapter is None:
            outputs: Tensor | tuple[Tensor, ...] = nn.functional.linear(x, group.weight, group.bias)
            if len(group.names) > 1:
                outputs = outputs.split(group.outputs, dim=-1)  # type: ignore[union-attr]
        else:
            outputs = _LoraProduct.apply(x, group, adapter, *adapter.leaves)
        if isinstance(outputs, Tensor):
            return outputs
        if self.member == 0:
            _PENDING.group, _PENDING.x, _PENDING.outputs = group, x, outputs
        return outputs[self.member]


def make_adaptable(model: nn.Module) -> list[LinearGroup]:
    """Turn every ``nn.Linear`` of ``model`` into an :class:`AdaptableLinear`, in place.

    Siblings that read the same input get stacked storage; their own weights become views of it, so nothing is
    held twice.

    Args:
        model: a frozen model.

    Returns:
        The groups, in module order.
    """
    groups: list[LinearGroup] = []

    def adopt(names: Sequence[str], layers: Sequence[nn.Linear]) -> None:
        if len(layers) == 1:
            weight, bias = layers[0].weight.data, layers[0].bias
        else:
            weight = torch.cat([layer.weight.data for layer in layers])
            bias = None
            if layers[0].bias is not None:
                bias = torch.cat([layer.bias.data for layer in layers])
            row = 0
            for layer in layers:
                # a new parameter, not .data: the old storage must be free to go
                rows = slice(row, row + layer.out_features)
                layer.weight = nn.Parameter(weight[rows], requires_grad=False)
                if bias is not None:
                    layer.bias = nn.Parameter(bias[rows], requires_grad=False)
                row += layer.out_features
        group = LinearGroup(tuple(names), weight, bias, tuple(x.out_features for x in layers))
        groups.append(group)
        for member, layer in enumerate(layers):
            layer.__class__ = AdaptableLinear
            layer.group, layer.member = group, member  # type: ignore[assignment]

    for parent_name, parent in model.named_modules():
        children = {n: c for n, c in parent.named_children() if type(c) is nn.Linear}
        prefix = f"{parent_name}." if parent_name else ""
        for siblings in _SIBLINGS:
            found = [children.get(name) for name in siblings]
            layers = [layer for layer in found if layer is not None]
            alike = {(x.in_features, x.bias is None, x.weight.dtype) for x in layers}
            if len(layers) == len(siblings) and len(alike) == 1:
                adopt([prefix + name for name in siblings], layers)
                for name in siblings:
                    del children[name]
        for name, layer in children.items():
            adopt([prefix + name], [layer])
    return groups


def current_lora() -> ActiveLora | None:
    """The adapters that are active in this thread."""
    return _ACTIVE.get()


@contextmanager
def active_lora(active: ActiveLora | None) -> Iterator[None]:
    """Make the model use these adapters inside the block (per thread and task).

    Args:
        active: by ``id`` of the group; None is the base model itself.
    """
    token = _ACTIVE.set(active)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
        _PENDING.group, _PENDING.x, _PENDING.outputs = None, None, ()
