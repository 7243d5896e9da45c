"""What the page does without the page, on a tiny random pair."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace

import pytest
from demo.desk import PROPOSALS, ROUNDS, DemoError, Desk, examples_text, options_of
from demo.results import accuracies, history
from demo.settings import DemoSettings
from demo.visitors import UnknownModelError

from degaml_kedro.checkpoint.hub import load_trained_pair
from degaml_kedro.errors import DegamlError
from degaml_kedro.session import Budget
from degaml_kedro.tasks.example import make_example, make_true_false_example
from degaml_kedro.tasks.pasted import PastedError, read_pasted
from tests.checkpoint.helpers import write_tiny_pair
from tests.demo.pages import TWENTY


def test_the_page_s_budget_is_the_shipped_pair_s():
    search = load_trained_pair().settings.policy.search
    assert (search.rounds, search.proposals) == (ROUNDS, PROPOSALS)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    pair = write_tiny_pair(folder / "pair")
    settings = DemoSettings(
        pairs=(("missing", str(folder / "nothing")), ("tiny", str(pair))),
        max_examples=30,
        max_characters=5000,
        max_question_characters=100,
        max_seconds=20,
    )
    made = Desk(settings, folder / "downloads")
    yield made
    made.close()


def adapt(desk, key, text=TWENTY, **options):
    async def wait():
        kept, run = None, desk.start(key, text, **options)
        async for made in desk.follow(key, run):
            kept = made
        return kept, run

    return asyncio.run(wait())


def test_from_examples_to_answers(desk):
    kept, run = adapt(desk, "a", held_out=5, budget=Budget(1, 1))
    assert run.state == "done"
    assert run.result is None, "the run would keep the model alive"
    assert (kept.report.support, kept.report.held_out) == (15, 5)
    question, base, adapted, own = desk.ask("a", kept.id, "Which?", ["May", "June"])
    assert own is kept
    assert question.options == ("May", "June")
    assert sum(base.probabilities) == pytest.approx(1)
    assert sum(adapted.probabilities) == pytest.approx(1)
    with pytest.raises(UnknownModelError):
        desk.ask("b", kept.id, "Which?", ["May", "June"])
    # the examples shared one set of answers
    assert desk.ask("a", kept.id, "Which?", [])[0].options == kept.model.labels
    assert len(kept.model.labels) == 12
    archive = desk.archive("a", kept.id)
    assert archive.is_file()
    desk.leave("a")
    assert not archive.exists()
    assert desk.visitors.models == 0


def test_without_one_set_of_answers_a_question_needs_options(desk):
    kept, _ = adapt(desk, "own", "What comes? | May* | June\nWhat went? | July | August*")
    with pytest.raises(DemoError, match="needs some, too"):
        desk.ask("own", kept.id, "Which?", [])


def test_the_first_pair_that_can_be_loaded_is_the_first_on_offer(desk, caplog):
    assert desk.pairs.labels == ["tiny"]
    with pytest.raises(DegamlError, match="There is no pair 'missing' here; there is 'tiny'"):
        desk.pairs.session("missing")


def test_without_any_pair_nothing_is_started(tmp_path):
    with pytest.raises(DegamlError, match="No trained pair can be loaded"):
        Desk(DemoSettings(pairs=(("x", str(tmp_path / "nothing")),)), tmp_path)


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
def test_what_is_refused(desk, text, options, told):
    with pytest.raises((DemoError, PastedError), match=told):
        desk.start("a", text, **options)
    assert desk.runs.active == 0


def test_mistakes_can_be_left_out(desk):
    text = TWENTY + "\nno answer"
    kept, _ = adapt(desk, "skipping", text, skip_mistakes=True, budget=Budget(1, 1))
    assert kept.report.support == 20
    desk.leave("skipping")


def test_too_few_examples_are_told_by_the_session(desk):
    kept, run = adapt(desk, "few", "a => b\nc => d", held_out=1)
    assert kept is None
    assert run.state == "failed"
    assert "2 are needed" in run.error


def test_long_questions_are_refused(desk):
    kept, _ = adapt(desk, "long", budget=Budget(1, 1))
    with pytest.raises(DemoError, match="at most 100"):
        desk.ask("long", kept.id, "x" * 90, ["May" * 3, "June" * 3])
    desk.leave("long")


def test_leaving_stops_the_work(desk):
    async def leave():
        run = desk.start("leaver", TWENTY, held_out=5)
        desk.leave("leaver")
        return [kept async for kept in desk.follow("leaver", run)], run

    kept, run = asyncio.run(leave())
    assert run.state == "cancelled"
    assert not any(kept)


def test_who_stops_listening_stops_the_work(desk):
    async def stop():
        run = desk.start("listener", TWENTY, held_out=5)
        follow = desk.follow("listener", run)
        await anext(follow)
        await follow.aclose()
        return run

    assert asyncio.run(stop()).cancelled.is_set()


def test_a_page_is_gone_with_its_last_connection(desk):
    desk.connect("twice")
    visitor = desk.visitors.enter("twice")
    desk.connect("twice")
    desk.disconnect("twice")
    assert visitor.left is None
    desk.disconnect("twice")
    assert visitor.left is not None
    desk.connect("twice")
    assert visitor.left is None
    desk.disconnect("twice")
    desk.leave("twice")


def test_tasks_that_the_generator_was_trained_on_are_marked(desk, monkeypatch):
    task, other = desk.tasks[0], desk.tasks[1]
    trained = desk.pairs.session("tiny").trained
    monkeypatch.setattr(
        desk.pairs.session("tiny"), "trained", replace(trained, about={"tasks": [task.name]})
    )
    for name, changed, seen in (
        (task.name, "", True),
        (task.name, "\n\n", False),
        (other.name, "", False),
    ):
        kept, _ = adapt(desk, "seen", desk.ready_text(name) + changed, budget=Budget(1, 1))
        assert kept.seen is seen
        page = accuracies(kept.report, kept.seen) + history([kept], None, 0)
        assert page.count("was trained on this task") == (2 if seen else 0)
    desk.leave("seen")


def test_what_clients_left_is_deleted(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(desk, "_uploads", tmp_path)
    monkeypatch.setattr(desk, "_downloads", tmp_path / "downloads")
    old, new = tmp_path / "a" / "old.txt", tmp_path / "b" / "new.txt"
    zipped = tmp_path / "downloads" / "x" / "adapter.zip"
    for path in (old, new, zipped):
        path.parent.mkdir(parents=True)
        path.touch()
    for path in (old, zipped, old.parent, zipped.parent, new.parent):
        os.utime(path, (0, 0))
    # a folder counts from when something in it was deleted
    desk._clean()
    if old.parent.exists():
        os.utime(old.parent, (0, 0))
    desk._clean()
    assert not old.parent.exists()
    assert new.exists()
    assert zipped.exists()


def test_every_ready_task_is_read_back(desk):
    for task in desk.tasks[::9]:
        assert len(read_pasted(desk.ready_text(task.name)).examples) == 30
    with pytest.raises(DemoError, match="no ready task"):
        desk.ready_text("nothing")


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
