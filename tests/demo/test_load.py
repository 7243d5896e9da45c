"""A few users at once, for some seconds; ``python -m benchmarks.load`` is the same with many, for minutes."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from benchmarks.load import QUESTION, Found, Memory, Tally, User, load, make_tasks
from benchmarks.page_client import Adapted, PageError

from benchmarks import load as load_module

pytestmark = pytest.mark.xdist_group("browser")


def test_five_users(app):
    found = load(app, users=5, minutes=0.15, tasks=3)
    assert found.errors == []
    assert found.mixed == []
    assert found.counts["adapted"] >= 3
    assert found.counts["asked"] >= found.counts["adapted"]
    assert found.after.models == 0
    assert f"adapted: {found.counts['adapted']}" in found.text()


def found_with(memory, left=0, **changes):
    fields = {"errors": [], "mixed": [], **changes}
    return Found(1, 5.0, {}, seconds={}, adaptations_per_minute=1.0, memory=memory,
                 after=Memory(6.0, memory[-1].megabytes, left), **fields)  # fmt: skip


def test_verdict():
    flat = [Memory(i / 12, 700.0 if i else 500.0, 3) for i in range(60)]
    growing = [Memory(i / 12, 700.0 + 10 * i, 3) for i in range(60)]
    assert found_with(flat).passed
    assert not found_with(growing).flat
    assert "NOT flat" in found_with(growing).text()
    assert not found_with(flat, left=1).passed
    assert not found_with(flat, errors=["one"]).passed
    assert not found_with(flat, mixed=["one"]).passed


class FakeClient:
    """A page that adapts at once, and answers as it is told to."""

    def __init__(self, task, shares, others=False):
        self.task, self.shares, self.others = task, shares, others

    def read(self, text):
        return {"rows": [{"example": {"prompt": prompt}} for prompt in self.task.prompts]}

    def adapt(self, text, held_out, give_up, **budget):
        report = {"support": 8, "held_out": 4, "changes": []}
        return Adapted("own", report, 0.0, ())

    def predict(self, model, question, options):
        assert question == QUESTION
        if model != "own" and not self.others:
            raise PageError("no such model")
        return self.shares

    def forget(self, model=""):
        pass


@pytest.mark.parametrize(
    ("shares", "others", "said"),
    [
        ((0.5, 0.5), False, None),
        ((0.9, 0.1), False, "as ['second'] would be"),
        ((0.7, 0.3), False, "as nobody would be"),
        ((0.5, 0.5), True, "could ask another user's model"),
    ],
)
def test_mix_ups_are_seen(monkeypatch, shares, others, said):
    monkeypatch.setattr(load_module, "_PRY", 1.0)
    monkeypatch.setattr(load_module, "_CANCEL", 0.0)
    (task,) = make_tasks(1)
    reference = {task.name: (0.5, 0.5), "second": (0.9, 0.1)}
    tally = Tally(ids=[(7, "another's")])
    user = User(1, "nowhere", [task], reference, tally, threading.Event().is_set)
    user._visit(FakeClient(task, shares, others), task)
    assert tally.errors == []
    if said is None:
        assert tally.mixed == []
        assert tally.counts >= Counter({"adapted": 1, "asked": 3, "refused another's model": 1})
    else:
        assert any(said in text for text in tally.mixed)
