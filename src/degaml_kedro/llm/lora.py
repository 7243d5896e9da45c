"""LoRA on a frozen model without changing it: y = W x + (alpha / r) B A x.

Every linear layer of the base model becomes an :class:`AdaptableLinear` once, when the model is loaded. It reads
the adapter that is active in the current thread, so that the one shared model serves many adapters, in several
threads, without copies and without ever writing to it.

Layers that read the same input (query, key and value; gate and up) get stacked storage, so that
:mod:`~degaml_kedro.llm.fast.fused` computes them as one product, and their adapters as one product of stacked A and
block-diagonal B: on a CPU the small products of LoRA cost more in calls than in arithmetic.

Shapes: T tokens, I inputs, O outputs, r rank, M layers of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

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
    """The adapter of one group, ready to compute with: y = W x + b (a x).

    Attributes:
        leaves: the A [r, I] and B [O_m, r] tensors the gradient goes to: A of every adapted layer, then B of each.
        members: which layers of the group are adapted, as indices.
        a: [M r, I] in the model's dtype, times the scale alpha / r.
        b: [O, M r] in the model's dtype, block-diagonal.
    """

    leaves: tuple[Tensor, ...]
    members: tuple[int, ...]
    a: Tensor
    b: Tensor
    scale: float

    def pair(self, member: int) -> tuple[Tensor, Tensor]:
        """A [r, I] and B [O_m, r] of one layer of the group."""
        column = self.members.index(member)
        return self.leaves[column], self.leaves[len(self.members) + column]

    def leaf_gradients(
        self, gradient: Tensor, low_gradient: Tensor, x: Tensor, low: Tensor, group: LinearGroup
    ) -> list[Tensor]:
        """Gradients of the leaves, in their order, from those of the output [T, O] and of ``low`` = a x [T, M r]."""
        kind, rank = self.leaves[0].dtype, self.leaves[0].shape[0]
        gradients = list(((low_gradient * self.scale).T @ x).to(kind).split(rank))
        # one product for all layers; what lies off the diagonal blocks is not used, and costs less than more calls
        b_gradient = (low.T @ gradient).to(kind)
        for column, member in enumerate(self.members):
            row = sum(group.outputs[:member])
            block = b_gradient[column * rank : (column + 1) * rank]
            gradients.append(block[:, row : row + group.outputs[member]].T)
        return gradients


def group_adapter(
    group: LinearGroup, tensors: Mapping[str, tuple[Tensor, Tensor]], scale: float
) -> GroupAdapter | None:
    """Stack the adapters of a group's layers, A [r, I] and B [O_m, r] by name; None when none of them is adapted."""
    members = tuple(i for i, name in enumerate(group.names) if name in tensors)
    if not members:
        return None
    a_parts = [tensors[group.names[i]][0] for i in members]
    b_parts = [tensors[group.names[i]][1] for i in members]
    weight, rank = group.weight, a_parts[0].shape[0]
    with torch.no_grad():
        a = (torch.cat(a_parts) if len(a_parts) > 1 else a_parts[0]).to(weight.dtype) * scale
        if len(group.names) == 1:
            b = b_parts[0].detach().to(weight.dtype)
        else:
            b = weight.new_zeros(weight.shape[0], rank * len(members))
            for column, (member, part) in enumerate(zip(members, b_parts, strict=True)):
                row = sum(group.outputs[:member])
                columns = slice(column * rank, (column + 1) * rank)
                b[row : row + group.outputs[member], columns] = part.detach()
    return GroupAdapter((*a_parts, *b_parts), members, a, b, scale)


@dataclass(eq=False)
class StackedAdapter:
    """Several adapters of one group, each for its own share of the rows: one pair of products serves all of them.

    The rows of the input are K equal parts, the k-th for the k-th adapter.

    Attributes:
        members: which layers of the group are adapted, as indices.
        a: [K, M r, I] in the model's dtype, times the scale.
        b: [K, O, M r] in the model's dtype, block-diagonal.
    """

    members: tuple[int, ...]
    a: Tensor
    b: Tensor
    # nothing learns through it
    leaves: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, adapters: Sequence[GroupAdapter]) -> StackedAdapter:
        """Stack adapters of one group and one rank.

        Raises:
            ValueError: they adapt different layers or differ in rank.
        """
        first = adapters[0]
        if any(x.members != first.members or x.a.shape != first.a.shape for x in adapters):
            raise ValueError("adapters of different layers or ranks cannot be computed together")
        return cls(
            first.members,
            torch.stack([adapter.a for adapter in adapters]),
            torch.stack([adapter.b for adapter in adapters]),
        )

    def add(self, output: Tensor, x: Tensor) -> Tensor:
        """Add the products for x [K T, I] to the group's output [K T, O], in place."""
        rows = x.view(len(self.a), -1, x.shape[-1])
        low = torch.bmm(rows, self.a.transpose(1, 2))
        output.view(len(self.b), -1, output.shape[-1]).baddbmm_(low, self.b.transpose(1, 2))
        return output

    def part(self, x: Tensor, member: int, group: LinearGroup) -> Tensor:
        """What is added to one layer's output, [..., O_m], for x [..., I] with K T rows in all."""
        rank = self.a.shape[1] // len(self.members)
        column, row = self.members.index(member), sum(group.outputs[:member])
        ranks = slice(column * rank, (column + 1) * rank)
        a, b = self.a[:, ranks], self.b[:, row : row + group.outputs[member], ranks]
        rows = x.reshape(len(self.a), -1, x.shape[-1])
        added = torch.bmm(torch.bmm(rows, a.transpose(1, 2)), b.transpose(1, 2))
        return added.view(*x.shape[:-1], -1)


@dataclass(eq=False)
class DenseWeights:
    """Whole weights in place of a group's frozen ones, as a sample of all weights needs them: y = V x + b (a x).

    What is small beside the weights, such as a mean change of low rank, is better added as a product of its own:
    16 bits round it away where it is added to a weight.

    Attributes:
        members: which layers of the group have other weights, as indices.
        weights: V of each of them, [O_m, I], in the model's dtype.
        weight: [O, I], the whole group's: other rows are the frozen ones.
        low_rank: b (a x) of the same layers, or None.
    """

    members: tuple[int, ...]
    weights: tuple[Tensor, ...]
    weight: Tensor
    low_rank: GroupAdapter | None

    @classmethod
    def of(
        cls, group: LinearGroup, weights: Mapping[str, Tensor], low_rank: GroupAdapter | None = None
    ) -> DenseWeights | None:
        """Stack the weights V [O_m, I] of a group's layers by name; None when none of them has other weights."""
        members = tuple(i for i, name in enumerate(group.names) if name in weights)
        if not members:
            return None
        chosen = tuple(weights[group.names[i]] for i in members)
        with torch.no_grad():
            if len(group.names) == 1:
                weight = chosen[0].detach()
            else:
                rows = list(group.weight.split(group.outputs))
                for member, part in zip(members, chosen, strict=True):
                    rows[member] = part.detach()
                weight = torch.cat(rows)
        return cls(members, chosen, weight, low_rank)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """Where the gradient goes to: V of every layer, then the leaves of the low-rank product."""
        return (*self.weights, *(() if self.low_rank is None else self.low_rank.leaves))

    def weight_gradients(self, gradient: Tensor, x: Tensor, group: LinearGroup) -> list[Tensor]:
        """Gradients of V, in the order of the members, from those of the output [T, O] and the input x [T, I]."""
        if len(self.members) == len(group.outputs):
            return list((gradient.T @ x).split(group.outputs))
        parts = gradient.split(group.outputs, dim=-1)
        return [parts[member].T @ x for member in self.members]


ActiveLora = Mapping[int, GroupAdapter | StackedAdapter | DenseWeights]
_ACTIVE: ContextVar[ActiveLora | None] = ContextVar("degaml_active_lora", default=None)


class AdaptableLinear(nn.Linear):
    """A frozen ``nn.Linear`` that adds the active adapter's product.

    This is the path of models that :mod:`~degaml_kedro.llm.fast.fused` does not compute, and of decoding.
    """

    group: LinearGroup
    member: int

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x [..., I] -> [..., O]."""
        active = _ACTIVE.get()
        adapter = None if active is None else active.get(id(self.group))
        if adapter is None or self.member not in adapter.members:
            return nn.functional.linear(x, self.weight, self.bias)
        weight = self.weight
        if isinstance(adapter, DenseWeights):
            weight = adapter.weights[adapter.members.index(self.member)]
            adapter = adapter.low_rank
        output = nn.functional.linear(x, weight, self.bias)
        if adapter is None:
            return output
        if isinstance(adapter, StackedAdapter):
            return output + adapter.part(x, self.member, self.group)
        a, b = adapter.pair(self.member)
        return output + (x @ a.to(x.dtype).T) @ (b * adapter.scale).to(x.dtype).T


def make_adaptable(model: nn.Module, skip: frozenset[str] = frozenset()) -> list[LinearGroup]:
    """Turn every linear layer of ``model`` into an :class:`AdaptableLinear`, in place: the groups, in module order.

    GPT-2's ``Conv1D``, whose weight is [I, O], is one, too, and so is Falcon's class. Siblings that read the same input
    get stacked storage; their own weights become views of it, so nothing is held twice.
    """
    groups: list[LinearGroup] = []

    def adopt(names: Sequence[str], layers: Sequence[nn.Linear]) -> None:
        weight = layers[0].weight.data
        bias: Tensor | None = layers[0].bias
        outputs = tuple(layer.out_features for layer in layers)
        if len(layers) > 1:
            # new parameters, not .data: the old storage must be free to go
            weight = torch.cat([layer.weight.data for layer in layers])
            for layer, rows in zip(layers, weight.split(outputs), strict=True):
                layer.weight = nn.Parameter(rows, requires_grad=False)
            if bias is not None:
                bias = torch.cat([layer.bias.data for layer in layers])
                for layer, rows in zip(layers, bias.split(outputs), strict=True):
                    layer.bias = nn.Parameter(rows, requires_grad=False)
        group = LinearGroup(tuple(names), weight, bias, outputs)
        groups.append(group)
        for member, layer in enumerate(layers):
            layer.__class__ = AdaptableLinear
            layer.group, layer.member = group, member  # type: ignore[assignment]

    for parent_name, parent in model.named_modules():
        prefix = f"{parent_name}." if parent_name else ""
        children = {
            n: c for n, c in parent.named_children() if prefix + n not in skip and _is_linear(c)
        }
        for siblings in _SIBLINGS:
            layers = [children[name] for name in siblings if name in children]
            alike = {(x.in_features, x.bias is None, x.weight.dtype) for x in layers}
            if len(layers) == len(siblings) and len(alike) == 1:
                adopt([prefix + name for name in siblings], layers)
                children = {n: c for n, c in children.items() if n not in siblings}
        for name, layer in children.items():
            adopt([prefix + name], [layer])
    return groups


def _is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear layer; ``Conv1D`` is made one, with its weight [O, I]."""
    if isinstance(module, Conv1D):
        module.in_features, module.out_features = module.weight.shape  # type: ignore[assignment]
        module.weight = nn.Parameter(module.weight.data.T.contiguous(), requires_grad=False)
        module.__class__ = nn.Linear  # type: ignore[assignment]
    # Falcon's multiplies and adds as nn.Linear does
    return type(module) is nn.Linear or type(module).__name__ == "FalconLinear"


def current_lora() -> ActiveLora | None:
    """The adapters that are active in this thread."""
    return _ACTIVE.get()


def adapters_at_once(active: ActiveLora | None) -> int:
    """How many adapters share the rows of what is computed under them."""
    stacked = (x for x in (active or {}).values() if isinstance(x, StackedAdapter))
    return next((len(adapter.a) for adapter in stacked), 1)


@contextmanager
def active_lora(active: ActiveLora | None) -> Iterator[None]:
    """Make the model use these adapters, by ``id`` of the group, inside the block (per thread and task)."""
    token = _ACTIVE.set(active)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
