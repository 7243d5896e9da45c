from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest

from degaml_kedro.config.schema import RewardParameters, RolloutParameters, SearchParameters
from degaml_kedro.io.rollouts import ROLLOUT_COLUMNS
from degaml_kedro.policy.indicators import IndicatorError, measure_indicators
from degaml_kedro.policy.proposers import UniformProposer
from degaml_kedro.policy.search import ResumeMismatchError, Tag, executed_rows
from degaml_kedro.policy.trial import execute
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.observations import Labeled
from degaml_kedro.strategies.state import AdaptedState, Member
from degaml_kedro.tasks.example import make_example
from tests.policy.toys import (
    Killed,
    Script,
    Toy,
    adapt,
    bytes_of,
    carry_out,
    fail,
    identity,
    keep,
    move,
    moved,
    roll_out,
    space_of,
)
from tests.strategies.helpers import adapter, examples, make_context, state

ASKED = examples(8)
REWARD = RewardParameters()
ROLLOUTS = RolloutParameters(count=7, at_once=3, examples=4)
SEARCH = SearchParameters(rounds=2, proposals=3)


def rolled(toy, settings=ROLLOUTS, asked=ASKED, finished=(), seed=3, **changes):
    return roll_out(
        changes.get("context") or make_context(),
        toy.space,
        changes.get("proposer") or UniformProposer(toy.space),
        state(),
        asked,
        settings,
        changes.get("reward") or REWARD,
        seed,
        Tag("task", "degaml", 2),
        finished,
    )


def adapted(toy, settings=SEARCH, support=ASKED, finished=(), seed=3, start=None, **changes):
    return adapt(
        changes.get("context") or make_context(),
        changes.get("space") or toy.space,
        changes.get("proposer") or UniformProposer(toy.space),
        start or state(),
        support,
        settings,
        changes.get("reward") or REWARD,
        seed,
        Tag("task", "random_policy"),
        finished,
    )


def timeless(rows):
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def stored(rows):
    """The rows as they come back from the disk."""
    return [json.loads(json.dumps(row)) for row in rows]


def score(one, asked=ASKED):
    found = measure_indicators(predict(make_context(), one, asked))
    return found.accuracy, found.log_probability


# --- rollouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "at_once"), [(1, 4), (7, 3), (6, 3), (4, 1), (5, 100)])
def test_there_are_as_many_rows_as_asked_for(count, at_once):
    toy = Toy(move)
    settings = ROLLOUTS.model_copy(update={"count": count, "at_once": at_once})
    rows = list(rolled(toy, settings))
    assert len(rows) == len(toy.calls) == count
    for number, row in enumerate(rows):
        assert set(row) == set(ROLLOUT_COLUMNS)
        assert (row["task"], row["method"], row["iteration"]) == ("task", "degaml", 2)
        assert (row["rollout"], row["round"]) == (number, 1)
        assert (row["source"], row["family"], row["valid"]) == ("uniform", "toy", True)
        assert row["n"] == 4
        assert not row["executed"]
        assert 0 <= row["seed"] < 2**63
    assert len({row["seed"] for row in rows}) == count
    # every trial starts from the initialization
    assert {bytes_of(call.state) for call in toy.calls} == {bytes_of(state())}


STEPS = RolloutParameters(count=3, at_once=2, steps=3, examples=4)


def test_a_step_starts_from_what_the_one_before_it_made():
    toy = Toy(move)
    rows = list(rolled(toy, STEPS))
    # two episodes step by step, then the third
    assert [row["round"] for row in rows] == [1, 1, 2, 2, 3, 3, 1, 2, 3]
    assert [row["rollout"] for row in rows] == list(range(9))
    for steps in (rows[0:6:2], rows[1:6:2], rows[6:]):
        stands = state()
        for row in steps:
            call = next(call for call in toy.calls if call.seed == row["seed"])
            assert bytes_of(call.state) == bytes_of(stands)
            stands = moved(stands, call.which)
        for before, after in pairwise(steps):
            assert after["accuracy_before"] == before["accuracy_after"]
            assert after["log_probability_before"] == before["log_probability_after"]


@pytest.mark.parametrize("ends", ["failed", "read answers"])
def test_an_episode_ends_with_a_failure_and_with_a_family_that_reads_answers(ends):
    def sometimes(context, one, seen, config, seed):
        if config.which == 1:
            raise ValueError("no")
        return moved(one, config.which)

    toy = Toy(sometimes, *([Labeled] if ends == "read answers" else []))
    texts = [toy.text(which) for which in (0, 1, 2, 3, 4, 5, 6)]
    rows = list(rolled(toy, STEPS, proposer=Script(texts)))
    steps = [(row["round"], json.loads(row["action"])["which"]) for row in rows]
    if ends == "failed":
        assert steps == [(1, 0), (1, 1), (2, 2), (3, 3), (1, 4), (2, 5), (3, 6)]
    else:
        assert steps == [(1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("done", range(10))
def test_killed_episodes_go_on_with_the_same_rows(done):
    toy = Toy(move)
    every = list(rolled(toy, STEPS))
    toy.calls.clear()
    rest = list(rolled(toy, STEPS, finished=stored(every[:done])))
    assert timeless(rest) == timeless(every[done:])


def test_rewards_are_of_the_trial_s_own_validation_examples():
    rows = list(rolled(Toy(move)))
    for row in rows:
        gain = (row["accuracy_after"], row["log_probability_after"]) > (
            row["accuracy_before"],
            row["log_probability_before"],
        )
        assert row["reward"] == float(gain)
    assert {row["reward"] for row in rows} == {0.0, 1.0}


def test_every_trial_draws_its_own_validation_examples_or_none_does():
    def drawn(resample, seed=3):
        toy = Toy(move)
        list(rolled(toy, ROLLOUTS.model_copy(update={"resample": resample}), seed=seed))
        return [frozenset(q.prompt for q in call.seen.questions) for call in toy.calls]

    fresh, fixed = drawn(True), drawn(False)
    assert len(set(fresh)) > 3
    assert len(set(fixed)) == 1
    assert {len(one) for one in (*fresh, *fixed)} == {4}
    assert drawn(True) == fresh
    assert drawn(True, seed=4) != fresh
    assert drawn(False, seed=4) != fixed


def test_fewer_examples_than_a_trial_asks_for_are_all_of_them():
    toy = Toy(move)
    rows = list(rolled(toy, ROLLOUTS.model_copy(update={"examples": 100})))
    assert {row["n"] for row in rows} == {len(ASKED)}


@pytest.mark.parametrize("done", range(8))
def test_a_killed_run_goes_on_with_the_same_rows_and_repeats_none(done):
    every = list(rolled(Toy(move)))
    toy = Toy(move)
    rest = list(rolled(toy, finished=stored(every[:done])))
    assert timeless(rest) == timeless(every[done:])
    assert [call.seed for call in toy.calls] == [row["seed"] for row in every[done:]]


def test_a_kill_in_the_middle_of_a_trial_leaves_the_rows_before_it():
    calls = []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise Killed
        return move(*arguments)

    rows = []
    with pytest.raises(Killed):
        keep(rolled(Toy(killed)), rows)
    assert len(rows) == 4
    rest = list(rolled(Toy(move), finished=stored(rows)))
    assert timeless([*rows, *rest]) == timeless(rolled(Toy(move)))


def test_a_proposer_is_told_what_was_tried_before_its_batch():
    toy = Toy(move)
    script = Script([toy.text(i) for i in range(7)])
    rows = list(rolled(toy, proposer=script))
    assert [len(prompts) for prompts, _ in script.asked] == [3, 3, 1]
    assert len({seed for _, seed in script.asked}) == 3
    first, second, third = (prompts for prompts, _ in script.asked)
    assert not any("Tried:" in prompt for prompt in first)
    for prompt in (*second, *third):
        assert "Tried:" in prompt
    assert f"toy 2: {rows[2]['reward']:.3g}" in second[0]
    assert f"toy 5: {rows[5]['reward']:.3g}" in third[0]
    assert [row["action"] for row in rows] == [toy.text(i) for i in range(7)]
    assert [row["state"] for row in rows] == [*first, *second, *third]
    # a proposal's tokens are counted with its trial's
    assert all(row["tokens"] > 3 for row in rows)


def test_prompts_of_a_resumed_run_are_the_same():
    toy = Toy(move)
    texts = [toy.text(i) for i in range(7)]
    whole, again = Script(texts), Script(texts[3:])
    every = list(rolled(toy, proposer=whole))
    list(rolled(toy, proposer=again, finished=stored(every[:4])))
    # a batch that is whole is not written again, one that is half there is
    assert again.asked == whole.asked[1:]


def test_no_policy_reads_the_task_s_name():
    toy, script = Toy(move), Script([Toy(move).text()])
    rows = roll_out(
        make_context(),
        toy.space,
        script,
        state(),
        ASKED,
        ROLLOUTS,
        REWARD,
        1,
        Tag("geheim", "degaml"),
    )
    assert not any("geheim" in row["state"] for row in rows)


def test_families_that_read_answers_learn_from_the_examples_beside_d_val():
    toy, others = Toy(move, Labeled), examples(11)[8:]
    rows = list(
        roll_out(
            make_context(), toy.space, UniformProposer(toy.space), state(), ASKED, ROLLOUTS, REWARD, 1,
            Tag("task", "degaml"), shown=others,
        )
    )  # fmt: skip
    assert len(toy.calls) == len(rows) == ROLLOUTS.count
    assert all(call.seen == Labeled(tuple(others)) for call in toy.calls)


def test_invalid_texts_become_rows_and_nothing_runs():
    toy = Toy(move)
    rows = list(rolled(toy, proposer=Script(["no", toy.text(1)])))
    assert [row["valid"] for row in rows] == [False, True] * 3 + [False]
    assert len(toy.calls) == 3
    for row in rows[::2]:
        assert (row["family"], row["reward"], row["accuracy_after"]) == (None, 0.0, None)
        assert row["error"].startswith("invalid action")
        assert row["tokens"] == 3


def test_a_family_that_fails_does_not_end_the_rollouts():
    def sometimes(context, one, seen, config, seed):
        return fail() if config.which % 2 else move(context, one, seen, config, seed)

    toy = Toy(sometimes)
    rows = list(rolled(toy, proposer=Script([toy.text(i) for i in range(7)])))
    assert [row["error"] is None for row in rows] == [True, False] * 3 + [True]
    clean = list(rolled(Toy(move), proposer=Script([toy.text(i) for i in range(7)])))
    for row, other in zip(rows[::2], clean[::2], strict=True):
        assert row["accuracy_after"] == other["accuracy_after"]


def test_a_used_up_budget_ends_the_rollouts():
    def slow(*arguments):
        time.sleep(0.15)
        return move(*arguments)

    toy = Toy(slow)
    rows = list(rolled(toy, ROLLOUTS.model_copy(update={"count": 50, "seconds": 0.4})))
    assert 0 < len(rows) < 10
    # enough time is no budget
    assert len(list(rolled(Toy(move), ROLLOUTS.model_copy(update={"seconds": 1e6})))) == 7


def test_noise_is_in_the_rollouts():
    noisy = RewardParameters(noise=0.5)
    clean = [row["reward"] for row in rolled(Toy(move))]
    turned = [row["reward"] for row in rolled(Toy(move), reward=noisy)]
    assert turned != clean
    assert turned == [row["reward"] for row in rolled(Toy(move), reward=noisy)]


# --- test time ------------------------------------------------------------------------------------


def best_of(start, numbers, asked=ASKED):
    """By trying all of them: the number whose state scores best, None where none beats the start."""
    scores = {which: score(moved(start, which), asked) for which in numbers}
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > score(start, asked) else None


def executed(rows):
    return [json.loads(row["action"])["which"] for row in executed_rows(rows)]


def test_the_best_of_a_round_is_executed():
    toy = Toy(move)
    settings = SearchParameters(rounds=1, proposals=12)
    rows = list(adapted(toy, settings, proposer=Script([toy.text(i) for i in range(12)])))
    best = best_of(state(), range(12))
    assert best is not None
    assert executed(rows) == [best]
    made = carry_out(make_context(), toy.space, state(), ASKED, rows).state
    assert bytes_of(made) == bytes_of(moved(state(), best))
    assert score(made) > score(state())
    assert {row["iteration"] for row in rows} == {0}


def test_rounds_go_on_from_what_was_executed():
    toy = Toy(move)
    script = Script([toy.text(i) for i in range(12)])
    rows = list(adapted(toy, SearchParameters(rounds=2, proposals=6), proposer=script))
    first = best_of(state(), range(6))
    after_first = moved(state(), first)
    second = best_of(after_first, range(6, 12))
    assert executed(rows) == [n for n in (first, second) if n is not None]
    assert [row["round"] for row in rows] == [1] * 6 + [2] * 6
    for call in toy.calls[-6:]:
        assert bytes_of(call.state) == bytes_of(after_first)
    assert {row["log_probability_before"] for row in rows[6:]} == {score(after_first)[1]}
    expected = after_first if second is None else moved(after_first, second)
    assert bytes_of(carry_out(make_context(), toy.space, state(), ASKED, rows).state) == bytes_of(
        expected
    )
    # what was tried from the start says nothing of where it stands now
    assert not any("Tried:" in prompt for prompts, _ in script.asked for prompt in prompts)


def test_families_chain():
    one, other = Toy(move, name="one"), Toy(move, Labeled, name="other")
    space = space_of(one, other)
    # a labeled family is tried by halves and executed on all of them
    for seed in range(40):
        rows = list(
            adapted(one, SearchParameters(rounds=3, proposals=6), seed=seed, space=space,
                    proposer=UniformProposer(space))
        )  # fmt: skip
        chosen = [row["family"] for row in executed_rows(rows)]
        if len(set(chosen)) == 2:
            break
    assert set(chosen) == {"one", "other"}
    made = carry_out(make_context(), space, state(), ASKED, rows).state
    expected = state()
    for row in executed_rows(rows):
        expected = moved(expected, json.loads(row["action"])["which"])
    assert bytes_of(made) == bytes_of(expected)


def test_where_nothing_beats_the_start_the_start_is_the_answer():
    toy, start = Toy(identity), state()
    rows = list(adapted(toy, start=start))
    # nothing was executed, so there is no second round
    assert {row["round"] for row in rows} == {1}
    assert not any(row["executed"] for row in rows)
    assert carry_out(make_context(), toy.space, start, ASKED, rows).state is start
    assert carry_out(make_context(), toy.space, start, ASKED, []).state is start


def test_where_everything_fails_the_start_is_the_answer():
    toy, start = Toy(fail), state()
    rows = list(adapted(toy, start=start))
    assert len(rows) == 3
    assert all(row["error"] for row in rows)
    assert carry_out(make_context(), toy.space, start, ASKED, rows).state is start


def test_only_rewarded_trials_are_executed_whatever_the_reward():
    free = RewardParameters(kind="utility")
    dear = RewardParameters(kind="utility", price_per_second=1.0)
    rows = list(adapted(Toy(identity), SearchParameters(rounds=1, proposals=2), reward=dear))
    # nothing gained, and time spent
    assert all(row["reward"] == -row["seconds"] < 0 for row in rows)
    assert executed_rows(rows) == []
    toy = Toy(move)
    script = Script([toy.text(i) for i in range(12)])
    settings = SearchParameters(rounds=1, proposals=12)
    rows = list(adapted(toy, settings, proposer=script, reward=free))
    gains = [row["accuracy_after"] - row["accuracy_before"] for row in rows]
    assert [row["reward"] for row in rows] == pytest.approx(gains)
    assert max(gains) > 0
    (chosen,) = executed_rows(rows)
    assert chosen["reward"] == max(row["reward"] for row in rows)


def test_early_stop_is_a_choice():
    toy = Toy(identity)
    settings = SearchParameters(rounds=3, proposals=2, early_stop=False)
    assert [row["round"] for row in adapted(toy, settings)] == [1, 1, 2, 2, 3, 3]
    settings = settings.model_copy(update={"early_stop": True})
    assert [row["round"] for row in adapted(toy, settings)] == [1, 1]


def test_no_strategy_is_tried_twice_from_one_state():
    toy = Toy(identity)
    few = replace(
        toy.space, fields={"toy": (replace(toy.space.fields["toy"][0], offered=(0, 1, 2, 3, 4)),)}
    )
    settings = SearchParameters(rounds=3, proposals=2, early_stop=False)
    for seed in range(5):
        rows = list(adapted(toy, settings, seed=seed, space=few, proposer=UniformProposer(few)))
        texts = [row["action"] for row in rows]
        assert len(set(texts)) == len(texts)
        assert len(texts) >= 3
    # a proposer that has nothing else to say is not asked for ever
    script = Script([toy.text(1)])
    rows = list(adapted(toy, settings, proposer=script))
    assert [row["action"] for row in rows] == [toy.text(1)]
    assert len(script.asked) < 20


def test_proposals_of_a_round_are_different_and_as_many_as_asked_for():
    toy = Toy(identity)
    for seed in range(5):
        rows = list(adapted(toy, SearchParameters(rounds=1, proposals=6), seed=seed))
        assert len(rows) == len({row["action"] for row in rows}) == 6


@pytest.mark.parametrize("done", range(7))
@pytest.mark.parametrize("early_stop", [True, False])
def test_a_killed_adaptation_goes_on_with_the_same_rows_and_repeats_none(done, early_stop):
    settings = SearchParameters(rounds=2, proposals=3, early_stop=early_stop)
    seed = 6
    every = list(adapted(Toy(move), settings, seed=seed))
    assert len(every) == 6
    toy = Toy(move)
    rest = list(adapted(toy, settings, seed=seed, finished=stored(every[:done])))
    assert timeless(rest) == timeless(every[done:])
    tried = [call.seed for call in toy.calls]
    # between the rounds the best is executed once more, with its trial's seed
    (carried,) = (row["seed"] for row in executed_rows(every[:3]))
    place = max(0, 3 - done)
    assert tried.pop(place) == carried
    assert tried == [row["seed"] for row in every[done:]]
    assert executed(every[:done] + rest) == executed(every)


@pytest.mark.parametrize("done", [1, 2, 4, 5])
def test_rows_of_another_proposal_are_found_out_before_a_row_comes(done):
    toy = Toy(move)
    texts = [toy.text(i) for i in range(7)]
    rows = stored(rolled(toy, proposer=Script(texts)))[:done]
    # the last batch is written again from its first proposal on
    again = texts[3 * (done // 3) :]
    other, ran = [*again], len(toy.calls)
    other[(done - 1) % 3] = toy.text(50)
    trials = rolled(toy, proposer=Script(other), finished=rows)
    with pytest.raises(ResumeMismatchError, match=f"from trial {done - 1} on") as caught:
        next(trials)
    assert caught.value.kept == done - 1
    assert len(toy.calls) == ran


def test_rows_of_other_steps_are_found_out():
    toy = Toy(move)
    rows = stored(rolled(toy))
    with pytest.raises(ResumeMismatchError) as caught:
        list(rolled(toy, ROLLOUTS.model_copy(update={"steps": 2}), finished=rows))
    assert caught.value.kept == 3
    rows = [{**row, "rollout": row["rollout"] + 1} for row in rows]
    with pytest.raises(ResumeMismatchError) as caught:
        list(rolled(toy, finished=rows))
    assert caught.value.kept == 0


def test_an_adaptation_whose_proposals_changed_says_which_rows_can_stay():
    toy = Toy(move)
    texts = [toy.text(i) for i in range(12)]
    settings = SearchParameters(rounds=2, proposals=6)
    rows = stored(adapted(toy, settings, proposer=Script(texts)))
    assert [row["round"] for row in rows] == [1] * 6 + [2] * 6

    def kept(proposals, count=6, finished=rows):
        ran = len([call for call in toy.calls if call.seed in {row["seed"] for row in rows[6:]}])
        changed = settings.model_copy(update={"proposals": count})
        trials = adapted(toy, changed, proposer=Script(proposals), finished=finished)
        with pytest.raises(ResumeMismatchError) as caught:
            next(trials)
        # no trial of the second round ran again
        assert ran == len(
            [call for call in toy.calls if call.seed in {row["seed"] for row in rows[6:]}]
        )
        return caught.value.kept

    assert kept([toy.text(50), *texts[1:]]) == 0
    assert kept([*texts[:8], toy.text(50), *texts[9:]]) == 8
    # a round with fewer proposals, and one with more
    assert kept(texts, count=5) == 5
    assert kept(texts, count=7) == 6
    # and with what can stay it goes on
    toy.calls.clear()
    other = [*texts[:8], toy.text(50), *texts[9:]]
    rest = list(adapted(toy, settings, proposer=Script(other), finished=rows[:8]))
    assert [row["action"] for row in rest] == other[8:]


def test_answers_of_the_support_are_not_seen_by_families_without_labels():
    toy = Toy(move)
    rows = list(adapted(toy))
    carry_out(make_context(), toy.space, state(), ASKED, rows)
    assert {type(call.seen).__name__ for call in toy.calls} == {"Prompts"}


# --- supports of all sizes ------------------------------------------------------------------------


def test_a_support_of_one_example():
    for toy in (Toy(move), Toy(move, Labeled)):
        rows = list(adapted(toy, support=ASKED[:1]))
        assert {row["n"] for row in rows} == {1}
        if toy.sees is Labeled:
            assert all(row["error"] and row["reward"] == 0 for row in rows)
            assert toy.calls == []
        else:
            assert all(row["error"] is None for row in rows)
        made = carry_out(make_context(), toy.space, state(), ASKED[:1], rows).state
        if not executed_rows(rows):
            assert bytes_of(made) == bytes_of(state())


def test_a_support_of_one_class():
    same = tuple(replace(e, gold=0, response="[A]") for e in ASKED)
    toy = Toy(move)
    script = Script([toy.text(i) for i in range(12)])
    settings = SearchParameters(rounds=1, proposals=12)
    rows = list(adapted(toy, settings, support=same, proposer=script))
    assert len(rows) == 12
    assert executed(rows) == [n for n in [best_of(state(), range(12), same)] if n is not None]


def test_a_support_of_five_thousand():
    support = tuple(
        make_example(f"How much is {i}?", ["one", "two"], gold=i % 2) for i in range(5000)
    )
    for toy in (Toy(move), Toy(move, Labeled)):
        settings = SearchParameters(rounds=2, proposals=3, examples=20)
        began = time.perf_counter()
        for seed in range(20):
            toy.calls.clear()
            rows = list(adapted(toy, settings, support=support, seed=seed))
            if executed_rows(rows):
                carry_out(make_context(), toy.space, state(), support, rows)
                break
        assert time.perf_counter() - began < 60
        assert {row["n"] for row in rows} == {20}
        seen = {len(getattr(c.seen, "questions", None) or c.seen.examples) for c in toy.calls}
        # trials see as much as they are scored on, and what is executed sees all
        assert seen == ({10, 5000} if toy.sees is Labeled else {20, 5000})
        if toy.sees is not Labeled:
            questions = [c.seen.questions for c in toy.calls if len(c.seen.questions) == 20]
            assert {q.prompt for one in questions for q in one} == {e.prompt for e in support[:20]}


def test_a_family_that_reads_answers_ends_the_search():
    toy = Toy(move, Labeled)
    settings = SearchParameters(rounds=4, proposals=3, early_stop=False)
    for seed in range(20):
        rows = list(adapted(toy, settings, seed=seed))
        chosen = executed_rows(rows)
        if chosen and chosen[0]["round"] < settings.rounds:
            break
    # what was trained on D_val is never scored on it, though there were rounds left
    assert chosen[0]["round"] < settings.rounds
    assert max(row["round"] for row in rows) == chosen[0]["round"]


# --- budget ---------------------------------------------------------------------------------------


def test_a_used_up_budget_ends_the_search_and_what_was_found_is_kept():
    def slow(*arguments):
        time.sleep(0.1)
        return move(*arguments)

    toy = Toy(slow)
    settings = SearchParameters(rounds=50, proposals=6, seconds=1.0, early_stop=False)
    began = time.perf_counter()
    rows = list(adapted(toy, settings))
    assert time.perf_counter() - began < 10
    assert 0 < len(rows) < 50
    made = carry_out(make_context(), toy.space, state(), ASKED, rows).state
    expected = state()
    for row in executed_rows(rows):
        expected = moved(expected, json.loads(row["action"])["which"])
    assert bytes_of(made) == bytes_of(expected)


@dataclass
class Clock:
    """A clock that only toys move."""

    now: float = 0.0
    calls: list[float] = field(default_factory=list)

    def monotonic(self):
        return self.now


def test_a_budget_that_ends_between_a_round_and_its_execution(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("degaml_kedro.policy.search.time.monotonic", clock.monotonic)
    count = 6

    def timed(*arguments):
        clock.now += 10.0
        return move(*arguments)

    toy = Toy(timed)
    settings = SearchParameters(rounds=2, proposals=count, seconds=10.0 * count - 1)
    script = Script([toy.text(i) for i in range(12)])
    rows = list(adapted(toy, settings, proposer=script))
    # the last trial began in time
    assert len(rows) == count
    best = best_of(state(), range(count))
    assert executed(rows) == [best]
    made = carry_out(make_context(), toy.space, state(), ASKED, rows).state
    assert bytes_of(made) == bytes_of(moved(state(), best))


# --- carrying out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2])
def test_an_action_that_fails_on_the_whole_support_leaves_the_state_before_it(rounds, caplog):
    def only_few(context, one, seen, config, seed):
        return fail() if len(seen.questions) > 4 else move(context, one, seen, config, seed)

    toy, start = Toy(only_few), state()
    settings = SearchParameters(rounds=rounds, proposals=12, examples=4)
    rows = list(adapted(toy, settings, start=start))
    assert len(executed_rows(rows)) == 1
    assert {row["round"] for row in rows} == {1}
    assert carry_out(make_context(), toy.space, start, ASKED, rows).state is start
    assert (
        "carrying it out on all 8 support examples failed (RuntimeError: this one fails"
        in caplog.text
    )


def exploded():
    """Finite weights, and answers that are no numbers."""
    return AdaptedState((Member(adapter(0, scale=1e30)),))


@pytest.mark.parametrize("rounds", [1, 2])
def test_what_was_executed_and_answers_with_no_numbers_leaves_the_state_before_it(rounds, caplog):
    def explodes(context, one, seen, config, seed):
        return exploded() if len(seen.questions) > 4 else move(context, one, seen, config, seed)

    toy, start = Toy(explodes), state()
    settings = SearchParameters(rounds=rounds, proposals=12, examples=4)
    rows = list(adapted(toy, settings, start=start))
    assert len(executed_rows(rows)) == 1
    assert {row["round"] for row in rows} == {1}
    # one search carried it out between its rounds, and found the same
    assert caplog.text.count("on all 8 support examples failed (IndicatorError") == rounds - 1
    assert carry_out(make_context(), toy.space, start, ASKED, rows).state is start
    assert caplog.text.count("on all 8 support examples failed (IndicatorError") == rounds
    assert "the state before it stays" in caplog.text


def test_a_second_round_that_explodes_leaves_the_first(caplog):
    explode = []

    def explodes(context, one, seen, config, seed):
        return exploded() if config.which in explode else move(context, one, seen, config, seed)

    toy = Toy(explodes)
    settings = SearchParameters(rounds=2, proposals=12)
    for seed in range(20):
        rows = list(adapted(toy, settings, seed=seed))
        if len(executed_rows(rows)) == 2:
            break
    first, second = executed(rows)
    assert first != second
    explode.append(second)
    made = carry_out(make_context(), toy.space, state(), ASKED, rows).state
    assert bytes_of(made) == bytes_of(moved(state(), first))
    assert "IndicatorError" in caplog.text


def test_a_generated_adapter_that_answers_with_no_numbers_is_named_with_its_task():
    toy = Toy(move)
    rolling = roll_out(
        make_context(), toy.space, UniformProposer(toy.space), exploded(), ASKED, ROLLOUTS, REWARD, 1,
        Tag("colors", "degaml", 1),
    )  # fmt: skip
    with pytest.raises(IndicatorError, match="colors: the adapter that the generator made.* anew"):
        next(rolling)
    with pytest.raises(IndicatorError, match="task: the adapter that the generator made"):
        next(adapted(toy, start=exploded()))
    assert toy.calls == []


def test_the_end_of_the_process_is_no_failure_of_an_action():
    def killed(*_):
        raise Killed

    toy = Toy(move)
    rows = list(adapted(toy, SearchParameters(rounds=1, proposals=12)))
    toy.does = killed
    with pytest.raises(Killed):
        carry_out(make_context(), toy.space, state(), ASKED, rows)


def test_executing_is_repeatable():
    toy = Toy(lambda context, one, seen, config, seed: moved(one, seed % 7))
    rows = list(adapted(toy, SearchParameters(rounds=1, proposals=12)))
    (row,) = executed_rows(rows)
    one, other = (
        carry_out(make_context(), toy.space, state(), ASKED, rows).state for _ in range(2)
    )
    assert bytes_of(one) == bytes_of(other)
    again = execute(make_context(), toy.space, state(), ASKED, row["action"], row["seed"])
    assert bytes_of(again) == bytes_of(one)
    # a trial and its execution are the same thing where the trial saw everything
    found = score(one)
    assert (row["accuracy_after"], row["log_probability_after"]) == tuple(found)


def test_rows_of_a_table_are_rows_too():
    import pandas as pd

    toy = Toy(move)
    rows = list(adapted(toy, SearchParameters(rounds=2, proposals=6)))
    table = pd.DataFrame(rows).to_dict("records")
    assert isinstance(table[0]["seed"], int | np.integer)
    one, other = (
        carry_out(make_context(), toy.space, state(), ASKED, r).state for r in (rows, table)
    )
    assert bytes_of(one) == bytes_of(other)
