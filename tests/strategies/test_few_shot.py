from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import Phase, ScoringParameters, TrainingParameters
from degaml_kedro.llm.finetune import TrainingError, batch_indices, fine_tune
from degaml_kedro.policy.indicators import measure_indicators
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.few_shot import FewShot, refine
from degaml_kedro.strategies.observations import Labeled
from degaml_kedro.strategies.registry import find_family
from degaml_kedro.strategies.state import AdaptedState, Member, Vote
from tests.llm.helpers import peft_copy
from tests.strategies.helpers import PLAIN, adapter, examples, make_context, state


def settings(**changes) -> FewShot:
    return FewShot(**{"steps": 3, "learning_rate": 1e-2, "batch_size": 2, **changes})


def same(one, other):
    return all(torch.equal(one.tensors[name], tensor) for name, tensor in other.tensors.items())


def test_three_steps_are_those_of_plain_peft_and_adamw():
    context, start, asked = make_context(), state(), examples(4)
    made = refine(context, start, Labeled(asked), settings(), seed=3)
    model = peft_copy(context.base, start.members[0].adapter)
    learned = {n: p for n, p in model.named_parameters() if "lora_" in n}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learned)
    optimizer = torch.optim.AdamW(learned.values(), lr=1e-2, weight_decay=0.0)
    training = TrainingParameters(phases=(Phase(steps=3, learning_rate=1e-2),), batch_size=2)
    for step in (1, 2, 3):
        losses = []
        for i in batch_indices(4, training, step, derive_seed(3, "sft")):
            prompt = f"Question: {asked[i].question}\nAnswer:"
            whole = f"{prompt} {asked[i].options[asked[i].gold]}"
            ids = torch.tensor(context.base.tokenizer(whole).input_ids)
            answer = len(ids) - len(context.base.tokenizer(prompt).input_ids)
            logits = model(ids[None]).logits[0]
            losses.append(
                nn.functional.cross_entropy(
                    logits[-answer - 1 : -1], ids[-answer:], reduction="none"
                )
            )
        optimizer.zero_grad()
        torch.cat(losses).mean().backward()
        nn.utils.clip_grad_norm_(learned.values(), 1.0)
        optimizer.step()
    for name, parameter in learned.items():
        found = made.members[0].adapter.tensors[name.replace(".default", "")]
        assert torch.allclose(found, parameter.detach(), atol=1e-5)


def test_it_is_the_fine_tuning_that_other_methods_have():
    context, start, asked = make_context(), state(), examples(4)
    training = TrainingParameters(phases=(Phase(steps=3, learning_rate=1e-2),), batch_size=2)
    *_, last = fine_tune(
        context.base,
        asked,
        PLAIN,
        "text",
        training,
        start.members[0].adapter,
        derive_seed(3, "sft"),
    )
    made = refine(context, start, Labeled(asked), settings(), seed=3)
    assert same(made.members[0].adapter, last.adapter)


def test_answers_are_what_it_learns():
    context, start, asked = make_context(), state(), examples(4)
    made = refine(context, start, Labeled(asked), settings(steps=40, batch_size=4), seed=0)
    before, after = (measure_indicators(predict(context, s, asked)) for s in (start, made))
    assert after.accuracy == 1.0
    assert after.log_probability > before.log_probability
    turned = tuple(replace(e, gold=0, response="[A]") for e in asked)
    other = refine(context, start, Labeled(turned), settings(steps=40, batch_size=4), seed=0)
    assert not same(made.members[0].adapter, other.members[0].adapter)
    assert [p.predicted for p in predict(context, other, asked)] == [0, 0, 0, 0]


def test_the_mode_says_what_an_answer_is():
    asked = Labeled(examples(3))
    text, letter = (
        refine(make_context(scoring=ScoringParameters(mode=mode)), state(), asked, settings(), 0)
        for mode in ("text", "letter")
    )
    assert not same(text.members[0].adapter, letter.members[0].adapter)


def test_one_example_is_enough():
    made = refine(make_context(), state(), Labeled(examples(1)), settings(batch_size=8), 0)
    assert not same(made.members[0].adapter, state().members[0].adapter)


def test_every_member_is_trained_on_its_own():
    context, seen = make_context(), Labeled(examples(3))
    start = state(2, vote=Vote("sum_logprobs"))
    made = refine(context, start, seen, settings(), 5)
    assert made.vote == start.vote
    for old, new in zip(start.members, made.members, strict=True):
        alone = refine(context, AdaptedState((old,)), seen, settings(), 5)
        assert same(new.adapter, alone.members[0].adapter)
        assert new.prompts is old.prompts


def test_a_loss_that_is_no_number_is_an_error():
    start = AdaptedState((Member(adapter(0, scale=1e30)),))
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at step 1"):
        refine(make_context(), start, Labeled(examples(2)), settings(), 0)


def test_it_says_that_it_sees_answers():
    assert find_family("sft").sees is Labeled
