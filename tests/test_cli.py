"""The commands, as a person types them: each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from degaml_kedro import cli
from degaml_kedro.errors import DegamlError
from degaml_kedro.io.trajectory_writer import read_state
from tests.conftest import ROOT
from tests.pipelines.test_runs import numbers, run

KEDRO = [sys.executable, "-m", "kedro"]


def kedro(*arguments: str, env: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "300"}
    if env:
        environment["KEDRO_ENV"] = env
    return subprocess.run(
        [*KEDRO, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_bit_identical(project):
    """SIGKILL in the middle of a trajectory, then the same command again."""
    phases = [{"steps": 60, "learning_rate": 1e-3}]
    project.edit("smoke/parameters.yml", trajectory={"training": {"phases": phases}})
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
    deadline = time.monotonic() + 120
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

    again = kedro(*arguments, "--only-missing-outputs")
    assert again.returncode == 0, again.stderr
    assert f"goes on after step {len(state.records)}" in again.stdout + again.stderr

    interrupted = numbers(project.data)
    for path in sorted(project.data.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    run(project, "checkpoints")
    assert numbers(project.data) == interrupted


@pytest.mark.slow
def test_a_bad_parameter_is_one_sentence(project):
    result = kedro("run", "--env", "smoke", "--params", "sede=1")
    assert result.returncode == 1
    assert "Error: unknown key 'sede' in the parameters (given with --params)" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.slow
def test_registry_and_catalog_commands(project):
    # outside a run the environment variable says which configuration is meant
    listed = kedro("registry", "describe", "checkpoints", env="smoke")
    assert listed.returncode == 0, listed.stderr
    assert "checkpoints.day_after.train_trajectory (train_trajectory)" in listed.stdout
    assert "list_after" not in listed.stdout
    described = kedro("catalog", "describe-datasets", "--env", "smoke", "-p", "evaluate")
    assert described.returncode == 0, described.stderr
    assert "day_before.pooled.predictions" in described.stdout
    # everything a pipeline names is in the catalog
    assert "defaults: {}" in described.stdout


def command(error: Exception):
    def fail() -> None:
        raise error

    return cli._speaking(cli.click.Command("fail", callback=fail))


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
