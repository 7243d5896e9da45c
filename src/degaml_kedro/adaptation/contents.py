"""What is in a saved adaptation's folder, so that nothing else is ever replaced by one."""

from __future__ import annotations

import json
from pathlib import Path

ABOUT_FILE = "degaml.json"
STATE_FOLDER = "state"
README_FILE = "README.md"
CONTENTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    ABOUT_FILE,
    README_FILE,
    STATE_FOLDER,
)


def why_not_ours(folder: Path) -> str | None:
    """What shows that a place must not be written over.

    Args:
        folder: a place that may be there.

    Returns:
        None where nothing is there, for an empty folder, and for a saved adaptation that nobody added anything to.
    """
    if folder.is_symlink():
        return "it is a link"
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "it is no folder"
    names = {path.name for path in folder.iterdir()}
    if names and ABOUT_FILE not in names:
        return f"it is no saved adaptation (it has no {ABOUT_FILE})"
    foreign = sorted(names.difference(CONTENTS))
    return f"it holds '{foreign[0]}', which is no part of a saved adaptation" if foreign else None


def trained_labels(folder: Path) -> tuple[str, ...]:
    """The answers that a saved adaptation's examples shared, without loading it; none where they shared none.

    Args:
        folder: where it is; what is wrong with it is for whoever loads it to say.
    """
    try:
        content = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        labels = content.get("labels", ())
    except (OSError, ValueError, RecursionError, AttributeError):
        return ()
    known = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    return tuple(labels) if known else ()
