"""A pair by every kind of source, and a sentence for every source that is none."""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from degaml_kedro.checkpoint import hub as sources
from degaml_kedro.checkpoint.folder import PAIR_FILES
from degaml_kedro.checkpoint.hub import load_trained_pair
from degaml_kedro.checkpoint.layout import CARD_FILE, CheckpointError
from tests.checkpoint.helpers import (
    is_tiny,
    tiny_parameters,
    write_json,
    write_run,
    write_tiny_pair,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "data")


# --- on this machine ------------------------------------------------------------------------------


def test_a_pair_s_folder_as_text_and_as_path(tmp_path, monkeypatch):
    write_tiny_pair(tmp_path / "own" / "pair")
    assert is_tiny(load_trained_pair(tmp_path / "own" / "pair"))
    # it looks like a hub id, and the folder comes first
    monkeypatch.chdir(tmp_path)
    found = load_trained_pair("own/pair")
    assert is_tiny(found)
    assert found.source == "own/pair"


def test_nothing_is_the_pair_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SHIPPED", write_tiny_pair(tmp_path / "pair"))
    found = load_trained_pair()
    assert is_tiny(found)
    assert found.source == "the pair that comes with the package"
    monkeypatch.setattr(sources, "SHIPPED", tmp_path / "nowhere")
    with pytest.raises(
        CheckpointError, match="came without its trained pair; install the package again"
    ):
        load_trained_pair()


def test_a_run_s_data_folder(run):
    found = load_trained_pair(run)
    assert is_tiny(found)
    assert found.name == "tests, seed 7"
    assert found.about == {
        "tasks": ["day_after"],
        "version": "0.0.0",
        "seed": 7,
        "profile": "tests",
        "variant": "mse",
    }


def test_a_run_that_names_its_policy_s_generator(tmp_path):
    policy = {**tiny_parameters()["policy"], "variant": "other"}
    folder = write_run(tmp_path / "data", policy=policy)
    with pytest.raises(CheckpointError, match=r"other\.generator is not a generator's folder"):
        load_trained_pair(folder)
    (folder / "06_models" / "mse.generator").rename(folder / "06_models" / "other.generator")
    assert load_trained_pair(folder).about["variant"] == "other"


def test_the_parameters_of_the_results_where_there_is_no_record(tmp_path):
    folder = write_run(tmp_path / "data")
    reporting = folder / "08_reporting"
    (reporting / "run.json").rename(reporting / "results.json")
    assert is_tiny(load_trained_pair(folder))
    (reporting / "results.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"run\.json, which holds the run's parameters, is missing"
    ):
        load_trained_pair(folder)
    (reporting / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read"):
        load_trained_pair(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"policy": None}, "have no 'policy', so it trained none"),
        ({"generator": None}, "have no 'generator', so it trained none"),
        ({"prompt": None}, r"does not say .* \(prompt: Field required"),
        ({"scoring": {"mode": "telepathy"}}, r"that this version reads \(scoring\.mode"),
    ],
)
def test_a_run_whose_parameters_make_no_pair(run, tmp_path, changes, told):
    folder = shutil.copytree(run, tmp_path / "data")
    write_json(
        folder / "08_reporting" / "run.json", {"parameters": {**tiny_parameters(), **changes}}
    )
    with pytest.raises(CheckpointError, match=told):
        load_trained_pair(folder)


def test_a_run_without_a_policy(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "data")
    shutil.rmtree(folder / "06_models" / "policy")
    with pytest.raises(
        CheckpointError, match=r"06_models/policy.*name a run with the method degaml"
    ):
        load_trained_pair(folder)


def test_several_runs_are_named(tmp_path):
    for seed in (1, 2):
        (tmp_path / f"seed_{seed}" / "06_models").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"several runs \(seed_1, seed_2\)"):
        load_trained_pair(tmp_path)


def test_a_folder_that_is_neither(tmp_path):
    with pytest.raises(CheckpointError, match=r"no pair\.json and no 06_models; give a folder"):
        load_trained_pair(tmp_path)


@pytest.mark.parametrize(
    "source",
    ["", " ", "a" * 5000, "a\0b", "nowhere", "/no/where", "./a/b", "a/b/c", "hf://a", "a/b c"],
)
def test_an_unknown_source_lists_the_forms(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_trained_pair(source)
    for form in ("06_models", "models:/", "hf://", "the package"):
        assert form in str(caught.value)


def test_options_of_other_sources_are_refused(tmp_path):
    folder = write_tiny_pair(tmp_path / "pair")
    for source in (folder, None, "models:/degaml-pair/1"):
        with pytest.raises(CheckpointError, match="only pairs of the Hugging Face hub have one"):
            load_trained_pair(source, revision="main")


# --- the hub --------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has one repository; says what it was asked for."""
    asked = []
    snapshot = write_tiny_pair(tmp_path / "cache" / COMMIT, writer=True)

    def download(repo_id, **options):
        asked.append((repo_id, options))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return snapshot, asked


@pytest.mark.parametrize(
    ("source", "revision", "wanted"),
    [
        ("some-one/a.pair", None, None),
        ("hf://some-one/a.pair", None, None),
        ("some-one/a.pair", "v1", "v1"),
        ("hf://some-one/a.pair@v1/x", None, "v1/x"),
        (f"some-one/a.pair@{COMMIT}", COMMIT, COMMIT),
    ],
)
def test_only_the_pair_s_files_are_fetched_and_the_commit_is_told(hub, source, revision, wanted):
    found = load_trained_pair(source, revision=revision)
    assert is_tiny(found)
    assert found.source == f"hf://some-one/a.pair@{COMMIT}"
    ((repository, options),) = hub[1]
    assert repository == "some-one/a.pair"
    assert options["revision"] == wanted
    assert options["allow_patterns"] == [*PAIR_FILES, CARD_FILE]


def test_two_revisions_are_refused(hub):
    with pytest.raises(CheckpointError, match="names the revision v1, and `revision` is v2"):
        load_trained_pair("hf://a/b@v1", revision="v2")
    assert not hub[1]


def test_whatever_else_a_repository_brings_is_left_alone(hub, monkeypatch):
    snapshot, _ = hub
    for name in ("evil.pkl", "policy/adapter_model.bin", "generator/modeling.py", "setup.py"):
        (snapshot / name).write_bytes(b"\x80\x04\x95")
    copied, copy = [], shutil.copyfile

    def seen(real, target):
        copied.append(Path(real).relative_to(snapshot).as_posix())
        return copy(real, target)

    monkeypatch.setattr(sources.shutil, "copyfile", seen)
    assert is_tiny(load_trained_pair("a/b"))
    assert sorted(copied) == sorted(PAIR_FILES)


def test_a_repository_that_is_no_pair(hub):
    (hub[0] / "pair.json").unlink()
    with pytest.raises(CheckpointError, match=rf"hf://a/b@{COMMIT} is not a trained pair"):
        load_trained_pair("a/b")


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "http://hub.invalid/a/b"))


@pytest.mark.parametrize(
    "error",
    [
        RepositoryNotFoundError("no such\npair", response=answer(404)),
        GatedRepoError("no such pair", response=answer(403)),
        LocalEntryNotFoundError("no such pair"),
        ConnectionError("no such\npair"),
        HFValidationError("no such pair"),
    ],
)
def test_what_goes_wrong_at_the_hub_is_told_with_the_ways_out(monkeypatch, tmp_path, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_trained_pair("a/b")
    told = "hf://a/b cannot be fetched, and there is no folder 'a/b' here (no such pair"
    assert str(caught.value).startswith(told)
    assert {"revision", "login`", "HF_HUB_OFFLINE"} <= set(re.findall(r"[\w`]+", str(caught.value)))


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The hub client's own cache, with one repository in it, and no way out."""
    repository = tmp_path / "hub" / "models--some--pair"
    written = write_tiny_pair(tmp_path / "written", writer=True)
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    blobs.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for number, name in enumerate([*PAIR_FILES, CARD_FILE]):
        shutil.copyfile(written / name, blobs / str(number))
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blobs / str(number), (snapshot / name).parent))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return repository


def test_the_real_client_offline_from_its_cache(cache):
    for source in ("some/pair", f"hf://some/pair@{COMMIT}"):
        found = load_trained_pair(source)
        assert is_tiny(found)
        assert found.source == f"hf://some/pair@{COMMIT}"


@pytest.mark.usefixtures("cache")
def test_one_pair_read_by_several_threads_at_once():
    with ThreadPoolExecutor(4) as pool:
        assert all(map(is_tiny, pool.map(load_trained_pair, ["some/pair"] * 8)))


def test_the_real_client_offline_without_it(cache):
    with pytest.raises(CheckpointError, match="hf://some/other cannot be fetched"):
        load_trained_pair("some/other")
    with pytest.raises(CheckpointError, match="hf://some/pair@v9 cannot be fetched"):
        load_trained_pair("some/pair", revision="v9")


def test_a_cache_that_links_elsewhere(cache, tmp_path):
    link = cache / "snapshots" / COMMIT / "pair.json"
    shutil.copyfile(link, tmp_path / "outside.json")
    link.unlink()
    link.symlink_to(tmp_path / "outside.json")
    with pytest.raises(CheckpointError, match="'pair.json' is a link out of the folder"):
        load_trained_pair("some/pair")
