"""Adaptations in processes of their own: the same as in the page's, and nothing hangs when one ends."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest
from demo.service import Service

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.session import AdaptationCancelled, Budget
from degaml_kedro.tasks.pasted import read_pasted
from demo import DemoSettings
from tests.checkpoint.helpers import write_tiny_pair
from tests.demo.pages import TWENTY

EXAMPLES = read_pasted(TWENTY).examples
HOW = {"held_out": 5, "budget": Budget(1, 1), "seed": 0}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    pair = str(write_tiny_pair(folder / "pair"))
    made = Service(DemoSettings(pairs=(("tiny", pair),), concurrency=2), folder / "downloads")
    yield made
    made.close()
    assert not any(worker.process.is_alive() for worker in made._workers)


async def follow_all(service, runs):
    async def follow(run):
        async for _ in service.follow(run):
            pass

    await asyncio.gather(*map(follow, runs))


def test_two_at_once_come_to_what_one_comes_to(service):
    runs = [service.start(token, TWENTY, **HOW) for token in "ab"]
    asyncio.run(follow_all(service, runs))
    assert [run.state for run in runs] == ["done", "done"], [run.error for run in runs]
    alone = service.pairs.session("tiny").adapt(EXAMPLES, **HOW)
    for run in runs:
        question, _, told, kept = service.ask(run.token, run.id, "Which month?", ["May", "June"])
        assert told.probabilities == alone.predict([question])[0].probabilities
        assert kept.model.report.strategy == alone.report.strategy
        assert list(run.progress)[-1] == "done"
    assert service.archive("a", runs[0].id).is_file()


def test_what_is_stopped_refused_and_killed(service):
    worker, never = service._workers[0], threading.Event()

    def adapt(examples=EXAMPLES, progress=lambda _: None, cancel=never):
        return worker.adapt("tiny", examples, progress, cancel, **HOW)

    stopped = threading.Event()
    stopped.set()
    with pytest.raises(AdaptationCancelled):
        adapt(cancel=stopped)
    with pytest.raises(DegamlError, match="are needed"):
        adapt(EXAMPLES[:6])
    with pytest.raises(DegamlError, match="The process that adapted has ended"):
        adapt(progress=lambda _: os.kill(worker.process.pid, signal.SIGKILL))
    assert adapt().report.support == 15
