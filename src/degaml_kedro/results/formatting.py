"""Numbers, lists, settings and tables as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def percent(share: float) -> str:
    """A share as a percentage: ``54.7``."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference of shares in points: ``+3.2``."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def interval(low: float, high: float, write: Callable[[float], str] = percent) -> str:
    """An interval of a share: ``50.1 to 59.2``; of a difference if ``points`` writes it: ``-1.0 to +3.2``."""
    return f"{write(low)} to {write(high)}"


def with_interval(share: float, low: float, high: float) -> str:
    """A share with its interval: ``0.55 (0.50–0.59)``."""
    return f"{share:.2f} ({low:.2f}–{high:.2f})"


def two_digits(value: float | None) -> str:
    """``0.55``; nothing for what is missing."""
    return "" if pd.isna(value) else f"{value:.2f}"


def p_value(p: float) -> str:
    """``0.012``, or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seconds(value: float) -> str:
    """``4.1 s``, or minutes and hours where these are more to the point."""
    if 0 < value < 1:
        return f"{value:.2g} s"
    if value < 100:
        return f"{value:.1f} s"
    if value < 6000:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"


def in_short(value: float) -> str:
    """``1.23 M``: a count with three digits."""
    for size, prefix in _PREFIXES:
        # 999.6 would be written as 1000
        if value >= size * 0.9995:
            scaled = value / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f} {prefix}"
    return f"{value:.0f}" if value >= 1 else f"{value:.3g}"


def listed(names: Iterable[str]) -> str:
    """``a, b and c``."""
    parts = list(names)
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def counted(count: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested settings by their whole name, ``generator.draws``, each value as JSON has it."""
    if isinstance(value, Mapping) and (value or not name):
        found: dict[str, str] = {}
        for key, inner in value.items():
            found |= flat(inner, f"{name}.{key}" if name else str(key))
        return found
    return {name: value if isinstance(value, str) else json.dumps(value, default=str)}


def markdown_table(frame: pd.DataFrame, texts: int = 2) -> str:
    """A Markdown table with aligned columns: texts to the left, numbers to the right.

    Args:
        frame: cells are texts, and escaped already.
        texts: how many of the first columns are text.
    """
    sides = ["left"] * texts + ["right"] * (frame.shape[1] - texts)
    table: str = frame.to_markdown(index=False, colalign=sides, disable_numparse=True)
    return table
