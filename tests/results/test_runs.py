"""Which runs may stand in one table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from degaml_kedro.results.measures import ResultsError
from degaml_kedro.results.runs import Run, Runs, check_alike


def run(name: str, seed: int, *rows: dict[str, Any], profile: str = "embedded") -> Run:
    own = {"task": "capitals", "method": "base", "profile": profile, "seed": seed}
    own |= {"model": "small", "split": f"s{seed}"}
    results = pd.DataFrame([{**own, **row} for row in rows or ({},)])
    empty = pd.DataFrame({"method": []})
    return Run(name, seed, profile, results, empty, empty)


def test_different_seeds_of_one_profile_and_model_may() -> None:
    check_alike([run("a", 1, {}, {"method": "icl"}), run("b", 2)])
    # each seed asks other questions, and each task has its own
    check_alike([run("a", 1, {}, {"task": "sums", "split": "other"}), run("b", 2)])


def test_one_seed_twice_is_refused() -> None:
    with pytest.raises(
        ResultsError, match=r"seed_1 and copy both have the seed 1; .* move one of the two folders"
    ):
        check_alike([run("seed_1", 1), run("seed_2", 2), run("copy", 1)])


def test_different_profiles_are_refused() -> None:
    with pytest.raises(
        ResultsError,
        match=r"a is of the profile 'embedded' and b of 'smoke'; .* compare them apart",
    ):
        check_alike([run("a", 1), run("b", 2, profile="smoke")])


@pytest.mark.parametrize(
    "others",
    [
        [run("a", 1, {}, {"method": "icl", "model": "large"})],
        [run("a", 1), run("b", 2, {"method": "icl", "model": "large"})],
    ],
)
def test_different_base_models_are_refused_within_runs_and_between(others: list[Run]) -> None:
    where = others[-1].name
    with pytest.raises(
        ResultsError,
        match=f"base on capitals in a was scored with the base model small, and icl on capitals in {where} with large",
    ):
        check_alike(others)


@pytest.mark.parametrize(
    ("column", "value", "own"), [("seed", 7, "1"), ("profile", "smoke", "embedded")]
)
def test_a_result_of_another_run_is_refused(column: str, value: object, own: str) -> None:
    with pytest.raises(
        ResultsError,
        match=rf"seed_1 has the {column} '{own}', but its result of icl on capitals was made with the {column} "
        rf"'{value}'; delete what the other {column} left",
    ):
        check_alike([run("seed_1", 1, {}, {"method": "icl", column: value})])


def test_methods_that_answered_different_questions_are_refused() -> None:
    with pytest.raises(
        ResultsError,
        match=r"in a, base and icl answered different questions of capitals \(test splits s1 and other\); delete",
    ):
        check_alike([run("a", 1, {}, {"method": "icl", "split": "other"})])


def test_a_task_of_another_size_in_another_run_is_refused() -> None:
    check_alike([run("a", 1, {"n": 200}), run("b", 2, {"n": 200}), run("c", 3)])
    with pytest.raises(
        ResultsError,
        match=r"capitals has n = 200 questions for base in a and n = 150 for icl in b; .* make one of both again",
    ):
        check_alike([run("a", 1, {"n": 200}), run("b", 2, {"n": 150, "method": "icl"})])


def test_methods_that_saw_a_task_do_not_stand_beside_others_that_did_not() -> None:
    without, saw = ({"method": "degaml", "seen": False}, {"method": "abmll", "seen": True})
    rows = [{"pool": "left_out", **row} for row in (without, {"seen": None}, saw)]
    check_alike([run("a", 1, *rows[:2], {**saw, "pool": "meta_train"}), run("b", 2, *rows[:2])])
    told = (
        r"abmll on capitals in {} is of weights that were meta-trained on capitals, and degaml on capitals in a of "
        r"weights that were not \(pool 'left_out'\); .* delete what the older one was made from"
    )
    with pytest.raises(ResultsError, match=told.format("a")):
        check_alike([run("a", 1, *rows)])
    with pytest.raises(ResultsError, match=told.format("b")):
        check_alike([run("a", 1, *rows[:2]), run("b", 2, rows[2])])


def made_with(name: str, seed: int, **parameters: Any) -> Run:
    return replace(run(name, seed), record={"parameters": {"seed": seed, **parameters}})


def test_different_parameters_are_refused_by_their_key() -> None:
    lora = {"rank": 8, "alpha": 16.0}
    # of a run that recorded nothing nothing is known
    check_alike([made_with("a", 1, lora=lora), run("b", 2), made_with("c", 3, lora=lora)])
    with pytest.raises(
        ResultsError,
        match=r"a was made with lora\.rank = 8 and c with 4 \(.*run\.json\); .* make one of both again",
    ):
        check_alike(
            [made_with("a", 1, lora=lora), run("b", 2), made_with("c", 3, lora={**lora, "rank": 4})]
        )
    with pytest.raises(ResultsError, match=r"a was made with warmup\.steps = nothing and b with 5"):
        check_alike([made_with("a", 1), made_with("b", 2, warmup={"steps": 5})])


def test_parameters_that_say_only_when_and_where_may_differ() -> None:
    check_alike(
        [
            made_with(
                name,
                seed,
                methods=["base", name],
                data=f"data/{name}",
                tasks={"sums": {"source": {"kind": "file", "path": f"/{name}/sums.jsonl"}}},
            )
            for seed, name in enumerate("abc")
        ]
    )
    # a task may be called that
    with pytest.raises(ResultsError, match=r"tasks\.path\.group = x and b with y"):
        check_alike(
            [
                made_with("a", 1, tasks={"path": {"group": "x"}}),
                made_with("b", 2, tasks={"path": {"group": "y"}}),
            ]
        )


def test_tables_of_all_runs_name_the_run() -> None:
    both = Runs((run("a", 1), run("b", 2, {}, {"method": "icl"})), ("base", "icl"), {})
    assert both.results()["run"].tolist() == ["a", "b", "b"]
    assert both.results()["method"].tolist() == ["base", "base", "icl"]
