"""What the page and its endpoints do for visitors: read examples, adapt in a queue, ask, hand out adapters.

Everything belongs to a visitor, who is known by a token that cannot be guessed: not to a page, a stream or a
connection, which end while the visitor stays (``gr.State`` belongs to a page, and is gone with it after an hour).
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import logging
import os
import queue
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from degaml_kedro.checkpoint.layout import CheckpointError
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.folders import own_prefix
from degaml_kedro.session import (
    AdaptationCancelled,
    AdaptedModel,
    Answer,
    Budget,
    Progress,
    Session,
)
from degaml_kedro.tasks.example import Example, Question, shorten
from degaml_kedro.tasks.file_records import decode_text
from degaml_kedro.tasks.pasted import Pasted, PastedError, read_data, read_pasted, read_question
from degaml_kedro.tasks.ready import ReadyTask, ready_tasks
from demo import DemoSettings
from demo.cluster import Cluster
from demo.workers import OfferedPairs, Worker

logger = logging.getLogger(__name__)

MAX_ROUNDS, MAX_PROPOSALS = 4, 6
# where nobody says otherwise: the shipped pair's own search
ROUNDS, PROPOSALS = 1, 1
READY_SUPPORT, READY_HELD_OUT = 20, 40
_POLL_SECONDS = 0.2
_SWEEP_SECONDS = 1.0


class DemoError(DegamlError):
    """What a visitor asked for cannot be done, and why."""


class UnknownModelError(DemoError):
    """The visitor has no such model."""


@dataclass(eq=False)
class Visitor:
    """Somebody with a token, in whatever pages and streams.

    Attributes:
        folder: the downloads; its name cannot be guessed, for whoever knows a file's path may fetch it.
        made: how many models there have been.
        pages: open connections of pages and clients.
        seen: when anything was last done.
        left: when the last connection was lost; None while there is one, and for those who never had one.
    """

    folder: Path
    made: int = 0
    pages: int = 0
    seen: float = field(default_factory=time.monotonic)
    left: float | None = None


@dataclass(eq=False)
class Adaptation:
    """One adaptation of a visitor: waiting, going on, or over.

    Attributes:
        token: of the visitor whose it is.
        title: what it is adapted to, for people.
        id: cannot be guessed.
        number: from 1, in the order the visitor's were done.
        model: what was made, once it is done.
        trained_on: whether its generator was trained on that very task.
        progress: by stage what was reported last; the current stage is the last one.
        error: why it failed or was stopped, for people.
        cancelled: stops it after its current step.
        begun: when it began; None while it waits.
        seen: when somebody last listened.
    """

    token: str
    title: str = ""
    id: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    number: int = 0
    model: AdaptedModel = field(init=False, repr=False)
    trained_on: bool = False
    state: Literal["waiting", "running", "done", "cancelled", "failed"] = "waiting"
    progress: dict[str, Progress] = field(default_factory=dict)
    error: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)
    begun: float | None = None
    seen: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """Whether nothing of it goes on any longer."""
        return self.state not in ("waiting", "running")

    def tell(self, progress: Progress) -> None:
        """Note what goes on now, as the last entry."""
        self.progress.pop(progress.stage, None)
        self.progress[progress.stage] = progress


class Service:
    """Serves all visitors of one server.

    Attributes:
        pairs: the trained pairs on offer.
        tasks: the ready tasks, by name.
    """

    def __init__(self, settings: DemoSettings, downloads: Path) -> None:
        """Load the first pair; ``downloads`` is for zips, and nobody else's folder.

        Raises:
            DegamlError: no pair can be loaded.
        """
        self.settings = settings
        self.pairs = OfferedPairs(settings.pairs)
        self._cluster = Cluster(settings.ray) if settings.ray else None
        self.tasks = {task.name: task for task in ready_tasks()}
        # by text: which ready task it is, unchanged
        self._ready: dict[str, ReadyTask] = {}
        self._downloads = downloads
        self._lock, self._saving = threading.RLock(), threading.Lock()
        self._visitors: dict[str, Visitor] = {}
        # of all visitors, by id: what waits or goes on in the order it came, what is done in the order it was. Gradio's
        # own queue would hold a stream's events: they end with the stream, where an adaptation is the visitor's, and
        # its REST streams tell nobody their place
        self._adaptations: dict[str, Adaptation] = {}
        self._pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="adaptation")
        several, cores = settings.concurrency > 1 and not settings.ray, os.cpu_count() or 1
        self._workers = [
            Worker(tuple(self.pairs.sources.items()), max(1, cores // settings.concurrency))
            for _ in range(settings.concurrency if several else 0)
        ]
        self._idle = queue.SimpleQueue[Worker]()
        for worker in self._workers:
            self._idle.put(worker)
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    # --- examples ---------------------------------------------------------------------------------

    def read(self, text: str, name: str = "") -> Pasted:
        """Examples that were pasted, or come from a file of that name.

        A question of too many tokens of the first pair's base model is a mistake.

        Raises:
            DemoError: it is longer than this page allows.
            PastedError: nothing can be made of the whole.
        """
        self._check_length(len(text))
        pasted = read_pasted(text, name)
        session = self.pairs.session(self.pairs.labels[0])
        # rows share options
        count = functools.cache(session.count_tokens)
        rows = []
        for row in pasted.rows:
            if (one := row.example) is not None:
                tokens = sum(map(count, (one.system, one.question, *one.options)))
                if wrong := self._too_long(f"Line {row.line}: the question", tokens, session):
                    row = replace(row, example=None, question=None, mistake=wrong)
            rows.append(row)
        return replace(pasted, rows=tuple(rows))

    def read_upload(self, path: Path) -> str:
        """The text of a file that was dropped.

        Raises:
            DemoError: it is larger than this page allows.
            PastedError: it is no text.
        """
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

    def _too_long(self, what: str, tokens: int, model: Session | AdaptedModel) -> str | None:
        """What is wrong with the length of a question; None where nothing is."""
        most = min(self.settings.max_question_tokens, model.context_length)
        if tokens <= most:
            return None
        return (
            f"{what} is {tokens:,} tokens long with its options, and the page takes at most {most:,}; "
            "shorten it."
        )

    def ready_text(self, name: str, seed: int = 0) -> str:
        """A ready task's examples as text that can be edited.

        Raises:
            DemoError: there is no such task.
        """
        task = self.tasks.get(name)
        if task is None:
            raise DemoError(f"There is no ready task {shorten(name)}; pick one from the list.")
        total = min(READY_SUPPORT + READY_HELD_OUT, self.settings.max_examples)
        support = min(READY_SUPPORT, max(1, total // 2))
        given, held_out = task.draw(support, total - support, seed)
        text = examples_text([*given, *held_out])
        if seed == 0:
            self._ready[text] = task
        return text

    # --- adapting ---------------------------------------------------------------------------------

    def start(
        self,
        token: str,
        text: str,
        *,
        name: str = "",
        held_out: int = 0,
        pair: str | None = None,
        budget: Budget | None = None,
        seed: int = 0,
        skip_mistakes: bool = False,
    ) -> Adaptation:
        """Put an adaptation to pasted examples into the queue (:meth:`degaml_kedro.session.Session.adapt`).

        ``pair`` is its label, None for the first; ``skip_mistakes`` leaves out the examples with mistakes.

        Raises:
            DegamlError: the examples cannot be used, a number is out of range, or the queue is full.
        """
        pasted = self.read(text, name)
        if pasted.mistakes and not skip_mistakes:
            raise DemoError(
                f"{len(pasted.mistakes)} of {len(pasted.rows)} examples have a mistake; mend or remove them first. "
                f"{pasted.mistakes[0].mistake}"
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
        task = self._ready.get(text)
        title = task.title if task else " ".join(examples[0].prompt.split("\n", 1)[0].split())[:80]

        def work(run: Adaptation) -> AdaptedModel:
            session = self.pairs.session(label)
            run.trained_on = task is not None and task.name in self.trained_on(session)
            how: dict[str, Any] = {"held_out": held_out, "budget": allowed, "seed": seed}
            if self._cluster is not None:
                return self._cluster.adapt(run, self.pairs.sources[label], examples, **how)
            if not self._workers:
                return session.adapt(examples, **how, progress=run.tell, cancel=run.cancelled)
            # as many as threads that ask for one
            worker = self._idle.get()
            try:
                return worker.adapt(label, examples, run.tell, run.cancelled, **how)
            finally:
                self._idle.put(worker)

        return self.submit(token, work, title)

    def trained_on(self, session: Session) -> frozenset[str]:
        """The ready tasks whose like a session's generator was trained on, by name."""
        about = session.trained.about
        listed = frozenset(map(str, about.get("tasks") or ()))
        if about.get("drawn_from") != "suite":
            return listed
        return listed | {task.name for task in self.tasks.values() if task.seen}

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

    def submit(
        self, token: str, work: Callable[[Adaptation], AdaptedModel], title: str = ""
    ) -> Adaptation:
        """Put work at the end of the queue: first come, first served, so many at once.

        When it is its turn, it tells the adaptation of progress, and looks whether it is cancelled.

        Raises:
            DemoError: the visitor has one already, or the queue is full.
        """
        with self._lock:
            queue = self._queue()
            if self._queue(token):
                raise DemoError(
                    "An adaptation of yours is under way already; wait for it, or cancel it."
                )
            if len(queue) >= self.settings.concurrency + self.settings.queue_size:
                raise DemoError(
                    f"The queue is full: {len(queue)} adaptations are under way or waiting. "
                    "Try again in a minute."
                )
            self.visitor(token)
            run = Adaptation(token, title)
            self._adaptations[run.id] = run
        self._pool.submit(self._carry_out, run, work)
        return run

    def _queue(self, token: str | None = None) -> list[Adaptation]:
        """What waits or goes on, in order; of one visitor, or of all."""
        every = self._adaptations.values()
        return [one for one in every if not one.over and token in (None, one.token)]

    def _carry_out(self, run: Adaptation, work: Callable[[Adaptation], AdaptedModel]) -> None:
        with self._lock:
            if run.over:
                return
            run.state, run.begun = "running", time.monotonic()
        try:
            model = work(run)
            with self._lock:
                self._keep(run, model)
            return
        except AdaptationCancelled:
            run.error, run.state = run.error or "Stopped.", "cancelled"
        except DegamlError as error:
            run.error, run.state = str(error), "failed"
        except Exception:
            logger.exception("an adaptation failed")
            run.error = "Something went wrong here that is not your fault; the server's log has it."
            run.state = "failed"
        with self._lock:
            del self._adaptations[run.id]

    def _keep(self, run: Adaptation, model: AdaptedModel) -> None:
        # what was stopped in its last step is nobody's
        if run.cancelled.is_set():
            raise AdaptationCancelled
        visitor = self._visitors[run.token]
        visitor.made += 1
        run.number, run.model, run.state = visitor.made, model, "done"
        self._adaptations[run.id] = self._adaptations.pop(run.id)
        if len(own := self.models(run.token)) > self.settings.max_models:
            self._free(own[0])
        if len(every := self.models()) > self.settings.max_models_total:
            self._free(every[0])

    async def follow(self, run: Adaptation) -> AsyncIterator[list[Progress]]:
        """Wait for an adaptation, looking at it a few times a second; who stops listening does not stop it.

        Yields:
            What was reported since the last time, the latest of each stage: short stages are seen too.
        """
        told: dict[str, Progress] = {}
        while True:
            # looked at first: what was told before the end is still to be passed on
            over, now = run.over, dict(run.progress)
            run.seen = time.monotonic()
            if visitor := self._visitors.get(run.token):
                visitor.seen = run.seen
            yield [one for stage, one in now.items() if told.get(stage) is not one]
            if over:
                return
            told = now
            await asyncio.sleep(_POLL_SECONDS)

    def run_of(self, token: str) -> Adaptation | None:
        """The visitor's adaptation that waits or goes on, and is not being stopped."""
        with self._lock:
            own = self._queue(token)
        return own[0] if own and not own[0].cancelled.is_set() else None

    def ahead(self, run: Adaptation) -> int:
        """How many have to be done before it may begin."""
        with self._lock:
            if run.state != "waiting":
                return 0
            return max(0, self._queue().index(run) - self.settings.concurrency + 1)

    def cancel(self, token: str, reason: str = "Stopped, as you asked.") -> None:
        """Stop the visitor's adaptation, if there is one; one that waits leaves the queue at once."""
        with self._lock:
            for run in self._queue(token):
                # a second reason does not count
                if not run.cancelled.is_set():
                    run.error = reason
                    run.cancelled.set()
                if run.state == "waiting":
                    run.state = "cancelled"
                    del self._adaptations[run.id]

    # --- what was made ----------------------------------------------------------------------------

    def visitor(self, token: str) -> Visitor:
        """The visitor with that token, who has just done something."""
        with self._lock:
            found = self._visitors.get(token)
            if found is None:
                found = Visitor(self._downloads / secrets.token_urlsafe(24))
                self._visitors[token] = found
            found.seen, found.left = time.monotonic(), None
            return found

    def find(self, token: str, model: str) -> Adaptation:
        """A visitor's own model.

        Raises:
            UnknownModelError: this visitor has none with that id; whether another one has is not said.
        """
        with self._lock:
            found = [one for one in self.models(token) if one.id == model]
            if not found:
                raise UnknownModelError(
                    "This visitor has no such model: models are freed when their page is closed, after a while without "
                    "use, and when there are newer ones. Adapt again."
                )
            self.visitor(token)
            return found[0]

    def models(self, token: str | None = None) -> list[Adaptation]:
        """What is done of one visitor, or of all, oldest first."""
        with self._lock:
            every = self._adaptations.values()
            return [one for one in every if one.state == "done" and token in (None, one.token)]

    def count_freed(self, token: str) -> int:
        """How many of a visitor's models are not there any longer."""
        return self.visitor(token).made - len(self.models(token))

    def ask(
        self, token: str, model: str, text: str, options: Sequence[str]
    ) -> tuple[Question, Answer, Answer, Adaptation]:
        """Ask the base model and an adapted one; no options are those that all examples had.

        Returns:
            The question, the base model's answer, the adapted model's, and which one that is.

        Raises:
            DegamlError: the model is not this visitor's, or the question cannot be asked.
        """
        kept = self.find(token, model)
        if not options and not kept.model.labels:
            raise DemoError(
                "The examples had options of their own, so this question needs some, too; write two or more."
            )
        question = read_question(text, options or kept.model.labels)
        tokens = sum(map(kept.model.count_tokens, (text, *question.options)))
        if wrong := self._too_long("The question", tokens, kept.model):
            raise DemoError(wrong)
        (base,) = kept.model.predict_base([question])
        (adapted,) = kept.model.predict([question])
        return question, base, adapted, kept

    def archive(self, token: str, model: str) -> Path:
        """The model's folder as a zip, written once.

        Raises:
            UnknownModelError: the model is not this visitor's.
            DemoError: it cannot be written.
        """
        kept = self.find(token, model)
        path = self._visitors[token].folder / kept.id / f"adapter-{kept.number}.zip"
        # two downloads of one model at once would write one file
        try:
            with self._saving:
                if not path.is_file():
                    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    with tempfile.TemporaryDirectory(dir=path.parent) as draft:
                        kept.model.save(Path(draft, "adapter"))
                        made = shutil.make_archive(f"{draft}/made", "zip", draft, "adapter")
                        Path(made).replace(path)
        except (OSError, CheckpointError) as error:
            # else its folder was removed under the zip
            if kept.id in self._adaptations:
                logger.error("a zip cannot be written: %s", error)
                raise DemoError(
                    "The zip cannot be written, most likely for want of room; the server's log says why."
                ) from error
        if kept.id not in self._adaptations:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise UnknownModelError("The model was freed meanwhile.")
        return path

    def forget(self, token: str, model: str = "") -> int:
        """Free a model of a visitor, or stop and free all that is theirs; how many models are left.

        Raises:
            UnknownModelError: this visitor has none with that id.
        """
        with self._lock:
            if model:
                self._free(self.find(token, model))
            else:
                self.cancel(token, "Stopped: the page was closed.")
                for kept in self.models(token):
                    self._free(kept)
                if visitor := self._visitors.get(token):
                    shutil.rmtree(visitor.folder, ignore_errors=True)
                    if not visitor.pages:
                        del self._visitors[token]
            return len(self.models(token))

    def _free(self, kept: Adaptation) -> None:
        del self._adaptations[kept.id]
        shutil.rmtree(self._visitors[kept.token].folder / kept.id, ignore_errors=True)

    # --- coming and leaving -----------------------------------------------------------------------

    @contextmanager
    def connected(self, token: str) -> Iterator[None]:
        """While a page or a client of the visitor is open."""
        with self._lock:
            visitor = self.visitor(token)
            visitor.pages += 1
        try:
            yield
        finally:
            with self._lock:
                visitor.pages -= 1
                if not visitor.pages:
                    visitor.left = time.monotonic()

    def close(self) -> None:
        """Stop everything, and leave no file behind."""
        self._closed.set()
        with self._lock:
            for run in self._queue():
                self.cancel(run.token, "Stopped: the server is shutting down.")
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._cluster is not None:
            self._cluster.close()
        for worker in self._workers:
            worker.close()
        shutil.rmtree(self._downloads, ignore_errors=True)

    def _watch(self) -> None:
        while not self._closed.wait(_SWEEP_SECONDS):
            self.sweep()

    def sweep(self) -> None:
        """Stop what nobody waits for or what takes too long; forget visitors who are gone or idle."""
        now, grace = time.monotonic(), self.settings.grace
        limit = 2 * self.settings.max_seconds
        with self._lock:
            for run in self._queue():
                owner = self._visitors.get(run.token)
                if not (owner and owner.pages) and now - run.seen > grace:
                    self.cancel(run.token, "Stopped: the page was closed.")
                if run.begun is not None and now - run.begun > limit:
                    self.cancel(
                        run.token,
                        f"Stopped after {limit:.0f} seconds, the most that this page allows; give it fewer or shorter "
                        "examples.",
                    )
            for token, visitor in list(self._visitors.items()):
                lost = visitor.left is not None and now - visitor.left > grace
                if lost or now - visitor.seen > self.settings.session_ttl:
                    self.forget(token)


def own_folder() -> str:
    """A new folder for uploads and zips, deleted at the end; what killed pages left is deleted now."""
    parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()).resolve()
    parent.mkdir(parents=True, exist_ok=True)
    # readable by its owner alone
    folder = tempfile.mkdtemp(prefix=own_prefix(parent, "degaml-demo"), dir=parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def examples_text(examples: Sequence[Example]) -> str:
    """Examples as text for people, which :func:`read_pasted` reads back as the same; as JSONL where it would not."""
    text = "\n\n".join(f"{one.prompt}\nAnswer: {one.response.strip('[]')}" for one in examples)
    with suppress(PastedError):
        if list(read_pasted(text).examples) == list(examples):
            return text
    lines = []
    for one in examples:
        system = {"system": one.system} if one.system else {}
        record = {"prompt": one.prompt, "response": one.response, **system}
        lines.append(json.dumps(record, ensure_ascii=False))
    return "\n".join(lines)


def options_of(text: str) -> list[str]:
    """Options that were typed, one a line or with ``|`` between them.

    Example:
        >>> options_of("May | June |")
        ['May', 'June']
    """
    lines = text.splitlines() if "\n" in text.strip() else text.split("|")
    return [option for line in lines if (option := line.strip())]
