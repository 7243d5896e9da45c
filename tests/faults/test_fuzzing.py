"""A little of `make faults`' damaged input, always the same."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from degaml_kedro.checkpoint.folder import save_pair
from tests.checkpoint.helpers import tiny_pair
from tests.checkpoint.test_saving import save
from tests.faults.fuzzing import (
    Damaged,
    actions,
    is_refused,
    readers,
    requests,
    served_page,
    told,
)


def test_mutated_files_and_texts_end_in_sentences_or_in_examples(tmp_path):
    ends = [told(call) for call in islice(readers(tmp_path, random.Random(0)), 900)]
    assert 0 < sum(ends) < len(ends)


def test_mutated_answers_of_a_policy_end_in_sentences_or_in_actions():
    ends = [told(call) for call in islice(actions(random.Random(0)), 900)]
    assert 0 < sum(ends) < len(ends)


@pytest.mark.parametrize("is_pair", [True, False], ids=["pair", "adaptation"])
def test_a_damaged_folder_is_refused_or_read_as_the_same(is_pair, tmp_path):
    folder = tmp_path / "folder"
    if is_pair:
        save_pair(tiny_pair(), folder, "bfloat16")
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 50_000
    else:
        save(folder)
    damaged, source = Damaged(folder, is_pair), random.Random(0)
    every = list(damaged.damages())
    index = "pair.json" if is_pair else "degaml.json"
    drawn = source.sample(every, 120)
    drawn += source.sample([one for one in every if one.name == index], 120)
    refused = [damaged.refused(one) for one in drawn]
    assert 0.9 < sum(refused) / len(refused) < 1


def test_requests_with_odd_bodies_are_answered_or_refused_in_a_sentence(tmp_path):
    with served_page(tmp_path) as page:
        drawn = islice(requests(random.Random(0)), 60)
        ends = [is_refused(page, endpoint, body) for endpoint, body in drawn]
        # neither UTF-8 nor said to be JSON
        said = page.post("/call/read", content=b'{"data": ["\xff", ""]}')
    assert said.status_code == 422
    assert "the body is to be JSON in UTF-8" in said.json()["detail"]
    assert 0 < sum(ends) < len(ends)
