"""The hand-written decoder against the library's modules, forward and backward."""

from __future__ import annotations

import pytest
import torch

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.config.schema import LoraParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.packing import TokenTree, pack_trees
from tests.llm.helpers import by_modules, random_adapter, tiny_base

TREES = [
    TokenTree((5, 6, 7, 8, 9)),
    TokenTree((11, 12), ((13, 14, 15), (16,), ())),
    TokenTree((17,)),
]


def gradients(
    base: BaseModel, adapter: Adapter, weights: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    leaves = {key: t.clone().requires_grad_() for key, t in adapter.tensors.items()}
    layers = Adapter(adapter.config, leaves).layers()
    pack = pack_trees(TREES, base.device, base.dtype)
    with active_lora(base.activate(layers, adapter.config.scale)):
        hidden = base.hidden_states(pack)
    (hidden * weights).sum().backward()
    return hidden.detach(), {
        key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None
    }


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal up to float32 rounding, measured against the whole tensor: single entries may cancel."""
    return bool((one - other).norm() <= 1e-4 * other.norm() + 1e-6)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj"), ("v_proj", "up_proj")])
def test_states_and_gradients_are_those_of_the_modules(targets: object) -> None:
    base = tiny_base()
    assert base.fast is not None
    assert base.fast.stack is not None
    lora = LoraParameters(rank=3, target_modules=targets)  # type: ignore[arg-type]
    adapter = random_adapter(base, lora)
    weights = torch.randn(
        sum(len(tree) for tree in TREES), 32, generator=torch.Generator().manual_seed(1)
    )
    hidden, mine = gradients(base, adapter, weights)
    expected, theirs = gradients(by_modules(base), adapter, weights)
    assert torch.allclose(hidden, expected, atol=1e-4)
    assert set(mine) == set(theirs) == set(adapter.tensors)
    for key, gradient in mine.items():
        assert close(gradient, theirs[key]), key


def test_a_gradient_reaches_what_the_adapter_was_made_from() -> None:
    """A generator's loss goes through the adapter: its tensors need not be leaves."""
    base = tiny_base()
    adapter = random_adapter(base, LoraParameters(rank=2))
    knob = torch.ones((), requires_grad=True)
    layers = {name: (a * knob, b * knob) for name, (a, b) in adapter.layers().items()}
    pack = pack_trees(TREES, base.device, base.dtype)
    with active_lora(base.activate(layers, adapter.config.scale)):
        base.hidden_states(pack).square().sum().backward()
    assert knob.grad is not None
    step = 1e-3
    values = []
    for change in (-step, step):
        moved = {n: (a * (1 + change), b * (1 + change)) for n, (a, b) in adapter.layers().items()}
        with torch.no_grad(), active_lora(base.activate(moved, adapter.config.scale)):
            values.append(base.hidden_states(pack).double().square().sum().item())
    slope = (values[1] - values[0]) / (2 * step)
    assert knob.grad.item() == pytest.approx(slope, rel=0.02, abs=0.5)


def test_attention_weights_made_again_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    adapter = random_adapter(base, LoraParameters(rank=3))
    found = []
    for kept in (1 << 30, 0):
        monkeypatch.setattr("degaml_kedro.llm.fast.fused._WEIGHTS_KEPT", kept)
        found.append(gradients(base, adapter, torch.ones(1, 1)))
    (hidden, mine), (again, theirs) = found
    assert torch.equal(hidden, again)
    assert all(torch.equal(mine[key], theirs[key]) for key in adapter.tensors)
