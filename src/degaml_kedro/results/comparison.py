"""Method against method: differences with their uncertainty, what they cost, and what may be claimed.

Methods are compared question by question. A stratum is a task of a run. Tasks weigh alike, and so do a task's seeds: a
mean is over seeds within a task first, then over tasks. Within each stratum the questions are drawn again with
replacement. Listed tasks and seeds stay: an interval says how sure these questions make us of these tasks and seeds,
not how other tasks or other seeds would do. Tasks that were drawn from a distribution are drawn again as well, within
their seed: their interval speaks of the distribution. Where several seeds were tested on the very same questions
(``split`` is equal), these are drawn once for all of them: a question that is hard is hard for every seed.

Shapes: n questions of a stratum, m methods or contrasts, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests

from degaml_kedro.results.measures import ResultsError, wilson_interval
from degaml_kedro.results.runs import BOUNDS, Runs
from degaml_kedro.seeds import derive_seed

RESAMPLES = 20_000
ALPHA = 0.05
# the aim: accuracy above the best of the paper's baselines
AIM = 0.02
# the paper's four; on held-out tasks the one without meta-training has the support examples only, as the others do
PAPER_BASELINES = ("no_meta_train_support", "union_train", "maml_en_llm", "abmll")
# nothing is learned before the task comes, so that no record means no cost
_WITHOUT_META_TRAINING = (
    "base",
    "icl",
    "sentence_head",
    "closed_form",
    "no_meta_train",
    "no_meta_train_support",
)
# nothing is done at a task, and so there are no settings of that to search: likewise
_WITHOUT_ADAPTATION = ("base", "pooled", "mean_adapter")
# counts of drawn questions held at once
_CHUNK = 1_000_000
STAGES = ("meta_training", "search", "adaptation")


class ResultKey(NamedTuple):
    """Where a method answered."""

    run: str
    task: str
    pool: str
    method: str


# (run, task): how right each answer was, [n]
_Answers = dict[tuple[str, str], NDArray[np.float64]]


@dataclass(frozen=True)
class _Pool:
    """A pool's answers, put in order once.

    Attributes:
        name: ``meta_train``, ``left_out`` or ``meta_test``.
        tasks: those that are wanted, answered or not.
        answers: by method, of methods that have any, in the order of ``Runs.methods``.
        questions: a name for what a run was tested on in a task: the same in two runs if the questions are the same.
        likelihoods: ``ece`` and ``nll`` by place.
        drawn: whether its tasks were drawn from distributions.
    """

    name: str
    tasks: tuple[str, ...]
    answers: dict[str, _Answers]
    questions: dict[tuple[str, str], str]
    likelihoods: dict[ResultKey, dict[str, float | None]]
    drawn: bool = False

    def resampled(
        self, places: Sequence[tuple[str, str]], values: Sequence[NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """Bootstrap means [R, m] of values [n, m] by place (run, task)."""
        strata = [(self.questions[p], v) for p, v in zip(places, values, strict=True)]
        if not self.drawn:
            return resampled_means(strata, [task for _, task in places])
        return resampled_means(strata, runs=[run for run, _ in places])


@dataclass(frozen=True)
class Contrast:
    """How much better one method is than another.

    Attributes:
        method: the first.
        other: the one that it is compared with.
        pool: of which tasks.
        tasks: those on which both have answers.
        strata: tasks times seeds where both have answers.
        pairs: questions that both answered, over all strata.
        mean: mean accuracy of the first less that of the second, over seeds within tasks, then over tasks.
        low: lower end of the 95 % interval.
        high: upper end.
        p: two-sided, see :func:`two_sided_p`.
        family: contrasts that were made together, or were to be made, for which the next three are corrected.
        p_adjusted: by Holm's method (1979).
        low_adjusted: lower end of the simultaneous interval, at Bonferroni's level 1 - 0.05 / family. It is wider
            than Holm's method needs: it may hold 0 where ``p_adjusted`` is below 0.05, never the reverse.
        high_adjusted: upper end.
        missing: what one of both has and the other lacks: ``abmll: rhymes``, or ``abmll: rhymes in seed_999`` where
            it is not all seeds.
        distribution: which one's tasks, where it is of one; None: of all the pool's.
    """

    method: str
    other: str
    pool: str
    tasks: tuple[str, ...]
    strata: int
    pairs: int
    mean: float
    low: float
    high: float
    p: float
    family: int
    p_adjusted: float
    low_adjusted: float
    high_adjusted: float
    missing: tuple[str, ...] = ()
    distribution: str | None = None


@dataclass(frozen=True)
class ComparisonRow:
    """A method on a task, on a distribution's tasks, or on a pool. What is missing is None, never 0.

    Attributes:
        method: which method.
        pool: the task's.
        task: the task, or the distribution that tasks were drawn from; None in the row of the mean over the pool's
            tasks.
        accuracy: mean over seeds, and then over tasks in the mean row; there None unless all tasks are there.
        low: lower end of the 95 % interval: Wilson's of all seeds' answers, where questions that several seeds share
            count once. In the mean row the bootstrap's over strata.
        high: upper end.
        n: questions that the interval rests on.
        seeds: runs with answers; in the mean row those with answers on all tasks that are there.
        spread: standard deviation of accuracy over these seeds; None for a single one.
        ece: mean over seeds; None if one has none.
        nll: likewise.
        delta: accuracy less that of the method to compare with, over seeds that both have; in the mean row None
            unless both have all tasks.
        tasks: tasks that are there: 0 or 1, or in the mean row how many.
        partial: in the mean row where tasks are missing: the mean over those that are there. It is not to be compared
            with a mean over all.
        bound: chosen by the test split: never a result.
    """

    method: str
    pool: str
    task: str | None
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    seeds: int = 0
    spread: float | None = None
    ece: float | None = None
    nll: float | None = None
    delta: float | None = None
    tasks: int = 0
    partial: float | None = None
    bound: bool = False


@dataclass(frozen=True)
class Cost:
    """Work, as a mean over seeds.

    Attributes:
        forward_tokens: that the base model read; None where only the sum was counted.
        backward_tokens: that a gradient went back through; likewise.
        seconds: wall time.
        tokens: forward and backward.
    """

    forward_tokens: float | None
    backward_tokens: float | None
    seconds: float
    tokens: float


@dataclass(frozen=True)
class MethodCosts:
    """What a method costs, and what for.

    Attributes:
        method: which method.
        meta_training: before any task of the pool comes; None where it was not counted.
        search: choosing its settings; likewise.
        adaptation: for one task of the pool, the mean over tasks; likewise.
        answer_seconds: for one answer, the mean over tasks; None without answers.
        accuracy: on the pool, see :class:`ComparisonRow`'s mean row.
        low: lower end of its 95 % interval.
        high: upper end.
        bound: chosen by the test split: never a result.
    """

    method: str
    meta_training: Cost | None
    search: Cost | None
    adaptation: Cost | None
    answer_seconds: float | None
    accuracy: float | None
    low: float | None
    high: float | None
    bound: bool


@dataclass(frozen=True)
class ComputeBudget:
    """A method's adaptation compute for a task beside that of the costliest other method. Tokens decide.

    Attributes:
        method: which method.
        tokens: its forward and backward tokens; None where they were not counted.
        seconds: its wall time; likewise.
        most_tokens: of the costliest other.
        most_seconds: likewise; it may be another method.
        costliest_tokens: the other method that needs the most tokens.
        costliest_seconds: the other method that takes the longest.
        tokens_within: whether it needs at most as many; None where that is not known.
        seconds_within: whether it takes at most as long; likewise. It is told beside and decides nothing: seconds are
            the machine's as much as the method's.
        missing: methods whose adaptation was not counted.
    """

    method: str
    tokens: float | None
    seconds: float | None
    most_tokens: float | None
    most_seconds: float | None
    costliest_tokens: str | None
    costliest_seconds: str | None
    tokens_within: bool | None
    seconds_within: bool | None
    missing: tuple[str, ...] = ()

    @property
    def within(self) -> bool | None:
        """Whether it is within in tokens; None where that is not known."""
        return self.tokens_within


@dataclass(frozen=True)
class Verdict:
    """Whether a method reaches the aim: 2 points above the best baseline, interval above 0, no more tokens.

    Attributes:
        method: which method.
        baselines: those that it has to beat.
        pool: on which tasks.
        accuracy: the method's mean; None where it misses tasks.
        best: the baseline with the highest mean of those that have all tasks and seeds. Where none has, of those that
            have all tasks, on what all of these answered; None if there is no such thing.
        best_accuracy: its mean.
        contrast: the method less ``best``, corrected for as many comparisons as baselines were asked for, because the
            best was picked among them, whether or not all have answers yet.
        enough: whether the difference is at least :data:`AIM`.
        above_zero: whether the simultaneous interval lies above 0.
        budget: the adaptation compute against the costliest baseline.
        met: all three. None where something that is missing could still decide. A baseline that is missing cannot
            make the difference to the best larger; more answers of the method itself or of ``best`` can.
        missing: what is missing: ``abmll: rhymes``.
    """

    method: str
    baselines: tuple[str, ...]
    pool: str
    accuracy: float | None
    best: str | None
    best_accuracy: float | None
    contrast: Contrast | None
    enough: bool | None
    above_zero: bool | None
    budget: ComputeBudget
    met: bool | None
    missing: tuple[str, ...] = ()


def rightness(runs: Runs, pool: str | None = None) -> dict[ResultKey, NDArray[np.float64]]:
    """How right every method was on each question: 0 or 1, or a mean over draws.

    Args:
        runs: finished runs.
        pool: only this pool's tasks; None: all.

    Returns:
        By place, [n] in [0, 1], in the order of the questions.

    Raises:
        ResultsError: two methods, or two draws of one, answered different questions of a task in one run; or an
            answer is neither right nor wrong.
    """
    found: dict[ResultKey, NDArray[np.float64]] = {}
    for run in runs.runs:
        answers = run.answers if pool is None else run.answers[run.answers["pool"] == pool]
        first: dict[tuple[str, str], tuple[str, pd.Index[Any]]] = {}
        for key, own in answers.groupby(["task", "pool", "method"], sort=False, observed=True):
            task, own_pool, method = map(str, key)
            questions = own.groupby("index")["right"].agg(["mean", "count"])
            where = f"{run.name}, {task} ({own_pool})"
            if own["right"].isna().any():
                raise ResultsError(
                    f"{where}: an answer of {method} is neither right nor wrong; delete its predictions and make "
                    f"them again"
                )
            if questions["count"].nunique() > 1:
                raise ResultsError(
                    f"{where}: the draws of {method} answered different questions; delete its predictions and "
                    f"make them again"
                )
            other, index = first.setdefault((task, own_pool), (method, questions.index))
            if not index.equals(questions.index):
                counts = f"{other} answered {len(index)} questions and {method} {len(questions)}"
                same = ", not the same ones" if len(index) == len(questions) else ""
                raise ResultsError(
                    f"{where}: {counts}{same}; methods are compared question by question: score both on the same "
                    f"test split"
                )
            place = ResultKey(run.name, task, own_pool, method)
            found[place] = questions["mean"].to_numpy(dtype=np.float64)
    return found


def resampled_means(
    strata: Iterable[tuple[str, NDArray[np.float64]]],
    tasks: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    runs: Sequence[str] | None = None,
) -> NDArray[np.float64]:
    """The bootstrap: means over questions that are drawn again, over a task's strata, and over tasks.

    What is drawn depends on the stratum's questions alone, not on what else is compared: one contrast has the same
    interval in every table.

    Args:
        strata: the name of its questions and [n, m] values. Strata of one name have the same questions, and so the same
            draws. A column of NaN has no part in the stratum; one that has none in any is NaN.
        tasks: each stratum's; None: a stratum is a task.
        resamples: R.
        runs: each stratum's, where strata are tasks that are drawn again, too, as many of a run as it has; None: tasks
            stay.

    Returns:
        [R, m].
    """
    strata = list(strata)
    times = None if runs is None else _times_drawn(runs, resamples)
    there = np.stack([~np.isnan(values).any(axis=0) for _, values in strata])
    weights = _weights(there, tasks)
    # by questions, and by task where tasks are drawn again: what is drawn together
    sums: dict[tuple[str, int, int], NDArray[np.float64]] = {}
    for place, ((name, values), weight) in enumerate(zip(strata, weights, strict=True)):
        n, alone = len(values), -1 if times is None else place
        sums[name, n, alone] = sums.get((name, n, alone), 0.0) + np.nan_to_num(values) * weight / n
    total = np.zeros((resamples, weights.shape[1]))
    for (name, n, place), values in sums.items():
        rng = np.random.default_rng(derive_seed(0, "comparison", name))
        step = max(1, _CHUNK // n)
        for begin in range(0, resamples, step):
            size = min(step, resamples - begin)
            drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
            means = counts.astype(np.float64) @ values
            if times is not None:
                means *= times[begin : begin + size, place, None]
            total[begin : begin + size] += means
    # a difference of 0 must not be counted as one of 1e-18
    rounded: NDArray[np.float64] = np.round(total, 12)
    return np.where(weights.any(axis=0), rounded, np.nan)


def _times_drawn(runs: Sequence[str], resamples: int) -> NDArray[np.float64]:
    """How often each task is drawn in each resample, [R, strata]: with replacement within its run."""
    times = np.zeros((resamples, len(runs)))
    for run in dict.fromkeys(runs):
        own = [place for place, other in enumerate(runs) if other == run]
        rng = np.random.default_rng(derive_seed(0, "comparison", "tasks", run))
        times[:, own] = rng.multinomial(len(own), [1 / len(own)] * len(own), size=resamples)
    return times


def _weights(there: NDArray[np.bool_], tasks: Sequence[str] | None) -> NDArray[np.float64]:
    """How much a stratum counts in each column's mean: seeds of a task alike, then tasks alike.

    Args:
        there: [strata, m], whether the column has a part in the stratum.
        tasks: each stratum's; None: a stratum is a task.

    Returns:
        [strata, m]; 1 in sum over a column that has a part in any.
    """
    parts = there.astype(np.float64)
    names = np.arange(len(parts)) if tasks is None else np.unique(tasks, return_inverse=True)[1]
    seeds = np.zeros((names.max() + 1, parts.shape[1]))
    np.add.at(seeds, names, parts)
    weights: NDArray[np.float64] = parts / np.maximum(seeds[names] * (seeds > 0).sum(axis=0), 1)
    return weights


def two_sided_p(resampled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice the smaller share of resampled differences on the other side of 0, which is the 95 % interval's dual.

    p = min(1, 2 (1 + min(#{d <= 0}, #{d >= 0})) / (1 + R)), as in Davison and Hinkley (1997), chapter 4: with the 1
    on both sides it is never 0.

    Args:
        resampled: [R, m] differences.

    Returns:
        [m].
    """
    beyond = np.minimum((resampled <= 0).sum(axis=0), (resampled >= 0).sum(axis=0))
    p: NDArray[np.float64] = np.minimum(1.0, 2 * (1 + beyond) / (1 + len(resampled)))
    return p


def compare(
    runs: Runs,
    pool: str,
    method: str,
    others: Sequence[str],
    tasks: Sequence[str] | None = None,
) -> list[Contrast]:
    """One method against others: a paired bootstrap over test questions within tasks and seeds, in one family.

    Args:
        runs: finished runs.
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
        method: the first.
        others: those to compare it with. The method itself is left out.
        tasks: some of the pool's; None: all.

    Returns:
        In the order of ``others``; an other that answered nothing where ``method`` did has no contrast, and does not
        count in the family.

    Raises:
        ResultsError: two methods answered different questions of a task in one run.
    """
    return _contrasts(_pool(runs, pool, tasks), method, others)


def winner(
    runs: Runs,
    pool: str,
    tasks: Sequence[str] | None = None,
    exclude: Sequence[str] = BOUNDS,
) -> str | None:
    """The method that may stand in bold: the best mean, and better than every other one beyond chance.

    Args:
        runs: finished runs.
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
        tasks: some of the pool's, or one; None: all.
        exclude: methods that neither win nor have to be beaten.

    Returns:
        None unless its simultaneous interval against every other method lies above 0; if there is no other one; or if
        it misses a task, or a seed that another one has.

    Raises:
        ResultsError: two methods answered different questions of a task in one run.
    """
    found = _pool(runs, pool, tasks)
    answers = {method: own for method, own in found.answers.items() if method not in exclude}
    if len(answers) < 2:
        return None
    means = {method: _mean(own) for method, own in answers.items()}
    best = max(means, key=means.__getitem__)
    everywhere = {place for own in answers.values() for place in own}
    if set(answers[best]) != everywhere or {task for _, task in everywhere} != set(found.tasks):
        return None
    contrasts = _contrasts(found, best, list(answers))
    return best if all(contrast.low_adjusted > 0 for contrast in contrasts) else None


def table(runs: Runs, pool: str, against: str = "base") -> list[ComparisonRow]:
    """Every method on every task of a pool, each method's tasks followed by its mean.

    Of drawn tasks, which are many and of one kind, there is a row a distribution.

    Args:
        runs: finished runs.
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
        against: the method that deltas are taken from.

    Returns:
        A row a method and task (or distribution), whether or not there are answers, and a row a method with ``task``
        None. Nothing for a pool without tasks.

    Raises:
        ResultsError: two methods answered different questions of a task in one run.
    """
    found = _pool(runs, pool)
    if not found.tasks:
        return []
    intervals = _mean_intervals(found)
    reference = found.answers.get(against, {})
    parts = {
        name: (part := _pool(runs, pool, tasks), _mean_intervals(part))
        for name, tasks in distributions(runs, pool).items()
    }
    rows = []
    for method in runs.methods:
        for name, (part, ends) in parts.items():
            row = _mean_row(part, method, part.answers.get(against, {}), ends.get(method))
            rows.append(replace(row, task=name))
        for task in () if parts else found.tasks:
            rows.append(_task_row(found, method, task, reference))
        rows.append(_mean_row(found, method, reference, intervals.get(method)))
    return rows


def distributions(runs: Runs, pool: str) -> dict[str, tuple[str, ...]]:
    """A pool's drawn tasks by the distribution that they were drawn from; nothing where tasks are listed.

    Args:
        runs: finished runs.
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
    """
    found: dict[str, dict[str, None]] = {}
    for run in runs.runs:
        if "drawn" not in run.results:
            continue
        own = run.results[run.results["pool"] == pool]
        for row in own[own["drawn"].fillna(False).astype(bool)].to_dict("records"):
            found.setdefault(str(row["group"]), {})[str(row["task"])] = None
    return {name: tuple(tasks) for name, tasks in found.items()}


def costs(runs: Runs, pool: str = "meta_test") -> list[MethodCosts]:
    """What every method cost, and its accuracy on the pool beside it.

    A stage's rows are added up within a run (and task, in adaptation), then averaged over those runs that counted it,
    and over tasks. Methods that do nothing at a task cost nothing there, and those that learn nothing before it comes
    have no meta-training.

    Args:
        runs: finished runs.
        pool: whose tasks the methods adapted to.

    Returns:
        In the order of ``runs.methods``.

    Raises:
        ResultsError: two methods answered different questions of a task in one run.
    """
    means = {row.method: row for row in table(runs, pool) if row.task is None}
    tasks = _tasks(runs, pool)
    compute, results = runs.compute(), runs.results()
    results = results[results["pool"] == pool]
    nothing = Cost(0.0, 0.0, 0.0, 0.0)
    found = []
    for method in runs.methods:
        row = means.get(method)
        own = compute[compute["method"] == method]
        free = nothing if method in _WITHOUT_ADAPTATION else None
        start = nothing if method in _WITHOUT_META_TRAINING else None
        adaptation = own[(own["stage"] == "adaptation") & own["task"].isin(tasks)]
        if "pool" in adaptation:
            # a task may be adapted to in two pools: by what has seen it and by what has not
            adaptation = adaptation[adaptation["pool"] == pool]
        found.append(
            MethodCosts(
                method=method,
                meta_training=_cost(own[own["stage"] == "meta_training"], ["run"]) or start,
                search=_cost(own[own["stage"] == "search"], ["run"]) or free,
                adaptation=_cost(adaptation, ["task", "run"]) or free,
                answer_seconds=_answer_seconds(results, method),
                accuracy=None if row is None else row.accuracy,
                low=None if row is None else row.low,
                high=None if row is None else row.high,
                bound=method in BOUNDS,
            )
        )
    return found


def verdict(
    runs: Runs,
    method: str = "degaml",
    baselines: Sequence[str] = PAPER_BASELINES,
    pool: str = "meta_test",
) -> Verdict:
    """Whether a method beats the best baseline by :data:`AIM`, beyond chance, with no more tokens of adaptation.

    Args:
        runs: finished runs.
        method: which method.
        baselines: those that it has to beat.
        pool: on which tasks.

    Raises:
        ResultsError: two methods answered different questions of a task in one run.
    """
    of_pool = _pool(runs, pool)
    found = costs(runs, pool)
    accuracy = {cost.method: cost.accuracy for cost in found}
    # seeds without any answers on the pool were not asked
    seeds = dict.fromkeys(run for own in of_pool.answers.values() for run, _ in own)
    places = [(run, task) for task in of_pool.tasks for run in seeds]
    others = [name for name in dict.fromkeys(baselines) if name != method]
    best = _best(of_pool, [name for name in others if accuracy.get(name) is not None], places)
    # those without answers yet were asked for as well
    contrasts = _contrasts(of_pool, method, others, len(others))
    contrast = next((one for one in contrasts if one.other == best), None)
    missing = tuple(
        item
        for name in (method, *baselines)
        for item in _lacks(name, of_pool.answers.get(name, {}), places)
    )
    # a multiple of 1 / n may be 0.02 less a rounding error
    enough = None if contrast is None else round(contrast.mean, 12) >= AIM
    above_zero = None if contrast is None else contrast.low_adjusted > 0
    budget = _budget(found, method, baselines)
    met = _all((enough, above_zero, budget.within))
    if missing:
        own = any(item.split(": ", 1)[0] in (method, best) for item in missing)
        # the best of more baselines is no worse; in all else, more answers may turn it
        met = False if enough is False and not own else None
    return Verdict(
        method=method,
        baselines=tuple(baselines),
        pool=pool,
        accuracy=accuracy.get(method),
        best=best,
        best_accuracy=None if best is None else accuracy[best],
        contrast=contrast,
        enough=enough,
        above_zero=above_zero,
        budget=budget,
        met=met,
        missing=missing,
    )


def _best(found: _Pool, names: Sequence[str], places: Sequence[tuple[str, str]]) -> str | None:
    """The method with the highest mean of those that answered everywhere, or else where all of them did."""
    whole = [name for name in names if all(place in found.answers[name] for place in places)]
    ranked = whole or names
    common = [place for place in places if all(place in found.answers[name] for name in ranked)]
    if not ranked or not common:
        return None
    means = {
        name: _mean({place: found.answers[name][place] for place in common}) for name in ranked
    }
    return max(means, key=means.__getitem__)


def rows_frame(rows: Sequence[ComparisonRow | Contrast | MethodCosts]) -> pd.DataFrame:
    """Rows as a table: an attribute is a column, a cost four of them (``adaptation_tokens``), tuples are texts.

    Args:
        rows: of one kind.
    """
    return pd.DataFrame([_flat(row) for row in rows])


def _flat(row: Any) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for item in fields(row):
        value = getattr(row, item.name)
        if isinstance(row, MethodCosts) and item.name in STAGES:
            for name in ("forward_tokens", "backward_tokens", "tokens", "seconds"):
                flat[f"{item.name}_{name}"] = None if value is None else getattr(value, name)
        else:
            flat[item.name] = ", ".join(value) if isinstance(value, tuple) else value
    return flat


def _tasks(runs: Runs, pool: str) -> tuple[str, ...]:
    if pool in runs.tasks:
        return tuple(runs.tasks[pool])
    # a record may not list the tasks that groups leave out
    answers = runs.answers()
    return tuple(map(str, dict.fromkeys(answers.loc[answers["pool"] == pool, "task"])))


def _pool(runs: Runs, pool: str, tasks: Sequence[str] | None = None) -> _Pool:
    wanted = _tasks(runs, pool) if tasks is None else tuple(tasks)
    found: dict[str, _Answers] = {}
    for place, right in rightness(runs, pool).items():
        if place.task in wanted:
            found.setdefault(place.method, {})[place.run, place.task] = right
    questions: dict[tuple[str, str], str] = {}
    likelihoods: dict[ResultKey, dict[str, float | None]] = {}
    for run in runs.runs:
        questions |= {(run.name, task): f"{task}, {run.name}" for task in wanted}
        for row in run.results[run.results["pool"] == pool].to_dict("records"):
            task, split = str(row["task"]), row.get("split")
            likelihoods[ResultKey(run.name, task, pool, str(row["method"]))] = {
                name: _number(row.get(name)) for name in ("ece", "nll")
            }
            if not pd.isna(split):
                questions[run.name, task] = f"{task}, {split}"
    answers = {method: found[method] for method in runs.methods if method in found}
    drawn = any(
        bool(row.get("drawn"))
        for run in runs.runs
        for row in run.results.to_dict("records")
        if row["pool"] == pool and row["task"] in wanted
    )
    return _Pool(pool, wanted, answers, questions, likelihoods, drawn)


def _contrasts(
    found: _Pool, method: str, others: Sequence[str], family: int | None = None
) -> list[Contrast]:
    """The contrasts that there are, corrected for ``family`` of them; None: for those."""
    answers = found.answers
    own = answers.get(method, {})
    against = {
        other: answers[other]
        for other in others
        if other != method and any(place in own for place in answers.get(other, {}))
    }
    if not against:
        return []
    strata = []
    for place, right in own.items():
        columns = [
            right - theirs[place] if place in theirs else np.full_like(right, math.nan)
            for theirs in against.values()
        ]
        strata.append(np.stack(columns, axis=1))
    means = np.stack([values.mean(axis=0) for values in strata])
    of_tasks = None if found.drawn else [task for _, task in own]
    mean = (np.nan_to_num(means) * _weights(~np.isnan(means), of_tasks)).sum(axis=0)
    resampled = found.resampled(list(own), strata)
    p = two_sided_p(resampled)
    family = max(family or 0, len(against))
    # those that could not be made are the last in Holm's order
    everything = np.concatenate([p, np.ones(family - len(p))])
    p_adjusted = multipletests(everything, method="holm")[1]
    half, half_adjusted = ALPHA / 2, ALPHA / 2 / family
    ends = np.quantile(resampled, [half, 1 - half, half_adjusted, 1 - half_adjusted], axis=0)
    contrasts = []
    for column, (other, theirs) in enumerate(against.items()):
        both = [place for place in own if place in theirs]
        contrasts.append(
            Contrast(
                method=method,
                other=other,
                pool=found.name,
                tasks=tuple(dict.fromkeys(task for _, task in both)),
                strata=len(both),
                pairs=sum(len(own[place]) for place in both),
                mean=float(np.round(mean[column], 12)),
                low=float(ends[0, column]),
                high=float(ends[1, column]),
                p=float(p[column]),
                family=family,
                p_adjusted=float(p_adjusted[column]),
                low_adjusted=float(ends[2, column]),
                high_adjusted=float(ends[3, column]),
                missing=(*_lacks(method, own, theirs), *_lacks(other, theirs, own)),
            )
        )
    return contrasts


def _lacks(method: str, own: _Answers, theirs: Iterable[tuple[str, str]]) -> list[str]:
    tasks = {task for _, task in own}
    return list(
        dict.fromkeys(
            f"{method}: {task} in {run}" if task in tasks else f"{method}: {task}"
            for run, task in theirs
            if (run, task) not in own
        )
    )


def _task_row(found: _Pool, method: str, task: str, reference: _Answers) -> ComparisonRow:
    own = _on(found.answers.get(method, {}), task)
    bound = method in BOUNDS
    if not own:
        return ComparisonRow(method, found.name, task, bound=bound)
    n, low, high = _wilson(own, found.questions)
    seeds, spread = _over_seeds(own)
    return ComparisonRow(
        method=method,
        pool=found.name,
        task=task,
        accuracy=_mean(own),
        low=low,
        high=high,
        n=n,
        seeds=seeds,
        spread=spread,
        ece=_mean_likelihood(found, method, own, "ece"),
        nll=_mean_likelihood(found, method, own, "nll"),
        delta=_delta(own, reference),
        tasks=1,
        bound=bound,
    )


def _mean_row(
    found: _Pool, method: str, reference: _Answers, interval: tuple[float, float] | None
) -> ComparisonRow:
    own = found.answers.get(method, {})
    bound = method in BOUNDS
    if not own or interval is None:
        return ComparisonRow(method, found.name, None, bound=bound)
    tasks = [task for task in found.tasks if _on(own, task)]
    n = sum(_wilson(_on(own, task), found.questions)[0] for task in tasks)
    seeds, spread = _over_seeds(own)
    there = ComparisonRow(
        method, found.name, None, n=n, seeds=seeds, spread=spread, tasks=len(tasks), bound=bound
    )
    if len(tasks) < len(found.tasks):
        return replace(there, partial=_mean(own))
    all_tasks = all(_on(reference, task) for task in found.tasks)
    return replace(
        there,
        accuracy=_mean(own),
        low=interval[0],
        high=interval[1],
        ece=_mean_likelihood(found, method, own, "ece"),
        nll=_mean_likelihood(found, method, own, "nll"),
        delta=_delta(own, reference) if all_tasks else None,
    )


def _on(answers: _Answers, task: str) -> _Answers:
    return {place: right for place, right in answers.items() if place[1] == task}


def _mean(answers: _Answers) -> float:
    return _over_tasks({place: float(right.mean()) for place, right in answers.items()})


def _over_tasks(values: Mapping[tuple[str, str], float]) -> float:
    """Mean over seeds within a task, then over tasks, which weigh alike however many seeds they have."""
    by_task: dict[str, list[float]] = {}
    for (_, task), value in values.items():
        by_task.setdefault(task, []).append(value)
    return float(np.mean([np.mean(own) for own in by_task.values()]))


def _wilson(
    answers: _Answers, questions: Mapping[tuple[str, str], str]
) -> tuple[int, float, float]:
    """Questions and the interval; an answer to a question that several seeds share is their mean."""
    shared: dict[tuple[str, int], list[NDArray[np.float64]]] = {}
    for place, right in answers.items():
        shared.setdefault((questions[place], len(right)), []).append(right)
    pooled = np.concatenate([np.mean(rights, axis=0) for rights in shared.values()])
    low, high = wilson_interval(round(float(pooled.sum())), len(pooled))
    return len(pooled), low, high


def _mean_intervals(found: _Pool) -> dict[str, tuple[float, float]]:
    """95 % intervals of the methods' means over strata."""
    if not found.answers:
        return {}
    strata, places = [], []
    for place in dict.fromkeys(place for own in found.answers.values() for place in own):
        places.append(place)
        size = next(len(own[place]) for own in found.answers.values() if place in own)
        nothing = np.full(size, math.nan)
        columns = [own.get(place, nothing) for own in found.answers.values()]
        strata.append(np.stack(columns, axis=1))
    ends = np.quantile(found.resampled(places, strata), [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    return {
        method: (float(ends[0, column]), float(ends[1, column]))
        for column, method in enumerate(found.answers)
    }


def _over_seeds(answers: _Answers) -> tuple[int, float | None]:
    """How many seeds have all tasks that are there, and how far their means are apart."""
    tasks = {task for _, task in answers}
    by_run: dict[str, list[float]] = {}
    for (run, _), right in answers.items():
        by_run.setdefault(run, []).append(float(right.mean()))
    means = [float(np.mean(own)) for own in by_run.values() if len(own) == len(tasks)]
    return len(means), float(np.std(means, ddof=1)) if len(means) > 1 else None


def _delta(answers: _Answers, reference: _Answers) -> float | None:
    both = [place for place in answers if place in reference]
    if not both:
        return None
    return _over_tasks({place: float((answers[place] - reference[place]).mean()) for place in both})


def _mean_likelihood(found: _Pool, method: str, answers: _Answers, name: str) -> float | None:
    values = {
        (run, task): found.likelihoods.get(ResultKey(run, task, found.name, method), {}).get(name)
        for run, task in answers
    }
    known = {place: value for place, value in values.items() if value is not None}
    return _over_tasks(known) if len(known) == len(values) else None


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _cost(rows: pd.DataFrame, keys: Sequence[str]) -> Cost | None:
    """Added up by ``keys``, averaged over runs (and then over tasks); None where nothing was counted."""
    if rows.empty:
        return None
    names = ["forward_tokens", "backward_tokens", "seconds", "tokens"]
    # a column that held None elsewhere is one of objects
    counted = rows.assign(tokens=_tokens(rows)).astype(dict.fromkeys(names, "float64"))
    if counted[["seconds", "tokens"]].isna().any(axis=None):
        return None
    # what one row does not know, the sum does not
    sums = counted.groupby(list(keys))[names].agg(_whole_sum)
    means = sums.groupby(keys[0]).agg(_whole_mean).mean(skipna=False)
    return Cost(
        forward_tokens=_number(means["forward_tokens"]),
        backward_tokens=_number(means["backward_tokens"]),
        seconds=float(means["seconds"]),
        tokens=float(means["tokens"]),
    )


def _answer_seconds(results: pd.DataFrame, method: str) -> float | None:
    if not {"method", "seconds", "n"} <= set(results):
        return None
    own = results[results["method"] == method]
    seconds = (own["seconds"] / own["n"]).mean()
    return None if pd.isna(seconds) else float(seconds)


def _whole_sum(own: pd.Series[float]) -> float:
    return float(own.sum(skipna=False))


def _whole_mean(own: pd.Series[float]) -> float:
    return float(own.mean(skipna=False))


def _tokens(rows: pd.DataFrame) -> pd.Series[float]:
    """Forward and backward together, as it was counted or as their sum."""
    both = rows["forward_tokens"].astype("float64") + rows["backward_tokens"].astype("float64")
    return both if "tokens" not in rows else rows["tokens"].astype("float64").fillna(both)


def _budget(found: Sequence[MethodCosts], method: str, others: Sequence[str]) -> ComputeBudget:
    known = {cost.method: cost.adaptation for cost in found if cost.adaptation is not None}
    theirs = {name: known[name] for name in others if name != method and name in known}
    lacking = tuple(name for name in (method, *others) if name not in known)
    own = known.get(method)
    most: dict[str, tuple[str, float]] = {}
    within: dict[str, bool | None] = {"tokens": None, "seconds": None}
    for unit in within:
        if not theirs:
            continue
        spent = {name: float(getattr(cost, unit)) for name, cost in theirs.items()}
        most[unit] = max(spent.items(), key=lambda item: item[1])
        if own is not None:
            fits = getattr(own, unit) <= most[unit][1]
            # one that was not counted may be costlier still
            within[unit] = True if fits else (None if lacking else False)
    nobody = (None, None)
    return ComputeBudget(
        method=method,
        tokens=None if own is None else own.tokens,
        seconds=None if own is None else own.seconds,
        most_tokens=most.get("tokens", nobody)[1],
        most_seconds=most.get("seconds", nobody)[1],
        costliest_tokens=most.get("tokens", nobody)[0],
        costliest_seconds=most.get("seconds", nobody)[0],
        tokens_within=within["tokens"],
        seconds_within=within["seconds"],
        missing=lacking,
    )


def _all(values: Sequence[bool | None]) -> bool | None:
    """Three-valued and: one that fails decides, one that is not known leaves it open."""
    if any(value is False for value in values):
        return False
    return None if any(value is None for value in values) else True
