from __future__ import annotations

import math

import pytest

from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.fallback import learned_fallback, narrowed, rank_actions
from tests.policy.toys import Toy, move, space_of

ONE, OTHER = Toy(move, name="one"), Toy(move, name="other")
SPACE = space_of(ONE, OTHER)


def row(toy, which, task, gain, accuracy=None, error=None):
    failed = error is not None
    if accuracy is None:
        accuracy = gain / 10 if math.isfinite(gain) else 0.0
    return {
        "task": task,
        "valid": True,
        "round": 1,
        "family": toy.name,
        "action": toy.text(which),
        "log_probability_before": -2.0,
        "log_probability_after": None if failed else -2.0 + gain,
        "accuracy_before": 0.5,
        "accuracy_after": None if failed else 0.5 + accuracy,
        "seconds": 1.0,
        "error": error,
    }


def ranked(rows, space=SPACE):
    return rank_actions(rows, space)


def test_what_gained_most_over_tasks_comes_first():
    rows = [row(ONE, which, task, 0.5 + which) for which in (0, 1) for task in "abc"]
    rows += [row(OTHER, 0, task, 0.1) for task in "abc"]
    found = ranked(rows)
    assert [one["action"] for one in found] == [ONE.text(1), ONE.text(0), OTHER.text(0)]
    # 3 tasks of its own with 1.5, as many of its family with 1
    assert found[0]["gain"] == pytest.approx((3 * 1.5 + 3 * 1.0) / 6)
    assert found[2]["gain"] == pytest.approx(0.1)
    assert {one["tasks"] for one in found} == {3}


def test_a_task_counts_once_however_often_it_was_tried_on():
    rows = [row(ONE, 0, "a", 9.0) for _ in range(50)] + [row(ONE, 0, t, 0.0) for t in "bc"]
    (found,) = ranked(rows)
    assert found["gain"] == pytest.approx(3.0)


def test_an_action_that_was_tried_once_is_judged_by_its_family():
    # luck on one task against what held on six
    rows = [row(ONE, 0, task, 0.6) for task in "abcdef"]
    rows += [row(ONE, 1, "a", 1.0)]
    rows += [row(OTHER, 2, "a", 2.0), row(OTHER, 3, "b", -1.0), row(OTHER, 4, "c", -1.0)]
    families = [one["family"] for one in ranked(rows)]
    assert families[:2] == ["one", "one"]
    assert "one" not in families[2:]


def test_a_family_that_was_tried_on_few_tasks_is_left_out():
    rows = [row(ONE, 0, task, 5.0) for task in "ab"] + [row(OTHER, 0, task, 0.1) for task in "abc"]
    assert [one["family"] for one in ranked(rows)] == ["other"]


def test_what_made_things_worse_and_what_failed_is_no_fallback():
    rows = [row(ONE, 0, task, -0.5) for task in "abc"]
    rows += [row(OTHER, 0, task, 0, error="RuntimeError: no") for task in "abc"]
    rows += [{**row(ONE, 0, "a", 1.0), "family": None, "action": "gibberish"}]
    assert ranked(rows) == []
    assert ranked([]) == []


def test_a_failure_gains_nothing_and_counts():
    rows = [row(ONE, 0, task, 0.9) for task in "ab"]
    rows += [row(ONE, 0, "c", 0, error="OutOfTimeError: late")]
    assert ranked(rows)[0]["gain"] == pytest.approx(0.6)
    rows[2] = row(ONE, 0, "c", -math.inf)
    assert ranked(rows)[0]["gain"] == pytest.approx(0.6)


def test_one_task_that_cannot_be_learned_does_not_outweigh_the_others():
    rows = [row(ONE, 0, task, 0.5, 0.3) for task in "ab"] + [row(ONE, 0, "c", -4.0, -0.05)]
    rows += [row(OTHER, 0, task, 0.01, -0.02) for task in "abc"]
    assert [one["family"] for one in ranked(rows)] == ["one"]


def test_tasks_on_which_everything_gains_do_not_decide_between_actions():
    """`other` is better wherever both were tried; `one` was tried on the two easy tasks more."""
    rows = [row(ONE, 0, task, 1.0, 0.2) for task in "abc"]
    rows += [row(OTHER, 0, task, 1.5, 0.3) for task in "abc"]
    rows += [row(ONE, 0, task, 9.0, 0.9) for task in "de"]
    assert [one["family"] for one in ranked(rows)] == ["other", "one"]


def test_what_loses_everywhere_is_not_better_than_nothing_for_losing_less():
    rows = [row(ONE, 0, task, 0.0, 0.0) for task in "abc"]
    rows += [row(ONE, 0, task, -1.0, -0.4) for task in "def"]
    rows += [row(OTHER, 0, task, -0.1, -0.1) for task in "def"]
    assert ranked(rows) == []


def test_likelihood_and_then_the_text_decide_between_equals():
    rows = [row(ONE, which, task, 1.0 + (which == 2), 0.1) for which in (3, 2, 1) for task in "abc"]
    assert [one["action"] for one in ranked(rows)] == [ONE.text(2), ONE.text(1), ONE.text(3)]
    assert ranked(rows) == ranked(rows[::-1])


def test_an_ensemble_is_no_fallback():
    space = ActionSpace.of({"ensemble": {}})
    text = '{"family":"ensemble","members":2,"weights":"equal"}'
    rows = [{**row(ONE, 0, t, 1.0), "family": "ensemble", "action": text} for t in "abc"]
    assert ranked(rows, space) == []


def test_each_kind_of_task_has_what_is_best_on_it():
    rows = [row(ONE, 0, task, 1.0, 0.4) for task in "abc"]
    rows += [row(OTHER, 0, task, 0.5, 0.2) for task in "abc"]
    rows += [row(ONE, 0, task, 0.1, 0.05) for task in "xyz"]
    rows += [row(OTHER, 0, task, 0.6, 0.2) for task in "xyz"]
    found = learned_fallback(rows, SPACE, set("xyz"))
    assert (found["actions"], found["closed"]) == ([ONE.text(0)], [ONE.text(0)])
    assert found["open"] == [OTHER.text(0)]
    # and so it is among some of the families
    _, fewer = narrowed({"families": {"one": {}, "other": {}}}, found, ["other"])
    assert fewer == {key: [OTHER.text(0)] for key in ("actions", "closed", "open")}
    # two tasks tell nothing of a kind, nor do three if no family was tried on all of them
    assert learned_fallback(rows, SPACE, set("xy"))["open"] is None
    few = [
        one for one in rows if (one["task"], one["family"]) not in {("x", "one"), ("y", "other")}
    ]
    assert learned_fallback(few, SPACE, set("xyz"))["open"] is None
    # that nothing helped is something else
    useless = [{**one, "accuracy_after": 0.1} if one["task"] in "xyz" else one for one in rows]
    assert learned_fallback(useless, SPACE, set("xyz"))["open"] == []


def test_what_seconds_cost_is_taken_off():
    rows = [{**row(ONE, 0, task, 1.0, 0.3), "seconds": 10.0} for task in "abc"]
    rows += [{**row(OTHER, 0, task, 1.0, 0.2), "seconds": 2.0} for task in "abc"]
    assert [one["family"] for one in rank_actions(rows, SPACE)] == ["one", "other"]
    (dear,) = rank_actions(rows, SPACE, 0.05)
    assert (dear["family"], dear["accuracy_gain"]) == ("other", pytest.approx(0.1))
    assert learned_fallback(rows, SPACE, set(), 0.05)["actions"] == [OTHER.text(0)]


def test_later_steps_of_an_episode_do_not_count():
    rows = [row(ONE, 0, t, 1.0) for t in "abc"]
    later = [{**row(ONE, 1, t, 5.0), "round": 2} for t in "abc"]
    assert rank_actions([*rows, *later], ONE.space) == rank_actions(rows, ONE.space) != []
