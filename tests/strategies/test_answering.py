from __future__ import annotations

import pytest
import torch

from degaml_kedro.config.schema import ScoringParameters
from degaml_kedro.llm.base_model import ModelError
from degaml_kedro.llm.scoring import compare_options, score_examples
from degaml_kedro.strategies.answering import answer_questions, predict
from degaml_kedro.strategies.context import StrategyError
from degaml_kedro.strategies.scaling import combine, route
from degaml_kedro.strategies.state import AdaptedState, Member, Steering, Vote
from degaml_kedro.tasks.example import Question, make_example
from tests.strategies.helpers import PLAIN, TEXT, adapter, embed, examples, make_context, state

ROUTERS = ["avg_sim_score", "avg_prompt_embed"]
ENSEMBLES = ["max_confidence", "majority_vote", "sum_logprobs"]


def questions(asked):
    return [Question.of(example) for example in asked]


def approximately(rows):
    return [pytest.approx(row, abs=1e-5) for row in rows]


@pytest.mark.parametrize("mode", ["text", "letter"])
def test_one_adapter_answers_as_it_is_scored(mode):
    scoring = ScoringParameters(mode=mode)
    context, start, asked = make_context(scoring=scoring), state(), examples(5)
    expected = score_examples(context.base, asked, PLAIN, scoring, start.members[0].adapter)
    assert predict(context, start, asked) == expected
    assert context.meter.forward == sum(prediction.tokens for prediction in expected)
    assert context.meter.backward == 0


@pytest.mark.parametrize("method", ENSEMBLES)
def test_an_ensemble_combines_what_its_members_say_alone(method):
    context, asked = make_context(), examples(5)
    start = state(4, vote=Vote(method))
    found = answer_questions(context, start, questions(asked))
    alone = [
        compare_options(context.base, asked, PLAIN, TEXT, (member.adapter,)).scores[0]
        for member in start.members
    ]
    expected = [combine(rows, method) for rows in zip(*alone, strict=True)]
    assert found.scores == [approximately(expected)]
    one = compare_options(context.base, asked, PLAIN, TEXT).tokens
    assert found.tokens == [4 * count for count in one]
    assert context.meter.forward == sum(found.tokens)


@pytest.mark.parametrize("method", ROUTERS)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_router_asks_every_question_of_its_own_member(method, distance):
    context, asked = make_context(), examples(12)
    start = state(3, vote=Vote(method, distance))
    picked = route(start.members, start.vote, embed(asked))
    assert len(set(picked)) > 1
    found = answer_questions(context, start, questions(asked))
    for place, (example, member) in enumerate(zip(asked, picked, strict=True)):
        alone = compare_options(
            context.base, [example], PLAIN, TEXT, (start.members[member].adapter,)
        )
        assert found.scores[0][place] == pytest.approx(alone.scores[0][0], abs=1e-5)
        assert found.tokens[place] == alone.tokens[0]


def test_one_member_with_a_vote_is_that_member():
    context, asked = make_context(), examples(4)
    plain = predict(context, state(), asked)
    for method in (*ROUTERS, "max_confidence", "sum_logprobs"):
        found = predict(context, state(vote=Vote(method)), asked)
        assert [p.predicted for p in found] == [p.predicted for p in plain]
        for one, other in zip(found, plain, strict=True):
            mine, theirs = (torch.tensor(p.option_scores).log_softmax(0) for p in (one, other))
            assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("method", ROUTERS + ENSEMBLES)
def test_the_answers_are_not_read(method):
    asked = examples(6)
    turned = [type(e)(e.prompt, "[C]", e.system, e.options, e.labels, 2) for e in asked]
    start = state(3, vote=Vote(method))
    one, other = predict(make_context(), start, asked), predict(make_context(), start, turned)
    assert [p.option_scores for p in one] == [p.option_scores for p in other]
    assert [p.predicted for p in one] == [p.predicted for p in other]
    assert {p.gold for p in one} == {1}
    assert {p.gold for p in other} == {2}


@pytest.mark.parametrize("method", ROUTERS + ENSEMBLES)
def test_the_vectors_of_a_task_belong_to_their_members(method):
    context, asked = make_context(), examples(8)
    vectors = 3 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    vote = Vote(method)
    start = state(3, vote=vote, steering=Steering(1, 0.1, "task", vectors))
    found = answer_questions(context, start, questions(asked)).scores[0]
    alone = [
        answer_questions(
            context,
            AdaptedState((member,), steering=start.steering.of([number])),
            questions(asked),
        ).scores[0]
        for number, member in enumerate(start.members)
    ]
    if method in ROUTERS:
        picked = route(start.members, vote, embed(asked))
        assert found == approximately(alone[k][q] for q, k in enumerate(picked))
    else:
        assert found == approximately(combine(rows, method) for rows in zip(*alone, strict=True))
    unsteered = answer_questions(context, state(3, vote=vote), questions(asked)).scores[0]
    assert found != approximately(unsteered)


def test_questions_with_different_numbers_of_options():
    asked = [
        make_example("one", ["a", "b"], 0),
        make_example("two", ["a", "b", "a longer one", "d"], 3),
    ]
    for vote in (Vote("majority_vote"), Vote("avg_sim_score")):
        found = predict(make_context(), state(2, vote=vote), asked)
        assert [len(p.option_scores) for p in found] == [2, 4]


@pytest.mark.parametrize("vote", [Vote("sum_logprobs"), Vote("avg_sim_score")])
def test_progress_ends_with_all_of_them(vote):
    told = []
    predict(
        make_context(), state(2, vote=vote), examples(7), lambda done, of: told.append((done, of))
    )
    assert told == sorted(told)
    assert told[-1] == (7, 7)


def test_nothing_asked_is_nothing_answered():
    for start in (state(), state(2, vote=Vote("avg_sim_score"))):
        assert predict(make_context(embed=None), start, []) == []


def test_members_of_different_rank_are_refused_where_they_answer_together():
    members = (Member(adapter(1), torch.ones(2, 5)), Member(adapter(2, rank=3), -torch.ones(2, 5)))
    context = make_context()
    with pytest.raises(ModelError, match="2 adapters cannot answer together: .*ranks"):
        predict(context, AdaptedState(members, Vote("sum_logprobs")), examples(3))
    # a router asks one at a time
    assert len(predict(context, AdaptedState(members, Vote("avg_sim_score")), examples(3))) == 3


def test_a_router_without_an_encoder_or_without_prompts():
    with pytest.raises(StrategyError, match="needs the prompt encoder, and there is none"):
        predict(make_context(embed=None), state(2, vote=Vote("avg_sim_score")), examples(2))
    members = (state().members[0], Member(adapter(3)))
    with pytest.raises(StrategyError, match="avg_sim_score compares prompt batches"):
        predict(make_context(), AdaptedState(members, Vote("avg_sim_score")), examples(2))
