"""The paper's numbers."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import yaml

from degaml_kedro.results import paper
from degaml_kedro.results.paper import (
    AVERAGE,
    BENCHMARKS,
    PROFILES,
    differing_averages,
    paper_results,
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


def test_the_file_holds_whole_tables_and_names_their_source():
    source, models = paper_results()["source"], paper_results()["models"]
    assert "Decoupling Generalization and Adaptation" in source["title"]
    assert list(source["tables"]) == ["1", "2"]
    assert set(source["rows"].values()) == set(source["tables"])
    for settings in models.values():
        assert set(settings) == {"in_domain", "out_of_domain"}
        for methods in settings.values():
            # a method's row has the columns of the others, and percentages
            (columns,) = {tuple(row) for row in methods.values()}
            assert columns[-1] == AVERAGE
            assert all(0 <= value <= 100 for row in methods.values() for value in row.values())
            assert set(methods) <= set(source["rows"])
    file = resources.files(paper.__package__).joinpath("paper_results.json")
    assert "shared" not in file.read_text()


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
    own = yaml.safe_load((CONF / profile / "globals.yml").read_text())
    model = PROFILES[own["profile"]]
    assert own["base_model"] == f"Qwen/{model}"
    assert model in paper_results()["models"]
