"""One visitor of the page, as a program: the endpoints, each with what it answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from gradio_client import Client
from gradio_client.exceptions import AppError

_POLL_SECONDS = 0.02
_FULL = "queue is full"


class PageError(Exception):
    """The page refuses, and says why."""

    @property
    def full(self) -> bool:
        """Whether it is only that too many others are there."""
        return _FULL in str(self).lower()


@dataclass(frozen=True)
class Adapted:
    """What an adaptation came to.

    Attributes:
        model: its id.
        report: the report.
        waited: seconds in the queue.
        stages: what was told on the way, each stage once.
    """

    model: str
    report: dict[str, Any]
    waited: float
    stages: tuple[str, ...]


class PageClient:
    """A session of its own, which ends with the ``with`` block."""

    def __init__(self, url: str, downloads: Path | None = None) -> None:
        """Enter.

        Args:
            url: of the page.
            downloads: the folder for what is downloaded; None downloads nothing.
        """
        self.client = Client(
            url,
            verbose=False,
            analytics_enabled=False,
            download_files=str(downloads) if downloads is not None else False,
        )

    def __enter__(self) -> PageClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave: the page frees what is this session's."""
        self.client.close()

    def call(self, endpoint: str, /, **arguments: Any) -> Any:
        """Call an endpoint.

        Raises:
            PageError: the page refuses.
        """
        try:
            return self.client.predict(**arguments, api_name=f"/{endpoint}")
        except AppError as error:
            raise PageError(str(error)) from error

    def read(self, text: str) -> dict[str, Any]:
        """How examples are understood."""
        found: dict[str, Any] = self.call("read", text=text)
        return found

    def adapt(
        self,
        text: str,
        held_out: int,
        give_up: Callable[[float], bool] = lambda _: False,
        **arguments: Any,
    ) -> Adapted | None:
        """Adapt, and wait for it.

        Args:
            text: examples.
            held_out: how many of them are held out.
            give_up: given the seconds since the beginning; the adaptation is cancelled once it says so.
            **arguments: of the endpoint.

        Returns:
            What came of it; None where it was given up.

        Raises:
            PageError: the page refuses.
        """
        began = time.monotonic()
        job = self.client.submit(text=text, held_out=held_out, **arguments, api_name="/adapt")
        waited, stages, seen = 0.0, dict[str, None](), 0
        gone = False
        while not job.done():
            spent = time.monotonic() - began
            told = job.outputs()
            for one in told[seen:]:
                if one["state"] == "waiting":
                    waited = spent
                stages[one.get("stage", one["state"])] = None
            seen = len(told)
            if not gone and give_up(spent):
                gone = True
                self.call("cancel")
            time.sleep(_POLL_SECONDS)
        try:
            job.result()
        except AppError as error:
            if gone:
                return None
            raise PageError(str(error)) from error
        last = job.outputs()[-1]
        return Adapted(last["model"], last["report"], waited, tuple(stages))

    def predict(self, model: str, question: str, options: Sequence[str]) -> tuple[float, ...]:
        """The adapted model's probabilities of the options."""
        told = self.call("predict", model=model, question=question, options=list(options))
        return tuple(told["adapted"]["probabilities"])

    def forget(self, model: str = "") -> None:
        """Free a model, or all."""
        self.call("forget", model=model)
