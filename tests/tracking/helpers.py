"""Places that MLflow cannot use."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path

from mlflow.tracking import MlflowClient

# the first schema that MLflow ever had a migration for
OLDEST = "451aebb31d03"


def nobody_listens() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def copy_of(uri: str, folder: Path, revision: str) -> str:
    """The database, stamped with another schema."""
    MlflowClient(uri).search_experiments()
    file = folder / "other.db"
    file.write_bytes(Path(uri.removeprefix("sqlite:///")).read_bytes())
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        database.commit()
    return f"sqlite:///{file}"
