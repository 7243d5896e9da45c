"""All benchmarks: ``python -m benchmarks [NAME …] [--quick] [--output FOLDER]``."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers.utils import logging as transformers_logging

from benchmarks import (
    adaptation,
    candidates,
    decoders,
    fused,
    gemm_limit,
    generation,
    generator_training,
    latent_steps,
    memory,
    paper_decoder,
    qwen_round_trip,
    scoring,
    training,
    tts_batch,
)
from benchmarks.material import Settings, SkippedError
from benchmarks.measure import OtherLoad, Result, table

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
    "qwen_round_trip": qwen_round_trip.run,
    "candidates": candidates.run,
    "tts_batch": tts_batch.run,
    "latent_steps": latent_steps.run,
    "adaptation": adaptation.run,
}
RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "lm_eval")
_BUSY = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, print the table, write one JSON file a benchmark."""
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


def write(path: Path, content: dict[str, Any], machine: dict[str, Any]) -> None:
    """Write one result, a line for each list of numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {**_rounded(content), "machine": _rounded(machine)}
    text = json.dumps(whole, indent=1, ensure_ascii=False)
    flat = re.sub(r"\[[\s\d.,e+-]+\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
    path.write_text(flat + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    """Five significant digits: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def describe_machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {
            name: importlib.metadata.version(name)
            for name in _PACKAGES
            if importlib.util.find_spec(name) is not None
        },
    }


def _processor() -> str:
    """The processor's name, with its bfloat16 instructions: they decide the dtype."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    text = cpuinfo.read_text(encoding="utf-8")
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    known = [flag for flag in ("avx512_bf16", "amx_bf16") if f" {flag}" in text]
    return " ".join([name[1] if name else platform.processor(), *known])


if __name__ == "__main__":
    sys.exit(main())
