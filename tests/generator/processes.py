"""What every process of a launcher runs: the tiny generator's training, its outcome in a folder."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from degaml_kedro.generator.training import join_processes, train_generator
from tests.generator.helpers import tiny_generator, tiny_task, tiny_training
from tests.llm.helpers import tiny_base


def main(folder: Path, options: str) -> None:
    """Train, and write what this process has in the end."""
    accelerator = join_processes("cpu")
    made = tiny_generator()
    tasks = [tiny_task("one", 1), tiny_task("two", 2, state=1)]
    training = tiny_training(**json.loads(options))
    steps = list(train_generator(made, tasks, training, 7, accelerator, tiny_base()))
    records = [asdict(step.record) for step in steps]
    about = {"processes": accelerator.num_processes, "records": records}
    name = folder / str(accelerator.process_index)
    name.with_suffix(".json").write_text(json.dumps(about))
    save_file(dict(made.decoder.state_dict()), name.with_suffix(".safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
