"""What the page does without the page: the queue of a visitor's adaptations, what is kept, and a tiny random pair."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from demo.service import (
    PROPOSALS,
    ROUNDS,
    DemoError,
    Service,
    UnknownModelError,
    examples_text,
    options_of,
)
from demo.views import render

from degaml_kedro.checkpoint.hub import load_trained_pair
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.session import AdaptationCancelled, Budget, Progress, Report
from degaml_kedro.tasks.example import make_example, make_true_false_example
from degaml_kedro.tasks.pasted import PastedError, read_pasted
from demo import DemoSettings
from demo import service as module
from tests.checkpoint.helpers import write_tiny_pair
from tests.demo.pages import TWENTY


def until(happens, seconds=10):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


class Model:
    """What an adaptation made."""

    report = None

    def save(self, folder: Path) -> Path:
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
        return folder


class Work:
    """Goes on until it is released or stopped."""

    def __init__(self):
        self.begun, self.release = threading.Event(), threading.Event()

    def __call__(self, run):
        self.begun.set()
        while not self.release.wait(0.005):
            if run.cancelled.is_set():
                raise AdaptationCancelled
        return Model()


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Services over no pair, which sweep when they are told to."""
    monkeypatch.setattr(module, "OfferedPairs", lambda pairs: None)
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 3600)
    made = []

    def make(**settings):
        made.append(Service(DemoSettings(**settings), tmp_path / f"downloads-{len(made)}"))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def service(serve):
    return serve(queue_size=2, max_models=2)


def keep(service, token):
    """A model of that visitor."""
    run = service.submit(token, lambda run: Model(), "a title")
    until(lambda: run.over)
    return run


# --- the queue ------------------------------------------------------------------------------------


def test_one_after_the_other_in_order(service):
    works = [Work() for _ in range(3)]
    runs = [service.submit(f"visitor {n}", work) for n, work in enumerate(works)]
    assert works[0].begun.wait(5)
    assert [service.ahead(run) for run in runs] == [0, 1, 2]
    works[0].release.set()
    assert works[1].begun.wait(5)
    assert runs[0].state == "done"
    assert service.models("visitor 0") == runs[:1]
    assert [service.ahead(run) for run in runs[1:]] == [0, 1]
    works[1].release.set()
    works[2].release.set()
    until(lambda: all(run.over for run in runs))


def test_one_each_and_so_many_in_all(service):
    service.submit("a", Work())
    with pytest.raises(DemoError, match="under way already"):
        service.submit("a", Work())
    service.submit("b", Work())
    service.submit("c", Work())
    with pytest.raises(DemoError, match="queue is full: 3"):
        service.submit("d", Work())


def test_stopping_what_goes_on_and_what_waits(service):
    first, second, third = Work(), Work(), Work()
    going, waiting, last = (
        service.submit(token, work)
        for token, work in zip("abc", (first, second, third), strict=True)
    )
    assert first.begun.wait(5)
    # nobody can stop what is of others
    service.cancel("d")
    assert not going.cancelled.is_set()
    service.cancel("b")
    assert waiting.over
    assert service.ahead(last) == 1
    service.cancel("a")
    assert service.run_of("a") is None
    assert third.begun.wait(5)
    assert going.state == "cancelled"
    assert going.error == "Stopped, as you asked."
    assert not second.begun.is_set()
    # there is room for another one of the same visitor
    service.submit("a", Work())


def test_what_takes_too_long_is_stopped(serve):
    service = serve(max_seconds=0.025)
    work = Work()
    run = service.submit("a", work)
    assert work.begun.wait(5)
    time.sleep(0.1)
    service.sweep()
    until(lambda: run.over)
    assert run.state == "cancelled"
    assert "the most that this page allows" in run.error


def test_mistakes_are_told_and_accidents_are_logged(service, caplog):
    def refused(run):
        raise DegamlError("two examples are needed")

    def broken(run):
        raise ZeroDivisionError("secret")

    run = service.submit("a", refused)
    until(lambda: run.over)
    assert (run.state, run.error) == ("failed", "two examples are needed")
    run = service.submit("a", broken)
    until(lambda: run.over)
    assert run.state == "failed"
    assert "secret" not in run.error
    assert "secret" in caplog.text
    assert service.submit("a", Work()).state in ("waiting", "running")


def follow(service, run):
    async def every():
        return [one async for news in service.follow(run) for one in news]

    return asyncio.run(every())


def test_everybody_who_follows_is_told_everything(service):
    release = threading.Event()

    def work(run):
        for stage in ("base", "trying", "base"):
            run.tell(Progress(stage, stage, 0.0, 0.0, None, Report(2, 0)))
        release.wait(5)
        return Model()

    run = service.submit("a", work)
    until(lambda: run.progress)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(follow, service, run) for _ in range(2)]
        time.sleep(0.1)
        release.set()
        # the latest of each stage, in their order
        assert [[one.stage for one in told.result()] for told in both] == [["trying", "base"]] * 2


# --- visitors -------------------------------------------------------------------------------------


def test_models_are_found_by_their_owner_alone(service):
    kept = keep(service, "a")
    keep(service, "b")
    assert service.find("a", kept.id) is kept
    for token in ("b", "nobody", "None", ""):
        for reach in (service.find, service.archive, service.forget):
            with pytest.raises(UnknownModelError, match="Adapt again"):
                reach(token, kept.id)
    assert service.find("a", kept.id) is kept


def test_ids_cannot_be_guessed(service):
    ids = {keep(service, f"visitor {n}").id for n in range(20)}
    assert len(ids) == 20
    assert min(map(len, ids)) >= 32


def test_the_oldest_goes_first(service):
    first, second = keep(service, "a"), keep(service, "a")
    archive = service.archive("a", first.id)
    third = keep(service, "a")
    assert service.models("a") == [second, third]
    assert service.count_freed("a") == 1
    assert third.number == 3
    assert not archive.exists()
    with pytest.raises(UnknownModelError, match="Adapt again"):
        service.find("a", first.id)


def test_the_oldest_of_all_goes_first(serve):
    service = serve(max_models=2, max_models_total=3)
    keep(service, "a"), keep(service, "b")
    third, fourth = keep(service, "a"), keep(service, "c")
    assert service.models("a") == [third]
    assert service.count_freed("a") == 1
    service.forget("b")
    assert service.forget("c", fourth.id) == 0
    fifth = keep(service, "d")
    assert [service.models(token) for token in "abcd"] == [[third], [], [], [fifth]]


@pytest.mark.parametrize("back", ["visitor", "find", "connected", None])
def test_who_comes_back_soon_keeps_all(serve, back):
    """Models and what goes on are the visitor's: they outlive a connection, and end with the last one's grace."""
    service = serve(grace=0.5)
    kept, work = keep(service, "a"), Work()
    with service.connected("a"):
        run = service.submit("a", work)
        with service.connected("a"):
            pass
        assert service.visitor("a").left is None
        assert work.begun.wait(5)
    service.sweep()
    assert service.models("a") == [kept]
    assert not run.cancelled.is_set()
    with ExitStack() as pages:
        if back == "connected":
            pages.enter_context(service.connected("a"))
        elif back:
            getattr(service, back)("a", *([kept.id] if back == "find" else []))
        time.sleep(0.6)
        service.sweep()
    assert service.models("a") == ([kept] if back else [])
    # a program that lost its stream is asked for by nobody, though it may come for its models
    assert run.cancelled.is_set() == (back != "connected")
    if back != "connected":
        until(lambda: run.over)
        assert "page was closed" in run.error


def test_nothing_is_left_of_who_leaves(service):
    kept, other = keep(service, "a"), keep(service, "b")
    mine, theirs = service.archive("a", kept.id), service.archive("b", other.id)
    with zipfile.ZipFile(mine) as archive:
        assert "adapter/adapter_config.json" in archive.namelist()
    assert mine.parent.parent != theirs.parent.parent
    assert service.forget("a") == 0
    assert not mine.parent.parent.exists()
    assert theirs.exists()
    assert service.models("b") == [other]


def test_downloads_of_one_model_at_once_are_one_file(service):
    kept = keep(service, "a")
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: service.archive("a", kept.id), range(16)))
    (path,) = found
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert list(path.parent.iterdir()) == [path]


def test_what_is_finished_after_its_owner_left_is_not_kept(service):
    left = threading.Event()

    def work(run):
        left.wait(5)
        return Model()

    run = service.submit("a", work)
    until(lambda: run.state == "running")
    service.forget("a")
    left.set()
    until(lambda: run.over)
    assert (run.state, service.models("a")) == ("cancelled", [])


def test_the_idle_are_forgotten(serve):
    service = serve(session_ttl=0.2)
    keep(service, "idle")
    busy = keep(service, "busy")
    time.sleep(0.15)
    service.find("busy", busy.id)
    time.sleep(0.1)
    service.sweep()
    assert service.models("idle") == []
    assert service.models("busy") == [busy]


# --- on a tiny random pair ------------------------------------------------------------------------


def test_the_page_s_budget_is_the_shipped_pair_s():
    search = load_trained_pair().settings.policy.search
    assert (search.rounds, search.proposals) == (ROUNDS, PROPOSALS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    pair = write_tiny_pair(folder / "pair")
    settings = DemoSettings(
        pairs=(("missing", str(folder / "nothing")), ("tiny", str(pair))),
        max_examples=30,
        max_characters=5000,
        max_question_tokens=200,
        max_seconds=20,
    )
    made = Service(settings, folder / "downloads")
    yield made
    made.close()


def adapt(service, token, text=TWENTY, **options):
    run = service.start(token, text, **options)
    follow(service, run)
    return run


def test_from_examples_to_answers(tiny):
    kept = adapt(tiny, "a", held_out=5, budget=Budget(1, 1))
    assert kept.state == "done"
    assert (kept.model.report.support, kept.model.report.held_out) == (15, 5)
    question, base, adapted, own = tiny.ask("a", kept.id, "Which?", ["May", "June"])
    assert own is kept
    assert question.options == ("May", "June")
    assert sum(base.probabilities) == pytest.approx(1)
    assert sum(adapted.probabilities) == pytest.approx(1)
    with pytest.raises(UnknownModelError):
        tiny.ask("b", kept.id, "Which?", ["May", "June"])
    # the examples shared one set of answers
    assert tiny.ask("a", kept.id, "Which?", [])[0].options == kept.model.labels
    assert len(kept.model.labels) == 12
    with pytest.raises(
        DemoError, match="247 tokens long with its options, .* at most 200; shorten"
    ):
        tiny.ask("a", kept.id, "😀" * 60, ["May", "June"])
    archive = tiny.archive("a", kept.id)
    assert archive.is_file()
    tiny.forget("a")
    assert not archive.exists()


def test_a_full_disk_is_a_sentence_and_the_results_are_shown(tiny, monkeypatch, caplog):
    import gradio as gr
    from demo.app import _Page

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = adapt(tiny, "full", budget=Budget(1, 1))
    with gr.Blocks() as app:
        page = _Page(tiny, app)
    for name in ("shutil.make_archive", "degaml_kedro.checkpoint.folder.replaced_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            shown = page._all(kept)
        assert "The zip cannot be written, most likely for want of room" in shown[page.error]
        assert "dg-" in shown[page.results]
    assert caplog.text.count("No space left on device") == 2
    assert "Traceback" not in caplog.text
    assert page.error not in page._all(kept)
    tiny.forget("full")


def test_a_model_that_is_freed_under_its_download_is_gone(tiny, monkeypatch):
    kept = adapt(tiny, "freed", budget=Budget(1, 1))

    def freed(*_):
        tiny.forget("freed")
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr("shutil.make_archive", freed)
    with pytest.raises(DemoError, match="freed meanwhile"):
        tiny.archive("freed", kept.id)


def test_without_one_set_of_answers_a_question_needs_options(tiny):
    kept = adapt(tiny, "own", "What comes? | May* | June\nWhat went? | July | August*")
    with pytest.raises(DemoError, match="needs some, too"):
        tiny.ask("own", kept.id, "Which?", [])


def test_the_first_pair_that_can_be_loaded_is_the_first_on_offer(tiny):
    assert tiny.pairs.labels == ["tiny"]
    with pytest.raises(DegamlError, match="There is no pair 'missing' here; there is 'tiny'"):
        tiny.pairs.session("missing")


def test_without_any_pair_nothing_is_started(tmp_path):
    with pytest.raises(DegamlError, match="No trained pair can be loaded"):
        Service(DemoSettings(pairs=(("x", str(tmp_path / "nothing")),)), tmp_path)


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("x" * 5001, {}, "5,001 characters long"),
        (
            "\n".join(f"q{n} => {n % 3}" for n in range(31)),
            {},
            "31 examples, and the page takes at most 30",
        ),
        ("a => b\nno answer\nc => d", {}, "1 of 3 examples have a mistake"),
        (TWENTY, {"held_out": 20}, "20 of 20 examples cannot be held out"),
        (TWENTY, {"held_out": -1}, "-1 of 20 examples cannot be held out"),
        (TWENTY, {"budget": Budget(rounds=99)}, "99 rounds cannot be had here"),
        (TWENTY, {"budget": Budget(proposals=0)}, "0 proposals a round cannot be had here"),
        (TWENTY, {"budget": Budget(seconds=float("nan"))}, "nan seconds cannot be had here"),
        (TWENTY, {"budget": Budget(seconds=21)}, "21 seconds cannot be had here"),
        ("", {}, "empty"),
    ],
)
def test_what_is_refused(tiny, text, options, told):
    with pytest.raises((DemoError, PastedError), match=told):
        tiny.start("a", text, **options)
    assert tiny.run_of("a") is None


def test_examples_of_too_many_tokens_are_mistakes(tiny, tmp_path):
    file = tmp_path / "long.csv"
    file.write_text(f"question,answer\n{'😀' * 60}?,yes\nIs ice hot?,no\n", encoding="utf-8")
    pasted = tiny.read(tiny.read_upload(file), file.name)
    assert (len(pasted.examples), len(pasted.questions)) == (1, 1)
    assert [row.mistake for row in pasted.mistakes] == [
        "Line 2: the question is 246 tokens long with its options, and the page takes at most 200; shorten it."
    ]


def test_mistakes_can_be_left_out(tiny):
    kept = adapt(tiny, "skipping", TWENTY + "\nno answer", skip_mistakes=True, budget=Budget(1, 1))
    assert kept.model.report.support == 20
    tiny.forget("skipping")


def test_too_few_examples_are_told_by_the_session(tiny):
    run = adapt(tiny, "few", "a => b\nc => d", held_out=1)
    assert run.state == "failed"
    assert tiny.models("few") == []
    assert "2 are needed" in run.error


def test_who_stops_listening_does_not_stop_the_work(tiny):
    async def listen():
        run = tiny.start("listener", TWENTY, held_out=5, budget=Budget(1, 1))
        following = tiny.follow(run)
        await anext(following)
        await following.aclose()
        return run

    run = asyncio.run(listen())
    until(lambda: run.over, 30)
    assert tiny.models("listener") == [run]
    tiny.forget("listener")


def test_tasks_that_the_generator_was_trained_on_are_marked(tiny, monkeypatch):
    task, other = list(tiny.tasks.values())[:2]
    session = tiny.pairs.session("tiny")
    monkeypatch.setattr(session, "trained", replace(session.trained, about={"tasks": [task.name]}))
    for name, changed, known in (
        (task.name, "", True),
        (task.name, "\n\n", False),
        (other.name, "", False),
    ):
        kept = adapt(tiny, "known", tiny.ready_text(name) + changed, budget=Budget(1, 1))
        assert kept.trained_on is known
        page = render("accuracies", kept.model.report, kept.trained_on) + render(
            "history", [kept], None, 0
        )
        assert page.count("was trained on this task") == (2 if known else 0)
    tiny.forget("known")


# --- texts ----------------------------------------------------------------------------------------


def test_every_ready_task_is_read_back(tiny):
    for name in list(tiny.tasks)[::9]:
        assert len(read_pasted(tiny.ready_text(name)).examples) == 30
    with pytest.raises(DemoError, match="no ready task"):
        tiny.ready_text("nothing")


def test_examples_come_back_as_they_were():
    plain = [make_example("Which?", ["May", "June"], 1), make_example("What?", ["x", "y", "z"], 0)]
    assert list(read_pasted(examples_text(plain)).examples) == plain
    assert "Answer: B" in examples_text(plain)
    hard = [
        make_example("One\n\nAnswer: A", ["May", "June"], 1, "Be brief."),
        make_true_false_example("So?", True),
    ]
    assert list(read_pasted(examples_text(hard)).examples) == hard
    assert json.loads(examples_text(hard).splitlines()[0])["system"] == "Be brief."


def test_options_are_lines_or_between_bars():
    assert options_of("May | June | July") == ["May", "June", "July"]
    assert options_of("May\nJune | July\n\n") == ["May", "June | July"]
    assert options_of("  ") == []
