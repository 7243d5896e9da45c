from __future__ import annotations

import pytest
import torch
from torch import nn

from degaml_kedro.llm.lora import active_lora
from degaml_kedro.strategies import latent
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.latent import LatentSteps, latent_vectors, refine
from degaml_kedro.strategies.observations import Prompts
from degaml_kedro.strategies.state import AdaptedState, Steering, Vote
from degaml_kedro.strategies.ttt import prompt_sequences
from tests.strategies.helpers import examples, make_context, state


def slow_vector(model, sequences, times, rate):
    """SLOT as it is written down: the whole model is asked in every step."""
    delta = torch.zeros(model.head.shape[1], requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=rate, eps=1e-5, weight_decay=1e-8)
    for _ in range(times):
        losses = []
        for ids in sequences:
            hidden = model.model.base_model(torch.tensor([ids])).last_hidden_state[0]
            logits = (hidden[:-1] + delta) @ model.head.T
            losses.append(
                nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
            )
        optimizer.zero_grad()
        torch.cat(losses).mean().backward()
        optimizer.step()
    return delta.detach()


@pytest.mark.parametrize(("times", "rate"), [(1, 0.01), (5, 0.1), (10, 1.0)])
def test_the_vector_of_each_question_is_the_slow_one(times, rate):
    context, start = make_context(), state()
    seen = Prompts.of(examples(5))
    sequences = prompt_sequences(context, seen)
    active = context.base.activate_adapter(start.members[0].adapter)
    rows, targets = [], []
    with torch.no_grad(), active_lora(active):
        for sequence in sequences:
            ids = list(sequence.ids)
            rows.append(
                context.base.model.base_model(torch.tensor([ids])).last_hidden_state[0][:-1]
            )
            targets += ids[1:]
    steps, counts = Steering(times, rate), [len(row) for row in rows]
    found = latent_vectors(torch.cat(rows), counts, targets, steps, context.base.head)
    with active_lora(active):
        for vector, sequence in zip(found, sequences, strict=True):
            expected = slow_vector(context.base, [list(sequence.ids)], times, rate)
            assert torch.allclose(vector, expected, atol=1e-5)


def test_one_vector_for_a_task_is_the_slow_one_over_all_prompts():
    context, start = make_context(), state()
    seen = Prompts.of(examples(5))
    config = LatentSteps(times=4, learning_rate=0.05, scope="task")
    made = refine(context, start, seen, config, seed=0)
    with active_lora(context.base.activate_adapter(start.members[0].adapter)):
        sequences = [list(sequence.ids) for sequence in prompt_sequences(context, seen)]
        expected = slow_vector(context.base, sequences, 4, 0.05)
    assert torch.allclose(made.steering.vectors[0], expected, atol=1e-5)


def test_steered_answers_are_those_of_shifted_hidden_states():
    context, start = make_context(), state()
    asked = examples(4)
    made = refine(
        context, start, Prompts.of(asked), LatentSteps(times=5, learning_rate=0.3), seed=0
    )
    found = predict(context, made, asked)
    plain = predict(context, start, asked)
    base, head = context.base, context.base.head
    moved = 0.0
    with active_lora(base.activate_adapter(start.members[0].adapter)):
        for example, prediction, before in zip(asked, found, plain, strict=True):
            prompt = base.tokenizer(f"Question: {example.question}\nAnswer:").input_ids
            delta = slow_vector(base, [prompt], 5, 0.3)
            for option, score in zip(example.options, prediction.option_scores, strict=True):
                ids = base.tokenizer(f"Question: {example.question}\nAnswer: {option}").input_ids
                with torch.no_grad():
                    hidden = base.model.base_model(torch.tensor([ids])).last_hidden_state[0] + delta
                    log_p = torch.log_softmax(hidden @ head.T, dim=-1)
                expected = sum(float(log_p[t - 1, ids[t]]) for t in range(len(prompt), len(ids)))
                if len({len(base.tokenizer(f" {o}").input_ids) for o in example.options}) > 1:
                    assert score == pytest.approx(expected, abs=1e-3)
            moved += abs(prediction.option_scores[0] - before.option_scores[0])
    assert moved > 1e-3


def test_chunks_change_nothing(monkeypatch):
    context, start = make_context(), state()
    asked = examples(6)
    made = refine(
        context, start, Prompts.of(asked), LatentSteps(times=3, learning_rate=0.1), seed=0
    )
    whole = predict(context, made, asked)
    monkeypatch.setattr(latent, "_CELLS_AT_ONCE", 1)
    for one, other in zip(predict(context, made, asked), whole, strict=True):
        assert one.option_scores == pytest.approx(other.option_scores, abs=1e-5)


def test_a_vector_that_turns_the_distribution_over_does_not_underflow():
    torch.manual_seed(0)
    head = torch.randn(50, 8) * 30
    hidden = torch.randn(6, 8) * 3
    targets = (hidden @ head.T).argmin(dim=1).tolist()
    delta = torch.zeros(8, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=1.0, eps=1e-5, weight_decay=1e-8)
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy((hidden + delta) @ head.T, torch.tensor(targets)).backward()
        optimizer.step()
    found = latent_vectors(hidden, [6], targets, Steering(6, 1.0), head)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[0], delta.detach(), atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("times", "rate"), [(1, 0.01), (5, 0.1), (10, 1.0)])
def test_in_half_precision_the_logits_are_those_of_full_precision(times, rate, seed):
    width = 256
    source = torch.Generator().manual_seed(seed)
    head = (torch.randn(2000, width, generator=source) * 0.05).bfloat16()
    hidden = (torch.randn(24, width, generator=source) * 4).bfloat16()
    targets = torch.randint(2000, (24,), generator=source).tolist()
    found = latent_vectors(hidden, [9, 15], targets, Steering(times, rate), head)
    assert found.dtype == torch.float32
    # the same numbers, computed in float32 from end to end
    states, weights = hidden.float(), head.float()
    for rows, vector in zip((slice(0, 9), slice(9, 24)), found, strict=True):
        goal = torch.tensor(targets[rows])
        delta = torch.zeros(width, requires_grad=True)
        optimizer = torch.optim.AdamW([delta], lr=rate, eps=1e-5, weight_decay=1e-8)
        for _ in range(times):
            optimizer.zero_grad()
            nn.functional.cross_entropy((states[rows] + delta) @ weights.T, goal).backward()
            optimizer.step()
        plain, exact, rounded = (
            torch.log_softmax((states[rows] + added) @ weights.T, dim=-1)
            for added in (torch.zeros(width), delta.detach(), vector)
        )
        # AdamW's first step is a sign: an element whose gradient is near 0 may take it the other way. Off by as much
        # as one such element in 256 makes: an eighth of what the vector does to the logits
        assert (rounded - exact).norm() < 2 / width**0.5 * (exact - plain).norm()
        # and what is minimized, the prompt's own loss, falls as far, to half a percent
        before, after, found_loss = (
            nn.functional.nll_loss(logits, goal) for logits in (plain, exact, rounded)
        )
        assert (found_loss - after).abs() < 0.005 * (before - after)


def test_members_have_vectors_of_their_own_and_new_ones_get_the_mean():
    context = make_context()
    start = state(2, vote=Vote("sum_logprobs"))
    seen = Prompts.of(examples(3))
    made = refine(context, start, seen, LatentSteps(times=2, learning_rate=0.1, scope="task"), 0)
    assert made.steering.vectors.shape[0] == 2
    assert not torch.allclose(made.steering.vectors[0], made.steering.vectors[1])
    alone = AdaptedState(made.members[:1], steering=made.steering.of([0]))
    other = AdaptedState(made.members[1:], steering=made.steering.of([1]))
    one, two = predict(context, alone, examples(3)), predict(context, other, examples(3))
    both = predict(context, made, examples(3))
    for a, b, c in zip(one, two, both, strict=True):
        scores = torch.log_softmax(torch.tensor([a.option_scores, b.option_scores]), dim=1).mean(0)
        assert torch.allclose(
            torch.log_softmax(scores, 0), torch.tensor(c.option_scores), atol=1e-4
        )
