"""Who asks, and the page's endpoints for programs: the same service, JSON in and out.

A ``DegamlError`` is shown to who asks by :class:`demo.app.DemoApp`.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext
from typing import Any, get_type_hints

import gradio as gr
from fastapi.exceptions import RequestValidationError
from gradio.events import api
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from degaml_kedro.common.texts import printable
from degaml_kedro.session import Budget
from demo.service import PROPOSALS, ROUNDS, Adaptation, DemoError, Service

_COOKIE = "degaml_visitor"
_TOKEN = re.compile(r"[\w-]{32,64}")


def token_of(request: gr.Request) -> str:
    """The token of the visitor who asks: a browser's cookie, or the session of a program."""
    return request.state.visitor or str(request.session_hash)


class VisitorTokens:
    """Middleware that gives each browser a token, and notes for each request whose it is.

    Gradio's session is one load of a page, and at the same time the stream of its answers. A browser has a cookie
    besides, so that what is its visitor's outlives a reload. Programs name the visitor by the session of their
    requests; where each request has a stream of its own (``/call``), the session is taken off it, for otherwise
    requests at the same time would read each other's answers. The service is told who has a page open.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, path = Request(scope, receive), scope["path"]
        token = request.cookies.get(_COOKIE, "")
        if not _TOKEN.fullmatch(token):
            token = ""
        if scope["method"] == "POST" and "/gradio_api/call/" in path:
            session, body = _without_session(await request.body())
            token, receive = session or token, _replayed(body, receive)
        elif scope["method"] == "GET" and not token:
            send = _giving_cookie(send, scope["scheme"] == "https")
        scope.setdefault("state", {})["visitor"] = token
        # a page or a client has a connection that is open as long as it is
        _, heartbeat, session = path.rpartition("/heartbeat/")
        open_page = self._service.connected(token or session) if heartbeat else nullcontext()
        with open_page:
            await self._app(scope, receive, send)


def _without_session(body: bytes) -> tuple[str, bytes]:
    """The session that a request names, and the request without it."""
    try:
        asked = json.loads(body)
        session = asked.pop("session_hash", None)
    except (ValueError, AttributeError, TypeError, RecursionError):
        # Gradio refuses what is no object
        return "", body
    # an empty one goes, too: Gradio has no stream for it
    if not isinstance(session, str):
        return "", body
    return session, json.dumps(asked).encode()


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What an app receives of a request whose body has been read: that body, and then what comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def _giving_cookie(send: Send, secure: bool) -> Send:
    """Add a new visitor's cookie to an answer that is a page; scripts and other sites cannot read or use it."""

    async def send_with_cookie(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if headers.get("content-type", "").startswith("text/html"):
                cookie = f"{_COOKIE}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; SameSite=Lax"
                headers.append("set-cookie", cookie + "; Secure" * secure)
        await send(message)

    return send_with_cookie


def add_endpoints(service: Service) -> None:
    """Add the service's endpoints to the page that is being laid out."""
    endpoints = _Endpoints(service)
    api(endpoints.tasks)
    api(endpoints.task)
    api(endpoints.read)
    api(endpoints.adapt, concurrency_limit=None)
    api(endpoints.cancel, queue=False)
    asking = max(2, service.settings.concurrency)
    api(endpoints.predict, concurrency_limit=asking, concurrency_id="ask")
    api(endpoints.forget)
    # a file is served by a component alone
    model, archive = gr.Textbox(visible=False), gr.File(visible=False)
    model.submit(
        endpoints.download,
        model,
        archive,
        api_name="download",
        api_description="A model of this visitor as a zip: a PEFT folder, and what PEFT does not know beside it.",
    )


async def invalid_request(_: Request, error: Exception) -> JSONResponse:
    """The answer to a body that no endpoint takes; FastAPI's own fails at one that is not UTF-8."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    fix = "the body is to be JSON in UTF-8, with 'data', a list of the endpoint's values"
    return JSONResponse({"detail": f"{printable(told)}; {fix}"}, 422)


def refusal(told: object) -> gr.Error:
    """What cannot be done, as Gradio shows it; the log says nothing of it."""
    return gr.Error(str(told), print_exception=False)


def check_values(endpoint: Callable[..., Any], values: Sequence[Any]) -> None:
    """Check the values of a request, which Gradio passes to an endpoint as they came.

    Raises:
        gr.Error: one is of another type than the endpoint's annotation.
    """
    hints = get_type_hints(endpoint)
    del hints["return"]
    kinds = [(name, kind) for name, kind in hints.items() if kind is not gr.Request]
    for (name, kind), value in zip(kinds, values, strict=False):
        try:
            TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            told = kind.__name__ if isinstance(kind, type) else kind
            raise refusal(f"'{name}' is to be of type {told}; mend the request") from error


class _Endpoints:
    def __init__(self, service: Service) -> None:
        self._service = service

    def tasks(self) -> list[dict[str, Any]]:
        """The ready tasks."""
        names = ("name", "title", "description", "seen")
        return [_fields(task, *names) for task in self._service.tasks.values()]

    def task(self, name: str, seed: int = 0) -> str:
        """A ready task's examples as text for /adapt; the first 20 are meant to be adapted to."""
        return self._service.ready_text(name, seed)

    def read(self, text: str, name: str = "") -> dict[str, Any]:
        """Examples as they are understood: text, JSON, JSON lines or CSV; a file's name may decide which."""
        pasted = self._service.read(text, name)
        rows = []
        for row in pasted.rows:
            example = row.example and _fields(row.example, "prompt", "gold", "options")
            rows.append({**_fields(row, "line", "shown", "mistake"), "example": example})
        return {
            "layout": pasted.layout,
            "examples": len(pasted.examples),
            "mistakes": len(pasted.mistakes),
            "unread": pasted.unread,
            "rows": rows,
        }

    async def adapt(
        self,
        text: str,
        request: gr.Request,
        held_out: int = 0,
        pair: str | None = None,
        rounds: int = ROUNDS,
        proposals: int = PROPOSALS,
        seconds: float = 60,
        seed: int = 0,
    ) -> AsyncIterator[dict[str, Any]]:
        """Adapt to examples; tells how far it is, and at last the model's id and the report."""
        service = self._service
        run = await asyncio.to_thread(
            service.start,
            token_of(request),
            text,
            held_out=held_out,
            pair=pair,
            budget=Budget(rounds, proposals, min(seconds, service.settings.max_seconds)),
            seed=seed,
        )
        last = None
        async for _ in service.follow(run):
            if (now := self._standing(run)) != last:
                yield now
            last = now
        if run.state != "done":
            raise DemoError(run.error or "Stopped.")
        yield {
            "state": "done",
            "model": run.id,
            "number": run.number,
            "report": run.model.report.as_json(),
            "explanation": run.model.explain(),
            "trained_on": run.trained_on,
        }

    def _standing(self, run: Adaptation) -> dict[str, Any]:
        found: dict[str, Any] = {"state": run.state, "queue": self._service.ahead(run)}
        if run.progress:
            progress = list(run.progress.values())[-1]
            found |= _fields(progress, "stage", "message", "share", "seconds", "seconds_left")
            found["report"] = progress.report.as_json()
        return found

    def cancel(self, request: gr.Request) -> dict[str, Any]:
        """Stop this visitor's adaptation."""
        self._service.cancel(token_of(request))
        return {"cancelled": True}

    def predict(
        self, model: str, question: str, options: list[str], request: gr.Request
    ) -> dict[str, Any]:
        """Ask a model of this visitor, and the base model, one question; no options: those of its examples."""
        _, base, adapted, kept = self._service.ask(token_of(request), model, question, options)
        sides = {"base": base, "adapted": adapted}
        names = ("choice", "text", "probabilities")
        return {"model": kept.id, **{who: _fields(one, *names) for who, one in sides.items()}}

    def download(self, model: str, request: gr.Request) -> str:
        return str(self._service.archive(token_of(request), model))

    def forget(self, request: gr.Request, model: str = "") -> dict[str, Any]:
        """Free a model of this visitor, or all that there is."""
        return {"models": self._service.forget(token_of(request), model)}


def _fields(one: object, *names: str) -> dict[str, Any]:
    return {name: getattr(one, name) for name in names}
