"""What a node costs on a Ray cluster beyond its own work."""

from __future__ import annotations

import importlib
import time
from typing import Any

from kedro.framework.hooks.manager import _NullPluginManager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from kedro.runner import AbstractRunner, SequentialRunner

from benchmarks.material import Settings, SkippedError
from benchmarks.measure import Result, Row, Spread
from degaml_kedro.runners import RayRunner

# milliseconds
_AIM = 100.0


def run(settings: Settings) -> Result:
    """Time empty nodes with Kedro's sequential runner and on clusters of one and two CPUs."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise SkippedError(f"{error}; run `pip install '.[ray]'`") from error

    turns, rows = settings.either(3, 1), []
    for cpus in (1, 2):
        ray.init(num_cpus=cpus, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
        try:
            # the first turn starts the workers
            node_seconds(RayRunner(), settings)
            pairs = [
                (node_seconds(RayRunner(), settings), node_seconds(SequentialRunner(), settings))
                for _ in range(turns)
            ]
        finally:
            ray.shutdown()
        ours, peer = (Spread.of(1e3 * one for one in side) for side in zip(*pairs, strict=True))
        name = f"an empty node, RayRunner on {cpus} CPU, Kedro's SequentialRunner"
        rows.append(Row(name, "ms", ours, peer, Spread.of(a / b for a, b in pairs)))
        above = Spread.of(1e3 * (a - b) for a, b in pairs)
        aim = None if settings.quick else _AIM
        rows.append(Row("… overhead a node", "ms", above, at_most=aim))
    return Result("ray", rows, {"nodes": settings.either(200, 4)})


def node_seconds(runner: AbstractRunner, settings: Settings) -> float:
    """Wall time a node of independent nodes that do nothing."""
    count = settings.either(200, 4)
    made: list[Any] = [node(idle, "start", None, name=f"idle_{n}") for n in range(count)]
    began = time.perf_counter()
    no_hooks: Any = _NullPluginManager()
    runner.run(Pipeline(made), DataCatalog({"start": MemoryDataset(1)}), no_hooks)
    return (time.perf_counter() - began) / count


def idle(given: object) -> None:
    """Do nothing."""
