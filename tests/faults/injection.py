"""Faults at the calls by which files get their names and reach the disk: a kill, a full disk, a power failure."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sqlalchemy.engine.default import DefaultDialect

# what names files, removes names, makes room and brings bytes to the disk
CALLS = ("rename", "replace", "fsync", "unlink", "mkdir", "rmdir", "posix_fallocate")
# of MLflow's database
COMMIT = "commit"

Event = Callable[[str, tuple[Any, ...]], None]


@contextmanager
def watched(before: Event, after: Event = lambda *_: None) -> Iterator[None]:
    """Tell every call of ``CALLS``, and every commit of a database, before it is made and after it."""
    # those that telling makes are not told
    telling = threading.local()

    def tell(event: Event, name: str, args: tuple[Any, ...]) -> None:
        if not getattr(telling, "now", False):
            telling.now = True
            try:
                event(name, args)
            finally:
                telling.now = False

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tell(before, name, args)
            result = original(*args, **kwargs)
            tell(after, name, args)
            return result

        return call

    commit = DefaultDialect.do_commit
    patches = [patch.object(os, name, wrap(name, getattr(os, name))) for name in CALLS]
    patches.append(patch.object(DefaultDialect, "do_commit", wrap(COMMIT, commit)))
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


@dataclass
class KillAt:
    """Kills this process at its ``number``-th watched call: before it, or where ``late`` after it."""

    number: int
    late: bool = False
    calls: list[str] = field(default_factory=list)

    def before(self, name: str, _: tuple[Any, ...]) -> None:
        self.calls.append(name)
        if not self.late and len(self.calls) == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def after(self, *_: Any) -> None:
        if self.late and len(self.calls) == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class FullFrom:
    """A disk that is full from the ``number``-th watched call on, for whatever needs room."""

    number: int
    calls: int = 0

    def before(self, name: str, _: tuple[Any, ...]) -> None:
        self.calls += 1
        if self.calls < self.number or name in ("unlink", "rmdir"):
            return
        if name == COMMIT:
            raise sqlite3.OperationalError("database or disk is full")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def jumping_clock(seed: int) -> Iterator[None]:
    """A wall clock that is set forward and back by up to a day, again and again."""
    source, true_time, true_ns = random.Random(seed), time.time, time.time_ns
    jump = [0.0]

    def now() -> float:
        if source.random() < 0.05:
            jump[0] = source.uniform(-86400, 86400)
        return true_time() + jump[0]

    with (
        patch.object(time, "time", now),
        patch.object(time, "time_ns", lambda: true_ns() + int(jump[0] * 1e9)),
    ):
        yield


# --- power failures -------------------------------------------------------------------------------

# by name: its inode, and whether it is a folder
Names = dict[str, tuple[int, bool]]


class Tape:
    """What of a folder would be on the disk if power failed at a watched call.

    A file has the bytes of its last ``fsync``, none without one; a folder has the names of now, or those of its own
    last ``fsync``, as ``choose`` says of each.
    """

    def __init__(self, folder: Path) -> None:
        """Everything that is there is on the disk."""
        self._folder = folder
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, Names] = {}
        # open as long as the tape: an inode in use is given to no other file
        self._open: dict[int, int] = {}
        for part in (folder, *folder.rglob("*")):
            self._keep(part)

    def after(self, name: str, args: tuple[Any, ...]) -> None:
        """Take an ``fsync`` down."""
        if name == "fsync":
            part = Path(f"/proc/self/fd/{args[0]}").readlink()
            if part.is_relative_to(self._folder):
                self._keep(part)

    def write(self, target: Path, choose: Callable[[], bool]) -> None:
        """Make the folder as it is found after a power failure now."""
        here = {part.stat().st_ino: part for part in self._folder.rglob("*") if part.is_dir()}
        here[self._folder.stat().st_ino] = self._folder

        def make(inode: int, is_folder: bool, made: Path) -> None:
            if not is_folder:
                made.write_bytes(self._bytes.get(inode, b""))
                return
            made.mkdir()
            names = self._names.get(inode, {})
            if inode in here and choose():
                names = _names(here[inode])
            for name, child in names.items():
                make(*child, made / name)

        make(self._folder.stat().st_ino, True, target)

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _keep(self, part: Path) -> None:
        inode = part.stat().st_ino
        if inode not in self._open:
            self._open[inode] = os.open(part, os.O_RDONLY)
        if part.is_dir():
            self._names[inode] = _names(part)
        else:
            self._bytes[inode] = part.read_bytes()


def _names(folder: Path) -> Names:
    return {part.name: (part.stat().st_ino, part.is_dir()) for part in folder.iterdir()}
