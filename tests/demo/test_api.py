"""The endpoints, from a client of Gradio's and with nothing but HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

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
        ({"held_out": -1}, "held out"),
        ({"rounds": 1000}, "rounds"),
        ({"proposals": 0}, "proposals"),
        ({"pair": "../../etc"}, "no pair"),
        (
            {"text": "\n".join(f"Is {i} even? => {('yes', 'no')[i % 2]}" for i in range(300))},
            "at most 200",
        ),
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


def test_one_adaptation_of_a_session_at_a_time(client):
    text = "\n".join(f"{'word ' * 60}{i}? => {('yes', 'no')[i % 2]}" for i in range(60))
    job = client.client.submit(text=text, held_out=5, pair="slow", api_name="/adapt")
    while not job.outputs():
        pass
    with pytest.raises(PageError, match="under way"):
        client.adapt(TWENTY, 5)
    client.call("cancel")


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


def test_example_client(app, tmp_path):
    examples = tmp_path / "examples.txt"
    examples.write_text(TWENTY, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "demo.client",
        "--url",
        app.url,
        "--held-out",
        "5",
        str(examples),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "n =" in done.stdout
