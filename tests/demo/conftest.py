"""The page in a process of its own, and a real browser in front of it.

Nothing may go wrong unseen: a test in a browser fails on an error in the page or its console, and on a request that
leaves this machine. Pictures of the main states stay in ``tests/artifacts``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from benchmarks.watched_app import AppProcess, running_app
from tools.browser import MISSING, find_browser, is_required

from tests.demo.pages import DemoPage
from tests.demo.pairs import write_pairs

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
# Gradio looks for pages that were closed every 15 seconds otherwise
QUICK = {"GRADIO_HEARTBEAT_INTERVAL": "0.5"}
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
)
_MILLISECONDS = 20_000


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random pairs on a random two-layer model, by label; the first is the page's own choice."""
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, Path]) -> Iterator[AppProcess]:
    """The page over the random pairs."""
    arguments = [text for label, path in pairs.items() for text in ("--pair", f"{label}={path}")]
    # a closed page is forgotten soon, but not before a browser has tried to come back
    arguments += ["--grace", "4"]
    with running_app(tmp_path_factory.mktemp("app"), *arguments, environment=QUICK) as running:
        yield running


@pytest.fixture(scope="session")
def shipped_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppProcess]:
    """The page as everybody starts it, over the pair that ships with the project."""
    with running_app(tmp_path_factory.mktemp("shipped")) as running:
        yield running


# one module at a time: while Playwright's event loop runs, nothing else in this thread can have one
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium with a new profile."""
    program = find_browser()
    if program is None:
        if is_required():
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program, headless=True, args=list(_FLAGS)
        )
        yield chromium
        chromium.close()


class Watch:
    """What must not happen in a page: collected while it happens, looked at when the test is over."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.expected: list[str] = []

    def page(self, page: Any) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.seen.append(f"error in the page: {error}"))
        page.on("dialog", self._dialog)

    def request(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            self.seen.append(f"request that leaves this machine: {request.url}")

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.seen.append(f"error in the console: {message.text} ({message.location})")

    def _dialog(self, dialog: Any) -> None:
        self.seen.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def verdict(self) -> list[str]:
        return [one for one in self.seen if not any(text in one for text in self.expected)]


def _opened(context: Any, app: AppProcess, query: str, watch: Watch) -> DemoPage:
    context.set_default_timeout(_MILLISECONDS)
    context.on("request", watch.request)
    page = context.new_page()
    watch.page(page)
    page.goto(f"{app.url}/{query}")
    opened = DemoPage(page, ARTIFACTS)
    opened.wait_ready()
    return opened


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Fails the test on what its pages must not do."""
    seen = Watch()
    yield seen
    assert seen.verdict() == []


@pytest.fixture
def open_page(browser: Any, watch: Watch) -> Iterator[Callable[..., DemoPage]]:
    """Opens pages, each as another user: with cookies, storage and a session of its own."""
    contexts = []

    def open_one(app: AppProcess, query: str = "", **context: Any) -> DemoPage:
        made = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        contexts.append(made)
        return _opened(made, app, query, watch)

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def used_page(browser: Any, app: AppProcess) -> Iterator[tuple[DemoPage, Watch]]:
    """A page that the tests of a module use one after the other."""
    seen = Watch()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield _opened(context, app, "", seen), seen
    context.close()


@pytest.fixture
def same_page(used_page: tuple[DemoPage, Watch]) -> Iterator[DemoPage]:
    """That page, emptied; a test fails on what went wrong unseen."""
    page, seen = used_page
    page.paste("")
    page.wait_rows("parsed-table", 0)
    seen.seen.clear()
    yield page
    assert seen.verdict() == []


@pytest.fixture
def page(open_page: Callable[..., DemoPage], app: AppProcess) -> DemoPage:
    """The page over the tiny pair, on a large screen."""
    return open_page(app)
