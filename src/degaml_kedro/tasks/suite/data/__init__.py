"""The word lists, wordings, rules and messages of the suite, each a JSON file."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def read_data(name: str) -> Any:
    """The content of ``NAME.json``; it is shared, so nobody may change it."""
    return json.loads(resources.files(__package__).joinpath(f"{name}.json").read_text("utf-8"))


def read_folder(name: str) -> list[dict[str, Any]]:
    """The contents of the JSON files of a folder, in the order of their names."""
    names = sorted(file.name for file in resources.files(__package__).joinpath(name).iterdir())
    files = (file.removesuffix(".json") for file in names if file.endswith(".json"))
    return [read_data(f"{name}/{file}") for file in files]
