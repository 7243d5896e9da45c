"""The endpoints, from a client of Gradio's and with nothing but HTTP."""

from __future__ import annotations

import json
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from benchmarks.page_client import PageClient, PageError
from benchmarks.watched_app import ROOT

from tests.demo.pages import TWENTY
from tests.demo.plain_peft import probabilities

pytestmark = pytest.mark.xdist_group("browser")

QUESTION = ("What month comes 1 month after May?", ["June", "May", "a bird"])


@pytest.fixture
def client(app, tmp_path):
    with PageClient(app.url, tmp_path) as made:
        yield made


def test_tasks_can_be_adapted_to(client):
    tasks = client.call("tasks")
    assert {"name", "title", "description", "seen"} <= set(tasks[0])
    assert {task["seen"] for task in tasks} == {True, False}
    text = client.call("task", name=tasks[-1]["name"])
    read = client.read(text)
    assert read["mistakes"] == 0
    assert client.adapt(text, read["examples"] - 20).report["support"] == 20


def test_reading_shows_mistakes_by_line(client):
    read = client.read("Is fire hot? => yes\nIs ice hot? => no\nIs snow hot?")
    assert (read["layout"], read["examples"], read["mistakes"]) == ("text", 2, 1)
    assert [row["line"] for row in read["rows"]] == [1, 2, 3]
    assert read["rows"][0]["example"]["options"] == ["yes", "no"]
    assert "Line 3" in read["rows"][2]["mistake"]
    assert read["rows"][2]["example"] is None


def test_adapt_predict_download_forget(client, tmp_path):
    adapted = client.adapt(TWENTY, 5, pair="plain", seed=3)
    report = adapted.report
    assert (report["support"], report["held_out"], report["seed"]) == (15, 5, 3)
    for name in ("base", "generated", "adapted"):
        assert report[name]["n"] == 5
        assert report[name]["low"] <= report[name]["accuracy"] <= report[name]["high"]
    assert len(report["tried"]) >= 1

    said = client.predict(adapted.model, *QUESTION)
    assert sum(said) == pytest.approx(1)
    with zipfile.ZipFile(client.call("download", model=adapted.model)) as archive:
        archive.extractall(tmp_path / "zip")
    plain = probabilities(tmp_path / "zip" / "adapter", *QUESTION)
    assert said == pytest.approx(plain, abs=1e-4)

    client.forget(adapted.model)
    with pytest.raises(PageError, match="no such model"):
        client.predict(adapted.model, *QUESTION)


def test_equal_arguments_give_equal_models(app):
    found = []
    for _ in range(2):
        with PageClient(app.url) as one:
            found.append(one.predict(one.adapt(TWENTY, 5, pair="tiny").model, *QUESTION))
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize("endpoint", ["predict", "download", "forget"])
def test_models_of_other_sessions_are_out_of_reach(app, client, endpoint):
    adapted = client.adapt(TWENTY, 5)
    more = {"question": QUESTION[0], "options": QUESTION[1]} if endpoint == "predict" else {}
    with PageClient(app.url) as other, pytest.raises(PageError, match="no such model"):
        other.call(endpoint, model=adapted.model, **more)
    assert client.predict(adapted.model, *QUESTION)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"text": ""}, "empty|examples"),
        ({"text": "Is fire hot? => yes\nIs ice hot?"}, "Line"),
        ({"held_out": 20}, "held out"),
        ({"rounds": 1000}, "rounds"),
        ({"pair": "../../etc"}, "no pair"),
        ({"seed": "x"}, "'seed' is to be of type int"),
    ],
)
def test_refusals_are_sentences(client, arguments, said):
    with pytest.raises(PageError, match=said) as refused:
        client.adapt(**{"text": TWENTY, "held_out": 5, **arguments})
    assert "Traceback" not in str(refused.value)


def test_given_up_adaptation_stops(app, client):
    text = "\n".join(f"{'word ' * 60}{i}? => {('yes', 'no')[i % 2]}" for i in range(60))
    assert client.adapt(text, 5, lambda spent: spent > 1, pair="slow") is None
    app.wait_idle(5)
    assert client.adapt(TWENTY, 5) is not None


def test_plain_http(app):
    """The two requests that the documentation shows."""
    with httpx.Client(base_url=f"{app.url}/gradio_api", timeout=60) as http:
        described = http.get("/info").json()["named_endpoints"]
        assert {"/tasks", "/read", "/adapt", "/predict", "/download", "/forget"} <= set(described)
        asked = http.post("/call/read", json={"data": [TWENTY, ""]})
        assert asked.status_code == 200
        told = http.get(f"/call/read/{asked.json()['event_id']}").text
        event, data = told.strip().split("\n")[:2]
        assert event == "event: complete"
        assert json.loads(data.removeprefix("data: "))[0]["examples"] == 20


@pytest.mark.parametrize(("endpoint", "wanted"), [("predict", 3), ("adapt", 7), ("download", 1)])
def test_too_few_values_are_a_sentence(app, endpoint, wanted):
    data = ["x"] * (wanted - 1)
    with httpx.Client(base_url=f"{app.url}/gradio_api", timeout=60) as http:
        asked = http.post(f"/call/{endpoint}", json={"data": data})
        told = http.get(f"/call/{endpoint}/{asked.json()['event_id']}").text
    assert "event: error" in told
    assert f"'/{endpoint}' takes {wanted} value(s), and 'data' has {wanted - 1}; give all" in told


def test_plain_http_adapts(app):
    """All values, in the order of the documentation; a pair that is null is the first."""
    with httpx.Client(base_url=f"{app.url}/gradio_api", timeout=60) as http:
        body = {"data": [TWENTY, 5, None, 1, 1, 60, 0], "session_hash": "plain-http"}
        asked = http.post("/call/adapt", json=body)
        told = http.get(f"/call/adapt/{asked.json()['event_id']}").text
        (done,) = json.loads(told.strip().rsplit("data: ", 1)[1])
        assert (done["state"], done["trained_on"]) == ("done", False)
        body = {"data": [""], "session_hash": "plain-http"}
        asked = http.post("/call/forget", json=body)
        told = http.get(f"/call/forget/{asked.json()['event_id']}").text
        assert '"models": 0' in told


def test_requests_of_one_session_at_once_get_their_own_answers(app):
    """Each has its own stream; models and the adaptation are the session's all the same."""
    session = "one-session-of-many-requests"

    def call(http, name, *data):
        asked = http.post(f"/call/{name}", json={"data": list(data), "session_hash": session})
        told = http.get(f"/call/{name}/{asked.json()['event_id']}").text
        *_, event, data = told.strip().split("\n")
        assert event == "event: complete", told
        return json.loads(data.removeprefix("data: "))[0]

    def read(number):
        text = "\n".join(f"Is {number} + {i} even? => {('yes', 'no')[i % 2]}" for i in range(4))
        return call(http, "read", text, "")["rows"][0]["shown"]

    with (
        httpx.Client(base_url=f"{app.url}/gradio_api", timeout=60) as http,
        ThreadPoolExecutor(9) as pool,
    ):
        adapting = pool.submit(call, http, "adapt", TWENTY, 5, None, 1, 1, 60, 0)
        found = list(pool.map(read, range(40)))
        assert [f"Is {number} + 0 even?" in shown for number, shown in enumerate(found)] == [
            True
        ] * 40
        model = adapting.result()["model"]
        told = list(pool.map(lambda _: call(http, "predict", model, *QUESTION)["model"], range(8)))
        assert told == [model] * 8
        assert call(http, "forget", "")["models"] == 0


def test_the_documented_client(app, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(program.replace("http://127.0.0.1:7860", app.url), {})
    said = capsys.readouterr().out
    assert "\ndone" in said
    assert " → " in said
    assert zipfile.is_zipfile(said.splitlines()[-1])
