"""How far an adaptation is, how long it will still take, and whether it is to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from degaml_kedro.adaptation.report import Progress, Report, Stage
from degaml_kedro.strategies.workbench import Interruption

Listener = Callable[[Progress], None]

# before the first strategy was tried, one is taken to cost as much as so many scorings of the support examples: a
# family that trains reads them several times, forward and backward
_TRIAL_IN_SCORINGS = 8.0


class Tracker:
    """Tells a listener where an adaptation stands.

    Attributes:
        report: what is known so far.
    """

    def __init__(
        self, report: Report, trials: int, listener: Listener | None, cancel: threading.Event | None
    ) -> None:
        """Begin.

        Args:
            report: what is known before anything is computed.
            trials: strategies that are tried at most.
            listener: is told of every change; what it raises ends the adaptation.
            cancel: set to end it.
        """
        self.report = report
        self._listener, self._cancel = listener, cancel
        self._began = self._stage_began = self._trial_began = time.monotonic()
        self._stage: Stage = "reading"
        self._trials, self._tried = trials, 0
        self._trial_seconds = 0.0
        self._per_example: float | None = None
        self._held_out_scorings = 2
        self._share = 0.0

    def stage(self, stage: Stage, message: str) -> None:
        """The next stage begins."""
        now = time.monotonic()
        spent = dict(self.report.seconds)
        spent[self._stage] = spent.get(self._stage, 0.0) + now - self._stage_began
        self.report = replace(self.report, seconds=spent)
        self._stage, self._stage_began = stage, now
        if stage == "trying":
            self._trial_began = now
        self.tell(message)

    def know(self, message: str, **known: Any) -> None:
        """Something more of the report is known."""
        self.report = replace(self.report, **known)
        self.tell(message)

    def scored(self, examples: int, seconds: float) -> None:
        """What scoring takes was measured."""
        self._per_example = seconds / max(1, examples)

    def held_out_scored(self) -> None:
        """One of the scorings of adapters on held-out examples is done."""
        self._held_out_scorings -= 1

    def trial_done(self) -> None:
        """A strategy was tried; the time since the one before is its own, with that of its proposal."""
        now = time.monotonic()
        self._tried += 1
        self._trial_seconds += now - self._trial_began
        self._trial_began = now

    def check(self) -> None:
        """Stop where that is asked for.

        Raises:
            Interruption: it is.
        """
        if self._cancel is not None and self._cancel.is_set():
            raise Interruption

    def tell(self, message: str) -> None:
        """Tell the listener.

        Raises:
            Interruption: the adaptation is to stop.
        """
        self.check()
        if self._listener is None:
            return
        seconds = time.monotonic() - self._began
        left = 0.0 if self._stage == "done" else self._left()
        share = 0.0 if left is None else seconds / max(seconds + left, 1e-9)
        # an estimate may become worse, but nobody should see a bar go back
        self._share = 1.0 if self._stage == "done" else max(self._share, min(share, 0.99))
        self._listener(Progress(self._stage, message, self._share, seconds, left, self.report))

    def _left(self) -> float | None:
        if self._per_example is None:
            return None
        trial = _TRIAL_IN_SCORINGS * self._per_example * self.report.support
        if self._tried:
            trial = self._trial_seconds / self._tried
        left = self._held_out_scorings * self._per_example * self.report.held_out
        if self._stage in ("base", "generating", "trying"):
            left += (self._trials - self._tried) * trial
        if self._stage in ("base", "generating", "trying", "executing"):
            left += trial / 2
        return left
