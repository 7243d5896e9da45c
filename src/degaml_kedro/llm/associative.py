"""An adapter written from labelled examples by ridge regression: associative memories in a few linear layers.

At every position p that predicts a token of a right answer a layer's input is a key k_p, and the direction in which the
final hidden state makes that token likelier is a value v_p: the token's row of the LM head less its expectation under
the model. Ridge regression from keys to values (the solver of R2-D2, Bertinetto et al. 2019; weights as a key-value
memory as in ROME, Meng et al. 2022) has the solution

    W = s V^T (K K^T + lambda I)^-1 K,

of which the best approximation of a given rank is written as the layer's A and B. One forward pass over the examples
and one P x P system a layer; nothing of a task is trained.

Untrained, keys are compared as they are: that is the baseline ``closed_form``. Trained over tasks
(:mod:`~degaml_kedro.generator.examples`), a memory has a metric of its own, x -> x + V^T U^T x, maps of values and of
the states in which answers were read, lambda and scale, and beside the memories there is one LoRA for all tasks.

Shapes: P answer tokens of all examples, I inputs and C outputs of a layer (C is the model's width), r rank, m rank of
the learned maps.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from degaml_kedro.adapters.adapter import Adapter, AdapterConfig, tensor_key
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import AssociativeDecoder, ClosedFormSetting
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import AnswerSequence, TrainingError
from degaml_kedro.llm.general import rows_of
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.packing import Pack, TokenTree, pack_trees

# what architectures call the last linear layer of attention and of the MLP, whose output is added to the residual
_WRITING = re.compile(
    r".*\.\d+\.(.*\.)?(o_proj|down_proj|out_proj|dense|dense_4h_to_h|fc2|fc_out|c_proj|w2|wo)"
)
_BLOCK = re.compile(r".*?\.\d+(?=\.)")

# A [r, I] and B [C, r] by layer
Layers = Mapping[str, tuple[Tensor, Tensor]]


def writing_layers(base: BaseModel) -> list[str]:
    """Linear layers whose output is added to the hidden state, in module order.

    Raises:
        TrainingError: it has none by any name that is known.
    """
    width = base.head.shape[1]
    found = [
        name
        for name, (outputs, _) in base.linear_layers().items()
        if outputs == width and _WRITING.fullmatch(name)
    ]
    if not found:
        raise TrainingError(
            f"{base.name} has no linear layer that adds to its hidden state (o_proj, down_proj and the like), so "
            "nothing can be written from examples; leave closed_form and the associative decoder out"
        )
    return found


def layers_at(base: BaseModel, depths: Sequence[float]) -> tuple[str, ...]:
    """The layers that stand at given shares of :func:`writing_layers`, each once, in module order.

    Raises:
        TrainingError: the model has no such layers.
    """
    layers = writing_layers(base)
    places = sorted({int(depth * len(layers)) for depth in depths})
    return tuple(layers[place] for place in places)


# --- reading the examples -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Readings:
    """What one forward pass over labelled examples leaves of each answer token.

    Attributes:
        keys: the layer's inputs where answer tokens are predicted, float32 [P, I] by layer.
        norms: mean length of the hidden state behind each layer's block.
        states: hidden states behind that block where the answer tokens themselves are read, float32 [P, C] by layer.
        values: rows of the LM head less their expectation, float32 [P, C]; no gradient flows to them.
    """

    keys: Mapping[str, Tensor]
    norms: Mapping[str, float]
    states: Mapping[str, Tensor]
    values: Tensor


@dataclass(eq=False)
class ExampleReader:
    """Reads labelled examples: the model with modules of its own that keep what passes; the weights are shared.

    A hook on a shared module would keep what other threads compute there.
    """

    base: BaseModel
    layers: tuple[str, ...]
    _inputs: dict[str, Tensor] = field(default_factory=dict)
    _outputs: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, base: BaseModel, layers: Sequence[str]) -> ExampleReader:
        """A reader of some layers' inputs."""
        shared = {id(part): part for part in (*base.groups, *base.model.parameters())}
        model = copy.deepcopy(base.model, shared)
        reader = cls(replace(base, model=model), tuple(layers))
        modules = dict(model.named_modules())
        for name in layers:
            modules[name].register_forward_pre_hook(_keeping(reader._inputs, name))
            modules[_block_of(name)].register_forward_hook(_keeping(reader._outputs, name))
        return reader

    def read(self, sequences: Sequence[AnswerSequence], lora: Layers | None = None) -> Readings:
        """One forward pass over labelled examples, under ``lora`` (B times the scale), to which gradients flow."""
        base = self.base
        pack = pack_trees([TokenTree(one.ids) for one in sequences], base.device, base.dtype)
        rows: list[int] = []  # of the pack, that predict a token of an answer
        labels: list[int] = []
        for one, start in zip(sequences, pack.starts, strict=True):
            end = start + len(one.ids)
            rows.extend(range(end - one.answer - 1, end - 1))
            labels.extend(one.ids[-one.answer :])
        with active_lora(base.activate(lora, 1.0) if lora else None):
            hidden = base.hidden_states(pack, elementary=True)[rows]
        keys = {name: _at_rows(self._inputs[name], pack, rows) for name in self.layers}
        norms = {
            name: float(_at_rows(found.detach(), pack, rows).norm(dim=1).mean())
            for name, found in self._outputs.items()
        }
        answers = [row + 1 for row in rows]
        states = {name: _at_rows(found, pack, answers) for name, found in self._outputs.items()}
        self._inputs.clear()
        self._outputs.clear()
        with torch.no_grad():
            head = base.head.float()
            likely = base.logits(hidden).softmax(-1)
            values = head[labels] - likely @ head
        return Readings(keys, norms, states, values)


def _keeping(kept: dict[str, Tensor], name: str) -> Any:
    def hook(module: Any, given: Any, output: Any = None) -> None:
        found = given if output is None else output
        kept[name] = found[0] if isinstance(found, tuple) else found

    return hook


def _block_of(layer: str) -> str:
    found = _BLOCK.match(layer)
    assert found is not None
    return found.group()


def _at_rows(states: Tensor, pack: Pack, rows: Sequence[int]) -> Tensor:
    """Rows of a pack [1, T, ...], or of its sequences laid one a row [R, L, ...], in float32."""
    if states.shape[0] == 1 and states.shape[1] == pack.tokens:
        return states[0, rows].float()
    separate = rows_of(pack)
    return states[separate.row[rows], separate.place[rows]].float()


# --- writing --------------------------------------------------------------------------------------


class Memory(nn.Module):
    """What is learned of one layer's memory; fresh, keys and values are taken as they are.

    Attributes:
        center: c, how much of a key is taken out that lies in the direction of the keys' mean.
        metric_in: U [I, m].
        metric_out: V [m, I]; keys are compared as x + V^T U^T x.
        value_in: [C, m].
        value_out: [m, C]; values likewise.
        state_in: [C, m].
        state_out: [m, C]; the state where the answer was read is added to the value through them.
        log_ridge: log lambda.
        log_scale: log s: the length of what a recalled answer adds, in lengths of the hidden state there.
    """

    def __init__(
        self, inputs: int, width: int, settings: AssociativeDecoder, source: torch.Generator
    ) -> None:
        super().__init__()
        rank = settings.metric_rank

        def drawn(size: int) -> nn.Parameter:
            values = torch.randn(size, rank, generator=source, dtype=torch.float32)
            return nn.Parameter(values / math.sqrt(size))

        def zeros(size: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(rank, size, dtype=torch.float32))

        def number(value: float) -> nn.Parameter:
            return nn.Parameter(torch.tensor(value, dtype=torch.float32))

        self.center = number(settings.center)
        self.metric_in, self.metric_out = drawn(inputs), zeros(inputs)
        self.value_in, self.value_out = drawn(width), zeros(width)
        self.state_in, self.state_out = drawn(width), zeros(width)
        self.log_ridge, self.log_scale = (
            number(math.log(value)) for value in (settings.ridge, settings.scale)
        )

    def forward(
        self, keys: Tensor, values: Tensor, states: Tensor, norm: float
    ) -> tuple[Tensor, Tensor]:
        """The memory W = B A, as A [P, I] and B [C, P], of one layer's :class:`Readings`."""
        mean = keys.detach().mean(dim=0)
        direction = mean / mean.norm().clamp_min(1e-12)

        def compared(x: Tensor) -> Tensor:
            x = x - self.center * (x @ direction)[:, None] * direction
            return x + (x @ self.metric_in) @ self.metric_out

        seen = compared(keys)
        length = seen.square().sum(dim=1).mean().sqrt().clamp_min(1e-12)
        seen = seen / length
        ridge = self.log_ridge.exp() * torch.eye(len(seen), dtype=seen.dtype, device=seen.device)
        recall = torch.linalg.solve(seen @ seen.T + ridge, seen)
        # recalled from x as a function of x: the transposed map once more
        recall = recall + (recall @ self.metric_out.T) @ self.metric_in.T
        recall = recall - self.center * (recall @ direction)[:, None] * direction
        size = values.norm(dim=1).mean().clamp_min(1e-12)
        written = values + (values @ self.value_in) @ self.value_out
        states = size * nn.functional.normalize(states, dim=1)
        written = written + (states @ self.state_in) @ self.state_out
        return recall / length, (self.log_scale.exp() * norm / size) * written.T


class AssociativeWriter(nn.Module):
    """The associative decoder: labelled examples in, an adapter out.

    Attributes:
        shape: rank, alpha and layers of the LoRA that all tasks share, and the base model.
        sizes: C and I of the layers that memories are written to; ``memories`` has one of each, in order.
        adapted: the layers of that LoRA, with its A [r, I] in ``a`` and its B [C, r] in ``b``.
    """

    def __init__(
        self, settings: AssociativeDecoder, start: Adapter, sizes: Mapping[str, tuple[int, int]]
    ) -> None:
        super().__init__()
        self.settings, self.shape, self.sizes = settings, start.config, dict(sizes)
        layers = start.layers()
        self.adapted = tuple(layers)
        self.a = nn.ParameterList(a.float().clone() for a, _ in layers.values())
        self.b = nn.ParameterList(b.float().clone() for _, b in layers.values())
        self.memories = nn.ModuleList(
            Memory(
                inputs,
                outputs,
                settings,
                torch.Generator().manual_seed(derive_seed(settings.seed, "memory", name)),
            )
            for name, (outputs, inputs) in sizes.items()
        )

    def write(
        self, reader: ExampleReader, sequences: Sequence[AnswerSequence], rank: int | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The shared LoRA with memories of the examples, as products B A without a scale; differentiable.

        Memories have rank ``rank`` at most; None for the exact solution, of rank P.

        Raises:
            TrainingError: there are no examples.
        """
        if not sequences:
            raise TrainingError("there are no examples to write from; give at least one")
        dtype = reader.base.dtype
        shared = {
            name: (a.to(dtype), (self.shape.scale * b).to(dtype))
            for name, a, b in zip(self.adapted, self.a, self.b, strict=True)
        }
        readings = reader.read(sequences, shared)
        found = dict(shared)
        for name, memory in zip(self.sizes, self.memories, strict=True):
            a, b = memory(
                readings.keys[name], readings.values, readings.states[name], readings.norms[name]
            )
            if rank is not None:
                a, b = low_rank(b, a, rank)
            a, b = a.to(dtype), b.to(dtype)
            if name in shared:
                own_a, own_b = shared[name]
                a, b = torch.cat([own_a, a]), torch.cat([own_b, b], dim=1)
            found[name] = (a, b)
        return found

    @torch.no_grad()
    def adapter(self, base: BaseModel, sequences: Sequence[AnswerSequence]) -> Adapter:
        """The adapter of a task, on the CPU: the shared LoRA's rank and that of the memories together.

        Raises:
            TrainingError: there are no examples.
        """
        reader = ExampleReader.of(base, tuple(self.sizes))
        layers = self.write(reader, sequences, self.settings.rank)
        rank = max(a.shape[0] for a, _ in layers.values())
        tensors: dict[str, Tensor] = {}
        for name, (a, b) in layers.items():
            rest = rank - a.shape[0]
            tensors[tensor_key(name, "A")] = nn.functional.pad(a, (0, 0, 0, rest)).float().cpu()
            tensors[tensor_key(name, "B")] = nn.functional.pad(b, (0, rest)).float().cpu()
        known = set(layers) == set(self.adapted)
        modules = self.shape.target_modules if known else tuple(layers)
        shape = replace(self.shape, rank=rank, alpha=float(rank), target_modules=modules)
        return Adapter(shape, tensors)


def low_rank(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation B A of rank r to a product of ``left`` [C, P] and ``right`` [P, I].

    Returns:
        A [r, I] and B [C, r], each with the square roots of the singular values; rows and columns of zeros fill up
        where the product has less.
    """
    outer, small = torch.linalg.qr(left)
    inner, other = torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(small @ other.T)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    a, b = right.new_zeros(rank, right.shape[1]), left.new_zeros(left.shape[0], rank)
    a[:kept] = root[:, None] * (inner @ v[:kept].T).T
    b[:, :kept] = outer @ u[:, :kept] * root
    return a, b


def write_closed_form(
    base: BaseModel,
    sequences: Sequence[AnswerSequence],
    shape: AdapterConfig,
    setting: ClosedFormSetting,
) -> Adapter:
    """An adapter of one layer that answers as the examples do, with nothing trained at all.

    Raises:
        TrainingError: the model has no layer to write to, or there are no examples.
    """
    (layer,) = layers_at(base, (setting.depth,))
    settings = AssociativeDecoder(
        kind="associative",
        depths=(setting.depth,),
        rank=shape.rank,
        metric_rank=1,
        center=1.0 if setting.center else 0.0,
        ridge=setting.ridge,
        scale=setting.scale,
    )
    sizes = {layer: base.linear_layers()[layer]}
    writer = AssociativeWriter(settings, Adapter(shape, {}), sizes).to(base.device)
    return writer.adapter(base, sequences)
