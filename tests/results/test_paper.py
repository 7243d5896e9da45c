"""The paper's numbers."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
import yaml

from degaml_kedro.results import paper
from degaml_kedro.results.measures import ResultsError
from degaml_kedro.results.paper import (
    AVERAGE,
    BENCHMARKS,
    differing_averages,
    matching_profile,
    paper_results,
    paper_source,
    paper_table,
)

CONF = Path(__file__).parents[2] / "conf"


def test_tables_are_as_printed():
    small = paper_table("Qwen2.5-0.5B-Instruct", "in_domain")
    assert list(small.columns) == [
        "ARC-c",
        "ARC-e",
        "HellaSwag",
        "BoolQ",
        "PIQA",
        "WinoGrande",
        AVERAGE,
    ]
    assert small.loc["maml_en_llm", "PIQA"] == 67.7
    assert small.loc["degaml", AVERAGE] == 58.4
    large = paper_table("Qwen2.5-1.5B-Instruct", "out_of_domain")
    assert large.loc["base", "GSM-8K"] == 51.8
    # the paper has no such row there
    assert "no_meta_train" not in large.index
    assert not large.isna().any(axis=None)


def test_averages_stand_as_printed_and_differing_ones_are_named():
    model = "Qwen2.5-0.5B-Instruct"
    assert paper_table(model, "out_of_domain").loc["union_train", AVERAGE] == 29.9
    found = differing_averages(model, "out_of_domain")
    assert found == pytest.approx({"union_train": 23.65, "generalization_only": 23.3667}, abs=0.001)
    assert differing_averages(model, "in_domain") == {}
    assert set(differing_averages("Qwen2.5-1.5B-Instruct", "out_of_domain")) == {"union_train"}


def test_the_source_names_the_paper_and_its_tables():
    source = paper_source()
    assert "Decoupling Generalization and Adaptation" in source.line
    assert source.line.endswith("Tables 1 and 2")
    methods = {
        method
        for settings in paper_results().models.values()
        for rows in settings.values()
        for method in rows
    }
    assert set(source.rows) == methods
    assert set(source.rows.values()) == set(source.tables)
    assert (
        "shared"
        not in resources.files(paper.__package__).joinpath("paper_results.json").read_text()
    )


def test_our_tasks_are_the_papers_benchmarks():
    columns = {
        name
        for setting in ("in_domain", "out_of_domain")
        for name in paper_table("Qwen2.5-1.5B-Instruct", setting).columns
    }
    assert set(BENCHMARKS.values()) == columns - {AVERAGE}
    hub = yaml.safe_load((CONF / "base" / "parameters_hub_tasks.yml").read_text())
    variants = {"gsm8k_options", "math_options", "piqa_options"}  # of our own name
    assert set(BENCHMARKS) == set(hub["tasks"]) - variants


@pytest.mark.parametrize("profile", ["paper_0_5b", "paper_1_5b"])
def test_a_papers_profile_matches_its_model(profile):
    parameters = yaml.safe_load((CONF / profile / "parameters.yml").read_text())
    model = matching_profile(parameters["profile"])
    assert parameters["model"]["source"]["id"] == f"Qwen/{model}"
    assert model in paper_results().models


def test_what_the_paper_does_not_have():
    assert matching_profile("adaptation") is None
    with pytest.raises(ResultsError, match=r"no results of gpt2.*Qwen2\.5-1\.5B-Instruct"):
        paper_table("gpt2", "in_domain")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows["base"].update({"ARC-c": 101.0}), "does not hold the paper's results"),
        (lambda rows: rows["base"].pop("PIQA"), "different columns"),
    ],
)
def test_a_damaged_file_says_what_to_do(tmp_path, monkeypatch, change, words):
    file = resources.files(paper.__package__).joinpath("paper_results.json")
    content = json.loads(file.read_text("utf-8"))
    change(content["models"]["Qwen2.5-0.5B-Instruct"]["in_domain"])
    (tmp_path / "paper_results.json").write_text(json.dumps(content))
    monkeypatch.setattr(paper.resources, "files", lambda _: tmp_path)
    with pytest.raises(ResultsError, match=words):
        paper_results.__wrapped__()
