from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degaml_kedro.tasks.example import TaskError
from degaml_kedro.tasks.ready import ready_task, ready_tasks
from degaml_kedro.tasks.suite import material
from degaml_kedro.tasks.suite.data import read_data


def test_what_training_has_not_seen_comes_first():
    tasks = ready_tasks()
    assert [task.seen for task in tasks] == sorted(task.seen for task in tasks)
    assert not ready_task("tenant_desks").seen
    assert ready_task("country_currency").seen
    assert len({task.title for task in tasks}) == len({task.name for task in tasks}) == len(tasks)
    assert all(task.description.endswith(".") for task in tasks)


def test_no_ready_task_is_of_a_final_pool():
    """They are on the page, and final pools are scored once."""
    final = {pool for pool in material.HELD_OUT_POOLS if pool.startswith("final")}
    for entry in read_data("ready"):
        if entry["form"] == "rules":
            pool, _ = material.pool_of_rule(entry["subject"], *entry["classes"])
        else:
            pool = material.pool_of_subject(entry["form"], entry["subject"])
            words = {
                word
                for name in final
                for own in material.label_words(name).values()
                for word in own
            }
            assert not words & set(entry["labels"])
        assert pool not in final


@pytest.mark.parametrize("task", ready_tasks(), ids=lambda task: task.name)
def test_every_task_deals_out_what_a_demo_asks_for(task):
    support, held_out = task.draw(20, 40, seed=0)
    assert (len(support), len(held_out)) == (20, 40)


@settings(max_examples=40, deadline=None)
@given(
    task=st.sampled_from(ready_tasks()),
    support=st.integers(1, 30),
    held_out=st.integers(0, 30),
    seed=st.integers(-(2**63), 2**63),
)
def test_no_question_is_on_both_sides(task, support, held_out, seed):
    known, asked = task.draw(support, held_out, seed)
    assert (len(known), len(asked)) == (support, held_out)
    assert len({example.question for example in known + asked}) == support + held_out
    assert task.draw(support, held_out, seed) == (known, asked)
    assert task.draw(support, held_out + 1, seed)[0] == known


def test_another_seed_draws_other_examples():
    task = ready_task("number_parity")
    assert task.draw(5, 5, 0) != task.draw(5, 5, 1)


def test_what_cannot_be_drawn_is_said():
    task = ready_task("number_parity")
    for support, held_out in ((0, 5), (5, -1), (990, 11), (500, 500)):
        with pytest.raises(TaskError, match=f"asked for {support} support and {held_out}"):
            task.draw(support, held_out, 0)
    with pytest.raises(
        TaskError, match="no ready task 'number_party'; did you mean 'number_parity'"
    ):
        ready_task("number_party")
    with pytest.raises(TaskError, match="no ready task '9999'; use one of adjective_synonym, "):
        ready_task("9999")
