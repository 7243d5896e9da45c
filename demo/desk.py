"""What the page and its API do, without the page: read examples, adapt in the queue, ask, hand out adapters."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from degaml_kedro.errors import DegamlError
from degaml_kedro.session import AdaptedModel, Answer, Budget, Progress
from degaml_kedro.tasks.example import Example, Question, shorten
from degaml_kedro.tasks.file_records import decode_text
from degaml_kedro.tasks.pasted import Pasted, PastedError, read_data, read_pasted, read_question
from degaml_kedro.tasks.ready import ReadyTask, ready_tasks
from demo.pairs import OfferedPairs
from demo.runs import AdaptationQueue, QueuedAdaptation
from demo.settings import DemoSettings
from demo.visitors import Kept, Visitors

logger = logging.getLogger(__name__)

MAX_ROUNDS = 4
MAX_PROPOSALS = 6
# where nobody says otherwise: the shipped pair's own search
ROUNDS, PROPOSALS = 1, 1
_POLL_SECONDS = 0.2
_SWEEP_SECONDS = 1.0
_READY_SUPPORT = 20
READY_HELD_OUT = 40


class DemoError(DegamlError):
    """What a visitor asked for cannot be done, and why."""


class Desk:
    """Serves all visitors of one server.

    Attributes:
        settings: how it was started.
        pairs: the trained pairs on offer.
        runs: adaptations that wait or go on.
        visitors: what has been made.
    """

    def __init__(
        self, settings: DemoSettings, downloads: Path, uploads: Path | None = None
    ) -> None:
        """Load the first pair.

        Args:
            settings: how to serve.
            downloads: where zips are put; nobody else's folder.
            uploads: a folder of this server alone, where what clients left behind is deleted.

        Raises:
            DegamlError: no pair can be loaded.
        """
        self.settings = settings
        self.pairs = OfferedPairs(settings.pairs)
        self.runs = AdaptationQueue(
            settings.concurrency, settings.queue_size, 2 * settings.max_seconds
        )
        self.visitors = Visitors(
            downloads,
            settings.session_ttl,
            settings.max_models,
            settings.max_models_total,
            settings.grace,
        )
        self._downloads, self._uploads = downloads, uploads
        # connections of open pages, by visitor
        self._connections: Counter[str] = Counter()
        self._tasks = {task.name: task for task in ready_tasks()}
        # by text: which ready task it is, unchanged
        self._ready: dict[str, ReadyTask] = {}
        self._asking = threading.BoundedSemaphore(max(2, settings.concurrency))
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    # --- examples ---------------------------------------------------------------------------------

    @property
    def tasks(self) -> Sequence[ReadyTask]:
        """The ready tasks."""
        return list(self._tasks.values())

    def read(self, text: str, name: str = "") -> Pasted:
        """Examples that were pasted.

        Args:
            text: what was pasted.
            name: of the file it came from, if any.

        Raises:
            DemoError: it is longer than this page allows.
            PastedError: nothing can be made of the whole.
        """
        self._check_length(len(text))
        return read_pasted(text, name)

    def read_upload(self, path: Path) -> str:
        """The text of a file that was dropped.

        Raises:
            DemoError: it is larger than this page allows.
            PastedError: it is no text.
        """
        # four bytes a character at most
        if path.stat().st_size > 4 * self.settings.max_characters:
            self._check_length(path.stat().st_size)
        data = path.read_bytes()
        read_data(data, path.name)
        text = decode_text(data, f"The file {path.name}")
        self._check_length(len(text))
        return text

    def _check_length(self, length: int) -> None:
        if length > self.settings.max_characters:
            raise DemoError(
                f"This is {length:,} characters long, and the page takes at most {self.settings.max_characters:,}; "
                "paste fewer examples, or use `degaml adapt` on your own machine, which reads up to 1 MiB of text."
            )

    def ready_text(self, name: str, seed: int = 0) -> str:
        """A ready task's examples as text that can be edited.

        Raises:
            DemoError: there is no such task.
        """
        task = self._tasks.get(name)
        if task is None:
            raise DemoError(f"There is no ready task {shorten(name)}; pick one from the list.")
        total = min(_READY_SUPPORT + READY_HELD_OUT, self.settings.max_examples)
        support = min(_READY_SUPPORT, max(1, total // 2))
        given, held_out = task.draw(support, total - support, seed)
        text = examples_text([*given, *held_out])
        if seed == 0:
            self._ready[text] = task
        return text

    # --- adapting ---------------------------------------------------------------------------------

    def start(
        self,
        key: str,
        text: str,
        *,
        name: str = "",
        held_out: int = 0,
        pair: str | None = None,
        budget: Budget | None = None,
        seed: int = 0,
        skip_mistakes: bool = False,
    ) -> QueuedAdaptation:
        """Put an adaptation into the queue.

        Args:
            key: the visitor.
            text: examples, as they were pasted.
            name: of the file they came from, if any.
            held_out: so many are not adapted to, and scored on.
            pair: its label; None for the first.
            budget: how much may be tried, within this page's limits.
            seed: of all randomness.
            skip_mistakes: leave out the examples with mistakes.

        Raises:
            DegamlError: the examples cannot be used, a number is out of range, or the queue is full.
        """
        pasted = self.read(text, name)
        if pasted.mistakes and not skip_mistakes:
            first = pasted.mistakes[0]
            raise DemoError(
                f"{len(pasted.mistakes)} of {len(pasted.rows)} examples have a mistake; mend or remove them first. "
                f"{first.mistake}"
            )
        examples = pasted.examples
        if len(examples) > self.settings.max_examples:
            raise DemoError(
                f"These are {len(examples)} examples, and the page takes at most {self.settings.max_examples}; "
                "remove some, or use `degaml adapt` on your own machine, which reads up to 2,000."
            )
        if not 0 <= held_out < len(examples):
            raise DemoError(
                f"{held_out} of {len(examples)} examples cannot be held out; hold out 0 to {len(examples) - 1}."
            )
        allowed = self._allowed(budget or Budget())
        label = pair or self.pairs.labels[0]
        visitor = self.visitors.enter(key)

        def work(tell: Callable[[Progress], None], cancel: threading.Event) -> AdaptedModel:
            session = self.pairs.session(label)
            return session.adapt(
                examples,
                held_out=held_out,
                budget=allowed,
                seed=seed,
                progress=tell,
                cancel=cancel,
            )

        task = self._ready.get(text)
        title = task.title if task else _title(examples)
        return self.runs.submit(visitor.key, work, title, label, task.name if task else "")

    def trained_on(self, label: str) -> frozenset[str]:
        """The ready tasks whose like a pair's generator was trained on, by name.

        Args:
            label: the pair's.

        Raises:
            DegamlError: there is no such pair.
        """
        about = self.pairs.session(label).trained.about
        listed = frozenset(map(str, about.get("tasks") or ()))
        if about.get("drawn_from") != "suite":
            return listed
        return listed | {task.name for task in self.tasks if task.seen}

    def _allowed(self, budget: Budget) -> Budget:
        seconds = budget.seconds if budget.seconds is not None else self.settings.max_seconds
        for value, most, what in (
            (budget.rounds, MAX_ROUNDS, "rounds"),
            (budget.proposals, MAX_PROPOSALS, "proposals a round"),
            (seconds, self.settings.max_seconds, "seconds"),
        ):
            if value is not None and not 0 < value <= most:
                raise DemoError(
                    f"{value:g} {what} cannot be had here; ask for more than 0, at most {most:g}."
                )
        return Budget(budget.rounds, budget.proposals, seconds)

    async def follow(self, key: str, run: QueuedAdaptation) -> AsyncIterator[Kept | None]:
        """Wait for an adaptation, looking at it a few times a second.

        Args:
            key: the visitor.
            run: the adaptation.

        Yields:
            None while it goes on and where it came to nothing; at last the model that it made.
        """
        visitor = self.visitors.enter(key)
        try:
            while not run.over:
                run.touch()
                visitor.seen = time.monotonic()
                yield None
                await asyncio.sleep(_POLL_SECONDS)
            model, run.result = run.result, None
            if model is None:
                yield None
                return
            seen = bool(run.task) and run.task in await asyncio.to_thread(self.trained_on, run.pair)
            yield self.visitors.keep(visitor, model, run.title, run.pair, seen)
        finally:
            # nobody listens any longer
            if not run.over:
                run.cancel("Stopped: the page was closed.")

    # --- asking -----------------------------------------------------------------------------------

    def ask(
        self, key: str, model: str, text: str, options: Sequence[str]
    ) -> tuple[Question, Answer, Answer, Kept]:
        """A question to the base model and to an adapted one.

        Args:
            key: the visitor.
            model: the adapted model's id.
            text: the question.
            options: the answers to choose from; none for those that all examples had.

        Returns:
            The question, the base model's answer, the adapted model's, and which one that is.

        Raises:
            DegamlError: the model is not this visitor's, or the question cannot be asked.
        """
        kept = self.visitors.find(key, model)
        length = len(text) + sum(map(len, options))
        if length > self.settings.max_question_characters:
            raise DemoError(
                f"The question and its options are {length:,} characters long, and the page takes at most "
                f"{self.settings.max_question_characters:,}; shorten them."
            )
        if not options and not kept.model.labels:
            raise DemoError(
                "The examples had options of their own, so this question needs some, too; write two or more."
            )
        question = read_question(text, options or kept.model.labels)
        with self._asking:
            (base,) = kept.model.predict_base([question])
            (adapted,) = kept.model.predict([question])
        return question, base, adapted, kept

    def archive(self, key: str, model: str) -> Path:
        """The adapter as a zip.

        Raises:
            UnknownModelError: the model is not this visitor's.
        """
        return self.visitors.archive(key, model)

    # --- leaving ----------------------------------------------------------------------------------

    def connect(self, key: str) -> None:
        """A visitor's page is open, or open again after its connection was lost."""
        self._connections[key] += 1
        self.visitors.find_again(key)

    def disconnect(self, key: str) -> None:
        """A visitor's page was closed, or its connection lost: stop its work, and free the rest if it stays away."""
        self._connections[key] -= 1
        if self._connections[key] <= 0:
            del self._connections[key]
            self.runs.cancel(key, "Stopped: the page was closed.")
            self.visitors.lose(key)

    def leave(self, key: str) -> None:
        """A visitor wants nothing any longer: stop and free all that is theirs."""
        self.runs.cancel(key, "Stopped: the page was closed.")
        self.visitors.forget(key)

    def close(self) -> None:
        """Stop everything, and leave no file behind."""
        self._closed.set()
        self.runs.close()
        shutil.rmtree(self._downloads, ignore_errors=True)

    def _watch(self) -> None:
        while not self._closed.wait(_SWEEP_SECONDS):
            self.runs.check()
            self.visitors.sweep()
            self._clean()

    def _clean(self) -> None:
        """Delete what killed clients left."""
        if self._uploads is None:
            return
        oldest = time.time() - self.settings.session_ttl
        for path in sorted(self._uploads.rglob("*"), reverse=True):
            if self._downloads in (path, *path.parents):
                continue
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < oldest:
                    # a folder that is not empty stays
                    path.rmdir() if path.is_dir() else path.unlink()


def examples_text(examples: Sequence[Example]) -> str:
    """Examples as text for people, which :func:`read_pasted` reads back as the same; as JSONL where it would not."""
    text = "\n\n".join(f"{one.prompt}\nAnswer: {one.response.strip('[]')}" for one in examples)
    try:
        if list(read_pasted(text).examples) == list(examples):
            return text
    except PastedError:
        pass
    return "\n".join(
        json.dumps(
            {
                "prompt": one.prompt,
                "response": one.response,
                **({"system": one.system} if one.system else {}),
            },
            ensure_ascii=False,
        )
        for one in examples
    )


def _title(examples: Sequence[Example]) -> str:
    return " ".join(examples[0].prompt.split("\n", 1)[0].split())[:80]


def options_of(text: str) -> list[str]:
    """Options that were typed, one a line or with ``|`` between them.

    Example:
        >>> options_of("May | June |")
        ['May', 'June']
    """
    lines = text.splitlines() if "\n" in text.strip() else text.split("|")
    return [option for line in lines if (option := line.strip())]
