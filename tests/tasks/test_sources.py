from __future__ import annotations

import json

import pytest

from degaml_kedro.config.schema import FileSource, HubSource, SplitSizes, SuiteSource
from degaml_kedro.tasks.example import TaskError, make_example
from degaml_kedro.tasks.sources import load_examples
from degaml_kedro.tasks.splits import SPLITS, split_examples
from degaml_kedro.tasks.suite import FAMILIES

SIZES = SplitSizes(train=30, support=5, validation=6, test=7)
FAMILY = SuiteSource(kind="suite", family="kind_member")


def test_a_family_gives_exactly_what_the_splits_need():
    loaded = load_examples(FAMILY, SIZES, 3, "t")
    assert {name: len(loaded[name]) for name in SPLITS} == {
        "train": 30, "support": 5, "validation": 6, "test": 7,
    }  # fmt: skip
    stream = FAMILIES["kind_member"].generate(48, 3)
    assert sorted(e.prompt for pool in loaded.values() for e in pool) == sorted(
        e.prompt for e in stream
    )
    splits = split_examples(loaded, SIZES, 3, "t")
    assert all(set(splits[name]) == set(loaded[name]) for name in SPLITS)


def test_more_training_examples_of_a_family_move_no_other_split():
    more = SIZES.model_copy(update={"train": 90})
    small, large = (load_examples(FAMILY, sizes, 3, "t") for sizes in (SIZES, more))
    assert large["train"][:30] == small["train"]
    assert all(large[name] == small[name] for name in ("support", "validation", "test"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_fills_the_splits_of_a_profile(family):
    sizes = SplitSizes(train=100, support=20, validation=20, test=50)
    source = SuiteSource(kind="suite", family=family)
    splits = split_examples(load_examples(source, sizes, 0, family), sizes, 0, family)
    assert [len(splits[name]) for name in SPLITS] == [100, 20, 20, 50]


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            "kind_membr",
            "Task 't': the built-in suite has no family 'kind_membr'; did you mean 'kind_member'",
        ),
        ("xyzzyxyzzy", "use one of addition, capital_of_country"),
    ],
)
def test_unknown_families_are_named(family, message):
    with pytest.raises(TaskError, match=message):
        load_examples(SuiteSource(kind="suite", family=family), SIZES, 0, "t")


def test_a_family_that_cannot_fill_the_splits_says_how_much_it_can(monkeypatch):
    monkeypatch.setattr("degaml_kedro.tasks.suite.family.PATIENCE", 20)
    sizes = SIZES.model_copy(update={"train": 100_000})
    with pytest.raises(TaskError, match=r"'month_after' makes about \d+ different examples"):
        load_examples(SuiteSource(kind="suite", family="month_after"), sizes, 0, "t")


def write(path, numbers):
    examples = [make_example(f"Is {n} even?", ["yes", "no"], n % 2) for n in numbers]
    records = [{"prompt": e.prompt, "response": e.response} for e in examples]
    path.write_text(json.dumps(records))


def test_files_with_a_prompt_in_two_splits_are_refused(tmp_path):
    write(tmp_path / "train.json", range(10))
    write(tmp_path / "test.json", range(8, 20))
    source = FileSource(kind="file", path=str(tmp_path))
    with pytest.raises(
        TaskError, match=r"Task 't': 2 prompt.*'train' split are in its 'test' split"
    ):
        load_examples(source, SIZES, 0, "t")
    source = source.model_copy(update={"overlap": "drop_from_train"})
    loaded = load_examples(source, SIZES, 0, "t")
    assert [len(loaded[name]) for name in ("train", "test")] == [8, 12]


def test_benchmarks_with_a_prompt_in_two_splits_keep_it_where_it_is_tested(tmp_path):
    rows = [{"question": f"is {n} even", "answer": n % 2 == 0, "passage": ""} for n in range(9)]
    (tmp_path / "train.json").write_text(json.dumps(rows[:6]))
    (tmp_path / "validation.json").write_text(json.dumps(rows[4:]))
    source = HubSource(
        kind="hub",
        id="google/boolq",
        splits={"train": "train", "test": "validation"},
        mapping="boolq",
        local_path=str(tmp_path),
    )
    loaded = load_examples(source, SIZES, 0, "t")
    assert [len(loaded[name]) for name in ("train", "test")] == [4, 5]
