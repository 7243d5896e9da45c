"""The pair that ships: made from a run, measured with the weights that it has, and small."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from degaml_kedro.checkpoint import shipping
from degaml_kedro.checkpoint.folder import read_files, read_pair
from degaml_kedro.checkpoint.hub import SHIPPED, load_trained_pair
from degaml_kedro.checkpoint.layout import CheckpointError
from degaml_kedro.checkpoint.shipping import (
    MAX_BYTES,
    MeanAccuracy,
    measure_pair,
    ship,
)
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.folders import FolderError
from degaml_kedro.llm.base_model import load_base_model
from tests.checkpoint.helpers import tiny_pair, tiny_parameters, write_run, write_tiny_pair


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "data")


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "pair"
    return ship(run, folder), folder


def test_a_pair_is_made_from_a_run(made):
    pair, folder = made
    assert pair.name == shipping.NAME
    assert pair.generator.about["stored_as"] == "bfloat16"
    again = read_pair(folder)
    assert again.generator.fingerprint == pair.generator.fingerprint
    assert again.settings == tiny_pair().settings


def test_the_same_run_gives_the_same_bytes(run, made, tmp_path):
    ship(run, tmp_path / "pair")
    names = sorted(path.relative_to(made[1]) for path in made[1].rglob("*") if path.is_file())
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "pair" / name).read_bytes() == (made[1] / name).read_bytes(), name


def test_the_card_says_what_it_is(run, made):
    pair, folder = made
    card = (folder / "README.md").read_text()
    for text in (
        pair.base_model_fingerprint,
        pair.generator.fingerprint,
        "license: apache-2.0",
        "make shipped",
        "n = 8 questions",
        "from 4 unlabelled questions, mean over 2 draws",
        # what the run measured: 3 of 8
        "0.38 (0.14–0.69)",
        "| day_after |",
    ):
        assert text in card, text
    for name, file in read_files(folder).items():
        assert f"`{name}`: {file.bytes:,} bytes, SHA-256 `{file.sha256}`" in card
    assert "None" not in card
    assert str(run) not in card


def test_the_card_has_the_pair_s_own_accuracies(run, made):
    pair, folder = made
    (measured,) = measure_pair(pair, run, tiny_parameters())
    (row,) = [
        line for line in (folder / "README.md").read_text().splitlines() if "| day_after" in line
    ]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["day_after", "0.25", *(score.text for score in measured.scores.values())]


def test_a_pair_is_measured_by_its_own_weights(run):
    found = [measure_pair(tiny_pair(seed), run, tiny_parameters())[0] for seed in range(4)]
    assert all(one.scores["generated, as trained"].n == 8 for one in found)
    # of two draws over eight questions
    assert all((16 * one.scores["generated"].accuracy) % 1 == 0 for one in found)
    assert len({one.scores["generated"].accuracy for one in found}) > 1


def test_a_pair_that_came_meanwhile_is_not_replaced(run, tmp_path, monkeypatch):
    def meanwhile(*given):
        write_tiny_pair(tmp_path / "pair")
        return measure_pair(*given)

    monkeypatch.setattr(shipping, "measure_pair", meanwhile)
    with pytest.raises(FolderError, match="/pair is there by now"):
        ship(run, tmp_path / "pair")
    assert read_pair(tmp_path / "pair").name == "tiny"


def test_an_accuracy_as_text():
    assert MeanAccuracy(0.8, 10).text == "0.80 (0.49–0.94)"


def test_what_is_too_large_is_refused_and_the_earlier_pair_stays(run, made, tmp_path, monkeypatch):
    folder = shutil.copytree(made[1], tmp_path / "pair")
    before = read_files(folder)
    monkeypatch.setattr(shipping, "MAX_BYTES", 1000)
    with pytest.raises(
        CheckpointError, match=r"MB as bfloat16, and at most .*generator\.safetensors"
    ):
        ship(run, folder)
    assert read_files(folder) == before


@pytest.mark.parametrize(
    "name",
    [
        "02_intermediate/day_after.parquet",
        "04_feature/day_after.prompt_embeddings.safetensors",
        "07_model_output/day_after.degaml.json",
        "06_models/policy/adapter_config.json",
        "08_reporting/run.json",
    ],
)
def test_a_run_that_is_not_whole_is_refused(run, tmp_path, name):
    folder = shutil.copytree(run, tmp_path / "data")
    (folder / name).unlink()
    with pytest.raises(DegamlError, match="kedro run"):
        ship(folder, tmp_path / "pair")
    assert not (tmp_path / "pair").exists()


def test_a_run_without_new_tasks_is_refused(tmp_path):
    folder = write_run(tmp_path / "data", meta_test=[])
    with pytest.raises(CheckpointError, match="has no meta-test tasks"):
        ship(folder, tmp_path / "pair")


def test_the_command(run, tmp_path, monkeypatch, capsys):
    arguments = [str(run), "--out", str(tmp_path / "pair"), "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", ["shipping", *arguments])
    shipping.main()
    total = sum(file.bytes for file in read_files(tmp_path / "pair").values())
    assert f"{total:,} bytes in all" in capsys.readouterr().out
    assert "stored_as" not in read_pair(tmp_path / "pair").generator.about
    monkeypatch.setattr(sys, "argv", ["shipping", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"run\.json") as stopped:
        shipping.main()
    assert stopped.value.code != 0


# --- the one that ships ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return load_trained_pair()


def test_the_shipped_pair_is_small_and_whole(shipped):
    sizes = {path: path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= MAX_BYTES
    assert {path.suffix for path in sizes} == {".json", ".safetensors", ".md"}
    assert shipped.policy is not None
    assert shipped.settings.model.source.kind == "package"


def test_the_shipped_pair_is_that_of_the_configuration(shipped):
    about = shipped.generator.about
    assert about["tasks"] == shipped.about["tasks"]
    assert (shipped.about["profile"], about["stored_as"]) == ("shipped", "bfloat16")
    content = json.loads((SHIPPED / "generator" / "generator.json").read_text())
    assert (content["records"], content["checks"]) == ([], [])


def test_the_shipped_card_is_of_these_files(shipped):
    card = (SHIPPED / "README.md").read_text()
    for file in read_files(SHIPPED).values():
        assert file.sha256 in card
    assert shipped.generator.fingerprint in card
    for place in ("/work", "/tmp", "/home"):
        for path in SHIPPED.rglob("*.*"):
            if path.suffix in (".json", ".md"):
                assert place not in path.read_text(), (path, place)


@pytest.mark.slow
def test_the_shipped_pair_fits_the_embedded_model(shipped):
    base = load_base_model(shipped.settings.model)
    shipped.generator.check_base_model(base.name, base.fingerprint)
    assert base.activate_adapter(shipped.policy) is not None
