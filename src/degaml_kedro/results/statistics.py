"""Method against method: differences with their uncertainty, what they cost, and what may be claimed.

Methods are compared question by question. A stratum is a task of a run; a mean is over seeds within a task first, then
over tasks. Within each stratum the questions are drawn again with replacement. Listed tasks and seeds stay: an interval
says nothing of others. Tasks that were drawn from a distribution are drawn again as well, within their seed: their
interval speaks of the distribution. Where several seeds were tested on the same questions (``split`` is equal), these
are drawn once for all of them. SciPy's bootstrap has neither strata that share their draws nor tasks drawn again.

Shapes: n questions of a stratum, m methods or contrasts, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.methods import names
from degaml_kedro.results.measures import ResultsError, reliability, wilson_interval
from degaml_kedro.results.runs import BOUNDS, POOLS, Runs

RESAMPLES = 20_000
ALPHA = 0.05
# the aim: accuracy above the best of the paper's baselines
AIM = 0.02
# the method that the others are compared with
METHOD = "degaml"
# it learns from the task's whole training split where others have the support examples
YARDSTICK = "no_meta_train"
# the task of a row over all tasks of a pool
MEAN = "mean"
# the paper's four; on held-out tasks the one without meta-training has the support examples only, as the others do
PAPER_BASELINES = ("no_meta_train_support", "union_train", "maml_en_llm", "abmll")
# what a method does not do costs nothing, even where no record says so
_COSTS_NOTHING = {
    "meta_training": names(lambda row: not row.meta_trained),
    "search": names(lambda row: not row.adapts),
    "adaptation": names(lambda row: not row.adapts),
}
_UNITS = ("forward_tokens", "backward_tokens", "tokens", "seconds")
# counts of drawn questions held at once
_CHUNK = 1_000_000

# a run's name and a task's
Place = tuple[str, str]


@dataclass(frozen=True)
class PoolAnswers:
    """All answers on a pool's tasks; ``tasks`` and ``methods`` are those that are wanted, answered or not.

    Attributes:
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
        right: [questions, methods that answered any], how right each answer was (0 or 1, or a mean over draws), with
            the index ``run``, ``task``, ``index``; NaN where a method did not answer.
        results: the runs' results of these tasks, with the index ``run``, ``task``, ``method``.
        distributions: the tasks of each distribution, where tasks were drawn; nothing where they are listed.
    """

    pool: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    right: pd.DataFrame
    results: pd.DataFrame
    distributions: Mapping[str, tuple[str, ...]]

    @cached_property
    def accuracies(self) -> pd.DataFrame:
        """[strata, methods], with the index ``run``, ``task``; NaN where a method did not answer."""
        return self.right.groupby(level=["run", "task"]).mean()

    @cached_property
    def questions(self) -> dict[Place, str]:
        """What a run was tested on in a task: the same text in two runs if the questions are the same."""
        questions = {(run, task): f"{task}, {run}" for run, task in _places(self.accuracies)}
        if "split" in self.results:
            splits: dict[Any, str] = self.results["split"].dropna().to_dict()
            questions |= {
                (run, task): f"{task}, {split}" for (run, task, _), split in splits.items()
            }
        return questions

    def of(self, tasks: Sequence[str]) -> PoolAnswers:
        """The answers on some of the tasks."""
        right, results = (
            frame[frame.index.get_level_values("task").isin(tasks)]
            for frame in (self.right, self.results)
        )
        right = right.dropna(axis="columns", how="all")
        return replace(self, tasks=tuple(tasks), right=right, results=results)

    def answered(self, method: str) -> pd.Series[float]:
        """Accuracy by ``run`` and ``task``, where the method answered."""
        if method not in self.accuracies:
            return self.accuracies.iloc[:0].mean(axis="columns")
        return self.accuracies[method].dropna()

    def tasks_of(self, method: str) -> set[str]:
        """The tasks that the method answered."""
        return {task for _, task in _places(self.answered(method))}

    def resampled(self, values: pd.DataFrame) -> NDArray[np.float64]:
        """Bootstrap means [R, m] of values by question, [questions, m]."""
        strata = _by_stratum(values)
        named = [(self.questions[place], own) for place, own in strata.items()]
        if self.distributions:
            return resampled_means(named, runs=[run for run, _ in strata])
        return resampled_means(named, [task for _, task in strata])


@dataclass(frozen=True)
class Verdict:
    """Whether :data:`METHOD` reaches the aim: 2 points above the best baseline, interval above 0, no more tokens.

    Attributes:
        accuracy: the method's mean; None where it misses tasks.
        best: the baseline with the highest mean of those that have all tasks and seeds. Where none has, of those that
            have all tasks, on what all of these answered; None if there is no such thing.
        contrast: the row of :func:`compare` of the method less ``best``, corrected for as many comparisons as baselines
            were asked for, because the best was picked among them, whether or not all have answers yet.
        enough: whether the difference is at least :data:`AIM`.
        above_zero: whether the simultaneous interval lies above 0.
        tokens: forward and backward tokens of adapting to a task; None where they were not counted, as below.
        seconds: wall time of that. It decides nothing: it is the machine's as much as the method's.
        most_tokens: of the costliest baseline, and which one that is.
        most_seconds: likewise; it may be another baseline.
        within: whether the method needs at most as many tokens; None where that is not known.
        not_counted: methods whose adaptation was not counted.
        met: ``enough``, ``above_zero`` and ``within``. None where something that is missing could still decide. A
            baseline that is missing cannot make the difference to the best larger; more answers of the method itself
            or of ``best`` can.
        missing: what is missing: ``abmll: rhymes``.
    """

    baselines: tuple[str, ...]
    accuracy: float | None
    best: str | None
    best_accuracy: float | None
    contrast: Mapping[Any, Any] | None
    enough: bool | None
    above_zero: bool | None
    tokens: float | None
    seconds: float | None
    most_tokens: tuple[float, str] | None
    most_seconds: tuple[float, str] | None
    within: bool | None
    not_counted: tuple[str, ...]
    met: bool | None
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """Everything that a report says in numbers, by pool in the order of reading.

    Attributes:
        comparison: the rows of :func:`table` of all pools with ``chance``, the accuracy of a uniform guess, and, in the
            rows of the mean, the method's :func:`costs`.
        contrasts: the rows of :func:`compare` of :data:`METHOD` against every method that is no bound, over all tasks
            of each pool, then over those of each ``distribution``; each table corrected for itself.
        winners: by pool and task (or ``mean``), where one method is better than every other beyond chance; neither
            bounds nor yardsticks (:func:`yardsticks`) win or have to be beaten.
        verdict: on the held-out tasks; None where there are none.
        bins: reliability curves, see :func:`~degaml_kedro.results.measures.reliability`, with ``pool`` and ``method``.
    """

    runs: Runs
    pools: Mapping[str, PoolAnswers]
    comparison: pd.DataFrame
    contrasts: pd.DataFrame
    winners: Mapping[tuple[str, str], str]
    verdict: Verdict | None
    bins: pd.DataFrame

    def rows(self, pool: str) -> pd.DataFrame:
        """A pool's rows of the comparison."""
        return self.comparison[self.comparison["pool"] == pool]

    def means(self, pool: str) -> pd.DataFrame:
        """Of these, the rows over all of the pool's tasks."""
        return self.comparison.query(f"pool == '{pool}' and task == '{MEAN}'")

    def tasks(self, pool: str) -> list[str]:
        """A pool's tasks, or the distributions that they were drawn from."""
        return [task for task in self.rows(pool)["task"].unique() if task != MEAN]

    def differences(self) -> pd.DataFrame:
        """The contrasts with texts in place of lists."""
        lists = [name for name in ("tasks", "missing") if name in self.contrasts]
        return self.contrasts.assign(
            **{name: self.contrasts[name].map(", ".join) for name in lists}
        )


def find(runs: Runs) -> Findings:
    """Work out the statistics of runs.

    Raises:
        ResultsError: as :func:`pool_answers`.
    """
    pools = {name: pool for name in POOLS if (pool := pool_answers(runs, name)).tasks}
    others = [method for method in runs.methods if method not in BOUNDS]
    winners: dict[tuple[str, str], str] = {}
    rows, whole, parts = [], [], []
    chance, priced = _chance(runs), {name: costs(runs, name) for name in pools}
    for name, pool in pools.items():
        by_task = parts_of(pool)
        own = table(pool)
        known = [chance.get((name, task)) for task in own["task"]]
        of_means = priced[name].rename_axis("method").reset_index().assign(task=MEAN)
        own = own.assign(chance=pd.Series(known, dtype="float64"))
        rows.append(own.merge(of_means, on=["method", "task"], how="left"))
        whole.append(compare(pool, METHOD, others).assign(distribution=None))
        parts += [
            compare(by_task[one], METHOD, others).assign(distribution=one)
            for one in pool.distributions
        ]
        for task, answers in by_task.items():
            best = winner(answers, (*BOUNDS, *yardsticks(name)))
            if best is not None:
                winners[name, task] = best
    contrasts = [frame for frame in (*whole, *parts) if len(frame)]
    return Findings(
        runs=runs,
        pools=pools,
        comparison=pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(),
        contrasts=pd.concat(contrasts, ignore_index=True) if contrasts else pd.DataFrame(),
        winners=winners,
        verdict=verdict(pools["meta_test"], priced["meta_test"]) if "meta_test" in pools else None,
        bins=_curves(runs),
    )


def yardsticks(pool: str) -> tuple[str, ...]:
    """Methods that are no competitors on a pool: they see more of its tasks than the others do."""
    return (YARDSTICK,) if pool in ("left_out", "meta_test") else ()


def _curves(runs: Runs) -> pd.DataFrame:
    by_method = dict(list(runs.answers().groupby(["pool", "method"])))
    curves = [
        reliability(by_method[pool, method]).assign(pool=pool, method=method)
        for pool in POOLS
        for method in runs.methods
        if (pool, method) in by_method
    ]
    return pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()


def _chance(runs: Runs) -> dict[Any, float]:
    """Accuracy of a uniform guess, by pool and task or distribution."""
    known = runs.results().dropna(subset=["chance"])
    if "drawn" in known:
        # a drawn task is another one in every run
        known = known.assign(task=known["task"].mask(_is_drawn(known), known["group"]))
    return known.groupby(["pool", "task"])["chance"].mean().to_dict()


def _is_drawn(results: pd.DataFrame) -> pd.Series[bool]:
    """Whether each result's task was drawn from a distribution."""
    drawn = results["drawn"] if "drawn" in results else pd.Series(False, index=results.index)
    return drawn.astype("boolean").fillna(False).astype(bool)


# --- answers --------------------------------------------------------------------------------------


def pool_answers(runs: Runs, pool: str) -> PoolAnswers:
    """All answers on a pool's tasks, question by question.

    Raises:
        ResultsError: two methods, or two draws of one, answered different questions of a task in one run; or an
            answer is neither right nor wrong.
    """
    answers, results = runs.answers(), runs.results()
    tasks = _tasks(runs, pool)
    results = results[(results["pool"] == pool) & results["task"].isin(tasks)]
    drawn = results[_is_drawn(results)]
    by_group = drawn.drop_duplicates("task").groupby("group", sort=False) if len(drawn) else ()
    right = _rightness(answers[answers["pool"] == pool])
    found = PoolAnswers(
        pool=pool,
        tasks=tasks,
        methods=runs.methods,
        right=right[[method for method in runs.methods if method in right]],
        results=results.set_index(["run", "task", "method"]),
        distributions={str(name): tuple(own["task"]) for name, own in by_group},
    )
    return found.of(tasks)


def _tasks(runs: Runs, pool: str) -> tuple[str, ...]:
    if pool in runs.tasks:
        return tuple(runs.tasks[pool])
    # a record may not list the tasks that groups leave out
    answers = runs.answers()
    return tuple(map(str, dict.fromkeys(answers.loc[answers["pool"] == pool, "task"])))


def _rightness(answers: pd.DataFrame) -> pd.DataFrame:
    """[questions, methods], how right each answer of a pool was, averaged over draws."""
    for row in answers[answers["right"].isna()].to_dict("records"):
        raise ResultsError(
            f"{row['run']}, {row['task']} ({row['pool']}): an answer of {row['method']} is neither right nor wrong; "
            f"delete its predictions and make them again"
        )
    keys = ["run", "task", "pool", "method"]
    questions = answers.groupby([*keys, "index"], observed=True)["right"].agg(["mean", "count"])
    draws = questions["count"].groupby(level=keys).nunique()
    for run, task, pool, method in draws[draws > 1].index:
        raise ResultsError(
            f"{run}, {task} ({pool}): the draws of {method} answered different questions; delete its predictions and "
            f"make them again"
        )
    right = questions["mean"].droplevel("pool").unstack("method").astype("float64")
    strata = right.notna().groupby(level=["run", "task"])
    counts, sizes = strata.sum(), strata.size()
    for run, task in counts.index[(counts.gt(0) & counts.lt(sizes, axis=0)).any(axis=1)]:
        own = right.loc[(run, task)].dropna(axis="columns", how="all").notna()
        one = own.columns[0]
        other = next(name for name in own if not own[name].equals(own[one]))
        first, second = own[one].sum(), own[other].sum()
        same = ", not the same ones" if first == second else ""
        pool = answers["pool"].iloc[0]
        raise ResultsError(
            f"{run}, {task} ({pool}): {one} answered {first} questions and {other} {second}{same}; methods are "
            f"compared question by question: score both on the same test split"
        )
    return right


def _places(values: pd.DataFrame | pd.Series[float]) -> list[Place]:
    """The strata of values with the index ``run``, ``task``."""
    return [(str(run), str(task)) for run, task in values.index.tolist()]


def _by_stratum(values: pd.DataFrame | pd.Series[float]) -> dict[Place, NDArray[np.float64]]:
    """The questions' values in each stratum, [n] or [n, m]."""
    strata: dict[Any, Any] = dict(list(values.groupby(level=["run", "task"])))
    return {(str(run), str(task)): own.to_numpy() for (run, task), own in strata.items()}


def over_tasks(values: pd.Series[float]) -> float:
    """Mean over seeds within a task, then over tasks, of values with the index ``run``, ``task``."""
    return float(values.groupby(level="task").mean().mean())


# --- the bootstrap --------------------------------------------------------------------------------


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
    weights = _weights(np.stack([~np.isnan(values).any(axis=0) for _, values in strata]), tasks)
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
    """How much a stratum counts in each column's mean, [strata, m]: seeds of a task alike, then tasks alike.

    ``there`` [strata, m] is whether the column has a part in the stratum; weights of one that has are 1 in sum.
    """
    parts = pd.DataFrame(there.astype(np.float64))
    of_task = parts.groupby(list(tasks) if tasks is not None else parts.index)
    seeds = of_task.transform("sum")
    weights = parts / (seeds * (of_task.sum() > 0).sum()).clip(lower=1)
    return weights.to_numpy()


def two_sided_p(resampled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice the smaller share of resampled differences [R, m] on the other side of 0: the 95 % interval's dual, [m].

    p = min(1, 2 (1 + min(#{d <= 0}, #{d >= 0})) / (1 + R)), as in Davison and Hinkley (1997), chapter 4: with the 1
    on both sides it is never 0.
    """
    beyond = np.minimum((resampled <= 0).sum(axis=0), (resampled >= 0).sum(axis=0))
    p: NDArray[np.float64] = np.minimum(1.0, 2 * (1 + beyond) / (1 + len(resampled)))
    return p


# --- method against method ------------------------------------------------------------------------


def compare(
    answers: PoolAnswers, method: str, others: Sequence[str], family: int = 0
) -> pd.DataFrame:
    """One method against others: a paired bootstrap over test questions within tasks and seeds.

    Args:
        answers: on the tasks to compare on.
        method: the first; among the ``others`` it is left out.
        others: those to compare it with.
        family: the number of contrasts to correct for, if it is more than are made here.

    Returns:
        A row a contrast, in the order of ``others``; an other that answered nothing where ``method`` did has none.
        ``method``, ``other``, ``pool``; ``tasks`` and ``strata`` (tasks times seeds) where both have answers; ``pairs``
        of answers; ``mean`` accuracy of the first less that of the other, over seeds within tasks, then over tasks,
        with its 95 % interval ``low`` to ``high`` and ``p`` (:func:`two_sided_p`); ``family``, ``p_adjusted`` by Holm's
        method (1979), and the simultaneous interval ``low_adjusted`` to ``high_adjusted`` at Bonferroni's level
        1 - 0.05 / family, which may hold 0 where ``p_adjusted`` is below 0.05, never the reverse; and ``missing``, what
        one of both has and the other lacks: ``abmll: rhymes``, or ``abmll: rhymes in seed_999`` where it is not all
        seeds.
    """
    places = _places(answers.answered(method))
    theirs = {other: _places(answers.answered(other)) for other in others if other != method}
    # by method, the strata where both answered
    both = {other: [place for place in places if place in theirs[other]] for other in theirs}
    against = [other for other in both if both[other]]
    if not against:
        return pd.DataFrame()
    right = answers.right[answers.right[method].notna()]
    differences = right[against].rsub(right[method], axis=0)
    means = differences.groupby(level=["run", "task"]).mean()
    resampled = answers.resampled(differences)
    p = two_sided_p(resampled)
    family = max(family, len(against))
    # those that could not be made are the last in Holm's order
    p_adjusted = multipletests(np.concatenate([p, np.ones(family - len(p))]), method="holm")[1]
    half, half_adjusted = ALPHA / 2, ALPHA / 2 / family
    ends = np.quantile(resampled, [half, 1 - half, half_adjusted, 1 - half_adjusted], axis=0)
    # drawn tasks of one name are different tasks in different runs
    mean = means.mean() if answers.distributions else means.apply(over_tasks)
    answered = {other: {task for _, task in both[other]} for other in against}
    lacks = {
        other: _lacks(method, places, theirs[other]) + _lacks(other, theirs[other], places)
        for other in against
    }
    return pd.DataFrame(
        {
            "method": method,
            "other": against,
            "pool": answers.pool,
            "tasks": [tuple(t for t in answers.tasks if t in answered[o]) for o in against],
            "strata": [len(both[other]) for other in against],
            "pairs": differences.notna().sum().to_numpy(),
            "mean": mean.round(12).to_numpy(),
            "low": ends[0],
            "high": ends[1],
            "p": p,
            "family": family,
            "p_adjusted": p_adjusted[: len(p)],
            "low_adjusted": ends[2],
            "high_adjusted": ends[3],
            "missing": [tuple(lacks[other]) for other in against],
        }
    )


def _lacks(method: str, own: Sequence[Place], places: Iterable[Place]) -> list[str]:
    """What a method lacks, task by task where it has no seed of it."""
    tasks = {task for _, task in own}
    lacks = [
        f"{method}: {task} in {run}" if task in tasks else f"{method}: {task}"
        for run, task in places
        if (run, task) not in own
    ]
    return list(dict.fromkeys(lacks))


def winner(answers: PoolAnswers, exclude: Sequence[str] = BOUNDS) -> str | None:
    """The method that may stand in bold: the best mean, and better than every other one beyond chance.

    None unless its simultaneous interval against every other method but those to ``exclude`` lies above 0; if there is
    no other one; or if it misses a task, or a seed that another one has.
    """
    strata = answers.accuracies.drop(columns=list(exclude), errors="ignore")
    strata = strata.dropna(how="all").dropna(axis="columns", how="all")
    if strata.shape[1] < 2:
        return None
    best = str(strata.apply(over_tasks).idxmax())
    if strata[best].isna().any() or {task for _, task in _places(strata)} != set(answers.tasks):
        return None
    contrasts = compare(answers, best, list(map(str, strata)))
    return best if (contrasts["low_adjusted"] > 0).all() else None


# --- tables ---------------------------------------------------------------------------------------


def parts_of(answers: PoolAnswers) -> dict[str, PoolAnswers]:
    """The answers on each task or, of drawn tasks, on each distribution's, and on all of them (``mean``)."""
    parts = answers.distributions or {task: (task,) for task in answers.tasks}
    return {task: answers.of(own) for task, own in parts.items()} | {MEAN: answers}


def table(answers: PoolAnswers, against: str = "base") -> pd.DataFrame:
    """Every method on every task of a pool, each method's tasks followed by its mean.

    Of drawn tasks, which are many and of one kind, there is a row a distribution. There are rows whether or not there
    are answers. What is missing is NaN, never 0.

    Returns:
        ``method``, ``pool``, ``task`` (``mean`` for all of them); ``accuracy``, ``ece`` and ``nll``, means over seeds,
        then over tasks, NaN unless all tasks are there; ``low`` and ``high``, the 95 % interval: Wilson's of all seeds'
        answers, where questions that several seeds share count once, over several tasks the bootstrap's; ``n``, the
        questions that it rests on; ``seeds``, runs with answers on all tasks that are there, and ``spread``, the
        standard deviation of accuracy over them (NaN for one); ``delta``, accuracy less that of ``against`` over seeds
        that both have, NaN unless both have all tasks; ``tasks``, how many are there; ``partial``, where some are
        missing, the mean over those that are there, not to be compared with a mean over all; and ``bound``, whether it
        is chosen by the test split.
    """
    by_task = parts_of(answers)
    ends = {
        task: _mean_intervals(own) if task == MEAN or answers.distributions else {}
        for task, own in by_task.items()
    }
    rows = [
        {
            "method": method,
            "pool": answers.pool,
            "task": task,
            **dict.fromkeys(("accuracy", "low", "high"), math.nan),
            **{"n": 0, "seeds": 0},
            **dict.fromkeys(("spread", "ece", "nll", "delta"), math.nan),
            **{"tasks": 0, "partial": math.nan, "bound": method in BOUNDS},
            **_measured(own, method, against, ends[task].get(method)),
        }
        for method in answers.methods
        for task, own in by_task.items()
    ]
    return pd.DataFrame(rows)


def _measured(
    answers: PoolAnswers, method: str, against: str, interval: tuple[float, float] | None
) -> dict[str, Any]:
    """What there is of a method's row over all tasks of ``answers``; without an interval it is Wilson's."""
    own = answers.answered(method)
    if own.empty:
        return {}
    shares = _questions_once(answers, method)
    tasks = answers.tasks_of(method)
    by_run = own.groupby(level="run").agg(["mean", "count"])
    whole = by_run.loc[by_run["count"] == len(tasks), "mean"]
    row = {"n": len(shares), "seeds": len(whole), "spread": whole.std(), "tasks": len(tasks)}
    if len(tasks) < len(answers.tasks):
        return {**row, "partial": over_tasks(own)}
    low, high = interval or wilson_interval(round(float(shares.sum())), len(shares))
    delta = math.nan
    if answers.tasks_of(against) == set(answers.tasks):
        differences = answers.right[method] - answers.right[against]
        delta = over_tasks(differences.groupby(level=["run", "task"]).mean().dropna())
    measured = {name: _mean_of(answers, method, name) for name in ("ece", "nll")}
    return {
        **row,
        **measured,
        "accuracy": over_tasks(own),
        "low": low,
        "high": high,
        "delta": delta,
    }


def _questions_once(answers: PoolAnswers, method: str) -> NDArray[np.float64]:
    """How right the method was on each question; one that several seeds share has their mean."""
    shared: dict[tuple[str, int], list[NDArray[np.float64]]] = {}
    for place, own in _by_stratum(answers.right[method].dropna()).items():
        shared.setdefault((answers.questions[place], len(own)), []).append(own)
    return np.concatenate([np.mean(rights, axis=0) for rights in shared.values()])


def _mean_of(answers: PoolAnswers, method: str, name: str) -> float:
    """Mean of one of the results' measures where the method answered; NaN if one of these has none."""
    if name not in answers.results:
        return math.nan
    measured = answers.results[name].astype("float64").xs(method, level="method")
    values = measured.reindex(answers.answered(method).index)
    return over_tasks(values) if values.notna().all() else math.nan


def _mean_intervals(answers: PoolAnswers) -> dict[str, tuple[float, float]]:
    """95 % intervals of the methods' means over strata."""
    if answers.right.empty:
        return {}
    ends = np.quantile(answers.resampled(answers.right), [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    return dict(zip(map(str, answers.right), map(tuple, ends.T.tolist()), strict=True))


# --- costs ----------------------------------------------------------------------------------------


def costs(runs: Runs, pool: str = "meta_test") -> pd.DataFrame:
    """What every method cost: for meta-training, for search, for adapting to a task of the pool, and for an answer.

    A stage's rows are added up within a run (and task, in adaptation), then averaged over those runs that counted it,
    and over tasks. Methods that do nothing at a task cost nothing there, and those that learn nothing before it comes
    have no meta-training.

    Returns:
        A row a method (the index), in the order of ``runs.methods``; NaN where nothing was counted. Columns are
        ``meta_training_…`` (before any task of the pool comes), ``search_…`` (choosing settings) and ``adaptation_…``
        (for one task), each ``forward_tokens`` and ``backward_tokens`` (NaN where only the sum was counted),
        ``tokens`` and ``seconds``; and ``answer_seconds``, for one answer, the mean over tasks.
    """
    spent = runs.compute()
    parts = spent["forward_tokens"].astype("float64") + spent["backward_tokens"].astype("float64")
    tokens = spent["tokens"].astype("float64").fillna(parts) if "tokens" in spent else parts
    spent = spent.assign(tokens=tokens).astype(dict.fromkeys(_UNITS, "float64"))
    adapting = spent["stage"] == "adaptation"
    # a task may be adapted to in two pools: by what has seen it and by what has not
    own = spent["pool"] == pool if "pool" in spent else True
    # of the other stages, all that was done in a run is one
    spent = spent.assign(task=spent["task"].where(adapting, ""))
    spent = spent[~adapting | (spent["task"].isin(_tasks(runs, pool)) & own)]
    sums = spent.groupby(["method", "stage", "task", "run"])[[*_UNITS]].agg(_known, "sum")
    over_runs = sums.groupby(["method", "stage", "task"]).agg(_known, "mean")
    means = over_runs.groupby(["method", "stage"]).agg(_known, "mean")
    # seconds and tokens are counted together
    means = means.where(means[["tokens", "seconds"]].notna().all(axis="columns"))
    found = pd.DataFrame(index=list(runs.methods))
    for stage, free in _COSTS_NOTHING.items():
        of_stage = means[means.index.get_level_values("stage") == stage].droplevel("stage")
        columns = [f"{stage}_{unit}" for unit in _UNITS]
        found[columns] = of_stage.reindex(found.index).astype("float64")
        nothing = found.index.isin(free) & found[f"{stage}_tokens"].isna()
        found.loc[nothing, columns] = 0.0
    return found.assign(answer_seconds=_answer_seconds(runs, pool))


def _known(values: pd.Series[float], way: str) -> float:
    """A sum or a mean; what one value does not know, it does not."""
    return float(getattr(values, way)(skipna=False))


def _answer_seconds(runs: Runs, pool: str) -> pd.Series[float]:
    results = runs.results()
    if not {"method", "seconds", "n"} <= set(results):
        return pd.Series(dtype="float64")
    own = results[results["pool"] == pool]
    return (own["seconds"] / own["n"]).astype("float64").groupby(own["method"]).mean()


# --- the verdict ----------------------------------------------------------------------------------


def verdict(
    answers: PoolAnswers, priced: pd.DataFrame, baselines: Sequence[str] = PAPER_BASELINES
) -> Verdict:
    """Whether :data:`METHOD` beats the best baseline by :data:`AIM`, beyond chance, with no more tokens of adaptation.

    ``priced`` are the :func:`costs` of adapting to the tasks of ``answers``.
    """
    # seeds without any answers on the pool were not asked
    seeds = dict.fromkeys(run for run, _ in _places(answers.accuracies))
    places = [(run, task) for task in answers.tasks for run in seeds]
    asked = (METHOD, *baselines)
    means = {
        name: over_tasks(answers.answered(name))
        for name in asked
        if answers.tasks_of(name) == set(answers.tasks)
    }
    best = _best(answers, [name for name in baselines if name in means], places)
    # those without answers yet were asked for as well
    contrasts = compare(answers, METHOD, baselines, len(baselines)).to_dict("records")
    contrast = next((one for one in contrasts if one["other"] == best), None)
    missing = tuple(
        item for name in asked for item in _lacks(name, _places(answers.answered(name)), places)
    )
    # a multiple of 1 / n may be 0.02 less a rounding error
    enough = None if contrast is None else round(contrast["mean"], 12) >= AIM
    above_zero = None if contrast is None else contrast["low_adjusted"] > 0
    tokens, seconds = (priced[f"adaptation_{unit}"].dropna() for unit in ("tokens", "seconds"))
    most_tokens, most_seconds = (
        (float(theirs.max()), str(theirs.idxmax())) if len(theirs) else None
        for theirs in (spent.reindex(list(baselines)).dropna() for spent in (tokens, seconds))
    )
    not_counted = tuple(name for name in asked if name not in tokens)
    within = None
    if METHOD in tokens and most_tokens is not None:
        # one that was not counted may be costlier still
        within = True if tokens[METHOD] <= most_tokens[0] else (None if not_counted else False)
    parts = (enough, above_zero, within)
    met = False if False in parts else None if None in parts else True
    if missing:
        own = any(item.split(": ", 1)[0] in (METHOD, best) for item in missing)
        # the best of more baselines is no worse; in all else, more answers may turn it
        met = False if enough is False and not own else None
    return Verdict(
        baselines=tuple(baselines),
        accuracy=means.get(METHOD),
        best=best,
        best_accuracy=None if best is None else means[best],
        contrast=contrast,
        enough=enough,
        above_zero=above_zero,
        tokens=tokens.get(METHOD),
        seconds=seconds.get(METHOD),
        most_tokens=most_tokens,
        most_seconds=most_seconds,
        within=within,
        not_counted=not_counted,
        met=met,
        missing=missing,
    )


def _best(answers: PoolAnswers, names: Sequence[str], places: Sequence[Place]) -> str | None:
    """The method with the highest mean of those that answered everywhere, or else where all of them did."""
    if not names:
        return None
    index = pd.MultiIndex.from_tuples(places, names=["run", "task"])
    strata = answers.accuracies[list(names)].reindex(index)
    whole = strata.dropna(axis="columns")
    common = whole if whole.shape[1] else strata.dropna()
    return None if common.empty else str(common.apply(over_tasks).idxmax())
