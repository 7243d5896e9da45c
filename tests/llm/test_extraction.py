"""Answers read off texts: every way of it, and the two filters of lm-evaluation-harness's GSM8K item by item."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from degaml_kedro.config.schema import (
    LoraParameters,
    PatternExtraction,
    Phase,
    PromptParameters,
    ScoringParameters,
    TrainingParameters,
)
from degaml_kedro.llm.extraction import (
    ExtractionError,
    extract_answer,
    extract_number,
    extract_option,
    normalize_text,
    right_answer,
)
from degaml_kedro.llm.finetune import fine_tune, initial_adapter
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.tasks.example import Question, make_example, make_open_example
from tests.llm.helpers import tiny_base

OPEN = Question("How many?", "", (), ())
STRICT = PatternExtraction(regex=r"#### (\-?[0-9\.\,]+)", compare="number")
PLAIN = PromptParameters(format="plain")


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("[B]", "ABCD", 1),
        ("The answer is [ C ] since A is wrong", "ABCD", 2),
        ("A. because", "ABCD", 0),
        ("Answer: D", "ABCD", 3),
        ("Apple", "ABCD", None),
        ("", "ABCD", None),
        ("[E]", "ABCD", None),
        ("It's a cat, so B", "ABCD", 1),
    ],
)
def test_options_are_read_off_generated_text(text: str, labels: str, expected: int | None) -> None:
    assert extract_option(text, tuple(labels)) == expected


def test_true_and_false_are_labels_too() -> None:
    assert extract_option("[False]", ("True", "False")) == 1
    assert extract_option("True, surely", ("True", "False")) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18", "18"),
        ("She makes 9 * 2 = $18 every day.", "18"),
        ("That is 1,234,567 people.", "1234567"),
        ("It costs $1,200.50.", "1200.50"),
        ("-5", "-5"),
        ("The balance is -$1,200.", "-1200"),
        ("3 apples, then 4 kg", "4"),
        ("20% of it", "20"),
        ("$\\boxed{72}$", "72"),
        ("$$72$$", "72"),
        ("Well, 7...", "7"),
        ("7, so ...", "7"),
        ("none", None),
        ("... $ ,", None),
        ("", None),
    ],
)
def test_the_last_number_without_separators_and_units(text, expected):
    assert extract_number(text) == expected
    assert extract_answer(text, OPEN, "number") == expected


@pytest.mark.parametrize(
    "text",
    ["The  Cat's, a hat.", "An apple; THE end!", "theatre and another", "a\nb\tc", "-5", "", "the"],
)
def test_texts_are_normalised_as_squad_does(text):
    theirs = pytest.importorskip("lm_eval.tasks.qasper.metrics", reason="the bench extra")
    assert normalize_text(text) == theirs.normalize_answer(text)


@pytest.mark.parametrize(
    ("changes", "text", "expected"),
    [
        ({"regex": r"#### (\S+)"}, "a #### 7 b #### 8", "7"),
        ({"regex": r"#### (\S+)", "take": "last"}, "a #### 7 b #### 8", "8"),
        ({"regex": r"#### (\S+)", "compare": "number"}, "#### $1,000.", "1000"),
        ({"regex": r"Answer: .*", "compare": "text"}, "x\nAnswer: The End.\ny", "answer end"),
        ({"regex": r"(x)|(y)"}, "y", "y"),
        ({"regex": r"x*y"}, "abc", None),
        ({"regex": r"(z?)a"}, "a", None),
        ({"regex": r"\{((?:[^{}]|\{(?1)\})*)\}"}, r"{\frac{1}{2}}", r"\frac{1}{2}"),
    ],
)
def test_a_pattern_takes_its_group_of_one_match(changes, text, expected):
    assert extract_answer(text, OPEN, PatternExtraction(**changes)) == expected


def test_the_right_answer_is_read_in_the_same_way():
    solved = make_open_example("How many?", "2 + 2 = 4.\n#### 1,004")
    assert right_answer(solved, "number") == "1004"
    assert right_answer(solved, STRICT) == "1004"
    # where a file has the answer alone
    assert right_answer(make_open_example("How many?", "1,004"), STRICT) == "1004"
    assert right_answer(make_example("Which?", ["the A", "B."], 1), "text") == "b"
    assert right_answer(make_example("Which?", ["a", "b"], 1), "letter") == 1


def test_a_right_answer_that_is_none_is_named():
    with pytest.raises(ExtractionError, match=r"right answer 'four' to 'How many\?' has no number"):
        right_answer(make_open_example("How many?", "four"), "number")
    with pytest.raises(ExtractionError, match="has no options, so no letter can answer it"):
        right_answer(make_open_example("How many?", "four"), "letter")


def test_a_pattern_that_would_never_end_is_stopped_and_named():
    slow = PatternExtraction(regex=r"(a|a)*$")
    with pytest.raises(ExtractionError, match=r"pattern '\(a\|a\)\*\$' takes longer than 1 s"):
        extract_answer("a" * 100 + "b", OPEN, slow)


# --- lm-evaluation-harness ------------------------------------------------------------------------

# texts as models write them, with the right number
WRITTEN = [
    ("She makes 9 * 2 = $<<9*2=18>>18.\n#### 18", "18"),
    ("#### 1,234", "1234"),
    ("#### 1,234.", "1234"),
    ("#### -5", "-5"),
    ("#### $18", "18"),
    ("####18", "18"),
    ("#### 18\n\nQuestion: How many more? #### 20", "18"),
    ("#### 18.00", "18"),
    ("#### 18.50", "18.50"),
    ("The answer is 72.", "72"),
    ("The answer is **72**", "72"),
    ("It takes 3 hours and 20 minutes", "20"),
    ("They earn $1,200,000 in total.", "1200000"),
    ("It is 15% of $60, so $9", "9"),
    ("10 - 13 = -3", "-3"),
    ("10-3", "3"),
    ("The profit is -$40.", "-40"),
    ("He pays $-40", "-40"),
    ("$\\boxed{1{,}000}$", "1000"),
    ("Half: 0.5 or .5", "0.5"),
    ("7 apples", "7"),
    ("seven", "7"),
    ("", "0"),
    ("#### ", "0"),
]


@dataclass(frozen=True)
class Harness:
    """The task ``gsm8k`` of the installed harness: its filters and its metric, without its data."""

    task: dict

    def right(self, name: str, texts: list[str], targets: list[str]) -> list[bool]:
        filters = importlib.import_module("lm_eval.api.registry").get_filter
        (chain,) = (one["filter"] for one in self.task["filter_list"] if one["name"] == name)
        responses = [[text] for text in texts]
        for one in chain:
            given = {key: value for key, value in one.items() if key != "function"}
            responses = list(filters(one["function"])(**given).apply(responses, [{}] * len(texts)))
        metric = importlib.import_module("lm_eval.api.metrics").exact_match_hf_evaluate
        (about,) = self.task["metric_list"]
        how = {
            key: about[key] for key in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")
        }
        return [
            bool(metric(predictions=[said], references=[target], **how)["exact_match"])
            for said, target in zip(responses, targets, strict=True)
        ]


@pytest.fixture(scope="module")
def harness() -> Harness:
    lm_eval = pytest.importorskip("lm_eval", reason="the bench extra is not installed")
    importlib.import_module("lm_eval.filters")
    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    return Harness(yaml.safe_load(path.read_text(encoding="utf-8")))


def ours(texts: list[str], targets: list[str], extraction) -> list[bool]:
    return [
        extract_answer(text, OPEN, extraction)
        == right_answer(make_open_example("How many?", target), extraction)
        for text, target in zip(texts, targets, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "extraction"), [("strict-match", STRICT), ("flexible-extract", "number")]
)
def test_gsm8k_is_graded_as_the_harness_grades_it_item_by_item(harness, name, extraction):
    texts, numbers = map(list, zip(*WRITTEN, strict=True))
    # right and wrong ones, and targets as the data set has them
    for shift in range(3):
        targets = [f"Some steps.\n#### {numbers[i - shift]}" for i in range(len(numbers))]
        assert ours(texts, targets, extraction) == harness.right(name, texts, targets)
    assert 5 < sum(ours(texts, numbers, extraction)) < len(texts)


def test_what_a_tiny_model_writes_is_graded_as_the_harness_grades_it(harness):
    base = tiny_base()
    examples = [make_open_example(f"{n} and {n}", f"So #### {n % 3}{n % 2}.") for n in range(12)]
    # so that it writes numbers at all
    training = TrainingParameters(phases=(Phase(steps=40, learning_rate=1e-2),), batch_size=12)
    start = initial_adapter(base, LoraParameters())
    *_, last = fine_tune(base, examples, PLAIN, "text", training, start, 0)
    for name, extraction in (("strict-match", STRICT), ("flexible-extract", "number")):
        scoring = ScoringParameters(mode="generate", extraction=extraction, max_new_tokens=12)
        found = score_examples(base, examples, PLAIN, scoring, last.adapter)
        texts = [one.text for one in found]
        theirs = harness.right(name, texts, [example.response for example in examples])
        assert [one.predicted == one.gold for one in found] == theirs
        assert 0 < sum(theirs) < len(theirs)


def test_a_run_of_marks_without_a_digit_is_no_number_here(harness):
    """The one difference: the harness takes an ellipsis for the last number."""
    texts, targets = ["It is 7...", "It is 7, so ..."], ["7", "7"]
    assert ours(texts, targets, "number") == [True, True]
    assert harness.right("flexible-extract", texts, targets) == [False, False]
