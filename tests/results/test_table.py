from __future__ import annotations

import pandas as pd

from degaml_kedro.results.table import results_table


def row(task, pool, method, accuracy):
    return {
        "task": task,
        "pool": pool,
        "method": method,
        "n": 200,
        "chance": 0.25,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.05,
        "accuracy_high": accuracy + 0.05,
    }


def test_tasks_down_methods_across_and_means_per_pool():
    results = pd.DataFrame(
        [
            row("capitals", "meta_train", "base", 0.25),
            row("capitals", "meta_train", "pooled", 0.75),
            row("months", "meta_train", "base", 0.35),
            row("months", "meta_train", "pooled", 0.95),
            row("days", "meta_test", "base", 0.45),
        ]
    )
    lines = results_table(results, ["base", "pooled"]).splitlines()
    assert len({len(line) for line in lines[:6]}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:6]]
    assert cells[0] == ["task", "pool", "n", "chance", "base", "pooled"]
    assert cells[2] == [
        "capitals",
        "meta_train",
        "200",
        "0.25",
        "0.25 (0.20–0.30)",
        "0.75 (0.70–0.80)",
    ]
    assert cells[4] == ["**mean**", "meta_train", "", "0.25", "0.30", "0.85"]
    # a method without a result leaves its cell empty, a single task has no mean
    assert cells[5] == ["days", "meta_test", "200", "0.25", "0.45 (0.40–0.50)", ""]
    assert "Wilson" in lines[-1]
