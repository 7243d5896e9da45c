"""What tests share: a project of their own, whose data and tracking stay in a temporary folder."""

from __future__ import annotations

import os

# before torch is imported: two test processes must not fight over two cores, and nothing leaves this machine
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DO_NOT_TRACK"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"

import contextlib
import gc
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, settings
from kedro.framework.cli.cli import KedroCLI
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.runner import ThreadRunner

from degaml_kedro.config.loader import ProjectConfigLoader
from degaml_kedro.pipelines.naming import STAGES

ROOT = Path(__file__).parents[1]

# the same examples every time, and those that a slow machine makes late are no failures
settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")


# files that are written for good are waited for: in memory that costs nothing
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 8e9:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_finish() -> None:
    """Modules and tests stay for as long as the process: no collection of garbage need look at them again."""
    gc.freeze()


@pytest.fixture(scope="session")
def tracking_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests of a process: making its tables takes seconds."""
    return tmp_path_factory.mktemp("tracking") / "mlflow.db"


class Project:
    """The project with a configuration folder of its own."""

    # when its one run began, in seconds
    began = 0.0

    def __init__(self, folder: Path, database: Path) -> None:
        # the files there are after each stage that was run by itself
        self.stages: dict[str, set[str]] = {}
        self.conf = folder / "conf"
        self.data = folder / "data"
        shutil.copytree(ROOT / "conf", self.conf)
        for environment in ("base", "smoke"):
            (self.conf / environment / "globals.yml").write_text(f"data: {self.data}\n")
        artifacts = {"artifact_location": str(database.parent / "mlruns")}
        self.edit(
            "base/mlflow.yml",
            server={"mlflow_tracking_uri": f"sqlite:///{database}"},
            tracking={"experiment": {"create_experiment_kwargs": artifacts}},
        )

    def edit(self, file: str, **changes: object) -> None:
        """Lay changes over a YAML file; None removes a key."""
        path = self.conf / file
        content = yaml.safe_load(path.read_text()) if path.is_file() else {}
        path.write_text(yaml.safe_dump(_merged(content, changes), sort_keys=False))

    def session(self, env: str | None = "smoke", **parameters: object) -> KedroSession:
        """A Kedro session in this project."""
        return KedroSession.create(
            project_path=ROOT, conf_source=str(self.conf), env=env, runtime_params=parameters
        )


@pytest.fixture(scope="session")
def bootstrapped() -> None:
    """Kedro knows the project; once a process, because its search for settings looks into every module there is."""
    bootstrap_project(ROOT)


@pytest.fixture(scope="session")
def reference(
    tmp_path_factory: pytest.TempPathFactory, tracking_database: Path, bootstrapped: None
) -> Project:
    """The smoke profile by the README's commands, stage by stage; no test of the group ``runs`` changes it."""
    project = Project(tmp_path_factory.mktemp("reference"), tracking_database)
    kedro = KedroCLI(ROOT)
    # all but the report and others' nodes
    for stage in STAGES[:-2]:
        command = [
            "run",
            "--env",
            "smoke",
            "--conf-source",
            str(project.conf),
            "--pipelines",
            stage,
        ]
        with contextlib.chdir(ROOT):
            result = CliRunner().invoke(kedro, command, prog_name="kedro")
        assert result.exit_code == 0, result.output
        files = (path for path in project.data.rglob("*") if path.is_file())
        project.stages[stage] = {str(path.relative_to(project.data)) for path in files}
    return project


@pytest.fixture(scope="session")
def threaded(
    tmp_path_factory: pytest.TempPathFactory, tracking_database: Path, bootstrapped: None
) -> Project:
    """The smoke profile in one run with two threads, which change nothing of the process."""
    project = Project(tmp_path_factory.mktemp("threaded"), tracking_database)
    project.began = time.time()
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with project.session() as session:
            session.run(runner=ThreadRunner(max_workers=2))
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    return project


@pytest.fixture
def copied(project: Project, reference: Project) -> Project:
    """The reference's data in a project of its own."""
    shutil.copytree(reference.data, project.data)
    return project


def _merged(old: dict, new: dict) -> dict:
    result = dict(old)
    for key, value in new.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result


@pytest.fixture
def project(tmp_path: Path, tracking_database: Path, bootstrapped: None) -> Iterator[Project]:
    """The project, bootstrapped, with nothing left of earlier sessions."""
    yield Project(tmp_path, tracking_database)
    ProjectConfigLoader.current = None
    pipelines.configure("degaml_kedro.pipeline_registry")
