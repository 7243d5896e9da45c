"""MetaICL and in-context tuning: episodes, what they cost, and that demonstrations are what is read."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from degaml_kedro.baselines import icl, metaicl
from degaml_kedro.baselines.baseline import Setup
from degaml_kedro.baselines.learned import BaselineError, Learned, TaskExamples
from degaml_kedro.config.schema import (
    InContextSetting,
    LoraParameters,
    MetaIclParameters,
    PromptParameters,
)
from degaml_kedro.llm.finetune import initial_adapter
from degaml_kedro.llm.in_context import in_context_prompt
from degaml_kedro.tasks.example import Example, Question, make_example
from tests.baselines.helpers import setup
from tests.llm.helpers import random_adapter, tiny_base

LORA = LoraParameters(rank=4, alpha=8.0)
PLAIN = PromptParameters(format="plain", options="hidden", plain_prefix="", plain_suffix=":")
CHAT = PromptParameters(format="chat", options="lines")
SHOTS = InContextSetting(shots=4)


def parameters(**changes: object) -> MetaIclParameters:
    values: dict[str, object] = {
        "outer_steps": 3,
        "tasks_per_step": 2,
        "support": 4,
        "query": 4,
        "outer_learning_rate": 1e-2,
        "settings": (SHOTS,),
    }
    return MetaIclParameters.model_validate({**values, **changes})


def constant(number: int, support: int = 4, query: int = 8) -> tuple[list[Example], list[Example]]:
    """Every question of a task has the same answer: only its other examples tell which."""
    made = [make_example(x, ("x", "y"), number % 2) for x in "abcdefghijkl"]
    return made[:support], made[support : support + query]


def task(name: str, count: int = 12) -> TaskExamples:
    return TaskExamples(
        name, [make_example(f"{name} {i}", ("x", "y"), i % 2) for i in range(count)]
    )


TASKS = [task("stone"), task("door"), task("leaf")]


def given(prompt: PromptParameters = PLAIN, **changes: object) -> Setup:
    start = initial_adapter(tiny_base(), LORA)
    return setup("metaicl", parameters(**changes), prompt=prompt, start=start)


def learn(tasks=TASKS, seed: int = 1, prompt=PLAIN, draw=None, **changes: object) -> Learned:
    return metaicl.fit(given(prompt, **changes), tasks, draw, seed)


def same(one: Learned, other: Learned) -> bool:
    pairs = zip(one.adapter.tensors.values(), other.adapter.tensors.values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- learning -------------------------------------------------------------------------------------


def test_it_learns_to_answer_from_the_demonstrations():
    learned = learn((), draw=constant, outer_steps=60)
    losses = [row["loss"] for row in learned.records]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    for number in range(2):
        support, asked = constant(number)
        shown = metaicl.adapt(given(), learned, support, SHOTS, 0)
        found = metaicl.predict(given(), shown, asked, 0)
        assert [one.predicted for one in found] == [number] * 8
    assert learned.about["tasks"] == []


def test_the_same_call_gives_the_same_bits_in_any_order_of_tasks():
    learned = learn()
    assert same(learned, learn(TASKS[::-1]))
    assert not same(learned, learn(seed=2))
    assert learned.about["tasks"] == ["door", "leaf", "stone"]


@pytest.mark.parametrize("prompt", [PLAIN, CHAT])
def test_without_meta_training_it_is_icl(prompt: PromptParameters):
    own, examples = given(prompt), TASKS[0].examples
    start = Learned("metaicl", own.start)
    zero = metaicl.adapt(own, start, examples[:6], SHOTS, 3)
    none = icl.adapt(own, None, examples[:6], SHOTS, 3)
    assert (zero.examples, none.adapter) == (none.examples, None)
    expected = icl.predict(own, none, examples[6:], 3)
    assert metaicl.predict(own, zero, examples[6:], 3) == expected
    other = icl.Demonstrated(zero.examples, random_adapter(own.base, LORA))
    assert metaicl.predict(own, other, examples[6:], 3) != expected


def test_a_loss_is_of_the_queries_alone_behind_one_to_all_shots():
    counts = {metaicl._shots(4, step, 1) for step in range(50)}
    assert counts == {1, 2, 3, 4}


# --- what it costs --------------------------------------------------------------------------------


def test_demonstrations_are_counted_once_for_all_queries():
    learned = learn(outer_steps=4, tasks_per_step=1)
    spent = learned.compute
    assert spent.forward_tokens == spent.backward_tokens
    assert spent.forward_tokens == sum(row["tokens"] for row in learned.records)
    # a token a byte: 4 demonstrations and 4 queries, each "stone 10: x" and a blank line at most
    assert max(row["tokens"] for row in learned.records) <= 8 * 13


def test_an_episode_gives_up_demonstrations_and_then_queries_to_stay_in_its_budget():
    def tokens(most: int, length: int) -> list[int]:
        long = TaskExamples(
            "long", [make_example(f"{i:02d}{'z' * length}", ("x", "y"), 0) for i in range(20)]
        )
        found = learn([long], outer_steps=5, tasks_per_step=1, support=10, max_tokens=most)
        return [row["tokens"] for row in found.records]

    free, tight = tokens(10_000, 20), tokens(200, 20)
    assert max(free) > 200 >= max(tight)
    assert all(a == b for a, b in zip(free, tight, strict=True) if a <= 200)
    # one demonstration and one query are always there
    assert set(tokens(64, 90)) == {2 * (2 + 90 + 3) + 2}


# --- tasks without end, and what is refused -------------------------------------------------------


def test_a_source_gives_every_episode_a_task_of_its_own():
    asked: list[int] = []

    def draw(number: int, support: int, query: int) -> tuple[list[Example], list[Example]]:
        asked.append(number)
        return constant(number, support, query)

    learn(TASKS, draw=draw)
    assert asked == [0, 1, 2, 3, 4, 5]


def test_too_few_examples_are_refused_by_name():
    with pytest.raises(BaselineError, match=r"cup has 7 train .* takes 8: .*baselines\.metaicl\."):
        learn([*TASKS, task("cup", 7)])
    with pytest.raises(BaselineError, match="no tasks to meta-train on"):
        learn([])


# --- metaict --------------------------------------------------------------------------------------


def test_the_instruction_stands_in_front():
    examples = metaicl.instructed(TASKS[0].examples[:2], "Name the letter.")
    text = in_context_prompt(tiny_base(), Question.of(examples[1]), examples[:1], CHAT, "letter")
    assert text.startswith("<|im_start|>system\nName the letter.<|im_end|>\n<|im_start|>user\n")
    assert text.count("Name the letter.") == 1
    text = in_context_prompt(tiny_base(), Question.of(examples[1]), examples[:1], PLAIN, "text")
    assert text == "Name the letter.\n\nstone 0: x\n\nName the letter.\n\nstone 1:"


def test_an_example_s_own_system_message_comes_behind_the_instruction():
    (plain,) = TASKS[0].examples[:1]
    own: Example = dataclasses.replace(plain, system="Be brief.")
    assert metaicl.instructed([own], "Name it.")[0].system == "Name it.\n\nBe brief."
    assert metaicl.instructed([own, plain], "") == [own, plain]
