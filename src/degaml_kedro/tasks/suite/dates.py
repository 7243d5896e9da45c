"""Days of the week, months and seasons."""

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


def _days_later(rng: random.Random, size: int) -> SuiteQuestion:
    index, days = rng.randrange(7), rng.randint(2, 6)
    shown, answer = DAYS[index], DAYS[(index + days) % 7]
    wordings = (
        "Today is {shown}. What day is it in {days} days?",
        "{event} is {days} days after {shown}. On which day is it?",
        "Which day is {days} days after {shown}?",
    )
    text = word(rng, wordings, shown=shown, days=days, event=_event(rng))
    return SuiteQuestion(
        text, answer, pick(rng, DAYS, size - 1, lambda day: day not in (shown, answer))
    )


def _between(rng: random.Random, size: int) -> SuiteQuestion:
    cycle, unit = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    index = rng.randrange(len(cycle))
    before, answer, after = (cycle[(index + step) % len(cycle)] for step in range(3))
    wordings = (
        "Which {unit} is between {before} and {after}?",
        "{before} is followed by which {unit}, and then {after}?",
        "What comes after {before} and before {after}?",
    )
    text = word(rng, wordings, unit=unit, before=before, after=after)
    wrong = pick(rng, cycle, size - 1, lambda day: day not in (before, answer, after))
    return SuiteQuestion(text, answer, wrong)


def _in_year(rng: random.Random, size: int) -> SuiteQuestion:
    earliest = rng.random() < 0.5
    ranked = sorted(pick(rng, MONTHS, size), key=MONTHS.index, reverse=not earliest)
    wordings = (
        "Which of these months comes {place} in the year?",
        "Which month is the {degree} of the year among these?",
        "Starting in January, which of these months do you reach {place}?",
    )
    text = word(
        rng,
        wordings,
        place="first" if earliest else "last",
        degree="earliest" if earliest else "latest",
    )
    return SuiteQuestion(text, ranked[0], tuple(ranked[1:]))


def _month_length(rng: random.Random, size: int) -> SuiteQuestion | None:
    year = rng.randint(1950, 2049)
    lengths = {month: calendar.monthrange(year, MONTHS.index(month) + 1)[1] for month in MONTHS}
    length = rng.choice(sorted(set(lengths.values())))
    answer = pick(rng, MONTHS, 1, lambda month: lengths[month] == length)
    wrong = pick(rng, MONTHS, size - 1, lambda month: lengths[month] != length)
    wordings = (
        "Which month of {year} has {length} days?",
        "In {year}, which of these months is {length} days long?",
        "A calendar page of {year} with {length} days shows which month?",
        "Find the month of {length} days in {year}.",
    )
    return SuiteQuestion(word(rng, wordings, length=length, year=year), answer[0], wrong)


def _season(rng: random.Random, size: int) -> SuiteQuestion:
    seasons = word_lists("dates")["seasons"]
    season = rng.choice(tuple(seasons))
    answer = rng.choice(seasons[season])
    wrong = pick(rng, MONTHS, size - 1, lambda month: month not in seasons[season])
    wordings = (
        "In Europe, which of these months is in {season}?",
        "In Canada, which month belongs to {season}?",
        "Which of these is a month of {season} in the north?",
        "In Japan, {season} includes which month?",
    )
    return SuiteQuestion(word(rng, wordings, season=season), answer, wrong)


def _holiday(rng: random.Random, size: int) -> SuiteQuestion:
    holidays = word_lists("dates")["holidays"]
    holiday = rng.choice(tuple(holidays))
    wordings = (
        "In which month is {holiday}?",
        "Which month is the month of {holiday}?",
        "{holiday} is celebrated in which month?",
    )
    wrong = pick(rng, MONTHS, size - 1, lambda month: month != holidays[holiday])
    return SuiteQuestion(word(rng, wordings, holiday=holiday), holidays[holiday], wrong)


FAMILIES = (
    Family("day_after", GROUP, "The day after a day of the week.", _day_after, (3, 4, 5)),
    Family("day_before", GROUP, "The day before a day of the week.", _day_before, (3, 4, 5)),
    Family("month_after", GROUP, "The month after a month.", _month_after),
    Family("month_before", GROUP, "The month before a month.", _month_before),
    Family("days_later", GROUP, "The day of the week some days later.", _days_later, (3, 4, 5)),
    Family(
        "day_or_month_between", GROUP, "What comes between two days or months.", _between, (3, 4, 5)
    ),
    Family(
        "month_order", GROUP, "Which month comes first or last in the year.", _in_year, (3, 4, 5)
    ),
    Family("month_length", GROUP, "Which month has so many days.", _month_length, (3, 4)),
    Family("month_of_season", GROUP, "Which month belongs to a season.", _season, (3, 4, 5)),
    Family("month_of_holiday", GROUP, "The month of a holiday.", _holiday),
)
