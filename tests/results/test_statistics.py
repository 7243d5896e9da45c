"""Differences between methods against closed forms, and what may not be claimed."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from degaml_kedro.results import statistics
from degaml_kedro.results.measures import ResultsError, wilson_interval
from degaml_kedro.results.runs import BOUNDS, Run, Runs
from degaml_kedro.results.statistics import (
    MEAN,
    PAPER_BASELINES,
    RESAMPLES,
    costs,
    find,
    pool_answers,
    resampled_means,
    two_sided_p,
)

FEW = 2000
COMPUTE = ["method", "stage", "task", "forward_tokens", "backward_tokens", "seconds"]


@pytest.fixture
def many_resamples():
    """For what is compared with a closed form."""


@pytest.fixture(autouse=True)
def few_resamples(request, monkeypatch):
    if "many_resamples" not in request.fixturenames:
        few = partial(resampled_means, resamples=FEW)
        monkeypatch.setattr(statistics, "resampled_means", few)


def first(share, n=100):
    """The first questions right, the rest wrong."""
    return (np.arange(n) < round(share * n)).astype(float)


def make(answers, methods=None, tasks=None, pool="meta_test", compute=(), split=None):
    """Runs from ``{seed: {task: {method: [n], or [draws, n]}}}``."""
    runs = []
    for seed, by_task in answers.items():
        rows, frames = [], []
        for task, by_method in by_task.items():
            for method, given in by_method.items():
                right = np.atleast_2d(np.asarray(given, dtype=float))
                for draw, values in enumerate(right):
                    frame = pd.DataFrame(
                        {"index": range(len(values)), "right": values, "confidence": math.nan}
                    )
                    frames.append(frame.assign(task=task, pool=pool, method=method, draw=draw))
                rows.append(
                    {
                        "task": task,
                        "pool": pool,
                        "method": method,
                        "split": split or f"{task} {seed}",
                        "accuracy": right.mean(),
                        "chance": 0.5,
                        "ece": 0.1 * (seed - 998),
                        "nll": None if method == "generates" else 1.0,
                    }
                )
        own = pd.DataFrame(
            [row for row in compute if row.get("seed", seed) == seed], columns=COMPUTE
        )
        runs.append(
            Run(
                name=f"seed_{seed}",
                seed=seed,
                profile="tests",
                results=pd.DataFrame(rows),
                answers=pd.concat(frames, ignore_index=True),
                compute=own,
            )
        )
    found = list(answers.values())
    names = dict.fromkeys(task for by_task in found for task in by_task)
    all_methods = dict.fromkeys(m for by in found for own in by.values() for m in own)
    return Runs(tuple(runs), tuple(methods or all_methods), {pool: tuple(tasks or names)})


def one(methods, **kwargs):
    """One seed, one task."""
    return make({999: {"rhymes": methods}}, **kwargs)


def compare(runs, pool, method, others, tasks=None):
    answers = pool_answers(runs, pool)
    found = statistics.compare(answers if tasks is None else answers.of(tasks), method, others)
    return list(found.itertuples(index=False))


def winner(runs, pool, tasks=None, exclude=BOUNDS):
    answers = pool_answers(runs, pool)
    return statistics.winner(answers if tasks is None else answers.of(tasks), exclude)


def table(runs, pool, against="base"):
    found = statistics.table(pool_answers(runs, pool), against).astype(object)
    return list(found.where(found.notna(), None).itertuples(index=False))


def verdict(runs, baselines=PAPER_BASELINES):
    return statistics.verdict(pool_answers(runs, "meta_test"), costs(runs), baselines)


# --- rightness ------------------------------------------------------------------------------------


def test_rightness_is_a_mean_over_draws():
    runs = one({"base": [1, 0, 0], "drawn": [[1, 0, 1], [1, 0, 0]]})
    assert pool_answers(runs, "meta_test").right["drawn"].tolist() == [1, 0, 0.5]
    assert pool_answers(runs, "meta_train").right.empty


def test_different_questions_are_refused_by_name():
    with pytest.raises(ResultsError, match="seed_999, rhymes .*base answered 3 .*degaml 4"):
        pool_answers(one({"base": [1, 0, 0], "degaml": [1, 0, 0, 1]}), "meta_test")
    runs = one({"base": [1, 0, 0], "degaml": [1, 0, 0]})
    answers = runs.runs[0].answers
    answers.loc[answers["method"] == "degaml", "index"] += 1
    with pytest.raises(ResultsError, match="not the same ones"):
        pool_answers(runs, "meta_test")


def test_draws_that_differ_and_answers_that_are_none_are_refused():
    runs = one({"drawn": [[1, 0, 1], [1, 0, 0]]})
    answers = runs.runs[0].answers
    with pytest.raises(ResultsError, match="the draws of drawn answered different questions"):
        pool_answers(_with_answers(runs, answers.iloc[:-1]), "meta_test")
    answers.loc[0, "right"] = math.nan
    with pytest.raises(ResultsError, match="neither right nor wrong"):
        pool_answers(runs, "meta_test")


def _with_answers(runs, answers):
    (run,) = runs.runs
    return Runs((replace(run, answers=answers),), runs.methods, runs.tasks)


# --- the bootstrap --------------------------------------------------------------------------------


def test_identical_methods_differ_by_nothing():
    right = first(0.6)
    runs = one({"a": right, "b": right})
    (found,) = compare(runs, "meta_test", "a", ["b"])
    assert (found.mean, found.low, found.high, found.p, found.p_adjusted) == (0, 0, 0, 1, 1)
    assert winner(runs, "meta_test") is None


def test_a_shift_has_the_binomial_interval(many_resamples):
    # 40 of 200 differences are 1 and the others 0: a resampled mean is Binomial(200, 0.2) / 200
    runs = one({"a": first(0.6, 200), "b": first(0.4, 200)})
    (found,) = compare(runs, "meta_test", "a", ["b"])
    low, high = stats.binom.ppf([0.025, 0.975], 200, 0.2) / 200
    assert found.mean == pytest.approx(0.2)
    assert found.low == pytest.approx(low, abs=0.005)
    assert found.high == pytest.approx(high, abs=0.005)
    assert found.p == pytest.approx(2 / (RESAMPLES + 1))
    assert (found.strata, found.pairs, found.tasks, found.missing) == (1, 200, ("rhymes",), ())


def test_p_has_its_closed_form(many_resamples):
    # none of the three questions that differ is drawn: (1 - 3 / 100) ** 100
    runs = one({"a": first(0.53), "b": first(0.50)})
    (found,) = compare(runs, "meta_test", "a", ["b"])
    assert found.p == pytest.approx(2 * 0.97**100, rel=0.1)
    (turned,) = compare(runs, "meta_test", "b", ["a"])
    assert (turned.p, turned.mean, turned.high) == (found.p, -found.mean, -found.low)


def test_the_interval_is_scipys(many_resamples):
    source = np.random.default_rng(3)
    a, b = (source.random((2, 150)) < [[0.7], [0.6]]).astype(float)
    (found,) = compare(one({"a": a, "b": b}), "meta_test", "a", ["b"])
    expected = stats.bootstrap(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.007)
    assert found.high == pytest.approx(expected.high, abs=0.007)


def test_several_strata_agree_with_scipy(many_resamples):
    source = np.random.default_rng(4)
    tasks = {
        name: {"a": (source.random(n) < 0.7) * 1.0, "b": (source.random(n) < 0.5) * 1.0}
        for name, n in (("x", 40), ("y", 120), ("z", 80))
    }
    (found,) = compare(make({1: tasks}), "meta_test", "a", ["b"])
    expected = stats.bootstrap(
        tuple(own["a"] - own["b"] for own in tasks.values()),
        lambda *s, axis: np.mean([part.mean(axis=axis) for part in s], axis=0),
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (found.strata, found.pairs) == (3, 240)
    assert found.low == pytest.approx(expected.low, abs=0.005)
    assert found.high == pytest.approx(expected.high, abs=0.005)


def test_strata_weigh_alike_whatever_their_size():
    runs = make(
        {1: {"big": {"a": np.ones(1000), "b": np.zeros(1000)}, "small": {"a": [0], "b": [0]}}}
    )
    (found,) = compare(runs, "meta_test", "a", ["b"])
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)


def test_seeds_with_the_same_questions_share_the_draws(many_resamples):
    def width(split):
        answers = {seed: {"rhymes": {"a": first(0.6), "b": first(0.4)}} for seed in (1, 2, 3, 4)}
        (found,) = compare(make(answers, split=split), "meta_test", "a", ["b"])
        return found.high - found.low

    # four seeds that repeat one another are no more than one; on other questions they halve the interval
    assert width("same") == pytest.approx(2 * width(None), rel=0.15)


def test_a_contrast_does_not_depend_on_its_company():
    source = np.random.default_rng(5)
    methods = {name: (source.random(60) < 0.5) * 1.0 for name in "abcd"}
    runs = one(methods)
    (alone,) = compare(runs, "meta_test", "a", ["b"])
    beside = compare(runs, "meta_test", "a", ["d", "a", "c", "b"])
    assert [contrast.other for contrast in beside] == ["d", "c", "b"]
    assert (alone.low, alone.high, alone.p) == (beside[2].low, beside[2].high, beside[2].p)
    # alone in its family, nothing is to be corrected
    assert (alone.p_adjusted, alone.low_adjusted) == (alone.p, alone.low)
    assert beside[2].low_adjusted < alone.low


def test_many_questions_are_drawn_in_parts(monkeypatch):
    values = np.random.default_rng(6).random((50, 2))
    whole = resampled_means([("x", values)], resamples=1000)
    monkeypatch.setattr(statistics, "_CHUNK", 50 * 7)
    np.testing.assert_allclose(resampled_means([("x", values)], resamples=1000), whole)
    np.testing.assert_allclose(whole.mean(axis=0), values.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(whole.std(axis=0), values.std(axis=0) / np.sqrt(50), rtol=0.1)


def test_p_is_uniform_where_nothing_differs():
    source = np.random.default_rng(7)
    # 400 data sets as columns, three strata each; both methods are right half of the time
    strata = [
        (f"s{number}", (source.random((150, 400)) < 0.5) - 1.0 * (source.random((150, 400)) < 0.5))
        for number in range(3)
    ]
    p = two_sided_p(resampled_means(strata, resamples=2000))
    assert 0.02 <= (p < 0.05).mean() <= 0.085
    assert 0.40 <= (p < 0.5).mean() <= 0.60
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_p_of_a_handful_of_resamples():
    resampled = np.array([[1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 2.0, 0.0]])
    assert two_sided_p(resampled).tolist() == [2 / 4, 1.0, 1.0]


def test_holm_and_bonferroni_by_hand(many_resamples):
    shares = {"a": 0.60, "b": 0.595, "c": 0.58, "d": 0.57}
    runs = one({name: first(share, 400) for name, share in shares.items()})
    found = compare(runs, "meta_test", "a", ["b", "c", "d"])
    p = [contrast.p for contrast in found]
    # from the smallest: times 3, 2 and 1, never falling
    third, second, largest = sorted(p)
    expected = [3 * third, max(3 * third, 2 * second), 0.0]
    expected[2] = max(expected[1], largest)
    assert sorted(p, reverse=True) == p
    assert [contrast.p_adjusted for contrast in found[::-1]] == pytest.approx(expected)
    assert {contrast.family for contrast in found} == {3}
    # 8 of 400 are apart: Binomial(400, 0.02) / 400 at 0.05 / 3
    low, high = stats.binom.ppf([0.025 / 3, 1 - 0.025 / 3], 400, 0.02) / 400
    assert found[1].low_adjusted == pytest.approx(low, abs=0.0026)
    assert found[1].high_adjusted == pytest.approx(high, abs=0.0026)


def test_twelve_methods_three_seeds_are_quick():
    source = np.random.default_rng(8)
    answers = {
        seed: {
            f"t{t}": {f"m{m}": (source.random(200) < 0.5) * 1.0 for m in range(13)}
            for t in range(6)
        }
        for seed in range(3)
    }
    found = compare(make(answers), "meta_test", "m0", [f"m{m}" for m in range(13)])
    assert len(found) == 12
    assert {(contrast.strata, contrast.pairs) for contrast in found} == {(18, 3600)}


# --- what is missing ------------------------------------------------------------------------------


def ragged():
    both = {"a": first(0.6), "b": first(0.4)}
    return make(
        {
            1: {"x": both, "y": {"a": first(1.0)}},
            2: {"x": {"a": first(1.0)}, "y": {"a": first(1.0)}},
        },
        methods=["a", "b", "never"],
    )


def test_a_contrast_is_where_both_are_and_says_what_is_missing():
    (found,) = compare(ragged(), "meta_test", "a", ["b", "never"])
    assert (found.strata, found.tasks, found.family) == (1, ("x",), 1)
    assert found.mean == pytest.approx(0.2)
    assert found.missing == ("b: y", "b: x in seed_2")
    assert compare(ragged(), "meta_test", "never", ["a", "b"]) == []
    (turned,) = compare(ragged(), "meta_test", "b", ["a"])
    assert turned.missing == found.missing


def test_tasks_can_be_picked():
    runs = make({1: {"x": {"a": [1], "b": [0]}, "y": {"a": [0], "b": [1]}}})
    assert compare(runs, "meta_test", "a", ["b"], tasks=["y"])[0].mean == -1
    assert compare(runs, "meta_train", "a", ["b"]) == []


def test_a_pool_that_the_record_does_not_list_has_the_tasks_that_were_answered():
    runs = one({"a": first(0.6), "b": first(0.4)}, pool="left_out")
    unlisted = Runs(runs.runs, runs.methods, {"meta_test": ()})
    assert compare(unlisted, "left_out", "a", ["b"]) == compare(runs, "left_out", "a", ["b"])


# --- means over seeds, then tasks -----------------------------------------------------------------


def uneven():
    """Task x with three seeds, of which y has one."""
    both = {"a": first(0.9), "b": first(0.3)}
    alone = {"x": {"a": first(0.5), "b": first(0.3)}}
    return make({1: {"x": both, "y": {"a": first(0.2), "b": first(0.1)}}, 2: alone, 3: alone})


def test_tasks_weigh_alike_however_many_seeds_they_have():
    # x: (0.9 + 0.5 + 0.5) / 3, y: 0.2
    mean = (1.9 / 3 + 0.2) / 2
    rows = {(row.method, row.task): row for row in table(uneven(), "meta_test", against="b")}
    row = rows["a", MEAN]
    assert row.accuracy == pytest.approx(mean)
    assert row.low < mean < row.high
    # x: (0.6 + 0.2 + 0.2) / 3, y: 0.1
    difference = (1 / 3 + 0.1) / 2
    assert row.delta == pytest.approx(difference)
    (contrast,) = compare(uneven(), "meta_test", "a", ["b"])
    assert contrast.mean == pytest.approx(difference)
    assert contrast.low < difference < contrast.high
    # as make has it: 0.1 (seed - 998)
    assert row.ece == pytest.approx(0.1 * ((2 - 998) + (1 - 998)) / 2)


def test_resampled_means_are_of_tasks():
    constants = [np.full((5, 2), value) for value in (0.0, 1.0, 1.0)]
    constants[2][:, 1] = math.nan
    found = resampled_means(list(zip("abc", constants, strict=True)), ["x", "y", "y"], 10)
    np.testing.assert_allclose(found, [[0.5, 0.5]] * 10)
    found = resampled_means(list(zip("abc", constants, strict=True)), ["x", "x", "y"], 10)
    np.testing.assert_allclose(found, [[0.75, 0.5]] * 10)
    nothing = resampled_means([("a", np.full((5, 1), math.nan))], resamples=3)
    assert np.isnan(nothing).all()


def test_adaptation_is_a_mean_over_seeds_then_tasks():
    compute = [
        spent("a", "adaptation", "x", 10, 0, 1.0, seed=1),
        spent("a", "adaptation", "x", 30, 0, 1.0, seed=2),
        spent("a", "adaptation", "x", 50, 0, 1.0, seed=3),
        spent("a", "adaptation", "y", 100, 0, 1.0, seed=1),
    ]
    answers = {1: {"x": {"a": [1]}, "y": {"a": [1]}}, 2: {"x": {"a": [1]}}, 3: {"x": {"a": [1]}}}
    assert costs(make(answers, compute=compute)).loc["a", "adaptation_tokens"] == (30 + 100) / 2


def test_a_part_that_one_task_does_not_know_the_mean_does_not_either():
    compute = [
        {**spent("a", "adaptation", "x", None, None, 1.0), "tokens": 30},
        {**spent("a", "adaptation", "y", 4, 6, 1.0), "tokens": 10},
    ]
    runs = make({1: {"x": {"a": [1]}, "y": {"a": [1]}}})
    (run,) = runs.runs
    for kind in ("float64", object):
        columns = ["forward_tokens", "backward_tokens", "tokens"]
        own = pd.DataFrame(compute).astype(dict.fromkeys(columns, kind))
        found = costs(Runs((replace(run, compute=own),), runs.methods, runs.tasks)).loc["a"]
        assert found["adaptation_tokens"] == 20
        assert found[["adaptation_forward_tokens", "adaptation_backward_tokens"]].isna().all()


# --- the winner -----------------------------------------------------------------------------------


def test_the_winner_is_far_from_all_others():
    runs = one({"a": first(0.9), "b": first(0.4), "c": first(0.5)})
    assert winner(runs, "meta_test") == "a"
    assert winner(runs, "meta_test", tasks=["rhymes"]) == "a"
    assert winner(runs, "meta_train") is None


def test_two_that_are_too_close_leave_no_winner():
    assert winner(one({"a": first(0.9), "b": first(0.89), "c": first(0.5)}), "meta_test") is None


def test_the_winner_is_corrected_for_the_number_of_others():
    # 4 of 100 apart: 0 is below the 2.5 % point of Binomial(100, 0.04), not below that for 12 comparisons
    methods = {"a": first(0.60), "b": first(0.55)}
    assert winner(one(methods), "meta_test") == "a"
    more = {f"c{number}": first(0.2) for number in range(11)}
    assert winner(one(methods | more), "meta_test") is None


def test_a_bound_never_wins_and_need_not_be_beaten():
    methods = {"oracle_strategy": first(1.0), "a": first(0.7), "b": first(0.4)}
    assert winner(one(methods), "meta_test") == "a"
    assert winner(one({"oracle_strategy": first(1.0), "b": first(0.4)}), "meta_test") is None
    assert winner(one(methods), "meta_test", exclude=()) == "oracle_strategy"


def test_no_winner_without_another_method_or_with_missing_tasks():
    assert winner(one({"a": first(0.9)}), "meta_test") is None
    good, bad = {"a": first(0.9), "b": first(0.1)}, {"b": first(0.1)}
    assert winner(make({1: {"x": good, "y": good}}), "meta_test") == "a"
    assert winner(make({1: {"x": good, "y": bad}}), "meta_test") is None
    assert winner(make({1: {"x": good, "y": bad}}), "meta_test", tasks=["x"]) == "a"
    # a seed, or a task that nobody answered
    assert winner(make({1: {"x": good}, 2: {"x": bad}}), "meta_test") is None
    assert winner(make({1: {"x": good}}, tasks=["x", "z"]), "meta_test") is None
    # the others may miss tasks
    alone = {"a": first(0.9)}
    assert winner(make({1: {"x": good, "y": alone}}), "meta_test") == "a"


# --- tables ---------------------------------------------------------------------------------------


def test_rows_have_means_over_seeds_and_pooled_wilson_intervals():
    runs = make(
        {
            999: {"x": {"base": first(0.4), "a": first(0.6)}},
            1000: {"x": {"base": first(0.5), "a": first(0.8)}},
        }
    )
    rows = {(row.method, row.task): row for row in table(runs, "meta_test")}
    row = rows["a", "x"]
    assert row.accuracy == pytest.approx(0.7)
    assert (row.low, row.high) == wilson_interval(140, 200)
    assert (row.n, row.seeds, row.tasks, row.partial) == (200, 2, 1, None)
    assert row.spread == pytest.approx(np.std([0.6, 0.8], ddof=1))
    assert row.ece == pytest.approx(0.15)
    assert row.nll == 1.0
    assert row.delta == pytest.approx(0.25)
    assert rows["base", "x"].delta == 0
    mean = rows["a", MEAN]
    assert mean.accuracy == pytest.approx(0.7)
    error = 1.96 * np.sqrt((0.24 + 0.16) / 100) / 2
    assert mean.low == pytest.approx(0.7 - error, abs=0.01)
    assert mean.high == pytest.approx(0.7 + error, abs=0.01)
    against_a = table(runs, "meta_test", against="a")
    assert against_a[0].delta == pytest.approx(-0.25)
    assert {row.delta for row in table(runs, "meta_test", against="never")} == {None}


def test_questions_that_seeds_share_count_once():
    runs = make({seed: {"x": {"a": first(0.6)}} for seed in (1, 2, 3)}, split="same")
    row = table(runs, "meta_test")[0]
    assert (row.n, row.seeds, row.spread) == (100, 3, 0)
    assert (row.low, row.high) == wilson_interval(60, 100)


def test_what_is_missing_is_none_and_a_partial_mean_is_flagged():
    full = {"base": first(0.4), "a": first(0.6), "generates": first(0.5)}
    runs = make(
        {1: {"x": full, "y": {"base": first(0.2), "generates": first(0.5)}}},
        methods=["base", "never", "a", "generates", "oracle_strategy"],
    )
    rows = {(row.method, row.task): row for row in table(runs, "meta_test")}
    assert len(rows) == 5 * 3
    for place in (("a", "y"), ("never", "x"), ("never", MEAN)):
        row = rows[place]
        values = (row.accuracy, row.low, row.high, row.spread, row.ece, row.nll, row.delta)
        assert values == (None,) * 7
        assert (row.n, row.seeds, row.tasks, row.partial) == (0, 0, 0, None)
    mean = rows["a", MEAN]
    assert (mean.accuracy, mean.low, mean.delta, mean.tasks) == (None, None, None, 1)
    assert mean.partial == pytest.approx(0.6)
    assert rows["base", MEAN].accuracy == pytest.approx(0.3)
    assert rows["base", MEAN].partial is None
    assert rows["generates", MEAN].nll is None
    assert rows["oracle_strategy", MEAN].bound
    assert rows["a", "x"].spread is None


def test_a_mean_against_a_reference_that_misses_tasks_has_no_delta():
    runs = make({1: {"x": {"a": [1], "base": [0]}, "y": {"a": [1]}}})
    rows = {(row.method, row.task): row for row in table(runs, "meta_test")}
    assert rows["a", "x"].delta == 1
    assert rows["a", "y"].delta is None
    assert rows["a", MEAN].accuracy == 1
    assert rows["a", MEAN].delta is None


# --- what it costs --------------------------------------------------------------------------------


def spent(method, stage, task, forward, backward, seconds, **more):
    return {
        "method": method,
        "stage": stage,
        "task": task,
        "forward_tokens": forward,
        "backward_tokens": backward,
        "seconds": seconds,
        **more,
    }


def priced(degaml=(100, 50, 2.0), shares=(0.9, 0.4, 0.5)):
    methods = dict(zip(("degaml", "maml_en_llm", "abmll"), map(first, shares), strict=True))
    compute = [
        spent("maml_en_llm", "meta_training", None, 1000, 500, 9.0, seed=1),
        spent("maml_en_llm", "meta_training", None, 3000, 500, 11.0, seed=2),
        spent("maml_en_llm", "search", "s", 10, 0, 1.0, seed=1),
        spent("maml_en_llm", "search", "t", 20, 0, 1.0, seed=1),
    ]
    for seed in (1, 2):
        for task in ("x", "y"):
            compute += [
                spent("degaml", "adaptation", task, *degaml, seed=seed),
                spent("maml_en_llm", "adaptation", task, 60, 60, 1.0, seed=seed),
                spent("maml_en_llm", "adaptation", task, 40, 40, 1.0, seed=seed),
                spent("abmll", "adaptation", task, 100, 90, 3.0, seed=seed),
            ]
        # of another pool
        compute.append(spent("degaml", "adaptation", "seen", 10**6, 0, 99.0, seed=seed))
    answers = {seed: {"x": methods, "y": methods} for seed in (1, 2)}
    return make(answers, methods=["base", "icl", *methods], compute=compute)


def test_costs_are_added_up_within_a_run_and_averaged_over_runs():
    found = costs(priced())
    maml = found.loc["maml_en_llm"]
    assert (maml["meta_training_tokens"], maml["meta_training_seconds"]) == (2500, 10)
    assert (maml["search_forward_tokens"], maml["search_backward_tokens"]) == (30, 0)
    assert (maml["adaptation_forward_tokens"], maml["adaptation_tokens"]) == (100, 200)
    assert maml["adaptation_seconds"] == 2
    assert found.loc["degaml", "adaptation_tokens"] == 150


def test_costs_that_were_not_counted_are_missing_and_what_does_nothing_costs_nothing():
    found = costs(priced())
    for name in ("pooled", "mean_adapter"):
        own = costs(one({name: [1]})).loc[name]
        # they do nothing at a task, but have learned before
        assert (own["adaptation_tokens"], own["adaptation_seconds"], own["search_tokens"]) == (
            0,
        ) * 3
        assert math.isnan(own["meta_training_tokens"])
    assert costs(one({"generalization_only": [1]}))["adaptation_tokens"].isna().all()
    stages = ["meta_training_tokens", "search_tokens", "adaptation_tokens"]
    assert found.loc["base", stages].tolist() == [0, 0, 0]
    assert found.loc["icl", "meta_training_tokens"] == 0
    assert found.loc["icl", ["search_tokens", "adaptation_tokens"]].isna().all()
    assert math.isnan(found.loc["degaml", "meta_training_tokens"])
    assert found["search_seconds"].isna().sum() == 3
    compute = [spent("a", "adaptation", "rhymes", None, 0, 1.0)]
    compute += [spent("b", "adaptation", "rhymes", 5, 0, 1.0)]
    runs = one({"a": [1], "b": [1]}, compute=compute)
    own = costs(_with_objects(runs))
    assert own.loc["a", ["adaptation_tokens", "adaptation_seconds"]].isna().all()
    assert own.loc["b", "adaptation_tokens"] == 5


def _with_objects(runs):
    """As a column that holds None may be read."""
    (run,) = runs.runs
    own = replace(run, compute=run.compute.astype(object))
    return Runs((own,), runs.methods, runs.tasks)


def test_the_budget_is_that_of_the_costliest_other_and_tokens_decide():
    found = verdict(priced(), baselines=("maml_en_llm", "abmll"))
    assert (found.tokens, found.most_tokens) == (150, (200, "maml_en_llm"))
    assert (found.seconds, found.most_seconds) == (2, (3, "abmll"))
    assert found.within is True
    assert verdict(priced((150, 51, 1.0)), baselines=("maml_en_llm", "abmll")).within is False
    slow = verdict(priced((100, 50, 4.0)), baselines=("maml_en_llm", "abmll"))
    assert (slow.within, slow.met) == (True, True)


def test_a_budget_against_what_was_not_counted():
    runs = priced((500, 0, 1.0))
    found = verdict(runs, baselines=("maml_en_llm", "icl"))
    # icl may cost more than 500 tokens
    assert (found.within, found.not_counted) == (None, ("icl",))
    assert verdict(runs, baselines=("icl",)).most_tokens is None


# --- the verdict ----------------------------------------------------------------------------------


def test_the_aim_is_met():
    found = verdict(priced(), baselines=("maml_en_llm", "abmll"))
    assert (found.best, found.best_accuracy) == ("abmll", 0.5)
    assert found.contrast["mean"] == pytest.approx(0.4)
    assert found.contrast["family"] == 2
    assert (found.enough, found.above_zero, found.within, found.met) == (True,) * 4
    assert found.missing == ()


def test_the_aim_is_missed():
    near = verdict(priced(shares=(0.51, 0.4, 0.5)), baselines=("maml_en_llm", "abmll"))
    assert (near.enough, near.met) == (False, False)
    two = verdict(priced(shares=(0.52, 0.4, 0.5)), baselines=("maml_en_llm", "abmll"))
    assert two.enough is True
    dear = verdict(priced((1000, 0, 1.0)), baselines=("maml_en_llm", "abmll"))
    assert (dear.enough, dear.above_zero, dear.met) == (True, True, False)


def test_a_baseline_that_is_missing_leaves_the_aim_open_unless_it_is_missed_already():
    found = verdict(priced())
    assert found.best == "abmll"
    assert found.met is None
    assert found.missing[:2] == ("no_meta_train_support: x", "no_meta_train_support: y")
    assert verdict(priced(shares=(0.3, 0.4, 0.5))).met is False
    both = {"degaml": first(0.9), "abmll": first(0.5)}
    part = make({1: {"x": both, "y": both}, 2: {"x": both, "y": {"degaml": first(0.9)}}})
    assert verdict(part, baselines=("abmll",)).missing == ("abmll: y in seed_2",)
    nothing = verdict(one({"degaml": [1, 0]}))
    assert (nothing.best, nothing.contrast, nothing.enough, nothing.met) == (None,) * 4


def test_what_the_method_or_the_best_is_missing_leaves_the_aim_open():
    # on x alone the aim is missed; y may still turn it
    both = {"degaml": first(0.5), "abmll": first(0.5)}
    found = verdict(make({1: {"x": both, "y": {"abmll": first(0.1)}}}), baselines=("abmll",))
    assert (found.enough, found.met, found.missing) == (False, None, ("degaml: y",))
    # the best misses a seed
    runs = make({1: {"x": both}, 2: {"x": {"degaml": first(0.5)}}})
    found = verdict(runs, baselines=("abmll",))
    assert (found.best, found.enough, found.met) == ("abmll", False, None)
    # another baseline does, and can only raise the best
    more = {**both, "maml_en_llm": first(0.2)}
    found = verdict(make({1: {"x": more}, 2: {"x": both}}), baselines=("abmll", "maml_en_llm"))
    assert (found.best, found.enough, found.met) == ("abmll", False, False)


def test_an_interval_or_a_budget_that_more_answers_may_turn_leaves_the_aim_open():
    # 4 points, not beyond chance against this best one
    close = {"degaml": first(0.54), "abmll": first(0.5)}
    close["abmll"] = close["abmll"][::-1].copy()
    found = verdict(one(close), baselines=("abmll",))
    assert (found.enough, found.above_zero, found.met) == (True, False, False)
    found = verdict(one(close), baselines=("abmll", "maml_en_llm"))
    assert (found.enough, found.above_zero, found.met) == (True, False, None)
    dear = verdict(priced((1000, 0, 1.0)), baselines=("maml_en_llm", "abmll", "union_train"))
    assert (dear.enough, dear.above_zero, dear.met) == (True, True, None)


def test_the_best_is_found_where_answers_can_be_compared():
    # maml_en_llm's only seed is an easy one
    easy = {"degaml": first(0.9), "abmll": first(0.7), "maml_en_llm": first(0.65)}
    hard = {"degaml": first(0.5), "abmll": first(0.3)}
    found = verdict(make({1: {"x": easy}, 2: {"x": hard}}), baselines=("abmll", "maml_en_llm"))
    assert (found.best, found.best_accuracy) == ("abmll", 0.5)
    # none is whole: on the seed that both have
    low = {"degaml": first(0.5), "maml_en_llm": first(0.1)}
    runs = make({1: {"x": easy}, 2: {"x": hard}, 3: {"x": low}})
    found = verdict(runs, baselines=("abmll", "maml_en_llm"))
    assert found.best == "abmll"
    runs = make({1: {"x": {**hard}}, 2: {"x": low}})
    assert verdict(runs, baselines=("abmll", "maml_en_llm")).best is None


def test_baselines_without_answers_count_in_the_verdict_s_correction():
    few, all_four = (
        verdict(priced(shares=(0.53, 0.4, 0.5)), baselines=baselines).contrast
        for baselines in (("maml_en_llm", "abmll"), PAPER_BASELINES)
    )
    assert (few["family"], all_four["family"]) == (2, 4)
    assert few["low"] == all_four["low"]
    assert all_four["low_adjusted"] < few["low_adjusted"]
    expected = pytest.approx((2 * few["p"], 4 * few["p"]))
    assert (few["p_adjusted"], all_four["p_adjusted"]) == expected
    # a table of contrasts is corrected for those in it
    assert compare(priced(), "meta_test", "degaml", ["maml_en_llm", "abmll", "icl"])[0].family == 2


# --- frames ---------------------------------------------------------------------------------------


def test_findings_become_tables():
    findings = find(priced())
    frame = findings.comparison.set_index(["method", "task"])
    assert set(frame.index.unique("task")) == {"x", "y", "mean"}
    assert frame.loc[("maml_en_llm", "mean"), "adaptation_tokens"] == 200
    assert math.isnan(frame.loc[("maml_en_llm", "x"), "adaptation_tokens"])
    contrasts = findings.differences().set_index("other")
    assert contrasts.loc["abmll", "tasks"] == "x, y"


def test_tasks_that_were_drawn_are_drawn_again_within_their_run():
    # every question of a task alike: all that varies is which tasks are drawn
    means = np.random.default_rng(3).random(40)
    strata = [(f"task {n}", np.full((5, 1), mean)) for n, mean in enumerate(means)]
    assert np.ptp(resampled_means(strata)) == 0
    one = resampled_means(strata, runs=["a"] * 40)
    assert one.mean() == pytest.approx(means.mean(), abs=0.002)
    assert one.std() == pytest.approx(means.std() / 40**0.5, rel=0.03)
    # of two runs, each keeps its number of tasks
    halves = resampled_means(strata, runs=["a"] * 20 + ["b"] * 20)
    inside = (means[:20].var() + means[20:].var()) / 2
    assert halves.std() == pytest.approx((inside / 40) ** 0.5, rel=0.03)
