"""The rule `paired` in pipelines: where the fallback is learned, who reads it, and what comes of it."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest
from kedro.framework.project import pipelines

from degaml_kedro.checkpoint.hub import read_run
from degaml_kedro.config.loader import ConfigurationError
from degaml_kedro.config.methods import PAPER_FAMILIES
from degaml_kedro.io.rollouts import ROLLOUT_COLUMNS
from degaml_kedro.pipelines.evaluate.nodes import execute_strategies
from degaml_kedro.pipelines.policy.nodes import collect_rollouts, learn_fallback
from degaml_kedro.pipelines.tasks.nodes import take_split
from degaml_kedro.policy.fallback import narrowed, with_fallback
from degaml_kedro.strategies.state import load_state
from degaml_kedro.tasks.example import make_example
from degaml_kedro.tasks.splits import TaskSplits, splits_to_frame
from tests.conftest import Project
from tests.pipelines.helpers import SMOKE, run
from tests.pipelines.test_policy_runs import (
    chosen,
    executed,
    generator,
    rows_of,
    settings,
    splits,
    states_of,
)
from tests.policy.toys import bytes_of

__all__ = ["generator"]  # a fixture

pytestmark = pytest.mark.xdist_group("policy_runs")

LORA = '{"family":"lora","lambda":0.3}'


def searching(**changes: Any) -> dict[str, Any]:
    return {**SMOKE["policy"], "search": {**SMOKE["policy"]["search"], "rule": "paired", **changes}}


def graph(project: Project) -> Any:
    with project.session() as session:
        session.load_context()
    return pipelines["__default__"]


def readers(pipeline: Any, name: str) -> set[str]:
    return {one.func.__name__ for one in pipeline.nodes if name in one.inputs}


def test_the_fallback_is_learned_where_a_search_needs_it(project):
    pipeline = graph(project)
    assert not [one for one in pipeline.nodes if one.func.__name__ == "learn_fallback"]
    project.edit("smoke/parameters.yml", policy={"search": {"rule": "paired"}})
    pipeline = graph(project)
    for name in ("policy_fallback", "without_day_after.policy_fallback"):
        assert readers(pipeline, name) == {"choose_strategies"}
    methods = {
        one.func.keywords["method"]
        for one in pipeline.nodes
        if "policy_fallback" in one.inputs and one.func.__name__ == "choose_strategies"
    }
    assert methods == {"degaml", "no_generator", "paper_families", "random_policy"}
    # what a fold leaves out teaches its fallback nothing
    (learning,) = (
        one for one in pipeline.nodes if "without_day_after.policy_fallback" in one.outputs
    )
    assert not [name for name in learning.inputs if ".day_after." in name]
    # and its cost is also that of uniform draws
    spent = {
        one.func.keywords["method"]: set(one.inputs)
        for one in pipeline.nodes
        if one.func.__name__ == "count_training" and one.func.keywords["stage"] == "meta_training"
    }
    assert spent["random_policy"] == spent["degaml"] >= {"policy_rollouts"}
    project.edit("smoke/parameters.yml", policy={"search": {"fallback": [LORA]}})
    assert not [one for one in graph(project).nodes if one.func.__name__ == "learn_fallback"]


def test_what_was_learned_is_the_fallback_of_a_search_that_names_none():
    learned = {"actions": [LORA], "closed": None, "open": None}
    assert with_fallback(searching(), learned)["search"]["fallback"] == [LORA]
    own = searching(fallback=["x"])
    for same in (own, SMOKE["policy"], {}):
        assert with_fallback(same, learned) == same
    assert with_fallback(searching(), None) == searching()


@pytest.mark.parametrize(
    ("learned", "closed", "of_open"),
    [
        ({"closed": None, "open": None}, ["all"], None),
        ({"closed": ["c"], "open": None}, ["c"], ["all"]),
        ({"closed": None, "open": ["o"]}, ["all"], ["o"]),
        ({"closed": ["c"], "open": []}, ["c"], []),
    ],
)
def test_a_kind_without_a_fallback_of_its_own_has_that_of_all_tasks(learned, closed, of_open):
    search = with_fallback(searching(), {"actions": ["all"], **learned})["search"]
    assert search["fallback"] == closed
    assert search.get("open_fallback") == of_open
    given = with_fallback(searching(open_fallback=[]), {"actions": ["all"], **learned})
    assert given["search"]["open_fallback"] == []


def test_of_the_paper_s_families_the_fallback_is_the_best_of_these():
    sft = '{"family":"sft","steps":1,"learning_rate":0.0001,"batch_size":1}'
    ranking = [
        {"action": text, "family": family} for text, family in ((sft, "sft"), (LORA, "lora"))
    ]
    learned = {"ranking": ranking, "closed_ranking": None, "open_ranking": None}
    policy, fallback = narrowed(searching(), learned, PAPER_FAMILIES)
    assert list(policy["families"]) == ["ttt", "lora", "ls", "tts"]
    assert with_fallback(policy, fallback)["search"]["fallback"] == [LORA]
    assert narrowed(searching(), None, PAPER_FAMILIES)[1] is None


def test_the_paper_s_families_are_needed_for_a_search_among_them(project):
    without = dict.fromkeys(PAPER_FAMILIES) | {"sft": {}}
    project.edit("smoke/parameters.yml", policy={"families": without})
    with pytest.raises(ConfigurationError, match="paper_families chooses from ttt, lora, ls, tts"):
        graph(project)


def test_a_space_of_ensembles_alone_is_refused_by_name(project):
    without = dict.fromkeys((*PAPER_FAMILIES, "sft", "written")) | {"ensemble": {}}
    methods = ["base", "degaml"]
    project.edit("smoke/parameters.yml", methods=methods, policy={"families": without})
    with pytest.raises(ConfigurationError, match="ensemble alone, which puts together"):
        graph(project)


def test_four_support_examples_cannot_tell_and_the_fallback_is_executed(generator):
    frame = splits(1)
    frame = frame[~((frame["split"] == "support") & (frame.index == 6))].reset_index(drop=True)
    given = searching(fallback=[LORA], early_stop=False)
    rows = rows_of(chosen(generator, frame, given=given))
    assert [row["source"] for row in rows[:3]] == ["fallback", "uniform", "uniform"]
    assert {row["decided_by"] for row in rows if row["round"] == 1} == {"fallback"}
    state = executed(generator, frame, rows)
    strict = rows_of(chosen(generator, frame, given=SMOKE["policy"]))
    assert {row["source"] for row in strict} == {"uniform"}
    unrefined = executed(generator, frame, [{**row, "executed": False} for row in rows])
    assert bytes_of(state) != bytes_of(unrefined)


def test_a_table_of_all_trials_says_who_decided_at_the_end():
    row = dict.fromkeys(ROLLOUT_COLUMNS) | {"task": "a", "round": 1, "executed": False}
    told = ["initialization", "fallback", "test", "test"]
    rows = [row | {"rollout": i, "decided_by": one} for i, one in enumerate(told)]
    rows += [row | {"round": 2, "rollout": 4, "decided_by": "initialization"}]
    found = collect_rollouts(pd.DataFrame(rows), pd.DataFrame([row | {"rollout": 0}]))
    assert found["decided_by"].tolist() == ["test"] * 4 + ["initialization", None]


def test_nothing_is_learned_of_nothing():
    frame = pd.DataFrame(columns=list(ROLLOUT_COLUMNS))
    found = learn_fallback(settings(searching()), frame, tasks=())
    assert found == {
        **{"actions": [], "closed": None, "open": None},
        **{"ranking": [], "closed_ranking": None, "open_ranking": None},
    }


def test_a_task_s_kind_is_seen_by_its_support_examples():
    """Two families; on the last three tasks, whose questions have options of their own, the other one is better."""
    sft = '{"family":"sft","steps":1,"learning_rate":0.0001,"batch_size":1}'
    tasks, supports, rows = tuple("abcxyz"), [], []
    for task in tasks:
        closed = [make_example(f"{task} {i}?", ["red", "blue"], i % 2) for i in range(4)]
        of_open = [make_example(f"{task} {i}?", [f"yes {i}", "no"], i % 2) for i in range(4)]
        shown = tuple(closed if task in "abc" else of_open)
        supports.append(splits_to_frame(TaskSplits((), shown, (), ())))
        for action, family, gain in (
            (sft, "sft", 0.2),
            (LORA, "lora", 0.1 if task in "abc" else 0.3),
        ):
            row = dict.fromkeys(ROLLOUT_COLUMNS)
            row |= {"task": task, "action": action, "family": family, "valid": True, "round": 1}
            row |= {"log_probability_before": -2.0, "log_probability_after": -1.0, "seconds": 1.0}
            rows.append(row | {"accuracy_before": 0.2, "accuracy_after": 0.2 + gain})
    found = learn_fallback(settings(searching()), *supports, pd.DataFrame(rows), tasks=tasks)
    assert (found["closed"], found["open"]) == ([sft], [LORA])


@pytest.mark.slow
def test_a_run_learns_its_fallback_falls_back_on_it_and_ships_it(project):
    project.edit(
        "smoke/parameters.yml",
        methods=["base", "degaml", "random_policy", "tabular_policy", "best_fixed"],
        tasks={"month_after": {"group": "calendar", "source": {"kind": "suite", "family": "month_after"}}},
        meta_train=["kind_member", "day_after", "month_after"],
        generator={"leave_out": []},
        policy={
            "search": {"rule": "paired", "rounds": 1},
            "rollouts": {"count": 4, "steps": 2, "resample": False},
            "families": {
                "ensemble": {},
                "context": {"shots": [2, 2], "order": ["given"], "encoder": [0.0, 2.0]},
            },
        },
    )  # fmt: skip
    run(project)
    models, tables = project.data / "06_models", project.data / "08_reporting"
    learned = json.loads((models / "policy_fallback.json").read_text())
    strategies = pd.read_parquet(tables / "strategies.parquet")
    for _, rows in strategies.groupby("method"):
        assert rows["action"].iloc[0] in learned["actions"] or not learned["actions"]
        # four examples cannot tell
        assert set(rows["decided_by"]) == {"fallback" if learned["actions"] else "initialization"}
    pair = read_run(project.data)
    assert pair.settings.policy.search.fallback == tuple(learned["actions"])
    # on a random model it is chance whether anything gained anything
    (models / "policy_fallback.json").write_text(json.dumps({**learned, "actions": [LORA]}))
    assert read_run(project.data).settings.policy.search.fallback == (LORA,)
    rollouts = pd.read_parquet(tables / "policy_rollouts.parquet")
    assert set(rollouts["round"]) == {1, 2}
    assert set(rollouts["source"]) <= {"policy", "uniform"}
    assert "search" in set(strategies["source"])
    # a method of its own, and one that proposes
    assert {"degaml", "random_policy", "tabular_policy"} == set(strategies["method"])
    assert "tabular" in set(strategies["source"])
    fixed = load_state(models / "day_before.best_fixed.state")
    assert fixed.members
    results = pd.read_parquet(tables / "results.parquet")
    assert {"tabular_policy", "best_fixed"} < set(results["method"])
    for method in ("tabular_policy", "best_fixed"):
        for name in (f"day_before.{method}", f"{method}.meta_training"):
            spent = json.loads((project.data / f"07_model_output/{name}.compute.json").read_text())
            assert spent["forward_tokens"] + spent["backward_tokens"] == spent["tokens"]
            # without a fallback there is nothing to carry out
            nothing = name == "day_before.best_fixed" and not learned["actions"]
            assert (spent["tokens"] > 0) != nothing


def test_the_fallback_is_carried_out_without_a_search(generator):
    frame = splits(1)
    support = take_split(frame, split="support")
    state, spent = execute_strategies(
        settings(), generator, states_of(frame), support, fallback={"actions": [LORA]}, task="one",
        method="best_fixed",
    )  # fmt: skip
    unrefined = executed(generator, frame, [])
    assert bytes_of(state) != bytes_of(unrefined)
    # it is asked a question, since nothing of it was tried
    assert spent["forward_tokens"] > 0


@pytest.mark.parametrize("method", ["tabular_policy", "best_fixed"])
def test_what_learns_from_rollouts_needs_who_makes_them(project, method):
    project.edit("smoke/parameters.yml", methods=["base", method])
    with pytest.raises(ConfigurationError, match=f"{method} learns from degaml's rollouts"):
        graph(project)
