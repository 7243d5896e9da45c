"""LoRA training against the machine's matrix multiplication: how much of a step is arithmetic at full speed.

FLOP of a step are counted from the shapes, and only what any implementation must compute: no padding, no gradient
of frozen weights, causal attention by its pairs, LM head rows where labels are. Element-wise work, tokenization
and the optimizer count as time and not as FLOP. The limit is the best rate of a 2048^3 product in the model's
dtype, in the same process, taken in turn with the steps.

Letters: T tokens of a batch, R rows with a label, O outputs, I inputs, r rank, V vocabulary, C hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.material import PROMPT, SEED, Settings, suite_examples
from benchmarks.measure import Result, Row, Spread, now
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import batch_indices, fine_tune, initial_adapter
from degaml_kedro.llm.prompting import encode_examples
from degaml_kedro.parameters import LoraParameters, Phase, TrainingParameters

WARM_UP = 2
PRODUCTS_A_TURN = 4


def run(settings: Settings) -> Result:
    """Steps and products in turn, at batch 8 and 32."""
    base = settings.base()
    rows, details = [], {}
    for batch_size, steps in ((8, settings.either(12, 2)), (32, settings.either(4, 1))):
        row, detail = measure(base, batch_size, steps, settings)
        rows.append(row)
        details[row.name] = detail
    return Result("gemm_limit", rows, details)


def measure(
    base: BaseModel, batch_size: int, steps: int, settings: Settings
) -> tuple[Row, dict[str, Any]]:
    """Rate of our steps and of the products, and their ratio."""
    lora = LoraParameters()
    training = TrainingParameters(
        phases=(Phase(steps=steps + WARM_UP, learning_rate=5e-4),), batch_size=batch_size
    )
    examples = suite_examples((steps + WARM_UP) * batch_size)
    encoded = encode_examples(base, examples, PROMPT, "text")
    lengths = [(len(example.prompt), len(example.answers[example.gold])) for example in encoded]
    size = settings.either(2048, 128)
    left = torch.randn(size, size).to(base.device, base.dtype)
    right = torch.randn(size, size).to(base.device, base.dtype)
    rates, products = [], []
    training_steps = fine_tune(
        base, examples, PROMPT, "text", training, initial_adapter(base, lora), SEED
    )
    while True:
        began = now(base.device)
        step = next(training_steps, None)
        seconds = now(base.device) - began
        if step is None:
            break
        batch = batch_indices(len(examples), training, step.step, SEED)
        flop = step_flop(base, [lengths[i] for i in batch], lora.rank)
        rates.append(flop / seconds)
        products.append(max(product_rate(left, right) for _ in range(PRODUCTS_A_TURN)))
    rates = rates[WARM_UP:]
    limit = max(products)
    row = Row(
        f"training, batch {batch_size}, share of the {size}³ product's rate",
        "GFLOP/s",
        Spread.of(rate / 1e9 for rate in rates),
        Spread.of([limit / 1e9]),
        Spread.of(rate / limit for rate in rates),
        at_least=0.6 if batch_size == 8 and not settings.quick else None,
    )
    return row, {"product_rates": products, "step_rates": rates}


def step_flop(base: BaseModel, lengths: Sequence[tuple[int, int]], rank: int) -> float:
    """Floating-point operations that one training step needs.

    Args:
        base: for the layers' shapes.
        lengths: prompt and answer tokens of every example in the batch.
        rank: of the adapter, which covers all linear layers.
    """
    tokens = sum(prompt + answer for prompt, answer in lengths)
    flop = 0.0
    # what reads the embeddings, which are frozen, needs no gradient of its input
    reads_embeddings = set(base.groups[0].names)
    for name, (outputs, inputs) in base.linear_layers().items():
        forward_and_back = 1 if name in reads_embeddings else 2
        flop += 2 * tokens * outputs * inputs * forward_and_back
        # x A^T, B; gradients of A, of B, of A x, and of x
        flop += 2 * tokens * rank * (inputs + outputs) * 2
        flop += 2 * tokens * rank * (outputs + inputs * (forward_and_back - 1))
    config = base.model.config
    rows = sum(answer for _, answer in lengths)
    flop += 2 * rows * base.head.shape[0] * base.head.shape[1] * 2
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = sum((p + a) * (p + a + 1) / 2 for p, a in lengths)
    # two products forward, four back
    flop += 2 * pairs * width * config.num_attention_heads * 6 * config.num_hidden_layers
    return flop


def product_rate(left: torch.Tensor, right: torch.Tensor) -> float:
    """FLOP/s of one product, in the better of the two layouts.

    Args:
        left: [n, n].
        right: [n, n].
    """
    best = 0.0
    for other in (right, right.T):
        began = now(left.device)
        left @ other
        best = max(best, 2 * left.shape[0] ** 3 / (now(left.device) - began))
    return best
