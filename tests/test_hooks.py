"""What happens before and after a run."""

from __future__ import annotations

import json

import pytest

from degaml_kedro.config.loader import ConfigurationError
from tests.pipelines.helpers import run

pytestmark = pytest.mark.xdist_group("runs")


def test_bad_parameters_stop_a_run_before_anything_is_written(project):
    project.edit("smoke/parameters.yml", lora={"rank": 0})
    with pytest.raises(ConfigurationError, match=r"lora\.rank is 0"):
        run(project)
    assert not project.data.exists()


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        ({"tttt": {"ttl_steps": [1, 2]}}, "policy.families.tttt: there is none of that name"),
        ({"ttt": {"steps": [1, 2]}}, "policy.families.ttt.steps: there is none of that name"),
        ({"ttt": {"ttl_steps": [0, 2]}}, "policy.families.ttt.ttl_steps has the bound 0"),
    ],
    ids=["family", "field", "bound"],
)
def test_strategies_that_there_are_not_stop_a_run_before_anything_is_written(
    families, expected, project
):
    project.edit("smoke/parameters.yml", policy={"families": families})
    with pytest.raises(ConfigurationError) as caught:
        run(project)
    assert expected in str(caught.value)
    assert not project.data.exists()


def test_strategies_do_not_matter_where_no_method_needs_them(project):
    project.edit(
        "smoke/parameters.yml", methods=["base"], policy={"families": {"tttt": {"one": [1, 2]}}}
    )
    with project.session() as session:
        session.load_context()


def test_a_finished_run_shows_the_table_and_where_to_look(project, capsys):
    project.edit("smoke/parameters.yml", methods=["base"])
    run(project)
    shown = capsys.readouterr().out
    assert "| task " in shown
    assert "day_before" in shown
    assert "make mlflow" in shown
    assert str(project.data / "07_model_output") in shown


def test_a_run_says_how_many_nodes_of_each_stage_it_has_and_what_the_last_whole_one_took(
    project, caplog, monkeypatch
):
    project.edit("smoke/parameters.yml", methods=["base"])

    def said(*names, **how):
        caplog.clear()
        run(project, *names, **how)
        return [r.getMessage() for r in caplog.records if r.name == "degaml_kedro.hooks"]

    caplog.set_level("INFO")
    every = "20 of 20 nodes to run: tasks 7, checkpoints 6, evaluate 7"
    assert said() == [every]
    file = project.data / "08_reporting/run_time.json"
    took = json.loads(file.read_text())
    assert took["nodes"] == 20
    assert 0 < took["seconds"] < 100
    file.write_text(json.dumps({"nodes": 20, "seconds": 8280}))
    last = "The last whole run of this profile: 20 nodes in 2.3 h"
    # one that finds trained weights on the disk, or results, is no whole run
    assert said() == [every, last]
    assert said(only_missing_outputs=True) == ["0 of 20 nodes to run: none", last]
    (project.data / "08_reporting/results.md").unlink()
    assert said(only_missing_outputs=True) == ["1 of 20 nodes to run: evaluate 1", last]
    assert said("tasks") == ["7 of 7 nodes to run: tasks 7", last]
    assert json.loads(file.read_text())["seconds"] == 8280
    for broken in ("{", "[]"):
        file.write_text(broken)
        assert said("tasks") == ["7 of 7 nodes to run: tasks 7"]
    # the second process of a launcher
    monkeypatch.setenv("RANK", "1")
    assert said("tasks") == []


def test_a_run_without_results_shows_no_table(project, capsys):
    run(project, "tasks")
    assert "| task " not in capsys.readouterr().out


def test_a_node_that_fails_while_it_trains_lets_go_of_its_files(project, monkeypatch):
    from degaml_kedro.pipelines.checkpoints import nodes

    original = nodes.fine_tune

    def failing(*arguments):
        for step in original(*arguments):
            if step.step == 2:
                raise RuntimeError("half way")
            yield step

    monkeypatch.setattr(nodes, "fine_tune", failing)
    with pytest.raises(RuntimeError, match="half way"):
        run(project, "checkpoints")
    monkeypatch.setattr(nodes, "fine_tune", original)
    # in the same process: an open file would still be locked
    run(project, "checkpoints")
    assert (project.data / "03_primary/trajectories/day_after/index.json").exists()
