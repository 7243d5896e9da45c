"""Adaptations in a queue: first come, first served, so many at once, and each can be stopped at any time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from degaml_kedro.errors import DegamlError
from degaml_kedro.session import AdaptationCancelled, AdaptedModel, Progress

RunState = Literal["waiting", "running", "done", "cancelled", "failed"]
Work = Callable[[Callable[[Progress], None], threading.Event], AdaptedModel]

# a page that nobody looks at any longer stops asking
LEASE_SECONDS = 20.0


class QueueError(DegamlError):
    """There is no room for another adaptation."""


class QueuedAdaptation:
    """One adaptation, waiting, going on, or over.

    Attributes:
        owner: the visitor whose it is.
        state: where it stands.
        progress: what was reported last; None before the first report.
        result: the adapted model, once it is done.
        error: why it failed or was stopped, for people.
        title: what it is adapted to, for people.
        pair: the label of the generator and the policy.
        task: the name of the ready task that it is, if any.
    """

    def __init__(
        self, owner: str, work: Work, title: str = "", pair: str = "", task: str = ""
    ) -> None:
        """Not yet begun."""
        self.owner, self.title, self.pair, self.task = owner, title, pair, task
        self.state: RunState = "waiting"
        self.progress: Progress | None = None
        self.result: AdaptedModel | None = None
        self.error = ""
        self.cancelled = threading.Event()
        self._work: Work | None = work
        self._begun: float | None = None
        self._seen = time.monotonic()
        self._news: list[Progress] = []

    @property
    def over(self) -> bool:
        """Whether nothing of it goes on any longer."""
        return self.state in ("done", "cancelled", "failed")

    def touch(self) -> None:
        """Say that somebody still waits for it."""
        self._seen = time.monotonic()

    def cancel(self, reason: str = "Stopped, as you asked.") -> None:
        """Stop it as soon as its next step is over; a second reason does not count."""
        if not self.cancelled.is_set():
            self.error = reason
            self.cancelled.set()

    def check(self, limit: float) -> None:
        """Stop it where nobody waits for it, or where it has gone on for too long."""
        now = time.monotonic()
        if now - self._seen > LEASE_SECONDS:
            self.cancel("Stopped: the page was closed.")
        if self._begun is not None and now - self._begun > limit:
            self.cancel(
                f"Stopped after {limit:.0f} seconds, the most that this page allows; give it fewer or shorter examples."
            )

    def carry_out(self) -> None:
        """Do the work, in the thread that calls."""
        work, self._work = self._work, None
        if self.cancelled.is_set() or work is None:
            self.state = "cancelled"
            return
        self.state, self._begun = "running", time.monotonic()
        try:
            self.result = work(self._tell, self.cancelled)
            self.state = "done"
        except AdaptationCancelled:
            self.error = self.error or "Stopped."
            self.state = "cancelled"
        except DegamlError as error:
            self.error = str(error)
            self.state = "failed"
        finally:
            # whatever else it was goes on to the log
            if self.state == "running":
                self.error = (
                    "Something went wrong here that is not your fault; the server's log has it."
                )
                self.state = "failed"

    def take_news(self) -> list[Progress]:
        """What was reported since the last time, the latest of each stage: short stages are seen too."""
        news, self._news = self._news, []
        return list({progress.stage: progress for progress in news}.values())

    def _tell(self, progress: Progress) -> None:
        self.progress = progress
        self._news.append(progress)


class AdaptationQueue:
    """All adaptations of one server."""

    def __init__(self, concurrency: int, queue_size: int, limit: float) -> None:
        """Make room for them.

        Args:
            concurrency: so many at once.
            queue_size: so many may wait.
            limit: seconds after which one is stopped.
        """
        self._concurrency, self._queue_size, self._limit = concurrency, queue_size, limit
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="adaptation")
        self._lock = threading.Lock()
        self._runs: list[QueuedAdaptation] = []

    @property
    def active(self) -> int:
        """How many wait or go on."""
        with self._lock:
            return len(self._runs)

    def submit(
        self, owner: str, work: Work, title: str = "", pair: str = "", task: str = ""
    ) -> QueuedAdaptation:
        """Put an adaptation at the end of the queue.

        Args:
            owner: the visitor; one adaptation each.
            work: is called with whom to tell of progress, and with what stops it.
            title: what it is adapted to, for people.
            pair: the label of the generator and the policy.
            task: the name of the ready task that it is, if any.

        Raises:
            QueueError: the visitor has one already, or the queue is full.
        """
        run = QueuedAdaptation(owner, work, title, pair, task)
        with self._lock:
            if any(other.owner == owner for other in self._runs):
                raise QueueError(
                    "An adaptation of yours is under way already; wait for it, or cancel it."
                )
            if len(self._runs) >= self._concurrency + self._queue_size:
                raise QueueError(
                    f"The queue is full: {len(self._runs)} adaptations are under way or waiting. "
                    "Try again in a minute."
                )
            self._runs.append(run)
        self._pool.submit(self._carry_out, run)
        return run

    def busy(self, owner: str) -> bool:
        """Whether an adaptation of the visitor waits or goes on, and is not being stopped."""
        with self._lock:
            return any(
                run.owner == owner and not (run.over or run.cancelled.is_set())
                for run in self._runs
            )

    def ahead(self, run: QueuedAdaptation) -> int:
        """How many have to be done before it may begin."""
        with self._lock:
            if run.state != "waiting" or run not in self._runs:
                return 0
            return max(0, self._runs.index(run) - self._concurrency + 1)

    def cancel(self, owner: str, reason: str = "Stopped, as you asked.") -> None:
        """Stop the visitor's adaptation, if there is one; one that waits leaves the queue at once."""
        with self._lock:
            own = [run for run in self._runs if run.owner == owner]
            for run in own:
                run.cancel(reason)
                if run.state == "waiting":
                    run.state = "cancelled"
                    self._runs.remove(run)

    def check(self) -> None:
        """Stop what nobody waits for, and what has gone on for too long."""
        with self._lock:
            runs = list(self._runs)
        for run in runs:
            run.check(self._limit)
            if run.cancelled.is_set() and run.state == "waiting":
                self.cancel(run.owner)

    def close(self) -> None:
        """Stop everything, and wait for it."""
        with self._lock:
            owners = [run.owner for run in self._runs]
        for owner in owners:
            self.cancel(owner, "Stopped: the server is shutting down.")
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _carry_out(self, run: QueuedAdaptation) -> None:
        try:
            if not run.over:
                run.carry_out()
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._runs.remove(run)
