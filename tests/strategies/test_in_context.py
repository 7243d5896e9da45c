"""The support examples in the prompt of whatever adapter there is."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from degaml_kedro.baselines import icl, sentence_head
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import (
    InContextSetting,
    PromptParameters,
    RegressionSetting,
    ScoringParameters,
)
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.in_context import in_context_prompt
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.scoring import compare_options
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.trial import execute
from degaml_kedro.strategies.answering import answer_questions, predict
from degaml_kedro.strategies.context import StrategyError
from degaml_kedro.strategies.in_context import InContext, ask_in_context, refine
from degaml_kedro.strategies.observations import Labeled
from degaml_kedro.strategies.registry import find_family
from degaml_kedro.strategies.scaling import combine
from degaml_kedro.strategies.state import (
    MAX_POOL,
    AdaptedState,
    Demonstrations,
    Steering,
    Vote,
)
from degaml_kedro.tasks.example import Question, make_example
from tests.baselines.helpers import setup
from tests.strategies.helpers import PLAIN, adapter, draw, examples, make_context, state

SUPPORT, ASKED = examples(12)[:6], examples(12)[6:]
QUESTIONS = [Question.of(example) for example in ASKED]


def by_length(questions):
    """Nearest are those of the most similar length; of length 1 each."""
    angles = torch.tensor([len(question.prompt) / 100 for question in questions])
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def with_context(start, order="given", shots=5, **changes):
    return replace(
        start,
        members=tuple(
            replace(m, demonstrations=Demonstrations(SUPPORT, shots, order, **changes))
            for m in start.members
        ),
    )


def scores(context, start, asked=ASKED):
    return answer_questions(context, start, [Question.of(one) for one in asked]).scores[0]


def approximately(rows):
    return [pytest.approx(row, abs=1e-4) for row in rows]


def alone(context, member, shown, asked=ASKED):
    """Every whole prompt scored by itself under one adapter."""
    found = []
    verbatim = PromptParameters(format="plain", plain_prefix="", plain_suffix="")
    for example in asked:
        text = in_context_prompt(context.base, Question.of(example), shown, PLAIN, "text")
        whole = replace(example, prompt=text, system="")
        compared = compare_options(
            context.base, [whole], verbatim, context.scoring, (member.adapter,)
        )
        found.append(compared.scores[0][0])
    return found


# --- the family -----------------------------------------------------------------------------------


def test_every_member_gets_the_examples_and_nothing_is_computed():
    context, start = make_context(), state(2, vote=Vote("majority_vote"))
    made = refine(context, start, Labeled(SUPPORT), InContext(shots=3, order="random"), 5)
    assert find_family("context").sees is Labeled
    assert {m.demonstrations for m in made.members} == {
        Demonstrations(SUPPORT, 3, "random", derive_seed(5, "context"))
    }
    assert [m.adapter for m in made.members] == [m.adapter for m in start.members]
    assert made.vote == start.vote
    assert context.meter.tokens == 0
    many = refine(context, start, Labeled(SUPPORT * 999), InContext(shots=3, order="given"), 5)
    assert len(many.members[0].demonstrations.examples) == MAX_POOL


@pytest.mark.parametrize("order", ["given", "random"])
@pytest.mark.parametrize("mode", ["text", "letter"])
def test_under_an_adapter_that_does_nothing_it_is_the_baseline(order, mode):
    """Another path to the same numbers: the baseline asks the base model."""
    context = make_context(scoring=ScoringParameters(mode=mode))
    nothing = replace(draw(0, 0), adapter=adapter(0, scale=0.0))
    seed = derive_seed(7, "icl")
    start = with_context(AdaptedState((nothing,)), order, 4, seed=seed)
    own = setup("icl", base=context.base, prompt=PLAIN, scoring=context.scoring)
    shown = icl.Demonstrated(SUPPORT[:4])
    if order == "random":
        shown = icl.adapt(own, None, SUPPORT, InContextSetting(shots=4), 7)
        assert shown.examples != SUPPORT[:4]
    expected = icl.predict(own, shown, ASKED, 7)
    found = predict(context, start, ASKED)
    for one, other in zip(found, expected, strict=True):
        assert one.option_scores == pytest.approx(other.option_scores, abs=1e-4)
        assert (one.predicted, one.gold, one.text) == (other.predicted, other.gold, other.text)
    assert [one.tokens for one in found] == [one.tokens for one in expected]


def test_scores_are_those_of_whole_prompts_under_the_adapter():
    context, start = make_context(), with_context(state())
    expected = alone(context, start.members[0], SUPPORT[:5])
    assert scores(context, start) == approximately(expected)
    # it is no decoration, and neither is the adapter
    assert scores(context, state()) != approximately(expected)
    other = replace(draw(0, 0), adapter=adapter(99))
    assert scores(context, with_context(AdaptedState((other,)))) != approximately(expected)


def test_a_question_s_twin_is_left_out_for_it_alone():
    context, start = make_context(), with_context(state())
    asked = [SUPPORT[1], ASKED[0], SUPPORT[4]]
    expected = alone(context, start.members[0], SUPPORT[:5], asked)
    assert scores(context, start, asked) == approximately(expected)


def test_the_nearest_are_shown_and_the_nearest_one_last():
    asked = [make_example("How far" + "?" * n, ["a", "b", "c"], 1) for n in (3, 60)]
    pool = tuple(make_example("How long" + "." * n, ["a", "b", "c"], 0) for n in (40, 5, 20, 90))
    context = make_context(embed=by_length)
    start = AdaptedState((replace(draw(0, 0), demonstrations=Demonstrations(pool, 2, "nearest")),))
    near, far = (pool[2], pool[1]), (pool[3], pool[0])
    expected = [
        *alone(context, start.members[0], near, asked[:1]),
        *alone(context, start.members[0], far, asked[1:]),
    ]
    assert scores(context, start, asked) == approximately(expected)
    # and whatever else is asked
    assert scores(context, start, asked[1:]) == approximately(expected[1:])


def test_the_nearest_need_the_encoder():
    context = make_context(embed=None)
    with pytest.raises(
        StrategyError, match="the prompt encoder finds the nearest .* and there is none"
    ):
        refine(context, state(), Labeled(SUPPORT), InContext(shots=2, order="nearest"), 0)
    config = InContext(shots=2, order="given", encoder=1.0)
    with pytest.raises(StrategyError, match="use the order given or random, and encoder 0"):
        refine(context, state(), Labeled(SUPPORT), config, 0)
    with pytest.raises(
        StrategyError, match="the prompt encoder finds the nearest .* and there is none"
    ):
        predict(context, with_context(state(), "nearest"), ASKED)


LABELLED = tuple(
    make_example("Sort" + "." * (10 * k + n), ["tea", "ink", "tin"], k) for k in range(3) for n in range(4)
)  # fmt: skip


def test_the_encoder_s_word_is_that_of_sentence_head_and_counts_as_much_as_its_weight_says():
    context = make_context(embed=by_length)
    asked = [make_example("Sort" + "." * n, ["tin", "tea", "ink"], 0) for n in (1, 14, 30)]
    alone_ = scores(
        context,
        AdaptedState((replace(draw(0, 0), demonstrations=Demonstrations(LABELLED, 5)),)),
        asked,
    )
    own = setup("sentence_head", prompt=PLAIN, scoring=context.scoring, embed=by_length)
    head = sentence_head.adapt(own, None, LABELLED, RegressionSetting(c=100.0), 0)
    told = [one.option_scores for one in sentence_head.predict(own, head, asked, 0)]
    for weight in (1.0, 2.5):
        made = refine(
            context,
            state(),
            Labeled(LABELLED),
            InContext(shots=5, order="given", encoder=weight),
            0,
        )
        assert made.needs_encoder
        found = scores(context, made, asked)
        for own, word, row in zip(alone_, told, found, strict=True):
            expected = log_softmax(log_softmax(own) + weight * np.array(word))
            assert log_softmax(row) == pytest.approx(expected, abs=1e-4)


def test_the_encoder_has_no_word_where_an_option_was_never_an_answer():
    context = make_context(embed=by_length)
    asked = [make_example("Sort" + "." * n, ["tin", "fog"], 0) for n in (1, 14)]
    start = with_context(state())
    told = AdaptedState(
        tuple(
            replace(m, demonstrations=Demonstrations(LABELLED, 5, encoder_weight=1.0))
            for m in start.members
        )
    )
    plain = AdaptedState(
        tuple(replace(m, demonstrations=Demonstrations(LABELLED, 5)) for m in start.members)
    )
    assert scores(context, told, asked) == scores(context, plain, asked)


@pytest.mark.parametrize("order", ["given", "random", "nearest"])
def test_as_many_as_fit_in_front_of_each_question(order):
    """A long question gets fewer; what it gets does not change what others get."""
    long = make_example("How much is " + "9" * 90, ["1", "2"], 0)
    base = replace(make_context().base, context_length=250)
    context = make_context(base=base, embed=by_length)
    start = with_context(state(), order, 6)
    together = scores(context, start, [*ASKED[:2], long])
    assert together == approximately(
        [*scores(context, start, ASKED[:2]), *scores(context, start, [long])]
    )
    whole = ask_in_context(
        context, start.members[0].demonstrations, [Question.of(one) for one in (ASKED[0], long)]
    )
    texts = [base.tokenizer.decode(encoded.prompt) for encoded in whole.encoded]
    assert all(len(text) + len(" 99") > 250 - 50 for text in texts)
    assert texts[0].count("Answer:") > texts[1].count("Answer:") > 1


# --- in a state -----------------------------------------------------------------------------------


def test_the_demonstrations_count_once_a_state(monkeypatch):
    computed = []
    hidden_states = BaseModel.hidden_states

    def watched(self, pack, elementary=False):
        computed.append(pack.tokens)
        return hidden_states(self, pack, elementary)

    monkeypatch.setattr(BaseModel, "hidden_states", watched)
    context, start = make_context(), with_context(state())
    first = answer_questions(context, start, QUESTIONS)
    assert context.meter.forward == sum(computed) == sum(first.tokens)
    head = computed[0]
    computed.clear()
    again = answer_questions(context, start, QUESTIONS)
    assert again.scores == first.scores
    assert sum(computed) == sum(again.tokens) == sum(first.tokens) - head
    # another state has another adapter, or the same one changed
    for other in (copy.deepcopy(start), replace(start, members=(replace(start.members[0]),))):
        computed.clear()
        answer_questions(context, other, QUESTIONS)
        assert computed[0] == head


def test_members_with_other_contexts_and_with_none_answer_together():
    context = make_context(embed=by_length)
    first, second, third, fourth = state(4, vote=Vote("majority_vote")).members
    members = (
        replace(first, demonstrations=Demonstrations(SUPPORT, 2)),
        second,
        replace(third, demonstrations=Demonstrations(SUPPORT, 3, "nearest")),
        fourth,
    )
    rows = [scores(context, AdaptedState((member,))) for member in members]
    weights = (0.5, 0.0, 2.0, 1.25)
    for vote in (
        Vote("sum_logprobs"),
        Vote("sum_logprobs", weights=weights),
        Vote("majority_vote"),
    ):
        told: list[tuple[int, int]] = []
        found = answer_questions(
            context, AdaptedState(members, vote), QUESTIONS, lambda *at, told=told: told.append(at)
        ).scores[0]
        expected = [combine(own, vote.method, vote.weights) for own in zip(*rows, strict=True)]
        assert found == approximately(expected)
        assert told == sorted(told)
        assert told[-1] == (6, 6)
    # a router asks the members that it picks
    routed = predict(make_context(), AdaptedState(members[:2], Vote("avg_sim_score")), ASKED)
    assert len(routed) == 6


def test_weights_pool_logarithmically():
    rows = [[0.0, 1.0, 2.0], [3.0, 0.0, -1.0]]
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.3, 0.9)):
        found = torch.tensor(combine(rows, "sum_logprobs", weights), dtype=torch.float64)
        pooled = sum(
            w * torch.tensor(row, dtype=torch.float64).log_softmax(0)
            for w, row in zip(weights, rows, strict=True)
        )
        assert torch.allclose(found, pooled.log_softmax(0))
    assert combine(rows, "sum_logprobs", (0.5, 0.5)) == pytest.approx(combine(rows, "sum_logprobs"))


FOLLOWING = {
    "ttt": '{"family":"ttt","ttl_steps":1,"learning_rate":0.001,"batch_size":2,"shuffle_data":true}',
    "lora": '{"family":"lora","lambda":0.5}',
    "sft": '{"family":"sft","steps":1,"learning_rate":0.001,"batch_size":2}',
    "ls": '{"family":"ls","times":2,"learning_rate":0.1}',
    "tts": '{"family":"tts","num_prompt_batches":3,"method":"sum_logprobs"}',
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_what_follows_keeps_the_context_and_works_as_without_it(name):
    context, space = make_context(), ActionSpace.of({name: {}})
    plain, start = state(), with_context(state())
    made = execute(context, space, start, SUPPORT, FOLLOWING[name], 0)
    expected = execute(context, space, plain, SUPPORT, FOLLOWING[name], 0)
    assert [m.demonstrations for m in made.members] == [
        start.members[0].demonstrations,
        *[None] * (len(made.members) - 1),
    ]
    for one, other in zip(made.members, expected.members, strict=True):
        for key, tensor in one.adapter.tensors.items():
            assert torch.equal(tensor, other.adapter.tensors[key])
    assert len(predict(context, made, ASKED)) == len(ASKED)
    if len(made.members) == 1 and made.steering is None:
        assert scores(context, made) == approximately(alone(context, made.members[0], SUPPORT[:5]))


def test_a_question_s_vector_is_made_of_its_own_tokens_behind_the_context():
    context, rate, times = make_context(), 0.3, 3
    start = replace(with_context(state()), steering=Steering(times, rate))
    # one of them ends in the middle of what is remembered: its twin is the last demonstration
    asked = [ASKED[0], SUPPORT[4], ASKED[3]]
    found = scores(context, start, asked)
    assert found != approximately(scores(context, with_context(state()), asked))
    assert scores(context, start, asked[1:]) == approximately(found[1:])
    base, head = context.base, context.base.head
    with active_lora(base.activate_adapter(start.members[0].adapter)):
        for example, row in zip(asked, found, strict=True):
            text = in_context_prompt(base, Question.of(example), SUPPORT[:5], PLAIN, "text")
            whole = base.tokenizer(text).input_ids
            own = len(base.tokenizer(f"Question: {example.question}\nAnswer:").input_ids)
            with torch.no_grad():
                states = base.model.base_model(torch.tensor([whole])).last_hidden_state[0]
            delta = torch.zeros(head.shape[1], requires_grad=True)
            optimizer = torch.optim.AdamW([delta], lr=rate, eps=1e-5, weight_decay=1e-8)
            for _ in range(times):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(
                    (states[-own:-1] + delta) @ head.T, torch.tensor(whole[1 - own :])
                ).backward()
                optimizer.step()
            expected = []
            for option in example.options:
                ids = [*whole, *base.tokenizer(f" {option}").input_ids]
                with torch.no_grad():
                    hidden = base.model.base_model(torch.tensor([ids])).last_hidden_state[0] + delta
                    log_p = torch.log_softmax(hidden @ head.T, dim=-1)
                expected.append(
                    sum(float(log_p[t - 1, ids[t]]) for t in range(len(whole), len(ids)))
                )
            assert row == pytest.approx(expected, abs=1e-3)
