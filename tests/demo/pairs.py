"""Trained pairs of the tests' pages: the tiny one, and two whose policy can choose little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from degaml_kedro.checkpoint.folder import save_pair
from tests.checkpoint.helpers import tiny_pair, tiny_settings

# only what plain PEFT knows: one adapter, no δ
PLAIN = {"lora": {}, "ttt": {"ttl_steps": [1, 3], "batch_size": [1, 4]}}
# each takes its time, with long questions above all: one can cancel
SLOW = {
    "ttt": {"ttl_steps": [50, 50], "batch_size": [32, 32]},
    "sft": {"steps": [50, 50], "batch_size": [8, 8]},
}


def write_pairs(folder: Path) -> dict[str, Path]:
    """Write them; by their labels."""
    folders = {label: folder / label for label in ("plain", "tiny", "slow")}
    save_pair(tiny_pair(), folders["tiny"])
    for label, families in (("plain", PLAIN), ("slow", SLOW)):
        pair = tiny_pair()
        save_pair(replace(pair, settings=_narrowed(families)), folders[label])
    return folders


def _narrowed(families: dict[str, Any]) -> Any:
    policy = tiny_settings().policy.model_dump(mode="json")
    return tiny_settings(policy={**policy, "families": families})
