"""From prompts to an adapter's folder on disk, with everything loaded: what a user waits for a new task.

The encoder reads the prompts, the decoder makes the tokens, they become tensors, and PEFT's folder is written. The
file system's own cache may keep the bytes: nothing waits for the disk.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from benchmarks.generator_material import (
    encoder_of,
    fresh_generator,
    grid_of,
    noise_checkpoints,
    prompts_of,
    sizes,
)
from benchmarks.material import SEED, Settings
from benchmarks.measure import Result, Row, Spread, now
from degaml_kedro.adapters.adapter import save_peft_folder
from degaml_kedro.generator.decoders.build import ConditionSize

WARM_UP = 2


def run(settings: Settings) -> Result:
    """Time some adapters of different prompts, and the parts of each."""
    size, encoder = sizes(settings.quick), encoder_of(settings)
    condition = ConditionSize(size.prompts, size.encoder.tokens, encoder.width)
    checkpoints = noise_checkpoints(grid_of(settings), 2, SEED)
    generator = fresh_generator(settings, condition, checkpoints, encoder)
    generator.decoder.to(encoder.model.device).eval()
    repetitions = settings.either(20, 1)
    every = prompts_of("who_owns", (repetitions + WARM_UP) * size.prompts, settings)
    encoding, decoding, writing, busy = [], [], [], []
    device = next(generator.decoder.parameters()).device
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repetitions + WARM_UP):
            prompts = every[number * size.prompts : (number + 1) * size.prompts]
            began, processor = now(device), time.process_time()
            embeddings = encoder.encode(prompts, size.encoder.tokens, size.encoder.batch_tokens)
            encoded = now(device)
            adapter = generator.generate(*embeddings.rows(range(size.prompts)))
            decoded = now(device)
            save_peft_folder(adapter, Path(folder) / str(number))
            encoding.append(encoded - began)
            decoding.append(decoded - encoded)
            writing.append(now(device) - decoded)
            busy.append(time.process_time() - processor)
    parts = {"encode": encoding, "decode": decoding, "write": writing}
    parts = {name: seconds[WARM_UP:] for name, seconds in parts.items()}
    whole = [sum(each) for each in zip(*parts.values(), strict=True)]
    name = f"{size.prompts} prompts to an adapter's folder"
    rows = [Row(name, "s", Spread.of(whole), at_most=None if settings.quick else 1.0)]
    rows += [Row(f"… {part}", "s", Spread.of(seconds)) for part, seconds in parts.items()]
    details = {
        "prompts": size.prompts,
        "grid": list(generator.grid.shape),
        "encoder_dtype": str(encoder.model.dtype),
        "decoder_dtype": "torch.float32",
        "threads": torch.get_num_threads(),
        "seconds": whole,
        # of all threads: on a machine that is shared it says what the wall time cannot
        "processor_seconds": busy[WARM_UP:],
    }
    return Result("generation", rows, details)
