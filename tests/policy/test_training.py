from __future__ import annotations

from collections import Counter

import pytest
import torch

from degaml_kedro.config.schema import LoraParameters, PolicyTraining
from degaml_kedro.llm.finetune import TrainingError, answer_loss, initial_adapter
from degaml_kedro.llm.prompting import PromptError
from degaml_kedro.policy import training
from degaml_kedro.policy.proposers import encode_decision
from degaml_kedro.policy.training import learn
from tests.llm.helpers import random_adapter, tiny_base
from tests.policy.toys import raw

LORA = LoraParameters(rank=4, alpha=8)
SETTINGS = PolicyTraining(epochs=4, learning_rate=1e-2, batch_size=4)
GOOD = '{"family":"lora","lambda":0.5}'
BAD = '{"family":"ls","times":3}'


def row(action=GOOD, reward=1.0, valid=True, task="one", prompt="accuracy 0.50\nStrategy:"):
    return {"task": task, "state": prompt, "action": action, "reward": reward, "valid": valid}


def log_probability(adapter, action, prompt="accuracy 0.50\nStrategy:"):
    base = tiny_base()
    sequence = encode_decision(base, prompt, action)
    with torch.no_grad():
        loss = answer_loss(base, [sequence], adapter.tensors, adapter.config)
    return -loss.item() * sequence.answer


def same(one, other):
    return all(raw(one.tensors[k]) == raw(v) for k, v in other.tensors.items())


@pytest.fixture
def start():
    return initial_adapter(tiny_base(), LORA)


# --- what is learned ------------------------------------------------------------------------------


def test_rewarded_actions_become_likelier(start):
    rows = [row(), row(BAD, reward=0.0), row(prompt="accuracy 0.20\nStrategy:")]
    made, record = learn(tiny_base(), start, rows, SETTINGS, seed=0)
    assert (record["learned"], record["steps"]) == (2, 4)
    assert len(record["losses"]) == 4
    assert record["losses"][-1] < record["losses"][0]
    # in nats, of a text of thirty characters: more than a little
    assert log_probability(made, GOOD) > log_probability(start, GOOD) + 5
    # against those that were not rewarded, too
    gain, other = (log_probability(made, a) - log_probability(start, a) for a in (GOOD, BAD))
    assert gain > other
    assert record["seconds"] > 0


def test_what_was_not_rewarded_does_not_matter(start):
    rows = [row(), row(prompt="another")]
    rest = [
        row(BAD, reward=0.0),
        row(BAD, reward=-0.5),
        # an invalid text is never learned, whatever stands beside it
        row("no action at all", reward=1.0, valid=False),
        row(BAD, reward=float("nan")),
    ]
    one, _ = learn(tiny_base(), start, rows, SETTINGS, seed=0)
    other, record = learn(
        tiny_base(), start, [rest[0], rows[0], *rest[1:], rows[1]], SETTINGS, seed=0
    )
    assert same(one, other)
    assert record["learned"] == 2


@pytest.mark.parametrize(
    "rows", [[], [row(reward=0.0)], [row(reward=-1.0)], [row(valid=False)]], ids=str
)
def test_without_a_reward_the_policy_is_the_same_object(rows, start):
    made, record = learn(tiny_base(), start, rows, SETTINGS, seed=0)
    assert made is start
    assert [record[name] for name in ("learned", "steps", "losses", "tokens")] == [0, 0, [], 0]


def test_the_start_and_the_base_model_stay_as_they_are():
    base = tiny_base()
    start = random_adapter(base, LORA)
    kept = {name: tensor.clone() for name, tensor in start.tensors.items()}
    weights = {name: raw(tensor) for name, tensor in base.model.state_dict().items()}
    made, _ = learn(base, start, [row()], SETTINGS, seed=0)
    assert not same(made, start)
    assert all(torch.equal(start.tensors[name], tensor) for name, tensor in kept.items())
    assert {n: raw(t) for n, t in base.model.state_dict().items()} == weights
    assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())


def test_the_same_seed_gives_the_same_bits(start):
    rows = [row(prompt=f"accuracy 0.{i}0\nStrategy:") for i in range(1, 7)]
    one, again, other = (learn(tiny_base(), start, rows, SETTINGS, seed) for seed in (1, 1, 2))
    assert same(one[0], again[0])
    assert one[1]["losses"] == again[1]["losses"]
    assert not same(one[0], other[0])


@pytest.mark.parametrize(
    ("count", "batch_size", "epochs", "steps"),
    [(1, 8, 3, 3), (8, 8, 2, 2), (9, 8, 2, 3), (5, 1, 2, 10)],
)
def test_an_epoch_is_a_pass_over_the_actions(count, batch_size, epochs, steps, start, monkeypatch):
    batches = []

    def watched(base, batch, *rest):
        (phase,) = rest[0].phases
        assert phase.steps == steps
        for step in range(1, steps + 1):
            batches.append([sequence.ids for sequence in batch(step)])
        return iter(())

    monkeypatch.setattr(training, "train_on_batches", watched)
    rows = [row(prompt=f"{i}\nStrategy:") for i in range(count)]
    settings = PolicyTraining(epochs=epochs, batch_size=batch_size)
    learn(tiny_base(), start, rows, settings, seed=0)
    seen = Counter(ids for batch in batches for ids in batch)
    assert len(seen) == count
    assert min(seen.values()) >= epochs
    assert {len(batch) for batch in batches} == {min(batch_size, count)}


def test_progress_and_tokens(start):
    told = []
    _, made = learn(
        tiny_base(), start, [row()], SETTINGS, 0, lambda done, of: told.append((done, of))
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    sequence = encode_decision(tiny_base(), row()["state"], GOOD)
    assert made["tokens"] == 2 * 4 * len(sequence.ids)
    assert made["forward_tokens"] == made["backward_tokens"] == 4 * len(sequence.ids)


def test_a_state_that_leaves_no_room_in_the_context(start):
    with pytest.raises(PromptError, match="the context of"):
        learn(tiny_base(), start, [row(prompt="x" * 100_000)], SETTINGS, seed=0)


def test_a_loss_that_is_no_number(start):
    broken = random_adapter(tiny_base(), LORA)
    for tensor in broken.tensors.values():
        tensor.mul_(1e30)
    with pytest.raises(TrainingError, match="the loss became"):
        learn(tiny_base(), broken, [row()], SETTINGS, seed=0)


# --- where there are too many ---------------------------------------------------------------------


def taken(rows, count, seed=0):
    return training._evenly(rows, count, seed)


def many():
    """A task with a hundred rewarded rollouts, one with ten, one with two."""
    sizes = {"loud": 100, "quiet": 10, "still": 2}
    return [
        row(task=task, prompt=f"{task} {i}") for task, size in sizes.items() for i in range(size)
    ]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (6, {"loud": 2, "quiet": 2, "still": 2}),
        (3, {"loud": 1, "quiet": 1, "still": 1}),
        (12, {"loud": 5, "quiet": 5, "still": 2}),
        (40, {"loud": 28, "quiet": 10, "still": 2}),
        (112, {"loud": 100, "quiet": 10, "still": 2}),
        (1000, {"loud": 100, "quiet": 10, "still": 2}),
    ],
)
def test_no_task_speaks_for_all(count, expected):
    found = taken(many(), count)
    assert Counter(one["task"] for one in found) == expected
    assert len({one["state"] for one in found}) == len(found)


def test_fewer_than_there_are_tasks():
    found = taken(many(), 2)
    assert len({one["task"] for one in found}) == 2


def test_the_seed_decides_which():
    states = [[one["state"] for one in taken(many(), 12, seed)] for seed in (1, 1, 2)]
    assert states[0] == states[1]
    assert set(states[0]) != set(states[2])


def test_at_most_so_many_are_learned(start):
    rows = [row(task=f"{i % 3}", prompt=f"{i}\nStrategy:") for i in range(30)]
    settings = SETTINGS.model_copy(update={"max_actions": 6, "epochs": 1})
    _, made = learn(tiny_base(), start, rows, settings, seed=0)
    assert (made["learned"], made["steps"]) == (6, 2)
