"""Whole weights in place of the frozen ones: the stack, the library's modules, and LoRA where they are its product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.config.schema import LoraParameters, PromptParameters, ScoringParameters
from degaml_kedro.llm.base_model import BaseModel, ModelError
from degaml_kedro.llm.finetune import AnswerSequence, answer_loss, answer_loss_under
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.packing import TokenTree, pack_trees
from degaml_kedro.llm.scoring import compare_options
from tests.llm.helpers import by_modules, random_adapter, tiny_base
from tests.strategies.helpers import examples

TREES = [TokenTree((5, 6, 7, 8, 9)), TokenTree((11, 12), ((13, 14, 15), (16,), ()))]
BATCH = [AnswerSequence((3, 4, 5, 6), 2), AnswerSequence((9, 8, 7), 1)]
TARGETS = ["all-linear", ("q_proj", "down_proj"), ("v_proj", "gate_proj")]


def adapter_of(base: BaseModel, targets: object, seed: int = 0) -> Adapter:
    return random_adapter(base, LoraParameters(rank=3, alpha=6.0, target_modules=targets), seed)


def frozen(base: BaseModel, name: str) -> Tensor:
    return base.model.get_submodule(name).weight


def merged(base: BaseModel, adapter: Adapter) -> dict[str, Tensor]:
    return {
        name: (frozen(base, name) + adapter.config.scale * b @ a).requires_grad_()
        for name, (a, b) in adapter.layers().items()
    }


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 1e-4 * other.norm() + 1e-6)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("with_product", [False, True], ids=["alone", "and_a_product"])
def test_states_and_gradients_are_those_of_the_modules(targets, with_product):
    base = tiny_base()
    found = []
    for model in (base, by_modules(base)):
        weights = merged(base, adapter_of(base, targets))
        product = adapter_of(base, targets, seed=1)
        leaves = {key: t.clone().requires_grad_() for key, t in product.tensors.items()}
        layers = Adapter(product.config, leaves).layers() if with_product else None
        pack = pack_trees(TREES, base.device, base.dtype)
        with active_lora(model.activate_weights(weights, layers, product.config.scale)):
            hidden = model.hidden_states(pack)
        ruler = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
        wanted = [*weights.values(), *(leaves.values() if with_product else ())]
        found.append((hidden, torch.autograd.grad((hidden * ruler).sum(), wanted)))
    (mine, my_gradients), (theirs, their_gradients) = found
    assert torch.allclose(mine, theirs, atol=1e-4)
    for one, other in zip(my_gradients, their_gradients, strict=True):
        assert other.norm() > 0
        assert close(one, other)


@pytest.mark.parametrize("targets", TARGETS)
def test_weights_changed_by_lora_s_product_give_lora_s_loss_and_gradients(targets):
    base = tiny_base()
    adapter = adapter_of(base, targets)
    leaves = {key: t.clone().requires_grad_() for key, t in adapter.tensors.items()}
    lora = answer_loss(base, BATCH, leaves, adapter.config)
    expected = dict(zip(leaves, torch.autograd.grad(lora, list(leaves.values())), strict=True))
    weights = merged(base, adapter)
    loss = answer_loss_under(base, BATCH, base.activate_weights(weights))
    assert float(loss) == pytest.approx(float(lora), abs=1e-5)
    gradients = torch.autograd.grad(loss, list(weights.values()))
    by_layer = Adapter(adapter.config, expected).layers()
    for (name, (a, b)), gradient in zip(adapter.layers().items(), gradients, strict=True):
        by_a, by_b = by_layer[name]
        assert close(adapter.config.scale * b.T @ gradient, by_a)
        assert close(adapter.config.scale * gradient @ a.T, by_b)


def test_frozen_weights_and_a_product_are_the_adapter_itself():
    base = tiny_base()
    adapter = adapter_of(base, "all-linear")
    layers = adapter.layers()
    weights = {name: frozen(base, name) for name in layers}
    active = base.activate_weights(weights, layers, adapter.config.scale)
    prompt = PromptParameters(format="plain", options="hidden")
    scoring = ScoringParameters(mode="text")
    for model in (base, by_modules(base)):
        expected = compare_options(model, examples(4), prompt, scoring, (adapter,))
        found = compare_options(model, examples(4), prompt, scoring, active=active)
        assert found.tokens == expected.tokens
        for one, other in zip(found.scores[0], expected.scores[0], strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def test_weights_that_do_not_fit_are_refused():
    base = tiny_base()
    adapter = adapter_of(base, ("q_proj",))
    weights = merged(base, adapter)
    name = next(iter(weights))
    with pytest.raises(ModelError, match=r"names the layer other"):
        base.activate_weights({"other": weights[name]})
    with pytest.raises(ModelError, match=rf"layer {name} is 3 x 32"):
        base.activate_weights({name: weights[name][:3]})
