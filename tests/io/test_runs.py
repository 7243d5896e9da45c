"""Runs read from folders that are built by hand."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kedro.io import DatasetError

from degaml_kedro.common.atomic import StoredDataError
from degaml_kedro.io.runs import RunsDataset, confidences, data_folders, read_runs
from degaml_kedro.results.measures import ResultsError
from degaml_kedro.results.runs import Runs
from tests.io.sending import sent

N = 4
SCORES = [[math.log(3), 0.0], [0.0, 0.0], [1.0, 2.0, 3.0], [-5.0, -5.0]]
PREDICTED = [0, 1, 2, None]


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_answers(path: Path, draws: int = 1, scores: Any = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(
        {
            "index": range(N),
            "gold": [0, 0, 2, 1],
            "predicted": pd.array(PREDICTED, dtype="Int64"),
            "scores": scores or SCORES,
            "text": "x",
            "seconds": 0.1,
            "tokens": 7,
        }
    )
    if draws > 1:
        frame = pd.concat([frame.assign(draw=draw) for draw in range(draws)], ignore_index=True)
    frame.to_parquet(path)


def result(task: str, method: str, pool: str, seed: int) -> dict[str, Any]:
    return {
        **{"task": task, "group": "words", "pool": pool, "method": method},
        **{"profile": "embedded", "model": "small", "seed": seed, "split": f"{task}{seed}"},
        **{"n": N, "accuracy": 0.5, "seconds": 0.4, "tokens": 28},
    }


def add(data: Path, task: str, method: str, pool: str, seed: int, front: str = "") -> Path:
    """A result with its answers."""
    stem = f"{front}{task}.{method}"
    write_answers(data / "07_model_output" / f"{stem}.parquet")
    return write_json(data / "07_model_output" / f"{stem}.json", result(task, method, pool, seed))


def make(data: Path, seed: int, record: bool = True) -> Path:
    """A run with two methods on a task of each pool, and a third that is asked for and has nothing."""
    for method in ("base", "degaml"):
        add(data, "sums", method, "meta_train", seed)
        add(data, "months", method, "meta_test", seed)
    if record:
        tasks = {"meta_train": ["sums"], "meta_test": ["months", "days"]}
        record_ = {"profile": "embedded", "seed": seed, "methods": ["base", "icl", "degaml"]}
        write_json(
            data / "08_reporting" / "run.json", {**record_, "tasks": tasks, "command": "kedro run"}
        )
    return data


def load(folder: Path) -> Runs:
    return RunsDataset(filepath=folder).load()


# --- what is found --------------------------------------------------------------------------------


def test_a_folder_of_seeds_and_one_run_alone(tmp_path: Path) -> None:
    for seed in (1000, 999):
        make(tmp_path / f"seed_{seed}", seed)
    # a report of all of them lies beside the runs, and so does what a search left
    (tmp_path / "08_reporting").mkdir()
    (tmp_path / "search" / "05_model_input").mkdir(parents=True)
    both = load(tmp_path)
    assert [(run.name, run.seed, run.profile) for run in both.runs] == [
        ("seed_999", 999, "embedded"),
        ("seed_1000", 1000, "embedded"),
    ]
    assert both.methods == ("base", "icl", "degaml")
    assert both.tasks == {"meta_train": ("sums",), "meta_test": ("months", "days")}
    assert len(both.results()) == 8
    assert len(both.answers()) == 8 * N
    alone = load(tmp_path / "seed_999")
    assert [run.name for run in alone.runs] == ["seed_999"]
    pd.testing.assert_frame_equal(alone.runs[0].results, both.runs[0].results)
    assert alone.runs[0].record["command"] == "kedro run"


def test_answers_are_right_or_wrong_with_the_confidence_of_the_softmax(tmp_path: Path) -> None:
    make(tmp_path, 1)
    (run,) = load(tmp_path).runs
    own = run.answers[(run.answers["task"] == "sums") & (run.answers["method"] == "base")]
    assert own["right"].tolist() == [1, 0, 1, 0]
    third = math.exp(3) / (math.exp(1) + math.exp(2) + math.exp(3))
    assert own["confidence"].tolist()[:3] == pytest.approx([0.75, 0.5, third])
    assert math.isnan(own["confidence"].iloc[3])
    assert own["draw"].tolist() == [0] * N
    assert own["pool"].unique().tolist() == ["meta_train"]


@given(
    rows=st.lists(
        st.lists(st.one_of(st.floats(-30, 30), st.just(-math.inf)), min_size=1, max_size=5),
        min_size=1,
        max_size=5,
    )
)
def test_confidence_is_the_softmax_s_or_nothing(rows: list[list[float]]) -> None:
    chosen = [int(np.argmax(row)) for row in rows]
    found = confidences([np.array(row) for row in rows], np.array(chosen))
    for value, row, said in zip(found, rows, chosen, strict=True):
        if all(math.isfinite(score) for score in row):
            assert value == pytest.approx(math.exp(row[said]) / sum(map(math.exp, row)))
        else:
            assert math.isnan(value)


def test_draws_are_kept_apart(tmp_path: Path) -> None:
    make(tmp_path, 1)
    write_answers(tmp_path / "07_model_output" / "months.degaml.parquet", draws=2)
    (run,) = load(tmp_path).runs
    own = run.answers[(run.answers["task"] == "months") & (run.answers["method"] == "degaml")]
    assert own.groupby("draw")["index"].nunique().tolist() == [N, N]


def test_left_out_tasks_have_their_group_in_front_or_share_what_no_group_had_a_part_in(
    tmp_path: Path,
) -> None:
    make(tmp_path, 1)
    front = "without_sums."
    add(tmp_path, "sums", "degaml", "left_out", 1, front)
    write_json(
        tmp_path / "07_model_output" / f"{front}sums.base.json",
        result("sums", "base", "left_out", 1),
    )
    cost = {"method": "degaml", "stage": "adaptation", "task": "sums", "seconds": 1.0}
    write_json(tmp_path / "07_model_output" / f"{front}sums.degaml.compute.json", cost)
    write_json(tmp_path / "07_model_output" / "sums.degaml.compute.json", cost)
    found = load(tmp_path)
    (run,) = found.runs
    left_out = run.answers[run.answers["pool"] == "left_out"]
    assert left_out.groupby("method").size().to_dict() == {"base": N, "degaml": N}
    # the record lists no such tasks
    assert found.tasks["left_out"] == ("sums",)
    assert list(found.tasks) == ["meta_train", "left_out", "meta_test"]
    assert sorted(run.compute["pool"]) == ["left_out", "meta_train"]


def test_what_was_counted(tmp_path: Path) -> None:
    make(tmp_path, 1)
    both = {"forward_tokens": 10, "backward_tokens": 5, "tokens": 15}
    apart = {"forward_tokens": None, "backward_tokens": None, "tokens": 40}
    output = tmp_path / "07_model_output"
    own = {"method": "degaml", "seconds": 2.0}
    write_json(
        output / "degaml.meta_training.compute.json",
        {**own, **apart, "stage": "meta_training", "task": None},
    )
    write_json(
        output / "months.degaml.compute.json",
        {**own, **both, "stage": "adaptation", "task": "months"},
    )
    write_json(
        output / "icl.search.compute.json", {**own, **both, "stage": "search", "method": "icl"}
    )
    compute = load(tmp_path).runs[0].compute.set_index("stage")
    assert compute["tokens"].to_dict() == {"meta_training": 40, "adaptation": 15, "search": 15}
    assert compute["pool"].to_dict() == {
        "meta_training": None,
        "adaptation": "meta_test",
        "search": None,
    }
    assert compute["forward_tokens"].isna().to_dict() == {
        "meta_training": True,
        "adaptation": False,
        "search": False,
    }
    assert len(load(tmp_path).runs[0].results) == 4


def test_other_tables(tmp_path: Path) -> None:
    make(tmp_path, 1)
    reporting = tmp_path / "08_reporting"
    frame = pd.DataFrame({"step": [1, 2]})
    for name in (
        "strategies",
        "policy_rollouts",
        "mse.generator_steps",
        "sft.generator_steps",
        "without_sums.mse.generator_steps",
        "mse.generator_health",
    ):
        frame.to_parquet(reporting / f"{name}.parquet")
    rows = [
        {"task": task, "number": number, "setting": json.dumps({"shots": shots}), "accuracy": 0.5}
        for task in ("sums", "days")
        for number, shots in enumerate((5, 20))
    ]
    write_json(
        tmp_path / "06_models" / "icl.settings.json", {"method": "icl", "chosen": 1, "rows": rows}
    )
    tables = load(tmp_path).runs[0].tables
    assert set(tables) == {
        "strategies",
        "policy_rollouts",
        "generator_steps",
        "generator_health",
        "settings",
    }
    assert tables["generator_steps"]["variant"].tolist() == ["mse", "mse", "sft", "sft"]
    settings = tables["settings"]
    assert settings["chosen"].tolist() == [True, True, False, False]
    assert settings["setting"].iloc[0] == {"shots": 20}
    assert settings["method"].unique().tolist() == ["icl"]


def test_without_other_tables_there_are_none(tmp_path: Path) -> None:
    make(tmp_path, 1)
    (run,) = load(tmp_path).runs
    assert run.tables == {}
    assert run.compute.empty
    assert "tokens" in run.compute


def test_methods_and_tasks_are_those_of_all_records_in_the_order_of_seeds(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"seed_{seed}", seed) / "08_reporting" / "run.json" for seed in (1, 2)]
    record = json.loads(paths[1].read_text())
    tasks = {"meta_test": ["weeks", "months"]}
    write_json(paths[1], {**record, "methods": ["degaml", "abmll"], "tasks": tasks})
    # whichever was written last, or copied
    for times in ((1, 2), (2, 1)):
        for path, time in zip(paths, times, strict=True):
            os.utime(path, (time, time))
        found = load(tmp_path)
        assert found.methods == ("base", "icl", "degaml", "abmll")
        assert found.tasks == {"meta_train": ("sums",), "meta_test": ("months", "days", "weeks")}


def test_methods_and_tasks_that_have_results_stay_whatever_the_last_run_asked_for(
    tmp_path: Path,
) -> None:
    make(tmp_path, 1)
    add(tmp_path, "weeks", "abmll", "meta_test", 1)
    found = load(tmp_path)
    assert found.methods == ("base", "icl", "degaml", "abmll")
    assert found.tasks["meta_test"] == ("months", "days", "weeks")


def test_without_a_record_what_is_found_counts(tmp_path: Path) -> None:
    make(tmp_path / "seed_5", 5, record=False)
    found = load(tmp_path)
    assert [(run.seed, run.profile) for run in found.runs] == [(5, "embedded")]
    assert found.methods == ("base", "degaml")
    assert found.tasks == {"meta_train": ("sums",), "meta_test": ("months",)}


def test_a_run_that_has_only_begun_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "seed_1", 1)
    write_json(tmp_path / "seed_2" / "08_reporting" / "run.json", {"profile": "x", "seed": 2})
    with caplog.at_level(logging.INFO):
        assert len(load(tmp_path).runs) == 1
    assert "seed_2 holds no results yet and is left out" in caplog.text


# --- what is refused ------------------------------------------------------------------------------


def test_no_run_says_what_makes_them(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        dataset = RunsDataset(filepath=folder)
        assert not dataset.exists()
        with pytest.raises(DatasetError, match="holds no finished run; `make compare`") as caught:
            dataset.load()
        assert isinstance(caught.value.__cause__, ResultsError)
        assert str(folder) in str(caught.value)
    make(tmp_path, 1)
    assert RunsDataset(filepath=tmp_path).exists()


@pytest.mark.parametrize("name", ["profile", "seed", "split", "model", "pool", "accuracy"])
def test_a_result_that_does_not_say_what_it_is_of_is_named(tmp_path: Path, name: str) -> None:
    make(tmp_path, 1)
    path = tmp_path / "07_model_output" / "months.base.json"
    old = json.loads(path.read_text())
    del old[name]
    write_json(path, old)
    with pytest.raises(StoredDataError, match=rf"'{name}' is missing\); delete it, then") as caught:
        read_runs(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "07_model_output/months.base.json",
        "07_model_output/months.base.parquet",
        "07_model_output/months.base.compute.json",
        "06_models/icl.settings.json",
        "08_reporting/run.json",
        "08_reporting/strategies.parquet",
        "08_reporting/mse.generator_health.parquet",
    ],
)
@pytest.mark.parametrize("content", [b"", b'{"task": "mon', b"PAR1\xff\x00"])
def test_a_half_written_file_is_named_with_the_way_out(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = make(tmp_path, 1) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(StoredDataError, match=r"cannot be read \(.*\); delete it, then") as caught:
        read_runs(tmp_path)
    assert str(path) in str(caught.value)
    assert "kedro run --only-missing-outputs" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("07_model_output/a.b.compute.json", {"method": "b"}, "'stage' is missing"),
        ("07_model_output/a.b.compute.json", [1], r"'the file' is \[1\], which it cannot be"),
        ("07_model_output/months.base.json", None, "'the file' is null, which it cannot be"),
        ("06_models/b.settings.json", {"method": "b"}, "'chosen' is missing"),
        ("08_reporting/run.json", {"seed": 1}, "'profile' is missing"),
    ],
)
def test_a_file_that_lacks_what_it_is_for_is_named(
    tmp_path: Path, name: str, value: Any, words: str
) -> None:
    make(tmp_path, 1)
    path = write_json(tmp_path / name, value)
    with pytest.raises(StoredDataError, match=words) as caught:
        read_runs(tmp_path)
    assert str(path) in str(caught.value)
    assert "delete it" in str(caught.value)


def test_answers_that_are_missing_are_named(tmp_path: Path) -> None:
    make(tmp_path, 1)
    path = tmp_path / "07_model_output" / "months.degaml.parquet"
    path.unlink()
    with pytest.raises(StoredDataError, match="is not there, but a result beside it measures it"):
        read_runs(tmp_path)
    pd.DataFrame({"index": [0], "gold": [1]}).to_parquet(path)
    with pytest.raises(StoredDataError, match="has no column predicted, scores"):
        read_runs(tmp_path)
    pd.DataFrame({"index": [], "gold": [], "predicted": [], "scores": []}).to_parquet(path)
    with pytest.raises(StoredDataError, match="holds no answers"):
        read_runs(tmp_path)


def test_a_result_of_other_answers_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path, 1) / "07_model_output" / "months.base.json"
    found = json.loads(path.read_text())
    write_json(path, {**found, "accuracy": 0.5 + 1e-10})
    read_runs(tmp_path)
    for n, accuracy in ((9, 0.5), (4, 0.75)):
        write_json(path, {**found, "n": n, "accuracy": accuracy})
        with pytest.raises(
            StoredDataError,
            match=rf"months\.base\.json is of {n} answers with an accuracy of {accuracy}, but months\.base\.parquet "
            r"beside it holds 4 with 0\.5: .*delete its predictions and its result \(months\.base\.parquet and "
            r"months\.base\.json\)",
        ):
            read_runs(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "x"),
        ("seed", True),
        ("profile", None),
        ("methods", "base"),
        ("tasks", [1]),
        ("tasks", {"meta_test": [1]}),
        ("parameters", [1]),
        ("versions", "1.0"),
    ],
)
def test_a_record_of_a_wrong_shape_is_named(tmp_path: Path, name: str, value: Any) -> None:
    path = make(tmp_path, 1) / "08_reporting" / "run.json"
    write_json(path, {**json.loads(path.read_text()), name: value})
    with pytest.raises(
        StoredDataError,
        match=rf"'{name}[.\w]*' is .*, which it cannot be\); delete it, then `kedro run --",
    ) as caught:
        read_runs(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", None),
        ("accuracy", "0.5"),
        ("accuracy", float("nan")),
        ("accuracy", 50),
        ("pool", "meta_tset"),
        ("pool", ["meta_test"]),
        ("method", None),
        ("seed", "1"),
        ("n", 4.5),
        ("nll", "low"),
        ("model", 1),
    ],
)
def test_a_result_of_a_wrong_shape_is_named(tmp_path: Path, name: str, value: Any) -> None:
    path = make(tmp_path, 1) / "07_model_output" / "months.base.json"
    write_json(path, {**json.loads(path.read_text()), name: value})
    with pytest.raises(
        StoredDataError,
        match=rf"'{name}[.\w]*' is .*, which it cannot be\); delete it, then `kedro run --",
    ) as caught:
        read_runs(tmp_path)
    assert str(path) in str(caught.value)


def test_a_count_of_a_wrong_shape_is_named_and_one_that_is_unknown_is_no_0(tmp_path: Path) -> None:
    cost = {"method": "degaml", "stage": "adaptation", "task": "months", "seconds": 1.0}
    path = make(tmp_path, 1) / "07_model_output" / "months.degaml.compute.json"
    write_json(path, {**cost, "forward_tokens": None, "backward_tokens": 5, "tokens": None})
    assert load(tmp_path).runs[0].compute["tokens"].isna().all()
    write_json(path, {**cost, "tokens": "many"})
    with pytest.raises(StoredDataError, match="'tokens' is \"many\", which it cannot be"):
        read_runs(tmp_path)


def test_runs_that_must_not_stand_in_one_table_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "seed_1", 1)
    make(tmp_path / "copy", 1)
    with pytest.raises(ResultsError, match="copy and seed_1 both have the seed 1"):
        read_runs(tmp_path)


def test_a_result_of_another_seed_than_the_record_s_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "seed_1", 1)
    add(tmp_path / "seed_1", "days", "base", "meta_test", 2)
    with pytest.raises(ResultsError, match="seed_1 has the seed '1', but its result of base on da"):
        read_runs(tmp_path)


def test_nothing_is_saved_here(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is only read here"):
        RunsDataset(filepath=tmp_path).save("anything")  # type: ignore[arg-type]


def test_it_can_be_sent_to_another_process_and_names_its_folder(tmp_path: Path) -> None:
    make(tmp_path, 1)
    dataset = RunsDataset(filepath=tmp_path)
    assert sent(dataset).load().methods == ("base", "icl", "degaml")
    assert str(tmp_path) in str(dataset)
    assert data_folders(tmp_path) == [tmp_path]
