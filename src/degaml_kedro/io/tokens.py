"""A trajectory as tokens on disk: one safetensors file, memory-mapped, read checkpoint by checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from degaml_kedro.adapters.scales import TokenScales, TokenStatistics
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.io.local import LocalDataset
from degaml_kedro.io.tensors import (
    DTYPES,
    MappedTensor,
    described,
    description,
    opened,
    read_described,
    safetensors_head,
    write_described,
    write_pieces,
)

_TENSOR = "tokens"
_STORED = (torch.float32, torch.bfloat16)


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


class TokensDataset(LocalDataset[TokenSequence, TokenSequence]):
    """A trajectory's tokens, [checkpoints, T, r, k] in one file, written checkpoint by checkpoint."""

    def _read(self) -> TokenSequence:
        """Open the file; nothing but its header is read."""
        with opened(self._path) as (file, metadata):
            about = described(metadata)
            part = file.get_slice(_TENSOR)
            shape = tuple(part.get_shape())
            dtype = {DTYPES[dtype]: dtype for dtype in _STORED}[part.get_dtype()]
            grid = TokenGrid.from_json(about["grid"])
            if shape[1:] != (grid.tokens, grid.rank, grid.token_width):
                raise ValueError(f"it holds tokens {shape[1:]}, but describes {grid}")
        read = MappedTensor(self._path, _TENSOR).__getitem__
        return TokenSequence(grid, shape[0], dtype, about["about"], read)

    def _write(self, data: TokenSequence) -> None:
        """Write the file, whole or not at all."""
        grid = data.grid
        shape = (data.count, grid.tokens, grid.rank, grid.token_width)
        about = description({"grid": grid.as_json(), "about": dict(data.about)})
        head = safetensors_head([(_TENSOR, data.dtype, shape)], about)
        pieces = (data.read(index).to(data.dtype) for index in range(data.count))
        write_pieces(self._path, head, pieces)


class TokenStatisticsDataset(LocalDataset[TokenStatistics, TokenStatistics]):
    """Mean and spread of a trajectory's tokens, as safetensors."""

    def _read(self) -> TokenStatistics:
        """Read the statistics."""
        return TokenStatistics.from_tensors(read_described(self._path)[0])

    def _write(self, data: TokenStatistics) -> None:
        """Write the statistics, whole or not at all."""
        write_described(self._path, data.tensors(), {})


class TokenScalesDataset(LocalDataset[TokenScales, TokenScales]):
    """The units of the tokens, as safetensors with the grid in the header."""

    def _read(self) -> TokenScales:
        """Read the scales."""
        tensors, about = read_described(self._path)
        return TokenScales.from_tensors(TokenGrid.from_json(about["grid"]), tensors)

    def _write(self, data: TokenScales) -> None:
        """Write the scales, whole or not at all."""
        write_described(self._path, data.tensors(), {"grid": data.grid.as_json()})
