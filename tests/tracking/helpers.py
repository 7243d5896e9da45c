"""Two finished runs, and places that MLflow cannot use."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd
from mlflow.tracking import MlflowClient

from degaml_kedro.results.runs import Run, Runs

# the first schema that MLflow ever had a migration for
OLDEST = "451aebb31d03"
SEEDS = (999, 1000)
TASKS = {"meta_test": ("a", "b"), "meta_train": ("c",)}


def result(task: str, pool: str, method: str, seed: int, accuracy: float, **changes) -> dict:
    row = {
        "task": task,
        "group": "g",
        "pool": pool,
        "method": method,
        "profile": "tests",
        "seed": seed,
        "model": "random",
        "split": "s",
        "n": 200,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.1,
        "accuracy_high": accuracy + 0.1,
        "chance": 0.25,
        "nll": 1.5,
        "ece": 0.25,
        "invalid": 0.0,
        "seconds": 2.0,
        "tokens": 100,
        "draws": 1,
        "accuracy_spread": 0.0,
    }
    return {**row, **changes}


def cost(method: str, stage: str, task: str | None, tokens: int, **changes: object) -> dict:
    row = {
        "method": method,
        "stage": stage,
        "task": task,
        "pool": None if task is None else "meta_test",
        "forward_tokens": tokens,
        "backward_tokens": 2 * tokens,
        "tokens": 3 * tokens,
        "seconds": 0.5,
    }
    return {**row, **changes}


def run(place: int, seed: int) -> Run:
    results = [
        result("a", "meta_test", "icl", seed, 0.5 + 0.25 * place),
        result("b", "meta_test", "icl", seed, 0.25),
        result("c", "meta_train", "icl", seed, 0.5, nll=float("inf")),
        result("a", "meta_test", "abmll", seed, 0.75),
        result("b", "meta_test", "abmll", seed, 0.5),
        result("a", "meta_test", "oracle_strategy", seed, 1.0),
    ]
    compute = [
        cost("abmll", "meta_training", None, 1000),
        cost("abmll", "adaptation", "a", 10),
        cost("abmll", "adaptation", "b", 30),
        # two things that were counted, of one of them the sum alone
        cost("icl", "adaptation", "a", 10),
        cost("icl", "adaptation", "a", 10, forward_tokens=float("nan")),
        *([cost("abmll", "search", None, 500)] if place == 0 else []),
    ]
    settings = pd.DataFrame(
        [
            {"method": "abmll", "chosen": chosen, "setting": {"steps": steps}}
            for chosen, steps in ((False, 4), (True, 8))
        ]
    )
    record = {
        "command": f"kedro run --params seed={seed}",
        "versions": {"mlflow": "3"},
        "parameters": {
            "profile": "tests",
            "seed": seed,
            "model": {"source": {"kind": "random"}},
            "baselines": {"abmll": {"beta": 1e-8}, "icl": {"settings": [{"shots": 5}]}},
        },
    }
    return Run(
        f"seed_{seed}",
        seed,
        "tests",
        pd.DataFrame(results),
        pd.DataFrame(),
        pd.DataFrame(compute),
        record,
        {"settings": settings},
    )


def runs() -> Runs:
    methods = ("icl", "abmll", "maml_en_llm", "oracle_strategy")
    return Runs(tuple(run(i, seed) for i, seed in enumerate(SEEDS)), methods, TASKS)


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
