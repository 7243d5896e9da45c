"""The cost of a method, in one currency for all: tokens through the base model, and seconds."""

from __future__ import annotations

import time
from dataclasses import asdict, astuple, dataclass
from operator import add
from typing import Any


@dataclass(frozen=True)
class Compute:
    """Tokens that the base model read, tokens that a gradient went back through, and wall time.

    A second derivative goes back twice, through the forward and through the first backward pass.
    """

    forward_tokens: int = 0
    backward_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Compute) -> Compute:
        return Compute(*map(add, astuple(self), astuple(other)))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Clock:
    """Counts what a method does while it does it."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._forward = self._backward = 0

    def read(self, tokens: int) -> None:
        """The model read these tokens."""
        self._forward += tokens

    def trained(self, tokens: int, backward: int = 1) -> None:
        """The model read these tokens, and a gradient went back through them ``backward`` times."""
        self._forward += tokens
        self._backward += tokens * backward

    @property
    def compute(self) -> Compute:
        """The cost so far."""
        return Compute(self._forward, self._backward, time.perf_counter() - self._began)
