"""The base of the project's own Kedro datasets: a place on the local disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from kedro.io import AbstractDataset, DatasetError

In = TypeVar("In")
Out = TypeVar("Out")


class LocalDataset(AbstractDataset[In, Out]):
    """A dataset that is one file or one folder; subclasses load and save it.

    Attributes:
        files: of a folder, the files without which it does not exist; empty for a file.
    """

    files: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, *, filepath: str | os.PathLike[str], metadata: dict[str, Any] | None = None
    ) -> None:
        """Point at a place."""
        self._path = Path(filepath)
        self.metadata = metadata

    def _exists(self) -> bool:
        return self._holds(*self.files) if self.files else self._path.is_file()

    def _holds(self, *names: str) -> bool:
        """Whether all these files are in the folder."""
        return all((self._path / name).is_file() for name in names)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}


class ReadOnlyDataset(LocalDataset[None, Out]):
    """A dataset that another one, or another run, writes; subclasses load it."""

    def save(self, data: None) -> None:
        """Not possible.

        Raises:
            DatasetError: always.
        """
        raise DatasetError(f"{self._path} is only read here")
