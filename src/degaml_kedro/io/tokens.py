"""A trajectory as tokens on disk: one safetensors file, memory-mapped, read checkpoint by checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from degaml_kedro.adapters.scales import TokenScales, TokenStatistics
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.errors import DegamlError
from degaml_kedro.io.atomic import replace_file
from degaml_kedro.io.local import LocalDataset
from degaml_kedro.io.tensors import DTYPES, safetensors_head

_TENSOR = "tokens"
_STORED = (torch.float32, torch.bfloat16)
_FIX = "delete it, then `kedro run --pipelines tokenize --only-missing-outputs` makes it again"


class TokenFileError(DegamlError):
    """A file of tokens, statistics or scales that is not there or not whole."""


@dataclass(eq=False)
class TokenSequence:
    """The checkpoints of a trajectory as tokens; each is made or read when it is asked for.

    Attributes:
        grid: how they are cut.
        count: how many checkpoints.
        dtype: how they are stored.
        about: whose they are: task, base model and its fingerprint, the start's checksum.
        read: gives checkpoint i (from 0), [T, r, k].
    """

    grid: TokenGrid
    count: int
    dtype: torch.dtype
    about: Mapping[str, Any]
    read: Callable[[int], Tensor] = field(repr=False)

    def __len__(self) -> int:
        """How many checkpoints."""
        return self.count


class _MappedTokens:
    """Reads slices of a file that is opened at the first read; safe to hand to another process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slice: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_slice": None}

    def __call__(self, index: int) -> Tensor:
        if self._slice is None:
            self._slice = safe_open(self._path, framework="pt").get_slice(_TENSOR)
        tokens: Tensor = self._slice[index]
        return tokens


class TokensDataset(LocalDataset[TokenSequence, TokenSequence]):
    """A trajectory's tokens, [checkpoints, T, r, k] in one file, written checkpoint by checkpoint."""

    def load(self) -> TokenSequence:
        """Open the file; nothing but its header is read."""
        with _opened(self._path) as (file, meta):
            part = file.get_slice(_TENSOR)
            shape = tuple(part.get_shape())
            dtype = {DTYPES[dtype]: dtype for dtype in _STORED}[part.get_dtype()]
        grid = TokenGrid.from_json(meta["grid"])
        if shape[1:] != (grid.tokens, grid.rank, grid.token_width):
            raise TokenFileError(
                f"{self._path} holds tokens {shape[1:]}, but describes {grid}; {_FIX}"
            )
        return TokenSequence(grid, shape[0], dtype, meta["about"], _MappedTokens(self._path))

    def save(self, data: TokenSequence) -> None:
        """Write the file, whole or not at all."""
        grid = data.grid
        shape = (data.count, grid.tokens, grid.rank, grid.token_width)
        metadata = _metadata({"grid": grid.as_json(), "about": dict(data.about)})
        head = safetensors_head([(_TENSOR, data.dtype, shape)], metadata)

        def write(stream: BinaryIO) -> None:
            stream.write(head)
            for index in range(data.count):
                tokens = data.read(index).to(data.dtype).contiguous()
                stream.write(tokens.view(torch.uint8).numpy().tobytes())

        replace_file(self._path, write)


class TokenStatisticsDataset(LocalDataset[TokenStatistics, TokenStatistics]):
    """Mean and spread of a trajectory's tokens, as safetensors."""

    def load(self) -> TokenStatistics:
        """Read the statistics."""
        tensors, _ = _read(self._path)
        return TokenStatistics.from_tensors(tensors)

    def save(self, data: TokenStatistics) -> None:
        """Write the statistics, whole or not at all."""
        content = save(data.tensors(), metadata=_metadata({}))
        replace_file(self._path, lambda stream: stream.write(content))


class TokenScalesDataset(LocalDataset[TokenScales, TokenScales]):
    """The units of the tokens, as safetensors with the grid in the header."""

    def load(self) -> TokenScales:
        """Read the scales."""
        tensors, meta = _read(self._path)
        return TokenScales.from_tensors(TokenGrid.from_json(meta["grid"]), tensors)

    def save(self, data: TokenScales) -> None:
        """Write the scales, whole or not at all."""
        content = save(data.tensors(), metadata=_metadata({"grid": data.grid.as_json()}))
        replace_file(self._path, lambda stream: stream.write(content))


def _metadata(content: Mapping[str, Any]) -> dict[str, str]:
    # one entry: safetensors writes several in whatever order, and the same tokens should give the same bytes
    return {"degaml": json.dumps(content)}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A file, and its description.

    Raises:
        TokenFileError: it is not there, truncated or damaged.
    """
    if not path.is_file():
        raise TokenFileError(
            f"{path} is not there; `kedro run --pipelines tokenize --only-missing-outputs` makes it"
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file, json.loads(file.metadata()["degaml"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TokenFileError(
            f"{path} cannot be read ({error}); the file is truncated or damaged: {_FIX}"
        ) from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a small file, and its description."""
    with _opened(path) as (file, meta):
        return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
