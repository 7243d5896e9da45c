"""What a benchmark says: medians with their range, ratios, targets, and whether they are met."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "lm_eval", "ray")


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements, and how far they lie apart."""

    median: float
    smallest: float
    largest: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarize at least one value."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found), len(found))


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was measured.
        unit: of ``ours`` and ``peer``.
        ours: this project's measurements.
        peer: the peer's, taken in turn with ours.
        ratio: ours to peer, pair by pair.
        at_least: the target, for the ratio where there is one, else for ours.
        at_most: the same, from above.
    """

    name: str
    unit: str
    ours: Spread
    peer: Spread | None = None
    ratio: Spread | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median is on the right side of the target; None without one."""
        value = (self.ratio or self.ours).median
        if self.at_least is not None:
            return value >= self.at_least
        return None if self.at_most is None else value <= self.at_most


@dataclass(frozen=True)
class Result:
    """What one benchmark found.

    Attributes:
        benchmark: its name.
        rows: lines of the table.
        details: whatever else is worth keeping.
        skipped: why it did not run.
    """

    benchmark: str
    rows: Sequence[Row] = ()
    details: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data, with the verdicts."""
        rows = [{**dataclasses.asdict(row), "met": row.met} for row in self.rows]
        return {**dataclasses.asdict(self), "rows": rows}


def compared(
    name: str,
    unit: str,
    ours: Sequence[float],
    peer: Sequence[float],
    at_least: float | None = None,
) -> Row:
    """A row of rates measured in turn: the ratio is taken within each pair, so that both saw the same machine."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    return Row(name, unit, Spread.of(ours), Spread.of(peer), Spread.of(ratios), at_least)


def found_in_child(module: str, *options: str, given: str | None = None) -> dict[str, Any]:
    """What a module prints as JSON, in its last line, when it runs in a process that does nothing else.

    Args:
        module: to run as ``python -m``.
        *options: for it.
        given: what it reads from standard input.
    """
    done = child(module, *options, input=given, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(module: str, *options: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """The end of a process that runs a module of this project.

    Args:
        module: to run as ``python -m``.
        *options: for it.
        **how: of ``subprocess.run``.
    """
    path = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
    environment = {**how.pop("env", os.environ), "PYTHONPATH": path}
    command = [sys.executable, "-m", module, *options]
    return subprocess.run(
        command, env=environment, cwd=_ROOT, stdout=subprocess.PIPE, text=True, **how
    )


def now(device: torch.device) -> float:
    """Seconds on a clock that waits for the device's pending work first."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


class OtherLoad:
    """How much of the machine other processes take while a benchmark runs: ratios hold, rates suffer."""

    _STAT = Path("/proc/stat")

    def __init__(self) -> None:
        self._began, self._busy, self._own = (
            time.monotonic(),
            self._busy_seconds(),
            self._own_seconds(),
        )

    def share(self) -> float | None:
        """Of all cores' time since this object was made; None where the system does not tell."""
        busy = self._busy_seconds()
        if busy is None or self._busy is None:
            return None
        elapsed = time.monotonic() - self._began
        others = (busy - self._busy) - (self._own_seconds() - self._own)
        return max(0.0, others / (elapsed * (os.cpu_count() or 1)))

    def _busy_seconds(self) -> float | None:
        if not self._STAT.exists():
            return None
        # user, nice, system, idle, waiting, interrupts (2), stolen by other machines
        fields = [int(value) for value in self._STAT.read_text().split("\n", 1)[0].split()[1:9]]
        return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _own_seconds() -> float:
        return sum(os.times()[:4])


def table(results: Sequence[Result]) -> str:
    """All results as a Markdown table, with a sentence for each benchmark that was skipped."""
    lines = [
        "| measured | ours | peer | ratio (min–max, pairs) | target | met |",
        "| --- | ---: | ---: | ---: | ---: | :---: |",
    ]
    for result in results:
        for row in result.rows:
            target = "–"
            if row.at_least is not None:
                target = f"≥ {row.at_least:g}"
            elif row.at_most is not None:
                target = f"≤ {row.at_most:g}"
            ratio = "–"
            if row.ratio is not None:
                spread = row.ratio
                ratio = f"{spread.median:.2f} ({spread.smallest:.2f}–{spread.largest:.2f}, {spread.count})"
            peer = "–" if row.peer is None else f"{_number(row.peer.median)} {row.unit}"
            met = {None: "–", True: "yes", False: "NO"}[row.met]
            ours = f"{_number(row.ours.median)} {row.unit}"
            lines.append(f"| {row.name} | {ours} | {peer} | {ratio} | {target} | {met} |")
    lines.extend(f"\nskipped: {r.benchmark}: {r.skipped}" for r in results if r.skipped)
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


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
        "processor": processor(),
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


def processor() -> str:
    """The processor's name, with its bfloat16 instructions: they decide the dtype."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    text = cpuinfo.read_text(encoding="utf-8")
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    known = [flag for flag in ("avx512_bf16", "amx_bf16") if f" {flag}" in text]
    return " ".join([name[1] if name else platform.processor(), *known])
