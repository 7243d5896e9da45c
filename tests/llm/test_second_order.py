"""The loss that can be differentiated twice, against the fast one, finite differences and the plain library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from degaml_kedro.adapters.adapter import Adapter, tensor_key
from degaml_kedro.config.schema import LoraParameters, PromptParameters
from degaml_kedro.llm.fast import FastDecoder
from degaml_kedro.llm.finetune import AnswerSequence, answer_loss, answer_sequences
from degaml_kedro.tasks.example import make_example
from tests.llm.helpers import plain_copy, random_adapter, tiny_base

BASE = tiny_base()
ADAPTER = random_adapter(BASE, LoraParameters(rank=4, alpha=8))
FLAT = torch.cat([tensor.reshape(-1) for tensor in ADAPTER.tensors.values()])
BATCH = answer_sequences(
    BASE,
    [
        make_example(f"Which {'very ' * i}one is {i}?", ["red", "blue one", "green"], i % 3)
        for i in range(4)
    ],
    PromptParameters(format="plain"),
    "text",
)
Loss = Callable[[Tensor], Tensor]


def unflatten(flat: Tensor) -> dict[str, Tensor]:
    shapes = {key: tensor.shape for key, tensor in ADAPTER.tensors.items()}
    parts = flat.split([shape.numel() for shape in shapes.values()])
    return {k: part.view(shape) for (k, shape), part in zip(shapes.items(), parts, strict=True)}


def fast(flat: Tensor) -> Tensor:
    return answer_loss(BASE, BATCH, unflatten(flat), ADAPTER.config)


def twice(flat: Tensor) -> Tensor:
    return answer_loss(BASE, BATCH, unflatten(flat), ADAPTER.config, elementary=True)


def fast_gradient(flat: Tensor) -> Tensor:
    leaf = flat.clone().requires_grad_()
    return torch.autograd.grad(fast(leaf), leaf)[0]


def direction(seed: int) -> Tensor:
    drawn = torch.randn(FLAT.shape, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


def hessian_product(vector: Tensor) -> Tensor:
    _, pull_back = torch.func.vjp(torch.func.grad(twice), FLAT)
    return pull_back(vector)[0]


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return bool((one - other).norm() <= tolerance * other.norm())


def test_value_and_gradient_are_those_of_the_fast_loss() -> None:
    gradient, value = torch.func.grad_and_value(twice)(FLAT)
    assert value.item() == pytest.approx(fast(FLAT).item(), abs=1e-5)
    assert torch.allclose(gradient, fast_gradient(FLAT), atol=1e-5)


def test_a_hessian_vector_product_is_that_of_the_plain_library() -> None:
    model = plain_copy(BASE)
    weights = dict(model.named_parameters())

    def reference(flat: Tensor) -> Tensor:
        tensors = unflatten(flat)
        merged = dict(weights)
        for name in Adapter(ADAPTER.config, tensors).layers():
            a, b = tensors[tensor_key(name, "A")], tensors[tensor_key(name, "B")]
            merged[f"{name}.weight"] = weights[f"{name}.weight"] + ADAPTER.config.scale * b @ a
        losses = []
        for sequence in BATCH:
            ids = torch.tensor([sequence.ids])
            logits = torch.func.functional_call(model, merged, kwargs={"input_ids": ids}).logits
            rows = logits[0, -sequence.answer - 1 : -1]
            labels = ids[0, -sequence.answer :]
            losses.append(nn.functional.cross_entropy(rows, labels, reduction="none"))
        return torch.cat(losses).mean()

    vector = direction(7)
    _, pull_back = torch.func.vjp(torch.func.grad(reference), FLAT)
    assert close(hessian_product(vector), pull_back(vector)[0], 1e-4)


def test_the_transforms_compose_in_any_order_and_with_autograd() -> None:
    vector = direction(1)
    expected = hessian_product(vector)
    of_a_scalar = torch.func.grad(lambda flat: torch.func.grad(twice)(flat) @ vector)(FLAT)
    leaf = FLAT.clone().requires_grad_()
    (first,) = torch.autograd.grad(twice(leaf), leaf, create_graph=True)
    (by_autograd,) = torch.autograd.grad(first @ vector, leaf)
    assert close(of_a_scalar, expected, 1e-5)
    assert close(by_autograd, expected, 1e-5)


def test_padding_in_a_batch_changes_nothing() -> None:
    long = AnswerSequence(BATCH[0].ids * 3, BATCH[0].answer)
    vector = direction(5)

    def product(batch: list[AnswerSequence]) -> Tensor:
        def loss(flat: Tensor) -> Tensor:
            return answer_loss(BASE, batch, unflatten(flat), ADAPTER.config, elementary=True)

        return torch.func.vjp(torch.func.grad(loss), FLAT)[1](vector)[0]

    count = BATCH[1].answer + long.answer
    apart = product([BATCH[1]]) * BATCH[1].answer + product([long]) * long.answer
    assert close(product([BATCH[1], long]) * count, apart, 1e-4)


def test_row_by_row_it_is_the_same() -> None:
    beyond = replace(BASE, fast=FastDecoder(window=4, stack=None))

    def loss(flat: Tensor) -> Tensor:
        return answer_loss(beyond, BATCH, unflatten(flat), ADAPTER.config, elementary=True)

    vector = direction(6)
    found = torch.func.vjp(torch.func.grad(loss), FLAT)[1](vector)[0]
    assert close(found, hessian_product(vector), 1e-4)
