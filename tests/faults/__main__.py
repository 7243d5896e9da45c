"""``make faults``: kills, full disks, jumping clocks and power failures in runs of a small profile, until time is up.

Each ends in a run that goes on, which is compared with one that met no fault. What was tried is kept in
``tests/artifacts/faults.json``: the next call goes on with what was not tried yet.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import MEMORY
from tests.faults.counts import RESULTS, read_counts, write_counts
from tests.faults.injection import FullFrom, Tape, jumping_clock, watched
from tests.faults.runs import RUNNERS, DifferenceError, SmallRun, State, check_no_process

# each resumes, so that the run to the end has the less to do
KILLS_IN_CHAIN = 6
# what calls leave is kept of so many in one run
AT_ONCE = 20


class Harness:
    """Tries faults, and keeps count."""

    def __init__(self, folder: Path) -> None:
        """Make the undisturbed run."""
        self.small = SmallRun(folder)
        # as long as the later ones, which need not import
        self.small.seconds = self.small.run().seconds
        self.states: list[State] = []
        self.left: Counter[int] = Counter()
        self.found: dict[str, Any] = {
            "kills": 0,
            "tried": {},
            "points": {"calls": 0, "tried": []},
            "differences": [],
        }
        self.found |= {name: value for name, value in read_counts().items() if name in self.found}
        # another draw in every call
        self.source = random.Random(json.dumps(self.found["tried"], sort_keys=True))

    def chain(self) -> str:
        """Kills at random instants, one after another, then a run to the end."""
        runner = self.source.choice(RUNNERS)
        self.small.undisturbed(runner)
        groups = []
        for _ in range(KILLS_IN_CHAIN):
            child = self.small.start(runner, missing=self.source.random() < 0.7)
            groups.append(child)
            outcome = self.small.wait(child, self.source.uniform(0, 1.1) * self.small.seconds)
            if outcome.status == 0:
                break
            if outcome.status > 0:
                raise DifferenceError(f"{runner} ended with {outcome.status}:\n{outcome.output}")
            self.found["kills"] += 1
        self.small.finish(runner, missing=self.source.random() < 0.7)
        for group in groups:
            check_no_process(group)
        return f"chains, {runner}"

    def point(self) -> str:
        """What a kill at a call that was not tried yet leaves, before it or after it."""
        if not self.states:
            self._record()
        state = self.states.pop()
        self.small.restore(state)
        self.small.finish(self.source.choice(RUNNERS[:2]), self.source.random() < 0.7)
        for number in state.calls:
            self.left[number] -= 1
        points = self.found["points"]
        done = {number for number in state.calls if not self.left[number]}
        points["tried"] = sorted({*points["tried"], *done})
        return "kills at a call"

    def full_disk(self) -> str:
        """A disk that is full from some call on: a sentence, and the next run goes on."""
        full = FullFrom(self.source.randint(1, self._calls()))
        outcome = self.small.run(fault=lambda: watched(full.before))
        # a run that only MLflow could not follow ends well
        if outcome.status > 0 and (
            "Traceback" in outcome.output
            or not re.search(r"Error: .*(No space left|no room)", " ".join(outcome.output.split()))
        ):
            raise DifferenceError(f"a full disk is no sentence:\n{outcome.output}")
        self.small.finish()
        return "full disks"

    def clock(self) -> str:
        """A clock that jumps."""
        seed = self.source.randrange(2**32)
        runner = self.source.choice(["SequentialRunner", "ThreadRunner"])
        outcome = self.small.run(runner, fault=lambda: jumping_clock(seed))
        if outcome.status:
            raise DifferenceError(f"under a jumping clock:\n{outcome.output}")
        self.small.compare()
        return "jumping clocks"

    def second(self) -> str:
        """A second run of the data folder, while the first is under way."""
        first = self.small.start()
        time.sleep(self.source.uniform(0.3, 0.9) * self.small.seconds)
        second = self.small.run()
        outcome = self.small.wait(first)
        told = " ".join(second.output.split())
        if outcome.status or (second.status and f"is in use by process {first} of" not in told):
            raise DifferenceError(f"two runs at once:\n{outcome.output}\n{second.output}")
        self.small.compare()
        return "second runs"

    def power(self) -> str:
        """A power failure: everything that no ``fsync`` brought to the disk is lost."""
        number, share = self.source.randint(1, self._calls()), self.source.choice([0.0, 0.5, 1.0])
        torn = self.small.project.data.with_name("torn")
        seed = self.source.randrange(2**32)
        self.small.run(
            fault=lambda: _power_failure(self.small.project.data, torn, number, share, seed)
        )
        shutil.rmtree(self.small.project.data, ignore_errors=True)
        if torn.exists():
            torn.rename(self.small.project.data)
        self.small.finish()
        return "power failures"

    def _calls(self) -> int:
        if not self.found["points"]["calls"]:
            self._record()
        return int(self.found["points"]["calls"])

    def _record(self) -> None:
        """Keep what is found at some of the calls that were not tried yet."""
        points = self.found["points"]
        every = range(1, (points["calls"] or 500) + 1)
        left = [number for number in every if number not in points["tried"]] or list(every)
        drawn = self.source.sample(left, min(AT_ONCE, len(left)))
        calls, self.states = self.small.recorded(drawn)
        points |= {"calls": calls.total(), "of": dict(calls)}
        self.left = Counter(number for state in self.states for number in state.calls)
        self.small.reset()

    def attempt(self, fault: Callable[[], str]) -> None:
        """Try a fault from an empty folder, and write down what came of it."""
        self.small.reset()
        try:
            name = fault()
        except DifferenceError as error:
            name = f"differences, {fault.__name__}"
            self.found["differences"].append(f"{fault.__name__}: {error}")
            kept = RESULTS.with_name(f"faults-{len(self.found['differences'])}")
            shutil.copytree(self.small.project.data, kept, dirs_exist_ok=True)
            print(f"{fault.__name__}: {error}\nWhat it left is in {kept}.", flush=True)
        self.found["tried"][name] = self.found["tried"].get(name, 0) + 1
        write_counts(**self.found)


@contextmanager
def _power_failure(data: Path, torn: Path, number: int, share: float, seed: int) -> Iterator[None]:
    """Write the folder down as it is on the disk at a call, and end there."""
    data.mkdir(parents=True, exist_ok=True)
    tape, source = Tape(data), random.Random(seed)
    count = 0

    def before(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            tape.write(torn, lambda: source.random() < share)
            os._exit(0)

    with watched(before, tape.after):
        yield


def main(arguments: list[str] | None = None) -> int:
    """Try faults until time is up; 1 where one made a difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--only", help="one kind: chain, point, full_disk, clock, second, power")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(
        prefix="faults-", dir=MEMORY if MEMORY.is_dir() else None
    ) as folder:
        harness = Harness(Path(folder))
        known = len(harness.found["differences"])
        # random kills and points are what takes long
        every = ("chain", "point", "chain", "power", "chain", "point", "chain", "full_disk")
        turn = 0
        while time.monotonic() - began < 60 * options.minutes:
            kinds = (*every, ("clock", "second")[turn // len(every) % 2])
            name = options.only or kinds[turn % len(kinds)]
            harness.attempt(getattr(harness, name))
            turn += 1
            told = ", ".join(f"{name} {count}" for name, count in harness.found["tried"].items())
            print(
                f"{(time.monotonic() - began) / 60:.0f} min: kills {harness.found['kills']}, {told}",
                flush=True,
            )
        return int(len(harness.found["differences"]) > known)


if __name__ == "__main__":
    sys.exit(main())
