"""Questions without options: a whole run in which every method and every strategy writes its answers."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml

from degaml_kedro.llm.extraction import extract_number
from degaml_kedro.tasks.splits import frame_to_splits
from tests.conftest import Project
from tests.pipelines.helpers import run

# a minute: the pipelines' own work, mostly
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("runs")]

RULES = {"sums": lambda n: n + 1000, "doubles": lambda n: 2 * n, "halves": lambda n: n / 2}
FAMILIES = {"ttt", "lora", "ls", "tts", "sft", "context", "written", "ensemble"}


def write_tasks(project: Project) -> None:
    """Files of questions and answers."""
    project.data.mkdir(parents=True, exist_ok=True)
    for name, rule in RULES.items():
        rows = [
            {"question": f"How much is {n} by {name}?", "answer": f"It is {rule(n):,}."}
            for n in range(20)
        ]
        path = project.data / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))


def smallest_run(project: Project) -> list[str]:
    """The smoke profile on these files, with answers that are written; its methods."""
    smoke = yaml.safe_load((project.conf / "smoke/parameters.yml").read_text())
    methods = [name for name in smoke["methods"] if name != "sentence_head"]
    context = {"shots": [1, 2], "order": ["given"]}
    policy = {
        "families": {
            "context": context,
            "ensemble": {"members": [2, 2], "weights": ["fitted"]},
        },
        "rollouts": {"count": 7, "at_once": 7, "examples": 2},
        "exploration": 1.0,
        "search": {"rounds": 1, "proposals": 3},
        "oracle_candidates": 1,
    }
    project.edit(
        "smoke/parameters.yml",
        tasks=dict.fromkeys(smoke["tasks"]),
        methods=methods,
        meta_train=["sums", "doubles"],
        meta_test=["halves"],
        scoring={"mode": "generate", "extraction": "number", "max_new_tokens": 4},
        splits={"train": 8, "support": 4, "validation": 2, "test": 4},
        generator={"leave_out": [], "draws": 1},
        policy=policy,
        baselines={"score_seen": False},
    )
    entry = {"description": "Name the number.", "source": {"kind": "file", "open_answers": True}}
    for name in RULES:
        entry["source"] = {**entry["source"], "path": str(project.data / f"{name}.jsonl")}
        project.edit("smoke/parameters.yml", tasks={name: entry})
    return methods


def test_every_method_and_strategy_writes_its_answers(project):
    write_tasks(project)
    methods = smallest_run(project)
    run(project)
    # asked for by name, the pipeline runs what is no method of this run, too
    run(project, "baselines", "report", only_missing_outputs=True)
    made = project.data
    test = frame_to_splits(pd.read_parquet(made / "02_intermediate/halves.parquet")).test
    right = [extract_number(example.response) for example in test]
    for method in methods:
        found = pd.read_parquet(made / f"07_model_output/halves.{method}.parquet")
        said = [extract_number(text) for text in found["text"]]
        assert [row == 0 for row in found["predicted"].fillna(-1)] == [
            one == other for one, other in zip(said, right, strict=True)
        ]
        assert [one is None for one in said] == found["predicted"].isna().tolist()
        result = json.loads((made / f"07_model_output/halves.{method}.json").read_text())
        assert (result["chance"], result["nll"], result["n"]) == (0.0, None, 4)
    every = (pd.read_parquet(path) for path in made.rglob("*.rollouts.parquet"))
    tried = pd.concat(every, ignore_index=True)
    # an ensemble needs two of those before it that made one adapter each
    failed = tried[tried["error"].notna()]
    assert failed["error"].str.contains("it needs 2 candidates").all()
    done = tried.drop(failed.index)
    assert set(done["family"]) == FAMILIES
    assert done["log_probability_after"].lt(0).all()
