"""The adapter that is written from the answered examples, as a strategy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from degaml_kedro.config.schema import AssociativeDecoder, LoraParameters, RewardParameters
from degaml_kedro.generator.examples import ExampleGenerator
from degaml_kedro.llm.finetune import answer_sequences
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.describe import describe_action
from degaml_kedro.policy.indicators import measure_indicators
from degaml_kedro.policy.trial import execute, try_action
from degaml_kedro.strategies.answering import answer_questions, predict
from degaml_kedro.strategies.context import StrategyError
from degaml_kedro.strategies.in_context import encoder_words, with_encoder
from degaml_kedro.strategies.state import load_state, save_state
from degaml_kedro.tasks.example import Question, make_example
from tests.strategies.helpers import PLAIN, examples, make_context, state, tiny_base

DECODER = AssociativeDecoder(kind="associative", depths=(0.1, 0.3), rank=8, metric_rank=2, scale=3)
LORA = LoraParameters(rank=2, alpha=4.0)
SPACE = ActionSpace.of({"written": {"shots": [0, 20], "encoder": [0.0, 2.0]}})
SUPPORT = [make_example(f"Which one is {n}", ["low", "top"], gold=int(n < 5)) for n in range(8)]
ASKED = [make_example(f"Which one is {n}", ["low", "top"], gold=int(n < 5)) for n in range(8, 12)]


def context(**changes):
    return make_context(writer=ExampleGenerator.fresh(tiny_base(), DECODER, LORA), **changes)


def action(shots: int = 0, encoder: float = 0.0) -> str:
    return f'{{"family":"written","shots":{shots},"encoder":{encoder}}}'


def test_it_takes_the_state_s_place_and_reads_the_examples_once():
    own = context()
    made = execute(own, SPACE, state(), SUPPORT, action(), 1)
    sequences = answer_sequences(own.base, SUPPORT, PLAIN, "text")
    wanted = ExampleGenerator.fresh(own.base, DECODER, LORA).write(own.base, sequences)
    assert made.is_one_adapter
    tensors = made.members[0].adapter.tensors
    assert all(torch.equal(value, tensors[name]) for name, value in wanted.tensors.items())
    assert (own.meter.forward, own.meter.backward) == (sum(len(s.ids) for s in sequences), 0)


def test_a_trial_is_cross_fitted():
    own, start = context(), state()
    before = measure_indicators(predict(own, start, SUPPORT))
    folds = [range(4), range(4, 8)]
    trial = try_action(
        own, SPACE, start, before, SUPPORT, action(), RewardParameters(), 1, folds=folds
    )
    assert trial.error is None
    half = execute(context(), SPACE, start, SUPPORT[4:], action(), 1)
    found = [one.option_scores for one in trial.predictions[:4]]
    assert found == [one.option_scores for one in predict(context(), half, SUPPORT[:4])]


def test_the_encoder_s_word_counts_beside_it_without_any_example_in_the_prompt(tmp_path):
    own = context()
    alone = execute(own, SPACE, state(), SUPPORT, action(), 1)
    beside = execute(own, SPACE, state(), SUPPORT, action(encoder=2.0), 1)
    questions = [Question.of(one) for one in ASKED]
    shown = beside.members[0].demonstrations
    assert shown is not None
    assert (shown.shots, beside.is_one_adapter, beside.needs_encoder) == (0, False, True)
    scores = answer_questions(own, alone, questions)
    wanted = with_encoder(scores.scores[0], encoder_words(own, shown, questions))
    found = answer_questions(own, beside, questions)
    for one, other in zip(found.scores[0], wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert found.tokens == scores.tokens
    save_state(beside, tmp_path / "state")
    again = answer_questions(own, load_state(tmp_path / "state"), questions)
    assert again.scores == found.scores


def test_examples_may_stand_in_the_prompt_as_well():
    made = execute(context(), SPACE, state(), SUPPORT, action(shots=20), 1)
    shown = made.members[0].demonstrations
    assert shown is not None
    assert (shown.shots, shown.examples, shown.encoder_weight) == (20, tuple(SUPPORT), 0)
    assert predict(context(), made, ASKED)


def test_what_it_needs_is_named():
    with pytest.raises(StrategyError, match="no generator that reads examples"):
        execute(make_context(), SPACE, state(), SUPPORT, action(), 1)
    with pytest.raises(StrategyError, match="there is none here"):
        execute(replace(context(), embed=None), SPACE, state(), examples(), action(encoder=2.0), 1)


def test_it_is_told_in_plain_words():
    told = "Write an adapter from the examples with their answers, in one pass"
    assert describe_action(SPACE, action()) == told
    beside = describe_action(SPACE, action(20, 2.0))
    assert beside.startswith(f"{told}; show the model up to 20 examples")
    assert "sentence embeddings (weight 2)" in beside
