"""The page: its parts, and what happens when they are used."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo.service import (
    MAX_PROPOSALS,
    MAX_ROUNDS,
    PROPOSALS,
    READY_HELD_OUT,
    ROUNDS,
    Adaptation,
    Service,
    UnknownModelError,
    options_of,
    own_folder,
)

# before Gradio is imported: nothing is reported to anybody
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# seconds after which a page that was closed is noticed
os.environ.setdefault("GRADIO_HEARTBEAT_INTERVAL", "5")
# Gradio serves files from here without copying them
os.environ["GRADIO_TEMP_DIR"] = own_folder()

import gradio as gr
from fastapi.exceptions import RequestValidationError
from gradio.themes import Base
from gradio.themes.utils import colors, sizes
from starlette.middleware import Middleware

from degaml_kedro.checkpoint.card import peft_code
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.session import Budget, Progress
from demo import DemoSettings
from demo.api import (
    VisitorTokens,
    add_endpoints,
    check_values,
    invalid_request,
    refusal,
    token_of,
)
from demo.views import escape, newest_comparison, render

Values = dict[Any, Any]

_PLACEHOLDER = """What month comes after March? => April
What month comes after June? => July
…"""
_HOW = (
    "One example a line: <code>question =&gt; answer</code>, or with options of its own: "
    "<code>question | option | right one* | option</code>. JSON, JSON lines and CSV are read too, pasted or as a file."
)
_HELD_OUT = 5
_PASTED = (0, "")
_EMPTY = (
    '<div class="dg-empty">Nothing has been adapted yet. Results appear here, step by step.</div>'
)
_DOWNLOAD = "Download the adapter (zip)"
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
_QUIETLY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


# the color of each of the theme's parts, by day and by night; some are the style sheet's
_COLORS = {
    "var(--dg-ink)": "body_text_color block_title_text_color button_secondary_text_color",
    "var(--dg-quiet)": "body_text_color_subdued block_label_text_color block_info_text_color",
    "var(--dg-line)": "border_color_primary block_border_color",
    "var(--dg-card)": "background_fill_primary",
    "var(--dg-adapted)": "button_primary_background_fill input_border_color_focus slider_color link_text_color",
    "light-dark(#115e59, #99f6e4)": "button_primary_background_fill_hover",
    "light-dark(#ffffff, #06231f)": "button_primary_text_color",
    "light-dark(#ffffff, #262b30)": "button_secondary_background_fill",
    "light-dark(#efece4, #343a41)": "button_secondary_background_fill_hover",
    "light-dark(#8c8a84, #666d75)": "input_border_color button_secondary_border_color",
    "light-dark(#ffffff, #14171a)": "input_background_fill",
    "light-dark(#fbfaf7, #181b1f)": "background_fill_secondary",
    "light-dark(#6b6f74, #969ba1)": "input_placeholder_color",
    "light-dark(#f7f5f0, #14171a)": "body_background_fill",
    "transparent": "block_background_fill block_label_background_fill",
}
# of the system: nothing is fetched
_SANS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def _theme() -> Base:
    """Paper and ink, and one strong color for what is to be pressed."""
    theme = Base(
        primary_hue=colors.teal,
        secondary_hue=colors.teal,
        neutral_hue=colors.stone,
        text_size=sizes.text_md,
        radius_size=sizes.radius_md,
        font=_SANS,
        font_mono=_MONO,
    )
    parts = {part: color for color, every in _COLORS.items() for part in every.split()}
    # a part without a value of its own by night would get Gradio's
    night = {f"{part}_dark": value for part, value in parts.items()}
    return theme.set(
        **parts,
        **night,
        block_border_width="0px",
        block_label_border_width="0px",
        block_label_padding="0px",
        block_padding="0px",
        block_shadow="none",
        block_title_text_weight="600",
        button_border_width="1px",
        form_gap_width="14px",
        input_border_width="1px",
        layout_gap="14px",
    )


class DemoApp(gr.Blocks):
    """The page over a service of its own, which starts as the settings say."""

    def __init__(self, settings: DemoSettings) -> None:
        """Load a pair, and lay out the page.

        Raises:
            DegamlError: no pair can be loaded.
        """
        downloads = Path(os.environ["GRADIO_TEMP_DIR"], f"downloads-{secrets.token_urlsafe(16)}")
        service = Service(settings, downloads)
        # uploads and zips are deleted with their visitors; this is for what a killed client left
        age = settings.session_ttl
        super().__init__(
            title="degaml · adapters from a few examples",
            analytics_enabled=False,
            fill_width=True,
            delete_cache=(min(600, age), age),
        )
        self.service = service
        with self:
            _Page(service, self)
            add_endpoints(service)
        self.queue(default_concurrency_limit=4, api_open=False)

    def launch(self, **options: Any) -> Any:  # type: ignore[override]
        """Start the server; options are Gradio's."""
        settings = self.service.settings
        defaults = {
            "server_name": settings.host,
            "server_port": settings.port or None,
            "theme": _theme(),
            "css_paths": Path(__file__).with_name("style.css"),
            "js": _ACCESSIBLE,
            "share": False,
            "quiet": True,
            "ssr_mode": False,
            "run_history": False,
            "enable_monitoring": False,
            "footer_links": ["api"],
            "max_file_size": 4 * settings.max_characters,
            # what Gradio remembers of sessions is only let go when there are so many newer ones
            "state_session_capacity": 500,
            "app_kwargs": {
                "middleware": [Middleware(VisitorTokens, service=self.service)],
                "exception_handlers": {RequestValidationError: invalid_request},
            },
        }
        return super().launch(**(defaults | options))

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Refuse values of a request that are too few, where Gradio answers with ``null``, or of another type.

        Raises:
            gr.Error: which ones.
        """
        wanted, given = len(block_fn.inputs), len(inputs)
        if given < wanted:
            raise refusal(
                f"'/{block_fn.api_name}' takes {wanted} value(s), and 'data' has {given}; give all of them, in the "
                "order that the link in the page's footer shows"
            )
        # what is made by gr.api; what components pass on they have checked
        if not block_fn.preprocess:
            check_values(block_fn.fn, inputs)

    async def call_function(self, *args: Any, **options: Any) -> Any:
        """Carry out a request.

        Raises:
            gr.Error: what cannot be done, as a sentence.
        """
        try:
            return await super().call_function(*args, **options)
        except DegamlError as error:
            raise refusal(error) from error

    def close(self, verbose: bool = True) -> None:
        """Stop the server and all that goes on."""
        self.service.close()
        super().close(verbose)


class _Page:
    """The parts of the page; what they do is the service's."""

    # --- layout -----------------------------------------------------------------------------------

    def __init__(self, service: Service, app: gr.Blocks) -> None:
        self.service = service
        session = service.pairs.session(service.pairs.labels[0])
        _html(None, render("header", session.base_model))
        # the file that the text came from: a digest of the text, and the name
        self.source = gr.State(_PASTED)
        # what the visitor set: the slider follows what a shorter text leaves room for, and comes back
        self.wanted = gr.State(_HELD_OUT)
        # whether an adaptation has been followed on this page
        self.followed = gr.State(False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                self._lay_out_examples(service.trained_on(session))
                self._lay_out_adapt()
            with gr.Column(scale=6, min_width=300):
                self._lay_out_results()
        self._lay_out_below()
        self._connect(app)

    def _lay_out_examples(self, known: frozenset[str]) -> None:
        tasks = list(self.service.tasks.values())
        with _card(1, "Examples", _HOW):
            self.text = gr.Textbox(
                label="Your examples",
                lines=8,
                max_lines=12,
                placeholder=_PLACEHOLDER,
                elem_id="examples-text",
                info=f"At most {self.service.settings.max_examples} examples. Nothing is passed on to other services.",
            )
            with gr.Row(equal_height=True):
                self.task = gr.Dropdown(
                    [
                        ("trained on · " * (one.name in known) + one.title, one.name)
                        for one in tasks
                    ],
                    value=tasks[0].name if tasks else None,
                    label="… or a ready task",
                    elem_id="ready-task",
                    scale=3,
                    min_width=180,
                )
                self.use = gr.Button("Use it", elem_id="use-ready", scale=1, min_width=90)
            self.file = gr.File(
                label="… or a file: .txt, .json, .jsonl, .csv", elem_id="examples-file", height=150
            )
            self.summary = _html("parse-summary")
            self.skip = gr.Checkbox(
                label="Leave out the lines with mistakes", elem_id="skip-mistakes", visible=False
            )
            self.parsed = _html("parsed-table")

    def _lay_out_adapt(self) -> None:
        limits, labels = self.service.settings, self.service.pairs.labels
        with _card(
            2, "Adapt", "What is held out is not adapted to: it shows what the adapter is worth."
        ):
            most = limits.max_examples - 2
            self.held_out = _slider("Examples to hold out", "held-out", 0, most, _HELD_OUT)
            self.pair = gr.Dropdown(
                labels,
                value=labels[0],
                label="Generator and policy",
                elem_id="pair",
                interactive=len(labels) > 1,
            )
            with gr.Accordion("Budget", open=False, elem_id="budget"):
                told = (
                    "The best strategy of a round is carried out; the next round starts from there."
                )
                self.rounds = _slider("Rounds", "budget-rounds", 1, MAX_ROUNDS, ROUNDS, told)
                self.proposals = _slider(
                    "Proposals a round", "budget-proposals", 1, MAX_PROPOSALS, PROPOSALS
                )
                least, most = min(5, limits.max_seconds), limits.max_seconds
                self.seconds = _slider(
                    "Seconds of trying", "budget-seconds", least, most, min(60, most)
                )
            self.adapt = gr.Button("Adapt", variant="primary", interactive=False, elem_id="adapt")

    def _lay_out_results(self) -> None:
        with _card(3, "What happened", elem_id="happened"):
            self.error = _html("error")
            self.queue = _html("queue")
            self.progress = _html("progress")
            self.cancel = gr.Button("Cancel", interactive=False, elem_id="cancel", size="sm")
            self.announce = gr.HTML(elem_id="announce", elem_classes="dg-aloud")
            self.results = _html("results", _EMPTY)
            self.outcome = _html("outcome")
        with _card(4, "Ask both", "The same question to the base model and to the adapted one."):
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
        told = "A PEFT folder: Transformers, lm-evaluation-harness and vLLM open it too."
        with _card(5, "Take it along", told):
            self.download = gr.DownloadButton(_DOWNLOAD, interactive=False, elem_id="download")
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
        with _card(6, "Your adaptations", "Of this browser, until its pages are closed."):
            self.history = _html("history", render("history", (), None, 0))
            self.chosen = gr.Dropdown(
                [], label="Show, ask and download", elem_id="history-choice", visible=False
            )
        with gr.Accordion(
            "How it compares: the trained baselines",
            open=False,
            elem_id="comparison-panel",
            elem_classes="dg-panel",
        ) as self.baselines:
            self.comparison = _html(
                "comparison", render("note", "It is read from MLflow when this is opened.")
            )

    # --- what happens -----------------------------------------------------------------------------

    def _connect(self, app: gr.Blocks) -> None:
        # inputs that are a set arrive as one dictionary
        text: set[Any] = {self.text, self.source, self.skip, self.wanted}
        read = [self.summary, self.skip, self.parsed, self.held_out, self.adapt, self.error]
        gr.on(
            [self.text.change, self.skip.change],
            self._read,
            text,
            read,
            trigger_mode="always_last",
            **_QUIETLY,
        )
        filled = [self.text, self.source, self.file]
        self.file.upload(self._upload, self.file, [*filled, self.summary, self.error], **_QUIETLY)
        self.use.click(self._use, self.task, [*filled, self.held_out, self.wanted], **_QUIETLY)
        self.held_out.input(lambda value: value, self.held_out, self.wanted, **_QUIETLY)
        shown = [self.results, self.outcome, self.progress, self.error]
        mine = [self.history, self.chosen, self.download, self.code, self.ask, self.answers]
        buttons = [self.adapt, self.cancel]
        followed = [*shown, *mine, *buttons, self.queue, self.announce, self.followed]
        budget: set[Any] = {self.held_out, self.pair, self.rounds, self.proposals, self.seconds}
        # the service has a queue of its own
        adapting = self.adapt.click(
            self._adapt,
            text | budget,
            followed,
            concurrency_limit=None,
            js=_TO_RESULTS,
            **_QUIETLY,
        )
        # what is the visitor's is there again when the page is
        coming = app.load(self._resume, None, followed, concurrency_limit=None, **_QUIETLY)
        for event in (adapting, coming):
            event.then(self._ready, text | {self.followed}, self.adapt, **_QUIETLY)
        self.cancel.click(
            self._cancel, text, [self.cancel, self.adapt, self.progress], queue=False, **_QUIETLY
        )
        gr.on(
            [self.ask.click, self.options.submit, self.question.submit],
            self._ask,
            [self.chosen, self.question, self.options],
            [*mine, self.error],
            concurrency_limit=max(2, self.service.settings.concurrency),
            concurrency_id="ask",
            **_QUIETLY,
        )
        self.chosen.input(self._choose, self.chosen, [*shown, *mine], **_QUIETLY)
        self.baselines.expand(self._compare, None, self.comparison, concurrency_limit=1, **_QUIETLY)

    def _read(self, values: Values, request: gr.Request) -> Values:
        text, most = values[self.text], self.service.settings.max_examples
        off: Values = {
            self.parsed: "",
            self.skip: gr.Checkbox(visible=False),
            self.adapt: gr.Button(interactive=False),
            self.error: "",
        }
        if not text.strip():
            return {**off, self.summary: ""}
        try:
            pasted = self.service.read(text, self._file_name(values))
        except DegamlError as error:
            return {**off, self.summary: _alert(error)}
        good, wrong, more = len(pasted.examples), bool(pasted.mistakes), ""
        if good > most:
            more = f"The page takes at most {most} examples; these are {good}. Remove some."
        elif good < 2:
            more = "At least 2 examples are needed; add some."
        highest, wanted = max(1, min(good, most) - 2), values[self.wanted] or 0
        held_out = wanted if wanted <= highest else min(highest, good // 4)
        usable = not more and (not wrong or values[self.skip])
        busy = self.service.run_of(token_of(request)) is not None
        return {
            self.summary: render("summary", pasted, more),
            self.skip: gr.Checkbox(visible=wrong and not more),
            self.parsed: render("parsed_table", pasted),
            self.held_out: gr.Slider(maximum=highest, value=held_out),
            self.adapt: gr.Button(interactive=usable and not busy),
            self.error: "",
        }

    def _file_name(self, values: Values) -> str:
        """The name of the file that the text came from; empty where it was edited since."""
        digest, name = values[self.source]
        return name if digest == _digest(values[self.text]) else ""

    def _ready(self, values: Values, request: gr.Request) -> Any:
        """Whether Adapt can be pressed again, once an adaptation is over: the text may have been edited meanwhile."""
        if not values[self.followed]:
            # a page that has just been opened: what it is told of its first text may be on its way
            return gr.skip()
        return self._read(values, request)[self.adapt]

    def _upload(self, file: str | None) -> Values:
        if file is None:
            return {self.source: _PASTED}
        path = Path(file)
        try:
            text = self.service.read_upload(path)
            return {self.text: text, self.source: (_digest(text), path.name), self.error: ""}
        except DegamlError as error:
            return {self.summary: _alert(error), self.source: _PASTED, self.file: None}
        finally:
            # the text is all that is needed of it
            path.unlink(missing_ok=True)

    def _use(self, task: str) -> Values:
        most = self.service.settings.max_examples
        return {
            self.text: self.service.ready_text(task),
            self.source: _PASTED,
            self.file: None,
            self.held_out: gr.Slider(maximum=most, value=READY_HELD_OUT),
            self.wanted: READY_HELD_OUT,
        }

    async def _adapt(self, values: Values, request: gr.Request) -> AsyncIterator[Values]:
        count = {
            part: round(values[part] or 0) for part in (self.held_out, self.rounds, self.proposals)
        }
        try:
            run = await asyncio.to_thread(
                self.service.start,
                token_of(request),
                values[self.text],
                name=self._file_name(values),
                held_out=count[self.held_out],
                pair=values[self.pair],
                budget=Budget(count[self.rounds], count[self.proposals], values[self.seconds] or 0),
                skip_mistakes=values[self.skip],
            )
        except DegamlError as error:
            yield {self.error: _alert(error)}
            return
        async for updates in self._follow(run):
            yield updates

    async def _resume(self, request: gr.Request) -> AsyncIterator[Values]:
        """What is the visitor's already, whose page was reloaded or is another one."""
        token = token_of(request)
        yield {self.error: ""}
        if models := self.service.models(token):
            yield await asyncio.to_thread(self._all, models[-1])
        if run := self.service.run_of(token):
            async for updates in self._follow(run):
                yield updates

    async def _follow(self, run: Adaptation) -> AsyncIterator[Values]:
        last: Values = {}

        def changed(updates: Values) -> Values:
            new = {part: value for part, value in updates.items() if last.get(part, ...) != value}
            last.update(new)
            return new

        yield {
            self.followed: True,
            self.adapt: gr.Button(interactive=False),
            self.cancel: gr.Button(interactive=True),
            **changed({self.error: "", self.results: "", self.outcome: ""}),
            self.progress: render("note", "Starting …"),
        }
        async for news in self.service.follow(run):
            place = {self.queue: render("queue", self.service.ahead(run))}
            for updates in (*map(self._standing, news), place):
                if new := changed(updates):
                    yield new
        if run.state == "done":
            yield await asyncio.to_thread(self._all, run)
        elif run.state == "cancelled":
            yield {
                self.progress: render("note", run.error),
                self.announce: str(escape(run.error)),
                self.results: _EMPTY,
                self.outcome: "",
            }
        else:
            yield {self.progress: "", self.error: _alert(run.error)}
        yield {self.cancel: gr.Button("Cancel", interactive=False), self.queue: ""}

    def _standing(self, progress: Progress) -> Values:
        """What is known so far."""
        trying = progress.stage == "trying"
        return {
            self.progress: render("progress", progress),
            self.announce: "Trying strategies" if trying else str(escape(progress.message)),
            self.results: render("accuracies", progress.report),
            self.outcome: render("outcome", progress.report),
        }

    def _cancel(self, values: Values, request: gr.Request) -> Values:
        token = token_of(request)
        if self.service.run_of(token):
            self.service.cancel(token)
            return {self.cancel: gr.Button("Stopping …", interactive=False)}
        # the page has not heard of the end
        return {
            self.cancel: gr.Button("Cancel", interactive=False),
            self.adapt: self._read(values, request)[self.adapt],
            self.progress: render("note", "It is not under way any longer; press Adapt again."),
        }

    def _all(self, kept: Adaptation) -> Values:
        """Everything about one of the visitor's models."""
        report, archive, failed = kept.model.report, None, {}
        try:
            archive = str(self.service.archive(kept.token, kept.id))
        except UnknownModelError:
            raise
        except DegamlError as error:
            failed = {self.error: _alert(error)}
        return {
            self.results: render("accuracies", report, kept.trained_on),
            self.outcome: render("outcome", report, kept.model.explain()),
            **self._mine(kept.token, kept, archive),
            **failed,
        }

    def _mine(
        self, token: str, kept: Adaptation | None = None, archive: str | None = None
    ) -> Values:
        """The visitor's models, with the one that is shown, asked and downloaded; None where it is gone."""
        models, chosen, code, label = self.service.models(token), None, None, _DOWNLOAD
        if kept is not None:
            chosen, code = kept.id, peft_code(kept.model.report.base_model)
            label = f"Download adapter {kept.number} (zip)" if archive else label
        return {
            self.history: render("history", models, chosen, self.service.count_freed(token)),
            self.chosen: gr.Dropdown(
                [(_model_label(one), one.id) for one in reversed(models)],
                value=chosen,
                visible=bool(models),
            ),
            self.download: gr.DownloadButton(label, value=archive, interactive=bool(archive)),
            self.code: gr.Code(code, visible=kept is not None),
            self.ask: gr.Button(interactive=kept is not None),
            self.answers: "",
        }

    def _choose(self, model: str, request: gr.Request) -> Values:
        token = token_of(request)
        try:
            return {self.progress: "", self.error: "", **self._all(self.service.find(token, model))}
        except UnknownModelError as error:
            return {**self._mine(token), self.error: _alert(error)}

    def _ask(self, model: str | None, question: str, options: str, request: gr.Request) -> Values:
        token = token_of(request)
        try:
            asked, base, adapted, kept = self.service.ask(
                token, model or "", question, options_of(options)
            )
        except UnknownModelError as error:
            return {**self._mine(token), self.answers: _alert(error)}
        except DegamlError as error:
            return {self.answers: _alert(error)}
        return {self.answers: render("answers", asked, base, adapted, kept.number), self.error: ""}

    def _compare(self) -> str:
        return newest_comparison(self.service.settings.tracking_uri, int(time.monotonic() // 60))


def _digest(text: str) -> int:
    # a browser has its own line ends
    return hash(tuple(text.splitlines()))


def _alert(error: object) -> str:
    return render("alert", str(error))


def _html(elem_id: str | None, value: str = "") -> gr.HTML:
    return gr.HTML(value, elem_id=elem_id, apply_default_css=False)


def _slider(
    label: str, elem_id: str, least: float, most: float, value: float, info: str | None = None
) -> gr.Slider:
    return gr.Slider(least, most, value, step=1, label=label, elem_id=elem_id, info=info)


@contextmanager
def _card(number: int, title: str, lead: str = "", elem_id: str | None = None) -> Iterator[None]:
    told = f'<p class="dg-lead">{lead}</p>' if lead else ""
    with gr.Column(elem_classes="dg-card", elem_id=elem_id):
        _html(
            None,
            f'<div class="dg-head"><span aria-hidden="true">{number}</span><h2>{title}</h2></div>{told}',
        )
        yield


def _model_label(kept: Adaptation) -> str:
    return f"#{kept.number} · {' '.join(kept.title.split())[:60]}"
