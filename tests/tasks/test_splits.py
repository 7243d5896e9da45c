from __future__ import annotations

import logging

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degaml_kedro.config.schema import SplitSizes
from degaml_kedro.tasks.example import TaskError, make_example, make_true_false_example
from degaml_kedro.tasks.splits import (
    SPLITS,
    TaskSplits,
    examples_to_frame,
    frame_to_examples,
    frame_to_splits,
    keep_apart,
    split_examples,
    splits_to_frame,
)


def numbered(count, start=0):
    return [
        make_example(f"Question {n}?", [f"x{n}", f"y{n}", f"z{n}"][: 2 + n % 2], n % 2)
        for n in range(start, start + count)
    ]


SIZES = SplitSizes(train=10, support=4, validation=5, test=6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**62), extra=st.integers(0, 20))
def test_splits_are_disjoint_whole_and_deterministic(seed, extra):
    examples = numbered(25 + extra)
    splits = split_examples(examples, SIZES, seed, "t")
    assert [len(splits[name]) for name in SPLITS] == [10, 4, 5, 6]
    assert len({e.prompt for name in SPLITS for e in splits[name]}) == 25
    assert splits == split_examples(examples[::-1], SIZES, seed, "t")


def test_more_training_examples_move_no_other_split():
    examples = numbered(60)
    small = split_examples(examples, SIZES, 1, "t")
    large = split_examples(examples, SIZES.model_copy(update={"train": 40}), 1, "t")
    assert large.train[:10] == small.train
    assert all(large[name] == small[name] for name in ("support", "validation", "test"))


def test_seed_and_task_decide_what_is_taken():
    examples = numbered(60)
    drawn = [split_examples(examples, SIZES, s, t) for s, t in ((0, "a"), (1, "a"), (0, "b"))]
    assert len({splits.test for splits in drawn}) == 3


def test_splits_of_the_source_are_kept():
    source = {"train": numbered(40), "validation": numbered(9, 100), "test": numbered(8, 200)}
    splits = split_examples(source, SIZES, 0, "t")
    assert set(splits.test) <= set(source["test"])
    assert set(splits.validation) <= set(source["validation"])
    assert set(splits.support) | set(splits.train) <= set(source["train"])


def test_missing_validation_comes_out_of_train():
    source = {"train": numbered(40), "test": numbered(8, 200)}
    splits = split_examples(source, SIZES, 0, "t")
    assert set(splits.validation) <= set(source["train"])


def test_one_split_of_the_source_is_dealt_to_all():
    splits = split_examples({"test": numbered(25)}, SIZES, 0, "t")
    assert len(splits.train) == 10


def test_empty_splits_need_no_pool():
    sizes = SplitSizes(train=0, support=2, validation=0, test=3)
    splits = split_examples({"support": numbered(2), "test": numbered(3, 50)}, sizes, 0, "t")
    assert (splits.train, splits.validation) == ((), ())


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (
            numbered(24),
            r"need train 10 \+ support 4 \+ validation 5 \+ test 6 examples, but it has 24",
        ),
        ({"train": numbered(9), "test": numbered(6, 50)}, "'train' need .* but it has 9"),
        (
            {"train": numbered(40), "test": numbered(5, 50)},
            "split 'test' need test 6 .* but it has 5",
        ),
        (
            {"train": numbered(40), "support": numbered(9, 50)},
            "the split 'test' needs 6 .*add test",
        ),
        (
            {"test": numbered(40), "support": numbered(9, 50)},
            "'validation' needs 5 .*add validation or",
        ),
        ({"train": numbered(40), "dev": numbered(9, 50)}, "unknown split 'dev'"),
        ({}, "no examples at all"),
        (
            {"train": numbered(40), "test": numbered(6, 39)},
            "1 prompt.* 'train' split are in its 'test'",
        ),
        (
            [*numbered(30), make_true_false_example(numbered(1)[0].prompt, True)],
            "different answers",
        ),
    ],
)
def test_examples_that_cannot_be_split(examples, message):
    with pytest.raises(TaskError, match=message) as error:
        split_examples(examples, SIZES, 0, "animals")
    assert "animals" in str(error.value)


def test_repeated_examples_are_used_once(caplog):
    with caplog.at_level(logging.WARNING):
        splits = split_examples(numbered(25) + numbered(3), SIZES, 0, "t")
    assert len({e.prompt for name in SPLITS for e in splits[name]}) == 25
    assert "3 repeated" in caplog.text


def test_overlapping_prompts_can_be_left_out_of_train(caplog):
    pools = {"train": numbered(10), "test": numbered(10, 7)}
    kept = keep_apart(pools, "t", "drop_from_train")
    assert kept == {"train": numbered(7), "test": numbered(10, 7)}
    assert "3 example(s) of 'train'" in caplog.text


def test_task_splits_refuse_a_shared_prompt():
    (example,) = numbered(1)
    with pytest.raises(TaskError, match="in both 'train' and 'test'"):
        TaskSplits(train=(example,), support=(), validation=(), test=(example,))


def test_unknown_split_is_named():
    with pytest.raises(TaskError, match="no split 'dev'"):
        TaskSplits((), (), (), ())["dev"]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=2, max_size=5)), max_size=8))
def test_examples_survive_a_table(parts):
    examples = [make_example(text, options, len(options) - 1) for text, options in parts]
    assert frame_to_examples(examples_to_frame(examples)) == examples


def test_splits_survive_parquet(tmp_path):
    examples = [*numbered(30), make_true_false_example("is it so?", False)]
    splits = split_examples(examples, SIZES, 0, "t")
    path = tmp_path / "splits.parquet"
    splits_to_frame(splits).to_parquet(path)
    assert frame_to_splits(pd.read_parquet(path)) == splits


def test_damaged_tables_are_named():
    frame = splits_to_frame(split_examples(numbered(25), SIZES, 0, "t"))
    with pytest.raises(TaskError, match=r"lacks the column.*gold"):
        frame_to_splits(frame.drop(columns="gold"))
    with pytest.raises(TaskError, match=r"lacks the column.*split"):
        frame_to_splits(frame.drop(columns="split"))
    with pytest.raises(TaskError, match="unknown split 'dev'"):
        frame_to_splits(frame.assign(split="dev"))
