from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from degaml_kedro.config.schema import RewardParameters
from degaml_kedro.policy.actions import ActionError, ActionSpace
from degaml_kedro.policy.indicators import Indicators, measure_indicators
from degaml_kedro.policy.trial import execute, reward_of, try_action
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.context import StrategyError
from degaml_kedro.strategies.observations import Labeled, Nothing, Prompts
from degaml_kedro.strategies.state import AdaptedState, Member, Steering
from degaml_kedro.tasks.example import Example, Question
from tests.policy.toys import Killed, Toy, bytes_of, fail, identity, move, moved, space_of
from tests.strategies.helpers import adapter, examples, make_context, state

REWARD = RewardParameters()
ASKED = examples(6)


def tried(toy, text=None, context=None, start=None, asked=ASKED, reward=REWARD, seed=5, space=None):
    context, start = context or make_context(), start or state()
    before = measure_indicators(predict(make_context(), start, asked))
    text = toy.text() if text is None else text
    return try_action(context, space or toy.space, start, before, asked, text, reward, seed)


# --- what is no action ----------------------------------------------------------------------------

NO_ACTIONS = [
    "",
    "an adapter, please",
    "{",
    "[]",
    "null",
    '{"family": "other", "which": 1}',
    '{"family": "toy"}',
    '{"which": 1}',
    '{"family": "toy", "which": 100}',
    '{"family": "toy", "which": -1}',
    '{"family": "toy", "which": NaN}',
    '{"family": "toy", "which": 1e999}',
    '{"family": "toy", "which": 1.5}',
    '{"family": "toy", "which": true}',
    '{"family": "toy", "which": "1"}',
    '{"family": "toy", "which": 1, "more": 2}',
    '{"family": "toy", "which": 1, "which": 2}',
    '{"family": "toy", "which": 1} and so on',
    '{"family": "toy", "which": ' + "1" * 100_000 + "}",
    "[" * 100_000,
]


@pytest.mark.parametrize("text", NO_ACTIONS, ids=lambda text: text[:40])
def test_what_is_no_action_earns_nothing_and_never_runs(text):
    toy, context = Toy(move), make_context()
    found = tried(toy, text, context)
    assert toy.calls == []
    assert (found.family, found.reward, found.after) == (None, 0.0, None)
    assert found.error.startswith("invalid action: ")
    assert len(found.error) < 500
    assert context.meter.tokens == found.tokens == 0
    with pytest.raises(ActionError):
        execute(context, toy.space, state(), ASKED, text, 0)
    assert toy.calls == []


def test_what_is_no_action_earns_nothing_by_any_reward():
    for reward in (
        RewardParameters(noise=0.5),
        RewardParameters(kind="utility", price_per_second=1.0),
    ):
        assert {tried(Toy(move), "no", reward=reward, seed=seed).reward for seed in range(9)} == {0}


# --- what a family is given -----------------------------------------------------------------------


@pytest.mark.parametrize("sees", [Nothing, Prompts, Labeled])
def test_a_family_is_given_what_its_type_says_and_nothing_else(sees):
    toy, context, start = Toy(identity, sees), make_context(), state()
    tried(toy, toy.text(7), context, start, seed=11)
    execute(context, toy.space, start, ASKED, toy.text(8), seed=12)
    *trials, last = toy.calls
    assert len(trials) == (2 if sees is Labeled else 1)
    assert {(call.which, call.seed) for call in trials} == {(7, 11)}
    assert (last.which, last.seed) == (8, 12)
    for call in toy.calls:
        assert type(call.seen) is sees
        assert bytes_of(call.state) == bytes_of(start)
    if sees is Nothing:
        assert vars(last.seen) == {}
    elif sees is Prompts:
        assert list(vars(last.seen)) == ["questions"]
        assert last.seen.questions == tuple(Question.of(e) for e in ASKED)
        assert {type(q) for call in toy.calls for q in call.seen.questions} == {Question}
        assert not any(hasattr(q, n) for q in last.seen.questions for n in ("gold", "response"))
    else:
        assert last.seen.examples == ASKED
        assert {type(e) for e in last.seen.examples} == {Example}


def test_answers_change_nothing_that_a_family_without_labels_makes():
    def train(context, state, seen, config, seed):
        return moved(state, len(repr(seen)) % 100)

    turned = tuple(replace(e, gold=2, response="[C]") for e in ASKED)
    for toy in (Toy(train), Toy(train, Nothing)):
        one, other = (
            execute(make_context(), toy.space, state(), a, toy.text(), 0) for a in (ASKED, turned)
        )
        assert bytes_of(one) == bytes_of(other)


# --- reward ---------------------------------------------------------------------------------------


def test_a_better_score_earns_one_and_a_worse_one_nothing():
    toy, start = Toy(move), state()
    before = measure_indicators(predict(make_context(), start, ASKED))
    seen = set()
    for which in range(12):
        found = tried(toy, toy.text(which), start=start)
        after = measure_indicators(predict(make_context(), moved(start, which), ASKED))
        assert found.after == after
        assert found.family == "toy"
        assert found.error is None
        assert found.seconds > 0
        assert found.reward == float(
            (after.accuracy, after.log_probability) > (before.accuracy, before.log_probability)
        )
        seen.add(found.reward)
    assert seen == {0.0, 1.0}


def test_a_tie_earns_nothing():
    for reward in (REWARD, RewardParameters(tie_break="none")):
        found = tried(Toy(identity), reward=reward)
        assert (found.reward, found.error) == (0.0, None)
        assert found.after == measure_indicators(predict(make_context(), state(), ASKED))


def test_mixing_nothing_in_is_a_tie():
    space = ActionSpace.of({"lora": {}})
    text = '{"family":"lora","lambda":0}'
    before = measure_indicators(predict(make_context(), state(), ASKED))
    found = try_action(make_context(), space, state(), before, ASKED, text, REWARD, 0)
    assert (found.reward, found.after, found.error) == (0.0, before, None)
    # so little that float32 has no room for it
    text = '{"family":"lora","lambda":1e-12}'
    assert try_action(make_context(), space, state(), before, ASKED, text, REWARD, 0).reward == 0.0


def indicators(accuracy, log_probability=-1.0):
    return Indicators(10, accuracy, 0.5, 1.0, -log_probability, log_probability, (1.0,))


def test_utility_is_the_gain_minus_the_price_of_time():
    reward = RewardParameters(kind="utility", price_per_second=0.01)
    assert reward_of(indicators(0.5), indicators(0.7), reward, 4.0, 0) == pytest.approx(0.2 - 0.04)
    assert reward_of(indicators(0.5), indicators(0.5), reward, 10.0, 0) == pytest.approx(-0.1)
    # noise is for rewards of 0 and 1
    noisy = reward.model_copy(update={"noise": 0.5})
    assert (
        len({reward_of(indicators(0.5), indicators(0.6), noisy, 1.0, seed) for seed in range(20)})
        == 1
    )


def test_a_trial_that_takes_longer_is_worth_less():
    reward = RewardParameters(kind="utility", price_per_second=1.0)

    def slow(context, state, seen, config, seed):
        time.sleep(0.2)
        return state

    found = tried(Toy(slow), reward=reward)
    assert found.reward == pytest.approx(-found.seconds)
    assert found.seconds > 0.2


def test_without_a_tie_break_equal_accuracy_is_a_tie():
    after, before = indicators(0.5, -0.5), indicators(0.5, -1.0)
    assert reward_of(before, after, REWARD, 0, 0) == 1.0
    assert reward_of(before, after, RewardParameters(tie_break="none"), 0, 0) == 0.0


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("after", [0.4, 0.6])
def test_noise_turns_rewards_over_at_its_rate(rate, after):
    noisy = RewardParameters(noise=rate)
    clean = reward_of(indicators(0.5), indicators(after), REWARD, 0, 0)
    found = [reward_of(indicators(0.5), indicators(after), noisy, 0, seed) for seed in range(2000)]
    assert set(found) == {0.0, 1.0}
    turned = sum(value != clean for value in found) / len(found)
    # four standard deviations
    assert abs(turned - rate) < 4 * (rate * (1 - rate) / len(found)) ** 0.5
    assert found == [
        reward_of(indicators(0.5), indicators(after), noisy, 9, s) for s in range(2000)
    ]


# --- what goes wrong ------------------------------------------------------------------------------


def garbage(value):
    return lambda *_: value


def nan_weights(context, state, *_):
    made = moved(state, 1)
    next(iter(made.members[0].adapter.tensors.values()))[0, 0] = float("nan")
    return made


def too_large(*_):
    """Finite weights, and answers that are no numbers."""
    return AdaptedState((Member(adapter(0, scale=1e30)),))


def nan_vector(context, state, *_):
    vectors = torch.full((1, 32), float("nan"))
    return replace(state, steering=Steering(1, 0.1, "task", vectors))


def of_another_rank(context, state, *_):
    tensors = adapter(1, rank=3).tensors
    members = tuple(replace(m, adapter=replace(m.adapter, tensors=tensors)) for m in state.members)
    return replace(state, members=(*members, *state.members), vote=None)


def of_another_model(context, state, *_):
    tensors = {k.replace("q_proj", "other"): v for k, v in adapter(1).tensors.items()}
    return AdaptedState((Member(replace(adapter(1), tensors=tensors)),))


def writes_and_fails(context, state, *_):
    for tensor in state.members[0].adapter.tensors.values():
        tensor.fill_(float("inf"))
    state.members[0].prompts.zero_()
    raise RuntimeError("half way")


def exhausts(*_):
    raise MemoryError


@pytest.mark.parametrize(
    ("does", "message"),
    [
        (fail, "RuntimeError: this one fails"),
        (garbage(None), "StrategyError: the family 'toy' returned a NoneType"),
        (garbage("a better adapter"), "StrategyError: the family 'toy' returned a str"),
        (garbage(ASKED), "StrategyError: the family 'toy' returned a tuple"),
        (nan_weights, "StrategyError: the family 'toy' made weights that are not finite"),
        (nan_vector, "StrategyError: the family 'toy' made a vector that is not finite"),
        (too_large, "IndicatorError: the option scores of example 0"),
        (of_another_rank, "StateError: 2 adapters need a vote"),
        (of_another_model, "ModelError: the adapter names the layer"),
        (writes_and_fails, "RuntimeError: half way"),
        (exhausts, "MemoryError: MemoryError"),
        (lambda *_: 1 / 0, "ZeroDivisionError: "),
        (lambda *_: AdaptedState(()), "StateError: an adapted state needs at least one adapter"),
    ],
)
@pytest.mark.parametrize("sees", [Prompts, Labeled])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_family_that_fails_earns_nothing_and_leaves_nothing(does, message, sees, noise):
    start = state()
    kept = bytes_of(start)
    found = tried(Toy(does, sees), start=start, reward=RewardParameters(noise=noise))
    assert (found.family, found.reward, found.after) == ("toy", 0.0, None)
    assert found.error.startswith(message)
    assert "\n" not in found.error
    assert bytes_of(start) == kept
    # and the next trial is as if nothing had been
    good = Toy(move)
    assert tried(good, start=start).reward == tried(good).reward


def test_a_family_that_writes_into_what_it_was_given_changes_a_copy():
    def writes(context, state, *_):
        for tensor in state.members[0].adapter.tensors.values():
            tensor.mul_(0.5)
        return state

    start, toy = state(), Toy(writes)
    kept = bytes_of(start)
    assert tried(toy, start=start).error is None
    made = execute(make_context(), toy.space, start, ASKED, toy.text(), 0)
    assert bytes_of(start) == kept
    assert bytes_of(made) != kept


def test_training_that_diverges_is_recorded():
    start = AdaptedState((Member(adapter(0, scale=1e30)),))
    kept = bytes_of(start)
    space = ActionSpace.of({"ttt": {}, "sft": {}})
    before = measure_indicators(predict(make_context(), state(), ASKED))
    for text in (
        '{"family":"ttt","ttl_steps":2,"learning_rate":0.001,"batch_size":2,"shuffle_data":true}',
        '{"family":"sft","steps":2,"learning_rate":0.01,"batch_size":2}',
    ):
        found = try_action(make_context(), space, start, before, ASKED, text, REWARD, 0)
        assert found.reward == 0.0
        assert found.error.startswith("TrainingError: the loss became")
        assert found.tokens == 0
    assert bytes_of(start) == kept


def test_what_is_not_finite_is_not_executed():
    toy = Toy(nan_weights)
    with pytest.raises(StrategyError, match=r"not finite \(.*lora_A.* of adapter 0\)"):
        execute(make_context(), toy.space, state(), ASKED, toy.text(), 0)


def test_a_vector_that_is_not_finite_is_an_error_too():
    def steers(context, state, *_):
        vectors = torch.zeros(len(state.members), 32)
        vectors[0, 3] = float("inf")
        return replace(state, steering=Steering(1, 0.1, "task", vectors))

    toy = Toy(steers)
    found = tried(toy)
    assert (found.reward, found.after) == (0.0, None)
    assert found.error == "StrategyError: the family 'toy' made a vector that is not finite"
    with pytest.raises(StrategyError, match="a vector that is not finite"):
        execute(make_context(), toy.space, state(), ASKED, toy.text(), 0)


def test_the_end_of_the_process_is_no_error_of_a_family():
    def killed(*_):
        raise Killed

    with pytest.raises(Killed):
        tried(Toy(killed))


def test_without_time_nothing_runs():
    toy = Toy(move)
    found = tried(toy, context=make_context(deadline=time.monotonic() - 1))
    assert toy.calls == []
    assert (found.family, found.reward) == ("toy", 0.0)
    assert found.error.startswith("OutOfTimeError: the wall-clock budget")


def test_a_family_that_looks_at_the_clock_is_ended_by_it():
    def patient(context, state, *_):
        for _ in range(1000):
            time.sleep(0.01)
            context.check_time()
        return state

    found = tried(Toy(patient), context=make_context(deadline=time.monotonic() + 0.05))
    assert found.error.startswith("OutOfTimeError")
    assert found.seconds < 5


def test_tokens_are_those_of_this_trial():
    context, toy = make_context(), Toy(identity)
    context.meter.forward = 1000
    found = tried(toy, context=context)
    assert found.tokens == sum(p.tokens for p in predict(make_context(), state(), ASKED))
    assert (found.forward_tokens, found.backward_tokens) == (found.tokens, 0)


def test_tokens_are_told_apart_by_direction():
    def trains(context, one, *rest):
        context.meter.forward += 50
        context.meter.backward += 40
        return one

    context = make_context()
    context.meter.forward, context.meter.backward = 1000, 500
    found = tried(Toy(trains), context=context)
    scored = sum(p.tokens for p in predict(make_context(), state(), ASKED))
    assert (found.forward_tokens, found.backward_tokens) == (scored + 50, 40)
    assert found.tokens == scored + 90


# --- answers are never scored by who learned them -------------------------------------------------


def memorized(examples):
    """A state that tells which examples it was made of."""
    start = state()
    made = AdaptedState((replace(start.members[0], prompts=None),))
    object.__setattr__(made, "knows", frozenset(example.prompt for example in examples))
    return made


@pytest.mark.parametrize("count", [2, 3, 6, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_example_is_scored_by_a_state_that_was_trained_on_it(count, seed, monkeypatch):
    asked, scored = examples(count), []

    def memorize(context, state, seen, config, seed):
        return memorized(seen.examples)

    def watching(context, state, asked, *rest):
        scored.append((state.knows, [example.prompt for example in asked]))
        return predict(context, state, asked, *rest)

    toy = Toy(memorize, Labeled)
    before = measure_indicators(predict(make_context(), state(), asked))
    monkeypatch.setattr("degaml_kedro.policy.trial.predict", watching)
    found = try_action(make_context(), toy.space, state(), before, asked, toy.text(), REWARD, seed)
    assert found.error is None
    assert found.after.n == count
    # every example once, by who knows all of the others' half and nothing of its own
    assert sorted(p for _, prompts in scored for p in prompts) == sorted(e.prompt for e in asked)
    for known, prompts in scored:
        assert known.isdisjoint(prompts)
        assert known | set(prompts) == {e.prompt for e in asked}
        assert abs(len(known) - len(prompts)) <= 1


def test_where_there_are_other_examples_a_family_learns_from_them_and_is_scored_on_all_of_d_val():
    others, shown = examples(9)[6:], []
    toy = Toy(
        lambda context, state, seen, config, seed: (
            shown.append(seen) or move(0, state, 0, config, 0)
        ),
        Labeled,
    )
    before = measure_indicators(predict(make_context(), state(), ASKED))
    found = try_action(
        make_context(), toy.space, state(), before, ASKED, toy.text(3), REWARD, 1, shown=others
    )
    assert shown == [Labeled(tuple(others))]
    assert found.after == measure_indicators(predict(make_context(), moved(state(), 3), ASKED))
    assert bytes_of(found.state) == bytes_of(moved(state(), 3))
    # without answers there is nothing to learn from them
    blind = Toy(move)
    try_action(
        make_context(), blind.space, state(), before, ASKED, blind.text(), REWARD, 1, shown=others
    )
    assert blind.calls[0].seen == Prompts.of(ASKED)


def test_predictions_of_both_halves_come_back_in_order():
    asked = tuple(
        replace(e, gold=i % 3, response=f"[{'ABC'[i % 3]}]") for i, e in enumerate(examples(7))
    )
    found = tried(Toy(identity, Labeled), asked=asked)
    expected = measure_indicators(predict(make_context(), state(), asked))
    assert found.after.accuracy == expected.accuracy
    assert found.after.log_probability == pytest.approx(expected.log_probability, abs=1e-5)


def test_the_seed_deals_the_halves():
    def halves(seed):
        toy = Toy(identity, Labeled)
        tried(toy, seed=seed)
        return [call.seen.examples for call in toy.calls]

    assert halves(1) == halves(1)
    assert len({str(halves(seed)) for seed in range(6)}) > 1


def test_one_example_is_not_enough_for_a_family_that_sees_answers():
    toy = Toy(move, Labeled)
    found = tried(toy, asked=ASKED[:1])
    assert (found.reward, found.after) == (0.0, None)
    assert "needs at least 2 examples, and there is 1" in found.error
    assert toy.calls == []
    # the others are tried on it
    assert tried(Toy(move), asked=ASKED[:1]).error is None


def test_learning_by_heart_does_not_pay():
    # answers that nothing in the question tells: what is learned of one half says nothing of the other
    asked = tuple(
        replace(e, gold=i % 3, response=f"[{'ABC'[i % 3]}]") for i, e in enumerate(examples(9))
    )
    space = ActionSpace.of({"sft": {}})
    text = '{"family":"sft","steps":60,"learning_rate":0.01,"batch_size":9}'
    before = measure_indicators(predict(make_context(), state(), asked))
    trial = try_action(make_context(), space, state(), before, asked, text, REWARD, 0)
    learned = execute(make_context(), space, state(), asked, text, 0)
    seen = measure_indicators(predict(make_context(), learned, asked))
    assert seen.accuracy > trial.after.accuracy + 0.3


def test_families_are_told_apart_by_name():
    one, other = Toy(identity, name="one"), Toy(move, name="other")
    space = space_of(one, other)
    assert tried(one, one.text(), space=space).family == "one"
    assert tried(other, other.text(), space=space).family == "other"
    assert (len(one.calls), len(other.calls)) == (1, 1)
