"""The app's endpoints for programs: the same desk, JSON in and out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
from gradio.events import api
from pydantic import TypeAdapter, ValidationError

from degaml_kedro.errors import DegamlError
from degaml_kedro.session import Budget
from demo.desk import PROPOSALS, ROUNDS, Desk
from demo.runs import QueuedAdaptation


def add_endpoints(desk: Desk) -> None:
    """Add them to the page that is being laid out.

    Args:
        desk: serves them.
    """
    endpoints = _Endpoints(desk)
    api(endpoints.tasks, api_name="tasks")
    api(endpoints.task, api_name="task")
    api(endpoints.read, api_name="read")
    api(endpoints.adapt, api_name="adapt", concurrency_limit=None)
    api(endpoints.cancel, api_name="cancel", queue=False)
    api(endpoints.predict, api_name="predict", concurrency_limit=2)
    api(endpoints.forget, api_name="forget")
    # a file is served by a component alone
    model, archive = gr.Textbox(visible=False), gr.File(visible=False)
    gr.on(
        [model.submit],
        endpoints.download,
        model,
        archive,
        api_name="download",
        api_description="A model of this session as a zip: a PEFT folder, and what PEFT does not know beside it.",
    )


class _Endpoints:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def tasks(self) -> list[dict[str, Any]]:
        """The ready tasks."""
        return [
            {
                "name": task.name,
                "title": task.title,
                "description": task.description,
                "seen": task.seen,
            }
            for task in self._desk.tasks
        ]

    def task(self, name: str, seed: int = 0) -> str:
        """A ready task's examples as text for /adapt; the first 20 are meant to be adapted to."""
        try:
            return self._desk.ready_text(_typed("name", name, str), _typed("seed", seed, int))
        except DegamlError as error:
            raise _refused(error) from error

    def read(self, text: str, name: str = "") -> dict[str, Any]:
        """Examples as they are understood: text, JSON, JSON lines or CSV; a file's name may decide which."""
        try:
            pasted = self._desk.read(_typed("text", text, str), _typed("name", name, str))
        except DegamlError as error:
            raise _refused(error) from error
        rows = []
        for row in pasted.rows:
            one = row.example
            example = None
            if one is not None:
                example = {"prompt": one.prompt, "options": list(one.options), "gold": one.gold}
            rows.append(
                {"line": row.line, "shown": row.shown, "mistake": row.mistake, "example": example}
            )
        return {
            "layout": pasted.layout,
            "examples": len(pasted.examples),
            "mistakes": len(pasted.mistakes),
            "unread": list(pasted.unread),
            "rows": rows,
        }

    async def adapt(
        self,
        text: str,
        request: gr.Request,
        held_out: int = 0,
        pair: str = "",
        rounds: int = ROUNDS,
        proposals: int = PROPOSALS,
        seconds: float = 60,
        seed: int = 0,
    ) -> AsyncIterator[dict[str, Any]]:
        """Adapt to examples; tells how far it is, and at last the model's id and the report."""
        key = str(request.session_hash)
        desk = self._desk
        try:
            run = await asyncio.to_thread(
                desk.start,
                key,
                _typed("text", text, str),
                held_out=_typed("held_out", held_out, int),
                pair=_typed("pair", pair, str | None) or None,
                budget=Budget(
                    _typed("rounds", rounds, int),
                    _typed("proposals", proposals, int),
                    min(_typed("seconds", seconds, float), desk.settings.max_seconds),
                ),
                seed=_typed("seed", seed, int),
            )
        except DegamlError as error:
            raise _refused(error) from error
        last: dict[str, Any] = {}
        kept = None
        async for kept in desk.follow(key, run):
            now = _standing(desk, run)
            if kept is None and now != last:
                last = now
                yield now
        if kept is None:
            raise gr.Error(run.error or "Stopped.", print_exception=False)
        yield {
            "state": "done",
            "model": kept.id,
            "number": kept.number,
            "report": kept.report.as_json(),
            "explanation": kept.model.explain(),
            "trained_on": kept.seen,
        }

    def cancel(self, request: gr.Request) -> dict[str, Any]:
        """Stop this session's adaptation."""
        self._desk.runs.cancel(str(request.session_hash))
        return {"cancelled": True}

    async def predict(
        self, model: str, question: str, options: list[str], request: gr.Request
    ) -> dict[str, Any]:
        """Ask a model of this session, and the base model, one question; no options: those of its examples."""
        try:
            _, base, adapted, kept = await asyncio.to_thread(
                self._desk.ask,
                str(request.session_hash),
                _typed("model", model, str),
                _typed("question", question, str),
                _typed("options", options, list[str]),
            )
        except DegamlError as error:
            raise _refused(error) from error
        return {
            "model": kept.id,
            "base": {"choice": base.choice, "text": base.text, "probabilities": base.probabilities},
            "adapted": {
                "choice": adapted.choice,
                "text": adapted.text,
                "probabilities": adapted.probabilities,
            },
        }

    def download(self, model: str, request: gr.Request) -> str:
        try:
            return str(self._desk.archive(str(request.session_hash), model))
        except DegamlError as error:
            raise _refused(error) from error

    def forget(self, request: gr.Request, model: str = "") -> dict[str, Any]:
        """Free a model of this session, or all that it has."""
        key = str(request.session_hash)
        try:
            if model:
                self._desk.visitors.drop(key, _typed("model", model, str))
            else:
                self._desk.leave(key)
        except DegamlError as error:
            raise _refused(error) from error
        return {"models": len(self._desk.visitors.all_of(key))}


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value, which Gradio passes on as it came."""
    try:
        return TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        told = kind.__name__ if isinstance(kind, type) else kind
        raise DegamlError(f"'{name}' is to be of type {told}; mend the request") from error


def _standing(desk: Desk, run: QueuedAdaptation) -> dict[str, Any]:
    found: dict[str, Any] = {"state": run.state, "queue": desk.runs.ahead(run)}
    if run.progress is not None:
        progress = run.progress
        found |= {
            "stage": progress.stage,
            "message": progress.message,
            "share": progress.share,
            "seconds": progress.seconds,
            "seconds_left": progress.seconds_left,
            "report": progress.report.as_json(),
        }
    return found


def _refused(error: DegamlError) -> gr.Error:
    return gr.Error(str(error), print_exception=False)
