"""Days of the week and months."""

from __future__ import annotations

import calendar
import random

from degaml_kedro.tasks.suite.drawing import pick, word, word_lists
from degaml_kedro.tasks.suite.family import Family, SuiteQuestion

GROUP = "calendar"

DAYS = tuple(calendar.day_name)
MONTHS = tuple(calendar.month_name)[1:]


def _event(rng: random.Random) -> str:
    event: str = rng.choice(word_lists("dates")["events"])
    return event


def _neighbor(
    rng: random.Random, size: int, cycle: tuple[str, ...], unit: str, step: int
) -> SuiteQuestion:
    index = rng.randrange(len(cycle))
    shown, answer = cycle[index], cycle[(index + step) % len(cycle)]
    side = "after" if step > 0 else "before"
    wordings: tuple[str, ...]
    if rng.random() < 0.5:
        wordings = (
            "Which {unit} comes right {side} {shown}?",
            "What is the {unit} {side} {shown}?",
            "If it is {shown}, what {be} the {turn} {unit}?",
        )
    else:
        wordings = (
            "{event} is {on} the {unit} {side} {shown}. When is it?",
            "{event} was in {shown} and moved to the {unit} {side}. When is it now?"
            if unit == "month"
            else "{event} was on {shown} and moved to the day {side}. When is it now?",
        )
    text = word(
        rng,
        wordings,
        unit=unit,
        shown=shown,
        side=side,
        event=_event(rng),
        on="on" if unit == "day" else "in",
        be="is" if step > 0 else "was",
        turn="next" if step > 0 else "previous",
    )
    return SuiteQuestion(
        text, answer, pick(rng, cycle, size - 1, lambda day: day not in (shown, answer))
    )


def _day_after(rng: random.Random, size: int) -> SuiteQuestion:
    return _neighbor(rng, size, DAYS, "day", 1)


def _day_before(rng: random.Random, size: int) -> SuiteQuestion:
    return _neighbor(rng, size, DAYS, "day", -1)


def _month_after(rng: random.Random, size: int) -> SuiteQuestion:
    return _neighbor(rng, size, MONTHS, "month", 1)


def _month_before(rng: random.Random, size: int) -> SuiteQuestion:
    return _neighbor(rng, size, MONTHS, "month", -1)


FAMILIES = (
    Family("day_after", GROUP, "The day after a day of the week.", _day_after, (3, 4, 5)),
    Family("day_before", GROUP, "The day before a day of the week.", _day_before, (3, 4, 5)),
    Family("month_after", GROUP, "The month after a month.", _month_after),
    Family("month_before", GROUP, "The month before a month.", _month_before),
)
