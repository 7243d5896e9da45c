"""Total work, critical path and list-schedule length of an environment's nodes on N devices.

``python -m benchmarks.schedule --env paper_0_5b`` takes the times of ``node_times.yml``, which are estimates;
``--times FILE --devices N`` those of a file, and ``--env ENV --measure FILE`` runs a profile and writes such a file.
"""

from __future__ import annotations

import argparse
import heapq
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from pydantic import BaseModel, ConfigDict, PositiveFloat, TypeAdapter, ValidationError

from benchmarks.measure import describe_machine
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.pipelines.naming import stage_of
from degaml_kedro.results.formatting import seconds as duration
from degaml_kedro.runners import resources

TIMES = Path(__file__).with_name("node_times.yml")
# the kind of all nodes without a GPU that have no time of their own
OTHERS = "other"


class ScheduleError(DegamlError):
    """Node times that cannot be read, or that lack a kind of node."""


class NodeTime(BaseModel):
    """Seconds of one kind of node: measured on a machine, or estimated from something; one of the two says which."""

    model_config = ConfigDict(extra="forbid")

    seconds: PositiveFloat
    measured: str | None = None
    estimated: str | None = None

    def model_post_init(self, context: Any) -> None:
        """Check that it is one of the two."""
        if (self.measured is None) == (self.estimated is None):
            raise ValueError("say either 'measured: MACHINE' or 'estimated: FROM WHAT'")


@dataclass(frozen=True)
class Timed:
    """A node in a schedule: how long it takes, what share of a device, and which nodes it waits for."""

    seconds: float
    share: float = 1.0
    after: tuple[str, ...] = ()


def longest_paths(nodes: Mapping[str, Timed]) -> dict[str, float]:
    """By node, the seconds from its start to the end of the longest chain that begins with it."""
    found = dict.fromkeys(nodes, 0.0)
    # each comes when all that wait for it have come
    for name in reversed([*_graph(nodes).static_order()]):
        found[name] += nodes[name].seconds
        for before in nodes[name].after:
            found[before] = max(found[before], found[name])
    return found


def list_schedule(nodes: Mapping[str, Timed], devices: float) -> dict[str, float]:
    """By node, when it starts: of the ready nodes that fit, the one with the longest path first.

    A node that takes no device starts as soon as it can.

    Raises:
        ScheduleError: a node asks for more devices than there are.
    """
    paths, graph = longest_paths(nodes), _graph(nodes)
    graph.prepare()
    starts: dict[str, float] = {}
    ready: list[str] = []
    running: list[tuple[float, str]] = []
    now, free = 0.0, devices
    while graph.is_active():
        ready = sorted([*ready, *graph.get_ready()], key=lambda name: (-paths[name], name))
        for name in ready:
            # shares like 1/3 do not add up to 1 exactly
            if nodes[name].share <= free + 1e-9:
                free -= nodes[name].share
                starts[name] = now
                heapq.heappush(running, (now + nodes[name].seconds, name))
        ready = [name for name in ready if name not in starts]
        if not running:
            raise ScheduleError(f"{ready[0]} asks for more than {devices:g} devices; give more")
        now, name = heapq.heappop(running)
        free += nodes[name].share
        graph.done(name)
    return starts


def _graph(nodes: Mapping[str, Timed]) -> TopologicalSorter[str]:
    return TopologicalSorter({name: one.after for name, one in nodes.items()})


def length(nodes: Mapping[str, Timed], starts: Mapping[str, float]) -> float:
    """When the last node ends."""
    return max((starts[name] + one.seconds for name, one in nodes.items()), default=0.0)


def kind_of(node: Node) -> str:
    """What a node's time is found by: its stage and its function, ``policy.roll_out_task``."""
    return f"{stage_of(node)}.{node.func.__name__}"


def timed(pipeline: Pipeline, times: Mapping[str, NodeTime]) -> dict[str, Timed]:
    """The nodes of a pipeline with their times. A device is a GPU; where no node asks for one, a CPU.

    Raises:
        ScheduleError: there is no time of a kind of node.
    """
    asked = {node: resources(node) for node in pipeline.nodes}
    device = "num_gpus" if any("num_gpus" in one for one in asked.values()) else "num_cpus"
    kinds = {
        node: kind if (kind := kind_of(node)) in times or device in asked[node] else OTHERS
        for node in pipeline.nodes
    }
    if missing := sorted({kind for kind in kinds.values() if kind not in times}):
        raise ScheduleError(
            f"there are no times of {', '.join(missing)}; add them, as in {TIMES.name}"
        )
    return {
        node.name: Timed(
            times[kinds[node]].seconds,
            asked[node].get(device, 0.0),
            tuple(one.name for one in pipeline.node_dependencies[node]),
        )
        for node in pipeline.nodes
    }


def report(name: str, pipeline: Pipeline, times: Mapping[str, NodeTime], devices: int) -> str:
    """What one run would take, and from which times."""
    nodes = timed(pipeline, times)
    ends = length(nodes, list_schedule(nodes, devices))
    work = sum(one.seconds * one.share for one in nodes.values())
    path = max(longest_paths(nodes).values(), default=0.0)
    lines = [
        f"{devices} x {name}, {len(nodes)} nodes",
        f"  total work            {duration(work)} of one device",
        f"  critical path         {duration(path)}",
        f"  list schedule         {duration(ends)}, {work / (devices * ends):.0%} of the devices' time",
    ]
    counts = Counter(kind if (kind := kind_of(n)) in times else OTHERS for n in pipeline.nodes)
    lines += [
        f"  {count:5} x {duration(times[kind].seconds):>8}  {kind}: "
        + (
            f"measured, {one}"
            if (one := times[kind].measured)
            else f"estimated, {times[kind].estimated}"
        )
        for kind, count in sorted(
            counts.items(), key=lambda item: -item[1] * times[item[0]].seconds
        )
    ]
    return "\n".join(lines)


def read_times(path: Path, *keys: str) -> dict[str, NodeTime]:
    """The times of a YAML or JSON file by kind, under some keys.

    Raises:
        ScheduleError: it cannot be read, has no such key, or an entry is no time.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key in keys:
            content = content[key]
        return TypeAdapter(dict[str, NodeTime]).validate_python(content)
    except (KeyError, TypeError) as error:
        raise ScheduleError(f"{path} has no times of {', '.join(keys)}; add them") from error
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ScheduleError(f"{path} cannot be read as times of nodes: {error}") from error


class NodeClock:
    """A hook that takes the time of each node, from its start to the last dataset that it saves."""

    def __init__(self) -> None:
        self.began: dict[Node, float] = {}
        self.ended: dict[Node, float] = {}

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        self.began[node] = time.perf_counter()

    @hook_impl
    def after_dataset_saved(self, node: Node) -> None:
        self.ended[node] = time.perf_counter()

    def by_kind(self) -> dict[str, dict[str, Any]]:
        """The mean of each kind, as :func:`read_times` reads it."""
        about, found = describe_machine(), defaultdict(list)
        machine = about["accelerator"] or f"{about['processor']}, {about['cores']} cores"
        for node, ended in self.ended.items():
            found[kind_of(node)].append(ended - self.began[node])
        return {
            kind: {"seconds": round(sum(each) / len(each), 4), "measured": machine}
            for kind, each in sorted(found.items())
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what an environment would take; or run it, and write what its nodes took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schedule", description=__doc__)
    parser.add_argument("--env", required=True, help="whose pipelines: paper_0_5b, smoke, …")
    parser.add_argument("--times", type=Path, help=f"of nodes by kind; default: {TIMES.name}")
    parser.add_argument("--devices", type=int, help="how many; with --times")
    parser.add_argument("--measure", type=Path, help="run it in this process, and write this file")
    asked = parser.parse_args(arguments)
    if bool(asked.times) != bool(asked.devices):
        parser.error("--times and --devices go together")
    bootstrap_project(Path(__file__).parents[1])
    try:
        made: Any = KedroSession.create(env=asked.env)
        with made as session:
            if asked.measure:
                clock = NodeClock()
                session._hook_manager.register(clock)
                session.run()
                asked.measure.write_text(yaml.safe_dump(clock.by_kind()), encoding="utf-8")
                return 0
            session.load_context()
            pipeline = pipelines["__default__"]
        if asked.times:
            print(report("device", pipeline, read_times(asked.times), asked.devices))
        else:
            for card, devices in (("A6000", 4), ("H100", 64)):
                print(report(card, pipeline, read_times(TIMES, asked.env, card), devices))
    except DegamlError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
