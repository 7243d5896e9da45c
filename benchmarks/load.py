"""Scripted users on the page's queue: errors, mixed-up answers, waiting times, throughput and memory.

``python -m benchmarks.load [--users 50] [--minutes 5] [--pair SOURCE] [--output FILE]`` starts the page on this machine
and lets every user paste a task, wait for its turn, adapt, ask, and leave or come again; some give up on the way.

How a mix-up is seen: every task is adapted once before anybody else is there. The same examples give the same adapter,
so whoever asks theirs must be told that adapter's probabilities and no others; those of the tasks differ. Besides,
users try each other's models by their ids, and must be refused.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.page_client import PageClient, PageError
from benchmarks.watched_app import AppProcess, running_app
from degaml_kedro.tasks.ready import ready_task

SUPPORT, HELD_OUT = 8, 4
# the same for all tasks: answers differ by the adapter alone
QUESTION, OPTIONS = "What comes next?", ("Monday", "seven", "a bird", "France")
TASKS = 4
# unlike each other, so that their adapters answer otherwise
_READY = (
    "element_symbol",
    "tenant_desks",
    "number_parity",
    "word_language",
    "verb_negative",
    "country_currency",
)
# a small one: many adaptations in little time, and no clock that decides what is tried
BUDGET: dict[str, Any] = {"rounds": 1, "proposals": 2, "seconds": 60}
# answers of one adapter, asked alone and among others, differ by rounding at most; those of two tasks by more
SAME, DIFFERENT = 0.01, 0.05
# of the memory after the first fifth of the time
GROWTH = 1.10
_LEAVE, _CANCEL, _PRY = 0.3, 0.15, 0.3
_QUESTIONS = 3


@dataclass(frozen=True)
class Task:
    """What a user pastes and asks.

    Attributes:
        name: the ready task's.
        text: the examples, a JSON record a line.
        prompts: of the examples.
        questions: the same without their options.
    """

    name: str
    text: str
    prompts: frozenset[str]
    questions: frozenset[str]


@dataclass
class Tally:
    """What has happened, to all users together."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    ids: list[tuple[int, str]] = field(default_factory=list)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def error(self, text: str) -> None:
        with self.lock:
            self.errors.append(text)

    def mix_up(self, text: str) -> None:
        with self.lock:
            self.mixed.append(text)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.took(what, time.monotonic() - began)

    def took(self, what: str, seconds: float) -> None:
        with self.lock:
            self.seconds.setdefault(what, []).append(seconds)


@dataclass(frozen=True)
class Memory:
    """The page's memory at some time.

    Attributes:
        minutes: since the users came.
        megabytes: resident.
        models: adapted models that were held.
    """

    minutes: float
    megabytes: float
    models: int


@dataclass(frozen=True)
class Found:
    """What a run of the load found.

    Attributes:
        users: how many there were.
        minutes: for how long.
        counts: calls by name, adaptations that were cancelled or turned away, refusals.
        errors: what went wrong.
        mixed: answers that were not the user's own.
        seconds: median, 95 % and longest by what was waited for.
        adaptations_per_minute: that were carried out.
        memory: over time.
        after: when everybody had gone.
    """

    users: int
    minutes: float
    counts: dict[str, int]
    errors: list[str]
    mixed: list[str]
    seconds: dict[str, tuple[float, float, float]]
    adaptations_per_minute: float
    memory: list[Memory]
    after: Memory

    @property
    def growth(self) -> float:
        """The memory of the last fifth of the time, and after it, to that of the second fifth."""
        fifth = max(1, len(self.memory) // 5)
        early = statistics.median(
            one.megabytes for one in self.memory[fifth : 2 * fifth] or self.memory
        )
        late = statistics.median(one.megabytes for one in self.memory[-fifth:])
        return max(late, self.after.megabytes) / early

    @property
    def flat(self) -> bool:
        """Whether the memory stays what it is, and nobody's models stay behind."""
        return self.growth <= GROWTH and self.after.models == 0

    @property
    def passed(self) -> bool:
        """No error, no mix-up, and flat memory."""
        return not self.errors and not self.mixed and self.flat

    def text(self) -> str:
        """For people."""
        lines = [
            f"{self.users} users, {self.minutes:g} minutes: {self.adaptations_per_minute:.1f} adaptations a minute",
            f"errors: {len(self.errors)}, mixed-up answers: {len(self.mixed)}",
            ", ".join(f"{name}: {count}" for name, count in sorted(self.counts.items())),
            "",
            "| seconds | median | 95 % | longest |",
            "| --- | --- | --- | --- |",
            *(
                f"| {name} | {middle:.2f} | {most:.2f} | {longest:.2f} |"
                for name, (middle, most, longest) in sorted(self.seconds.items())
            ),
            "",
            "| minute | memory (MB) | models |",
            "| --- | --- | --- |",
            *(
                f"| {one.minutes:.1f} | {one.megabytes:.0f} | {one.models} |"
                for one in [*_by_minute(self.memory), self.after]
            ),
            "",
            (
                f"memory is {'flat' if self.flat else 'NOT flat'}: {self.growth:.2f} of what it was early on, "
                f"{self.after.models} models left"
            ),
            *(f"error: {text}" for text in self.errors[:20]),
            *(f"mixed up: {text}" for text in self.mixed[:20]),
        ]
        return "\n".join(lines)


def _by_minute(memory: Sequence[Memory]) -> list[Memory]:
    minutes: dict[int, Memory] = {}
    for one in memory:
        minutes.setdefault(int(one.minutes), one)
    return list(minutes.values())


def make_tasks(count: int = TASKS) -> list[Task]:
    """Ready tasks, a dozen examples each."""
    made = []
    for task in map(ready_task, _READY[:count]):
        support, held_out = task.draw(SUPPORT, HELD_OUT, seed=0)
        every = [*support, *held_out]
        records = [
            {"prompt": one.prompt, "response": one.response, "system": one.system} for one in every
        ]
        made.append(
            Task(
                task.name,
                "\n".join(json.dumps(record) for record in records),
                frozenset(one.prompt for one in every),
                frozenset(one.question for one in every),
            )
        )
    return made


Reference = dict[str, tuple[float, ...]]


def measure_reference(url: str, tasks: Sequence[Task]) -> Reference:
    """What each task's adapter answers when nobody else is there.

    Raises:
        RuntimeError: two tasks answer alike, so that a mix-up of their adapters could not be seen.
    """
    found: Reference = {}
    with PageClient(url) as client:
        for task in tasks:
            adapted = client.adapt(task.text, HELD_OUT, **BUDGET)
            if adapted is None:
                raise RuntimeError(f"the adaptation to {task.name} was stopped")
            found[task.name] = client.predict(adapted.model, QUESTION, OPTIONS)
            client.forget(adapted.model)
    names = list(found)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if _distance(found[one], found[other]) < DIFFERENT:
                raise RuntimeError(f"the adapters of {one} and {other} answer alike; take others")
    return found


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of log-probabilities: a small model is often sure of one option, whatever it was told."""
    return max(abs(math.log(a / b)) for a, b in zip(one, other, strict=True))


class User:
    """One user's visits, as a thread."""

    def __init__(
        self,
        number: int,
        url: str,
        tasks: Sequence[Task],
        reference: Reference,
        tally: Tally,
        over: Callable[[], bool],
    ) -> None:
        self._number, self._url, self._tasks = number, url, tasks
        self._reference, self._tally, self._over = reference, tally, over
        self._dice = random.Random(number)

    def run(self) -> None:
        """Visit until the time is over."""
        visit = 0
        while not self._over():
            try:
                with PageClient(self._url) as client:
                    staying = True
                    while staying and not self._over():
                        task = self._tasks[(self._number + visit) % len(self._tasks)]
                        visit += 1
                        self._visit(client, task)
                        staying = self._dice.random() > _LEAVE
            except Exception as error:  # noqa: BLE001 - whatever goes wrong is what this is to find
                self._tally.error(f"user {self._number}: {type(error).__name__}: {error}")
                time.sleep(1)

    def _visit(self, client: PageClient, task: Task) -> None:
        tally = self._tally
        with tally.timed("reading"):
            rows = client.read(task.text)["rows"]
        tally.count("read")
        if {row["example"]["prompt"] for row in rows} != task.prompts:
            tally.mix_up(f"{task.name}: the rows that were read are not those that were pasted")
        patience = self._dice.uniform(0, 5) if self._dice.random() < _CANCEL else math.inf
        began = time.monotonic()
        try:
            adapted = client.adapt(
                task.text, HELD_OUT, lambda spent: spent > patience or self._over(), **BUDGET
            )
        except PageError as error:
            if not error.full:
                raise
            tally.count("turned away, queue full")
            time.sleep(self._dice.uniform(1, 3))
            return
        if adapted is None:
            tally.count("given up")
            return
        tally.count("adapted")
        tally.took("waiting in the queue", adapted.waited)
        tally.took("adapting", time.monotonic() - began - adapted.waited)
        self._check_report(task, adapted.report)
        self._ask(client, task, adapted.model)
        self._pry(client)
        with tally.lock:
            tally.ids.append((self._number, adapted.model))
        if self._dice.random() < 0.5:
            client.forget(adapted.model)
            tally.count("forgotten")

    def _check_report(self, task: Task, report: dict[str, Any]) -> None:
        found = (report["support"], report["held_out"])
        if found != (SUPPORT, HELD_OUT):
            self._tally.mix_up(f"{task.name}: a report of {found} examples")
        for change in report["changes"]:
            if change["question"] not in task.questions:
                self._tally.mix_up(f"{task.name}: a change of {change['question']!r}")

    def _ask(self, client: PageClient, task: Task, model: str) -> None:
        for _ in range(_QUESTIONS):
            with self._tally.timed("asking"):
                told = client.predict(model, QUESTION, OPTIONS)
            self._tally.count("asked")
            if _distance(told, self._reference[task.name]) > SAME:
                whose = [n for n, p in self._reference.items() if _distance(told, p) <= SAME]
                self._tally.mix_up(f"{task.name} was told {told}, as {whose or 'nobody'} would be")

    def _pry(self, client: PageClient) -> None:
        """Ask another user's model."""
        with self._tally.lock:
            others = [model for number, model in self._tally.ids[-50:] if number != self._number]
        if not others or self._dice.random() > _PRY:
            return
        try:
            client.predict(self._dice.choice(others), QUESTION, OPTIONS)
        except PageError:
            self._tally.count("refused another's model")
        else:
            self._tally.mix_up(f"user {self._number} could ask another user's model")


def load(app: AppProcess, users: int, minutes: float, tasks: int = TASKS) -> Found:
    """Let users loose on a page.

    Args:
        app: the page, with room for all of them in its queue.
        users: how many.
        minutes: for how long; what goes on then is stopped.
        tasks: how many different ones they bring.
    """
    made = make_tasks(tasks)
    reference = measure_reference(app.url, made)
    tally = Tally()
    began = time.monotonic()

    def over() -> bool:
        return time.monotonic() - began > 60 * minutes

    threads = [
        threading.Thread(target=User(i, app.url, made, reference, tally, over).run, daemon=True)
        for i in range(users)
    ]
    for thread in threads:
        thread.start()
    memory = []
    pause = min(5.0, 60 * minutes / 20)
    while not over():
        memory.append(_memory(app, began))
        time.sleep(pause)
    spent = (time.monotonic() - began) / 60
    for thread in threads:
        thread.join(120)
        if thread.is_alive():
            tally.error("a user is still waiting two minutes after the end")
            break
    try:
        app.wait_idle(60, models=0)
    except RuntimeError as error:
        tally.error(str(error))
    return Found(
        users,
        minutes,
        dict(tally.counts),
        tally.errors,
        tally.mixed,
        {name: _spread(values) for name, values in tally.seconds.items()},
        tally.counts["adapted"] / spent,
        memory,
        _memory(app, began),
    )


def _memory(app: AppProcess, began: float) -> Memory:
    now = app.watch()
    return Memory((time.monotonic() - began) / 60, now.rss / 2**20, now.models)


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and print what was found; 1 where something went wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument(
        "--tasks",
        type=int,
        choices=range(1, len(_READY) + 1),
        default=TASKS,
        help="different ones (%(default)s)",
    )
    parser.add_argument("--pair", help="a source for Session.load; default: the shipped pair")
    parser.add_argument("--output", type=Path, help="a JSON file for what was found")
    asked = parser.parse_args(arguments)
    if not 1 <= asked.users <= 500 or not 0 < asked.minutes <= 60:
        parser.error("there may be 1 to 500 users, for up to 60 minutes")
    options = ["--queue-size", str(asked.users), "--grace", "10"]
    options += ["--pair", asked.pair] if asked.pair else []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_app(Path(folder) / "app", *options) as app,
    ):
        found = load(app, asked.users, asked.minutes, asked.tasks)
    print(found.text())
    if asked.output is not None:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            {**asdict(found), "growth": found.growth, "passed": found.passed}, indent=1
        )
        asked.output.write_text(text + "\n", encoding="utf-8")
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
