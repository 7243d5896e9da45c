"""One small value of every kind of thing that a run writes, with what reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from degaml_kedro.adapters.adapter import Adapter, AdapterConfig, tensor_key
from degaml_kedro.common.atomic import AtomicJSONDataset, AtomicParquetDataset
from degaml_kedro.io.datasets import AdapterDataset, TrajectoryDataset
from degaml_kedro.io.rollouts import RolloutsDataset, RolloutsResumeDataset
from tests.io.fake_training import run as train
from tests.io.test_rollouts import trials


@dataclass(frozen=True)
class Writer:
    """What writes something in a folder, and tells what is there.

    Attributes:
        write: goes on where it was stopped, as a resumed run does; another seed is another content.
        dataset: of the folder.
    """

    write: Callable[[Path, int], None]
    dataset: Callable[[Path], Any]


def _adapter(seed: int) -> Adapter:
    numbers = torch.arange(8.0).view(2, 4) + seed
    tensors = {tensor_key("a.q_proj", "A"): numbers, tensor_key("a.q_proj", "B"): numbers.T.clone()}
    return Adapter(AdapterConfig(2, 4.0, ("q_proj",), "a/model"), tensors)


def _roll_out(folder: Path, seed: int) -> None:
    dataset = _rollouts(folder)
    resume = RolloutsResumeDataset(filepath=folder / "file").load()
    for rows in trials(resume, f"{seed}"):
        dataset.save(rows)


def _json(folder: Path) -> AtomicJSONDataset:
    return AtomicJSONDataset(filepath=str(folder / "file"))


def _table(folder: Path) -> AtomicParquetDataset:
    return AtomicParquetDataset(filepath=str(folder / "file"))


def _rollouts(folder: Path) -> RolloutsDataset:
    return RolloutsDataset(filepath=folder / "file")


def _peft(folder: Path) -> AdapterDataset:
    return AdapterDataset(filepath=folder / "adapter")


WRITERS = {
    "json": Writer(lambda folder, seed: _json(folder).save({"seed": seed}), _json),
    "parquet": Writer(
        lambda folder, seed: _table(folder).save(pd.DataFrame([{"a": seed}])), _table
    ),
    "adapter": Writer(lambda folder, seed: _peft(folder).save(_adapter(seed)), _peft),
    "rollouts": Writer(_roll_out, _rollouts),
    "trajectory": Writer(
        lambda folder, seed: train(folder / "trajectory", fingerprint=f"{seed}"),
        lambda folder: TrajectoryDataset(filepath=folder / "trajectory"),
    ),
}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, by its path; a folder is None."""
    return {
        str(part.relative_to(folder)): part.read_bytes() if part.is_file() else None
        for part in folder.rglob("*")
    }
