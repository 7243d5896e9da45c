"""Faults in whole runs, a few: `make faults` tries many more."""

from __future__ import annotations

import os
import signal
import time

import pytest

from degaml_kedro.common.folders import LOCK_FILE
from tests.faults.injection import KillAt, jumping_clock, watched
from tests.faults.runs import SmallRun, check_no_process

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return SmallRun(tmp_path_factory.mktemp("faults"), "tasks,checkpoints")


@pytest.fixture
def small(undisturbed):
    undisturbed.reset()
    return undisturbed


def test_killed_in_processes_then_at_a_call_in_threads_it_goes_on(small):
    child = small.start("ParallelRunner")
    while not any(small.project.data.rglob("resume.safetensors")):
        time.sleep(0.01)
    assert small.wait(child, kill_after=0).status < 0
    # at once: what its workers are at must not be in the way
    kill = KillAt(60)
    assert small.run("ThreadRunner", True, lambda: watched(kill.before)).status < 0
    small.finish()
    check_no_process(child)


def test_a_second_run_is_told_who_has_the_folder_and_the_first_goes_on_under_a_jumping_clock(small):
    first = small.start(fault=lambda: jumping_clock(0))
    lock = small.project.data / LOCK_FILE
    while not (lock.is_file() and lock.read_text()):
        time.sleep(0.01)
    os.kill(first, signal.SIGSTOP)
    second = small.run()
    os.kill(first, signal.SIGCONT)
    assert second.status == 1
    told = " ".join(second.output.split())
    assert f"Error: {small.project.data} is in use by process {first} of" in told
    assert "(kedro run --env smoke" in told
    assert small.wait(first).status == 0
    small.compare()
