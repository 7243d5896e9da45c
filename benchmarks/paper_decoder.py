"""The paper's decoder on a CPU: one forward and backward of the 0.5B flow, batch 1, in a process of its own.

Weights and activations are in bfloat16 where the processor multiplies in it. The gradients of all layers are kept in
that type, as an optimizer or an accumulation over samples finds them; nothing is freed on the way and no layer is
computed twice. The optimizer's state is not part of it. The rate is set against the best 2048^3 product in the same
dtype, taken before and after.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gemm_limit import product_rate
from benchmarks.material import SEED, Settings
from benchmarks.measure import Result, Row, Spread, found_in_child, now
from benchmarks.memory import peak_bytes
from degaml_kedro.generator.decoders.hyperconv import HyperconvDecoder, Size, decoder_cost
from degaml_kedro.llm.base_model import choose_dtype

PAPER_KERNEL_SIZE = 9
_PAPER_TRUNK: tuple[Size, ...] = (
    (128, 384, 384),
    (128, 200, 300),
    (128, 100, 256),
    (256, 50, 200),
    (512, 50, 200),
    (1024, 25, 200),
    (1024, 10, 200),
    (2048, 10, 200),
)
PAPER_FLOWS: dict[str, tuple[Size, ...]] = {
    "qwen2.5-0.5b": (*_PAPER_TRUNK, (4296, 10, 130)),
    "qwen2.5-1.5b": (*_PAPER_TRUNK, (4508, 18, 258)),
}
_SMALL_FLOW = ((4, 12, 10), (8, 10, 12), (16, 4, 10))


def run(settings: Settings) -> Result:
    """Time the step and read the peak in a child; a quick run takes a small flow and no child."""
    found = step(settings) if settings.quick else in_child()
    forward, backward = found["forward_seconds"], found["backward_seconds"]
    name = "the paper's decoder, 4296 tokens, batch 1"
    rate = found["flop"] / (forward + backward)
    limit = found["product_rate"]
    rows = [
        Row(
            f"{name}: peak memory, forward and backward",
            "GB",
            Spread.of([found["peak_bytes"] / 1e9]),
            at_most=None if settings.quick else 16.0,
        ),
        Row(f"{name}: forward", "s", Spread.of([forward])),
        Row(f"{name}: backward", "s", Spread.of([backward])),
        Row(
            f"{name}: share of the 2048³ product's rate",
            "GFLOP/s",
            Spread.of([rate / 1e9]),
            Spread.of([limit / 1e9]),
            Spread.of([rate / limit]),
        ),
    ]
    return Result("paper_decoder", rows, found)


def in_child(*options: str) -> dict[str, Any]:
    """What :func:`step` finds in a process that does nothing else."""
    return found_in_child("benchmarks.paper_decoder", *options)


def step(settings: Settings) -> dict[str, Any]:
    """One forward and one backward, cold: a second one would find the allocator's memory warm."""
    device = torch.device("cpu")
    dtype = choose_dtype("auto", device)
    flow = _SMALL_FLOW if settings.quick else PAPER_FLOWS["qwen2.5-0.5b"]
    generator = torch.Generator().manual_seed(SEED)
    square = torch.randn(2, *[settings.either(2048, 64)] * 2, generator=generator).to(dtype)
    limit = product_rate(*square)
    began = now(device)
    decoder = HyperconvDecoder(flow, PAPER_KERNEL_SIZE, dtype=dtype, generator=generator)
    condition = torch.randn(1, *flow[0], generator=generator).half()
    target = torch.randn(1, *flow[-1], generator=generator)
    built = now(device)
    tokens = decoder(condition)
    forward = now(device)
    functional.mse_loss(tokens.float(), target).backward()
    backward = now(device)
    costs = decoder_cost(flow, PAPER_KERNEL_SIZE)
    return {
        "peak_bytes": peak_bytes(),
        "build_seconds": built - began,
        "forward_seconds": forward - built,
        "backward_seconds": backward - forward,
        "flop": 3 * 2 * costs.multiply_adds,
        "parameters": costs.parameters,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens_mean_square": tokens.float().square().mean().item(),
        "gradients_are_finite": all(
            p.grad is not None and bool(p.grad.isfinite().all()) for p in decoder.parameters()
        ),
        "product_rate": max(limit, product_rate(*square)),
    }


if __name__ == "__main__":
    print(json.dumps(step(Settings(quick="--quick" in sys.argv[1:]))))
