from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from degaml_kedro.tasks.ready import SEEN, ReadyTaskError, ready_task, ready_tasks
from degaml_kedro.tasks.suite import FAMILIES

TASKS = Path(__file__).parents[2] / "conf" / "base" / "parameters_tasks.yml"


def answered(example):
    return example.question, example.options[example.gold]


def test_every_family_of_the_suite_is_ready_those_trained_on_first():
    tasks = ready_tasks()
    assert {task.name for task in tasks} == set(FAMILIES)
    assert [task.seen for task in tasks] == sorted(task.seen for task in tasks)
    assert {task.name for task in tasks if task.seen} == set(SEEN)
    assert len({task.title for task in tasks}) == len(tasks)
    assert all(task.description.endswith(".") for task in tasks)


def test_those_seen_are_the_embedded_profiles_meta_train_pool():
    parameters = yaml.safe_load(TASKS.read_text(encoding="utf-8"))
    families = [parameters["tasks"][task]["source"]["family"] for task in parameters["meta_train"]]
    assert sorted(SEEN) == sorted(families)


@pytest.mark.parametrize("task", ready_tasks(), ids=lambda task: task.name)
def test_every_task_deals_out_what_a_demo_asks_for(task):
    support, held_out = task.draw(30, 30, seed=0)
    assert (len(support), len(held_out)) == (30, 30)
    assert not {answered(e) for e in support} & {answered(e) for e in held_out}


@settings(max_examples=40, deadline=None)
@given(
    task=st.sampled_from(ready_tasks()),
    support=st.integers(1, 150),
    held_out=st.integers(0, 60),
    seed=st.integers(0, 2**63),
)
def test_no_prompt_is_on_both_sides(task, support, held_out, seed):
    known, asked = task.draw(support, held_out, seed)
    assert (len(known), len(asked)) == (support, held_out)
    assert len({example.prompt for example in known + asked}) == support + held_out
    assert task.draw(support, held_out, seed) == (known, asked)
    assert task.draw(support, held_out + 1, seed)[0] == known


def test_small_families_ask_their_questions_with_other_options():
    support, held_out = ready_task("month_of_holiday").draw(150, 50, seed=0)
    repeated = [e for e in held_out if answered(e) in {answered(s) for s in support}]
    assert repeated
    # Fresh questions come first.
    assert held_out[-len(repeated) :] == repeated
    assert not {e.prompt for e in support} & {e.prompt for e in held_out}


def test_another_seed_draws_other_examples():
    task = ready_task("addition")
    assert task.draw(5, 5, 0) != task.draw(5, 5, 1)


def test_what_cannot_be_drawn_is_said():
    task = ready_task("addition")
    for support, held_out in ((0, 5), (5, -1), (990, 11)):
        with pytest.raises(ReadyTaskError, match=f"asked for {support} support and {held_out}"):
            task.draw(support, held_out, 0)
    with pytest.raises(ReadyTaskError, match="no ready task 'additoin'; did you mean 'addition'"):
        ready_task("additoin")
    with pytest.raises(ReadyTaskError, match="no ready task '9999'; use one of addition, "):
        ready_task("9999")
