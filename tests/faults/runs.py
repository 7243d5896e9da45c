"""Runs of a small profile by the command itself, each in a forked process that a fault may end."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from kedro.framework.cli.cli import KedroCLI
from kedro.framework.startup import bootstrap_project

from degaml_kedro.tracking.server import check_server
from tests.conftest import ROOT, Project
from tests.faults.injection import watched
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


@dataclass(frozen=True)
class State:
    """What a kill at some watched calls would leave.

    Attributes:
        folder: the data folder and MLflow's database, as they were.
        calls: the numbers of these calls; twice where it is the same before and after.
    """

    folder: Path
    calls: list[int]


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
        whole = self.run(runner, fault=self._noting_modules)
        if whole.status:
            raise DifferenceError(f"the undisturbed run ended with {whole.status}:\n{whole.output}")
        # what is imported here need not be by every run
        for name in (self._folder / "modules").read_text().split():
            with suppress(Exception):
                importlib.import_module(name)
        self._expected[key], self._names = numbers(self.project.data), self._all_names()
        self.reset()
        return whole.seconds

    def reset(self) -> None:
        """Nothing has run yet."""
        shutil.rmtree(self.project.data, ignore_errors=True)
        for left in self._databases():
            left.unlink()
        shutil.copy(self._folder / "new.db", self._database)

    def recorded(self, numbers: Collection[int]) -> tuple[Counter[str], list[State]]:
        """Run once, and keep what a kill at these watched calls would leave, before each and after it.

        Only what is on the disk outlives a kill: the files of that moment are all that it leaves.

        Returns:
            How often each call was made, and what was kept; places with the same bytes are kept once.
        """
        states = self._folder / "states"
        shutil.rmtree(states, ignore_errors=True)
        self.reset()
        outcome = self.run(fault=lambda: self._keeping(states, numbers))
        if outcome.status:
            raise DifferenceError(
                f"the recorded run ended with {outcome.status}:\n{outcome.output}"
            )
        places: dict[str, list[int]] = {}
        for number, digest in json.loads((states / "places").read_text()):
            places.setdefault(digest, []).append(number)
        calls = Counter(json.loads((states / "calls").read_text()))
        return calls, [State(states / name, found) for name, found in places.items()]

    def restore(self, state: State) -> None:
        """What was kept is there, and nothing else."""
        self.reset()
        for part in state.folder.iterdir():
            copy = shutil.copytree if part.is_dir() else shutil.copy2
            copy(part, self._folder / part.name)

    @contextmanager
    def _keeping(self, states: Path, numbers: Collection[int]) -> Iterator[None]:
        states.mkdir()
        calls: list[str] = []
        places: list[tuple[int, str]] = []

        def keep(*_: object) -> None:
            if len(calls) not in numbers:
                return
            parts = [part for part in (self.project.data, *self._databases()) if part.exists()]
            digest = _digest(self._folder, parts)
            places.append((len(calls), digest))
            if not (states / digest).exists():
                (states / digest).mkdir()
                for part in parts:
                    copy = shutil.copytree if part.is_dir() else shutil.copy2
                    copy(part, states / digest / part.name)

        def before(name: str, _: object) -> None:
            calls.append(name)
            keep()

        try:
            with watched(before, keep):
                yield
        finally:
            (states / "places").write_text(json.dumps(places))
            (states / "calls").write_text(json.dumps(Counter(calls)))

    def _databases(self) -> list[Path]:
        return sorted(self._folder.glob("mlflow.db*"))

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

    @contextmanager
    def _noting_modules(self) -> Iterator[None]:
        try:
            yield
        finally:
            (self._folder / "modules").write_text("\n".join(sys.modules))

    def _log(self, process: int) -> Path:
        return self._folder / f"output-{process}"

    def _all_names(self) -> set[str]:
        data = self.project.data
        # the time of the last whole run: one that was resumed has none
        return {
            str(part.relative_to(data)) for part in data.rglob("*") if part.name != "run_time.json"
        }


def _digest(folder: Path, parts: Iterable[Path]) -> str:
    """Of the names and the bytes of all files and folders in these."""
    found = hashlib.sha256()
    for part in parts:
        for path in (part, *sorted(part.rglob("*"))):
            data = path.read_bytes() if path.is_file() else b""
            found.update(f"{path.relative_to(folder)} {path.is_dir()} {len(data)} ".encode() + data)
    return found.hexdigest()


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
