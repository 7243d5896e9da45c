"""Sending an object to another process, the way a parallel runner does."""

from __future__ import annotations

from multiprocessing import Pipe
from typing import TypeVar

T = TypeVar("T")


def sent(value: T) -> T:
    """What arrives at the other end of a pipe between processes.

    Both ends are held here, so the object must be small: a pipe takes 64 KB before it waits for its reader.
    """
    near, far = Pipe()
    with near, far:
        near.send(value)
        arrived: T = far.recv()
    return arrived
