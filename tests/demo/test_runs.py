"""The queue of adaptations: order, limits, and stopping."""

from __future__ import annotations

import threading
import time

import pytest
from demo.runs import AdaptationQueue, QueueError

from degaml_kedro.errors import DegamlError
from degaml_kedro.session import AdaptationCancelled
from demo import runs as module


def until(happens, seconds=10):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


class Work:
    """Goes on until it is released or stopped."""

    def __init__(self):
        self.begun, self.release = threading.Event(), threading.Event()

    def __call__(self, tell, cancel):
        self.begun.set()
        while not self.release.wait(0.005):
            if cancel.is_set():
                raise AdaptationCancelled
        return "model"


@pytest.fixture
def queue():
    made = AdaptationQueue(concurrency=1, queue_size=2, limit=100)
    yield made
    made.close()


def test_one_after_the_other_in_order(queue):
    works = [Work() for _ in range(3)]
    submitted = [queue.submit(f"visitor {n}", work) for n, work in enumerate(works)]
    assert works[0].begun.wait(5)
    assert [queue.ahead(run) for run in submitted] == [0, 1, 2]
    works[0].release.set()
    assert works[1].begun.wait(5)
    assert submitted[0].state == "done"
    assert submitted[0].result == "model"
    assert [queue.ahead(run) for run in submitted[1:]] == [0, 1]
    works[1].release.set()
    works[2].release.set()
    until(lambda: queue.active == 0)


def test_one_each_and_so_many_in_all(queue):
    queue.submit("a", Work())
    with pytest.raises(QueueError, match="under way already"):
        queue.submit("a", Work())
    queue.submit("b", Work())
    queue.submit("c", Work())
    with pytest.raises(QueueError, match="queue is full: 3"):
        queue.submit("d", Work())


def test_stopping_what_goes_on_and_what_waits(queue):
    first, second, third = Work(), Work(), Work()
    going, waiting, last = (
        queue.submit(name, work) for name, work in zip("abc", (first, second, third), strict=True)
    )
    assert first.begun.wait(5)
    queue.cancel("b")
    assert waiting.over
    assert queue.ahead(last) == 1
    queue.cancel("a")
    assert third.begun.wait(5)
    assert going.state == "cancelled"
    assert going.error == "Stopped, as you asked."
    assert not second.begun.is_set()
    # there is room for another one of the same visitor
    queue.submit("a", Work())


def test_nobody_can_stop_what_is_of_others(queue):
    work = Work()
    run = queue.submit("a", work)
    queue.cancel("b")
    assert not run.cancelled.is_set()


def test_what_nobody_waits_for_is_stopped(queue, monkeypatch):
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.05)
    work = Work()
    run = queue.submit("a", work)
    assert work.begun.wait(5)
    run.touch()
    queue.check()
    assert not run.cancelled.is_set()
    time.sleep(0.1)
    queue.check()
    until(lambda: run.over)
    assert "page was closed" in run.error


def test_what_takes_too_long_is_stopped():
    queue = AdaptationQueue(concurrency=1, queue_size=0, limit=0.05)
    work = Work()
    run = queue.submit("a", work)
    assert work.begun.wait(5)
    time.sleep(0.1)
    queue.check()
    until(lambda: run.over)
    assert run.state == "cancelled"
    assert "the most that this page allows" in run.error
    queue.close()


def test_mistakes_are_told_and_accidents_are_not(queue):
    def refused(tell, cancel):
        raise DegamlError("two examples are needed")

    def broken(tell, cancel):
        raise ZeroDivisionError("secret")

    run = queue.submit("a", refused)
    until(lambda: queue.active == 0)
    assert (run.state, run.error) == ("failed", "two examples are needed")
    run = queue.submit("a", broken)
    until(lambda: queue.active == 0)
    assert run.state == "failed"
    assert "secret" not in run.error
    assert queue.submit("a", Work()).state in ("waiting", "running")
