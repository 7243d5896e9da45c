"""Nodes of the tasks pipeline."""

from __future__ import annotations

import logging
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from degaml_kedro import __version__
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import EpisodeSource, ProjectParameters
from degaml_kedro.llm.base_model import choose_device, choose_dtype
from degaml_kedro.pipelines.fingerprint import stated
from degaml_kedro.tasks.episodes import describe
from degaml_kedro.tasks.sources import load_examples
from degaml_kedro.tasks.splits import (
    SPLITS,
    examples_to_frame,
    frame_to_examples,
    split_examples,
    splits_to_frame,
)

_PACKAGES = ("kedro", "torch", "transformers", "peft", "mlflow", "scipy", "statsmodels")

logger = logging.getLogger(__name__)


def read_source(parameters: ProjectParameters, *, task: str) -> pd.DataFrame:
    """A task's examples as their source has them; ``split`` is the source's own split, or ``all``."""
    entry = parameters.tasks[task]
    if isinstance(entry.source, EpisodeSource):
        logger.info("%s is %s", task, describe(entry.source))
    seed = derive_seed(parameters.seed, task, "examples")
    pools = load_examples(entry.source, entry.splits or parameters.splits, seed, task)
    frames = []
    for name, examples in pools.items():
        frame = examples_to_frame(examples)
        frame.insert(0, "split", name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def deal_splits(
    parameters: ProjectParameters, examples: pd.DataFrame, *, task: str
) -> pd.DataFrame:
    """The task's four disjoint splits: one row per example of :func:`read_source` that is used, with its ``split``."""
    sizes = parameters.tasks[task].splits or parameters.splits
    pools = {
        str(name): frame_to_examples(frame) for name, frame in examples.groupby("split", sort=False)
    }
    dealt = split_examples(pools, sizes, derive_seed(parameters.seed, task, "splits"), task)
    counts = ", ".join(f"{len(dealt[name])} {name}" for name in SPLITS)
    logger.info("%s: %s", task, counts)
    return splits_to_frame(dealt)


def describe_run(parameters: ProjectParameters) -> dict[str, Any]:
    """A run's parameters, versions and machine, for whoever reads its results later."""
    given = stated(parameters)
    device = choose_device(parameters.model.device)
    profile, seed = parameters.profile, parameters.seed
    environment = "" if profile == "embedded" else f" --env {profile}"
    return {
        "profile": profile,
        "seed": seed,
        "methods": given["methods"],
        "tasks": {pool: list(given.get(pool, ())) for pool in ("meta_train", "meta_test")},
        "command": f"kedro run{environment} --params seed={seed}",
        "versions": versions(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(device),
            "dtype": str(choose_dtype(parameters.model.dtype, device)),
        },
        "parameters": given,
    }


def versions() -> dict[str, str]:
    """The versions of all that results depend on."""
    own = {"degaml-kedro": __version__, "python": platform.python_version()}
    return own | {package: version(package) for package in _PACKAGES}


def _processor() -> str:
    """The processor's own name where Linux tells it; platform says only its architecture."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def take_split(splits: pd.DataFrame, *, split: str) -> pd.DataFrame:
    """One split of a task alone: who is given it can see no other."""
    return splits[splits["split"] == split].reset_index(drop=True)
