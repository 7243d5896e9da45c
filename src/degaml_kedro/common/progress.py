"""Progress that a person can read: a bar with the time left, or a line now and then where there is no terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Progress = Callable[[int, int], None]
"""What domain code is given: it calls it with (done, total)."""

_BAR_AFTER_SECONDS = 2.0
_LINE_EVERY_SECONDS = 30.0

logger = logging.getLogger(__name__)


@contextmanager
def progress_bar(title: str, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show how far a stage is; nothing is shown of a stage that is over at once.

    Args:
        title: what is going on.
        unit: what is counted: ``step``, ``example``.
        done: how much was done before, in a resumed stage: the time left is estimated without it.

    Yields:
        A callable that takes (done, total).
    """
    if not sys.stderr.isatty():
        yield _lines(title, unit, done)
        return
    with tqdm(desc=title, unit=unit, initial=done, delay=_BAR_AFTER_SECONDS, leave=False) as bar:

        def draw(now: int, total: int) -> None:
            bar.total = total
            bar.update(now - bar.n)

        yield draw


def _lines(title: str, unit: str, first: int) -> Progress:
    """The same for a log file: a line every half a minute."""
    start = last = time.monotonic()

    def log(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _LINE_EVERY_SECONDS or done <= first:
            return
        last = now
        left = tqdm.format_interval((now - start) / (done - first) * (total - done))
        logger.info("%s: %d of %d %ss, about %s left", title, done, total, unit, left)

    return log
