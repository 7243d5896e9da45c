"""What the families' draws have in common: word lists, wordings and wrong answers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def word_lists(name: str) -> dict[str, Any]:
    """The word lists of ``data/<name>.json``."""
    text = resources.files(f"{__package__}.data").joinpath(f"{name}.json").read_text("utf-8")
    lists: dict[str, Any] = json.loads(text)
    return lists


def word(rng: random.Random, wordings: Sequence[str], **values: object) -> str:
    """One of the wordings, filled in."""
    return rng.choice(wordings).format(**values)


def pick(
    rng: random.Random, pool: Iterable[T], count: int, allowed: Callable[[T], bool] | None = None
) -> tuple[T, ...]:
    """``count`` different members of the pool that are allowed; all of them where there are fewer.

    The order of the pool matters for what a seed gives, so the pool must have one (no sets).
    """
    members = list(dict.fromkeys(member for member in pool if allowed is None or allowed(member)))
    return tuple(rng.sample(members, min(count, len(members))))


def enumeration(items: Sequence[str], conjunction: str = "and") -> str:
    """``a, b and c``."""
    return f"{', '.join(items[:-1])} {conjunction} {items[-1]}"


def article(noun: str) -> str:
    """``a`` or ``an`` for plain words that are spelled as they begin to sound."""
    return "an" if noun[0].lower() in "aeiou" else "a"
