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
        seen: whether its generator was trained on that very task.
    """

    id: str
    number: int
    title: str
    pair: str
    model: AdaptedModel
    seen: bool = False

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
        left: when its page was closed, or its connection lost; None while it is there.
        closed: whether it is gone.
        folder: its downloads; made when the first is asked for.
    """

    key: str
    kept: dict[str, Kept] = field(default_factory=dict)
    made: int = 0
    seen: float = field(default_factory=time.monotonic)
    left: float | None = None
    closed: bool = False
    folder: Path | None = None


class Visitors:
    """All that are there now."""

    def __init__(
        self,
        downloads: Path,
        ttl: float,
        max_models: int,
        max_models_total: int = 100,
        grace: float = 20,
    ) -> None:
        """Nobody is there yet.

        Args:
            downloads: where visitors' folders are made.
            ttl: seconds after which one who does nothing is forgotten.
            max_models: so many are kept of each.
            max_models_total: so many are kept of all together.
            grace: seconds after which one whose page is gone is forgotten.
        """
        self._downloads, self._ttl, self._grace = downloads, ttl, grace
        self._max_models, self._max_models_total = max_models, max_models_total
        self._lock = threading.RLock()
        self._visitors: dict[str, Visitor] = {}
        # whose each model is, the oldest model first
        self._ages: dict[str, Visitor] = {}

    @property
    def models(self) -> int:
        """How many adapted models are held, of all visitors."""
        with self._lock:
            return sum(len(visitor.kept) for visitor in self._visitors.values())

    def enter(self, key: str) -> Visitor:
        """The visitor with that key, who has just done something."""
        with self._lock:
            visitor = self._visitors.setdefault(key, Visitor(key))
            _greet(visitor)
            return visitor

    def keep(
        self, visitor: Visitor, model: AdaptedModel, title: str, pair: str, seen: bool = False
    ) -> Kept | None:
        """Keep a model for a visitor; None where the visitor has left meanwhile.

        Args:
            visitor: whose it is.
            model: the model.
            title: for people.
            pair: the label of the generator and the policy.
            seen: whether the generator was trained on that very task.
        """
        with self._lock:
            if visitor.closed:
                return None
            visitor.made += 1
            kept = Kept(secrets.token_urlsafe(24), visitor.made, title, pair, model, seen)
            visitor.kept[kept.id] = kept
            self._ages[kept.id] = visitor
            while len(visitor.kept) > self._max_models:
                oldest = next(iter(visitor.kept))
                self._drop(visitor, oldest)
            while len(self._ages) > self._max_models_total:
                oldest, owner = next(iter(self._ages.items()))
                self._drop(owner, oldest)
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
            _greet(visitor)
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
            for model in visitor.kept:
                del self._ages[model]
            visitor.kept.clear()
            if visitor.folder is not None:
                shutil.rmtree(visitor.folder, ignore_errors=True)

    def lose(self, key: str) -> None:
        """Forget a visitor whose page is gone, unless it comes back soon."""
        with self._lock:
            if visitor := self._visitors.get(key):
                visitor.left = time.monotonic()

    def find_again(self, key: str) -> None:
        """A visitor's page is there after all."""
        with self._lock:
            if visitor := self._visitors.get(key):
                visitor.left = None

    def sweep(self) -> None:
        """Forget those who have done nothing for long, and those who did not come back."""
        now = time.monotonic()
        with self._lock:
            for visitor in list(self._visitors.values()):
                lost = visitor.left is not None and now - visitor.left > self._grace
                if lost or now - visitor.seen > self._ttl:
                    self.forget(visitor.key)

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
        del visitor.kept[model], self._ages[model]
        if visitor.folder is not None:
            shutil.rmtree(visitor.folder / model, ignore_errors=True)


def _greet(visitor: Visitor) -> None:
    visitor.seen, visitor.left = time.monotonic(), None
