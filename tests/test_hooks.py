"""What happens before and after a run."""

from __future__ import annotations

import pytest

from degaml_kedro.configuration import ConfigurationError
from tests.pipelines.test_runs import run

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
    message = str(caught.value)
    assert expected in message
    assert not project.data.exists()
    # the key, on its line
    place, line = message.rsplit("(", 1)[1].rstrip(")").split(", line ")
    assert place.endswith("smoke/parameters.yml")
    key = expected.removeprefix("policy.families.").split(":")[0].split(" ")[0].split(".")[-1]
    text = (project.conf / "smoke/parameters.yml").read_text().splitlines()
    assert text[int(line) - 1].strip().startswith(f"{key}:")


def test_strategies_do_not_matter_where_no_method_needs_them(project):
    project.edit(
        "smoke/parameters.yml", methods=["base"], policy={"families": {"tttt": {"one": [1, 2]}}}
    )
    with project.session() as session:
        session.load_context()


def test_a_finished_run_shows_the_table_and_where_to_look(project, capsys):
    run(project)
    shown = capsys.readouterr().out
    assert "| task " in shown
    assert "day_before" in shown
    assert "make mlflow" in shown
    assert str(project.data / "07_model_output") in shown


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
