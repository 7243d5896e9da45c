"""What the folders hold, so that nothing else is ever replaced by one. Nothing heavy is imported here."""

from __future__ import annotations

import json
from pathlib import Path

from degaml_kedro.common.errors import DegamlError

# each begins with the description, by which a folder is known
CARD_FILE = "README.md"
PAIR_CONTENTS = ("pair.json", CARD_FILE, "generator", "policy", "examples")
ADAPTATION_CONTENTS = (
    "degaml.json",
    CARD_FILE,
    "adapter_config.json",
    "adapter_model.safetensors",
    "state",
)
_NAMES: dict[tuple[str, ...], str] = {
    PAIR_CONTENTS: "trained pair",
    ADAPTATION_CONTENTS: "saved adaptation",
}


class CheckpointError(DegamlError):
    """A trained pair or a saved adaptation that cannot be found, read, used or written."""


def check_overwritable(folder: Path, contents: tuple[str, ...] = ADAPTATION_CONTENTS) -> None:
    """Refuse to write over what is neither empty nor of the kind with these contents.

    Raises:
        CheckpointError: it is a link or a file, or holds something else.
    """
    name, why = _NAMES[contents], ""
    if folder.is_symlink():
        why = "it is a link"
    elif folder.exists() and not folder.is_dir():
        why = "it is no folder"
    elif folder.exists():
        names = {path.name for path in folder.iterdir()}
        foreign = sorted(names.difference(contents))
        if names and contents[0] not in names:
            why = f"it is no {name} (it has no {contents[0]})"
        elif foreign:
            why = f"it holds '{foreign[0]}', which is no part of a {name}"
    if why:
        raise CheckpointError(f"{folder} is left alone: {why}; name another folder")


def trained_labels(folder: Path) -> tuple[str, ...]:
    """The answers that a saved adaptation's examples shared, without loading it; none where they shared none.

    What is wrong with the folder is for whoever loads it to say.
    """
    try:
        content = json.loads((folder / ADAPTATION_CONTENTS[0]).read_text(encoding="utf-8"))
        labels = content.get("labels", ())
    except (OSError, ValueError, RecursionError, AttributeError):
        return ()
    known = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    return tuple(labels) if known else ()
