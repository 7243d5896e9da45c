"""A baseline's weights as a folder: a PEFT adapter that other tools open, and beside it what only we read."""

from __future__ import annotations

import json

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
from degaml_kedro.common.atomic import StoredDataError
from degaml_kedro.common.folders import replaced_folder
from degaml_kedro.io.local import LocalDataset

ABOUT_FILE = "learned.json"
EXTRA_FILE = "extra.safetensors"
FORMAT = 1


class LearnedDataset(LocalDataset[Learned, Learned]):
    """A baseline's weights: a PEFT folder with ``extra.safetensors`` and ``learned.json`` in it."""

    files = (CONFIG_FILE, WEIGHTS_FILE, EXTRA_FILE, ABOUT_FILE)

    def _read(self) -> Learned:
        """Read the folder.

        Raises:
            StoredDataError: a file is missing or damaged, or was written by a newer version.
        """
        folder = self._path
        adapter = load_peft_folder(folder)
        try:
            about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']}, this version reads {FORMAT}")
            return Learned(
                about["method"],
                adapter,
                load_file(folder / EXTRA_FILE),
                tuple(about["records"]),
                Compute(**about["compute"]),
                about["about"],
            )
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise StoredDataError(
                f"{folder} cannot be read ({error}); it is damaged or incomplete: delete the folder, then `kedro run "
                f"--only-missing-outputs` makes it again"
            ) from error

    def _write(self, data: Learned) -> None:
        """Write the folder, whole or not at all."""
        about = {
            "format": FORMAT,
            "method": data.method,
            "about": dict(data.about),
            "compute": data.compute.as_dict(),
            "records": [dict(record) for record in data.records],
        }
        with replaced_folder(self._path) as temporary:
            write_peft_files(data.adapter, temporary)
            extra = {name: tensor.contiguous() for name, tensor in data.extra.items()}
            save_file(extra, temporary / EXTRA_FILE)
            text = json.dumps(about, indent=2, sort_keys=True)
            (temporary / ABOUT_FILE).write_text(text, encoding="utf-8")
