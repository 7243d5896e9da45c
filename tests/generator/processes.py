"""What every process of a launcher runs: the tiny generator's trainings, their outcomes in a folder."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

from safetensors.torch import save_file

from degaml_kedro.generator import sharding
from degaml_kedro.generator.training import join_processes, train_generator
from tests.generator.helpers import tiny_generator, tiny_task, tiny_training
from tests.llm.helpers import tiny_base


def main(folder: Path, trainings: str) -> None:
    """Train with each of the settings, and write what this process has in the end."""
    accelerator = join_processes("cpu")
    tasks = [tiny_task("one", 1), tiny_task("two", 2, state=1)]
    for name, (kind, is_shared, options) in json.loads(trainings).items():
        os.environ["ACCELERATE_USE_FSDP"] = is_shared
        made = tiny_generator(kind)
        training = tiny_training(**options)

        train = partial(train_generator, tasks=tasks, training=training, seed=7)
        train = partial(train, accelerator=accelerator, base=tiny_base())
        first = list(islice(train(tiny_generator(kind)), 2))
        # it goes on from there, as after a kill
        done = [*first, *train(made, resume=first[-1].state())]
        records = [asdict(step.record) for step in done]
        held = made.decoder.parameter_count
        if sharding.is_asked_for():
            shares = sharding.sharded(made.decoder, accelerator.device, accelerator.num_processes)
            held = sum(parameter.to_local().numel() for parameter in shares.parameters())
        about = {"processes": accelerator.num_processes, "records": records, "held": held}
        outcome = folder / f"{name}_{accelerator.process_index}"
        outcome.with_suffix(".json").write_text(json.dumps(about))
        save_file(dict(made.decoder.state_dict()), outcome.with_suffix(".safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
