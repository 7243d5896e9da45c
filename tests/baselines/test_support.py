from __future__ import annotations

import pytest
import torch

from degaml_kedro.baselines import support as alone
from degaml_kedro.baselines import union_train
from degaml_kedro.baselines.learned import Learned, TaskExamples
from degaml_kedro.config.schema import (
    AdaptationSetting,
    LoraParameters,
    Phase,
    PromptParameters,
    TrainingParameters,
    UnionParameters,
    WarmupParameters,
)
from degaml_kedro.llm.finetune import answer_sequences, fine_tune, initial_adapter
from degaml_kedro.tasks.example import make_example
from tests.baselines.helpers import setup
from tests.llm.helpers import tiny_base

PROMPT = PromptParameters(format="plain", options="inline")


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def start(base):
    return initial_adapter(base, LoraParameters(rank=2, alpha=4.0))


def example(stem, gold=0):
    return make_example(stem, ("one", "two"), gold)


def training(steps=4, batch=3):
    return TrainingParameters(
        phases=(Phase(steps=steps, learning_rate=1e-2),), batch_size=batch, max_examples=100
    )


def adapted_alone(support, setting):
    return alone.adapt(setup("no_meta_train_support", prompt=PROMPT), None, support, setting, 3)


def alike(a, b):
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_union_is_one_of_each_task_in_turn_and_loses_none():
    a, b, c = (
        [example(f"{task}{i}") for i in range(n)] for task, n in zip("abc", (3, 1, 2), strict=True)
    )
    assert [e.prompt.split()[0] for e in union_train.pooled([a, b, c])] == [
        e.prompt.split()[0] for e in (a[0], b[0], c[0], a[1], c[1], a[2])
    ]


def test_the_pool_holds_every_task_s_examples_once():
    pools = [[example(f"task {t} question {i}", gold=i % 2) for i in range(4)] for t in range(3)]
    whole = union_train.pooled(pools)
    assert sorted(e.prompt for e in whole) == sorted(e.prompt for pool in pools for e in pool)


def test_union_adapts_by_fine_tuning_from_what_it_learned(base, start):
    support = [example(f"new {i}", gold=i % 2) for i in range(5)]
    *_, pooled = fine_tune(base, support[:2], PROMPT, "text", training(), start, 7)
    setting = AdaptationSetting(steps=3, learning_rate=1e-2, batch_size=2)
    learned = Learned("union_train", pooled.adapter)
    given = (setup("union_train", prompt=PROMPT), learned, support, setting, 11)
    adapted = union_train.adapt(*given)
    *_, expected = fine_tune(base, support, PROMPT, "text", training(3, 2), pooled.adapter, 11)
    assert alike(adapted.adapter, expected.adapter)
    assert adapted.method == "union_train"
    # every token went forward and back once
    assert adapted.compute.forward_tokens == adapted.compute.backward_tokens > 0
    assert [record["step"] for record in adapted.records] == [1, 2, 3]
    again = union_train.adapt(*given)
    assert alike(adapted.adapter, again.adapter)


def test_without_meta_training_it_starts_where_all_runs_start(base, start):
    support = [example(f"new {i}", gold=i % 2) for i in range(4)]
    setting = AdaptationSetting(steps=2, learning_rate=1e-2, batch_size=2)
    mine = adapted_alone(support, setting)
    *_, theirs = fine_tune(base, support, PROMPT, "text", training(2, 2), start, 3)
    assert alike(mine.adapter, theirs.adapter)


def test_no_steps_leave_the_start_as_it_is(base, start):
    setting = AdaptationSetting(steps=0, learning_rate=1e-2)
    adapted = adapted_alone([example("x")], setting)
    assert alike(adapted.adapter, start)
    assert adapted.compute.backward_tokens == 0


def test_a_batch_is_never_larger_than_the_support(base, start):
    support = [example("only one")]
    setting = AdaptationSetting(steps=1, learning_rate=1e-2, batch_size=8)
    mine = adapted_alone(support, setting)
    *_, theirs = fine_tune(base, support, PROMPT, "text", training(1, 1), start, 3)
    assert alike(mine.adapter, theirs.adapter)
    assert mine.compute.forward_tokens == theirs.tokens


def warmup(share, steps=6):
    return WarmupParameters(
        phases=(Phase(steps=steps, learning_rate=1e-2),),
        batch_size=4,
        context_share=share,
        shots=4,
        context_queries=3,
        tasks_per_step=2,
    )


@pytest.mark.parametrize("own", [None, 8])
def test_union_trained_by_itself_has_a_batch_of_its_own_and_no_examples_in_prompts(own):
    setting = AdaptationSetting(steps=1, learning_rate=1e-3)
    entry = UnionParameters(settings=(setting,), batch_size=own)
    given = setup("union_train", entry, prompt=PROMPT, warmup=warmup(1.0, steps=3))
    tasks = [TaskExamples(name, [example(f"{name} {i}") for i in range(9)]) for name in "ab"]
    found = union_train.fit(given, tasks, None, 5)
    assert [row["step"] for row in found.records] == [1, 2, 3]
    assert (found.about["context_share"], found.about["batch_size"]) == (0.0, own or 4)
    # no prompt has a demonstration, and equal beginnings are computed once
    alone = len(answer_sequences(tiny_base(), [example("a 1")], PROMPT, "text")[0].ids)
    assert 0 < found.compute.forward_tokens <= 3 * (own or 4) * alone


def drawn(calls):
    def draw(number, support, query):
        calls.append((support, query))
        name = f"task {number}"
        made = [example(f"{name} q {i}", i % 2) for i in range(support + query)]
        return made[:support], made[support:]

    return draw


def test_episodes_have_their_examples_in_the_prompt_as_often_as_the_share_says(base, start):
    for share, plain, behind in ((0.0, 12, 0), (1.0, 0, 6)):
        calls = []
        steps = list(
            union_train.fit_on_episodes(base, drawn(calls), PROMPT, "text", warmup(share), start, 5)
        )
        assert len(steps) == 6
        assert sum(support == 0 for support, _ in calls) == plain
        shown = [support for support, query in calls if support and query == 3]
        assert len(shown) == behind
        assert all(2 <= support <= 4 for support in shown)


def test_training_on_episodes_goes_on_bit_by_bit(base, start):
    draw = union_train.listed(
        [[example(f"t{t} q {i}", i % 2) for i in range(9)] for t in (1, 2)], 3
    )
    *_, whole = union_train.fit_on_episodes(base, draw, PROMPT, "text", warmup(0.5), start, 5)
    run = union_train.fit_on_episodes(base, draw, PROMPT, "text", warmup(0.5), start, 5)
    third = [next(run) for _ in range(3)][-1]
    *_, rest = union_train.fit_on_episodes(
        base, draw, PROMPT, "text", warmup(0.5), start, 5, third.state
    )
    assert alike(whole.adapter, rest.adapter)
