"""LoRA weights written from labelled examples in closed form: an associative memory in one linear layer.

At every position p that predicts a token of a right answer the layer's input is a key k_p, and the direction in which
the final hidden state makes that token likelier is a value v_p: the token's row of the LM head less its expectation
under the model. Ridge regression from keys to values (the solver of R2-D2, Bertinetto et al. 2019; weights as a
key-value memory as in ROME, Meng et al. 2022) has the solution

    W = V^T (K K^T + lambda I)^-1 K,

of which the best approximation of rank r is written as the layer's A and B. One forward pass over the examples and one
P x P system; nothing is trained.

Shapes: P answer tokens of all examples, I inputs and C outputs of the layer (C is the model's width), r rank.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter, AdapterConfig, tensor_key
from degaml_kedro.errors import DegamlError
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import AnswerSequence
from degaml_kedro.llm.general import rows_of
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.packing import Pack, TokenTree, pack_trees
from degaml_kedro.parameters import ClosedFormSetting

# what architectures call the last linear layer of attention and of the MLP, whose output is added to the residual
_WRITING = re.compile(
    r".*\.\d+\.(.*\.)?(o_proj|down_proj|out_proj|dense|dense_4h_to_h|fc2|fc_out|c_proj|w2|wo)"
)


class AssociativeError(DegamlError):
    """A model or examples that no associative memory can be written for."""


@dataclass(frozen=True)
class Readings:
    """What one forward pass over labelled examples leaves of each answer token.

    Attributes:
        keys: the layer's inputs where answer tokens are predicted, float32 [P, I] by layer.
        norms: mean length of the hidden state behind each layer's block.
        values: rows of the LM head less their expectation, float32 [P, C].
    """

    keys: Mapping[str, Tensor]
    norms: Mapping[str, float]
    values: Tensor


def writing_layers(base: BaseModel) -> list[str]:
    """Linear layers whose output is added to the hidden state, in module order.

    Args:
        base: the frozen model.

    Raises:
        AssociativeError: it has none by any name that is known.
    """
    width = base.head.shape[1]
    found = [
        name
        for name, (outputs, _) in base.linear_layers().items()
        if outputs == width and _WRITING.fullmatch(name)
    ]
    if not found:
        raise AssociativeError(
            f"{base.name} has no linear layer that adds to its hidden state (o_proj, down_proj and the like), so "
            "nothing can be written in closed form; leave closed_form out"
        )
    return found


@torch.inference_mode()
def read_examples(
    base: BaseModel,
    sequences: Sequence[AnswerSequence],
    layers: Sequence[str],
    written: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> Readings:
    """One forward pass over labelled examples.

    Args:
        base: the frozen model.
        sequences: prompts with their right answers.
        layers: whose inputs are kept.
        written: A [r, I] and B [C, r] by layer, which the model computes with; None for the base model.
    """
    pack = pack_trees([TokenTree(one.ids) for one in sequences], base.device, base.dtype)
    rows: list[int] = []  # of the pack, that predict a token of an answer
    labels: list[int] = []
    for one, start in zip(sequences, pack.starts, strict=True):
        end = start + len(one.ids)
        rows.extend(range(end - one.answer - 1, end - 1))
        labels.extend(one.ids[-one.answer :])
    keys: dict[str, Tensor] = {}
    norms: dict[str, float] = {}
    own = _recording(base, pack, layers, rows, keys, norms) if layers else base
    with active_lora(base.activate(written, 1.0) if written else None):
        hidden = own.hidden_states(pack, elementary=True)[rows]
    head = base.head.float()
    likely = base.logits(hidden).softmax(-1)
    return Readings(keys, norms, head[labels] - likely @ head)


def _recording(
    base: BaseModel,
    pack: Pack,
    layers: Sequence[str],
    rows: Sequence[int],
    keys: dict[str, Tensor],
    norms: dict[str, float],
) -> BaseModel:
    """The model with modules of its own that write down what passes at rows of a pack; the weights are shared.

    A hook on a shared module would write down what other threads compute there.

    Args:
        base: the frozen model.
        pack: what is computed.
        layers: names of linear layers.
        rows: of the pack.
        keys: is given the layers' inputs.
        norms: is given the mean length of the hidden states behind the layers' blocks.
    """
    shared = {id(part): part for part in (*base.groups, *base.model.parameters())}
    model = copy.deepcopy(base.model, shared)
    separate = rows_of(pack)

    def at_rows(states: Tensor) -> Tensor:
        """States of a pack [1, T, ...], or of its sequences laid one a row [R, L, ...]."""
        if states.shape[0] == 1 and states.shape[1] == len(separate.row):
            return states[0, rows].float()
        return states[separate.row[rows], separate.place[rows]].float()

    def keep_input(name: str) -> Any:
        def hook(module: Any, arguments: tuple[Tensor, ...]) -> None:
            keys[name] = at_rows(arguments[0])

        return hook

    def keep_length(name: str) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            norms[name] = float(at_rows(states).norm(dim=1).mean())

        return hook

    modules = dict(model.named_modules())
    for name in layers:
        block = re.match(r".*?\.\d+(?=\.)", name)
        assert block is not None
        modules[name].register_forward_pre_hook(keep_input(name))
        modules[block.group()].register_forward_hook(keep_length(name))
    return replace(base, model=model)


@dataclass(frozen=True)
class Metric:
    """A linear map of a layer's inputs, x -> (x - c (x d) d) / n, after which they are compared by inner products.

    Attributes:
        direction: d, the unit vector of the keys' mean, [I].
        share: c, how much of what lies in that direction is taken out: 0 or 1.
        length: n, which makes the keys' mean square length 1.
    """

    direction: Tensor
    share: float
    length: Tensor

    @classmethod
    def of(cls, keys: Tensor, share: float) -> Metric:
        """The metric of keys [P, I]."""
        mean = keys.mean(dim=0)
        plain = cls(mean / mean.norm().clamp_min(1e-12), share, keys.new_tensor(1.0))
        length = plain(keys).square().sum(dim=1).mean().sqrt().clamp_min(1e-12)
        return cls(plain.direction, share, length)

    def __call__(self, x: Tensor) -> Tensor:
        """The map of [..., I]; it is symmetric."""
        along = (x @ self.direction)[..., None] * self.direction
        return (x - self.share * along) / self.length


def low_rank(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a product by one of rank r.

    Args:
        left: [C, P].
        right: [P, I].
        rank: r; rows and columns of zeros fill up where the product has less.

    Returns:
        A [r, I] and B [C, r], each with the square roots of the singular values.
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


def write_adapter(
    base: BaseModel,
    sequences: Sequence[AnswerSequence],
    shape: AdapterConfig,
    setting: ClosedFormSetting,
) -> Adapter:
    """An adapter of one layer that answers as the examples do, without training.

    Args:
        base: the frozen model.
        sequences: prompts with their right answers, at least one.
        shape: rank, alpha and base model.
        setting: which layer, lambda, scale and rounds.

    Raises:
        AssociativeError: the model has no layer to write to.
    """
    layers = writing_layers(base)
    layer = layers[int(setting.depth * len(layers))]
    readings = read_examples(base, sequences, [layer])
    metric = Metric.of(readings.keys[layer], 1.0 if setting.center else 0.0)
    keys = metric(readings.keys[layer])
    # recalled from x: (G + lambda I)^-1 K M x, with the metric's M on both sides
    ridge = setting.ridge * torch.eye(len(keys), dtype=keys.dtype, device=keys.device)
    recall = metric(torch.linalg.solve(keys @ keys.T + ridge, keys))
    values = readings.values
    unit = setting.scale * readings.norms[layer] / values.norm(dim=1).mean()
    a, b = low_rank(unit * values.T, recall, shape.rank)
    for _ in range(setting.rounds - 1):
        values = values + read_examples(base, sequences, [], {layer: (a, b)}).values
        a, b = low_rank(unit * values.T, recall, shape.rank)
    tensors = {tensor_key(layer, "A"): a, tensor_key(layer, "B"): b / shape.scale}
    return Adapter(replace(shape, target_modules=(layer,)), tensors)
