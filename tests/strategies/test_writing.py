"""Answers that are written, by every strategy and every baseline: what is written, how likely it is, who decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from degaml_kedro.baselines.baseline import Setup, baseline
from degaml_kedro.baselines.baseline import answer as answers_by
from degaml_kedro.baselines.learned import BaselineError, Learned, TaskExamples
from degaml_kedro.config.schema import (
    BASELINES,
    BaselinesParameters,
    LoraParameters,
    PatternExtraction,
    PromptParameters,
    RewardParameters,
    ScoringParameters,
)
from degaml_kedro.llm.finetune import initial_adapter
from degaml_kedro.llm.generation import Writing, group_answers
from degaml_kedro.llm.prompting import PromptError, render_prompt
from degaml_kedro.llm.scoring import WrittenAnswer, graded, score_examples
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.indicators import measure_indicators
from degaml_kedro.policy.trial import Attempt, execute, try_action
from degaml_kedro.strategies import answering
from degaml_kedro.strategies.answering import answer_questions, predict, write_answers
from degaml_kedro.strategies.context import StrategyError
from degaml_kedro.strategies.scaling import combine
from degaml_kedro.strategies.state import Demonstrations, Steering, Vote, load_state, save_state
from degaml_kedro.tasks.example import Question, make_example, make_open_example
from tests.llm.helpers import merged_reference, tiny_base
from tests.strategies.helpers import PLAIN, adapter, make_context, state

NUMBER = ScoringParameters(mode="generate", extraction="number", max_new_tokens=6)
# of bytes, as a random model writes them: every text has an answer
FIRST = PatternExtraction(regex=r"(?s).")
BYTES = NUMBER.model_copy(update={"extraction": FIRST})
OPEN = tuple(
    make_open_example(f"How much is {n} and {n}{'?' * (n % 3)}", f"It is {2 * n}.")
    for n in range(6)
)
QUESTIONS = [Question.of(one) for one in OPEN]


def greedy(model, base, text: str, count: int = 6, vector=None) -> tuple[list[int], float]:
    """Tokens and their log-probability; one plain forward a token.

    `vector` is added to the final hidden states.
    """
    ids = base.tokenizer(text).input_ids
    start, total = len(ids), 0.0
    for _ in range(count):
        with torch.no_grad():
            hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
            logits = model.lm_head(hidden if vector is None else hidden + vector)
        ids.append(int(logits.argmax()))
        total += float(logits.log_softmax(-1).max())
        if ids[-1] == base.tokenizer.eos_token_id:
            break
    return ids[start:], total


def text_of(base, ids: list[int]) -> str:
    text = base.tokenizer.decode(ids, skip_special_tokens=True)
    return text.split("Question:")[0].strip()


@pytest.mark.parametrize("adapted", [False, True])
def test_the_likelihood_is_that_of_the_text_as_it_was_written(adapted):
    base, own = tiny_base(), adapter(1) if adapted else None
    model = merged_reference(base, own) if own else base.model
    found = score_examples(base, OPEN, PLAIN, NUMBER, own)
    for example, prediction in zip(OPEN, found, strict=True):
        ids, total = greedy(model, base, render_prompt(example, PLAIN, base))
        assert prediction.text == text_of(base, ids)
        assert prediction.log_probability == pytest.approx(total, abs=1e-3)


def test_an_answer_is_right_wrong_or_none():
    said = ["It is 2,000.", "2 or 3", "no idea"]
    asked = [make_open_example(f"{n}?", "So 2000") for n in range(3)]
    found = graded(asked, [WrittenAnswer(text, -1.5, 7) for text in said], NUMBER)
    assert [(one.predicted, one.gold) for one in found] == [(0, 0), (1, 0), (None, 0)]
    assert [one.option_scores for one in found] == [
        (-1.5, -math.inf),
        (-math.inf, -1.5),
        (-math.inf, -math.inf),
    ]
    measured = measure_indicators(found)
    assert measured.accuracy == pytest.approx(1 / 3)
    assert (measured.nll, measured.confidence) == pytest.approx((1.5, math.exp(-1.5)))


def test_a_question_with_options_may_be_answered_by_its_letter_or_its_text():
    asked = make_example("Which?", ["the cat", "a dog"], 1)
    letter = ScoringParameters(mode="generate")
    text = letter.model_copy(update={"extraction": "text"})
    (found,) = graded([asked], [WrittenAnswer("[B], surely", -1.0, 1)], letter)
    assert (found.predicted, found.gold) == (1, 1)
    for said, predicted in (("Dog!", 0), ("The cat.", 1)):
        (found,) = graded([asked], [WrittenAnswer(said, -1.0, 1)], text)
        assert (found.predicted, found.gold) == (predicted, 0)


# --- states ---------------------------------------------------------------------------------------


def test_a_vector_steers_what_is_written(monkeypatch):
    """Every question's own vector, through all of its answer.

    The vectors are given: AdamW's first steps are signs of gradients, and near zero the machine's load decides a sign.
    """
    context = make_context(scoring=BYTES)
    base, hidden_size = context.base, context.base.head.shape[1]

    def vector_of(prompt: Sequence[int]) -> torch.Tensor:
        return 3 * torch.randn(hidden_size, generator=torch.Generator().manual_seed(sum(prompt)))

    def given(steering, base, members):
        return lambda hidden, starts, questions: torch.stack(
            [vector_of(one.prompt) for one in questions]
        )

    monkeypatch.setattr(answering, "steer", given)
    alone = state()
    model = merged_reference(base, alone.members[0].adapter)
    found = predict(context, replace(alone, steering=Steering(3, 0.03)), OPEN)
    plain = predict(context, alone, OPEN)
    for example, one, without in zip(OPEN, found, plain, strict=True):
        text = render_prompt(example, PLAIN, base)
        vector = vector_of(base.tokenizer(text).input_ids)
        ids, total = greedy(model, base, text, vector=vector)
        assert one.text == text_of(base, ids)
        assert one.log_probability == pytest.approx(total, abs=1e-3)
        assert one.log_probability != pytest.approx(without.log_probability, abs=0.1)


def test_a_vector_is_made_of_every_question_that_is_to_be_written():
    context = make_context(scoring=BYTES)
    alone = state()
    found = predict(context, replace(alone, steering=Steering(3, 0.03)), OPEN)
    plain = predict(context, alone, OPEN)
    moved = [
        one.log_probability - two.log_probability for one, two in zip(found, plain, strict=True)
    ]
    assert max(map(abs, moved)) > 0.1


def test_demonstrations_stand_before_what_is_written():
    context = make_context(scoring=BYTES)
    alone = state()
    shown = tuple(make_open_example(f"Name {n}", f"the {n}") for n in range(2))
    member = replace(alone.members[0], demonstrations=Demonstrations(shown, 2))
    found = predict(context, replace(alone, members=(member,)), OPEN)
    model = merged_reference(context.base, member.adapter)
    front = "Question: Name 0\nAnswer: the 0\n\nQuestion: Name 1\nAnswer: the 1\n\n"
    for example, prediction in zip(OPEN, found, strict=True):
        text = front + render_prompt(example, PLAIN, context.base)
        ids, total = greedy(model, context.base, text)
        assert prediction.text == text_of(context.base, ids)
        assert prediction.log_probability == pytest.approx(total, abs=1e-3)


def test_an_open_context_is_saved_and_read(tmp_path):
    alone = state()
    member = replace(alone.members[0], demonstrations=Demonstrations(OPEN, 2))
    save_state(replace(alone, members=(member,)), tmp_path / "state")
    assert load_state(tmp_path / "state").members[0].demonstrations == member.demonstrations


@pytest.mark.parametrize("method", ["max_confidence", "majority_vote", "sum_logprobs"])
def test_several_members_vote_on_what_they_write(method):
    context = make_context(scoring=BYTES)
    several = state(3, vote=Vote(method))
    models = [merged_reference(context.base, one.adapter) for one in several.members]
    found = write_answers(context, several, QUESTIONS)
    agreed = 0
    for example, answer in zip(OPEN, found, strict=True):
        text = render_prompt(example, PLAIN, context.base)
        prompt = context.base.tokenizer(text).input_ids
        written = [greedy(model, context.base, text)[0] for model in models]
        rows = np.array([[log_probability(m, prompt, ids) for ids in written] for m in models])
        said = [text_of(context.base, ids) for ids in written]
        agreed += len({one[:1] for one in said}) == 1
        if method == "max_confidence":
            best = int(np.unravel_index(rows.argmax(), rows.shape)[1])
        elif method == "sum_logprobs":
            best = int(rows.mean(axis=0).argmax())
        else:
            continue
        # unless several texts give one answer, and are likelier together
        if len({one[:1] for one in said}) == 3:
            assert answer.text == said[best]
    assert agreed < len(OPEN)
    assert context.meter.forward > 0


def log_probability(model, prompt: list[int], ids: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    rows = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
    return sum(float(logits[row, token]) for row, token in zip(rows, ids, strict=True))


def test_texts_that_give_one_answer_count_together():
    texts = ["It is 4.", "4", "5", "none"]
    writings = [Writing((n,), text, 1) for n, text in enumerate(texts)]
    rows = [[math.log(p) for p in (0.2, 0.3, 0.4, 0.9)]]
    groups, merged = group_answers(writings, rows, QUESTIONS[0], NUMBER)
    assert groups == [[1, 0], [2]]
    assert merged[0] == pytest.approx((math.log(0.5), math.log(0.4)))
    # what gives no answer counts where there is nothing else
    groups, _ = group_answers(writings[3:], [rows[0][3:]], QUESTIONS[0], NUMBER)
    assert groups == [[0]]


def test_a_majority_is_of_what_members_wrote_themselves():
    # the first two wrote answer 0, though each holds answer 1 likelier
    scores = [[-5.0, -1.0], [-5.0, -1.0], [-9.0, -0.5]]
    assert np.argmax(combine(scores, "majority_vote", said=[0, 0, 1])) == 0
    assert np.argmax(combine(scores, "majority_vote")) == 1
    # likelihoods as they are, not shares of what was found
    scores = [[-1.0, -9.0], [-2.0, -2.1]]
    assert combine(scores, "max_confidence", said=[0, 1]) == pytest.approx((-1.0, -9.0))
    assert combine(scores, "sum_logprobs", said=[0, 1]) == pytest.approx((-1.5, -5.55))


@pytest.mark.parametrize("method", ["avg_sim_score", "avg_prompt_embed"])
def test_a_router_lets_one_member_write(method):
    context = make_context(scoring=BYTES)
    several = state(3, vote=Vote(method))
    alone = [
        [one.text for one in predict(context, replace(several, members=(m,), vote=None), OPEN)]
        for m in several.members
    ]
    for texts in zip((one.text for one in predict(context, several, OPEN)), *alone, strict=True):
        assert texts[0] in texts[1:]


# --- strategies -----------------------------------------------------------------------------------

ACTIONS = {
    "ttt": '{"family": "ttt", "ttl_steps": 1, "learning_rate": 0.001, "batch_size": 2, "shuffle_data": true}',
    "lora": '{"family": "lora", "lambda": 0.5}',
    "ls": '{"family": "ls", "times": 1, "learning_rate": 0.3}',
    "tts": '{"family": "tts", "num_prompt_batches": 2, "method": "sum_logprobs"}',
    "sft": '{"family": "sft", "steps": 1, "learning_rate": 0.001, "batch_size": 2}',
    "context": '{"family": "context", "shots": 2, "order": "given"}',
    "ensemble": '{"family": "ensemble", "members": 2, "weights": "fitted"}',
}


def test_every_strategy_is_tried_and_carried_out():
    space = ActionSpace.of({name: {} for name in ACTIONS})
    context, start = make_context(scoring=BYTES), state()
    before = measure_indicators(predict(context, start, OPEN))
    tried = []
    for name, text in ACTIONS.items():
        trial = try_action(
            context, space, start, before, OPEN, text, RewardParameters(), 3, tried=tried
        )
        assert trial.error is None, (name, trial.error)
        assert trial.after is not None
        assert math.isfinite(trial.after.nll)
        if trial.poolable:
            scores = tuple(one.option_scores for one in trial.predictions)
            tried.append(Attempt(text, name, 3, scores))
        made = execute(context, space, start, OPEN, text, 3, tried[:2])
        again = predict(context, made, OPEN)
        assert all(one.log_probability < 0 for one in again)
    assert len(tried) >= 2


def test_an_ensemble_is_tried_by_what_its_members_write_without_the_answers_they_are_asked():
    space = ActionSpace.of({name: {} for name in ("sft", "context", "ensemble")})
    context, start, tried = make_context(scoring=BYTES), state(), []
    before = measure_indicators(predict(context, start, OPEN))
    folds = [(0, 2, 4), (1, 3, 5)]
    for name in ("sft", "context"):
        trial = try_action(
            context, space, start, before, OPEN, ACTIONS[name], RewardParameters(), 3, folds
        )
        rows = tuple(one.option_scores for one in trial.predictions)
        tried.append(Attempt(ACTIONS[name], name, 3, rows))
    found = try_action(
        context,
        space,
        start,
        before,
        OPEN,
        ACTIONS["ensemble"],
        RewardParameters(),
        3,
        folds,
        tried,
    )
    for asked in folds:
        held_in = [OPEN[i] for i in range(6) if i not in asked]
        part = [
            Attempt(
                one.action, one.family, 3, tuple(one.scores[i] for i in range(6) if i not in asked)
            )
            for one in tried
        ]
        made = execute(context, space, start, held_in, ACTIONS["ensemble"], 3, part)
        expected = predict(context, made, [OPEN[i] for i in asked])
        assert [found.predictions[i].text for i in asked] == [one.text for one in expected]


# --- baselines ------------------------------------------------------------------------------------

STEPS = [{"steps": 1, "learning_rate": 1e-3, "batch_size": 4}]
EPISODES = {
    "outer_steps": 1,
    "tasks_per_step": 1,
    "support": 2,
    "query": 2,
    "outer_learning_rate": 1e-3,
}
INNER = {**EPISODES, "inner_steps": 1, "inner_learning_rate": 1e-3, "settings": STEPS}
SETTINGS = BaselinesParameters.model_validate(
    {
        "icl": {"settings": [{"shots": 2}]},
        "no_meta_train_support": {"settings": STEPS},
        "union_train": {"settings": STEPS},
        "maml_en_llm": INNER,
        "abmll": {**INNER, "samples": 2, "scale": 1e-2},
        "metaicl": {**EPISODES, "settings": [{"shots": 2}]},
        "sentence_head": {"settings": [{"c": 1.0}]},
    }
)


def answers_of(method: str, prompt=PLAIN, scoring=BYTES):
    base, start = tiny_base(), initial_adapter(tiny_base(), LoraParameters(rank=2, alpha=4))
    entry = getattr(SETTINGS, BASELINES[method])
    given = Setup(method, base, prompt, scoring, entry, start, embed=len)
    own, learned = baseline(method), Learned(method, start)
    if method not in ("no_meta_train_support", "union_train", "icl", "sentence_head"):
        learned = own.fit(given, [TaskExamples("sums", OPEN)], None, 0)
    adapted = own.adapt(given, learned, OPEN[:3], entry.settings[0], 0)
    return answers_by(given, adapted, OPEN[3:], 0)


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize(
    "method",
    [
        *("icl", "no_meta_train_support", "union_train", "maml_en_llm", "maml_en_llm_first_order"),
        *("abmll", "metaicl", "metaict"),
    ],
)
def test_every_baseline_writes_its_answers(method, form):
    found = answers_of(method, PromptParameters(format=form))
    assert len(found) == 3
    for one in found:
        assert one.log_probability < 0
        assert one.predicted in (0, 1, None)
        assert one.predicted == (None if not one.text else int(one.text[0] != "I"))


# --- refusals -------------------------------------------------------------------------------------


def test_a_classifier_refuses_open_answers():
    with pytest.raises(BaselineError, match="chooses among answers that it has seen"):
        answers_of("sentence_head")


@pytest.mark.parametrize("mode", ["letter", "text"])
def test_open_questions_are_refused_where_options_are_compared(mode):
    compared = ScoringParameters(mode=mode)
    for ask in (
        lambda: score_examples(tiny_base(), OPEN, PLAIN, compared),
        lambda: predict(make_context(scoring=compared), state(), OPEN),
    ):
        with pytest.raises(
            PromptError, match=r"has no options that could be compared.*mode: generate"
        ):
            ask()


def test_written_answers_are_no_scores_of_options():
    with pytest.raises(StrategyError, match="answers are written"):
        answer_questions(make_context(scoring=NUMBER), state(), QUESTIONS)


def test_a_prompt_without_room_for_its_answer_is_refused():
    scoring = NUMBER.model_copy(update={"max_new_tokens": 2030})
    with pytest.raises(
        PromptError, match=r"tokens long with their answers, the context of .* is 2048"
    ):
        score_examples(tiny_base(), OPEN, PLAIN, scoring)
