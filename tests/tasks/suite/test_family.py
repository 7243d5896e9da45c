"""What holds for every family, over seeds."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from degaml_kedro.tasks.example import TaskError, make_example, split_prompt
from degaml_kedro.tasks.suite import FAMILIES
from degaml_kedro.tasks.suite.family import MAX_WORDS, Family, SuiteQuestion

COUNT = 30
SEEDS = st.integers(-(2**63), 2**63)

over_seeds = settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@every_family
@over_seeds
@given(seed=SEEDS, shorter=st.integers(0, COUNT))
def test_every_stream_keeps_the_promises_of_the_suite(family, seed, shorter):
    examples = family.generate(COUNT, seed)
    assert len(examples) == COUNT
    assert family.generate(shorter, seed) == examples[:shorter]
    # No example comes twice, even with its options in another order.
    assert len({(e.question, tuple(sorted(e.options))) for e in examples}) == COUNT
    for example in examples:
        assert_sound(example, family)
    assert_balanced(examples)


def assert_sound(example, family):
    assert len(example.options) in family.options
    assert 2 <= len(example.options) <= 5
    assert len(example.prompt.split()) <= MAX_WORDS
    assert split_prompt(example.prompt) == (example.question, example.options)
    assert example == make_example(example.question, example.options, example.gold)
    folded = [option.casefold() for option in example.options]
    for option, other in itertools.permutations(folded, 2):
        assert not option.startswith(other)
    assert not set("{}") & set(example.prompt)
    assert "  " not in example.prompt


def assert_balanced(examples):
    """Among examples with k options, every k in a row have their answers in k different positions."""
    golds = {}
    for example in examples:
        golds.setdefault(len(example.options), []).append(example.gold)
    for size, positions in golds.items():
        for start in range(0, len(positions) - size + 1, size):
            assert sorted(positions[start : start + size]) == list(range(size))


@every_family
def test_seeds_give_different_streams(family):
    assert family.generate(12, 0) != family.generate(12, 1)


@every_family
def test_questions_vary_inside_a_family(family):
    examples = family.generate(100, 0)
    assert len({e.question for e in examples}) >= 3
    answers = Counter(e.options[e.gold] for e in examples)
    # no constant preference answers a family
    assert answers.most_common(1)[0][1] <= 45


def test_streams_are_the_same_in_another_process():
    names = ["kind_member", "capital_of_country", "addition", "who_owns"]
    program = (
        "import sys; from degaml_kedro.tasks.suite import FAMILIES\n"
        "for name in sys.argv[1:]:\n"
        "    for e in FAMILIES[name].generate(5, 7): print(repr(e.prompt), e.response)\n"
    )
    command = [sys.executable, "-c", program, *names]
    outputs = {
        subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "PYTHONUTF8": "1"},
        ).stdout
        for seed in ("1", "2")
    }
    here = "".join(
        f"{e.prompt!r} {e.response}\n" for name in names for e in FAMILIES[name].generate(5, 7)
    )
    assert outputs == {here}


def test_too_many_examples_name_the_capacity():
    def draw(rng, size):
        numbers = rng.sample(range(4), size)
        return SuiteQuestion(
            "Largest?", str(max(numbers)), tuple(str(n) for n in numbers if n != max(numbers))
        )

    family = Family("tiny", draw, (2,))
    assert len(family.generate(6, 0)) == 6
    with pytest.raises(
        TaskError, match="'tiny' makes about 6 different examples, but 7 were asked"
    ):
        family.generate(7, 0)


@pytest.mark.parametrize(
    "question",
    [
        None,
        SuiteQuestion("Q?", "a", ("A",)),
        SuiteQuestion("Q?", "seven", ("seventy",)),
        SuiteQuestion("Q?", "a", ("b", "c")),
        SuiteQuestion("Q? " * 60, "a", ("b",)),
    ],
)
def test_unsound_draws_are_never_used(question):
    with pytest.raises(TaskError):
        Family("odd", lambda rng, size: question, (2,)).generate(1, 0)
