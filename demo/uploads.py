"""Where Gradio puts what is uploaded: a folder that nobody else can read, unless the user named one."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


def upload_folder() -> str:
    """The folder that the user named, or else this server's own."""
    return os.environ.get("GRADIO_TEMP_DIR") or str(_own_folder())


def own_folder() -> Path | None:
    """This server's own folder; None where the user named one."""
    own = _own_folder() if _own_folder.cache_info().currsize else None
    return own if own is not None and upload_folder() == str(own) else None


@cache
def _own_folder() -> Path:
    # readable by its owner alone
    folder = Path(tempfile.mkdtemp(prefix="degaml-demo-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
