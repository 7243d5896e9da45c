"""What the project's own Kedro datasets have in common: a place on the local disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from kedro.io import AbstractDataset

In = TypeVar("In")
Out = TypeVar("Out")


class LocalDataset(AbstractDataset[In, Out]):
    """A dataset that is one file or one folder; subclasses load and save it."""

    def __init__(
        self, *, filepath: str | os.PathLike[str], metadata: dict[str, Any] | None = None
    ) -> None:
        """Point at a place.

        Args:
            filepath: the file or the folder.
            metadata: for plugins such as Kedro-Viz.
        """
        self._path = Path(filepath)
        self.metadata = metadata

    def _exists(self) -> bool:
        return self._path.is_file()

    def _holds(self, *names: str) -> bool:
        """Whether all these files are in the folder."""
        return all((self._path / name).is_file() for name in names)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}
