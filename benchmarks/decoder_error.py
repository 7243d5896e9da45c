"""The faithful and the efficient decoder trained alike on the embedded profile's trajectories, and their errors.

``python -m benchmarks.decoder_error [--data FOLDER] [--steps N]`` needs a data folder with groups of left-out tasks
(a run with ``generator.leave_out``): a decoder learns from one group's tasks, the error is measured on the tasks that
the group left out.
It is no part of ``make bench``: the faithful decoder takes minutes for a handful of steps on a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from degaml_kedro.adapters.adapter import AdapterConfig
from degaml_kedro.config.schema import (
    FactorizedDecoder,
    GeneratorTraining,
    HyperconvolutionalDecoder,
)
from degaml_kedro.generator.decoders.build import ConditionSize, Decoder
from degaml_kedro.generator.generator import Generator, Identity
from degaml_kedro.generator.health import check_generator
from degaml_kedro.generator.training import TrainingTask, train_generator
from degaml_kedro.io.prompt_embeddings import read_prompt_embeddings
from degaml_kedro.io.tokens import TokenScalesDataset, TokensDataset

SUPPORT = 20
FLOW = (
    (16, 32, 384),
    (32, 24, 300),
    (64, 16, 256),
    (128, 10, 200),
    (256, 10, 194),
    (1590, 10, 194),
)


def main() -> None:
    """Train both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/named_rules/seed_999"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--kernel", type=int, default=9)
    parser.add_argument("--rates", type=float, nargs=2, default=(1e-4, 3e-4))
    asked = parser.parse_args()
    features = asked.data / "04_feature"
    groups = sorted(features.glob("without_*.token_scales.safetensors"))
    if not groups:
        parser.error(
            f"{features} has no group of left-out tasks; a run with generator.leave_out makes them"
        )
    label = groups[0].name.removesuffix(".token_scales.safetensors")
    names = sorted(
        path.name.removeprefix(f"{label}.").removesuffix(".tokens.safetensors")
        for path in features.glob(f"{label}.*.tokens.safetensors")
    )
    # a label joins names that have underscores of their own
    left_out = [name for name in names if f"_{name}_" in f"{label}_".removeprefix("without")]
    scales = TokenScalesDataset(filepath=groups[0]).load()
    tasks = {name: _task(features, label, name) for name in names}
    faithful = HyperconvolutionalDecoder(
        kind="hyperconvolutional", flow=FLOW, kernel_size=asked.kernel
    )
    efficient = FactorizedDecoder(kind="factorized")
    found = []
    for title, settings, rate in (
        ("efficient", efficient, asked.rates[1]),
        ("faithful", faithful, asked.rates[0]),
    ):
        found.append(_run(title, settings, rate, asked, scales, tasks, left_out))
        print(json.dumps(found[-1]), flush=True)
    print(f"\nheld out: {', '.join(left_out)}; {asked.steps} steps of {asked.batch} pairs")
    for row in found:
        print(
            f"{row['decoder']}: {row['parameters'] / 1e6:.1f} M parameters, {row['multiply_adds'] / 1e9:.1f} G "
            f"multiply-adds, {row['seconds_per_step']:.2f} s a step, held-out error {row['held_out']:.3f}, "
            f"error on its own tasks {row['seen']:.3f}"
        )


def _task(features: Path, label: str, name: str) -> TrainingTask:
    tokens = TokensDataset(filepath=features / f"{label}.{name}.tokens.safetensors").load()
    embeddings = read_prompt_embeddings(features / f"{name}.prompt_embeddings.safetensors")
    rows = range(len(embeddings) - SUPPORT)
    return TrainingTask(name, embeddings, rows, tokens.read, len(tokens))


def _run(
    title: str,
    settings: Any,
    rate: float,
    asked: argparse.Namespace,
    scales: Any,
    tasks: dict[str, TrainingTask],
    left_out: list[str],
) -> dict[str, Any]:
    some = next(iter(tasks.values())).embeddings
    decoder = Decoder(settings, scales.grid, ConditionSize(16, some.tokens, some.width), seed=0)
    if title == "faithful":
        # a fresh one makes outputs of the targets' size, which costs as much error as the targets themselves
        with torch.no_grad():
            last: Any = decoder.network.layers[-1]  # type: ignore[index]
            last.layerwise.weight.mul_(0.1)
    generator = Generator(
        decoder, scales, AdapterConfig(scales.grid.rank, 16.0, (), ""), Identity("", "", "", "")
    )
    training = GeneratorTraining(
        steps=asked.steps,
        batch_size=asked.batch,
        learning_rate=rate,
        warmup_steps=max(1, asked.steps // 10),
        weight_decay=0.01,
        precision="bfloat16" if title == "faithful" else "float32",
    )
    learned = [task for name, task in tasks.items() if name not in left_out]
    began = time.perf_counter()
    curve = [
        step.record.mse for step in train_generator(generator, learned, training, 0, Accelerator())
    ]
    seconds = (time.perf_counter() - began) / asked.steps
    errors: dict[str, Any] = {
        name: check_generator(generator, task, asked.steps, 0, name in left_out)[0].relative_error
        for name, task in tasks.items()
    }
    mean = {
        key: sum(value for name, value in errors.items() if (name in left_out) == held)
        / sum((name in left_out) == held for name in errors)
        for key, held in (("held_out", True), ("seen", False))
    }
    return {
        "decoder": title,
        "parameters": decoder.parameter_count,
        "multiply_adds": decoder.multiply_adds,
        "seconds_per_step": seconds,
        "mse_first": curve[0],
        "mse_last_fifth": sum(curve[-max(1, len(curve) // 5) :]) / max(1, len(curve) // 5),
        **mean,
        "errors": errors,
    }


if __name__ == "__main__":
    main()
