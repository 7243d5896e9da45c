from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degaml_kedro.results.measures import ResultsError, wilson_interval
from degaml_kedro.results.policy_measures import (
    family_measures,
    family_shares,
    iteration_measures,
    policy_text,
)


def rollout(family="ttt", reward=0.0, **values):
    """One row as it is recorded; without a family it was not valid."""
    valid = family is not None
    measured = {
        "task": "capitals",
        "method": "degaml",
        "iteration": 1,
        "round": 1,
        "rollout": 0,
        "source": "policy",
        "state": "accuracy 0.50",
        "action": f'{{"family":"{family}"}}' if valid else "ttt, please",
        "family": family,
        "valid": valid,
        "reward": reward,
        "accuracy_before": 0.5,
        "accuracy_after": 0.5 if valid else None,
        "log_probability_before": -1.0,
        "log_probability_after": -1.0 if valid else None,
        "n": 20,
        "seconds": 1.0,
        "tokens": 200,
        "seed": 7,
        "executed": False,
        "error": None if valid else "invalid action: no JSON",
    }
    return {**measured, **values}


def two_iterations():
    """Two uniform draws and two proposals in the first iteration; four proposals in the second, one not valid."""
    return pd.DataFrame(
        [
            rollout("ttt", 1.0, source="uniform", action="a", seconds=2.0),
            rollout("ls", 0.0, source="uniform", action="b", seconds=4.0),
            rollout("ttt", 0.0, action="a"),
            rollout("ttt", 1.0, action="c"),
            rollout("lora", 1.0, iteration=2, action="d"),
            rollout("lora", 1.0, iteration=2, action="d"),
            rollout("ttt", 1.0, iteration=2, action="a", error="ValueError: no"),
            rollout(None, 0.0, iteration=2),
        ]
    )


def row(frame, **wanted):
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


# --- iterations -----------------------------------------------------------------------------------


def test_an_iteration_is_measured_by_source():
    measures = iteration_measures(two_iterations())
    places = list(zip(measures["iteration"], measures["source"], strict=True))
    assert places == [
        (1, "policy"),
        (1, "uniform"),
        (1, "all"),
        (2, "policy"),
        (2, "all"),
    ]
    uniform = row(measures, iteration=1, source="uniform")
    assert (uniform["n"], uniform["valid"], uniform["reward_rate"]) == (2, 1.0, 0.5)
    assert uniform["seconds"] == 3.0
    assert uniform["errors"] == 0
    second = row(measures, iteration=2, source="policy")
    assert (second["n"], second["valid"], second["reward_rate"]) == (4, 0.75, 0.75)
    assert second["errors"] == 2
    # three of four, by Wilson's closed form
    assert second["reward_rate_low"] == pytest.approx(0.3006, abs=1e-4)
    assert second["reward_rate_high"] == pytest.approx(0.9544, abs=1e-4)


def test_entropies_are_of_valid_proposals_and_in_nats():
    measures = iteration_measures(two_iterations())
    uniform = row(measures, iteration=1, source="uniform")
    assert uniform["family_entropy"] == pytest.approx(math.log(2))
    # three families in the whole frame
    assert uniform["family_entropy_share"] == pytest.approx(math.log(2) / math.log(3))
    policy = row(measures, iteration=1, source="policy")
    # one family, with two configurations
    assert policy["family_entropy"] == 0
    assert policy["action_entropy"] == pytest.approx(math.log(2))
    second = row(measures, iteration=2, source="policy")
    by_hand = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert second["family_entropy"] == pytest.approx(by_hand)
    assert second["action_entropy"] == pytest.approx(by_hand)


def test_one_family_has_no_share_of_an_entropy():
    (one,) = iteration_measures(pd.DataFrame([rollout("ttt")])).query("source == 'all'").iloc
    assert one["family_entropy"] == 0
    assert math.isnan(one["family_entropy_share"])


def test_nothing_valid_has_no_entropy_and_a_rate_of_0():
    frame = pd.DataFrame([rollout(None), rollout(None)])
    (one,) = iteration_measures(frame).query("source == 'all'").iloc
    assert (one["valid"], one["reward_rate"], one["errors"]) == (0.0, 0.0, 2)
    assert math.isnan(one["family_entropy"])
    assert math.isnan(one["action_entropy"])


def test_test_time_comes_last():
    frame = pd.DataFrame([rollout(iteration=i) for i in (0, 2, 10, 1)])
    assert list(dict.fromkeys(iteration_measures(frame)["iteration"])) == [1, 2, 10, 0]


def test_a_utility_below_0_is_no_reward():
    rewards = (-0.2, 0.0, 0.01, 0.3)
    frame = pd.DataFrame([rollout(reward=reward) for reward in rewards])
    assert row(iteration_measures(frame), source="all")["reward_rate"] == 0.5


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(["policy", "uniform"]),
            st.sampled_from(["ttt", "lora", None]),
            st.sampled_from([0.0, 1.0]),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_parts_add_up(drawn):
    frame = pd.DataFrame(
        [rollout(f, r if f else 0.0, iteration=i, source=s) for i, s, f, r in drawn]
    )
    measures = iteration_measures(frame)
    for _, of_iteration in measures.groupby("iteration"):
        parts, all_ = (
            of_iteration[of_iteration["source"] != "all"],
            row(of_iteration, source="all"),
        )
        assert parts["n"].sum() == all_["n"]
        earned = (parts["n"] * parts["reward_rate"]).sum()
        assert earned == pytest.approx(all_["n"] * all_["reward_rate"])
        low, high = wilson_interval(round(earned), int(all_["n"]))
        assert (all_["reward_rate_low"], all_["reward_rate_high"]) == (low, high)
    shares = family_shares(frame).groupby(["iteration", "source"])["share"].sum()
    np.testing.assert_allclose(shares, 1.0)
    assert len(shares) == len(measures)


# --- families -------------------------------------------------------------------------------------


def test_shares_of_families_by_iteration():
    shares = family_shares(two_iterations())
    own = shares[(shares["iteration"] == 2) & (shares["source"] == "policy")]
    assert dict(zip(own["family"], own["share"], strict=True)) == {
        "lora": 0.5,
        "ls": 0.0,
        "ttt": 0.25,
        "not valid": 0.25,
    }
    assert own["n"].tolist() == [2, 0, 1, 1]
    # a line of its own only where there is any
    assert "not valid" not in set(family_shares(two_iterations().iloc[:7])["family"])


def by_task():
    gained = {"accuracy_after": 0.7, "log_probability_after": -0.4}
    lost = {"accuracy_after": 0.4, "log_probability_after": -math.inf}
    failed = {"accuracy_after": None, "log_probability_after": None, "error": "ValueError: no"}
    return pd.DataFrame(
        [
            rollout("ttt", 1.0, task="months", executed=True, seconds=3.0, **gained),
            rollout("ttt", 0.0, task="months", **lost),
            rollout("ttt", 0.0, task="months", **failed),
            rollout(None, 0.0, task="months"),
            rollout("lora", 0.0, task="capitals", **lost),
        ]
    )


def test_a_family_is_measured_by_task():
    measures = family_measures(by_task())
    # tasks as they come
    assert measures["task"].tolist() == ["months", "capitals"]
    ttt = row(measures, task="months", family="ttt")
    assert (ttt["n"], ttt["share"], ttt["executed"]) == (3, 0.75, 1)
    assert ttt["reward_rate"] == pytest.approx(1 / 3)
    # of the two that ran to their end
    assert ttt["accuracy_gain"] == pytest.approx((0.2 - 0.1) / 2)
    lora = row(measures, task="capitals", family="lora")
    assert (lora["share"], lora["executed"]) == (1.0, 0)


def test_any_storage_of_missing_values_reads_alike(tmp_path):
    frame = by_task()
    frame.to_parquet(tmp_path / "rollouts.parquet")
    for backend in ("numpy_nullable", "pyarrow"):
        stored = pd.read_parquet(tmp_path / "rollouts.parquet", dtype_backend=backend)
        pd.testing.assert_frame_equal(family_measures(stored), family_measures(frame))
        pd.testing.assert_frame_equal(iteration_measures(stored), iteration_measures(frame))


def test_any_index_will_do():
    frame = two_iterations()
    twice = pd.concat([frame, frame.assign(task="months")])
    assert row(family_measures(twice), task="months", family="lora")["n"] == 2
    assert family_shares(twice)["n"].sum() == 2 * family_shares(frame)["n"].sum()


# --- text -----------------------------------------------------------------------------------------


def cells(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_text_holds_both_tables():
    text = policy_text(two_iterations())
    (second,) = [line for line in text.splitlines() if line.startswith("| 2 ") and "policy" in line]
    expected = ["2", "policy", "4", "0.75", "0.75 (0.30–0.95)", "0.64 (0.58)", "0.64", "1.00", "2"]
    assert [cell.strip() for cell in second.strip("|").split("|")] == expected
    assert cells(text, "capitals") == [
        "capitals",
        "8",
        "0.25 (2/2)",
        "0.12 (0/1)",
        "0.50 (3/4)",
        "0.12",
    ]
    # a single task needs no row for all
    assert "**all**" not in text
    assert "Counted together" not in text
    assert text.endswith("\n")


def test_the_text_marks_what_was_executed_and_sums_up():
    text = policy_text(by_task().assign(method=["degaml"] * 4 + ["random_policy"]))
    assert cells(text, "months") == ["months", "4", "0.00", "*0.75 (1/3)", "0.25"]
    assert cells(text, "**all**") == ["**all**", "5", "0.20 (0/1)", "0.60 (1/3)", "0.20"]
    assert "Counted together: degaml, random_policy." in text


def test_test_time_has_a_name():
    text = policy_text(pd.DataFrame([rollout(iteration=0)]))
    assert [line.split()[1:4:2] for line in text.splitlines() if line.startswith("| test ")] == [
        ["test", "policy"],
        ["test", "all"],
    ]


# --- what there is nothing of -----------------------------------------------------------------------


@pytest.mark.parametrize("empty", [pd.DataFrame([]), two_iterations().iloc[:0]])
def test_no_rollouts(empty):
    for measured in (iteration_measures, family_shares, family_measures):
        assert measured(empty).empty
    assert policy_text(empty) == "There are no rollouts.\n"


def test_missing_columns_are_named():
    frame = two_iterations().drop(columns=["reward", "valid"])
    with pytest.raises(ResultsError, match="no column reward, valid"):
        iteration_measures(frame)
