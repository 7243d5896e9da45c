"""The page: its parts, and what happens when they are used."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from demo.uploads import own_folder, upload_folder

# before Gradio is imported: nothing is reported to anybody
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# seconds after which a page that was closed is noticed, and what it holds is freed
os.environ.setdefault("GRADIO_HEARTBEAT_INTERVAL", "5")

os.environ["GRADIO_TEMP_DIR"] = upload_folder()

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from degaml_kedro.checkpoint.card import peft_code
from degaml_kedro.errors import DegamlError
from degaml_kedro.session import Budget, Progress
from degaml_kedro.tasks.ready import ReadyTask
from demo import reading, results
from demo.api import add_endpoints
from demo.comparison import Comparisons
from demo.desk import (
    MAX_PROPOSALS,
    MAX_ROUNDS,
    PROPOSALS,
    READY_HELD_OUT,
    ROUNDS,
    Desk,
    options_of,
)
from demo.markup import alert, escape, note
from demo.runs import QueuedAdaptation
from demo.settings import DemoSettings
from demo.theme import CSS, Calm
from demo.visitors import Kept, UnknownModelError

Updates = dict[Any, Any]

_PLACEHOLDER = """What month comes after March? => April
What month comes after June? => July
…"""
_HOW = (
    "One example a line: <code>question =&gt; answer</code>, or with options of its own: "
    "<code>question | option | right one* | option</code>. JSON, JSON lines and CSV are read too, pasted or as a file."
)
_HELD_OUT = 5
_EMPTY = (
    '<div class="dg-empty">Nothing has been adapted yet. Results appear here, step by step.</div>'
)
# regions that are read aloud, and names of what Gradio leaves without one
_ACCESSIBLE = """() => {
  const live = (id, kind) => { const e = document.getElementById(id); if (e) e.setAttribute('aria-live', kind); };
  live('announce', 'polite'); live('queue', 'polite'); live('parse-summary', 'polite');
  document.documentElement.lang = 'en';
}"""
# the results may be out of sight where the button is
_TO_RESULTS = """(...values) => {
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
  document.getElementById('happened').scrollIntoView({ behavior: calm ? 'auto' : 'smooth', block: 'start' });
  return values;
}"""
_READ: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class DemoApp(gr.Blocks):
    """The page, which starts as its settings say."""

    def __init__(self, settings: DemoSettings) -> None:
        """An empty page.

        Args:
            settings: where it listens, and its limits.
        """
        # uploads and zips are deleted with their visitors; this is for what a killed client left
        age = round(settings.session_ttl)
        super().__init__(
            title="degaml · adapters from a few examples",
            analytics_enabled=False,
            fill_width=True,
            delete_cache=(min(600, age), age),
        )
        self.settings = settings
        self.desk: Desk | None = None

    def launch(self, **options: Any) -> Any:  # type: ignore[override]
        """Start the server; options are Gradio's."""
        assert self.desk is not None
        defaults = {
            "server_name": self.settings.host,
            "server_port": self.settings.port or None,
            "theme": Calm(),
            "css_paths": CSS,
            "js": _ACCESSIBLE,
            "share": False,
            "quiet": True,
            "ssr_mode": False,
            "run_history": False,
            "enable_monitoring": False,
            "footer_links": ["api"],
            "max_file_size": 4 * self.settings.max_characters,
            # what Gradio remembers of sessions is only let go when there are so many newer ones
            "state_session_capacity": 500,
            "app_kwargs": {"middleware": [Middleware(_Heartbeats, desk=self.desk)]},
        }
        return super().launch(**(defaults | options))

    def close(self, verbose: bool = True) -> None:
        """Stop the server and all that goes on."""
        if self.desk is not None:
            self.desk.close()
        super().close(verbose)
        if (own := own_folder()) is not None:
            shutil.rmtree(own, ignore_errors=True)


class _Heartbeats:
    """Tells the desk which pages are open: each has a connection for nothing else."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app, self._desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, mark, key = scope.get("path", "").rpartition("/heartbeat/")
        if scope["type"] != "http" or not mark:
            await self._app(scope, receive, send)
            return
        self._desk.connect(key)
        try:
            await self._app(scope, receive, send)
        finally:
            self._desk.disconnect(key)


def build_app(settings: DemoSettings) -> DemoApp:
    """Load a pair, and lay out the page.

    Args:
        settings: how to serve.

    Raises:
        DegamlError: no pair can be loaded.
    """
    # Gradio serves files from here without copying them
    uploads = Path(upload_folder())
    uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
    downloads = uploads / f"downloads-{secrets.token_urlsafe(16)}"
    desk = Desk(settings, downloads, own_folder())
    app = DemoApp(settings)
    with app:
        app.desk = desk
        _Page(desk).lay_out(app)
        add_endpoints(desk)
    app.queue(default_concurrency_limit=4, api_open=False)
    return app


class _Page:
    """The parts of the page; what they do is the desk's."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.comparisons = Comparisons(desk.settings.tracking_uri)

    # --- layout -----------------------------------------------------------------------------------

    def lay_out(self, app: gr.Blocks) -> None:
        session = self.desk.pairs.session(self.desk.pairs.labels[0])
        gr.HTML(
            '<header class="dg-header"><h1>A few examples in, an adapter out</h1><p>Show a small language model '
            "some questions with their answers. A generator writes LoRA weights for the task, a policy proposes how to "
            "refine them, and you see what each step changed, and how sure that is.</p>"
            f'<span class="dg-model dg-quiet">Base model: {escape(session.base_model)}</span></header>',
            apply_default_css=False,
        )
        # the file that the text came from: a digest of the text, and the name
        self.source = gr.Textbox("", visible=False)
        # what the visitor set: the slider follows what a shorter text leaves room for, and comes back
        self.wanted = gr.State(_HELD_OUT)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                self._lay_out_examples()
                self._lay_out_adapt()
            with gr.Column(scale=6, min_width=300):
                self._lay_out_results()
        self._lay_out_below()
        self._connect(app)

    def _lay_out_examples(self) -> None:
        limits = self.desk.settings
        known = self.desk.trained_on(self.desk.pairs.labels[0])
        with gr.Column(elem_classes="dg-card"):
            _head(1, "Examples", _HOW)
            self.text = gr.Textbox(
                label="Your examples",
                lines=8,
                max_lines=12,
                placeholder=_PLACEHOLDER,
                elem_id="examples-text",
                info=f"At most {limits.max_examples} examples. Nothing is passed on to other services.",
            )
            with gr.Row(equal_height=True):
                self.task = gr.Dropdown(
                    [(_task_label(task, known), task.name) for task in self.desk.tasks],
                    value=self.desk.tasks[0].name if self.desk.tasks else None,
                    label="… or a ready task",
                    elem_id="ready-task",
                    scale=3,
                    min_width=180,
                )
                self.use = gr.Button("Use it", elem_id="use-ready", scale=1, min_width=90)
            self.file = gr.File(
                label="… or a file: .txt, .json, .jsonl, .csv",
                elem_id="examples-file",
                height=150,
            )
            self.summary = gr.HTML(elem_id="parse-summary", apply_default_css=False)
            self.skip = gr.Checkbox(
                label="Leave out the lines with mistakes",
                elem_id="skip-mistakes",
                visible=False,
            )
            self.parsed = gr.HTML(elem_id="parsed-table", apply_default_css=False)

    def _lay_out_adapt(self) -> None:
        limits, labels = self.desk.settings, self.desk.pairs.labels
        with gr.Column(elem_classes="dg-card"):
            _head(
                2,
                "Adapt",
                "What is held out is not adapted to: it shows what the adapter is worth.",
            )
            self.held_out = gr.Slider(
                0,
                limits.max_examples - 2,
                value=_HELD_OUT,
                step=1,
                label="Examples to hold out",
                elem_id="held-out",
            )
            self.pair = gr.Dropdown(
                labels,
                value=labels[0],
                label="Generator and policy",
                elem_id="pair",
                interactive=len(labels) > 1,
            )
            with gr.Accordion("Budget", open=False, elem_id="budget"):
                self.rounds = gr.Slider(
                    1,
                    MAX_ROUNDS,
                    value=ROUNDS,
                    step=1,
                    label="Rounds",
                    info="The best strategy of a round is carried out; the next round starts from there.",
                    elem_id="budget-rounds",
                )
                self.proposals = gr.Slider(
                    1,
                    MAX_PROPOSALS,
                    value=PROPOSALS,
                    step=1,
                    label="Proposals a round",
                    elem_id="budget-proposals",
                )
                self.seconds = gr.Slider(
                    min(5, limits.max_seconds),
                    limits.max_seconds,
                    value=min(60, limits.max_seconds),
                    step=1,
                    label="Seconds of trying",
                    elem_id="budget-seconds",
                )
            self.adapt = gr.Button("Adapt", variant="primary", interactive=False, elem_id="adapt")

    def _lay_out_results(self) -> None:
        with gr.Column(elem_classes="dg-card", elem_id="happened"):
            _head(3, "What happened")
            self.error = _html("error")
            self.queue = _html("queue")
            self.progress = _html("progress")
            self.cancel = gr.Button("Cancel", interactive=False, elem_id="cancel", size="sm")
            self.announce = gr.HTML(elem_id="announce", elem_classes="dg-aloud")
            self.results = _html("results", _EMPTY)
            self.strategy = _html("strategy")
            self.tried = _html("proposals")
            self.changed = _html("changes")
        with gr.Column(elem_classes="dg-card"):
            _head(4, "Ask both", "The same question to the base model and to the adapted one.")
            self.question = gr.Textbox(
                label="Question",
                placeholder="What month comes after April?",
                elem_id="side-question",
                lines=2,
            )
            self.options = gr.Textbox(
                label="Options",
                info="One a line, or with | between them; none: those of the examples",
                placeholder="May | June | July",
                elem_id="side-options",
                lines=2,
            )
            self.ask = gr.Button("Ask", interactive=False, elem_id="side-ask")
            self.answers = _html("side-answers")
        with gr.Column(elem_classes="dg-card"):
            _head(
                5,
                "Take it along",
                "A PEFT folder: Transformers, lm-evaluation-harness and vLLM open it too.",
            )
            self.download = gr.DownloadButton(
                "Download the adapter (zip)", interactive=False, elem_id="download"
            )
            self.code = gr.Code(
                label="Load it in PEFT",
                language="python",
                interactive=False,
                elem_id="peft-code",
                lines=3,
                wrap_lines=True,
                show_line_numbers=False,
                visible=False,
            )

    def _lay_out_below(self) -> None:
        with gr.Column(elem_classes="dg-card"):
            _head(6, "Your adaptations", "Of this page; they are freed when it is closed.")
            self.history = _html("history", results.history((), None, 0))
            self.chosen = gr.Dropdown(
                [],
                label="Show, ask and download",
                elem_id="history-choice",
                visible=False,
            )
        with gr.Accordion(
            "How it compares: the trained baselines",
            open=False,
            elem_id="comparison-panel",
            elem_classes="dg-panel",
        ) as self.baselines:
            self.comparison = _html(
                "comparison", note("It is read from MLflow when this is opened.")
            )

    # --- what happens -----------------------------------------------------------------------------

    def _connect(self, app: gr.Blocks) -> None:
        read = [self.summary, self.skip, self.parsed, self.held_out, self.adapt, self.error]
        gr.on(
            [self.text.change, self.skip.change],
            self._read,
            [self.text, self.source, self.skip, self.wanted],
            read,
            trigger_mode="always_last",
            **_READ,
        )
        self.held_out.input(lambda value: value, self.held_out, self.wanted, **_READ)
        self.file.upload(
            self._upload,
            self.file,
            [self.text, self.source, self.file, self.summary, self.error],
            **_READ,
        )
        # what is typed over a file's text is not of the file's layout any longer
        self.text.input(lambda: "", None, self.source, trigger_mode="always_last", **_READ).then(
            self._read, [self.text, self.source, self.skip, self.held_out], read, **_READ
        )
        self.use.click(
            self._use,
            self.task,
            [self.text, self.source, self.file, self.held_out, self.wanted, self.error],
            **_READ,
        )
        shown = [self.results, self.strategy, self.tried, self.changed]
        mine = [self.history, self.chosen, self.download, self.code, self.ask, self.answers]
        adapting = self.adapt.click(
            self._adapt,
            [
                self.text,
                self.source,
                self.skip,
                self.held_out,
                self.pair,
                self.rounds,
                self.proposals,
                self.seconds,
            ],
            [
                *shown,
                *mine,
                self.error,
                self.queue,
                self.progress,
                self.announce,
                self.adapt,
                self.cancel,
            ],
            concurrency_limit=None,
            js=_TO_RESULTS,
            **_READ,
        )
        adapting.then(self._ready, [self.text, self.source, self.skip], self.adapt, **_READ)
        self.cancel.click(
            self._cancel,
            [self.text, self.source, self.skip],
            [self.cancel, self.adapt, self.progress],
            queue=False,
            **_READ,
        )
        gr.on(
            [self.ask.click, self.options.submit, self.question.submit],
            self._ask,
            [self.chosen, self.question, self.options],
            [*mine, self.error],
            concurrency_limit=max(2, self.desk.settings.concurrency),
            **_READ,
        )
        self.chosen.input(
            self._choose, self.chosen, [*shown, *mine, self.error, self.progress], **_READ
        )
        self.baselines.expand(self.comparisons.show, None, self.comparison, **_READ)

    def _read(
        self, text: str, source: str, skip: bool, wanted: float | None, request: gr.Request
    ) -> Updates:
        off: Updates = {
            self.parsed: "",
            self.skip: gr.Checkbox(visible=False),
            self.adapt: gr.Button(interactive=False),
            self.error: "",
        }
        if not text.strip():
            return {**off, self.summary: ""}
        try:
            pasted = self.desk.read(text, _name(text, source))
        except DegamlError as error:
            return {**off, self.summary: alert(str(error))}
        good, wrong, most = (
            len(pasted.examples),
            len(pasted.mistakes),
            self.desk.settings.max_examples,
        )
        more = ""
        if good > most:
            more = f"The page takes at most {most} examples; these are {good}. Remove some."
        elif good < 2:
            more = "At least 2 examples are needed; add some."
        told, fits = reading.summary(pasted, more), not more
        highest = max(1, min(good, most) - 2)
        wanted = wanted or 0
        value = wanted if wanted <= highest else min(highest, good // 4)
        return {
            self.summary: told,
            self.skip: gr.Checkbox(visible=wrong > 0 and fits),
            self.parsed: reading.parsed_table(pasted),
            self.held_out: gr.Slider(maximum=highest, value=value),
            self.adapt: gr.Button(
                interactive=fits and (not wrong or skip) and not self.desk.runs.busy(_key(request))
            ),
            self.error: "",
        }

    def _ready(self, text: str, source: str, skip: bool, request: gr.Request) -> Any:
        """Whether Adapt can be pressed again: the text may have been edited meanwhile."""
        return self._read(text, source, skip, None, request)[self.adapt]

    def _upload(self, file: str | None) -> Updates:
        if file is None:
            return {self.source: ""}
        path = Path(file)
        try:
            text = self.desk.read_upload(path)
            return {self.text: text, self.source: f"{_digest(text)} {path.name}", self.error: ""}
        except DegamlError as error:
            return {self.summary: alert(str(error)), self.source: "", self.file: None}
        finally:
            # the text is all that is needed of it
            path.unlink(missing_ok=True)

    def _use(self, task: str | None) -> Updates:
        try:
            text = self.desk.ready_text(task or "")
        except DegamlError as error:
            return {self.error: alert(str(error))}
        return {
            self.text: text,
            self.source: "",
            self.file: None,
            self.held_out: gr.Slider(maximum=self.desk.settings.max_examples, value=READY_HELD_OUT),
            self.wanted: READY_HELD_OUT,
            self.error: "",
        }

    async def _adapt(
        self,
        text: str,
        source: str,
        skip: bool,
        held_out: float,
        pair: str,
        rounds: float,
        proposals: float,
        seconds: float,
        request: gr.Request,
    ) -> AsyncIterator[Updates]:
        key = _key(request)
        try:
            run = await asyncio.to_thread(
                self.desk.start,
                key,
                text,
                name=_name(text, source),
                held_out=round(held_out or 0),
                pair=pair,
                budget=Budget(round(rounds or 0), round(proposals or 0), seconds or 0),
                skip_mistakes=skip,
            )
        except DegamlError as error:
            yield {self.error: alert(str(error))}
            return
        last: Updates = {}

        def changed(updates: Updates) -> Updates:
            new = {part: value for part, value in updates.items() if last.get(part, ...) != value}
            last.update(new)
            return new

        yield {
            self.adapt: gr.Button(interactive=False),
            self.cancel: gr.Button(interactive=True),
            **changed({self.error: "", self.results: "", self.strategy: "", self.tried: ""}),
            self.changed: "",
            self.progress: note("Starting …"),
        }
        kept = None
        async for made in self.desk.follow(key, run):
            kept = made
            for progress in [*run.take_news(), None]:
                if new := changed(self._progress(run, progress)):
                    yield new
        if kept is not None:
            yield await asyncio.to_thread(self._all, key, kept)
        yield {
            self.cancel: gr.Button("Cancel", interactive=False),
            self.queue: "",
            **({} if run.state == "done" else self._stopped(run)),
        }

    def _progress(self, run: QueuedAdaptation, progress: Progress | None) -> Updates:
        """What is known so far."""
        updates: Updates = {self.queue: results.waiting_line(self.desk.runs.ahead(run))}
        if progress is None:
            return updates
        report = progress.report
        return {
            **updates,
            self.progress: results.progress_bar(progress),
            self.announce: escape(progress.message)
            if progress.stage != "trying"
            else "Trying strategies",
            self.results: results.accuracies(report),
            self.tried: results.proposals(report),
        }

    def _stopped(self, run: QueuedAdaptation) -> Updates:
        if run.state == "cancelled":
            return {
                self.progress: note(run.error),
                self.announce: escape(run.error),
                self.results: _EMPTY,
                self.tried: "",
            }
        return {self.progress: "", self.error: alert(run.error)}

    def _cancel(self, text: str, source: str, skip: bool, request: gr.Request) -> Updates:
        key = _key(request)
        if self.desk.runs.busy(key):
            self.desk.runs.cancel(key)
            return {self.cancel: gr.Button("Stopping …", interactive=False)}
        # the page has not heard of the end
        return {
            self.cancel: gr.Button("Cancel", interactive=False),
            self.adapt: self._ready(text, source, skip, request),
            self.progress: note("It is not under way any longer; press Adapt again."),
        }

    def _all(self, key: str, kept: Kept) -> Updates:
        """Everything about one of the visitor's models."""
        report = kept.report
        models = self.desk.visitors.all_of(key)
        return {
            self.results: results.accuracies(report, kept.seen),
            self.strategy: results.strategy(report, kept.model.explain()),
            self.tried: results.proposals(report),
            self.changed: results.changes(report),
            self.history: results.history(models, kept.id, self.desk.visitors.freed(key)),
            self.chosen: gr.Dropdown(
                [(_model_label(one), one.id) for one in reversed(models)],
                value=kept.id,
                visible=True,
            ),
            self.download: gr.DownloadButton(
                f"Download adapter {kept.number} (zip)",
                value=str(self.desk.archive(key, kept.id)),
                interactive=True,
            ),
            self.code: gr.Code(peft_code(report.base_model), visible=True),
            self.ask: gr.Button(interactive=True),
            self.answers: "",
        }

    def _choose(self, model: str, request: gr.Request) -> Updates:
        key = _key(request)
        try:
            kept = self.desk.visitors.find(key, model)
            return {**self._all(key, kept), self.progress: "", self.error: ""}
        except UnknownModelError as error:
            return {**self._without(key), self.error: alert(str(error))}
        except DegamlError as error:
            return {self.error: alert(str(error))}

    def _without(self, key: str) -> Updates:
        """What is there after all, where a model that the page shows is not."""
        models = self.desk.visitors.all_of(key)
        return {
            self.history: results.history(models, None, self.desk.visitors.freed(key)),
            self.chosen: gr.Dropdown(
                [(_model_label(one), one.id) for one in reversed(models)],
                value=None,
                visible=bool(models),
            ),
            self.download: gr.DownloadButton(
                "Download the adapter (zip)", value=None, interactive=False
            ),
            self.code: gr.Code(visible=False),
            self.ask: gr.Button(interactive=False),
            self.answers: "",
        }

    def _ask(self, model: str | None, question: str, options: str, request: gr.Request) -> Updates:
        key = _key(request)
        try:
            asked, base, adapted, kept = self.desk.ask(
                key, model or "", question, options_of(options)
            )
        except UnknownModelError as error:
            return {**self._without(key), self.answers: alert(str(error))}
        except DegamlError as error:
            return {self.answers: alert(str(error))}
        return {
            self.answers: results.answers(asked, base, adapted, f"#{kept.number}"),
            self.error: "",
        }


def _digest(text: str) -> str:
    # a browser has its own line ends
    return hashlib.sha256("\n".join(text.splitlines()).encode("utf-8", "replace")).hexdigest()


def _name(text: str, source: str) -> str:
    """The name of the file that the text came from; empty where it was edited since."""
    digest, _, name = source.partition(" ")
    return name if name and digest == _digest(text) else ""


def _key(request: gr.Request) -> str:
    return str(request.session_hash)


def _html(elem_id: str, value: str = "") -> gr.HTML:
    return gr.HTML(value, elem_id=elem_id, apply_default_css=False)


def _head(number: int, title: str, lead: str = "") -> None:
    told = f'<p class="dg-lead">{lead}</p>' if lead else ""
    gr.HTML(
        f'<div class="dg-head"><span aria-hidden="true">{number}</span><h2>{title}</h2></div>{told}',
        apply_default_css=False,
    )


def _task_label(task: ReadyTask, known: frozenset[str]) -> str:
    return f"trained on · {task.title}" if task.name in known else task.title


def _model_label(kept: Kept) -> str:
    return f"#{kept.number} · {' '.join(kept.title.split())[:60]}"
