"""Runs of a small profile by the command itself, each in a forked process that a fault may end."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from kedro.framework.cli.cli import KedroCLI
from kedro.framework.startup import bootstrap_project

from degaml_kedro.tracking.server import check_server
from tests.conftest import ROOT, Project
from tests.pipelines.test_runs import numbers

RUNNERS = ["SequentialRunner", "ThreadRunner", "ParallelRunner", "degaml_kedro.runners.StageRunner"]
if importlib.util.find_spec("ray"):
    RUNNERS.append("degaml_kedro.runners.RayRunner")

# every kind of dataset, and little of each
SMALL = {
    "methods": ["base", "metaicl", "generalization_only", "degaml"],
    "splits": {"train": 8, "support": 4, "validation": 4, "test": 4},
    "generator": {"leave_out": [], "draws": 1},
    "policy": {
        "iterations": 1,
        "families": {"ttt": None, "ls": None, "tts": None, "written": None},
        "rollouts": {"count": 2},
    },
}
# a worker needs a moment to end with the run that was killed
_WORKER_SECONDS = 5.0
Fault = Callable[[], AbstractContextManager[object]]


class DifferenceError(AssertionError):
    """A run that went on behind a fault, and ended otherwise than one that met none."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: its exit status; a negative one is the signal that killed it.
        seconds: how long it took.
        output: its last lines.
    """

    status: int
    seconds: float
    output: str


class SmallRun:
    """A project whose runs are started here, with an undisturbed run to compare with.

    Attributes:
        project: its configuration and its data.
        seconds: of the undisturbed run.
    """

    def __init__(self, folder: Path, pipelines: str | None = None) -> None:
        """Make the configuration and the undisturbed run.

        Args:
            folder: for all of it.
            pipelines: their names, separated by commas; all of them where None.
        """
        bootstrap_project(ROOT)
        self._folder, self._pipelines = folder, pipelines
        self._database = folder / "mlflow.db"
        self.project = Project(folder, self._database)
        self.project.edit("smoke/parameters.yml", **SMALL)
        for unused in ("hub_tasks", "distributions"):
            (self.project.conf / "base" / f"parameters_{unused}.yml").unlink()
        check_server(f"sqlite:///{self._database}")
        shutil.copy(self._database, folder / "new.db")
        self._expected: dict[bool, dict[str, object]] = {}
        self._names: set[str] = set()
        self.seconds = self.undisturbed("SequentialRunner")

    def undisturbed(self, runner: str) -> float:
        """Make the run that others are compared with, once; its seconds.

        ``StageRunner`` gives some nodes all threads, by which sums are rounded otherwise: it is compared with itself.
        """
        key = runner.endswith("StageRunner")
        if key in self._expected:
            return self.seconds
        self.reset()
        whole = self.run(runner)
        if whole.status:
            raise DifferenceError(f"the undisturbed run ended with {whole.status}:\n{whole.output}")
        self._expected[key], self._names = numbers(self.project.data), self._all_names()
        self.reset()
        return whole.seconds

    def reset(self) -> None:
        """Nothing has run yet."""
        shutil.rmtree(self.project.data, ignore_errors=True)
        for left in self._folder.glob("mlflow.db*"):
            left.unlink()
        shutil.copy(self._folder / "new.db", self._database)

    def start(
        self, runner: str = "SequentialRunner", missing: bool = False, fault: Fault = nullcontext
    ) -> int:
        """Begin the command; returns its process, which leads a group of its own.

        Args:
            runner: by its name.
            missing: with ``--only-missing-outputs``.
            fault: what is wrong while it runs.
        """
        arguments = ["run", "--env", "smoke", "--conf-source", str(self.project.conf)]
        arguments += ["--runner", runner]
        arguments += ["--pipelines", self._pipelines] if self._pipelines else []
        arguments += ["--only-missing-outputs"] if missing else []
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            os.setsid()
            with self._log(os.getpid()).open("wb") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w")
            sys.argv = ["kedro", *arguments]
            os.chdir(ROOT)
            with fault():
                KedroCLI(ROOT).main(arguments, prog_name="kedro")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(status)

    def wait(self, child: int, kill_after: float | None = None) -> Outcome:
        """Wait for a command's end; it is killed after so many seconds if it has not come to it."""
        began, status = time.monotonic(), None
        while status is None:
            if kill_after is not None and time.monotonic() - began > kill_after:
                os.kill(child, signal.SIGKILL)
                kill_after = None
            found, code = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if found else None
            time.sleep(0.01)
        log = self._log(child)
        output = log.read_text(errors="replace") if log.exists() else ""
        log.unlink(missing_ok=True)
        return Outcome(status, time.monotonic() - began, output[-5000:])

    def run(
        self,
        runner: str = "SequentialRunner",
        missing: bool = False,
        fault: Fault = nullcontext,
        kill_after: float | None = None,
    ) -> Outcome:
        """Begin the command, and wait for its end."""
        return self.wait(self.start(runner, missing, fault), kill_after)

    def finish(self, runner: str = "SequentialRunner", missing: bool = True) -> None:
        """Run to the end, and compare.

        Raises:
            DifferenceError: it failed, what it made differs, or something is left.
        """
        outcome = self.run(runner, missing)
        if outcome.status:
            raise DifferenceError(
                f"the run behind the fault ended with {outcome.status}:\n{outcome.output}"
            )
        self.compare(runner)

    def compare(self, runner: str = "SequentialRunner") -> None:
        """Compare what is there with what the undisturbed run made, but for seconds.

        Raises:
            DifferenceError: something differs, is missing, is left, or MLflow still has a run for running.
        """
        if odd := sorted(self._all_names() ^ self._names):
            raise DifferenceError(f"missing, or left: {odd}")
        found = numbers(self.project.data)
        expected = self._expected[runner.endswith("StageRunner")]
        if odd := [name for name in found if found[name] != expected[name]]:
            raise DifferenceError(f"other bytes: {odd}")
        with closing(sqlite3.connect(self._database)) as database:
            (told,) = database.execute("pragma integrity_check").fetchone()
            running = database.execute("select name from runs where status = 'RUNNING'").fetchall()
        if told != "ok" or running:
            raise DifferenceError(f"MLflow's database: {told}, for running: {running}")

    def _log(self, process: int) -> Path:
        return self._folder / f"output-{process}"

    def _all_names(self) -> set[str]:
        data = self.project.data
        # the time of the last whole run: one that was resumed has none
        return {
            str(part.relative_to(data)) for part in data.rglob("*") if part.name != "run_time.json"
        }


def check_no_process(group: int) -> None:
    """Check that a command's own processes have ended with it.

    Raises:
        DifferenceError: some have not; they are killed.
    """
    began = time.monotonic()
    with suppress(ProcessLookupError):
        while time.monotonic() - began < _WORKER_SECONDS:
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
        raise DifferenceError(f"processes of the killed run {group} are left")
