"""A tracking database that was stopped while it was made, and one that several programs make at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.store.db import utils
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from degaml_kedro.mlflow_server import TrackingError, knock


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database whose migrations were stopped in the middle of one."""
    memory = sqlite3.connect(":memory:")
    engine = create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool)

    @event.listens_for(engine, "before_cursor_execute")
    def stop(*arguments) -> None:
        if "DROP TABLE datasets" in arguments[2]:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        utils._initialize_tables(engine)
    file = tmp_path_factory.mktemp("torn") / "mlflow.db"
    with closing(memory):
        memory.execute(f"VACUUM INTO '{file}'")
    return file.read_bytes()


def test_a_half_made_database_is_made_again(torn: bytes, tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(torn)
    uri = f"sqlite:///{file}"
    with pytest.raises(OperationalError, match="_alembic_tmp_datasets already exists"):
        utils._upgrade_db(create_engine(uri))
    knock(uri)
    run = MlflowClient(uri).create_run("0").info.run_id
    made = file.read_bytes()
    knock(uri)
    assert file.read_bytes() == made
    assert MlflowClient(uri).get_run(run).info.status == "RUNNING"


@pytest.mark.parametrize(
    "row",
    [
        "runs (run_uuid) VALUES ('r')",
        "experiments (experiment_id, name) VALUES (0, 'Default')",
        "registered_models (name) VALUES ('m')",
    ],
)
def test_an_older_database_that_holds_something_is_not_touched(
    torn: bytes, tmp_path: Path, row: str
) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(torn)
    with closing(sqlite3.connect(file)) as database:
        database.execute(f"INSERT INTO {row}")
        database.commit()
    before = file.read_bytes()
    with pytest.raises(TrackingError, match="older schema"):
        knock(f"sqlite:///{file}")
    assert file.read_bytes() == before


@pytest.mark.slow
def test_two_programs_that_start_at_once_share_one_database(torn: bytes, tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(torn)
    uri = f"sqlite:///{file}"
    code = (
        "from degaml_kedro.mlflow_server import knock; from mlflow.tracking import MlflowClient; print(flush=True); "
        f"input(); knock({uri!r}); print(MlflowClient({uri!r}).create_run('0').info.run_id)"
    )
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for program in programs:
        program.stdout.readline()
    for program in programs:
        program.stdin.write("\n")
        program.stdin.flush()
    made = {program.communicate()[0].strip() for program in programs}
    assert [program.returncode for program in programs] == [0, 0]
    assert {run.info.run_id for run in MlflowClient(uri).search_runs(["0"])} == made
