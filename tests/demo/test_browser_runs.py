"""Adaptations that are cancelled, that wait, that belong to somebody else, and whose page is closed."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest
from benchmarks.watched_app import running_app

from tests.demo.conftest import QUICK
from tests.demo.pages import PATIENCE, TWENTY

pytestmark = pytest.mark.xdist_group("browser")

# each step takes a while, on the slow pair above all
LONG = "\n".join(f"{'word ' * 40}{i}? => {('yes', 'no', 'perhaps')[i % 3]}" for i in range(24))


def begin_slowly(page, text=LONG):
    page.paste(text)
    page.choose("pair", "slow")
    page.start()


def stands_still(app, seconds=1.0):
    """Whether the server's processor time hardly grows."""
    before = app.watch().cpu
    time.sleep(seconds)
    # being looked at costs a little
    return app.watch().cpu - before < 0.6 * seconds


def test_cancel_stops_the_work(page, app):
    begin_slowly(page)
    page.wait_text("results", "Base model")
    page.wait_stage("Try strategies")
    assert app.watch().running == 1
    page.press("cancel")
    page.wait_done()
    app.wait_idle(5)
    assert stands_still(app)
    assert "Stopped, as you asked" in page.text("progress")
    assert not page.enabled("side-ask")
    page.picture("cancelled")
    # and a new one works
    page.paste(TWENTY)
    page.choose("pair", "plain")
    page.wait_rows("parsed-table", 20)
    page.adapt()
    assert "Adapted model" in page.text("results")
    assert len(page.cells("history")) == 1


def test_two_users_at_once(open_page, app):
    first, second = open_page(app), open_page(app)
    begin_slowly(first)
    first.wait_stage("Try strategies")
    second.paste("\n".join(f"Is {i} even? => {'no' if i % 2 else 'yes'}" for i in range(12)))
    second.wait_rows("parsed-table", 12)
    second.start()
    second.wait_text("queue", "You are number 1 in the queue")
    second.picture("queue")
    assert first.text("queue").strip() == ""
    first.press("cancel")
    first.wait_done()
    second.wait_done()
    assert second.text("queue").strip() == ""
    assert "12" not in first.text("history")
    assert "Is 0 even?" in second.text("history")

    first.paste(TWENTY)
    first.choose("pair", "plain")
    first.wait_rows("parsed-table", 20)
    first.adapt()
    assert "Is 0 even?" not in first.part("history").inner_text()
    assert "month" not in second.part("history").inner_text()
    question = ("What comes next?", "one | two | three")
    mine, theirs = first.ask(*question), second.ask(*question)
    assert adapted(mine) != adapted(theirs)
    assert adapted(second.ask(*question)) == adapted(theirs)


def test_model_of_another_page_cannot_be_had(open_page, app):
    """Whoever knows the id of a model, but not the session, gets nothing."""
    owner, other = open_page(app), open_page(app)
    sessions = []
    for page in (owner, other):
        page.page.on(
            "request",
            lambda request, page=page: (
                sessions.append((page, request.post_data or ""))
                if "/queue/join" in request.url
                else None
            ),
        )
        page.paste(TWENTY)
        page.wait_rows("parsed-table", 20)
        page.adapt()
    first, second = owner.ask("Next?", "a | b"), other.ask("Next?", "a | b")
    assert adapted(first) == adapted(second), "the same examples were to give the same adapter"
    asked = [(page, json.loads(body)) for page, body in sessions if '"Next?"' in body]
    (model,) = {body["data"][0] for page, body in asked if page is owner}
    body = next(body for page, body in asked if page is other)
    assert model != body["data"][0]

    def ask(model_id):
        """The other page's own request, with a model's id in it."""
        return other.page.evaluate(
            """async body => {
                await fetch('/gradio_api/queue/join', {
                    method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body)});
                const answer = await fetch('/gradio_api/queue/data?session_hash=' + body.session_hash);
                const reader = answer.body.getReader();
                let told = '';
                while (!told.includes('process_completed')) {
                    const {value, done} = await reader.read();
                    if (done) break;
                    told += new TextDecoder().decode(value);
                }
                await reader.cancel();
                return told;
            }""",
            {**body, "data": [model_id, *body["data"][1:]]},
        )

    told = ask(model)
    assert "dg-asked" not in told
    assert "no such model" in told or '"success":false' in told
    assert "dg-asked" in ask(body["data"][0]), (
        "the request itself was no good, so that nothing was shown"
    )


def adapted(text):
    """The adapted model's probabilities."""
    return re.findall(r"\d+\.\d %", text[text.index("Adapted") :])


def test_closed_page_stops_and_frees(open_page, app):
    app.wait_idle(10, models=0)
    page = open_page(app)
    page.paste(TWENTY)
    page.wait_rows("parsed-table", 20)
    page.adapt()
    assert app.watch().models == 1
    zips = list(app.temporary.rglob("adapter-*.zip"))
    assert len(zips) == 1
    begin_slowly(page)
    page.wait_stage("Try strategies")
    assert app.watch().running == 1
    page.page.close()
    # the fixture's grace, and a step of the work
    app.wait_idle(20, models=0)
    assert not list(app.temporary.rglob("adapter-*.zip"))
    assert stands_still(app)


def test_what_was_freed_is_not_offered(page, app):
    page.paste(TWENTY)
    page.wait_rows("parsed-table", 20)
    page.adapt()
    cookies = {one["name"]: one["value"] for one in page.page.context.cookies()}
    with httpx.Client(base_url=f"{app.url}/gradio_api", cookies=cookies, timeout=20) as http:
        asked = http.post("/call/forget", json={"data": [""]}).json()
        assert '"models": 0' in http.get(f"/call/forget/{asked['event_id']}").text
    page.part("side-question").locator("textarea").fill("Next?")
    page.part("side-options").locator("textarea").fill("a | b")
    page.press("side-ask")
    page.wait_text("side-answers", "no such model")
    page.wait_button("download", False)
    page.wait_rows("history", 0)


def test_a_reloaded_page_has_what_is_its_visitor_s(page, app, watch):
    """Models, and an adaptation that goes on: they are the browser's, and neither the page's nor its stream's."""
    # a page that is left says so in its console
    watch.expected += ["AbortError", "Connection errored out"]
    (cookie,) = page.page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"
    page.paste(TWENTY)
    page.wait_rows("parsed-table", 20)
    page.adapt()
    begin_slowly(page)
    page.wait_stage("Try strategies")
    page.page.reload()
    page.wait_rows("history", 1)
    page.wait_stage("Try strategies")
    assert app.watch().running == 1
    page.wait_button("cancel", False, timeout=120_000)
    page.wait_rows("history", 2)
    assert "Adapted model" in page.text("results")
    assert page.enabled("side-ask")


class Wire:
    """What a page is reached through, and what can be cut: a browser that is set offline keeps its streams."""

    def __init__(self, url):
        self.port, self.is_cut, self._ends = urlsplit(url).port, False, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        self.is_cut = True
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        while True:
            here, _ = self._listener.accept()
            if self.is_cut:
                here.close()
                continue
            there = socket.create_connection(("127.0.0.1", self.port))
            self._ends += [here, there]
            for pair in ((here, there), (there, here)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source, target):
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_a_page_that_was_cut_off_comes_back_by_itself(open_page, pairs, tmp_path, watch):
    """What goes on is the server's, and ends there: the page finds its result when there is a network again."""
    watch.expected += ["net::ERR_", "network error", "Failed to fetch", "Connection errored out"]
    with running_app(tmp_path, "--pair", f"slow={pairs['slow']}", environment=QUICK) as app:
        wire = Wire(app.url)
        page = open_page(wire)
        page.paste(TWENTY)
        page.start()
        wire.cut()
        page.page.get_by_text("Connection to the server was lost").wait_for()
        app.wait_idle(PATIENCE / 1000, models=1)
        assert page.cells("history") == []
        wire.is_cut = False
        page.wait_rows("history", 1)
        assert "Adapted model" in page.text("results")
        assert page.enabled("side-ask")


def test_adapt_stays_off_while_one_is_under_way(page):
    begin_slowly(page)
    page.wait_stage("Try strategies")
    page.paste(TWENTY)
    page.wait_rows("parsed-table", 20)
    assert not page.enabled("adapt")
    # and at the end it follows from the text
    page.paste("Is this one?")
    page.wait_rows("parsed-table", 1)
    page.press("cancel")
    page.wait_button("cancel", False)
    page.page.wait_for_timeout(500)
    assert not page.enabled("adapt")
    page.paste(TWENTY)
    page.wait_button("adapt", True)
