"""Adaptations a minute of the page with one worker and with a process a core, and how fast it reads meanwhile.

``python -m benchmarks.workers [--minutes 2] [--rounds 2] [--pair SOURCE]`` starts the page with
``--concurrency 1`` and with one a core, in turn. As many visitors as there are cores adapt to small tasks one after the
other, and one more only has examples read, ten times a second. Every process computes with one thread, so that the
ratio is that of processes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load import BUDGET, HELD_OUT, Task, make_tasks
from benchmarks.measure import OtherLoad
from benchmarks.page_client import PageClient
from benchmarks.watched_app import running_app

_PAUSE = 0.1


def measure(
    concurrency: int, visitors: int, minutes: float, pair: str | None
) -> tuple[float, float]:
    """Adaptations a minute, and the 95th percentile of the seconds of a reading."""
    tasks, done, errors = make_tasks(visitors), [0] * visitors, list[BaseException]()
    options = ["--concurrency", str(concurrency), *(["--pair", pair] if pair else [])]
    with tempfile.TemporaryDirectory() as folder, running_app(Path(folder, "app"), *options) as app:
        over = threading.Event()

        def visit(number: int, task: Task) -> None:
            try:
                with PageClient(app.url) as client:
                    while not over.is_set():
                        client.adapt(task.text, HELD_OUT, **BUDGET)
                        done[number] += 1
            except BaseException as error:
                errors.append(error)
                raise

        users = [
            threading.Thread(target=visit, args=(number, task)) for number, task in enumerate(tasks)
        ]
        for user in users:
            user.start()
        with PageClient(app.url) as reader:
            # what is made once is not counted: each process has adapted by then
            while min(done) < 1 and not errors:
                time.sleep(_PAUSE)
            before, began, read = sum(done), time.monotonic(), list[float]()
            while time.monotonic() < began + 60 * minutes and not errors:
                start = time.monotonic()
                reader.read(tasks[0].text)
                read.append(time.monotonic() - start)
                time.sleep(_PAUSE)
            rate = 60 * (sum(done) - before) / (time.monotonic() - began)
        over.set()
        for user in users:
            user.join()
    if errors:
        raise errors[0]
    return rate, statistics.quantiles(read, n=20)[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both in turn, and print the ratio of each pair."""
    cores = max(2, os.cpu_count() or 2)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="of each (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of both (%(default)s)")
    parser.add_argument("--pair", help="a source for Session.load; default: the shipped pair")
    asked = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    others = OtherLoad()
    for _ in range(asked.rounds):
        (one, slow), (several, fast) = (
            measure(count, min(cores, 4), asked.minutes, asked.pair) for count in (1, cores)
        )
        print(
            f"adaptations a minute: {one:.2f} with one worker, {several:.2f} with {cores}, ratio {several / one:.2f}; "
            f"95 % of /read within {slow:.3f} s and {fast:.3f} s",
            flush=True,
        )
    print(f"others took {others.share() or 0:.0%} of the machine")
    return 0


if __name__ == "__main__":
    sys.exit(main())
