"""Folders that are either the old one or the whole new one, never a part."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder, then put it in the place of another.

    Args:
        path: the folder; an earlier one there stays until the block has ended without an error.

    Yields:
        An empty folder beside it, to be filled.

    Raises:
        OSError: the folder cannot be made there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # unique, so that two writers never share a half-written folder
    mark = uuid.uuid4().hex[:16]
    # without the folder's own name, which may be as long as names can be
    temporary = path.with_name(f".{mark}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            old = path.with_name(f".{mark}.old")
            os.rename(path, old)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_gone(process: int) -> bool:
    """Whether no process of this machine has that number any longer; False where the system does not tell."""
    if os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False
