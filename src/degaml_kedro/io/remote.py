"""A dataset's files on another filesystem (S3, GCS, … through fsspec), and a copy of them on this machine.

``<name>.index.json`` beside them, written last, names every file with its size and SHA-256. A file that it does not
name, or that is another than it says, is not there: so a writer that was killed between two files leaves nothing
half-written.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from kedro.io.core import get_protocol_and_path

from degaml_kedro.common.atomic import StoredDataError

logger = logging.getLogger(__name__)

_CHUNK = 1 << 22
# what grows step by step is sent again when what sending took is less than a tenth of the time since
_SHARE = 10


class RemoteFiles:
    """The files of one dataset: a file or a folder, and resume checkpoints beside it.

    Attributes:
        copy: the file or folder in this process's own copy; resume checkpoints lie beside it.
    """

    def __init__(self, url: str) -> None:
        """Point at a file or folder, ``s3://bucket/run/06_models/policy``; nothing is read yet."""
        self._url = url
        protocol, place = get_protocol_and_path(url)
        self._filesystem = fsspec.filesystem(protocol)
        self._folder, _, name = place.rpartition("/")
        self._index = f"{self._folder}/{name}.index.json"
        self.copy = _copies() / hashlib.sha256(url.encode()).hexdigest()[:16] / name
        # by file: its size and modification time here when it was last the one in the index, and its checksum
        self._known: dict[str, tuple[tuple[int, int], str]] = {}
        self._pause = 0.0
        self._sent = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process has a copy of its own."""
        return type(self), (self._url,)

    def names(self) -> set[str]:
        """The files that there are, ``policy/adapter_config.json``."""
        return set(self._read_index())

    def fetch(self) -> None:
        """Make the copy what the index says: files that are missing, damaged or others are fetched or removed."""
        index = self._read_index()
        for name in self._local() - index.keys():
            self._path(name).unlink()
            self._known.pop(name, None)
        for name, about in index.items():
            path = self._path(name)
            if path.is_file() and self._checksum(name) == about["sha256"]:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            arriving = path.with_name(f".{path.name}.partial")
            self._filesystem.get_file(f"{self._folder}/{name}", str(arriving))
            arriving.replace(path)
            if self._checksum(name) != about["sha256"]:
                logger.warning(
                    "%s in %s is not what its index says, and is left out; a writer was stopped there",
                    *(name, self._folder),
                )
                path.unlink()

    def fetch_matching(self, patterns: Iterable[str], apart: str | None = None) -> None:
        """Fetch the files of a folder that has no index, since others write it, by glob patterns in it.

        Files and folders whose names begin with ``apart`` are left out.
        """
        # as the filesystem writes it: some begin with a slash
        root = self._filesystem._strip_protocol(f"{self._folder}/{self.copy.name}")
        self._filesystem.invalidate_cache()
        for pattern in patterns:
            for found, about in self._filesystem.glob(f"{root}/{pattern}", detail=True).items():
                parts = PurePosixPath(found.removeprefix(f"{root}/")).parts
                if about["type"] == "directory" or (
                    apart and any(part.startswith(apart) for part in parts)
                ):
                    continue
                path = self.copy.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._filesystem.get_file(found, str(path))

    def send(self, whole: bool) -> None:
        """Bring the copy's files to the other side.

        Args:
            whole: the dataset is complete; one that is not is sent now and then.
        """
        if not whole and time.monotonic() - self._sent < _SHARE * self._pause:
            return
        began = time.monotonic()
        index = self._read_index()
        sent = {name: self._send_file(name, index.get(name)) for name in sorted(self._local())}
        if sent != index:
            self._filesystem.pipe_file(self._index, json.dumps(sent, indent=1).encode())
            for name in index.keys() - sent.keys():
                self._filesystem.rm_file(f"{self._folder}/{name}")
        self._sent = time.monotonic()
        self._pause = self._sent - began

    def forget(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self.copy.parent, ignore_errors=True)
        self._known = {}

    def _send_file(self, name: str, about: Mapping[str, Any] | None) -> dict[str, Any]:
        """Send a file if the index has another one; what goes into the index is of the bytes that were sent."""
        path = self._path(name)
        if about is not None and self._checksum(name) == about["sha256"]:
            return dict(about)
        stamp, digest, size = _stamp(path), hashlib.sha256(), 0
        self._filesystem.makedirs(f"{self._folder}/{name}".rpartition("/")[0], exist_ok=True)
        with path.open("rb") as file, self._filesystem.open(f"{self._folder}/{name}", "wb") as out:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
        self._known[name] = stamp, digest.hexdigest()
        return {"size": size, "sha256": digest.hexdigest()}

    def _read_index(self) -> dict[str, dict[str, Any]]:
        """The index; nothing where there is none.

        Raises:
            StoredDataError: it is none, or names files that are not this dataset's: they would leave the copy.
        """
        try:
            index: dict[str, dict[str, Any]] = json.loads(self._filesystem.cat_file(self._index))
            for name, about in index.items():
                parts = PurePosixPath(name).parts
                if not parts[0].startswith(self.copy.name) or ".." in parts or "\\" in name:
                    raise ValueError(f"it names {name!r}, which is not of this dataset")
                str.encode(about["sha256"])
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise StoredDataError(
                f"{self._index} cannot be read as an index ({error}); delete it, then `kedro run "
                f"--only-missing-outputs` makes again what it is of"
            ) from error
        return index

    def _path(self, name: str) -> Path:
        return self.copy.parent / name

    def _local(self) -> set[str]:
        """The files of the copy, without what writers keep in the meantime."""
        root = self.copy.parent
        found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return {
            path.as_posix()
            for path in found
            if not any(part.startswith((".", "earlier.")) for part in path.parts)
        }

    def _checksum(self, name: str) -> str:
        path = self._path(name)
        stamp = _stamp(path)
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            with path.open("rb") as file:
                known = stamp, hashlib.file_digest(file, "sha256").hexdigest()
            self._known[name] = known
        return known[1]


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@cache
def _copies() -> Path:
    """This process's folder of copies, which goes with it."""
    folder = Path(tempfile.mkdtemp(prefix="degaml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
