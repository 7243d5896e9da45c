"""The rule `paired`, and ensembles of what a search has tried."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import RewardParameters, RolloutParameters, SearchParameters
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.indicators import measure_indicators
from degaml_kedro.policy.paired import deal_folds, preference_p_value
from degaml_kedro.policy.proposers import UniformProposer
from degaml_kedro.policy.search import Tag, executed_rows, most_trials
from degaml_kedro.policy.trial import Attempt, try_action
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.ensemble import fit_weights
from degaml_kedro.strategies.observations import Labeled, Prompts
from degaml_kedro.strategies.registry import find_family
from degaml_kedro.strategies.scaling import combine
from degaml_kedro.strategies.state import Vote
from tests.policy.toys import (
    Script,
    Toy,
    adapt,
    bytes_of,
    carry_out,
    fail,
    identity,
    moved,
    roll_out,
)
from tests.strategies.helpers import examples, make_context, state

ASKED = examples(12)
GOLD = [example.gold for example in ASKED]
REWARD = RewardParameters()
PAIRED = SearchParameters(rounds=1, proposals=4, rule="paired", level=0.05)
EQUAL, FITTED = (
    f'{{"family":"ensemble","members":2,"weights":"{weights}"}}' for weights in ("equal", "fitted")
)


def searched(toy, texts, settings=PAIRED, support=ASKED, finished=(), seed=3, space=None):
    return adapt(
        make_context(), space or toy.space, Script(texts), state(), support, settings, REWARD, seed,
        Tag("task", "degaml"), finished,
    )  # fmt: skip


def likelihoods(row):
    """By example, from what the row keeps."""
    scores = np.array(json.loads(row["option_scores"]))
    logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return logs[np.arange(len(GOLD)), GOLD]


def of_state(one):
    found = predict(make_context(), one, ASKED)
    return likelihoods({"option_scores": json.dumps([p.option_scores for p in found])})


def move_or_stay(context, one, seen, config, seed):
    """Moved the number's own way; 50 changes nothing."""
    return one if config.which == 50 else moved(one, config.which)


def timeless(rows):
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


@cache
def numbers():
    """The toy's numbers from the likeliest to the worst, the test's p of each against the start, and likelihoods."""
    before = of_state(state())
    after = {which: of_state(moved(state(), which)) for which in range(40)}
    order = sorted(after, key=lambda which: -after[which].mean())
    return order, {which: preference_p_value(after[which], before) for which in order}, after


# --- who decides ----------------------------------------------------------------------------------


def test_what_the_test_prefers_is_executed_and_of_these_the_likeliest():
    order, p, _ = numbers()
    preferred = [which for which in order if p[which] <= 0.05]
    assert len(preferred) >= 2
    worst = order[-1]
    toy = Toy(move_or_stay)
    texts = [toy.text(which) for which in (worst, preferred[1], preferred[0], 50)]
    rows = list(searched(toy, texts))
    (chosen,) = executed_rows(rows)
    assert chosen["action"] == toy.text(preferred[0])
    assert [row["decided_by"] for row in rows] == ["initialization", "test", "test", "test"]
    assert [row["p_value"] for row in rows] == [p[worst], p[preferred[1]], p[preferred[0]], 1.0]
    made = carry_out(make_context(), toy.space, state(), ASKED, rows).state
    assert bytes_of(made) == bytes_of(moved(state(), preferred[0]))


def test_what_scores_better_by_chance_alone_is_not_executed():
    order, p, after = numbers()
    before = of_state(state())
    lucky = [w for w in order if after[w].mean() > before.mean() and p[w] > 0.05]
    assert lucky
    toy = Toy(move_or_stay)
    texts = [toy.text(which) for which in lucky[:4]]
    rows = list(searched(toy, texts))
    assert executed_rows(rows) == []
    assert {row["decided_by"] for row in rows} == {"initialization"}
    # the strict rule would have taken one
    strict = PAIRED.model_copy(update={"rule": "strict"})
    assert executed_rows(list(searched(toy, texts, strict)))
    # and so would another level
    (level,) = {min(p[w] for w in lucky[:4])}
    loose = PAIRED.model_copy(update={"level": min(0.5, level + 1e-9)})
    assert len(executed_rows(list(searched(toy, texts, loose)))) == (level < 0.5)


def test_where_nothing_can_be_told_the_fallback_is_executed():
    toy = Toy(move_or_stay)
    fallback = toy.text(50).replace(":50", ": 50")
    settings = PAIRED.model_copy(update={"fallback": ("no action", fallback)})
    order, p, _ = numbers()
    unsure = next(which for which in order if p[which] > 0.05)
    rows = list(searched(toy, [toy.text(unsure)] * 4, settings))
    first, second = rows
    assert (first["source"], first["action"], first["rollout"]) == ("fallback", toy.text(50), 0)
    # nobody wrote it: no text's tokens are in it
    trial = sum(one.tokens for one in predict(make_context(), state(), ASKED))
    assert (first["tokens"], first["state"]) == (trial, "")
    assert second["source"] == "policy"
    # where the fallback changes nothing, the test is the one against the start
    assert second["p_value"] == p[unsure]
    assert [row["decided_by"] for row in rows] == ["fallback", "fallback"]
    assert executed_rows(rows) == [first]


def test_four_examples_cannot_tell():
    toy = Toy(move_or_stay)
    settings = PAIRED.model_copy(update={"fallback": (toy.text(50),)})
    rows = list(searched(toy, [toy.text(i) for i in range(4)], settings, ASKED[:4]))
    assert {row["p_value"] for row in rows} == {1.0}
    assert executed_rows(rows) == rows[:1]
    assert {row["decided_by"] for row in rows} == {"fallback"}
    assert (
        executed_rows(list(searched(toy, [toy.text(i) for i in range(4)], support=ASKED[:4]))) == []
    )


def test_a_task_with_open_answers_has_a_fallback_of_its_own():
    toy = Toy(move_or_stay)
    settings = PAIRED.model_copy(
        update={"fallback": (toy.text(50),), "open_fallback": (toy.text(51),)}
    )
    closed = [replace(example, options=ASKED[0].options) for example in ASKED]
    for support, which in ((closed, 50), (ASKED, 51)):
        first = next(searched(toy, [toy.text(1)], settings, support))
        assert (first["source"], first["action"]) == ("fallback", toy.text(which))
    none = settings.model_copy(update={"open_fallback": ()})
    assert next(searched(toy, [toy.text(1)], none))["source"] == "policy"
    assert most_trials(none, toy.space) == most_trials(settings, toy.space)


def test_a_fallback_that_is_worse_is_not_the_reference():
    order, p, after = numbers()
    worst = order[-1]
    assert preference_p_value(of_state(state()), after[worst]) <= 0.05
    toy = Toy(move_or_stay)
    settings = PAIRED.model_copy(update={"fallback": (toy.text(worst),)})
    best = next(which for which in order if p[which] <= 0.05)
    rows = list(searched(toy, [toy.text(50), toy.text(best)] * 2, settings))
    assert [row["decided_by"] for row in rows] == ["initialization", "initialization", "test"]
    assert rows[2]["p_value"] == p[best]


def test_a_fallback_that_fails_is_not_the_reference():
    def sometimes(context, one, seen, config, seed):
        return fail() if config.which == 50 else move_or_stay(context, one, seen, config, seed)

    toy = Toy(sometimes)
    settings = PAIRED.model_copy(update={"fallback": (toy.text(50),)})
    rows = list(searched(toy, [toy.text(51)] * 4, settings))
    assert (rows[0]["error"] is None, rows[0]["p_value"], rows[0]["executed"]) == (
        False,
        None,
        False,
    )
    assert rows[0]["decided_by"] == "initialization"
    _order, _p, _ = numbers()
    assert rows[1]["p_value"] == preference_p_value(of_state(moved(state(), 51)), of_state(state()))


def test_candidates_are_tested_against_the_fallback():
    order, p, after = numbers()
    better = [which for which in order if p[which] <= 0.05]
    first, other = better[0], better[-1]
    toy = Toy(move_or_stay)
    settings = PAIRED.model_copy(update={"fallback": (toy.text(first),)})
    rows = list(searched(toy, [toy.text(other)] * 4, settings))
    assert rows[1]["p_value"] == preference_p_value(after[other], after[first])
    assert executed_rows(rows) == rows[:1]
    assert rows[-1]["decided_by"] == "fallback"


def test_a_fallback_that_is_proposed_anyway_is_tried_once_and_first():
    toy = Toy(move_or_stay)
    settings = PAIRED.model_copy(update={"fallback": (toy.text(50),)})
    texts = [toy.text(1), toy.text(2), toy.text(50), toy.text(3)]
    rows = list(searched(toy, texts, settings))
    assert [row["action"] for row in rows] == [texts[2], texts[0], texts[1], texts[3]]
    assert {row["source"] for row in rows} == {"policy"}
    assert len(toy.calls) == 4


def test_later_rounds_have_no_fallback_and_go_on_from_what_was_executed():
    order, p, _ = numbers()
    best = next(which for which in order if p[which] <= 0.05)
    toy = Toy(move_or_stay)
    settings = PAIRED.model_copy(
        update={"rounds": 2, "proposals": 2, "fallback": (toy.text(best),)}
    )
    rows = list(searched(toy, [toy.text(50), toy.text(51), toy.text(50), toy.text(best)], settings))
    assert [row["round"] for row in rows] == [1, 1, 1, 2, 2]
    second = [row for row in rows if row["round"] == 2]
    assert {row["source"] for row in second} == {"policy"}
    assert second[0]["p_value"] == 1.0  # it changes nothing of where the round started
    assert second[0]["decided_by"] == "initialization"
    assert most_trials(settings, toy.space) == 5
    assert most_trials(settings, with_ensemble(toy)) == 7
    made = carry_out(make_context(), toy.space, state(), ASKED, rows).state
    expected = state()
    for row in executed_rows(rows):
        expected = moved(expected, json.loads(row["action"])["which"])
    assert bytes_of(made) == bytes_of(expected)


def test_a_fallback_that_reads_answers_ends_the_search():
    toy = Toy(identity, Labeled)
    settings = PAIRED.model_copy(update={"rounds": 3, "fallback": (toy.text(50),)})
    rows = list(searched(toy, [toy.text(i) for i in range(4)], settings))
    assert {row["round"] for row in rows} == {1}
    assert executed_rows(rows) == rows[:1]


# --- cross-fitting --------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_candidate_is_scored_on_the_same_folds_and_never_on_what_it_was_given(
    folds, monkeypatch
):
    scored = []

    def memorize(context, one, seen, config, seed):
        made = replace(one)
        object.__setattr__(made, "knows", {example.prompt for example in seen.examples})
        return made

    def watching(context, one, asked, *rest):
        if hasattr(one, "knows"):
            scored.append((one.knows, {example.prompt for example in asked}))
        return predict(context, one, asked, *rest)

    monkeypatch.setattr("degaml_kedro.policy.trial.predict", watching)
    toy = Toy(memorize, Labeled)
    settings = PAIRED.model_copy(update={"folds": folds})
    rows = list(searched(toy, [toy.text(i) for i in range(3)], settings))
    assert [row["error"] for row in rows] == [None] * 3
    every = {example.prompt for example in ASKED}
    for known, asked in scored:
        assert known.isdisjoint(asked)
        assert known | asked == every
    dealt = deal_folds(ASKED, folds, derive_seed(3, "folds"))
    expected = [{ASKED[place].prompt for place in fold} for fold in dealt]
    assert [asked for _, asked in scored] == expected * 3


def test_likelihoods_in_a_row_are_what_its_score_is_the_mean_of():
    toy = Toy(move_or_stay, Labeled)
    rows = list(searched(toy, [toy.text(i) for i in range(3)]))
    for row in rows:
        assert likelihoods(row).mean() == pytest.approx(row["log_probability_after"])


def test_one_example_is_not_cross_fitted():
    toy = Toy(identity, Labeled)
    rows = list(searched(toy, [toy.text(1)], support=ASKED[:1]))
    assert "needs at least 2 examples" in rows[0]["error"]
    assert toy.calls == []


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", range(8))
@pytest.mark.parametrize("sees", [Prompts, Labeled])
def test_a_killed_search_goes_on_with_the_same_rows_and_repeats_none(done, sees):
    order, _p, _ = numbers()
    toy = Toy(move_or_stay, sees)
    space = with_ensemble(toy)
    settings = PAIRED.model_copy(
        update={"rounds": 2, "proposals": 3, "fallback": (toy.text(50),), "early_stop": False}
    )
    texts = [toy.text(which) for which in (order[-1], order[1], order[0])]
    texts += [toy.text(which) for which in (7, 8, 9)]
    every = list(searched(toy, texts, settings, space=space))
    stored = json.loads(json.dumps(every[:done]))
    seeds = [row["seed"] for row in every[done:] if row["family"] == "toy"]
    toy.calls.clear()
    rest = list(searched(toy, texts, settings, finished=stored, space=space))
    assert timeless(rest) == timeless(every[done:])
    # trials, and what the first round executed before the second
    again = {call.seed for call in toy.calls} - set(seeds)
    assert len(again) <= 1
    one, other = (
        carry_out(make_context(), space, state(), ASKED, rows).state
        for rows in (every, stored + rest)
    )
    assert bytes_of(one) == bytes_of(other)


# --- ensembles ------------------------------------------------------------------------------------


def with_ensemble(toy, weights="equal"):
    known = {toy.name: toy.family, "ensemble": find_family("ensemble")}
    pooling = {"members": [2, 2], "weights": [weights]}
    return ActionSpace.of({toy.name: {}, "ensemble": pooling}, known)


def tried_ensemble(weights, rows, folds):
    """An ensemble of the rows, tried on its own."""
    attempts = [
        Attempt(row["action"], row["family"], row["seed"], tuple(map(tuple, json.loads(row["option_scores"]))))
        for row in rows
    ]  # fmt: skip
    context = make_context()
    before = measure_indicators(predict(make_context(), state(), ASKED))
    space = ActionSpace.of({"ensemble": {}})
    text = FITTED if weights == "fitted" else EQUAL
    trial = try_action(context, space, state(), before, ASKED, text, REWARD, 9, folds, attempts)
    assert trial.error is None
    assert (trial.tokens, context.meter.tokens) == (0, 0)
    return trial


@pytest.mark.parametrize("weights", ["equal", "fitted"])
@pytest.mark.parametrize("sees", [Prompts, Labeled])
def test_held_out_scores_of_an_ensemble_are_those_of_its_members_put_together(weights, sees):
    order, _, _ = numbers()
    toy = Toy(move_or_stay, sees)
    rows = list(searched(toy, [toy.text(which) for which in order[:2]]))
    folds = deal_folds(ASKED, 3, 1)
    trial = tried_ensemble(weights, rows, folds)
    members = [json.loads(row["option_scores"]) for row in rows]
    for fold in folds:
        others = [place for place in range(len(ASKED)) if place not in fold]
        # by hand: the likelier on the other folds is the first member, and weights are fitted there alone
        held_in = [[one[place] for place in others] for one in members]
        means = [np.mean([likelihoods(row)[place] for place in others]) for row in rows]
        first = int(means[1] > means[0])
        pair = [held_in[first], held_in[1 - first]]
        fitted = (
            fit_weights(pair, [GOLD[place] for place in others]) if weights == "fitted" else None
        )
        for place in fold:
            expected = combine(
                [members[first][place], members[1 - first][place]], "sum_logprobs", fitted
            )
            assert trial.predictions[place].option_scores == pytest.approx(expected, abs=1e-12)
    assert trial.after == measure_indicators(trial.predictions)
    assert not trial.poolable


def test_an_ensemble_is_tried_after_what_it_puts_together_and_repeats_nothing():
    order, _p, _ = numbers()
    toy = Toy(move_or_stay)
    space = with_ensemble(toy)
    rows = list(searched(toy, [toy.text(which) for which in order[:2]], space=space))
    assert [row["family"] for row in rows] == ["toy", "toy", "ensemble"]
    assert len(toy.calls) == 2
    last = rows[-1]
    assert (last["source"], last["action"], last["state"]) == ("search", EQUAL, "")
    assert (last["error"], last["tokens"], last["forward_tokens"]) == (None, 0, 0)
    assert not last["poolable"]
    pooled = [
        combine(pair, "sum_logprobs")
        for pair in zip(*(json.loads(row["option_scores"]) for row in rows[:2]), strict=True)
    ]
    assert np.allclose(json.loads(last["option_scores"]), pooled, atol=1e-12)


@pytest.mark.parametrize("rule", ["paired", "strict"])
@pytest.mark.parametrize("sees", [Prompts, Labeled])
def test_an_executed_ensemble_trains_each_member_once_on_all_of_the_support(rule, sees):
    order, _, _ = numbers()
    toy = Toy(move_or_stay, sees)
    space = with_ensemble(toy, "fitted")
    settings = PAIRED.model_copy(update={"rule": rule})
    rows = list(searched(toy, [toy.text(which) for which in order[:2]], settings, space=space))
    assert rows[-1]["family"] == "ensemble"
    # whatever was chosen
    rows = [{**row, "executed": row["family"] == "ensemble"} for row in rows]
    toy.calls.clear()
    made = carry_out(make_context(), space, state(), ASKED, rows).state
    assert [call.which for call in toy.calls] == order[:2]
    assert {call.seed for call in toy.calls} == {row["seed"] for row in rows[:2]}
    for call in toy.calls:
        assert len(getattr(call.seen, "questions", None) or call.seen.examples) == len(ASKED)
        assert bytes_of(call.state) == bytes_of(state())
    members = [json.loads(row["option_scores"]) for row in rows[:2]]
    likeliest = sorted(range(2), key=lambda i: -rows[i]["log_probability_after"])
    weights = fit_weights([members[i] for i in likeliest], GOLD)
    assert made.vote == Vote("sum_logprobs", weights=weights)
    for member, i in zip(made.members, likeliest, strict=True):
        alone = replace(state(), members=(member,))
        assert bytes_of(alone) == bytes_of(moved(state(), order[i]))


def test_an_executed_ensemble_ends_the_search():
    order, _, _ = numbers()
    toy = Toy(move_or_stay)
    space = with_ensemble(toy)
    strict = SearchParameters(rounds=3, proposals=3)
    for first in order:
        for second in order[:6]:
            if first == second:
                continue
            texts = [toy.text(first), toy.text(second)]
            rows = list(searched(toy, texts, strict, space=space))
            chosen = executed_rows(rows)
            if chosen and chosen[0]["family"] == "ensemble":
                assert {row["round"] for row in rows} == {1}
                return
    pytest.fail("no ensemble was best")


def test_one_trial_alone_is_put_together_with_nothing():
    toy = Toy(move_or_stay)
    rows = list(searched(toy, [toy.text(1)], space=with_ensemble(toy)))
    assert [row["family"] for row in rows] == ["toy"]


@pytest.mark.parametrize("rule", ["paired", "strict"])
def test_an_ensemble_of_nothing_fails_and_says_so(rule):
    toy = Toy(fail)
    settings = PAIRED.model_copy(update={"rule": rule})
    texts = [toy.text(1), toy.text(2)]
    rows = list(searched(toy, texts, settings, space=with_ensemble(toy)))
    last = rows[-1]
    assert (last["family"], last["reward"], last["executed"]) == ("ensemble", 0.0, False)
    assert last["error"].startswith("StrategyError: an ensemble puts together")
    assert "and has 0" in last["error"]


def test_what_is_not_one_adapter_alone_is_passed_over():
    def votes(context, one, seen, config, seed):
        made = moved(one, config.which)
        return replace(made, vote=Vote("max_confidence")) if config.which == 1 else made

    toy = Toy(votes)
    rows = list(searched(toy, [toy.text(0), toy.text(1)], space=with_ensemble(toy)))
    assert [row["poolable"] for row in rows] == [True, False, None]
    assert "and has 1" in rows[2]["error"]


def test_nobody_proposes_an_ensemble():
    toy = Toy(move_or_stay)
    space = with_ensemble(toy)
    assert "ensemble" not in space.grammar()
    assert {space.draw(np.random.default_rng(0), turn).family for turn in range(4)} == {"toy"}
    settings = RolloutParameters(count=6, at_once=3, examples=6, resample=False)
    rows = list(
        roll_out(
            make_context(), space, UniformProposer(space), state(), ASKED, settings, REWARD, 3,
            Tag("task", "degaml", 1),
        )
    )  # fmt: skip
    assert {row["family"] for row in rows} == {"toy"}
    assert all(row["p_value"] is row["decided_by"] is row["option_scores"] is None for row in rows)
