"""Runs of several seeds put together."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from degaml_kedro.results.study import (
    StudyError,
    paired_difference,
    read_runs,
    rightness,
    study_report,
)


def test_a_constant_difference_has_no_interval():
    found = paired_difference([(np.ones(10), np.zeros(10)), (np.ones(5), np.zeros(5))])
    assert (found.mean, found.low, found.high, found.strata) == (1.0, 1.0, 1.0, 2)


def test_the_interval_is_that_of_the_normal_approximation_for_many_questions():
    source = np.random.default_rng(1)
    pairs = [
        ((source.random(400) < 0.8).astype(float), (source.random(400) < 0.7).astype(float))
        for _ in range(3)
    ]
    found = paired_difference(pairs)
    differences = [a - b for a, b in pairs]
    mean = np.mean([d.mean() for d in differences])
    error = np.sqrt(sum(d.var() / len(d) for d in differences)) / len(differences)
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.004)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.004)


def test_strata_weigh_alike_whatever_their_size():
    found = paired_difference([(np.ones(1000), np.zeros(1000)), (np.zeros(10), np.zeros(10))])
    assert found.mean == 0.5


def test_pairing_counts():
    # both methods are right on the same half: nothing is uncertain about their difference
    right = np.array([0.0, 1.0] * 50)
    assert paired_difference([(right, right)]).high == 0.0


def test_nothing_to_compare_is_an_error():
    with pytest.raises(StudyError, match="nothing to compare"):
        paired_difference([])
    with pytest.raises(StudyError, match="different numbers"):
        paired_difference([(np.ones(3), np.ones(4))])


def _predictions(right, draws=1):
    frames = []
    for draw in range(draws):
        frame = pd.DataFrame({"index": range(len(right)), "gold": 0})
        frame["predicted"] = pd.array([0 if value else None for value in right], dtype="Int64")
        if draws > 1:
            frame.insert(0, "draw", draw)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def study(tmp_path):
    """Two seeds; a meta-test task and one that a group left out."""
    right = {"base": [1, 0, 0, 0], "pooled": [1, 1, 0, 0], "generalization_only": [1, 1, 1, 0]}
    for seed in (1, 2):
        data = tmp_path / f"seed_{seed}"
        (data / "07_model_output").mkdir(parents=True)
        (data / "08_reporting").mkdir()
        rows = []
        for pool, task in (("left_out", "old"), ("meta_test", "new")):
            for method, values in right.items():
                own = f"{task}.{method}.parquet"
                if pool == "left_out" and method != "base":
                    own = f"without_old.{own}"
                draws = 2 if method == "generalization_only" else 1
                _predictions(values, draws).to_parquet(data / "07_model_output" / own)
                rows.append(
                    {"task": task, "pool": pool, "method": method, "accuracy": np.mean(values)}
                )
        content = json.dumps({"results": rows})
        (data / "08_reporting" / "results.json").write_text(content)
    return tmp_path


def test_rightness_is_a_mean_over_draws_and_knows_groups(study):
    row = {"task": "old", "pool": "left_out", "method": "generalization_only"}
    assert rightness(study / "seed_1", row).tolist() == [1, 1, 1, 0]
    assert rightness(study / "seed_1", {**row, "method": "base"}).tolist() == [1, 0, 0, 0]


def test_the_report_has_means_and_differences(study):
    assert list(read_runs(study)) == ["seed_1", "seed_2"]
    report = study_report(study)
    assert "### left_out" in report
    assert "### meta_test" in report
    assert "0.75 ±0.00" in report
    (line,) = {line for line in report.splitlines() if line.startswith("| pooled")}
    assert "+0.250" in line


def test_an_empty_folder_says_how_to_fill_it(tmp_path):
    with pytest.raises(StudyError, match="make study"):
        read_runs(tmp_path)
