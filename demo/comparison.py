"""The comparison of the trained baselines, read from MLflow; nothing is written there."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from degaml_kedro.errors import DegamlError
from demo.markup import axis, dot_row, escape, note

if TYPE_CHECKING:
    from degaml_kedro.tracking.comparison import ComparisonView, MethodRow

NOTHING = "Nothing there yet: `make compare` trains the baselines and logs how they do; then it is shown here."
_POOLS = ("meta_test", "meta_train")
_FRESH_SECONDS = 60.0


class Comparisons:
    """The newest comparison, read again when it has grown old."""

    def __init__(self, tracking_uri: str | None) -> None:
        """Nothing is read yet, and MLflow is not imported.

        Args:
            tracking_uri: MLflow's; None where there is none.
        """
        self._uri = tracking_uri
        self._lock = threading.Lock()
        self._shown = ""
        self._read_at = float("-inf")

    def show(self) -> str:
        """As HTML; what went wrong where it cannot be read."""
        with self._lock:
            if time.monotonic() - self._read_at > _FRESH_SECONDS:
                try:
                    self._shown = picture(newest(self._uri))
                except DegamlError as error:
                    self._shown = note(f"The comparison cannot be read: {error}", "dg-warn")
                self._read_at = time.monotonic()
            return self._shown


def newest(uri: str | None) -> list[ComparisonView]:
    """The newest whole comparison, once for each of its pools.

    Args:
        uri: MLflow's tracking URI; None where there is none.

    Raises:
        TrackingError: MLflow's server or database cannot be used.
    """
    if not uri:
        return []
    # seconds to import, which the page's start need not wait for
    from degaml_kedro.tracking.comparison import EXPERIMENT, read_comparison

    views = (read_comparison(uri, EXPERIMENT, pool=pool) for pool in _POOLS)
    return [view for view in views if view is not None and _measured(view)]


def picture(views: Sequence[ComparisonView]) -> str:
    """Methods as dots, with what adapting costs.

    Args:
        views: what was read, a pool each.
    """
    from degaml_kedro.results.glossary import METHODS, POOL_TITLES

    if not views:
        return note(NOTHING)
    first = views[0]
    seeds = _count(len(first.seeds), "seed")
    told = f"From MLflow: profile {escape(first.profile)}, {first.when:%Y-%m-%d}, {seeds}"
    parts = [f'<p class="dg-quiet">{told}</p>']
    for view in views:
        methods = _measured(view)
        rows = "".join(_row(one, METHODS.get(one.method, "")) for one in methods)
        n = methods[0].n
        told = "" if n is None else f"; {n:.0f} test questions a task and seed"
        parts.append(
            f'<h4 class="dg-sub">{escape(POOL_TITLES.get(view.pool, view.pool))}</h4><p class="dg-quiet">Mean accuracy '
            f"over the tasks; the line goes from the lowest seed to the highest{told}</p>"
            f'<div class="dg-dots dg-methods">{rows}{axis()}</div>'
        )
    return f'<div class="dg-comparison">{"".join(parts)}</div>'


def _measured(view: ComparisonView) -> list[MethodRow]:
    """The methods that have a mean, results first and the best of them first."""
    found = [one for one in view.methods if one.accuracy is not None]
    return sorted(found, key=lambda one: (one.bound, -(one.accuracy or 0.0)))


def _row(one: MethodRow, meaning: str) -> str:
    kind = {"degaml": "adapted", "generalization_only": "generated", "base": "base"}.get(
        one.method, "other"
    )
    cost = []
    if one.tokens is not None:
        cost.append(f"{one.tokens:,.0f} tokens")
    if one.seconds is not None:
        cost.append(f"{one.seconds:.1f} s")
    accuracy = one.accuracy or 0.0
    low, high = min(one.by_seed, default=accuracy), max(one.by_seed, default=accuracy)
    text = f"{accuracy:.3f}" + (f" ({low:.3f}–{high:.3f})" if len(one.by_seed) > 1 else "")
    label = one.method.replace("_", " ") + (" (bound)" if one.bound else "")
    row = dot_row(label, accuracy, low, high, text, kind)
    costs = f"To adapt to a task: {', '.join(cost)}." if cost else ""
    return f'<div class="dg-method">{row}<p class="dg-quiet">{escape(meaning)} {escape(costs)}</p></div>'


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
