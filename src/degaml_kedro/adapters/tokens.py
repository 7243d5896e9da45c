"""LoRA weights as a sequence of equal tokens, and back: section E.2 of DeGAML's paper, for any LoRA.

Every matrix is laid out with the rank as its height (B is transposed), cut along its width into tokens of r x k,
and the last token is filled up with zeros. A generator sees the tokens with a border of one pixel around them.

Shapes: T tokens, r rank, k token width, S slots, I inputs, O outputs, n slots of a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor

from degaml_kedro.adapters.adapter import parse_key
from degaml_kedro.common.errors import DegamlError

Matrix = Literal["A", "B"]
_MATRICES: tuple[Matrix, Matrix] = ("A", "B")
# token widths that no configuration names: below the first, tokens are padded to the second
_NARROWEST, _PADDED = 32, 128


class GridError(DegamlError):
    """LoRA tensors without a token grid, tokens of another grid, or scales that do not fit."""


@dataclass(frozen=True)
class Slot:
    """One LoRA matrix of one layer, and the tokens that hold it.

    Attributes:
        key: PEFT's name of the tensor.
        layer: index of the transformer layer; -1 for a module that belongs to none.
        module: the module's path after the layer index, such as ``self_attn.q_proj``.
        width: I of an A [r, I], O of a B [O, r].
    """

    key: str
    layer: int
    module: str
    matrix: Matrix
    width: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """Layer, module and matrix, for messages."""
        place = f"layer {self.layer}, " if self.layer >= 0 else ""
        return f"{place}{self.module}, {self.matrix}"


@dataclass(frozen=True)
class TokenGrid:
    """Which token holds which part of which LoRA matrix.

    Attributes:
        rank: r.
        token_width: k.
        slots: every matrix, by layer; inside a layer by module, A before B.
    """

    rank: int
    token_width: int
    slots: tuple[Slot, ...]

    @classmethod
    def from_shapes(
        cls, shapes: Mapping[str, tuple[int, ...]], token_width: int | None = None
    ) -> TokenGrid:
        """Lay out the tensors of an adapter, of shapes (r, I) for A and (O, r) for B, by PEFT's name.

        Layers go by their index, the first whole number in the module's path; modules without one come first. Inside a
        layer, modules keep their order.

        Args:
            token_width: k; None for the greatest common divisor of all widths, so that no token has padding; for 128
                where that is below 32.

        Raises:
            AdapterError: a tensor is not LoRA's.
            GridError: a module has only one of the two, ranks differ, or there is nothing.
        """
        if token_width is not None and token_width < 1:
            raise GridError(f"token_width is {token_width}; it must be at least 1")
        if not shapes:
            raise GridError("there is no LoRA tensor to cut into tokens")
        modules: dict[str, dict[str, str]] = {}
        widths: dict[str, int] = {}
        rank, rank_key = 0, ""
        for key, shape in shapes.items():
            path, matrix = parse_key(key)
            if len(shape) != 2 or min(shape) < 1:
                raise GridError(
                    f"{key} has shape {tuple(shape)}; only matrices with at least one row and one "
                    f"column can be cut into tokens: train the adapter on linear layers"
                )
            found, widths[key] = shape if matrix == "A" else shape[::-1]
            if rank and found != rank:
                raise GridError(
                    f"{rank_key} has rank {rank}, but {key} has rank {found}; all tokens have the "
                    f"same height: train the adapter with one rank"
                )
            rank, rank_key = found, rank_key or key
            modules.setdefault(path, {})[matrix] = key
        if token_width is None:
            common = math.gcd(*widths.values())
            token_width = common if common >= _NARROWEST else _PADDED
        slots: list[Slot] = []
        # sorting is stable: inside a layer the order of appearance stays
        for path in sorted(modules, key=lambda path: _split_layer(path)[0]):
            layer, module = _split_layer(path)
            for matrix in _MATRICES:
                if matrix not in modules[path]:
                    raise GridError(f"{path} has no lora_{matrix} tensor; the adapter is not whole")
                key = modules[path][matrix]
                first = slots[-1].first + slots[-1].count if slots else 0
                count = math.ceil(widths[key] / token_width)
                slots.append(Slot(key, layer, module, matrix, widths[key], first, count))
        return cls(rank, token_width, tuple(slots))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TokenGrid:
        """The grid that :meth:`as_json` wrote.

        Raises:
            GridError: the content is not a token grid.
        """
        try:
            shapes = {str(key): (int(o), int(i)) for key, o, i in content["shapes"]}
            token_width = int(content["token_width"])
        except (KeyError, TypeError, ValueError) as error:
            raise GridError(f"this is not a stored token grid: {error!r}; make it again") from error
        return cls.from_shapes(shapes, token_width)

    def as_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads: plain lists, so that the order survives sorted keys."""
        return {
            "token_width": self.token_width,
            "shapes": [[key, *shape] for key, shape in self.shapes.items()],
        }

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The tensors' shapes by PEFT's name, in the order of the slots."""
        return {
            slot.key: (self.rank, slot.width) if slot.matrix == "A" else (slot.width, self.rank)
            for slot in self.slots
        }

    @property
    def tokens(self) -> int:
        """T."""
        return self.slots[-1].first + self.slots[-1].count

    @property
    def cells(self) -> tuple[int, int, int]:
        """(T, r, k): the shape of an adapter's tokens."""
        return self.tokens, self.rank, self.token_width

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, r + 2, k + 2): what a generator makes, with the border."""
        return self.tokens, self.rank + 2, self.token_width + 2

    # --- what a generator may want to know of the tokens ---

    def mask(self) -> Tensor:
        """Bool [T, r, k]: False where a token is filled up with zeros."""
        filled = torch.full((self.tokens,), self.token_width)
        for slot in self.slots:
            filled[slot.first + slot.count - 1] = slot.width - (slot.count - 1) * self.token_width
        columns = torch.arange(self.token_width) < filled[:, None]
        return columns[:, None].repeat(1, self.rank, 1)

    def token_slots(self) -> Tensor:
        """Long [T]: the slot that each token belongs to."""
        counts = torch.tensor([slot.count for slot in self.slots])
        return torch.arange(len(self.slots)).repeat_interleave(counts)

    def positions(self) -> Tensor:
        """Long [T, 2]: index of the layer, and index inside the layer."""
        layers = torch.tensor([slot.layer for slot in self.slots])[self.token_slots()]
        _, lengths = torch.unique_consecutive(layers, return_counts=True)
        starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        return torch.stack([layers, torch.arange(self.tokens) - starts], dim=1)

    def position_embedding(self, width: int) -> Tensor:
        """Sines and cosines of the two positions, half of the width for each: float32 [T, width].

        Raises:
            GridError: the width is no positive multiple of 4.
        """
        if width < 4 or width % 4:
            raise GridError(
                f"a position embedding of width {width} cannot be made: two positions with a sine and "
                f"a cosine each need a positive multiple of 4"
            )
        quarter = width // 4
        frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        angles = self.positions().to(torch.float64)[:, :, None] * frequencies  # [T, 2, quarter]
        return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1).to(torch.float32)

    # --- weights to tokens and back ---

    @cached_property
    def _alike(self) -> dict[tuple[Matrix, int], list[int]]:
        """Indices of the slots by matrix and width: slots of one shape are put together in one go."""
        found: dict[tuple[Matrix, int], list[int]] = {}
        for index, slot in enumerate(self.slots):
            found.setdefault((slot.matrix, slot.width), []).append(index)
        return found

    def tokenize(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Cut an adapter's tensors, all of one dtype, into tokens [T, r, k], detached; no value changes by a bit.

        Raises:
            GridError: the tensors are not the ones that the grid was made for.
        """
        self._check_tensors(tensors)
        some = tensors[self.slots[0].key]
        k = self.token_width
        tokens = some.new_zeros(self.cells)
        with torch.no_grad():
            for slot in self.slots:
                tensor = tensors[slot.key]
                rows = tensor if slot.matrix == "A" else tensor.T
                whole, rest = divmod(slot.width, k)
                end = slot.first + whole
                if whole:
                    cut = rows[:, : whole * k].unflatten(1, (whole, k))
                    tokens[slot.first : end].copy_(cut.transpose(0, 1))
                if rest:
                    tokens[end, :, :rest].copy_(rows[:, whole * k :])
        return tokens

    def detokenize(self, tokens: Tensor) -> dict[str, Tensor]:
        """The tensors of tokens [T, r, k] by PEFT's name, in the order of the slots: the inverse of :meth:`tokenize`.

        Gradients flow back to the tokens. Tensors of the same shape share storage without overlapping.

        Raises:
            GridError: the tokens have another shape.
        """
        if tuple(tokens.shape) != self.cells:
            raise GridError(
                f"the tokens have shape {tuple(tokens.shape)}, the grid's are {self.cells}"
            )
        # split and stack instead of an index: their gradients are copies, an index's is a scatter
        parts = tokens.split([slot.count for slot in self.slots])
        found: dict[int, Tensor] = {}
        for (matrix, width), members in self._alike.items():
            stacked = torch.stack([parts[i] for i in members])  # [n, count, r, k]
            if matrix == "A":
                wide = stacked.transpose(1, 2).flatten(2)[:, :, :width]
            else:
                wide = stacked.transpose(2, 3).flatten(1, 2)[:, :width]
            found.update(zip(members, wide.unbind(), strict=True))
        return {slot.key: found[index] for index, slot in enumerate(self.slots)}

    def _check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for key in tensors.keys() - self.shapes.keys():
            raise GridError(f"the adapter has a tensor {key} that the token grid has no place for")
        for key, shape in self.shapes.items():
            if key not in tensors:
                raise GridError(
                    f"the adapter has no tensor {key}, which the token grid has tokens for"
                )
            tensor, some = tensors[key], tensors[self.slots[0].key]
            if tuple(tensor.shape) != shape:
                raise GridError(
                    f"the adapter's {key} has shape {tuple(tensor.shape)}, the token grid was made "
                    f"for {shape}"
                )
            if tensor.dtype != some.dtype:
                raise GridError(
                    f"the adapter's {key} is {tensor.dtype}, its {self.slots[0].key} is {some.dtype}; "
                    f"tokens have one dtype: convert the tensors first"
                )

    # --- grids compared ---

    def check_same(self, other: TokenGrid, mine: str, theirs: str) -> None:
        """Refuse another grid, naming the first difference; ``mine`` is what this one belongs to: ``the generator``.

        Raises:
            GridError: the grids differ.
        """
        for own, its in zip_longest(self._parts(), other._parts(), fillvalue="nothing more"):
            if own != its:
                raise GridError(
                    f"the LoRA shapes differ: {mine} has {own}, {theirs} has {its}; "
                    f"use two that were made for the same shape"
                )

    def _parts(self) -> Iterator[str]:
        """All that two grids are compared by, for messages."""
        yield f"rank {self.rank}"
        yield f"tokens of width {self.token_width}"
        for key, shape in self.shapes.items():
            yield f"{key} of shape {shape}"


def permutation_states(starts: Sequence[str]) -> Tensor:
    """Starting points of trajectories (checksums) numbered by first appearance, from 0: long [len(starts)].

    As in Recurrent Parameter Generation: runs from one starting point keep one order of neurons, and a generator that
    learns from several has to be told which is which.
    """
    numbers = {start: number for number, start in enumerate(dict.fromkeys(starts))}
    return torch.tensor([numbers[start] for start in starts], dtype=torch.long)


def _split_layer(path: str) -> tuple[int, str]:
    """The layer index in a module's path, and what follows it."""
    parts = path.split(".")
    for place, part in enumerate(parts):
        if part.isdecimal():
            # a bare list of linear layers has nothing after the index
            return int(part), ".".join(parts[place + 1 :] or parts[:place])
    return -1, path
