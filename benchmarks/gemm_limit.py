"""LoRA training against the machine's matrix multiplication: how much of a step is arithmetic at full speed.

FLOP of a step are counted from the shapes, and only what any implementation must compute: no padding, no gradient
of frozen weights, causal attention by its pairs, LM head rows where labels are. Element-wise work, tokenization
and the optimizer count as time and not as FLOP. The limit is the best rate of a 2048^3 product in the model's
dtype, in the same process, taken in turn with the steps.

Letters: T tokens of a batch, R rows with a label, O outputs, I inputs, r rank, V vocabulary, C hidden width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.material import PROMPT, SEED, Settings, suite_examples
from benchmarks.measure import Result, Row, Spread, now
from degaml_kedro.config.schema import LoraParameters, Phase, TrainingParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import batch_indices, fine_tune, initial_adapter
from degaml_kedro.llm.lora import LinearGroup
from degaml_kedro.llm.prompting import encode_questions

WARM_UP = 2
PRODUCTS_A_TURN = 4


def run(settings: Settings) -> Result:
    """At batch 8 and 32: the steps, and the frozen weights' products of a step without anything between them."""
    base = settings.base()
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for batch_size, steps in ((8, settings.either(10, 2)), (32, settings.either(4, 1))):
        turns = measure(base, batch_size, steps, settings.either(2048, 128))
        limit = max(turn.limit for turn in turns)
        name = f"training, batch {batch_size}, share of the 2048³ product's rate"
        parts = (
            (name, [turn.step for turn in turns], None if settings.quick else 0.6),
            (f"{name}: its products alone", [turn.products for turn in turns], None),
        )
        for title, rates, target in parts:
            row = Row(
                title,
                "GFLOP/s",
                Spread.of(rate / 1e9 for rate in rates),
                Spread.of([limit / 1e9]),
                Spread.of(rate / limit for rate in rates),
                target,
            )
            rows.append(row)
        details[name] = [dataclasses.asdict(turn) for turn in turns]
    return Result("gemm_limit", rows, details)


@dataclass(frozen=True)
class Turn:
    """FLOP/s of one training step, of its frozen weights' products alone, and of the large square product."""

    step: float
    products: float
    limit: float


def measure(base: BaseModel, batch_size: int, steps: int, size: int) -> list[Turn]:
    """The three in turn, after a warm-up.

    Args:
        base: the model.
        batch_size: examples in a step.
        steps: counted after the warm-up.
        size: of the square product.
    """
    lora = LoraParameters()
    training = TrainingParameters(
        phases=(Phase(steps=steps + WARM_UP, learning_rate=5e-4),), batch_size=batch_size
    )
    examples = suite_examples((steps + WARM_UP) * batch_size)
    encoded = encode_questions(base, examples, PROMPT, "text")
    lengths = [
        (len(question.prompt), len(question.answers[example.gold]))
        for example, question in zip(examples, encoded, strict=True)
    ]
    left, right = (torch.randn(size, size).to(base.device, base.dtype) for _ in range(2))
    training_steps = fine_tune(
        base, examples, PROMPT, "text", training, initial_adapter(base, lora), SEED
    )
    turns = []
    for number in range(1, steps + WARM_UP + 1):
        batch = [lengths[i] for i in batch_indices(len(examples), training, number, SEED)]
        tokens, rows = sum(map(sum, batch)), sum(answer for _, answer in batch)
        began = now(base.device)
        next(training_steps)
        seconds = now(base.device) - began
        turns.append(
            Turn(
                step_flop(base, batch, lora.rank) / seconds,
                frozen_flop(base, tokens, rows) / products_alone(base, tokens, rows),
                max(product_rate(left, right) for _ in range(PRODUCTS_A_TURN)),
            )
        )
    return turns[WARM_UP:]


def step_flop(base: BaseModel, lengths: Sequence[tuple[int, int]], rank: int) -> float:
    """Floating-point operations that one training step needs.

    Args:
        base: for the layers' shapes.
        lengths: prompt and answer tokens of every example in the batch.
        rank: of the adapter, which covers all linear layers.
    """
    tokens, rows = sum(map(sum, lengths)), sum(answer for _, answer in lengths)
    flop = frozen_flop(base, tokens, rows)
    first = _reads_embeddings(base)
    for name, (outputs, inputs) in base.linear_layers().items():
        # A x and B (A x); the gradients of B, of A x and of A; and of x
        flop += 2 * tokens * rank * (inputs + outputs + outputs + outputs + inputs)
        if name not in first:
            flop += 2 * tokens * rank * inputs
    config = base.model.config
    width: int = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    pairs = sum((p + a) * (p + a + 1) / 2 for p, a in lengths)
    # two products forward, four back
    flop += 2 * pairs * width * config.num_attention_heads * 6 * config.num_hidden_layers
    return float(flop)


def frozen_flop(base: BaseModel, tokens: int, rows: int) -> float:
    """Operations of the frozen weights' products: forward, and back to their inputs.

    Args:
        base: for the layers' shapes.
        tokens: T.
        rows: R.
    """
    first = _reads_embeddings(base)
    flop = 2 * rows * base.head.numel() * 2.0
    for name, (outputs, inputs) in base.linear_layers().items():
        flop += 2 * tokens * outputs * inputs * (1 if name in first else 2)
    return flop


def _reads_embeddings(base: BaseModel) -> set[str]:
    """The layers whose input is frozen and needs no gradient."""
    return set(_decoder_groups(base)[0].names)


def _decoder_groups(base: BaseModel) -> list[LinearGroup]:
    """The groups of linear layers that are adapted, in module order: all but the LM head."""
    adapted = base.linear_layers()
    return [group for group in base.groups if group.names[0] in adapted]


def products_alone(base: BaseModel, tokens: int, rows: int) -> float:
    """Seconds for the frozen weights' products of one step, forward and back, and nothing else.

    Args:
        base: for its weights.
        tokens: T.
        rows: R.
    """
    weights = [group.weight for group in _decoder_groups(base)]
    inputs = {w.shape[1]: _random(base, tokens, w.shape[1]) for w in weights}
    outputs = {w.shape[0]: _random(base, tokens, w.shape[0]) for w in weights}
    last = _random(base, rows, base.head.shape[1])
    with torch.inference_mode():
        began = now(base.device)
        for weight in weights:
            inputs[weight.shape[1]] @ weight.T
        logits = last @ base.head.T
        logits @ base.head
        for weight in reversed(weights[1:]):
            outputs[weight.shape[0]] @ weight
        return now(base.device) - began


def _random(base: BaseModel, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns).to(base.device, base.dtype)


def product_rate(left: Tensor, right: Tensor) -> float:
    """FLOP/s of one product, in the better of the two layouts.

    Args:
        left: [n, n].
        right: [n, n].
    """
    best = 0.0
    for other in (right, right.T):
        began = now(left.device)
        left @ other
        best = max(best, 2.0 * left.shape[0] ** 3 / (now(left.device) - began))
    return best
