"""Peak memory of one node of the checkpoints pipeline, in a process of its own.

The node itself runs: it loads the model, trains, and its trajectory is written step by step as Kedro would.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.material import Settings, node_parameters, suite_examples
from benchmarks.measure import Result, Row, Spread, found_in_child

STEPS = 5


def run(settings: Settings) -> Result:
    """Run the node in a child and ask it for its peak; a quick run does without the child."""
    if settings.quick:
        node(settings)
        peak = peak_bytes()
    else:
        peak = in_child()
    row = Row(
        f"peak memory of a checkpoint node ({STEPS} steps, batch 8)",
        "GB",
        Spread.of([peak / 1e9]),
        at_most=None if settings.quick else 3.0,
    )
    return Result("memory", [row], {"peak_bytes": peak, "steps": STEPS})


def in_child(*options: str) -> int:
    """Peak memory in bytes of a process that does nothing but the node's work."""
    return int(found_in_child("benchmarks.memory", *options)["peak_bytes"])


def node(settings: Settings) -> None:
    """What Kedro does for one node: run the generator, save each thing it yields."""
    from degaml_kedro.io.datasets import TrajectoryDataset
    from degaml_kedro.pipelines.checkpoints.nodes import train_trajectory
    from degaml_kedro.tasks.splits import TaskSplits, splits_to_frame

    examples = suite_examples(60)
    parts = (examples[:40], examples[40:50], examples[50:55], examples[55:])
    splits = splits_to_frame(TaskSplits(*(tuple(part) for part in parts)))
    with tempfile.TemporaryDirectory() as folder:
        dataset = TrajectoryDataset(filepath=folder)
        parameters = node_parameters(settings.model, STEPS, batch_size=8)
        for chunk in train_trajectory(parameters, None, splits, task="suite"):
            dataset.save(chunk)


def peak_bytes() -> int:
    """The most memory this process ever held.

    ``getrusage`` counts what the parent held before this process became its own program, so on Linux the kernel's
    own mark for the present program is read.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    node(Settings(quick="--quick" in sys.argv[1:]))
    print(json.dumps({"peak_bytes": peak_bytes()}))
