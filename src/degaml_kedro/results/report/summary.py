"""What came out, in a few sentences: the verdict and what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from degaml_kedro.results.comparison import AIM, ComputeBudget, Contrast, Verdict, distributions
from degaml_kedro.results.report.document import (
    Block,
    Bullets,
    Inline,
    Paragraph,
    Section,
    code,
    paragraph,
    strong,
)
from degaml_kedro.results.report.figures import in_short
from degaml_kedro.results.report.findings import Findings, yardsticks
from degaml_kedro.results.report.glossary import POOLS
from degaml_kedro.results.report.words import (
    counted,
    interval_of_points,
    listed,
    p_value,
    percent,
    points,
    seconds,
)

# seeds that a claim wants
_SEEDS_FOR_A_CLAIM = 3


def summary(findings: Findings) -> Section:
    """The verdict and what it rests on."""
    runs = findings.runs
    blocks: list[Block] = []
    if findings.verdict is None:
        blocks.append(
            paragraph(
                "There are no held-out tasks, and so no verdict: name some under ",
                code("meta_test"),
                " in the parameters.",
            )
        )
    else:
        blocks += _verdict(findings.verdict)
    seeds = [str(run.seed) for run in runs.runs]
    items = [
        paragraph(
            f"Runs: {counted(len(seeds), 'seed')} ({listed(seeds)}) of the profile ",
            code(runs.runs[0].profile),
            ".",
        ),
        paragraph(f"Base model: {listed(_models(findings))}."),
    ]
    for pool in findings.pools:
        tasks = findings.tasks(pool)
        sizes = sorted({row.n for row in findings.rows[pool] if row.task and row.n})
        size = f", n = {_between(sizes)} each" if sizes else ""
        drawn = distributions(runs, pool)
        kind = "distribution" if drawn else "task"
        many = f" ({counted(sum(map(len, drawn.values())), 'task')} a seed)" if drawn else ""
        items.append(
            paragraph(f"{POOLS.get(pool, pool)}: {counted(len(tasks), kind)}{many}{size}.")
        )
    for pool in findings.pools:
        items.append(_best_of(findings, pool))
    if len(seeds) < _SEEDS_FOR_A_CLAIM:
        items.append(
            paragraph(
                f"A claim wants {_SEEDS_FOR_A_CLAIM} seeds at least; with {counted(len(seeds), 'seed')} this is a "
                f"first look."
            )
        )
    items.append(
        paragraph(
            "Intervals say how sure these questions make us of these tasks and seeds, not how other tasks or other "
            "seeds would do; of drawn tasks they speak of the distribution."
        )
    )
    return Section("summary", "Summary", (*blocks, Bullets(tuple(items))))


def _verdict(verdict: Verdict) -> list[Block]:
    aim = (
        f"the aim is {100 * AIM:.0f} points above the best of {listed(verdict.baselines)} on held-out tasks, with an "
        f"interval above 0, with no more adaptation tokens (forward and backward) than the costliest of them"
    )
    head = {
        True: "The aim is met",
        False: "The aim is not met",
        None: "Whether the aim is met is open",
    }
    parts: list[Inline] = [strong(f"{head[verdict.met]}"), f": {aim}."]
    found: list[Block] = [Paragraph(tuple(parts))]
    items = [_accuracy_of(verdict)]
    if verdict.contrast is not None:
        items.append(_difference_of(verdict, verdict.contrast))
    items.append(paragraph(_budget_of(verdict.budget)))
    if verdict.missing:
        items.append(paragraph(f"Missing: {_gathered(verdict.missing)}."))
    return [*found, Bullets(tuple(items))]


def _gathered(missing: Sequence[str]) -> str:
    """``abmll: rhymes`` and ``abmll: months`` as ``abmll (rhymes, months)``."""
    places: dict[str, list[str]] = {}
    for item in missing:
        method, place = item.split(": ", 1)
        places.setdefault(method, []).append(place)
    return "; ".join(f"{method} ({', '.join(own)})" for method, own in places.items())


def _accuracy_of(verdict: Verdict) -> Paragraph:
    if verdict.accuracy is None:
        return paragraph(
            code(verdict.method),
            " has no mean accuracy: it has no results, or not on all tasks; ",
            code("kedro run"),
            " makes them.",
        )
    own = f" has a mean accuracy of {percent(verdict.accuracy)} %. "
    if verdict.best is None or verdict.best_accuracy is None:
        return paragraph(
            code(verdict.method),
            own,
            "None of the baselines has results on all tasks; ",
            code("kedro run --pipeline baselines"),
            " makes them.",
        )
    return paragraph(
        code(verdict.method),
        own,
        "The best baseline, ",
        code(verdict.best),
        f", has {percent(verdict.best_accuracy)} %.",
    )


def _difference_of(verdict: Verdict, contrast: Contrast) -> Paragraph:
    size = "at least" if verdict.enough else "less than"
    side = "above 0" if verdict.above_zero else "not above 0"
    return paragraph(
        f"Difference: {points(contrast.mean)} points, {size} {100 * AIM:.0f}; simultaneous 95 % interval "
        f"{interval_of_points(contrast.low_adjusted, contrast.high_adjusted)}, {side}; Holm-adjusted p "
        f"{_equals(p_value(contrast.p_adjusted))}, both corrected for "
        f"{counted(contrast.family, 'comparison')} (n = {contrast.pairs} pairs of answers in {contrast.strata} strata: "
        f"{counted(len(contrast.tasks), 'task')} by seeds)."
    )


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _budget_of(budget: ComputeBudget) -> str:
    if budget.tokens is None or budget.seconds is None:
        return f"Adaptation compute of {budget.method} was not counted."
    own = f"Adaptation to a task takes {budget.method} {in_short(budget.tokens)} tokens"
    if budget.most_tokens is None or budget.most_seconds is None:
        return f"{own} and {seconds(budget.seconds)}; that of the baselines was not counted."
    most = (
        f"the costliest baseline takes {in_short(budget.most_tokens)} ({budget.costliest_tokens})"
    )
    says = {True: "within", False: "beyond", None: "not known to be within"}
    unknown = f" Not counted: {listed(budget.missing)}." if budget.missing else ""
    return (
        f"{own}; {most}: {says[budget.within]}. Time beside it, which does not decide: {seconds(budget.seconds)}, and "
        f"{seconds(budget.most_seconds)} at most ({budget.costliest_seconds}).{unknown}"
    )


def _models(findings: Findings) -> list[str]:
    results = findings.runs.results()
    if "model" not in results:
        return ["not recorded"]
    return [str(model) for model in dict.fromkeys(results["model"].dropna())] or ["not recorded"]


def _best_of(findings: Findings, pool: str) -> Paragraph:
    best = findings.winners.get((pool, None))
    where = POOLS.get(pool, pool)
    aside = [name for name in yardsticks(pool) if name in findings.runs.methods]
    but = f" ({listed(aside)}, a yardstick, left out)" if aside else ""
    if best is None:
        return paragraph(f"{where}: no method is better than every other one beyond chance{but}.")
    return paragraph(
        f"{where}: ", code(best), f" is better than every other method beyond chance{but}."
    )


def _between(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
