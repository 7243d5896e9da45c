from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.strategies.context import OutOfTimeError, StrategyError
from degaml_kedro.strategies.observations import Prompts
from degaml_kedro.strategies.scaling import Scaling, combine, refine, route
from degaml_kedro.strategies.state import AdaptedState, Member, Steering, Vote
from tests.strategies.helpers import adapter, draw, examples, make_context, state

ROUTERS = ["avg_sim_score", "avg_prompt_embed"]
ENSEMBLES = ["max_confidence", "majority_vote", "sum_logprobs"]
SEEN = Prompts.of(examples(2))


# --- members --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ROUTERS + ENSEMBLES)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_fresh_members_stand_beside_the_ones_that_are_there(method, distance):
    start = state()
    config = Scaling(num_prompt_batches=4, method=method, distance=distance)
    made = refine(make_context(), start, SEEN, config, seed=8)
    assert made.vote == Vote(method, distance)
    assert made.members[0] is start.members[0]
    own = derive_seed(8, "tts")
    for number in (1, 2, 3):
        expected = draw(own, number)
        assert torch.equal(made.members[number].prompts, expected.prompts)
        for name, tensor in expected.adapter.tensors.items():
            assert torch.equal(made.members[number].adapter.tensors[name], tensor)
    assert made.steering is None


def test_euclidean_is_what_is_meant_where_nothing_is_said():
    assert Scaling(num_prompt_batches=2, method="avg_sim_score").distance == "euclidean"


def test_the_seed_decides_the_prompt_batches():
    config = Scaling(num_prompt_batches=2, method="sum_logprobs")
    one, again, other = (refine(make_context(), state(), SEEN, config, seed) for seed in (1, 1, 2))
    assert torch.equal(one.members[1].prompts, again.members[1].prompts)
    assert not torch.equal(one.members[1].prompts, other.members[1].prompts)


def test_fewer_members_are_the_first_ones():
    start = state(4, vote=Vote("majority_vote"))
    made = refine(
        make_context(draw=None),
        start,
        SEEN,
        Scaling(num_prompt_batches=2, method="avg_sim_score"),
        0,
    )
    assert made.members == start.members[:2]
    assert made.vote == Vote("avg_sim_score")


def test_the_questions_do_not_matter():
    config = Scaling(num_prompt_batches=3, method="sum_logprobs")
    one, other = (
        refine(make_context(), state(), Prompts.of(asked), config, 3)
        for asked in (examples(1), examples(5)[1:])
    )
    for a, b in zip(one.members, other.members, strict=True):
        assert torch.equal(a.prompts, b.prompts)


def test_vectors_of_a_task_are_cut_or_filled_with_their_mean():
    vectors = torch.arange(8, dtype=torch.float32).view(2, 4)
    start = state(2, vote=Vote("sum_logprobs"), steering=Steering(1, 0.1, "task", vectors))

    def made(count):
        config = Scaling(num_prompt_batches=count, method="sum_logprobs")
        return refine(make_context(), start, SEEN, config, 0).steering.vectors

    assert torch.equal(made(1), vectors[:1])
    assert torch.equal(made(4), torch.stack([*vectors, vectors.mean(0), vectors.mean(0)]))
    sample = Steering(1, 0.1, "sample")
    config = Scaling(num_prompt_batches=3, method="sum_logprobs")
    assert refine(make_context(), state(steering=sample), SEEN, config, 0).steering == sample


def test_without_a_generator_there_are_no_more_members():
    config = Scaling(num_prompt_batches=2, method="sum_logprobs")
    with pytest.raises(StrategyError, match="no generator here that could make more"):
        refine(make_context(draw=None), state(), SEEN, config, 0)


@pytest.mark.parametrize("method", ROUTERS)
def test_a_router_needs_the_prompts_of_every_member(method):
    start = AdaptedState((Member(adapter(1)),))
    with pytest.raises(StrategyError, match=f"{method} compares prompt batches"):
        refine(make_context(), start, SEEN, Scaling(num_prompt_batches=2, method=method), 0)
    # an ensemble does not
    refine(make_context(), start, SEEN, Scaling(num_prompt_batches=2, method="sum_logprobs"), 0)


def test_a_used_up_budget_ends_it():
    config = Scaling(num_prompt_batches=20, method="sum_logprobs")
    with pytest.raises(OutOfTimeError):
        refine(make_context(deadline=time.monotonic() - 1), state(), SEEN, config, 0)


# --- routers --------------------------------------------------------------------------------------


def slow_distance(one, other, distance):
    if distance == "euclidean":
        return math.dist(one, other)
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return 1 - dot / (math.hypot(*one) * math.hypot(*other))


def slow_route(members, method, distance, question):
    """Rows as lists of floats, one number after the other."""
    values = []
    for rows in members:
        if method == "avg_sim_score":
            values.append(sum(slow_distance(question, r, distance) for r in rows) / len(rows))
        else:
            center = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            values.append(slow_distance(question, center, distance))
    return values


@pytest.mark.parametrize("method", ROUTERS)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@given(seed=st.integers(0, 10_000), count=st.integers(1, 5))
def test_routers_are_those_written_down_slowly(method, distance, seed, count):
    source = torch.Generator().manual_seed(seed)
    batches = [torch.randn(2 + i, 6, generator=source).double() for i in range(count)]
    questions = torch.randn(4, 6, generator=source).double()
    members = [Member(None, batch) for batch in batches]
    found = route(members, Vote(method, distance), questions)
    for question, chosen in zip(questions.tolist(), found, strict=True):
        values = slow_route([b.tolist() for b in batches], method, distance, question)
        assert values[chosen] == pytest.approx(min(values), abs=1e-9)


def member(*rows):
    return Member(None, torch.tensor(rows, dtype=torch.float32))


def test_the_two_distances_differ_where_lengths_do():
    # the mean of opposed prompts is short: near in space, and of another direction
    opposed, aligned = member([1, 0], [-0.6, 0.8]), member([0, 1], [0, 1])
    question = torch.tensor([[0.3, 0.95]])
    question = question / question.norm()
    near, far = [Member(None, 0.1 * opposed.prompts), aligned], torch.tensor([[0.0, 0.2]])
    assert route(near, Vote("avg_prompt_embed"), far) == [0]
    assert route(near, Vote("avg_prompt_embed", "cosine"), far) == [1]
    # prompts and questions of length 1: the mean over prompts of d differs from that of d squared
    spread, even = member([1, 0], [-1, 0]), member([0.9, -0.43588990], [0.9, -0.43588990])
    asked = torch.tensor([[0.0, 1.0]])
    for distance in ("euclidean", "cosine"):
        values = slow_route(
            [m.prompts.tolist() for m in (spread, even)], "avg_sim_score", distance, [0.0, 1.0]
        )
        chosen = values.index(min(values))
        assert route([spread, even], Vote("avg_sim_score", distance), asked) == [chosen]


def test_the_two_routers_differ():
    # far from either prompt, right in the middle of both
    split, whole = member([1, 0], [-1, 0]), member([0.6, 0.5], [0.6, 0.5])
    asked = torch.tensor([[0.0, 0.1]])
    assert route([split, whole], Vote("avg_prompt_embed"), asked) == [0]
    assert route([split, whole], Vote("avg_sim_score"), asked) == [1]


def test_the_first_of_equals_answers():
    one = member([1, 0])
    for method in ROUTERS:
        assert route([one, one, one], Vote(method), torch.tensor([[0.5, 0.5]])) == [0]


# --- ensembles ------------------------------------------------------------------------------------

# sums of log-probabilities of a few words, up to answers that a member holds for impossible
SCORES = st.floats(-400, 0, width=32)
BALLOTS = st.integers(2, 5).flatmap(
    lambda options: st.lists(
        st.lists(SCORES, min_size=options, max_size=options), min_size=1, max_size=6
    )
)


def slow_chances(row):
    total = math.fsum(math.exp(value - max(row)) for value in row)
    return [value - max(row) - math.log(total) for value in row]


def slow_answer(rows, method):
    """The option that the method's words say; None where two are as good as each other."""
    chances = [slow_chances(row) for row in rows]
    options = range(len(rows[0]))
    pooled = [math.fsum(row[o] for row in chances) for o in options]
    if method == "sum_logprobs":
        worth = [(value,) for value in pooled]
    elif method == "majority_vote":
        favorites = [max(options, key=row.__getitem__) for row in chances]
        worth = [(favorites.count(o), pooled[o]) for o in options]
    else:
        surest = max(chances, key=max)
        worth = [(value,) for value in surest]
    best, second = sorted(worth, reverse=True)[:2]
    close = all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(best, second, strict=True))
    return None if close else worth.index(best)


@pytest.mark.parametrize("method", ENSEMBLES)
@given(rows=BALLOTS)
def test_ensembles_answer_as_their_words_say(method, rows):
    found = combine(rows, method)
    assert len(found) == len(rows[0])
    expected = slow_answer(rows, method)
    if expected is not None and unambiguous(rows, method):
        assert found.index(max(found)) == expected


def unambiguous(rows, method):
    """No member wavers, and no two are as sure."""
    chances = [sorted(slow_chances(row), reverse=True) for row in rows]
    if any(row[0] - row[1] < 1e-6 for row in chances) and method == "majority_vote":
        return False
    tops = sorted((row[0] for row in chances), reverse=True)
    return method != "max_confidence" or len(tops) < 2 or tops[0] - tops[1] > 1e-9


@pytest.mark.parametrize("method", ENSEMBLES)
@given(rows=BALLOTS)
def test_what_ensembles_give_are_log_probabilities(method, rows):
    found = combine(rows, method)
    assert all(math.isfinite(value) for value in found)
    assert sum(math.exp(value) for value in found) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("method", ENSEMBLES)
@given(rows=BALLOTS, constant=st.floats(-100, 100))
def test_a_constant_of_a_member_s_own_changes_nothing(method, rows, constant):
    # what is as good as equal may be turned over by rounding
    assume(unambiguous(rows, method))
    moved = [[value + constant for value in row] for row in rows]
    assert combine(moved, method) == pytest.approx(combine(rows, method), abs=1e-6)


@pytest.mark.parametrize("method", ["max_confidence", "sum_logprobs"])
@given(row=st.lists(SCORES, min_size=2, max_size=5))
def test_one_member_answers_as_it_would_alone(method, row):
    assert combine([row], method) == pytest.approx(slow_chances(row), abs=1e-9)


def test_three_answers_of_the_same_ballots():
    rows = [
        [math.log(p) for p in row] for row in ([0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.01, 0.39, 0.6])
    ]
    answers = {method: combine(rows, method) for method in ENSEMBLES}
    best = {method: found.index(max(found)) for method, found in answers.items()}
    assert best == {"max_confidence": 2, "majority_vote": 0, "sum_logprobs": 1}
    assert answers["max_confidence"] == pytest.approx(rows[2])


def test_one_member_s_certainty_is_no_majority():
    # the third is so sure that, pooled, the first option has all the probability there is in float64
    rows = [[-2.0, -1.0], [-2.0, -1.0], [0.0, -300.0]]
    found = combine(rows, "majority_vote")
    assert found.index(max(found)) == 1


def test_a_tie_of_votes_is_broken_by_what_is_pooled_however_little_it_is():
    # one vote for each of the last two, which the others hold for all but impossible
    rows = [[0, 1, -200], [0, -150, 1], [0, -150, -150]]
    found = combine(rows, "majority_vote")
    assert found.index(max(found)) == 0
    rows = [[-80, 0, -200], [-80, -150, 0]]
    found = combine(rows, "majority_vote")
    assert found.index(max(found)) == 1


def test_no_ensemble_of_that_name():
    with pytest.raises(StrategyError, match="'avg_sim_score' is no ensemble"):
        combine([[0.0, -1.0]], "avg_sim_score")
