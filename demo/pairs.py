"""The trained pairs on offer, each loaded once: the first at the start, the others when they are asked for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from degaml_kedro.errors import DegamlError
from degaml_kedro.session import Session
from degaml_kedro.tasks.example import Question, make_example

logger = logging.getLogger(__name__)


class OfferedPairs:
    """Sessions by label."""

    def __init__(self, offered: Sequence[tuple[str, str | None]]) -> None:
        """Load the first that can be loaded.

        Args:
            offered: labels and sources.

        Raises:
            DegamlError: none can be loaded.
        """
        self._sources = dict(offered)
        self._loaded: dict[str, Session] = {}
        self._lock = threading.Lock()
        problems: list[str] = []
        for label in list(self._sources):
            try:
                self.session(label)
                break
            except DegamlError as error:
                logger.warning("'%s' is not offered: %s", label, error)
                problems.append(f"'{label}': {error}")
                del self._sources[label]
        else:
            raise DegamlError(
                "No trained pair can be loaded, so there is nothing to show. " + " ".join(problems)
            )

    @property
    def labels(self) -> list[str]:
        """What is offered; the first is loaded."""
        return list(self._sources)

    def session(self, label: str) -> Session:
        """The session of a label, loaded if need be.

        Raises:
            DegamlError: the label is unknown, or what it stands for cannot be loaded.
        """
        with self._lock:
            if label not in self._loaded:
                if label not in self._sources:
                    raise DegamlError(
                        f"There is no pair '{label}' here; there is {', '.join(map(repr, self._sources))}."
                    )
                session = Session.load(self._sources[label])
                # the first question pays for what is made lazily
                session.predict([Question.of(make_example("Which is odd?", ["2", "3"], 1))])
                self._loaded[label] = session
            return self._loaded[label]
