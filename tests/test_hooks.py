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
