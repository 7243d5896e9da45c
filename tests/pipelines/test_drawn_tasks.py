"""A run whose tasks are drawn from distributions, from end to end on a tiny random model."""

from __future__ import annotations

import json

import pandas as pd

from degaml_kedro.config.schema import EpisodeSource, SuiteDistribution
from degaml_kedro.pipelines.checkpoints.nodes import drawn_episodes
from degaml_kedro.tasks.episodes import episode_examples

SIZES = {"train": 8, "support": 6, "validation": 4, "test": 6}
WRITER = {"kind": "associative", "depths": [0.5], "rank": 4, "metric_rank": 2}
EPISODES = {"mse": 0.0, "sft": 1.0, "batch_size": 1, "support": [4, 6]}


def test_a_few_tasks_come_in_turn_with_other_examples():
    distribution = SuiteDistribution(kind="suite")
    draw = drawn_episodes(distribution, 999, tasks=2, most=6)
    episodes = [draw(number, 4 + 2 * (number % 2), 5) for number in range(6)]
    assert [len(support) for support, _ in episodes] == [4, 6, 4, 6, 4, 6]

    def answers(number: int) -> set[str]:
        return {option for part in episodes[number] for one in part for option in one.options}

    for place in (0, 1):
        turns = [{one.prompt for part in episodes[n] for one in part} for n in (place, place + 2)]
        assert turns[0] != turns[1]
    # a classification's options are its labels: they tell which task it is
    labels = [(n, answers(n)) for n in range(6) if len(answers(n)) < 7]
    assert labels
    assert all(found == answers(n % 2) for n, found in labels)
    assert drawn_episodes(distribution, 999)(0, 4, 5) != drawn_episodes(distribution, 999)(2, 4, 5)


def test_a_run_on_drawn_tasks(project):
    held = {"kind": "suite", "pool": "development", "splits": SIZES}
    project.edit(
        "smoke/parameters.yml",
        distributions={
            "drawn": {"kind": "suite", "splits": SIZES},
            "new_rules": {**held, "unseen": "rules"},
            "new_labels": {**held, "unseen": "labels", "labels": [2, 3]},
        },
        meta_train={"distribution": "drawn", "trajectory_tasks": 2, "rollout_tasks": 2},
        development={"new_labels": 1},
        meta_test={"new_rules": 2, "new_labels": 2},
        warmup={"context_share": 0.5, "shots": 4, "context_queries": 2},
        generator={
            "leave_out": [],
            "variants": {"untrained": {"decoder": WRITER, "training": {**EPISODES, "steps": 0}}},
        },
        policy={"iterations": 2},
        baselines={"score_seen": False},
        methods=[
            *("base", "pooled", "union_train", "metaicl", "maml_en_llm", "degaml"),
            "generalization_only_untrained",
        ],
    )
    with project.session() as session:
        session.run()
    data = project.data
    results = pd.read_parquet(data / "08_reporting" / "results.parquet")
    asked = ["new_rules_001", "new_rules_002", "new_labels_001", "new_labels_002"]
    methods = ("base", "union_train", "metaicl", "maml_en_llm", "degaml")
    for method in (*methods, "generalization_only_untrained"):
        found = results[(results["method"] == method) & (results["pool"] == "meta_test")]
        assert list(found["task"]) == asked
        assert found["drawn"].all()
        assert (found["n"] == 6).all()
    table = (data / "08_reporting" / "results.md").read_text()
    assert "new_labels" in table
    assert "new_labels_001" not in table

    # the catalog keeps what was drawn, and the examples follow from it
    record = json.loads((data / "08_reporting" / "run.json").read_text())
    kept = record["parameters"]["tasks"]["new_labels_001"]["source"]
    source = EpisodeSource.model_validate(kept)
    examples = pd.read_parquet(data / "01_raw" / "new_labels_001.parquet")
    again = episode_examples(source, SIZES)
    assert list(examples.loc[examples["split"] == "test", "prompt"]) == [
        example.prompt for example in again["test"]
    ]
    episodes = pd.read_parquet(data / "02_intermediate" / "pool.episodes.parquet")
    assert set(episodes["step"]) == {1, 2, 3}
    assert {"form", "subject", "classes", "labels", "seed"} <= set(episodes)
    # the second iteration of the policy rolls out tasks that the first one did not
    rolled_out = pd.read_parquet(data / "08_reporting" / "policy_rollouts.parquet")
    assert {k: set(rows["task"]) for k, rows in rolled_out.groupby("iteration")} == {
        1: {"drawn_001", "drawn_002"},
        2: {"drawn_003", "drawn_004"},
    }
    assert not (data / "03_primary" / "trajectories" / "drawn_003").exists()
    # settings were chosen on a task that is in no pool
    tuned = json.loads((data / "06_models" / "metaicl.settings.json").read_text())
    assert {row["task"] for row in tuned["rows"]} == {"tuning_new_labels_001"}
