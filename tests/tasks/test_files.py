from __future__ import annotations

import csv
import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.config.schema import FileSource
from degaml_kedro.tasks.example import make_example
from degaml_kedro.tasks.file_records import file_records
from degaml_kedro.tasks.files import find_files, load_files

EXAMPLES = [
    make_example("Which is a fruit?", ["oak", "pear", "lamp"], 1),
    make_example("Which is hot?", ["fire", "ice"], 0),
]
MESSAGES = [{"prompt": e.prompt, "response": e.response, "system": e.system} for e in EXAMPLES]


def source(path, **settings):
    return FileSource(kind="file", path=str(path), **settings)


def write_json(path, records):
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    return path


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_csv(path, records):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return path


WRITERS = [
    pytest.param("f.json", write_json, id="json"),
    pytest.param("f.jsonl", write_jsonl, id="jsonl"),
    pytest.param("f.csv", write_csv, id="csv"),
]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_messages_are_read_from_every_type_of_file(tmp_path, name, write):
    path = write(tmp_path / name, MESSAGES)
    assert load_files(source(path), "t") == {"all": EXAMPLES}


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_options_may_have_columns_of_their_own(tmp_path, name, write):
    records = [
        {"id": 1, "q": "Which is a fruit?", "a": "oak", "b": "pear", "c": "lamp", "right": "B"},
        {"id": 2, "q": "Which is hot?", "a": "fire", "b": "ice", "c": "", "right": "[A]"},
    ]
    path = write(tmp_path / name, records)
    columns = source(path, question="q", options=("a", "b", "c"), answer="right")
    assert load_files(columns, "t") == {"all": EXAMPLES}


def test_system_messages_and_byte_order_marks_are_read(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text("question,options,answer,system\nOdd?,2|3,B,Be brief.\n", encoding="utf-8-sig")
    ((example,),) = load_files(source(path), "t").values()
    assert (example.system, example.gold) == ("Be brief.", 1)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"))


@settings(max_examples=30, deadline=None)
@given(
    records=st.lists(st.dictionaries(texts, texts, min_size=1, max_size=3), min_size=1, max_size=5)
)
def test_records_survive_json_and_jsonl(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("records")
    for path in (write_json(folder / "f.json", records), write_jsonl(folder / "f.jsonl", records)):
        assert [record for _, _, record in file_records(path)] == records


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_cut_of_a_file_is_an_error_or_whole_records(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    name, write = data.draw(st.sampled_from([w.values for w in WRITERS]))
    whole = write(folder / name, MESSAGES).read_bytes()
    path = folder / name
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        (examples,) = load_files(source(path), "t").values()
    except DegamlError as error:
        examples, message = None, str(error)
    # A CSV file cut inside its last, unquoted field is a whole CSV file.
    assert name == "f.csv" or (
        str(path) in message if examples is None else examples == EXAMPLES[: len(examples)]
    )


# --- which files ----------------------------------------------------------------------------------


def test_a_folder_has_a_file_per_split(tmp_path):
    write_json(tmp_path / "train.json", MESSAGES)
    write_csv(tmp_path / "animals_test.csv", MESSAGES)
    (tmp_path / "README.md").write_text("hello")
    assert list(load_files(source(tmp_path), "t")) == ["train", "test"]


def test_a_folder_may_have_one_file(tmp_path):
    write_json(tmp_path / "animals.json", MESSAGES)
    assert list(find_files(source(tmp_path), "t")) == ["all"]


def test_split_files_and_split_marks(tmp_path):
    write_json(tmp_path / "a_train.json", MESSAGES)
    write_json(tmp_path / "a_dev.json", MESSAGES)
    write_json(tmp_path / "a_test.json", MESSAGES)
    marked = find_files(source(tmp_path / "a_{split}.json"), "t")
    assert {split: path.name for split, path in marked.items()} == {
        "train": "a_train.json",
        "test": "a_test.json",
    }
    named = source(tmp_path, split_files={"train": "a_train.json", "validation": "a_dev.json"})
    assert list(load_files(named, "t")) == ["train", "validation"]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("tran.json", {}, "Task 't': there is no file .*did you mean 'train.json'"),
        ("nowhere/x.json", {}, "there is no file .*correct the task's source.path"),
        ("{split}.jsonl", {}, "there is no file .*replaced by any of train"),
        (".", {"split_files": {"dev": "train.json"}}, "unknown split 'dev'"),
        (".", {"split_files": {"test": "tset.json"}}, "there is no file"),
        ("several", {}, r"several files for the split 'test' \(a_test.json, b_test.json\)"),
        ("unnamed", {}, "has 2 .json, .jsonl, .*file.* none is named after a split"),
    ],
)
def test_files_that_are_not_there(tmp_path, path, options, message):
    write_json(tmp_path / "train.json", MESSAGES)
    for name in ("several/a_test", "several/b_test", "unnamed/x", "unnamed/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_json(tmp_path / f"{name}.json", MESSAGES)
    with pytest.raises(DegamlError, match=message):
        load_files(source(tmp_path / path, **options), "t")


# --- damaged files --------------------------------------------------------------------------------

GOOD = json.dumps(MESSAGES[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.json", b"", "the file is empty"),
        ("f.csv", b" \n", "the file is empty"),
        ("f.json", b"\xef\xbb\xbf\n", "the file is empty"),
        ("f.json", b"[]", "has no examples"),
        ("f.csv", b"prompt,response\n", "has no examples"),
        ("f.xlsx", b"PK", "type '.xlsx' are not known"),
        ("f.json", b'[\n{"prompt": "caf\xe9"}]', "line 2: byte 0xE9 is not UTF-8"),
        ("f.json", f"[{GOOD}, {GOOD[:20]}".encode(), "Line 1: .*it may be cut off"),
        ("f.csv", b"prompt,prompt\na,b\n", "the column 'prompt' comes twice"),
        ("f.json", b'[{"text": "a"}]', "Line 1: there is no answer"),
        (
            "f.jsonl",
            f'{GOOD}\n{{"prompt": "x"}}\n{GOOD}\n{{"prompt": "x"}}'.encode(),
            "(?s)Line 2.*Line 4",
        ),
        ("f.jsonl", b'{"prompt": "x"}\n' * 23, "(?s)Line 20.*\n… and 3 more, in lines 21, 22, 23"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DegamlError, match=message) as error:
        load_files(source(path), "t")
    assert str(path) in str(error.value)


def test_records_with_mistakes_may_be_left_out(tmp_path, caplog):
    path = tmp_path / "f.jsonl"
    path.write_text(f'{GOOD}\n{{"prompt": "x"}}\n{GOOD}')
    with pytest.raises(DegamlError, match="skip_mistakes: true"):
        load_files(source(path), "t")
    assert len(load_files(source(path, skip_mistakes=True), "t")["all"]) == 2
    assert "1 of 3 records are left out. Line 2" in caplog.text


def test_missing_columns_are_named(tmp_path):
    rows = [{"question": e.question, "options": e.options, "answer": "A"} for e in EXAMPLES]
    path = write_json(tmp_path / "f.json", rows)
    with pytest.raises(DegamlError, match="no column 'option'; did you mean 'options'"):
        load_files(source(path, options="option"), "t")
    with pytest.raises(DegamlError, match="there is no answer .the keys are 'question, options"):
        load_files(source(path, answer="xyz"), "t")


def test_options_listed_twice_in_a_prompt_are_kept_with_a_warning(tmp_path, caplog):
    record = {"prompt": "What holds up the tree?\nA: sky\nB: roots\nC: sky", "response": "[B]"}
    path = write_json(tmp_path / "f.json", [*MESSAGES, record])
    with caplog.at_level(logging.WARNING):
        ((*_, example),) = load_files(source(path), "t").values()
    assert example.options == ("sky", "roots", "sky")
    assert "1 example(s) list an option twice, the first in line" in caplog.text


# --- real files -----------------------------------------------------------------------------------

DATASETS = Path(
    os.environ.get("DEGAML_DATASETS") or Path(__file__).parents[3] / "shared" / "datasets"
)
SIZES = {
    "ARC-c": (1118, 299, 1172), "ARC-e": (2251, 570, 2376), "BoolQ": (8000, 500, 3270), "GSM-MC": (7473, 0, 1319),
    "HellaSwag": (550, 100, 350), "OBQA": (4952, 500, 500), "PIQA": (8000, 500, 1838), "SocialIQA": (0, 0, 1930),
    "WinoGrande": (8000, 500, 1267),
}  # fmt: skip


@pytest.mark.skipif(
    not DATASETS.is_dir(),
    reason="no folder of benchmark files: set DEGAML_DATASETS to one with NAME_SPLIT.json files",
)
@pytest.mark.parametrize("name", SIZES)
def test_real_benchmark_files_parse_whole(name):
    loaded = load_files(source(DATASETS / (name + "_{split}.json")), name)
    found = tuple(len(loaded.get(split, ())) for split in ("train", "validation", "test"))
    assert found == SIZES[name]
    for examples in loaded.values():
        for example in examples:
            assert example.question.strip()
            assert example.response == f"[{example.labels[example.gold]}]"
            if example.labels != ("True", "False"):
                listed = zip(example.labels, example.options, strict=True)
                assert all(f"\n{label}: {option}" in example.prompt for label, option in listed)


SUMS = [{"question": f"{n} and {n}?", "answer": f"It is {2 * n}."} for n in range(4)]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_answers_without_options_are_one_closed_set_or_open(tmp_path, name, write):
    path = write(tmp_path / name, SUMS)
    closed, opened = (
        load_files(source(path, open_answers=open_answers), "t")["all"]
        for open_answers in (False, True)
    )
    assert {one.options for one in closed} == {tuple(row["answer"] for row in SUMS)}
    assert [one.prompt for one in opened] == [row["question"] for row in SUMS]
    assert [(one.response, one.options, one.labels) for one in opened] == [
        (row["answer"], (row["answer"],), ()) for row in SUMS
    ]


def test_open_answers_may_be_many_and_contradict_each_other_nowhere(tmp_path):
    rows = [{"question": f"{n} and {n}?", "answer": str(2 * n)} for n in range(40)]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    with pytest.raises(DegamlError, match="40 different answers"):
        load_files(source(path), "t")
    assert len(load_files(source(path, open_answers=True), "t")["all"]) == 40
    write_jsonl(path, [*rows, {"question": "3 and 3?", "answer": "7"}])
    with pytest.raises(DegamlError, match="the same question has the answer '6' in line 4"):
        load_files(source(path, open_answers=True), "t")
