"""A little of `make faults`' damaged input, always the same."""

from __future__ import annotations

import json
import random
import shutil
from itertools import islice

from degaml_kedro.checkpoint.folder import PAIR_FILES, read_pair
from tests.checkpoint.helpers import is_tiny, write_tiny_pair
from tests.faults.fuzzing import actions, damaged_pair, places, readers, told


def test_mutated_files_and_texts_end_in_sentences_or_in_examples(tmp_path):
    ends = [told(call) for call in islice(readers(tmp_path, random.Random(0)), 900)]
    assert 0 < sum(ends) < len(ends)


def test_mutated_answers_of_a_policy_end_in_sentences_or_in_actions():
    ends = [told(call) for call in islice(actions(random.Random(0)), 900)]
    assert 0 < sum(ends) < len(ends)


def test_a_damaged_pair_is_refused(tmp_path):
    pair = write_tiny_pair(tmp_path / "pair")
    copy = shutil.copytree(pair, tmp_path / "copy")
    # all files but the one that lists them have a digest in it
    listed = json.loads((pair / "pair.json").read_text())["files"]
    assert set(listed) == {name for name in PAIR_FILES[1:] if (pair / name).is_file()}
    source = random.Random(0)
    drawn = [place for place in places(pair) if place[0] != "pair.json"]
    for name, place in source.sample(drawn, 150):
        assert damaged_pair(pair, copy, name, place, source.random() < 0.5), (name, place)
    assert is_tiny(read_pair(copy))
