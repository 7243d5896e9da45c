"""Safetensors files with a description in their header: written whole or not at all, read as a whole or by slices."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from degaml_kedro.common.atomic import StoredDataError, replace_file

# the format's names of the types that are written here
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
}
# one entry: safetensors writes several in whatever order, and the same tensors should give the same bytes
_DESCRIPTION = "degaml"


def safetensors_head(
    tensors: Iterable[tuple[str, torch.dtype, Sequence[int]]], metadata: Mapping[str, str]
) -> bytes:
    """All that stands in front of the tensors' own bytes, padded to a multiple of eight.

    For a file that is written piece by piece: the library's own writer holds all of it in memory.

    Args:
        tensors: name, type and shape of each, in the order in which their bytes follow.
        metadata: of the file.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, dtype, shape in tensors:
        end = position + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {
            "dtype": DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_pieces(path: Path, head: bytes, pieces: Iterable[Tensor]) -> None:
    """Write a file of which one piece after the other is held in memory; an earlier file stays until it is whole."""

    def write(stream: BinaryIO) -> None:
        stream.write(head)
        for piece in pieces:
            stream.write(piece.contiguous().flatten().view(torch.uint8).numpy().data)

    replace_file(path, write)


def write_described(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors with a description that JSON can hold."""
    head = safetensors_head(((n, t.dtype, t.shape) for n, t in tensors.items()), description(about))
    write_pieces(path, head, tensors.values())


def description(about: Mapping[str, Any]) -> dict[str, str]:
    """A description as a file's metadata."""
    return {_DESCRIPTION: json.dumps(about)}


def described(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The description in a file's metadata."""
    about: dict[str, Any] = json.loads(metadata[_DESCRIPTION])
    return about


def read_described(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a file, and its description.

    Raises:
        StoredDataError: as :func:`opened`.
    """
    with opened(path) as (file, metadata):
        return {name: file.get_tensor(name) for name in file.keys()}, described(metadata)  # noqa: SIM118


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A file, of which nothing but the header is read, and its metadata.

    Raises:
        StoredDataError: it is not there, truncated, damaged, or what the block finds wrong (a ``KeyError``,
            ``TypeError`` or ``ValueError``).
    """
    if not path.is_file():
        raise StoredDataError(
            f"{path} is not there; `kedro run --only-missing-outputs` makes what is missing"
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file, file.metadata() or {}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = repr(error) if isinstance(error, KeyError) else error
        raise StoredDataError(
            f"{path} cannot be read ({reason}); it is truncated or damaged: delete it, then `kedro run "
            f"--only-missing-outputs` makes it again"
        ) from error


class MappedTensor:
    """A tensor in a file: mapped into memory when it is first sliced, read page by page.

    Another process opens the file for itself: only the path travels.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Point at a tensor; the file is not opened yet."""
        self._path, self._name = path, name
        self._slice: Any = None

    def __getitem__(self, place: slice | int, /) -> Tensor:
        """A view of the file.

        Raises:
            StoredDataError: the file is gone or damaged.
        """
        if self._slice is None:
            with opened(self._path) as (file, _):
                self._slice = file.get_slice(self._name)
        tensor: Tensor = self._slice[place]
        return tensor

    def __getstate__(self) -> dict[str, Any]:
        """An open file stays in its process."""
        return {**self.__dict__, "_slice": None}
