"""A baseline's weights as a folder: a PEFT adapter that other tools open, and beside it what only we read."""

from __future__ import annotations

import json
from pathlib import Path

from kedro.io import DatasetError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from degaml_kedro.adapters.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_peft_folder,
    write_peft_files,
)
from degaml_kedro.baselines.compute import Compute
from degaml_kedro.baselines.learned import Learned
from degaml_kedro.folders import replaced_folder
from degaml_kedro.io.local import LocalDataset

ABOUT_FILE = "learned.json"
EXTRA_FILE = "extra.safetensors"
FORMAT = 1


class LearnedDataset(LocalDataset[Learned, Learned]):
    """A baseline's weights: a PEFT folder with ``extra.safetensors`` and ``learned.json`` in it."""

    files = (CONFIG_FILE, WEIGHTS_FILE, EXTRA_FILE, ABOUT_FILE)

    def load(self) -> Learned:
        """Read the folder."""
        return load_learned(self._path)

    def save(self, data: Learned) -> None:
        """Write the folder, whole or not at all."""
        save_learned(data, self._path)


def save_learned(learned: Learned, folder: Path) -> None:
    """Write a folder, whole or not at all."""
    about = {
        "format": FORMAT,
        "method": learned.method,
        "about": dict(learned.about),
        "compute": learned.compute.as_dict(),
        "records": [dict(record) for record in learned.records],
    }
    with replaced_folder(folder) as temporary:
        write_peft_files(learned.adapter, temporary)
        extra = {name: tensor.contiguous() for name, tensor in learned.extra.items()}
        save_file(extra, temporary / EXTRA_FILE)
        text = json.dumps(about, indent=2, sort_keys=True)
        (temporary / ABOUT_FILE).write_text(text, encoding="utf-8")


def load_learned(folder: Path) -> Learned:
    """Read a folder.

    Raises:
        DatasetError: a file is missing or damaged, or was written by a newer version.
    """
    adapter = load_peft_folder(folder)
    try:
        about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise DatasetError(
                f"{folder / ABOUT_FILE} has the format {about['format']}, this version reads {FORMAT}; "
                f"delete the folder and run the node again"
            )
        return Learned(
            about["method"],
            adapter,
            load_file(folder / EXTRA_FILE),
            tuple(about["records"]),
            Compute(**about["compute"]),
            about["about"],
        )
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DatasetError(
            f"{folder} cannot be read ({error}); it is damaged or incomplete: delete the folder and run the node again"
        ) from error
