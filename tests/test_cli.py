"""The commands, as a person types them: each in a process of its own."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from kedro.framework.cli.cli import KedroCLI

from degaml_kedro import cli
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.config.loader import ProjectConfigLoader
from degaml_kedro.io.trajectory_writer import read_state
from degaml_kedro.pipelines.naming import PARAMETERS
from tests.conftest import ROOT
from tests.pipelines.helpers import run
from tests.pipelines.test_runs import numbers

KEDRO = [sys.executable, "-m", "kedro"]


def kedro(*arguments: str) -> Result:
    """A command in this process: starting another one takes longer than most commands."""
    logging.disable(logging.WARNING)  # the log shares its stream with the output
    try:
        return CliRunner().invoke(KedroCLI(ROOT), arguments, prog_name="kedro")
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_bit_identical(project, monkeypatch, caplog):
    """SIGKILL in the middle of a trajectory, then the same command again."""
    monkeypatch.chdir(ROOT)
    phases = [{"steps": 60, "learning_rate": 1e-3}]
    project.edit(
        "smoke/parameters.yml",
        methods=["no_meta_train"],
        meta_train=["day_after"],
        trajectory={"training": {"phases": phases}},
        generator={"leave_out": []},
    )
    arguments = ["run", "--env", "smoke", "--conf-source", str(project.conf)]
    arguments += ["--pipelines", "checkpoints"]
    folder = project.data / "03_primary/trajectories/day_after"
    process = subprocess.Popen(
        [*KEDRO, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # only so that a hanging run ends some time: loaded machines are slow
    deadline = time.monotonic() + 900
    while not (folder / "resume.safetensors").exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    state = read_state(folder)
    assert state is not None
    assert 0 < len(state.records) < 60
    assert not (folder / "index.json").exists()

    caplog.set_level("INFO")
    again = CliRunner().invoke(KedroCLI(ROOT), [*arguments, "--only-missing-outputs"])
    assert again.exit_code == 0, again.output
    assert f"goes on after step {len(state.records)}" in caplog.text

    interrupted = numbers(project.data)
    for path in sorted(project.data.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    run(project, "checkpoints")
    assert numbers(project.data) == interrupted


def test_a_bad_parameter_is_one_sentence(project, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = kedro("run", "--env", "smoke", "--params", "sede=1")
    assert result.exit_code == 1
    assert result.output.strip().splitlines()[-1] == (
        "Error: unknown key 'sede' in the parameters; did you mean 'seed'?"
    )


def test_a_full_disk_is_one_sentence(project, monkeypatch):
    monkeypatch.chdir(ROOT)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    command = ("run", "--env", "smoke", "--conf-source", str(project.conf))
    result = kedro(*command, "--pipelines", "tasks")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    told = result.output.strip().splitlines()[-1]
    assert told.startswith(f"Error: {project.data}/")
    assert "cannot be written (No space left on device); make room, or point 'data'" in told


def test_an_unknown_environment_is_one_sentence_for_every_command(project, monkeypatch):
    monkeypatch.chdir(ROOT)
    for arguments in (("run",), ("catalog", "list-patterns"), ("catalog", "describe-datasets")):
        result = kedro(*arguments, "--env", "smok")
        assert result.exit_code == 1
        assert "did you mean 'smoke'?" in result.output.strip().splitlines()[-1]


def test_the_registry_lists_what_the_configuration_asks_for(project, monkeypatch):
    monkeypatch.chdir(ROOT)
    ProjectConfigLoader.current = None
    # outside a session the environment variable says which configuration is meant
    monkeypatch.setenv("KEDRO_ENV", "smoke")
    listed = kedro("registry", "list")
    assert listed.exit_code == 0, listed.output
    assert yaml.safe_load(listed.output) == [
        "__default__",
        "baselines",
        "checkpoints",
        "evaluate",
        "generator",
        "policy",
        "report",
        "tasks",
        "tokenize",
    ]
    described = kedro("registry", "describe", "checkpoints")
    nodes = yaml.safe_load(described.output)["Nodes"]
    assert "checkpoints.day_after.train_trajectory (train_trajectory)" in nodes
    # of both meta-train tasks, once for all and once for the group that leaves one out
    assert len([node for node in nodes if "train_trajectory" in node]) == 4


def test_everything_a_pipeline_names_is_in_the_catalog(project, monkeypatch):
    monkeypatch.chdir(ROOT)
    described = kedro("catalog", "describe-datasets", "--env", "smoke")
    assert described.exit_code == 0, described.output
    found = yaml.safe_load(described.output)
    assert all(not of_pipeline["defaults"] for of_pipeline in found.values())
    patterns = kedro("catalog", "list-patterns", "--env", "smoke")
    assert "{run}.trajectory" in patterns.output
    resolved = kedro("catalog", "resolve-patterns", "--env", "smoke", "-p", "evaluate")
    assert resolved.exit_code == 0, resolved.output
    assert "data/smoke/07_model_output/day_before.pooled.parquet" in resolved.output


def command(error: Exception):
    def fail() -> None:
        raise error

    return cli._translate_errors(cli.click.Command("fail", callback=fail))


def test_an_error_the_user_can_put_right_is_its_sentence_alone():
    wrapped = RuntimeError("Failed while loading")
    wrapped.__cause__ = DegamlError("x is missing; add it")
    for error in (DegamlError("x is missing; add it"), wrapped):
        result = CliRunner().invoke(command(error))
        assert result.exit_code == 1
        assert result.output == "Error: x is missing; add it\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(command(ZeroDivisionError("oops")), catch_exceptions=False)


def test_the_commands_are_kedro_s_own():
    from kedro.framework.cli.project import run as kedro_run

    assert cli.run.params == kedro_run.params
    assert set(cli.cli.commands) == {"run", "registry", "catalog"}
    assert "list" in cli.cli.commands["registry"].commands
    assert Path(cli.__file__).name == "cli.py"


def test_kedro_viz_sees_the_environment_it_is_given_and_its_layers(project):
    loader = pytest.importorskip("kedro_viz.integrations.kedro.data_loader")
    ProjectConfigLoader.current = None
    # it runs without hooks
    catalog, found, *_ = loader.load_data(ROOT, env="smoke")
    names = {node.name for node in found["__default__"].nodes}
    assert "checkpoints.kind_member.train_trajectory" in names
    assert not [name for name in names if "suite_0" in name]
    layers = {
        name: catalog.get(name).metadata["kedro-viz"]["layer"]
        for name in found["__default__"].datasets()
        # parameters have no layer; the hook that hands them to the nodes is not run
        if not name.startswith("param") and name != PARAMETERS
    }
    steps = [
        (layers[source], layers[target])
        for node in found["__default__"].nodes
        for source in node.inputs
        for target in node.outputs
        if source in layers
    ]
    assert all(source <= target for source, target in steps), "layers must not run in a circle"
