"""The pipelines as a whole, on the tiny random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from kedro.framework.project import pipelines
from kedro.io import DatasetError
from kedro.runner import ParallelRunner

from degaml_kedro.adapters.adapter import average_adapters, load_peft_folder
from degaml_kedro.adapters.scales import TokenScales
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.generator.generator import load_generator
from degaml_kedro.io.datasets import AdapterDataset
from degaml_kedro.io.generators import GeneratorDataset
from degaml_kedro.io.prompt_embeddings import read_prompt_embeddings
from degaml_kedro.io.tokens import TokenScalesDataset, TokensDataset
from degaml_kedro.io.trajectory import Trajectory
from tests.pipelines.helpers import run, run_killed_after_saving

# in one process, so that the reference is made once
pytestmark = pytest.mark.xdist_group("runs")

TASKS = ("kind_member", "day_after", "day_before")
GENERATED = ("generalization_only", "generalization_only_sft", "other_prompts")
FOLD = "without_day_after"
# wall time is the one thing that differs between two runs
COST = ["seconds", "overhead_seconds"]


def numbers(data: Path) -> dict[str, object]:
    """Everything a run made, but for how long it took."""
    made: dict[str, object] = {}
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        name = str(path.relative_to(data))
        if path.name == "run_time.json" or path.name.endswith("policy.md"):
            # they say how long the run and its strategies took
            continue
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
            made[name] = frame.drop(columns=COST, errors="ignore").to_json()
        elif path.suffix == ".json":
            content = _without_cost(json.loads(path.read_text()))
            if "target_modules" in content:
                # PEFT writes a set, in whatever order
                content["target_modules"].sort()
            made[name] = json.dumps(content)
        else:
            made[name] = path.read_bytes()
    return made


def _without_cost(value):
    if isinstance(value, dict):
        return {k: _without_cost(v) for k, v in value.items() if k not in COST}
    return [_without_cost(item) for item in value] if isinstance(value, list) else value


def test_every_layer_is_filled(reference):
    made = set(numbers(reference.data))
    for task in TASKS:
        assert f"01_raw/{task}.parquet" in made
        assert f"02_intermediate/{task}.parquet" in made
        for method in ("base", "no_meta_train", "pooled", "mean_adapter"):
            assert f"07_model_output/{task}.{method}.parquet" in made
            assert f"07_model_output/{task}.{method}.json" in made
    for task in ("kind_member", "day_after"):
        assert f"03_primary/trajectories/{task}/trajectory.safetensors" in made
        assert f"06_models/{task}.final_adapter/adapter_model.safetensors" in made
    assert "06_models/pool.warmup_adapter/adapter_config.json" in made
    assert f"06_models/{FOLD}.pool.warmup_adapter/adapter_config.json" in made
    assert {f"08_reporting/results.{kind}" for kind in ("parquet", "json", "md")} <= made
    for place in ("", f"{FOLD}."):
        assert f"06_models/{place}mean.adapter/adapter_model.safetensors" in made
        assert f"04_feature/{place}token_scales.safetensors" in made
        for task in ("kind_member", "day_after"):
            assert f"04_feature/{place}{task}.tokens.safetensors" in made
        for variant in ("mse", "sft"):
            assert f"06_models/{place}{variant}.generator/generator.safetensors" in made
            assert f"08_reporting/{place}{variant}.generator_steps.parquet" in made
            assert f"08_reporting/{place}{variant}.generator_health.parquet" in made
    for task in TASKS:
        assert f"04_feature/{task}.prompt_embeddings.safetensors" in made
    for method in GENERATED:
        for draw in range(2):
            for made_by in (f"day_before.{method}", f"{FOLD}.day_after.{method}"):
                assert f"06_models/{made_by}.draw_{draw}.adapter/adapter_config.json" in made
        # a generator that has seen a task is not scored on it
        assert f"07_model_output/day_after.{method}.parquet" not in made
    assert not [name for name in made if "partial" in name or "resume" in name]
    # a meta-test task has no trajectory of the meta-train kind
    assert "03_primary/trajectories/day_before/index.json" not in made


def test_results_carry_their_uncertainty_and_their_making(reference):
    record = json.loads((reference.data / "08_reporting/results.json").read_text())
    assert record["profile"] == "smoke"
    assert record["versions"]["torch"]
    # two seen tasks with fifteen methods each, one left out and one of meta-test with all twenty-five
    assert len(record["results"]) == 2 * 15 + 25 + 25
    seen = {"meta_train": {True, None}, "left_out": {False, None}, "meta_test": {False, None}}
    for result in record["results"]:
        assert result["draws"] == (2 if result["method"] in GENERATED else 1)
        assert result["accuracy_spread"] >= 0
        assert result["seen"] in seen[result["pool"]]
        assert result["n"] == 16
        assert result["accuracy_low"] <= result["accuracy"] <= result["accuracy_high"]
        assert 0 <= result["ece"] <= 1
        assert result["group"]
    table = pd.read_parquet(reference.data / "08_reporting/results.parquet")
    assert {pool: set(part["task"]) for pool, part in table.groupby("pool")} == {
        "meta_train": {"kind_member", "day_after"},
        "left_out": {"day_after"},
        "meta_test": {"day_before"},
    }
    predictions = pd.read_parquet(
        reference.data / "07_model_output/day_before.generalization_only.parquet"
    )
    assert list(predictions["draw"].value_counts()) == [16, 16]


def test_splits_are_disjoint_and_as_large_as_asked(reference):
    for task in TASKS:
        frame = pd.read_parquet(reference.data / f"02_intermediate/{task}.parquet")
        assert dict(frame["split"].value_counts()) == {
            "train": 24,
            "support": 4,
            "validation": 4,
            "test": 16,
        }
        assert frame["prompt"].is_unique


def test_trajectories_start_from_the_pooled_warm_up(reference):
    folder = reference.data / "03_primary/trajectories"
    about = [Trajectory(folder / task).about for task in ("kind_member", "day_after")]
    assert about[0]["start"] == about[1]["start"]
    assert Trajectory(folder / "pool").about["start"] != about[0]["start"]
    assert Trajectory(folder / "pool").steps == (3,)
    warm = load_peft_folder(reference.data / "06_models/pool.warmup_adapter")
    last = Trajectory(folder / "pool").last
    assert all((warm.tensors[name] == tensor).all() for name, tensor in last.tensors.items())
    # what leaves a task out starts from a warm-up without it
    fold = [Trajectory(folder / f"{FOLD}.{task}").about for task in ("kind_member", "day_after")]
    assert fold[0]["start"] == fold[1]["start"] != about[0]["start"]


def test_tokens_are_the_checkpoints_and_scales_are_over_what_is_learned_from(reference):
    features = reference.data / "04_feature"
    for name in ("kind_member", "day_after", f"{FOLD}.day_after"):
        trajectory = Trajectory(reference.data / "03_primary/trajectories" / name)
        tokens = TokensDataset(filepath=features / f"{name}.tokens.safetensors").load()
        assert len(tokens) == len(trajectory) == 3
        for index, step in enumerate(trajectory.steps):
            found = tokens.grid.detokenize(tokens.read(index))
            for name, tensor in trajectory.adapter(step).tensors.items():
                assert (found[name] == tensor).all()

    def scales(name: str) -> TokenScales:
        return TokenScalesDataset(filepath=features / f"{name}.safetensors").load()

    fold = TokensDataset(filepath=features / f"{FOLD}.kind_member.tokens.safetensors").load()
    alone = torch.stack([fold.read(index) for index in range(3)])
    mean = scales(f"{FOLD}.token_scales").element_mean
    assert torch.allclose(mean, alone.mean(dim=0), atol=1e-7)
    assert not torch.allclose(scales("token_scales").element_mean, mean, atol=1e-7)


def test_generators_say_what_they_learned_from(reference):
    models = reference.data / "06_models"
    for variant in ("mse", "sft"):
        whole = load_generator(models / f"{variant}.generator")
        fold = load_generator(models / f"{FOLD}.{variant}.generator")
        assert (whole.about["tasks"], whole.about["left_out"]) == (["kind_member", "day_after"], [])
        assert (fold.about["tasks"], fold.about["left_out"]) == (["kind_member"], ["day_after"])
        assert whole.fingerprint != fold.fingerprint
        health = reference.data / f"08_reporting/{FOLD}.{variant}.generator_health.parquet"
        checks = pd.read_parquet(health)
        held_out = checks.groupby("task")["held_out"].unique().to_dict()
        assert held_out == {"kind_member": [False], "day_after": [True]}
    steps = pd.read_parquet(reference.data / "08_reporting/sft.generator_steps.parquet")
    assert steps["mse"].isna().all()
    assert (steps["loss"] == steps["sft"]).all()


def test_adapters_are_drawn_from_the_generator_and_the_support_prompts(reference):
    models = reference.data / "06_models"
    made = load_generator(models / "mse.generator")
    states = read_prompt_embeddings(
        reference.data / "04_feature/day_before.prompt_embeddings.safetensors"
    )
    # eight of train, then four of support
    assert len(states) == 12
    run = "day_before.generalization_only"
    draws = [load_peft_folder(models / f"{run}.draw_{draw}.adapter") for draw in range(2)]
    seed = derive_seed(999, "day_before", "generalization_only")
    for draw, adapter in enumerate(draws):
        again = made.sample(states, seed, draw, range(8, 12))
        assert all((again.tensors[name] == t).all() for name, t in adapter.tensors.items())
    control = load_peft_folder(models / "day_before.other_prompts.draw_0.adapter")
    assert any((control.tensors[name] != t).any() for name, t in draws[0].tensors.items())


def test_the_mean_adapter_is_of_the_tasks_of_its_group(reference):
    models = reference.data / "06_models"
    every = [load_peft_folder(models / f"{t}.final_adapter") for t in ("kind_member", "day_after")]
    mean = AdapterDataset(filepath=models / "mean.adapter").load()
    for name, tensor in average_adapters(every).tensors.items():
        assert (mean.tensors[name] == tensor).all()
    only = load_peft_folder(models / f"{FOLD}.kind_member.final_adapter")
    mean = load_peft_folder(models / f"{FOLD}.mean.adapter")
    assert all((mean.tensors[name] == t).all() for name, t in only.tensors.items())


def test_one_run_with_threads_changes_no_number(threaded, reference):
    assert numbers(threaded.data) == numbers(reference.data)


@pytest.mark.slow
def test_running_in_processes_changes_no_number(copied, reference, monkeypatch):
    """Of what every kind of dataset but rollouts is in; the rest is sent to processes in tests/io."""
    for made in ("04_feature", "06_models/mse.generator", f"06_models/{FOLD}.mse.generator"):
        shutil.rmtree(copied.data / made)
    monkeypatch.setenv("KEDRO_MP_CONTEXT", "spawn")
    run(
        copied,
        "tokenize",
        "generator",
        runner=ParallelRunner(max_workers=2),
        only_missing_outputs=True,
    )
    assert numbers(copied.data) == numbers(reference.data)


def test_a_stage_makes_nothing_of_the_next(reference):
    """From an empty folder, by `kedro run --pipelines` of each in turn."""
    before, made = set[str](), {}
    for stage, files in reference.stages.items():
        made[stage], before = files - before, files
    # what the run was is written down with whatever stage runs first
    made["tasks"].remove("08_reporting/run.json")
    layers = {stage: {name[:2] for name in files} for stage, files in made.items()}
    assert layers["tasks"] == {"01", "02"}
    assert layers["checkpoints"] == {"03", "06"}
    assert layers["tokenize"] == {"04"}
    assert "06_models/mse.generator/generator.json" in made["generator"]
    assert "06_models/policy_2.adapter/adapter_config.json" in made["policy"]
    assert "07_model_output/day_before.metaicl.parquet" in made["baselines"]
    assert "07_model_output/day_before.degaml.json" in made["evaluate"]
    assert not [name for name in before - made["evaluate"] if name.endswith("degaml.json")]


def test_what_is_missing_is_made_again_and_the_rest_is_left(copied, reference):
    project = copied
    missing = (
        "03_primary/trajectories/day_after/index.json",
        "04_feature/day_before.prompt_embeddings.safetensors",
        f"06_models/{FOLD}.mse.generator/generator.json",
        "08_reporting/results.md",
    )
    for name in missing:
        (project.data / name).unlink()
    kept = [project.data / "07_model_output/day_before.base.parquet"]
    kept += [project.data / "06_models/mse.generator/generator.safetensors"]
    stamps = [path.stat().st_mtime_ns for path in kept]
    run(project, only_missing_outputs=True)
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    assert numbers(project.data) == numbers(reference.data)


def test_a_killed_generator_training_goes_on_where_it_rested(
    copied, reference, monkeypatch, caplog
):
    folder = copied.data / "06_models/mse.generator"
    shutil.rmtree(folder)
    run_killed_after_saving(copied, monkeypatch, GeneratorDataset, only_missing_outputs=True)
    assert not folder.exists()
    assert folder.with_name("mse.generator.resume.safetensors").is_file()
    caplog.set_level("INFO")
    run(copied, only_missing_outputs=True)
    assert "goes on after step 2" in caplog.text
    assert numbers(copied.data) == numbers(reference.data)


def test_a_truncated_file_of_prompt_states_stops_the_run_with_a_way_out(copied):
    path = copied.data / "04_feature/day_before.prompt_embeddings.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    (copied.data / "06_models/day_before.other_prompts.draw_0.adapter/adapter_config.json").unlink()
    shutil.rmtree(copied.data / "06_models/day_before.generalization_only.draw_1.adapter")
    with pytest.raises(
        DatasetError, match="truncated or damaged.*delete it, then `kedro run --only"
    ):
        run(copied, only_missing_outputs=True)


def test_another_seed_gives_other_examples(project, reference):
    run(project, "tasks", seed=1)
    name = "01_raw/day_after.parquet"
    assert numbers(project.data)[name] != numbers(reference.data)[name]


def test_changed_training_starts_over(copied, caplog):
    phases = [{"steps": 2, "learning_rate": 0.01}]
    run(copied, "checkpoints", trajectory={"training": {"phases": phases}})
    assert "made with other settings" in caplog.text
    assert len(Trajectory(copied.data / "03_primary/trajectories/day_after")) == 2


def test_a_trajectory_serves_as_no_meta_train_where_it_is_the_same_run(project):
    project.edit("smoke/parameters.yml", trajectory={"start": "shared_random"})
    training = {"phases": [{"steps": 3, "learning_rate": 1e-3}], "batch_size": 4}
    project.edit("smoke/parameters.yml", trajectory={"training": training}, no_meta_train=training)
    project.edit("smoke/parameters.yml", methods=["no_meta_train"])
    run(project)
    made = set(numbers(project.data))
    assert "06_models/day_after.no_meta_train.adapter/adapter_config.json" not in made
    assert "06_models/day_before.no_meta_train.adapter/adapter_config.json" in made
    assert not [name for name in made if "pool" in name]


def test_pipelines_follow_the_configuration(project):
    with project.session() as session:
        session.load_context()
    names = {node.name for node in pipelines["__default__"].nodes}
    assert "checkpoints.day_after.train_trajectory" in names
    assert "checkpoints.pool.train_on_pool" in names
    assert "evaluate.day_before.predict_base" in names
    project.edit("smoke/parameters.yml", meta_test=[], methods=["base"])
    project.edit("smoke/parameters.yml", trajectory={"start": "shared_random"})
    with project.session() as session:
        session.load_context()
    names = {node.name for node in pipelines["__default__"].nodes}
    assert not [name for name in names if "day_before" in name or "pool" in name]
    # no method needs a generator: nothing of it is made
    unwanted = ("tokenize", "generator", "policy", "baselines")
    assert not [name for name in names if name.startswith(unwanted)]
    stages = {
        "tasks",
        "checkpoints",
        "tokenize",
        "generator",
        "policy",
        "baselines",
        "evaluate",
        "report",
        "__default__",
    }
    assert set(pipelines) == stages
    # no method is a baseline: by its name the pipeline runs those that are set, on the tasks there are
    alone = {node.name for node in pipelines["baselines"].nodes}
    assert "baselines.search.icl.choose" in alone
    assert "baselines.day_after.predict_abmll" in alone
    assert not [name for name in alone if "day_before" in name]
    # a report is of what is on disk, of one run or of several: it is no part of a run
    assert not [name for name in names if name.startswith("report")]


def test_everything_that_a_run_makes_is_kept(project):
    with project.session() as session:
        catalog = session.load_context().catalog
        made = pipelines["__default__"].all_outputs()
    assert not [name for name in sorted(made) if name not in catalog]


def test_a_generator_is_trained_for_every_group_and_variant_that_a_method_needs(project):
    def trained() -> set[str]:
        with project.session() as session:
            session.load_context()
        names = {node.name for node in pipelines["__default__"].nodes}
        return {name for name in names if name.startswith("generator.train")}

    every = {f"generator.train_{v}_{g}" for v in ("mse", "sft", "examples") for g in ("all", FOLD)}
    assert trained() == every
    project.edit("smoke/parameters.yml", methods=["base", "other_prompts_sft"])
    assert trained() == {f"generator.train_sft_{g}" for g in ("all", FOLD)}
    project.edit("smoke/parameters.yml", generator={"leave_out": []})
    assert trained() == {"generator.train_sft_all"}
