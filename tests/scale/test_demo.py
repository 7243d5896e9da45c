"""The page's adaptations on a Ray cluster."""

from __future__ import annotations

import asyncio
import time

import pytest
from demo.service import Service

from degaml_kedro.session import Budget
from demo import DemoSettings
from tests.conftest import ROOT
from tests.demo.pages import TWENTY
from tests.demo.pairs import write_pairs

ray = pytest.importorskip("ray", reason="the extra ray is not installed: make test-scale")

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """One that adapts in its own threads, and one on a cluster."""
    folder = tmp_path_factory.mktemp("pairs")
    folders = write_pairs(folder)
    pairs = (("tiny", str(folders["tiny"])), ("slow", str(folders["slow"])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", f"{ROOT}/src:{ROOT}", prepend=":")
        made = [
            Service(DemoSettings(pairs=pairs, max_seconds=120, ray=ray), folder / f"{ray}")
            for ray in (None, "local")
        ]
        yield made
        for one in made:
            one.close()


def follow(service, run):
    """All stages that were told of, in order."""

    async def stages():
        return [one.stage async for told in service.follow(run) for one in told]

    return list(dict.fromkeys(asyncio.run(stages())))


def until(happens, seconds=120):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_the_cluster_s_adapter_is_the_one_that_this_process_makes(services, tmp_path):
    runs, stages = [], []
    for service in services:
        run = service.start("a", TWENTY, held_out=5, budget=Budget(1, 1), pair="tiny")
        stages.append(follow(service, run))
        assert run.state == "done", run.error
        run.model.save(tmp_path / str(len(runs)))
        runs.append(run)
    assert len(stages[0]) > 2
    assert stages[0] == stages[1]
    own, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.safetensors")}
        for name in "01"
    )
    assert own
    assert own == theirs
    assert runs[0].model.labels == runs[1].model.labels
    asked = [
        service.ask("a", run.id, "Which?", ["May", "June"])
        for service, run in zip(services, runs, strict=True)
    ]
    assert asked[0][1:3] == asked[1][1:3]


def test_an_error_comes_back_as_the_sentence_that_it_is(services):
    said = []
    for service in services:
        run = service.start("b", "What comes? | May* | June", pair="tiny")
        follow(service, run)
        assert run.state == "failed"
        said.append(run.error)
    assert "1 example(s) are left to adapt to" in said[0]
    assert said[0] == said[1]


def test_what_is_cancelled_stops_and_the_next_one_runs(services):
    service = services[1]
    run = service.start("c", TWENTY, budget=Budget(4, 6), pair="slow")
    until(lambda: run.progress)
    service.cancel("c")
    until(lambda: run.over)
    assert (run.state, run.error) == ("cancelled", "Stopped, as you asked.")
    again = service.start("c", TWENTY, budget=Budget(1, 1), pair="tiny")
    follow(service, again)
    assert again.state == "done", again.error


def test_an_adaptation_whose_worker_dies_is_begun_again(services):
    service = services[1]
    run = service.start("d", TWENTY, budget=Budget(1, 2), pair="slow")
    until(lambda: run.progress)
    (actor,) = service._cluster._actors.values()
    ray.kill(actor, no_restart=False)
    follow(service, run)
    assert run.state == "done", run.error
