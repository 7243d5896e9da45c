"""The efficient decoder against the faithful one on one grid: parameters, multiply-adds, time and memory.

Each decoder runs in a process of its own, in float32 as the project trains them, batch 1. Both times are of the same
objective, a mean square over the grid; memory is what the process held at its peak beyond what it held before the
decoder was built. The paper's own widths are only counted: a step would take minutes. Errors on held-out trajectories
are not measured here: docs/generator.md has them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.generator_material import encoder_of, grid_of, sizes
from benchmarks.material import SEED, Settings
from benchmarks.measure import Result, Row, Spread, found_in_child, now
from benchmarks.memory import peak_bytes
from benchmarks.paper_decoder import PAPER_FLOWS, PAPER_KERNEL_SIZE
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.config.schema import (
    FactorizedDecoder,
    GeneratorTraining,
    GeneratorVariant,
    HyperconvolutionalDecoder,
)
from degaml_kedro.generator.decoders.build import ConditionSize, Decoder
from degaml_kedro.generator.decoders.hyperconv import Size, decoder_cost

# between the embedded profile's condition and its grid; widths as the paper's shrink and tokens as they grow
_TRUNK: tuple[Size, ...] = ((32, 24, 300), (64, 16, 256), (128, 10, 200), (256, 10, 194))
_SMALL_TRUNK: tuple[Size, ...] = ((4, 8, 12),)


def run(settings: Settings) -> Result:
    """Count all three, time two of them in turn; a quick run does without the children."""
    size, grid = sizes(settings.quick), grid_of(settings)
    condition = ConditionSize(size.prompts, size.encoder.tokens, encoder_of(settings).width)
    decoders: dict[str, FactorizedDecoder | HyperconvolutionalDecoder] = {
        "efficient": size.variant.token_decoder,
        "faithful": faithful_decoder(condition, grid, settings.quick),
    }
    turns: dict[str, list[dict[str, Any]]] = {kind: [] for kind in decoders}
    for _ in range(settings.either(3, 1)):
        for kind, decoder in decoders.items():
            here = measure if settings.quick else in_child
            turns[kind].append(here(decoder, grid, condition))
    first = {kind: found[0] for kind, found in turns.items()}
    wide = decoder_cost((*PAPER_FLOWS["qwen2.5-0.5b"][:-1], grid.shape), PAPER_KERNEL_SIZE)
    counts = {kind: (one["parameters"], one["multiply_adds"]) for kind, one in first.items()}
    counts["faithful, the paper's widths"] = (wide.parameters, wide.multiply_adds)
    own, *others = counts.items()
    at_least = None if settings.quick else 10.0
    rows = []
    for place, what, unit, each in (
        (0, "parameters", "million", 1e6),
        (1, "multiply-adds", "billion", 1e9),
    ):
        for name, theirs in others:
            sides = [own[1][place] / each], [theirs[place] / each]
            rows.append(_fewer(f"{what} ({name})", unit, *sides, at_least=at_least))
    for key, what, unit, each in (
        ("forward_seconds", "forward", "s", 1.0),
        ("step_seconds", "forward and backward", "s", 1.0),
        ("held_bytes", "peak memory of both", "GB", 1e9),
    ):
        ours, peer = ([turn[key] / each for turn in found] for found in turns.values())
        rows.append(_fewer(f"{what} (faithful)", unit, ours, peer))
    details = {
        "grid": list(grid.shape),
        "condition": asdict(condition),
        "counts": counts,
        "decoders": {kind: decoder.model_dump(mode="json") for kind, decoder in decoders.items()},
        "turns": turns,
    }
    return Result("decoders", rows, details)


def _fewer(
    name: str, unit: str, ours: list[float], peer: list[float], at_least: float | None = None
) -> Row:
    """How many times less ours takes, turn by turn."""
    ratios = [theirs / own for own, theirs in zip(ours, peer, strict=True)]
    name = f"efficient decoder, batch 1, against the faithful one: {name}"
    return Row(name, unit, Spread.of(ours), Spread.of(peer), Spread.of(ratios), at_least)


def faithful_decoder(
    condition: ConditionSize, grid: TokenGrid, quick: bool
) -> HyperconvolutionalDecoder:
    """The faithful decoder's parameters from a condition to a grid."""
    start = (condition.prompts, condition.tokens, condition.width)
    return HyperconvolutionalDecoder(
        kind="hyperconvolutional",
        flow=(start, *(_SMALL_TRUNK if quick else _TRUNK), grid.shape),
        kernel_size=3 if quick else PAPER_KERNEL_SIZE,
    )


def measure(
    parameters: FactorizedDecoder | HyperconvolutionalDecoder,
    grid: TokenGrid,
    condition: ConditionSize,
) -> dict[str, Any]:
    """A decoder's counts, its times once it is warm, and its memory.

    Args:
        parameters: which decoder.
        grid: what it fills.
        condition: what it is given.
    """
    source = torch.Generator().manual_seed(SEED)
    states = torch.randn(1, condition.prompts, condition.tokens, condition.width, generator=source)
    target = torch.randn(1, grid.tokens, grid.rank, grid.token_width, generator=source)
    lengths = torch.full((1, condition.prompts), condition.tokens)
    permutation = torch.ones(1, 1)
    before = peak_bytes()
    decoder = Decoder(parameters, grid, condition, SEED)

    def step() -> float:
        began = now(states.device)
        (decoder(states, lengths, permutation) - target).square().mean().backward()
        return now(states.device) - began

    step()
    began = now(states.device)
    with torch.no_grad():
        decoder(states, lengths, permutation)
    forward = now(states.device) - began
    return {
        "parameters": decoder.parameter_count,
        "multiply_adds": decoder.multiply_adds,
        "forward_seconds": forward,
        "step_seconds": step(),
        # a quick run shares its process, whose peak may lie behind it
        "held_bytes": max(1, peak_bytes() - before),
    }


def in_child(
    parameters: FactorizedDecoder | HyperconvolutionalDecoder,
    grid: TokenGrid,
    condition: ConditionSize,
) -> dict[str, Any]:
    """What :func:`measure` finds in a process that does nothing else, not even load a model."""
    content = {
        "decoder": parameters.model_dump(mode="json"),
        "grid": grid.as_json(),
        "condition": asdict(condition),
    }
    return found_in_child("benchmarks.decoders", given=json.dumps(content))


if __name__ == "__main__":
    _asked = json.load(sys.stdin)
    _decoder = GeneratorVariant(
        decoder=_asked["decoder"], training=GeneratorTraining()
    ).token_decoder
    _grid = TokenGrid.from_json(_asked["grid"])
    print(json.dumps(measure(_decoder, _grid, ConditionSize(**_asked["condition"]))))
