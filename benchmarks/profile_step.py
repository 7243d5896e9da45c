"""Where a training step's time goes: ``python -m benchmarks.profile_step [--batch-size 8] [--quick]``.

Three numbers in turn: our step, its matrix products alone at their real shapes on the real weights (what a step
would take if everything else were free), and the 2048^3 product. Then the profiler's list of operations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gemm_limit import product_rate, step_flop
from benchmarks.material import PROMPT, SEED, Settings, suite_examples
from benchmarks.measure import Spread, now
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import batch_indices, fine_tune, initial_adapter
from degaml_kedro.llm.prompting import encode_examples
from degaml_kedro.parameters import LoraParameters, Phase, TrainingParameters

STEPS = 8
PROFILED = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the three numbers and the list."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile_step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    parser.add_argument("--rows", type=int, default=30, help="operations in the list")
    asked = parser.parse_args(arguments)
    settings = Settings(quick=asked.quick)
    base = settings.base()
    total = STEPS + PROFILED + 2
    training = TrainingParameters(
        phases=(Phase(steps=total, learning_rate=5e-4),), batch_size=asked.batch_size
    )
    examples = suite_examples(total * asked.batch_size)
    lora = LoraParameters()
    steps = fine_tune(base, examples, PROMPT, "text", training, initial_adapter(base, lora), SEED)
    encoded = encode_examples(base, examples, PROMPT, "text")
    lengths = [(len(e.prompt), len(e.answers[e.gold])) for e in encoded]
    size = settings.either(2048, 128)
    left, right = (torch.randn(size, size).to(base.device, base.dtype) for _ in range(2))
    for _ in range(2):
        next(steps)
    whole, bare, flops, limit = [], [], [], 0.0
    for _ in range(STEPS):
        began = now(base.device)
        step = next(steps)
        whole.append(now(base.device) - began)
        batch = [lengths[i] for i in batch_indices(len(examples), training, step.step, SEED)]
        flops.append(step_flop(base, batch, lora.rank))
        bare.append(products_alone(base, step.tokens, sum(answer for _, answer in batch)))
        limit = max(limit, *(product_rate(left, right) for _ in range(4)))
    seconds, alone = Spread.of(whole), Spread.of(bare)
    flop = Spread.of(flops).median
    print(f"{size}³ product: {limit / 1e9:.0f} GFLOP/s; a step needs {flop / 1e9:.0f} GFLOP")
    for name, spread in (("step", seconds), ("its products alone", alone)):
        share = flop / spread.median / limit
        print(
            f"{name}: {spread.median * 1e3:.0f} ms ({spread.smallest * 1e3:.0f}–"
            f"{spread.largest * 1e3:.0f}), {share:.0%} of the limit"
        )
    with profile(activities=[ProfilerActivity.CPU], record_shapes=False) as found:
        for _ in range(PROFILED):
            next(steps)
    print(
        found.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=asked.rows, max_name_column_width=60
        )
    )
    return 0


def products_alone(base: BaseModel, tokens: int, rows: int) -> float:
    """Seconds for the frozen weights' products of one step, forward and back, without anything between them.

    Args:
        base: for its weights.
        tokens: in the batch.
        rows: with a label.
    """
    weights = [group.weight for group in base.groups]
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


if __name__ == "__main__":
    sys.exit(main())
