from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.config.schema import PromptParameters
from degaml_kedro.llm.finetune import TrainingError
from degaml_kedro.strategies.context import OutOfTimeError, StrategyError
from degaml_kedro.strategies.observations import Prompts
from degaml_kedro.strategies.state import AdaptedState, Member, Vote
from degaml_kedro.strategies.ttt import TestTimeTraining, prompt_sequences, refine
from degaml_kedro.tasks.example import Example, make_example, make_true_false_example
from tests.llm.helpers import peft_copy
from tests.strategies.helpers import adapter, examples, make_context, state

INLINE = PromptParameters(format="plain", options="inline")


def settings(**changes) -> TestTimeTraining:
    fields = {"ttl_steps": 3, "learning_rate": 1e-3, "batch_size": 2, "shuffle_data": False}
    return TestTimeTraining(**{**fields, **changes})


def plain_training(context, start, texts, rate):
    """Prompt perplexity as it is written down: PEFT, torch's AdamW, a batch of texts a step."""
    model = peft_copy(context.base, start)
    learned = {n: p for n, p in model.named_parameters() if "lora_" in n}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in learned.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learned.values(), lr=rate, weight_decay=0.0)
    losses = []
    for batch in texts:
        found = []
        for text in batch:
            ids = torch.tensor(context.base.tokenizer(text).input_ids)
            logits = model(ids[None]).logits[0]
            found.append(nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none"))
        optimizer.zero_grad()
        loss = torch.cat(found).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(learned.values(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return {n.replace(".default", ""): p.detach() for n, p in learned.items()}, losses


def texts_of(asked):
    return [f"Question: {example.question}\nAnswer:" for example in asked]


def test_three_steps_are_those_of_plain_peft_and_adamw():
    context, start, asked = make_context(), state(), examples(4)
    made = refine(context, start, Prompts.of(asked), settings(ttl_steps=3), seed=0)
    texts = texts_of(asked)
    # not shuffled: in order, and from the first again
    batches = [[texts[0], texts[1]], [texts[2], texts[3]], [texts[0], texts[1]]]
    expected, losses = plain_training(context, start.members[0].adapter, batches, 1e-3)
    found = made.members[0].adapter.tensors
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-5)
    before = start.members[0].adapter.tensors
    assert any((found[name] - before[name]).abs().max() > 1e-3 for name in found)
    # the same two prompts again are likelier by then
    assert losses[2] < losses[0]


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_prompts_are_taken_in_order_where_they_are_not_shuffled(batch_size):
    context, asked = make_context(), examples(3)
    found = refine(
        context, state(), Prompts.of(asked), settings(ttl_steps=2, batch_size=batch_size), seed=4
    )
    texts = texts_of(asked) * 4
    batches = [texts[:batch_size], texts[batch_size : 2 * batch_size]]
    expected, _ = plain_training(context, state().members[0].adapter, batches, 1e-3)
    for name, tensor in expected.items():
        assert torch.allclose(found.members[0].adapter.tensors[name], tensor, atol=1e-5)


def same(one, other):
    return all(torch.equal(one.tensors[name], tensor) for name, tensor in other.tensors.items())


def test_the_seed_decides_the_order_and_nothing_where_it_is_not_shuffled():
    seen = Prompts.of(examples(6))

    def made(seed, shuffle):
        config = settings(ttl_steps=2, shuffle_data=shuffle)
        return refine(make_context(), state(), seen, config, seed).members[0].adapter

    assert same(made(1, True), made(1, True))
    assert not same(made(1, True), made(2, True))
    assert same(made(1, False), made(2, False))


def answered_otherwise(example):
    """The same question with other options, of which another one is right."""
    stem = example.question
    other = make_example(stem, ["red", "a rather long blue one", "x", "y"], gold=3)
    return replace(other, response="[D]")


@pytest.mark.parametrize("shuffle", [False, True])
def test_answers_and_hidden_options_change_no_bit(shuffle):
    asked = examples(5)
    changed = [answered_otherwise(example) for example in asked]
    assert {e.options for e in changed}.isdisjoint({e.options for e in asked})
    config = settings(shuffle_data=shuffle)
    one, other = (
        refine(make_context(), state(), Prompts.of(seen), config, seed=9).members[0].adapter
        for seen in (asked, changed)
    )
    assert same(one, other)


def test_answers_change_no_bit_where_options_are_listed():
    asked = examples(5)
    changed = [replace(e, gold=2, response="[C]") for e in asked]
    one, other = (
        refine(make_context(prompt=INLINE), state(), Prompts.of(seen), settings(), 9)
        for seen in (asked, changed)
    )
    assert same(one.members[0].adapter, other.members[0].adapter)
    # and the options are read there: they stand in the prompt
    fewer = refine(make_context(), state(), Prompts.of(asked), settings(), 9)
    assert not same(one.members[0].adapter, fewer.members[0].adapter)


def test_true_or_false_questions_can_be_trained_on():
    asked = [make_true_false_example(f"{i} is even.", i % 2 == 0) for i in range(3)]
    turned = [replace(e, gold=1 - e.gold) for e in asked]
    one, other = (
        refine(make_context(), state(), Prompts.of(seen), settings(), 0).members[0].adapter
        for seen in (asked, turned)
    )
    assert same(one, other)


BARE = PromptParameters(format="plain", options="hidden", plain_prefix="", plain_suffix="")


def short(text: str) -> Example:
    return make_example(text, ["a", "b"], gold=0)


def test_prompts_of_one_token_are_passed_over():
    context = make_context(prompt=BARE)
    assert len(context.base.tokenizer("x").input_ids) == 1
    seen = Prompts.of([short("x"), short("a longer one"), short("y"), short("ab")])
    sequences = prompt_sequences(context, seen)
    assert [len(sequence.ids) for sequence in sequences] == [12, 2]
    assert [sequence.answer for sequence in sequences] == [11, 1]
    both = refine(context, state(), seen, settings(), 0).members[0].adapter
    longer = Prompts.of([short("a longer one"), short("ab")])
    assert same(both, refine(context, state(), longer, settings(), 0).members[0].adapter)


def test_nothing_but_prompts_of_one_token_is_an_error():
    with pytest.raises(StrategyError, match="every prompt is one token long"):
        refine(
            make_context(prompt=BARE), state(), Prompts.of([short("x"), short("y")]), settings(), 0
        )


def test_every_member_is_trained_on_its_own():
    context, seen = make_context(), Prompts.of(examples(3))
    start = state(2, vote=Vote("sum_logprobs"))
    made = refine(context, start, seen, settings(), 5)
    assert made.vote == start.vote
    for old, new in zip(start.members, made.members, strict=True):
        alone = refine(context, AdaptedState((old,)), seen, settings(), 5)
        assert same(new.adapter, alone.members[0].adapter)
        assert new.prompts is old.prompts


def test_tokens_are_counted_forward_and_backward():
    context, asked = make_context(), examples(4)
    refine(context, state(), Prompts.of(asked), settings(ttl_steps=2), 0)
    tokens = sum(len(text.encode()) for text in texts_of(asked))
    assert (context.meter.forward, context.meter.backward) == (tokens, tokens)


def test_a_used_up_budget_ends_it_and_the_state_stays():
    context, start = make_context(deadline=time.monotonic() - 1), state()
    kept = {name: tensor.clone() for name, tensor in start.members[0].adapter.tensors.items()}
    with pytest.raises(OutOfTimeError, match="budget of this task is used up"):
        refine(context, start, Prompts.of(examples(3)), settings(ttl_steps=50), 0)
    # after the first of fifty steps
    assert context.meter.forward == sum(len(text.encode()) for text in texts_of(examples(2)))
    assert same(start.members[0].adapter, Adapter(start.members[0].adapter.config, kept))


def test_a_loss_that_is_no_number_is_an_error():
    start = AdaptedState((Member(adapter(0, scale=1e30)),))
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at step 1"):
        refine(make_context(), start, Prompts.of(examples(3)), settings(), 0)


def test_steps_lower_the_loss_that_they_descend():
    context, start, seen = make_context(), state(), Prompts.of(examples(4))
    made = refine(context, start, seen, settings(ttl_steps=20, batch_size=4), 0)

    def perplexity(one):
        texts = texts_of(examples(4))
        _, losses = plain_training(context, one.members[0].adapter, [texts], 1e-9)
        return math.exp(losses[0])

    assert perplexity(made) < 0.9 * perplexity(start)
