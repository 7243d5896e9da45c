"""The trained pairs on offer, and processes in which they are adapted, so that several use as many cores."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.session import AdaptationCancelled, AdaptedModel, Progress, Session
from degaml_kedro.tasks.example import Example, Question, make_example

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_CLOSING_SECONDS = 5.0

# pairs on offer, by label: what `Session.load` takes
Sources = Sequence[tuple[str, str | None]]


class OfferedPairs:
    """The trained pairs on offer, each loaded once: the first at the start, the others when they are asked for.

    One that cannot be loaded before the first is not offered.

    Attributes:
        labels: what is offered; the first is loaded.
        sources: of each label, for :meth:`degaml_kedro.session.Session.load`.
    """

    def __init__(self, offered: Sources) -> None:
        self.sources, self._loaded = dict(offered), dict[str, Session]()
        self._lock = threading.Lock()
        problems = []
        for label in list(self.sources):
            try:
                self.session(label)
                break
            except DegamlError as error:
                logger.warning("'%s' is not offered: %s", label, error)
                problems.append(f"'{label}': {error}")
                del self.sources[label]
        else:
            raise DegamlError(
                "No trained pair can be loaded, so there is nothing to show. " + " ".join(problems)
            )
        self.labels = list(self.sources)

    def session(self, label: str) -> Session:
        """The session of a label, loaded if need be.

        Raises:
            DegamlError: the label is unknown, or what it stands for cannot be loaded.
        """
        with self._lock:
            if label not in self._loaded:
                if label not in self.sources:
                    known = ", ".join(map(repr, self.sources))
                    raise DegamlError(f"There is no pair '{label}' here; there is {known}.")
                session = Session.load(self.sources[label])
                # the first question pays for what is made lazily
                session.predict([Question.of(make_example("Which is odd?", ["2", "3"], 1))])
                self._loaded[label] = session
            return self._loaded[label]


class Worker:
    """A process that adapts to one task after the other, with models of its own; it ends with the page's."""

    def __init__(self, offered: Sources, threads: int) -> None:
        """Start it; the models are loaded meanwhile, each computed by so many threads."""
        self._given = (tuple(offered), threads)
        self._start()

    def _start(self) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._pipe, other = spawning.Pipe()
        self.process = spawning.Process(target=serve, args=(other, *self._given), daemon=True)
        self.process.start()
        other.close()

    def adapt(
        self,
        label: str,
        examples: Sequence[Example],
        progress: Callable[[Progress], None],
        cancel: threading.Event,
        **how: Any,
    ) -> AdaptedModel:
        """What :meth:`degaml_kedro.session.Session.adapt` makes in there of the pair with that label.

        Raises:
            DegamlError: the examples cannot be used, or the process ended.
            AdaptationCancelled: ``cancel`` was set.
            RuntimeError: something else went wrong in there, which it says.
        """
        with tempfile.TemporaryDirectory(prefix="adapted-") as folder:
            try:
                # it may have been killed while nobody needed it
                if not self.process.is_alive():
                    self._restart()
                kind, content = self._answer(
                    (label, tuple(examples), how, folder), progress, cancel
                )
            except (EOFError, OSError) as error:
                self._restart()
                raise DegamlError(
                    "The process that adapted has ended, most likely for want of memory; try again, with fewer or "
                    "shorter examples."
                ) from error
            if kind == "cancelled":
                raise AdaptationCancelled
            if kind == "refused":
                raise DegamlError(content)
            if kind == "broken":
                raise RuntimeError(content)
            return AdaptedModel.open(folder)

    def _answer(
        self, order: object, progress: Callable[[Progress], None], cancel: threading.Event
    ) -> tuple[str, Any]:
        """How it ended; what goes on meanwhile is passed on."""
        self._pipe.send(order)
        told = False
        while True:
            if cancel.is_set() and not told:
                self._pipe.send(None)
                told = True
            if self._pipe.poll(_POLL_SECONDS):
                kind, content = self._pipe.recv()
                if kind != "progress":
                    return kind, content
                progress(content)

    def _restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        """End it."""
        self._pipe.close()
        self.process.join(_CLOSING_SECONDS)
        self.process.kill()
        self.process.join()


def serve(pipe: Connection, offered: Sources, threads: int) -> None:
    """Adapt as the page's process orders, until it is gone."""
    # Ctrl-C is for the page
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # and its process comes first
    os.nice(5)
    torch.set_num_threads(threads)
    orders = queue.SimpleQueue[tuple[Any, threading.Event]]()

    def listen() -> None:
        cancel = threading.Event()
        with suppress(EOFError, OSError):
            while True:
                order = pipe.recv()
                if order is None:
                    cancel.set()
                else:
                    cancel = threading.Event()
                    orders.put((order, cancel))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    pairs = OfferedPairs(offered)
    while True:
        (label, examples, how, folder), cancel = orders.get()
        try:
            session = pairs.session(label)

            def tell(progress: Progress) -> None:
                pipe.send(("progress", progress))

            session.adapt(examples, **how, progress=tell, cancel=cancel).save(folder)
            ended = ("done", "")
        except AdaptationCancelled:
            ended = ("cancelled", "")
        except DegamlError as error:
            ended = ("refused", str(error))
        except Exception:  # noqa: BLE001 - whatever it is, the page logs it
            ended = ("broken", traceback.format_exc())
        pipe.send(ended)
