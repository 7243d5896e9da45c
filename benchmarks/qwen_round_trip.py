"""A real Qwen2.5-0.5B: a trajectory of a few steps, its tokens, and back: the same adapters and the same logits.

``DEGAML_BENCH_QWEN`` names a folder with the model: a Transformers folder, or one that holds a GGUF file, which is
converted once into the cache. Everything goes the pipelines' way: the checkpoints node trains and writes, the tokenize
node cuts, and each file is read again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.material import PROMPT, Settings, SkippedError, node_parameters, suite_examples
from benchmarks.measure import Result, Row, Spread, now
from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.config.schema import BaseModelParameters, ProjectParameters
from degaml_kedro.io.datasets import TrajectoryDataset
from degaml_kedro.io.tokens import TokensDataset
from degaml_kedro.io.trajectory import Trajectory
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.finetune import AnswerSequence, answer_sequences
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.packing import TokenTree, pack_trees
from degaml_kedro.pipelines.checkpoints.nodes import train_trajectory
from degaml_kedro.pipelines.tokenize.nodes import tokenize_trajectory
from degaml_kedro.tasks.splits import TaskSplits, splits_to_frame

FOLDER = "DEGAML_BENCH_QWEN"
STEPS = 3
# k of the paper; with rank 8 on all linear layers the grid is 4296 x 10 x 130
TOKEN_WIDTH = 128
PAPER_GRID = (4296, 10, 130)


def run(settings: Settings) -> Result:
    """Round trip of every checkpoint; a quick run takes a tiny random model."""
    parameters = settings.model if settings.quick else _model()
    base = load_base_model(parameters)
    at_least, at_most = (None, None) if settings.quick else (100.0, 0.0)
    sequences = answer_sequences(base, suite_examples(4), PROMPT, "text")
    cutting, joining, differences = [], [], []
    same = 0
    with tempfile.TemporaryDirectory() as folder:
        began = now(base.device)
        given = node_parameters(parameters, STEPS, batch_size=4, token_width=TOKEN_WIDTH)
        trajectory = _trajectory(given, Path(folder) / "trajectory")
        trained = now(base.device) - began
        tokens = TokensDataset(filepath=Path(folder) / "tokens.safetensors")
        tokens.save(tokenize_trajectory(given, trajectory, task="suite"))
        read = tokens.load()
        grid = read.grid
        if not settings.quick and grid.shape != PAPER_GRID:
            raise AssertionError(f"the grid is {grid.shape}, the paper's is {PAPER_GRID}")
        for index, number in enumerate(trajectory.steps):
            own = trajectory.adapter(number)
            cut = read.read(index)
            began = now(base.device)
            back = Adapter(own.config, grid.detokenize(cut))
            joined = now(base.device)
            grid.tokenize(own.tensors)
            cutting.append(now(base.device) - joined)
            joining.append(joined - began)
            same += _same_bits(own, back)
            ours, theirs = (logits(base, sequences, adapter) for adapter in (back, own))
            differences.append((ours - theirs).abs().max().item())
        unadapted = logits(base, sequences, None)
        moved = (theirs - unadapted).abs().max().item()
    model = "a tiny model" if settings.quick else "Qwen2.5-0.5B"
    name = f"{model}, {' x '.join(map(str, grid.shape))}"
    rows = [
        Row(
            f"{name}: checkpoints that come back bit for bit",
            "%",
            Spread.of([100 * same / len(trajectory)]),
            at_least=at_least,
        ),
        Row(f"{name}: largest difference of logits", "", Spread.of(differences), at_most=at_most),
        Row(f"{name}: adapter to tokens", "ms", Spread.of(1e3 * each for each in cutting)),
        Row(f"{name}: tokens to adapter", "ms", Spread.of(1e3 * each for each in joining)),
    ]
    details: dict[str, Any] = {
        "grid": list(grid.shape),
        "checkpoints": len(trajectory),
        "dtype": str(base.dtype),
        "stored_dtype": str(read.dtype),
        "seconds_to_train": trained,
        # the adapter does something, so that equal logits mean something
        "logits_moved_by_the_adapter": moved,
    }
    return Result("qwen_round_trip", rows, details)


def logits(base: BaseModel, sequences: Sequence[AnswerSequence], adapter: Adapter | None) -> Tensor:
    """Float32 logits of every token of some sequences, [tokens, vocabulary].

    Args:
        base: the model.
        sequences: what it reads.
        adapter: under which adapter; None for none.
    """
    pack = pack_trees([TokenTree(one.ids) for one in sequences], base.device, base.dtype)
    with torch.no_grad(), active_lora(base.activate_adapter(adapter)):
        return (base.hidden_states(pack) @ base.head.T).float()


def _model() -> BaseModelParameters:
    named = os.environ.get(FOLDER)
    if not named:
        raise SkippedError(
            f"{FOLDER} is not set; name a folder that holds Qwen2.5-0.5B, as GGUF or as a Transformers folder"
        )
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise SkippedError(f"{FOLDER} is '{named}', which is not a folder")
    source: dict[str, Any] = {"kind": "folder", "path": str(folder)}
    if not (folder / "config.json").is_file():
        files = sorted(file.name for file in folder.glob("*.gguf"))
        if not files:
            raise SkippedError(
                f"{FOLDER} is '{named}', which holds neither config.json nor a GGUF file"
            )
        source["gguf_file"] = files[0]
    return BaseModelParameters.model_validate({"source": source})


def _trajectory(parameters: ProjectParameters, folder: Path) -> Trajectory:
    """A few steps on the suite's questions, written by the pipeline's own node."""
    examples = suite_examples(20)
    parts = (examples[:8], examples[8:12], examples[12:16], examples[16:])
    dataset = TrajectoryDataset(filepath=folder)
    splits = splits_to_frame(TaskSplits(*(tuple(part) for part in parts)))
    for chunk in train_trajectory(parameters, None, splits, task="suite"):
        dataset.save(chunk)
    return dataset.load()


def _same_bits(one: Adapter, other: Adapter) -> bool:
    """Names, shapes, dtypes and every bit; 0 and -0 differ."""
    if set(one.tensors) != set(other.tensors):
        return False
    return all(
        tensor.dtype == other.tensors[name].dtype
        and torch.equal(_bits(tensor), _bits(other.tensors[name]))
        for name, tensor in one.tensors.items()
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
