"""What each visitor has made: seen by nobody else, and gone when the page is closed."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from degaml_kedro.errors import DegamlError
from degaml_kedro.session import AdaptedModel, Report


class UnknownModelError(DegamlError):
    """The visitor has no such model."""


@dataclass(frozen=True)
class Kept:
    """An adapted model and where it came from.

    Attributes:
        id: cannot be guessed.
        number: from 1, in the order the visitor made them.
        title: for people.
        pair: the label of the generator and the policy.
        model: the model.
    """

    id: str
    number: int
    title: str
    pair: str
    model: AdaptedModel

    @property
    def report(self) -> Report:
        """What its adaptation came to."""
        return self.model.report


@dataclass
class Visitor:
    """One browser session.

    Attributes:
        key: its session hash.
        kept: its models, by id.
        made: how many it has made.
        seen: when it last did something.
        closed: whether it is gone.
        folder: its downloads; made when the first is asked for.
    """

    key: str
    kept: dict[str, Kept] = field(default_factory=dict)
    made: int = 0
    seen: float = field(default_factory=time.monotonic)
    closed: bool = False
    folder: Path | None = None


class Visitors:
    """All that are there now."""

    def __init__(self, downloads: Path, ttl: float, max_models: int) -> None:
        """Nobody is there yet.

        Args:
            downloads: where visitors' folders are made.
            ttl: seconds after which one who does nothing is forgotten.
            max_models: so many are kept of each.
        """
        self._downloads, self._ttl, self._max_models = downloads, ttl, max_models
        self._lock = threading.RLock()
        self._visitors: dict[str, Visitor] = {}

    @property
    def models(self) -> int:
        """How many adapted models are held, of all visitors."""
        with self._lock:
            return sum(len(visitor.kept) for visitor in self._visitors.values())

    def enter(self, key: str) -> Visitor:
        """The visitor with that key, who has just done something."""
        with self._lock:
            visitor = self._visitors.setdefault(key, Visitor(key))
            visitor.seen = time.monotonic()
            return visitor

    def keep(self, visitor: Visitor, model: AdaptedModel, title: str, pair: str) -> Kept | None:
        """Keep a model for a visitor; None where the visitor has left meanwhile.

        Args:
            visitor: whose it is.
            model: the model.
            title: for people.
            pair: the label of the generator and the policy.
        """
        with self._lock:
            if visitor.closed:
                return None
            visitor.made += 1
            kept = Kept(secrets.token_urlsafe(24), visitor.made, title, pair, model)
            visitor.kept[kept.id] = kept
            while len(visitor.kept) > self._max_models:
                oldest = next(iter(visitor.kept))
                self._drop(visitor, oldest)
            return kept

    def find(self, key: str, model: str) -> Kept:
        """A visitor's own model.

        Raises:
            UnknownModelError: this visitor has none with that id; whether another one has is not said.
        """
        with self._lock:
            visitor = self._visitors.get(key)
            kept = visitor.kept.get(model) if visitor else None
            if visitor is None or kept is None:
                raise UnknownModelError(
                    "This session has no such model: models are freed when their page is closed, after a while without "
                    "use, and when there are newer ones. Adapt again."
                )
            visitor.seen = time.monotonic()
            return kept

    def all_of(self, key: str) -> list[Kept]:
        """A visitor's models, oldest first."""
        with self._lock:
            visitor = self._visitors.get(key)
            return list(visitor.kept.values()) if visitor else []

    def freed(self, key: str) -> int:
        """How many of a visitor's models are not there any longer."""
        with self._lock:
            visitor = self._visitors.get(key)
            return visitor.made - len(visitor.kept) if visitor else 0

    def drop(self, key: str, model: str) -> None:
        """Free one model.

        Raises:
            UnknownModelError: this visitor has none with that id.
        """
        self.find(key, model)
        with self._lock:
            if visitor := self._visitors.get(key):
                self._drop(visitor, model)

    def forget(self, key: str) -> None:
        """Free all that a visitor has."""
        with self._lock:
            visitor = self._visitors.pop(key, None)
            if visitor is None:
                return
            visitor.closed = True
            visitor.kept.clear()
            if visitor.folder is not None:
                shutil.rmtree(visitor.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Forget those who have done nothing for long."""
        now = time.monotonic()
        with self._lock:
            gone = [v.key for v in self._visitors.values() if now - v.seen > self._ttl]
        for key in gone:
            self.forget(key)

    def archive(self, key: str, model: str) -> Path:
        """The model's folder as a zip, written once.

        Raises:
            UnknownModelError: this visitor has none with that id.
        """
        kept = self.find(key, model)
        with self._lock:
            visitor = self._visitors[key]
            if visitor.folder is None:
                # the name cannot be guessed: whoever knows a file's path may fetch it
                visitor.folder = self._downloads / secrets.token_urlsafe(24)
            folder = visitor.folder / kept.id
        path = folder / f"adapter-{kept.number}.zip"
        if not path.is_file():
            content = folder / "adapter"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            kept.model.save(content)
            draft = path.with_suffix(".part")
            # weights do not get smaller
            with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
                for file in sorted(content.rglob("*")):
                    if file.is_file():
                        archive.write(file, Path("adapter") / file.relative_to(content))
            shutil.rmtree(content)
            draft.replace(path)
        if visitor.closed:
            shutil.rmtree(visitor.folder, ignore_errors=True)
            raise UnknownModelError("The page was closed.")
        return path

    def _drop(self, visitor: Visitor, model: str) -> None:
        del visitor.kept[model]
        if visitor.folder is not None:
            shutil.rmtree(visitor.folder / model, ignore_errors=True)
