"""The base of the project's own Kedro datasets: a file or a folder, on this machine or behind fsspec."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from kedro.io import AbstractDataset, DatasetError

from degaml_kedro.io.remote import RemoteFiles

In = TypeVar("In")
Out = TypeVar("Out")


class LocalDataset(AbstractDataset[In, Out]):
    """A dataset that is one file or one folder; subclasses read and write it on this machine.

    Where ``filepath`` is a URL (``s3://…``), they read and write a copy, which is fetched before and sent after.

    Attributes:
        files: of a folder, the files without which it does not exist; empty for a file.
        leftover: what a kill may leave when all else is written, as :meth:`_is_whole` names files: while it is there
            the node that removes it is not skipped. Empty where there is none.
    """

    files: ClassVar[tuple[str, ...]] = ()
    leftover: ClassVar[str] = ""

    def __init__(
        self, *, filepath: str | os.PathLike[str], metadata: dict[str, Any] | None = None
    ) -> None:
        """Point at a place."""
        self._url = str(filepath)
        self._remote = RemoteFiles(self._url) if "://" in self._url else None
        self._path = self._remote.copy if self._remote else Path(filepath)
        self.metadata = metadata

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Another process has a copy of its own."""
        self.__dict__.update(state)
        if self._remote is not None:
            self._path = self._remote.copy

    def load(self) -> Out:
        """Read the value."""
        self._fetch()
        return self._read()

    def save(self, data: In) -> None:
        """Write the value."""
        self._write(data)
        if self._remote is not None:
            self._remote.send(whole=self._is_whole(self._is_here))

    def _fetch(self) -> None:
        if self._remote is not None:
            self._remote.fetch()

    @abstractmethod
    def _read(self) -> Out: ...

    @abstractmethod
    def _write(self, data: In) -> None: ...

    def _is_whole(self, has: Callable[[str], bool]) -> bool:
        """Whether the dataset exists.

        Args:
            has: whether there is a file, by what its name has behind the dataset's: ``""`` for a dataset that is a
                file, ``/NAME`` for one in a folder, ``.resume`` for one beside it.
        """
        whole = all(has(f"/{name}") for name in self.files) if self.files else has("")
        return whole and not (self.leftover and has(self.leftover))

    def _exists(self) -> bool:
        if self._remote is None:
            return self._is_whole(self._is_here)
        names = self._remote.names()
        return self._is_whole(lambda ending: f"{self._path.name}{ending}" in names)

    def _is_here(self, ending: str) -> bool:
        return Path(f"{self._path}{ending}").is_file()

    def _release(self) -> None:
        if self._remote is not None:
            self._remote.forget()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._url}


class ReadOnlyDataset(LocalDataset[None, Out]):
    """A dataset that another one, or another run, writes; subclasses load it."""

    def _write(self, data: None) -> None:
        raise DatasetError(f"{self._url} is only read here")
