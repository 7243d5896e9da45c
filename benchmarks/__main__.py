"""All benchmarks: ``python -m benchmarks [training gemm_limit scoring memory] [--quick] [--output FOLDER]``."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

from benchmarks import gemm_limit, memory, scoring, training
from benchmarks.material import Settings, SkippedError
from benchmarks.measure import Result, table

BENCHMARKS: dict[str, Callable[[Settings], Result]] = {
    "memory": memory.run,
    "training": training.run,
    "gemm_limit": gemm_limit.run,
    "scoring": scoring.run,
}
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "lm_eval")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, print the table, write one JSON file a benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all")
    parser.add_argument("--quick", action="store_true", help="a tiny random model: checks the code")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark '{unknown[0]}'; there are {', '.join(BENCHMARKS)}")
    results = []
    for name in asked.names or BENCHMARKS:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            result = BENCHMARKS[name](Settings(quick=asked.quick))
        except SkippedError as reason:
            result = Result(name, skipped=str(reason))
        results.append(result)
        _write(asked.output / f"{name}.json", result, asked.quick)
    print(table(results))
    return 0


def _write(path: Path, result: Result, quick: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**result.as_json(), "quick": quick, "machine": machine()}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
