"""The pictures of a policy show the numbers that were measured, and say what there is nothing of."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from degaml_kedro.results import figures
from degaml_kedro.results.measures import wilson_interval
from tests.results.test_policy_measures import by_task, rollout, two_iterations

EMPTY = pd.DataFrame([])


def policy_figure(rollouts, title="Policy"):
    return figures.policy_figure(rollouts, title)


def strategy_map(rollouts, title="Strategies"):
    return figures.strategy_map(rollouts, title)


def titles(figure):
    return [
        a.text.split("</b>")[0].removeprefix("<b>")
        for a in figure.layout.annotations
        if a.text.startswith("<b>")
    ]


def notes(figure):
    return " ".join(a.text for a in figure.layout.annotations if not a.text.startswith("<b>"))


def named(figure, name):
    (found,) = [trace for trace in figure.data if trace.name == name]
    return found


def curves(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def with_test_time():
    tests = [rollout("lora", 1.0, iteration=0), rollout("ttt", 0.0, iteration=0)]
    return pd.concat([two_iterations(), pd.DataFrame(tests)])


# --- how the policy learned -----------------------------------------------------------------------


def test_all_parts_are_there():
    figure = policy_figure(two_iterations(), "Policy without months")
    assert titles(figure) == [
        "Reward rate",
        "Entropy of what was chosen",
        "Families the policy chose",
    ]
    assert "Policy without months" in figure.layout.title.text
    assert "8 rollouts; 1 task; 2 iterations<" in figure.layout.title.text
    assert notes(figure) == ""


def test_reward_rates_of_policy_and_uniform_stand_apart_with_their_intervals():
    figure = policy_figure(two_iterations())
    policy, uniform = named(figure, "policy"), named(figure, "uniform")
    assert (list(policy.x), list(policy.y)) == ([1, 2], [0.5, 0.75])
    assert (list(uniform.x), list(uniform.y)) == ([1], [0.5])
    assert [row[0] for row in policy.customdata] == [2, 4]
    low, high = wilson_interval(3, 4)
    assert policy.y[1] + policy.error_y.array[1] == pytest.approx(high)
    assert policy.y[1] - policy.error_y.arrayminus[1] == pytest.approx(low)
    # colors are not the only difference
    assert policy.marker.symbol != uniform.marker.symbol


def test_entropies_of_families_and_actions():
    figure = policy_figure(two_iterations())
    by_hand = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    families, actions = named(figure, "policy, families"), named(figure, "policy, actions")
    np.testing.assert_allclose(families.y, [0, by_hand])
    np.testing.assert_allclose(actions.y, [math.log(2), by_hand])
    assert families.line.dash != actions.line.dash
    assert families.marker.symbol != actions.marker.symbol
    np.testing.assert_allclose(named(figure, "uniform, families").y, [math.log(2)])
    # three families alike
    assert list(named(figure, "alike").y) == pytest.approx([math.log(3)] * 2)


def test_shares_are_of_the_policy_s_own_proposals():
    figure = policy_figure(two_iterations())
    bars = {trace.name: list(trace.y) for trace in figure.data if trace.type == "bar"}
    assert bars == {
        "lora": [0, 0.5],
        "ls": [0, 0],
        "ttt": [1, 0.25],
        "not valid": [0, 0.25],
    }
    assert figure.layout.barmode == "stack"
    looks = {(t.marker.color, t.marker.pattern.shape) for t in figure.data if t.type == "bar"}
    assert len(looks) == 4


def test_without_a_policy_the_uniform_draws_are_shown_as_such():
    figure = policy_figure(two_iterations().iloc[:2])
    assert titles(figure)[2] == "Families of the uniform draws"
    assert list(named(figure, "ttt").y) == [0.5]
    assert not curves(figure, "policy")


def test_test_time_stands_behind_training_and_no_line_joins_them():
    figure = policy_figure(with_test_time())
    training, test = curves(figure, "policy")
    assert (list(training.x), list(test.x), list(test.y)) == ([1, 2], [3], [0.5])
    # one line in the legend
    assert (training.showlegend, test.showlegend) == (True, False)
    assert list(figure.layout.xaxis.ticktext) == ["1", "2", "test"]
    assert list(named(figure, "lora").x) == [1, 2, 3]
    assert "2 iterations; test time" in figure.layout.title.text


def test_many_iterations_keep_a_readable_axis():
    rows = [rollout(iteration=i) for i in range(41)]
    figure = policy_figure(pd.DataFrame(rows))
    ticks = list(figure.layout.xaxis.ticktext)
    assert (ticks[0], ticks[-1]) == ("1", "test")
    assert len(ticks) <= 13


def test_one_iteration_and_one_family_are_a_picture_too():
    figure = policy_figure(pd.DataFrame([rollout("ttt", 1.0)]))
    assert list(named(figure, "policy").y) == [1.0]
    # with a single family there is nothing to be even about
    assert not curves(figure, "alike")


def test_no_rollouts_are_said_to_be_none():
    figure = policy_figure(EMPTY)
    assert not figure.data
    assert notes(figure).count("no rollouts were recorded") == 3


def test_no_valid_proposal_has_no_entropy():
    figure = policy_figure(pd.DataFrame([rollout(None)]))
    assert titles(figure) == ["Reward rate", "Families the policy chose"]
    assert "Not shown: the entropy of choices (no proposal was valid)." in notes(figure)
    assert list(named(figure, "not valid").y) == [1.0]


def test_several_methods_are_named():
    frame = two_iterations().assign(method=["random_policy"] * 2 + ["degaml"] * 6)
    assert "Counted together: random_policy, degaml." in notes(policy_figure(frame))


# --- which family for which task --------------------------------------------------------------------


def adapted():
    return by_task().assign(iteration=0)


def test_the_map_holds_shares_rates_and_gains():
    figure = strategy_map(adapted(), "Strategies of main")
    (shares,) = figure.data
    assert list(shares.x) == ["lora", "ttt", "unrefined"]
    assert list(shares.y) == ["months", "capitals"]
    assert [list(line)[:2] for line in shares.z] == [[0.0, 0.75], [1.0, 0.0]]
    assert [list(line)[:2] for line in shares.customdata] == [
        ["0 proposals", "3 proposals"],
        ["1 proposals", "0 proposals"],
    ]
    assert shares.text[0][1] == "<b>★ 75%</b><br>33% rewarded<br>+5.0 points"
    assert shares.text[1][0] == "100%<br>0% rewarded<br>-10.0 points"
    assert shares.text[0][0] == ""
    assert (shares.zmin, shares.zmax) == (0, 1)
    assert "Strategies of main" in figure.layout.title.text


def marks(figure):
    """The column of the tasks of which nothing was executed."""
    (shares,) = figure.data
    assert shares.x[-1] == "unrefined"
    return [line[-1] for line in shares.text]


def test_tasks_of_which_nothing_was_executed_are_marked():
    assert marks(strategy_map(adapted())) == ["", "<b>★</b>"]


def test_training_has_no_unrefined_tasks():
    figure = strategy_map(by_task())
    assert list(figure.data[0].x) == ["lora", "ttt"]
    assert "unrefined" not in notes(figure)


def test_what_was_executed_in_several_rounds_is_counted():
    rows = [rollout("ttt", 1.0, iteration=0, round=turn, executed=True) for turn in (1, 2)]
    assert "★ ×2 100%" in strategy_map(pd.DataFrame(rows)).data[0].text[0][0]


def test_methods_have_rows_of_their_own():
    other = adapted().assign(method="random_policy", executed=False)
    figure = strategy_map(pd.concat([adapted(), other]))
    assert list(figure.data[0].y) == [
        "months (degaml)",
        "capitals (degaml)",
        "months (random_policy)",
        "capitals (random_policy)",
    ]
    assert marks(figure) == ["", *["<b>★</b>"] * 3]


def test_a_family_that_never_ran_to_its_end_has_no_score():
    figure = strategy_map(pd.DataFrame([rollout(accuracy_after=None, error="ValueError: no")]))
    assert figure.data[0].text[0][0] == "100%<br>0% rewarded<br>no score"


def test_a_task_without_a_valid_proposal_keeps_its_row():
    figure = strategy_map(pd.DataFrame([rollout(None, iteration=0)]))
    assert marks(figure) == ["<b>★</b>"]
    assert "No proposal was valid" in notes(figure)
    rows = [rollout(None, task="months", iteration=0), rollout("ttt", iteration=0)]
    (shares,) = strategy_map(pd.DataFrame(rows)).data
    assert list(shares.y) == ["months", "capitals"]
    assert [line[0] for line in shares.z] == [0.0, 1.0]


def test_a_map_of_nothing_says_so():
    figure = strategy_map(EMPTY)
    assert not figure.data
    assert notes(figure) == "Not shown: no rollouts were recorded."


# --- JSON -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [policy_figure, strategy_map])
def test_pictures_are_strict_json_and_the_same_every_time(draw):
    frame = pd.concat([with_test_time(), by_task(), pd.DataFrame([rollout(None, iteration=3)])])
    text = draw(frame).to_json()
    # no browser reads NaN
    json.loads(text, parse_constant=pytest.fail)
    assert draw(frame.copy()).to_json() == text
