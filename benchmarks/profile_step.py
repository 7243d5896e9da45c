"""Where a training step's time goes: ``python -m benchmarks.profile_step [--batch-size 8] [--quick]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from torch.profiler import ProfilerActivity, profile

from benchmarks.material import PROMPT, SEED, Settings, suite_examples
from degaml_kedro.config.schema import LoraParameters, Phase, TrainingParameters
from degaml_kedro.llm.finetune import fine_tune, initial_adapter

WARM_UP = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the profiler's list of operations, per step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_step", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--operations", type=int, default=30, help="how many are listed")
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    asked = parser.parse_args(arguments)
    base = Settings(quick=asked.quick).base()
    total = WARM_UP + asked.steps
    training = TrainingParameters(
        phases=(Phase(steps=total, learning_rate=5e-4),), batch_size=asked.batch_size
    )
    examples = suite_examples(total * asked.batch_size)
    start = initial_adapter(base, LoraParameters())
    steps = fine_tune(base, examples, PROMPT, "text", training, start, SEED)
    for _ in range(WARM_UP):
        next(steps)
    activities = [ProfilerActivity.CPU]
    if base.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        taken = [next(steps) for _ in range(asked.steps)]
    seconds = sum(step.seconds for step in taken) / asked.steps
    tokens = sum(step.tokens for step in taken) / asked.steps
    print(f"{seconds * 1e3:.0f} ms a step under the profiler, {tokens:.0f} tokens")
    print("| operation | ms a step | share | calls a step |")
    print("| --- | ---: | ---: | ---: |")
    listed = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    for event in listed[: asked.operations]:
        spent = event.self_cpu_time_total / 1e6 / asked.steps
        calls = event.count / asked.steps
        print(f"| {event.key} | {spent * 1e3:.1f} | {spent / seconds:.1%} | {calls:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
