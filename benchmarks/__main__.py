"""All benchmarks: ``python -m benchmarks [NAME …] [--quick] [--output FOLDER]``; on a card: ``gpu``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers.utils import logging as transformers_logging

from benchmarks import (
    adaptation,
    candidates,
    decoders,
    fused,
    gemm_limit,
    generation,
    generator_training,
    gpu,
    latent_steps,
    memory,
    paper_decoder,
    paper_memory,
    qwen_round_trip,
    ray_nodes,
    scoring,
    training,
    tts_batch,
)
from benchmarks.material import Settings, SkippedError
from benchmarks.measure import OtherLoad, Result, describe_machine, table, write

BENCHMARKS: dict[str, Callable[[Settings], Result]] = {
    "memory": memory.run,
    "training": training.run,
    "fused": fused.run,
    "gemm_limit": gemm_limit.run,
    "scoring_text": scoring.run_text,
    "scoring_letter": scoring.run_letter,
    "generator_training": generator_training.run_profile,
    "generator_training_paper": generator_training.run_paper,
    "generation": generation.run,
    "decoders": decoders.run,
    "paper_decoder": paper_decoder.run,
    "paper_memory": paper_memory.run,
    "qwen_round_trip": qwen_round_trip.run,
    "candidates": candidates.run,
    "tts_batch": tts_batch.run,
    "latent_steps": latent_steps.run,
    "adaptation": adaptation.run,
    "ray": ray_nodes.run,
}
RESULTS = Path(__file__).parent / "results"
_BUSY = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, print the table, write one JSON file a benchmark."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "gpu":
        return gpu.main(arguments[1:], RESULTS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all")
    parser.add_argument("--quick", action="store_true", help="a tiny random model: checks the code")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results, none when quick")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark '{unknown[0]}'; there are {', '.join(BENCHMARKS)}")
    output = asked.output or (None if asked.quick else RESULTS)
    transformers_logging.set_verbosity_error()
    results = []
    for name in asked.names or BENCHMARKS:
        print(f"{name} …", file=sys.stderr, flush=True)
        others = OtherLoad()
        try:
            result = BENCHMARKS[name](Settings(quick=asked.quick))
        except SkippedError as reason:
            result = Result(name, skipped=str(reason))
        results.append(result)
        share = others.share()
        if share is not None and share > _BUSY and result.skipped is None:
            print(
                f"other processes took {share:.0%} of this machine meanwhile; rates are lower than they could be",
                file=sys.stderr,
            )
        if output is not None:
            machine = {**describe_machine(), "other_processes": share}
            write(output / f"{name}.json", {**result.as_json(), "quick": asked.quick}, machine)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
