"""Mean and spread of tokens over trajectories, and the scales that normalise them.

The scales are taken over the meta-train trajectories and stored with the generator: what it generates is in
their units (section E.2 of DeGAML's paper, per layer, module and matrix).

Shapes: T tokens, r rank, k token width, S slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from degaml_kedro.adapters.tokens import GridError, TokenGrid

Center = Literal["matrix", "element"]


@dataclass(frozen=True, eq=False)
class TokenStatistics:
    """What is kept of the checkpoints of a trajectory, or of several: enough to combine any of them.

    Attributes:
        mean: float64 [T, r, k], each element's mean over the checkpoints; 0 in the padding.
        deviations: float64 [T], each token's sum of squared deviations from ``mean``, over elements and checkpoints.
    """

    count: int
    mean: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, grid: TokenGrid, checkpoints: Iterable[Tensor], where: str) -> TokenStatistics:
        """Read checkpoints [T, r, k] one after the other (Welford's recurrence; only two are held at a time).

        Raises:
            GridError: there is no checkpoint, or one has another shape or holds NaN or infinite weights.
        """
        mean = torch.zeros(grid.cells, dtype=torch.float64)
        deviations = torch.zeros(grid.tokens, dtype=torch.float64)
        count = 0
        for tokens in checkpoints:
            count += 1
            if tuple(tokens.shape) != grid.cells:
                raise GridError(
                    f"checkpoint {count} of {where} has tokens of shape {tuple(tokens.shape)}, "
                    f"the grid's are {grid.cells}"
                )
            difference = tokens.detach().to("cpu", torch.float64) - mean
            squares = difference.square().sum(dim=(1, 2)) * ((count - 1) / count)
            # of the first checkpoint the squares count for nothing, but NaN and infinity stay
            finite = torch.isfinite(squares)
            if not finite.all():
                slot = grid.slots[int(grid.token_slots()[int((~finite).nonzero()[0])])]
                raise GridError(
                    f"checkpoint {count} of {where} holds NaN or infinite weights in {slot.name}; "
                    f"make the checkpoints again, with a lower learning rate if that is where they come from"
                )
            deviations += squares
            mean.add_(difference, alpha=1 / count)
        if not count:
            raise GridError(f"{where} holds no checkpoint to take scales of")
        return cls(count, mean, deviations)

    @classmethod
    def combine(cls, parts: Sequence[TokenStatistics]) -> TokenStatistics:
        """The statistics of all checkpoints of several trajectories.

        Raises:
            GridError: there is no part, or they are of different grids.
        """
        if not parts:
            raise GridError("there are no trajectories to take scales of; name at least one task")
        total = parts[0]
        for part in parts[1:]:
            if part.mean.shape != total.mean.shape:
                raise GridError(
                    f"statistics of token grids {tuple(total.mean.shape)} and {tuple(part.mean.shape)} "
                    f"cannot be put together; make all trajectories with one LoRA shape"
                )
            count = total.count + part.count
            difference = part.mean - total.mean
            between = difference.square().sum(dim=(1, 2)) * (total.count * part.count / count)
            total = cls(
                count,
                total.mean.add(difference, alpha=part.count / count),
                total.deviations + part.deviations + between,
            )
        return total

    def tensors(self) -> dict[str, Tensor]:
        """What goes into a safetensors file."""
        count = torch.tensor([self.count])
        return {"count": count, "mean": self.mean, "deviations": self.deviations}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TokenStatistics:
        """What :meth:`tensors` gave.

        Raises:
            GridError: a tensor is missing.
        """
        found = [_stored(tensors, name, "statistics") for name in ("count", "mean", "deviations")]
        return cls(int(found[0]), found[1], found[2])


@dataclass(frozen=True, eq=False)
class TokenScales:
    """Units of the tokens: normalized = (x - mean) / std.

    :meth:`denormalize` undoes :meth:`normalize` to a few units in the last place of the larger of x and mean.

    Attributes:
        center: ``matrix``: each slot has one mean; ``element``: each element has its own, and ``mean`` is 0.
        mean: float32 [S].
        std: float32 [S], of the differences from the mean, over elements and checkpoints; 1 where there are none.
        variance: float32 [T], each token's variance over checkpoints in normalized units, mean over its elements.
        element_mean: float32 [T, r, k], 0 in the padding; None for ``matrix``.
    """

    grid: TokenGrid
    center: Center
    mean: Tensor
    std: Tensor
    variance: Tensor
    element_mean: Tensor | None = None

    @classmethod
    def from_statistics(
        cls, grid: TokenGrid, statistics: TokenStatistics, center: Center
    ) -> TokenScales:
        """Scales over the checkpoints of the statistics.

        Raises:
            GridError: the statistics are of another grid.
        """
        if tuple(statistics.mean.shape) != grid.cells:
            raise GridError(
                f"the statistics are of tokens {tuple(statistics.mean.shape)}, the grid has {grid.cells}; "
                f"make them again"
            )
        slots, mask = grid.token_slots(), grid.mask()
        token_cells = mask.sum(dim=(1, 2)).to(torch.float64)
        cells = _by_slot(token_cells, slots)
        spread = _by_slot(statistics.deviations, slots) / (statistics.count * cells)
        mean = torch.zeros(len(grid.slots), dtype=torch.float64)
        if center == "matrix":
            mean = _by_slot(statistics.mean.sum(dim=(1, 2)), slots) / cells
            apart = (statistics.mean - mean[slots][:, None, None]) * mask
            spread = spread + _by_slot(apart.square().sum(dim=(1, 2)), slots) / cells
        std = spread.sqrt().to(torch.float32)
        # equal values differ from their mean by its rounding: that is no spread
        varies = std > torch.clamp(mean.abs() * 1e-9, min=torch.finfo(torch.float32).tiny)
        std = torch.where(varies, std, 1.0)
        units = token_cells * std.to(torch.float64)[slots].square()
        variance = statistics.deviations / (statistics.count * units)
        return cls(
            grid,
            center,
            mean.to(torch.float32),
            std,
            variance.to(torch.float32),
            statistics.mean.to(torch.float32) if center == "element" else None,
        )

    @cached_property
    def _by_device(self) -> dict[torch.device, tuple[Tensor, Tensor, Tensor]]:
        return {}

    def _units(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [T, r, k] and std [T, r, k], both 0 in the padding, and std [T, 1, 1]."""
        if device not in self._by_device:
            slots, mask = self.grid.token_slots(), self.grid.mask()
            std = self.std[slots][:, None, None]
            mean = self.element_mean
            if mean is None:
                mean = self.mean[slots][:, None, None] * mask
            self._by_device[device] = (mean.to(device), (std * mask).to(device), std.to(device))
        return self._by_device[device]

    def normalize(self, tokens: Tensor) -> Tensor:
        """Weights [..., T, r, k], 0 in the padding, to normalized tokens of that shape, float32 or wider."""
        mean, _, std = self._units(tokens.device)
        return (tokens - mean) / std

    def denormalize(self, normalized: Tensor) -> Tensor:
        """Normalized tokens to weights, [..., T, r, k], float32 or wider, 0 in the padding; gradients flow."""
        mean, std, _ = self._units(normalized.device)
        return normalized * std + mean

    def tensors(self) -> dict[str, Tensor]:
        """What goes into a safetensors file."""
        found = {"mean": self.mean, "std": self.std, "variance": self.variance}
        if self.element_mean is not None:
            found["element_mean"] = self.element_mean
        return found

    @classmethod
    def from_tensors(cls, grid: TokenGrid, tensors: Mapping[str, Tensor]) -> TokenScales:
        """What :meth:`tensors` gave.

        Raises:
            GridError: a tensor is missing, or the scales are of another grid.
        """
        slots = (len(grid.slots),)
        shapes: dict[str, tuple[int, ...]]
        shapes = {"mean": slots, "std": slots, "variance": (grid.tokens,)}
        center: Center = "matrix"
        if "element_mean" in tensors:
            center, shapes["element_mean"] = "element", grid.cells
        found = {name: _stored(tensors, name, "scales") for name in shapes}
        for name, shape in shapes.items():
            if tuple(found[name].shape) != shape:
                raise GridError(
                    f"the stored scales' {name} has shape {tuple(found[name].shape)}, the token grid needs "
                    f"{shape}; they were made for another LoRA shape: make them again"
                )
        return cls(grid, center, **found)


def _by_slot(values: Tensor, slots: Tensor) -> Tensor:
    """Sums of values [T] over each slot's tokens: [S]."""
    return values.new_zeros(int(slots[-1]) + 1).index_add_(0, slots, values)


def _stored(tensors: Mapping[str, Tensor], name: str, what: str) -> Tensor:
    if name not in tensors:
        raise GridError(f"the stored {what} have no '{name}'; the file is not whole: make it again")
    return tensors[name]
