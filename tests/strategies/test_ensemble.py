from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from degaml_kedro.strategies.answering import answer_questions
from degaml_kedro.strategies.context import StrategyError
from degaml_kedro.strategies.ensemble import Pooling, fit_weights, is_candidate, refine
from degaml_kedro.strategies.observations import Candidate, Candidates
from degaml_kedro.strategies.scaling import combine
from degaml_kedro.strategies.state import AdaptedState, Steering, Vote
from degaml_kedro.tasks.example import Question
from tests.strategies.helpers import examples, make_context, state

ASKED = examples(8)
GOLD = [example.gold for example in ASKED]


def scores(seed, better=0.0):
    """Option scores of every example; the right one's are raised."""
    found = np.random.default_rng(seed).normal(size=(len(ASKED), 3))
    found[np.arange(len(ASKED)), GOLD] += better
    return tuple(map(tuple, found.tolist()))


def candidate(name, better, family="one", made=None):
    own = made or state()
    return Candidate(name, family, scores(len(name) + ord(name[0]), better), lambda: own)


def made(candidates, members=2, weights="equal"):
    config = Pooling(members=members, weights=weights)
    return refine(make_context(), state(), Candidates(ASKED, tuple(candidates)), config, 0)


def chosen(candidates, members=2):
    """The places of the candidates whose states were taken."""
    found = made(candidates, members)
    states = [one.refined() for one in candidates]
    return [
        next(i for i, one in enumerate(states) if one.members[0] is member)
        for member in found.members
    ]


# --- pooling --------------------------------------------------------------------------------------


def test_weighted_log_probabilities_are_summed():
    rows, weights = [[-1.0, -2.0, 0.5], [0.3, -0.1, -4.0]], (0.8, 0.2)
    logs = log_softmax(np.array(rows), axis=1)
    expected = log_softmax(0.8 * logs[0] + 0.2 * logs[1])
    assert combine(rows, "sum_logprobs", weights) == pytest.approx(tuple(expected))
    assert combine(rows, "sum_logprobs", (0.5, 0.5)) == pytest.approx(combine(rows, "sum_logprobs"))


def test_fitted_weights_are_the_best_of_a_grid():
    pair = [scores(1, 1.0), scores(2, 0.6)]

    def likelihood(weight):
        pooled = [combine(rows, "sum_logprobs", (weight, 1 - weight)) for rows in zip(*pair, strict=True)]  # fmt: skip
        return np.mean([row[right] for row, right in zip(pooled, GOLD, strict=True)])

    found = fit_weights(pair, GOLD)
    best = max(np.linspace(0, 1, 201), key=likelihood)
    assert found[0] == pytest.approx(best, abs=0.01)
    assert sum(found) == pytest.approx(1)
    assert fit_weights(pair, GOLD) == found


def test_who_knows_nothing_is_given_no_weight():
    found = fit_weights([scores(1, 6.0), scores(2, -3.0), scores(3, -3.0)], GOLD)
    assert found == pytest.approx((1, 0, 0), abs=1e-3)


def test_constants_of_a_question_change_no_weight():
    pair = [scores(1, 1.0), scores(2, 0.6)]
    moved = [[[value + 5 * i for value in row] for i, row in enumerate(one)] for one in pair]
    assert fit_weights(moved, GOLD) == pytest.approx(fit_weights(pair, GOLD), abs=1e-3)


# --- members --------------------------------------------------------------------------------------


def test_the_likeliest_are_taken():
    four = [candidate(name, better) for name, better in zip("abcd", (1.0, 9.0, 3.0, 6.0), strict=True)]  # fmt: skip
    assert chosen(four) == [1, 3]
    assert chosen(four, 3) == [1, 3, 2]


def test_other_families_come_first():
    four = [
        candidate("a", 9.0, "sft"),
        candidate("b", 8.0, "sft"),
        candidate("c", 2.0, "context"),
        candidate("d", 1.0, "context"),
    ]
    assert chosen(four) == [0, 2]
    # and then the best that is left
    assert chosen(four, 3) == [0, 2, 1]


def test_two_are_enough_for_three_and_one_is_not():
    pair = [candidate("a", 2.0), candidate("b", 1.0)]
    assert chosen(pair, 3) == [0, 1]
    for few in ([], pair[:1]):
        with pytest.raises(
            StrategyError, match=f"it needs 2 candidates of one adapter each, and has {len(few)}"
        ):
            made(few)


def test_the_state_is_the_members_and_their_weights():
    pair = [candidate("a", 2.0), candidate("b", 1.0)]
    assert made(pair).vote == Vote("sum_logprobs")
    fitted = made(pair, weights="fitted").vote
    assert fitted is not None
    assert fitted.weights == fit_weights([one.scores for one in pair], GOLD)


def test_what_is_not_one_adapter_alone_is_no_member():
    steering = Steering(1, 0.1)
    vote = Vote("max_confidence")
    several = state(2, vote=vote)
    assert is_candidate(state())
    for other in (several, state(vote=vote), state(steering=steering)):
        assert not is_candidate(other)
        with pytest.raises(StrategyError, match="several adapters, a vote or a vector"):
            made([candidate("a", 2.0), candidate("b", 1.0, made=other)])


def test_answers_of_the_state_are_the_pooled_ones():
    pair = state(2, vote=Vote("sum_logprobs", weights=(0.9, 0.1)))
    questions = [Question.of(example) for example in ASKED]
    found = answer_questions(make_context(), pair, questions).scores[0]
    alone = [
        answer_questions(make_context(), AdaptedState((one,)), questions).scores[0]
        for one in pair.members
    ]
    for row, *rows in zip(found, *alone, strict=True):
        assert row == pytest.approx(combine(rows, "sum_logprobs", (0.9, 0.1)), abs=1e-4)
