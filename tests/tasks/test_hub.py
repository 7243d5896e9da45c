"""The hub's benchmarks, on small copies in the hub's own schemas."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import httpx2
import huggingface_hub
import pandas as pd
import pytest
import yaml
from huggingface_hub.utils._http import default_client_factory

from degaml_kedro.config.schema import FileSource, HubSource, TaskParameters
from degaml_kedro.llm.extraction import right_answer
from degaml_kedro.tasks.example import TaskError
from degaml_kedro.tasks.hub import COLUMNS, MAPPINGS, boxed, load_hub

ARC = [
    {
        "id": "Mercury_1",
        "question": "Which is a mammal?",
        "choices": {"text": ["frog", "whale", "eagle", "ant"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    {
        "id": "NYSEDREGENTS_2",
        "question": "Which melts?",
        "choices": {"text": ["ice", "sand", "air"], "label": ["1", "2", "3"]},
        "answerKey": "1",
    },
]
HELLASWAG = [
    {
        "ind": 4,
        "activity_label": "Removing ice",
        "ctx_a": "A man sits on a roof. [header] Ice [title] Now",
        "ctx_b": "he",
        "endings": ["is  flying [step] up.", "scrapes the ice.", "sings.", "sleeps."],
        "label": "1",
        "split": "val",
    },
    {
        "ind": 5, "activity_label": "Singing", "ctx_a": "A woman stands.", "ctx_b": "", "endings": ["a", "b", "c", "d"],
        "label": "", "split": "test",
    },
]  # fmt: skip
BOOLQ = [
    {"question": "is ice cold", "answer": True, "passage": "Ice is cold."},
    {"question": "is fire cold?", "answer": False, "passage": "Fire is hot."},
]
PIQA = [
    {"goal": "Dry a towel", "sol1": "Hang it up.", "sol2": "Wet it.", "label": 0},
    {"goal": "Hidden", "sol1": "x", "sol2": "y", "label": -1},
]
WINOGRANDE = [
    {"sentence": "Ann beat Bob as _ was slow.", "option1": "Ann", "option2": "Bob", "answer": "2"},
    {"sentence": "Hidden _.", "option1": "x", "option2": "y", "answer": ""},
]
GSM8K = [
    {
        "question": "Tom buys 3 boxes of 1,200 nails and loses 600. How many nails has he?",
        "answer": "He buys 3*1200=<<3*1200=3600>>3600.\nLeft: <<3600-600=3000>>3,000.\n#### 3,000",
    },
    {"question": "Half of one is?", "answer": "It is <<1/2=0.5>>0.5\n#### 0.5"},
]
MATH = [
    {
        "problem": f"Problem {n} of {subject}?",
        "level": f"Level {n % 2}",
        "type": subject,
        "solution": rf"So it is $\boxed{{\frac{{{n}}}{{{scale}}}}}$.",
    }
    for subject, scale in (("Algebra", 7), ("Geometry", 9))
    for n in range(12)
]
DIVLOGICEVAL = [
    {
        "context": "If it rains, it pours.",
        "question": "What follows?",
        "options": ["It rains.", "It pours if it rains.", "It never pours.", "Nothing."],
        "answer": "B",
    }
]
SOCIALIQA = [
    {
        "context": "Kai fell.",
        "question": "How does Kai feel?",
        "answerA": "hurt",
        "answerB": "glad",
        "answerC": "rich",
        "label": "1",
    }
]
CODEMMLU = [
    {
        "task_id": "k1",
        "question": "Which sorts?",
        "problem_description": None,
        "choices": ["qsort", "malloc"],
        "answer": "A",
    },
    {
        "task_id": "k2",
        "question": "def f(x):\n    ...",
        "problem_description": "Add one.",
        "choices": ["x", "x + 1", "x - 1"],
        "answer": "B",
    },
]
# mapping: rows, then question, options and right option of what they map to
CASES = {
    "arc": (
        ARC,
        [
            ("Which is a mammal?", ("frog", "whale", "eagle", "ant"), "whale"),
            ("Which melts?", ("ice", "sand", "air"), "ice"),
        ],
    ),
    "hellaswag": (
        HELLASWAG,
        [
            (
                "Removing ice: A man sits on a roof. Ice. Now He\nWhich continuation is the most plausible?",
                ("is flying up.", "scrapes the ice.", "sings.", "sleeps."),
                "scrapes the ice.",
            )
        ],
    ),
    "boolq": (
        BOOLQ,
        [("is ice cold?", ("True", "False"), "True"), ("is fire cold?", ("True", "False"), "False")],
    ),
    "piqa": (PIQA, [("Dry a towel", ("Hang it up.", "Wet it."), "Hang it up.")]),
    "winogrande": (WINOGRANDE, [("Ann beat Bob as ___ was slow.", ("Ann", "Bob"), "Bob")]),
    "divlogiceval": (
        DIVLOGICEVAL,
        [("If it rains, it pours.\nWhat follows?", tuple(DIVLOGICEVAL[0]["options"]), "It pours if it rains.")],
    ),
    "socialiqa": (SOCIALIQA, [("Kai fell. How does Kai feel?", ("hurt", "glad", "rich"), "hurt")]),
    "codemmlu": (
        CODEMMLU,
        [
            ("Which sorts?", ("qsort", "malloc"), "qsort"),
            ("Add one.\ndef f(x):\n    ...", ("x", "x + 1", "x - 1"), "x + 1"),
        ],
    ),
}  # fmt: skip


def source(mapping, local_path=None, **settings):
    settings = {"splits": {"test": "validation"}, "config": None, **settings}
    path = None if local_path is None else str(local_path)
    return HubSource(kind="hub", id="owner/name", mapping=mapping, local_path=path, **settings)


def parts(examples):
    return [(e.question, e.options, e.options[e.gold]) for e in examples]


def to_parquet(folder, rows, name="validation-00000-of-00001.parquet"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return folder


@pytest.mark.parametrize("mapping", CASES)
def test_mappings_fit_the_schemas_of_the_hub(mapping, tmp_path):
    rows, expected = CASES[mapping]
    loaded = load_hub(source(mapping, to_parquet(tmp_path, rows)), "t")
    assert list(loaded) == ["test"]
    assert parts(loaded["test"]) == expected


def test_every_mapping_is_tested():
    assert {*CASES, "gsm8k", "gsm8k_options", "math", "math_options"} == set(MAPPINGS)
    assert COLUMNS.keys() == MAPPINGS.keys()


def test_gsm8k_has_wrong_answers_of_its_own_numbers(tmp_path):
    first, second = load_hub(source("gsm8k_options", to_parquet(tmp_path, GSM8K)), "t")["test"]
    assert first.question == GSM8K[0]["question"]
    assert (set(first.options), first.options[first.gold]) == (
        {"3000", "3600", "3", "1200"},
        "3000",
    )
    assert (len(second.options), second.options[second.gold]) == (4, "0.5")
    assert [first, second] == MAPPINGS["gsm8k_options"](GSM8K)
    assert [second, first] == MAPPINGS["gsm8k_options"](GSM8K[::-1])


def test_gsm8k_answers_are_in_all_positions():
    rows = [{**GSM8K[0], "question": f"{n}: {GSM8K[0]['question']}"} for n in range(2000)]
    golds = [example.gold for example in MAPPINGS["gsm8k_options"](rows)]
    assert all(abs(golds.count(position) - 500) < 100 for position in range(4))


def test_math_has_wrong_answers_of_the_same_subject_and_level():
    examples = MAPPINGS["math_options"](MATH)
    for row, example in zip(MATH, examples, strict=True):
        alike = {
            boxed(r["solution"])
            for r in MATH
            if (r["type"], r["level"]) == (row["type"], row["level"])
        }
        assert example.question == row["problem"]
        assert example.options[example.gold] == boxed(row["solution"])
        assert len(set(example.options)) == 4
        assert set(example.options) <= alike
    assert MAPPINGS["math_options"](MATH) == examples


def test_math_goes_beyond_a_small_level():
    lonely = {**MATH[0], "type": "Precalculus", "problem": "Alone?", "solution": r"\boxed{8}"}
    example = MAPPINGS["math_options"]([lonely, *MATH])[0]
    assert example.options[example.gold] == "8"
    assert len(set(example.options)) == 4


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"$\boxed{4}$", "4"),
        (r"first \boxed{1}, no: $\boxed{\frac{1}{\sqrt{2}}}$.", r"\frac{1}{\sqrt{2}}"),
        (r"\fbox{ x }", "x"),
        (r"it is $\boxed 5$.", "5"),
    ],
)
def test_boxed_answers(solution, answer):
    assert boxed(solution) == answer


@pytest.mark.parametrize("solution", ["no answer", r"\boxed{4"])
def test_solutions_without_a_boxed_answer(solution):
    with pytest.raises(ValueError, match="boxed"):
        boxed(solution)


# --- local copies ---------------------------------------------------------------------------------


def saved(tmp_path):
    dataset = datasets.DatasetDict({"validation": datasets.Dataset.from_list(PIQA)})
    dataset.save_to_disk(str(tmp_path / "copy"))
    return tmp_path / "copy"


def saved_split(tmp_path):
    datasets.Dataset.from_list(PIQA).save_to_disk(str(tmp_path / "copy"))
    return tmp_path / "copy"


def cloned(tmp_path):
    to_parquet(tmp_path, PIQA, "plain_text/validation/0000.parquet")
    return to_parquet(tmp_path, BOOLQ, "plain_text/train/0000.parquet")


def json_lines(tmp_path):
    path = tmp_path / "piqa_validation.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in PIQA))
    return tmp_path


def comma_separated(tmp_path):
    pd.DataFrame(PIQA).to_csv(tmp_path / "validation.csv", index=False)
    return tmp_path / "validation.csv"


@pytest.mark.parametrize("copy", [saved, saved_split, cloned, json_lines, comma_separated])
def test_local_copies_in_any_form(tmp_path, copy):
    assert parts(load_hub(source("piqa", copy(tmp_path)), "t")["test"]) == CASES["piqa"][1]


def test_lists_in_csv_cells_are_decoded(tmp_path):
    rows = [{**row, "choices": json.dumps(row["choices"])} for row in ARC]
    pd.DataFrame(rows).to_csv(tmp_path / "validation.csv", index=False)
    assert parts(load_hub(source("arc", tmp_path), "t")["test"]) == CASES["arc"][1]


def test_several_configurations_are_put_together(tmp_path):
    to_parquet(tmp_path, ARC[:1], "easy/validation-0.parquet")
    to_parquet(tmp_path, ARC[1:], "hard/validation-0.parquet")
    to_parquet(tmp_path, ARC, "other/validation-0.parquet")
    loaded = load_hub(source("arc", tmp_path, config="easy+hard"), "t")
    assert parts(loaded["test"]) == CASES["arc"][1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mapping": "arcs"}, "no mapping 'arcs'; did you mean 'arc'"),
        ({"mapping": "xyzzy"}, "no mapping 'xyzzy'; use one of arc, boolq"),
        ({"splits": {"dev": "validation"}}, "source.splits names the unknown split 'dev'"),
        ({"splits": {"test": "test"}}, "no file for the split 'test'"),
        ({"local_path": "nowhere"}, "no local copy 'nowhere' of owner/name"),
        (
            {"mapping": "boolq"},
            "'validation': the columns are id, question, choices, answerKey, .*: there is no answer. .*use the mapping",
        ),
        (
            {"mapping": "divlogiceval"},
            "reads context or question, options or choices, answer or label: there is no answer or label",
        ),
    ],
)  # fmt: skip
def test_copies_that_do_not_fit(tmp_path, settings, message):
    to_parquet(tmp_path, ARC)
    settings = {"mapping": "arc", "local_path": tmp_path, **settings}
    with pytest.raises(TaskError, match=message) as error:
        load_hub(source(**settings), "science")
    assert "'science'" in str(error.value)


def test_labels_may_be_numbers_or_texts_and_blank_ones_are_not_published():
    rows = [
        {**PIQA[0], "goal": f"{n}?", "label": label}
        for n, label in enumerate([1, "1", 1.0, "-1", None, ""])
    ]
    assert [one and one.gold for one in MAPPINGS["piqa"](rows)] == [1, 1, 1, None, None, None]


@pytest.mark.parametrize(
    ("mapping", "row", "message"),
    [
        ("arc", {**ARC[0], "answerKey": "E"}, "row 0: the row does not fit"),
        ("piqa", {**PIQA[0], "label": 2}, "answer index 2"),
        ("hellaswag", {**HELLASWAG[0], "label": "x"}, "row 0: the row does not fit"),
        ("gsm8k", {"question": "?", "answer": "none"}, "no '#### number' line"),
        ("codemmlu", {**CODEMMLU[0], "choices": ["one"]}, r"has 1 option"),
        ("codemmlu", {**CODEMMLU[0], "choices": "one, two"}, r"a text, not a list: 'one, two'"),
        (
            "socialiqa",
            {**SOCIALIQA[0], "label": "0"},
            "answer is 0, and options are counted from 1",
        ),
        ("gsm8k", {"question": "?", "answer": None}, "row 0: the row does not fit"),
        (
            "math_options",
            {**MATH[0], "solution": "It is 5."},
            "row 0: the row does not fit .*boxed",
        ),
        ("piqa", PIQA[1], "has no published answers; map 'test' to another split"),
        ("math_options", MATH[0], "fewer than 4 different answers"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, mapping, row, message):
    with pytest.raises(TaskError, match=message):
        load_hub(source(mapping, to_parquet(tmp_path, [row])), "t")


def test_damaged_parquet_is_named(tmp_path):
    (tmp_path / "validation.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(TaskError, match=r"validation\.parquet is not a whole Parquet file"):
        load_hub(source("arc", tmp_path), "t")


def test_saved_copies_without_the_split_are_named(tmp_path):
    with pytest.raises(TaskError, match="has no split 'test', only validation"):
        load_hub(source("piqa", saved(tmp_path), splits={"test": "test"}), "t")


# --- the hub itself -------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose every answer is the given one, or that cannot be reached."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    # Whatever the environment says: these tests have a network of their own.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = []

    def answer_with(status=None):
        def transport(request):
            asked.append(request)
            if status is None:
                raise httpx2.ConnectError("no route to host", request=request)
            return httpx2.Response(status, request=request)

        huggingface_hub.set_client_factory(
            lambda: httpx2.Client(transport=httpx2.MockTransport(transport))
        )
        return asked

    yield answer_with
    huggingface_hub.set_client_factory(default_client_factory)


def test_an_unreachable_hub_says_how_to_run_offline(hub):
    asked = hub()
    with pytest.raises(
        TaskError, match="Task 't': the split 'validation' of owner/name.* cannot be loaded"
    ) as error:
        load_hub(source("arc"), "t")
    for way_out in ("save_to_disk", "local_path", "HF_HUB_OFFLINE=1"):
        assert way_out in str(error.value)
    assert asked


def test_a_dataset_that_the_hub_does_not_have_is_named(hub):
    hub(404)
    with pytest.raises(TaskError, match="the split 'validation' of owner/name.* cannot be loaded"):
        load_hub(source("arc"), "t")


def test_offline_mode_asks_nobody(hub, monkeypatch):
    asked = hub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match="save_to_disk"):
        load_hub(source("arc"), "t")
    assert asked == []


def test_what_is_asked_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(name, config, **settings):
        asked.append((name, config, settings))
        return datasets.Dataset.from_list(ARC)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load_hub(source("arc", config="easy+hard", revision="abc"), "t")
    assert len(loaded["test"]) == 4
    settings = {"revision": "abc", "split": "validation"}
    assert asked == [("owner/name", "easy", settings), ("owner/name", "hard", settings)]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("BuilderConfig 'x' not found"),
        RuntimeError("Dataset scripts are no longer supported"),
        OSError(28, "No space left on device"),
        FileNotFoundError("gone"),
    ],
)
def test_errors_of_the_hub_have_a_way_out(monkeypatch, error):
    def load_dataset(*arguments, **settings):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(TaskError, match=r"revision main cannot be loaded .*source\.id") as caught:
        load_hub(source("arc"), "t")
    assert str(error) in str(caught.value)


def test_word_problems_are_open_and_their_answers_are_found():
    scored = {name: task.scoring for name, task in declared().items()}
    tom, half = MAPPINGS["gsm8k"](GSM8K)
    assert (tom.prompt, tom.labels) == (GSM8K[0]["question"], ())
    assert tom.options == (GSM8K[0]["answer"],)
    assert [right_answer(one, scored["gsm8k"].extraction) for one in (tom, half)] == ["3000", "0.5"]
    solutions = [
        r"So it is $\boxed{\frac{1}{2^{x_{3}}}}$.",
        r"First \boxed{7}, then $\fbox{(1,2)}$.",
        r"It is $\boxed 5$",
        "It is 5.",
    ]
    rows = [{"problem": f"{place}?", "solution": text} for place, text in enumerate(solutions)]
    *examples, wrong = MAPPINGS["math"](rows)
    found = [right_answer(one, scored["math"].extraction) for one in examples]
    assert found == [r"\frac{1}{2^{x_{3}}}", "(1,2)", "5"]
    assert "row 3: " in str(wrong)


# --- configuration --------------------------------------------------------------------------------


def declared():
    path = Path(__file__).parents[2] / "conf" / "base" / "parameters_hub_tasks.yml"
    return {
        name: TaskParameters.model_validate(task)
        for name, task in yaml.safe_load(path.read_text("utf-8"))["tasks"].items()
    }


def test_the_twelve_benchmarks_are_declared():
    tasks = declared()
    assert len(tasks) == 15  # three of them with options and without
    assert isinstance(tasks.pop("jama").source, FileSource)
    assert {task.source.mapping for task in tasks.values()} == set(MAPPINGS)
    for task in tasks.values():
        assert task.description
        assert task.group
        assert "test" in task.source.splits
