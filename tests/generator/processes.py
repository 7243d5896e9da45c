"""What every process of a launcher runs: the tiny generator's training, its outcome in a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from safetensors.torch import save_file

from degaml_kedro.generator import sharding
from degaml_kedro.generator.generator import Generator
from degaml_kedro.generator.training import (
    TrainingState,
    TrainingStep,
    join_processes,
    train_generator,
)
from tests.generator.helpers import tiny_generator, tiny_task, tiny_training
from tests.llm.helpers import tiny_base


def main(folder: Path, options: str) -> None:
    """Train, and write what this process has in the end."""
    accelerator = join_processes("cpu")
    asked = json.loads(options)
    kind = asked.pop("kind")
    tasks = [tiny_task("one", 1), tiny_task("two", 2, state=1)]
    training = tiny_training(**asked)

    def steps(made: Generator, state: TrainingState | None = None) -> Iterator[TrainingStep]:
        return train_generator(made, tasks, training, 7, accelerator, tiny_base(), state)

    first = list(islice(steps(tiny_generator(kind)), 2))
    # it goes on from there, as after a kill
    made = tiny_generator(kind)
    done = [*first, *steps(made, first[-1].state())]
    records = [asdict(step.record) for step in done]
    held = made.decoder.parameter_count
    if sharding.is_asked_for():
        shares = sharding.sharded(made.decoder, accelerator.device, accelerator.num_processes)
        held = sum(parameter.to_local().numel() for parameter in shares.parameters())
    about = {"processes": accelerator.num_processes, "records": records, "held": held}
    name = folder / str(accelerator.process_index)
    name.with_suffix(".json").write_text(json.dumps(about))
    save_file(dict(made.decoder.state_dict()), name.with_suffix(".safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
