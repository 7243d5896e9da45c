"""Every layout that is read: a file each, and the right examples beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from degaml_kedro.tasks.file_records import file_records
from degaml_kedro.tasks.pasted import read_data, read_file, read_pasted
from degaml_kedro.tasks.records import ANSWERS, Reading, RecordError, plain_key

FILES = sorted(
    path for path in (Path(__file__).parent / "layouts").iterdir() if ".expected" not in path.name
)
TABLES = [path for path in FILES if path.suffix not in (".txt", ".gift")]


def described(one):
    system = {"system": one.system} if one.system else {}
    return {
        "question": one.question,
        "options": list(one.options),
        "answer": one.options[one.gold],
        **system,
    }


def expected(path):
    return json.loads(path.with_name(f"{path.name}.expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_layout_is_read(path):
    found = read_file(path)
    assert [described(one) for one in found.examples] == expected(path)
    assert not found.mistakes


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_what_is_read_with_answers_is_read_without(path, tmp_path):
    wanted = expected(path)
    # the right answer of SciQ is one of its options; of messages without options the labels are known otherwise
    if "distractor" in path.read_text(encoding="utf-8"):
        pytest.skip("its answer is an option")
    records = [record for _, _, record in file_records(path)]
    for record in records:
        for key in [key for key in record if plain_key(key) in ANSWERS]:
            del record[key]
        if "messages" in record:
            record["messages"] = [
                turn for turn in record["messages"] if turn["role"] != "assistant"
            ]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    # an adaptation has labels of its own where all its examples had the same options
    shared = wanted[0]["options"] if len({frozenset(one["options"]) for one in wanted}) == 1 else ()
    reading = Reading(answered=False, labels=tuple(shared))
    found = read_file(bare, reading)
    assert not found.mistakes
    assert not found.examples
    assert [list(one.options) for one in found.questions] == [one["options"] for one in wanted]
    prompts = [one.prompt for one in found.questions]
    assert all(p.startswith(one["question"]) for p, one in zip(prompts, wanted, strict=True))


DIALOGUES = [
    ("Anna: hi\nA: is it late?\nB: it is\nA: good night\nB: sleep well", "parting"),
    ("A: is it late?\nB: it is", "time"),
    ("They meet.\nA: hello\nB: hello", "greeting"),
]


def test_a_dialogue_is_no_list_of_options():
    for name in ("text", "prompt"):
        lines = [json.dumps({name: text, "label": label}) for text, label in DIALOGUES]
        found = read_pasted("\n".join(lines), "d.jsonl")
        assert [(one.question, one.options[one.gold]) for one in found.examples] == DIALOGUES
        bare = "\n".join(json.dumps({name: text}) for text, _ in DIALOGUES)
        labels = ("parting", "time", "greeting")
        asked = read_pasted(bare, "d.jsonl", Reading(answered=False, labels=labels)).questions
        assert [(one.question, one.options) for one in asked] == [(t, labels) for t, _ in DIALOGUES]


def test_a_question_without_the_options_that_the_others_end_with_is_a_mistake():
    rows = [{"question": f"Which is {n}?\nA: {n}\nB: {n + 1}", "answer": "A"} for n in range(3)]
    rows[1]["answer"] = "E"
    found = read_pasted(json.dumps(rows), "q.json")
    assert [row.mistake is None for row in found.rows] == [True, False, True]
    assert "unlike those of other lines" in found.mistakes[0].mistake


def test_whole_numbers_in_a_column_with_gaps_are_whole(tmp_path):
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"text": ["a", "b", "c"], "label": [0, 1, None]}).to_parquet(path)
    found = read_file(path, Reading(answered=False))
    assert [one.options for one in found.examples] == [("0", "1")] * 2
    assert len(found.questions) == 3


def test_a_row_may_end_before_the_answer_where_none_is_needed():
    found = read_pasted(
        "text,label\nhello\n", "new.csv", Reading(answered=False, labels=("x", "y"))
    )
    assert [one.options for one in found.questions] == [("x", "y")]
    (row,) = read_pasted("text,label\nhello\na,x\nb,y\n", "new.csv").mistakes
    assert "1 field(s) where the header has 2" in row.mistake


def test_a_line_may_begin_with_a_hash():
    found = read_pasted("# two messages\n#late again => angry\nthank you => kind\n")
    assert [one.question for one in found.examples] == ["#late again", "thank you"]


@pytest.mark.parametrize("options", ["=right ~%50%half ~wrong", "=right =%50%half"])
def test_partly_right_answers_of_quizzes_are_refused(options):
    text = f"Which? {{{options}}}\n\nWhat is hot? {{=fire ~ice}}"
    assert "partly right" in read_pasted(text, "q.gift").mistakes[0].mistake


ROWS = [
    {"question": "Which is a fruit?", "options": ["oak", "pear"], "answer": "pear"},
    {"question": "Which is hot?", "options": ["fire", "ice"], "answer": "fire"},
]


def test_parquet_is_read(tmp_path):
    path = tmp_path / "rows.parquet"
    pd.DataFrame(ROWS).to_parquet(path)
    assert [described(one) for one in read_file(path).examples] == ROWS
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RecordError, match="not a whole Parquet file .*download it again"):
        read_file(path)
    with pytest.raises(RecordError, match="from a file of your own"):
        read_pasted("PAR1", "rows.parquet")


def test_utf_16_is_read_and_other_encodings_are_named():
    text = "Wo ist das Café? => hier\nWo ist die Tür? => dort\n"
    assert read_data(text.encode("utf-16"), "x.txt").examples == read_pasted(text).examples
    with pytest.raises(RecordError, match="line 1: byte 0xE9 is not UTF-8; .*iconv -f cp1252"):
        read_data(text.encode("cp1252"), "x.txt")


def rights(text, name="x.csv"):
    found = read_pasted(text, name)
    return [
        None if row.example is None else row.example.options[row.example.gold] for row in found.rows
    ]


@pytest.mark.parametrize(
    ("header", "answers", "wanted"),
    [
        # columns that are numbered say what is counted from
        ("option1,option2,option3", "123", "abc"),
        ("option0,option1,option2", "012", "abc"),
        # but not where the answers contradict them
        ("option1,option2,option3", "012", [None] * 3),
        ("option0,option1,option2", "123", [None] * 3),
        # of letters the answers say it, a 0 or the last number
        ("A,B,C", "012", "abc"),
        ("A,B,C", "131", "aca"),
        ("A,B,C", "12", [None] * 2),
        ("A,B,C", "03", [None] * 2),
        # what is no number needs none of this
        ("A,B,C", "b2", ["b", None]),
        ("option1,option2,option3", "4c1", [None, "c", "a"]),
    ],
)
def test_numbers_name_the_option_that_was_meant_or_none(header, answers, wanted):
    rows = "".join(f"q{place},a,b,c,{answer}\n" for place, answer in enumerate(answers))
    assert rights(f"question,{header},answer\n{rows}") == list(wanted)


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [("01", "ab"), ("12", "ab"), ("02", [None] * 2), ("11", [None] * 2)],
)
def test_lists_are_counted_from_what_the_answers_say(answers, wanted):
    rows = "".join(f"q{place};a|b;{answer}\n" for place, answer in enumerate(answers))
    assert rights(f"question;options;answer\n{rows}") == list(wanted)


def jsonl(*records):
    return "\n".join(map(json.dumps, records))


def asked(question, answer, **rest):
    return {"question": question, "answer": answer, **rest}


@pytest.mark.parametrize(
    ("text", "reading", "wanted"),
    [
        # labels that are numbers say what is counted from
        (jsonl(asked("q", "1", options={"1.": "x", "2.": "y"})), {}, ["x"]),
        (jsonl(asked("q", 1, options={"option1": "x", "option2": "y"})), {}, ["x"]),
        (jsonl(*(asked(f"q{a}", a, options={"1": "x", "2": "y", "3": "z"}) for a in "01")), {}, [None] * 2),
        (jsonl(asked("q", 1, choices={"text": ["x", "y"], "label": ["2", "3"]})), {}, [None]),
        # and so do letters and numbers in front of the options
        (jsonl(asked("q", "A", options=["B) cat", "A) dog"])), {}, ["A) dog"]),
        (jsonl(asked("q", "B", options=["B. cat", "C. dog"])), {}, ["B. cat"]),
        (jsonl(asked("q", "A", options=["B. cat", "C. dog"])), {}, [None]),
        (jsonl(asked("q", "1", options=["2) cat", "1) dog"])), {}, ["1) dog"]),
        (jsonl(asked("q", "A", options={"(B)": "x", "(A)": "y"})), {}, ["y"]),
        ("question,option1,option2,answer\nq,dog,cat,1", {"options": ("option2", "option1")}, ["dog"]),
        # an answer that is an option's text says nothing of numbers
        ("question,A,B,C,answer\nq,0,1,2,0\nr,x,y,z,3\ns,x,y,z,1", {}, ["0", "z", "x"]),
        ("question,option1,option2,answer\nq,x,y,2.0\nr,x,y,1.0", {}, ["y", "x"]),
        (jsonl(asked("q", 0, options=["x", "y"]) | {"answer_index": 1}), {"answer": "answer_index"}, [None]),
        # options in the question
        (jsonl(asked("Which?\nA. dog\nB. cat\nAnswer with a letter.", "B")), {}, ["cat"]),
        (jsonl(asked("Which?\nA. dog\nB. cat\nand so on", "B")), {}, [None]),
        (jsonl(asked("Which? (A) dog (B) cat", "B")), {}, ["cat"]),
        (jsonl(asked("Which?\n1) dog\n2) cat", "2")), {}, ["cat"]),
        (jsonl(asked("Which?\n- dog\n- cat", "cat"), asked("What?\n- ice\n- fire", "ice")), {}, ["cat", "ice"]),
        # wrong answers in a cell, and lists as pandas writes them
        ("question,correct_answer,distractors\nq,a,b|c", {}, ["a"]),
        ("question,options,answer\nq,\"['a', 'b']\",b", {}, ["b"]),
        # a topic is no answer where there are options
        ("question,A,B,category,answer\nq,x,y,Geo,A", {}, ["x"]),
    ],
)  # fmt: skip
def test_an_answer_names_the_option_that_was_meant_or_none(text, reading, wanted):
    name = "x.jsonl" if text.startswith("{") else "x.csv"
    found = read_data(text.encode(), name, Reading(**reading))
    rights = [row.example and row.example.options[row.example.gold] for row in found.rows]
    assert rights == wanted


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("question;Antwort A;Antwort B;answer\nq;x;y;A\nr;x;y;B", "x.csv", "options that were not found"),
        ("question,first,second,answer\nq,x,y,A\nr,x,y,B", "x.csv", "options that were not found"),
        (jsonl(*(asked("qr"[a], a, variants=["x", "y"]) for a in (0, 1))), "x.jsonl", "options that were not found"),
        ("<?xml version='1.0'?><quiz></quiz>", "x.xml", "XML or HTML"),
        ("q1,yes\nq2,no", "x.csv", "first line of a table names its columns"),
    ],
)  # fmt: skip
def test_options_that_are_not_found_are_missed(text, name, message):
    with pytest.raises(RecordError, match=message):
        read_data(text.encode(), name)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "t", "label": "POS", "answer": "accept"}, "'answer' or 'label'; say which"),
        ({"message": "t", "intent": "i", "response": "Hello"}, "'response' or 'intent'; say which"),
        (
            {"question": "x", "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
            "the key 'question', which the chat has, too",
        ),
    ],
)  # fmt: skip
def test_two_keys_that_mean_the_same_are_refused(record, message):
    found = read_data(jsonl(record, record).encode(), "x.jsonl")
    assert all(message in row.mistake for row in found.rows)


def test_keys_beside_a_chat_are_kept():
    turns = [{"role": "user", "content": "Hot?"}]
    records = [{"system": "Say.", "messages": turns, "label": label} for label in ("yes", "no")]
    records[1]["messages"] = [{"role": "user", "content": "Cold?"}]
    found = read_data(jsonl(*records).encode(), "x.jsonl").examples
    assert [(e.question, e.system, e.options[e.gold]) for e in found] == [
        ("Hot?", "Say.", "yes"),
        ("Cold?", "Say.", "no"),
    ]


def test_what_may_be_meant_otherwise_is_told():
    (note,) = read_data(b"text,label\na,Yes\nb,yes\nc,No\nd,No", "x.csv").notes
    assert "differ in case alone" in note
    many = "".join(f"q{i},answer {i}\n" for i in range(6))
    (note,) = read_data(f"text,label\n{many}".encode(), "x.csv").notes
    assert "6 answers, of which each occurs once" in note


def test_a_table_without_a_suffix_is_one():
    assert read_data(b"text\tlabel\nWater\troof\nKey\tbell", "x.txt").layout == "csv"
    body = Reading(question="body", answered=False, labels=("a", "b"))
    assert [q.question for q in read_data(b"body,date\nIt drips,1.1.\n", "", body).questions] == [
        "It drips"
    ]
    # MMLU's, with a first question of two lines and more semicolons than commas
    text = '"Which of these\nis hot; red; bright; and burns?",ice,fire,snow,moon,B\n'
    assert read_data(text.encode(), "x.csv").examples[0].options == ("ice", "fire", "snow", "moon")


def test_of_files_to_be_asked_there_may_be_any_number_of_rows():
    text = "text\n" + "".join(f"message {i}\n" for i in range(3000))
    asking = Reading(answered=False, labels=("a", "b"), most=None)
    assert len(read_data(text.encode(), "x.csv", asking).questions) == 3000
    with pytest.raises(RecordError, match="more than 2,000"):
        read_data(text.encode(), "x.csv", Reading(answered=False, labels=("a", "b")))


@pytest.mark.parametrize(
    "answer", ["b", "B", "(b)", "[B]", "B.", "cafe\u0301", "caf\u00e9\u200b", "\u00a0café"]
)
def test_letters_in_any_case_and_texts_however_they_are_encoded(answer):
    assert rights(f"question,A,B,answer\nWhere?,bar,caf\u00e9,{answer}\n") == ["caf\u00e9"]


def test_an_answer_may_name_its_column():
    header = "question,Option A,Option B,answer"
    assert rights(f"{header}\nq,x,y,Option B\nr,x,y,option_a\ns,x,y,Option C\n") == ["y", "x", None]


def test_wrong_answers_may_be_a_list():
    record = {
        "question": "Which is hot?",
        "correct_answer": "fire",
        "incorrect_answers": ["ice", "snow"],
    }
    (one,) = read_pasted(json.dumps([record])).examples
    assert (sorted(one.options), one.options[one.gold]) == (["fire", "ice", "snow"], "fire")


def test_a_right_answer_beside_wrong_ones_is_no_letter_and_no_number():
    record = {"question": "Which?", "correct_answer": "B", "distractor1": "1", "distractor2": "A"}
    assert rights(json.dumps([record]), "") == ["B"]
    record = {"question": "How many?", "correct_answer": 1, "incorrect_answers": [2, 0]}
    assert rights(json.dumps([record]), "") == ["1"]


def test_pairs_of_sentences_are_one_question():
    text = "sentence1\tsentence2\tlabel\nIt rains.\tIt is wet.\tyes\nIt rains.\tIt is dry.\tno\n"
    first, _ = read_pasted(text, "x.tsv").examples
    assert (first.question, first.options) == ("It rains.\nIt is wet.", ("yes", "no"))


def test_keys_that_are_not_read_are_told_once():
    rows = [{**row, "id": 7, "source": "x", "hint": "y"} for row in ROWS]
    assert read_pasted(json.dumps(rows)).unread == ("source", "hint")
    rows = [{"prompt": "Hot?\nA: ice\nB: fire", "response": "[B]", "sytem": "", "id": 7}]
    assert read_pasted(json.dumps(rows)).unread == ("sytem",)


def test_columns_may_be_named():
    text = "frage,links,rechts,lösung\nWhich is hot?,fire,ice,links\nWhich is cold?,fire,ice,ice\n"
    reading = Reading("frage", ("links", "rechts"), "lösung")
    found = read_pasted(text, "x.csv", reading)
    assert [one.gold for one in found.examples] == [0, 1]
    with pytest.raises(RecordError, match="there is no question"):
        read_pasted(text, "x.csv")
    with pytest.raises(RecordError, match=r"no column 'farge'; did you mean 'frage'\?"):
        read_pasted(text, "x.csv", Reading("farge", ("links", "rechts"), "lösung"))


def test_labels_that_are_known_are_the_options():
    asked = Reading(labels=("billing", "delivery", "other"), answered=False)
    text = "text,label\nWhere is it?,delivery\nWho are you?,\nWhy?,shipping\n"
    found = read_pasted(text, "x.csv", asked)
    assert {one.options for one in found.questions} == {asked.labels}
    assert [row.example and row.example.gold for row in found.rows] == [1, None, None]
    assert "'shipping' is none of 'billing', 'delivery', 'other'" in found.rows[2].mistake
    assert [one.options for one in read_pasted("Who are you?", "", asked).questions] == [
        asked.labels
    ]
    assert (
        "there are no options" in read_pasted("Who?", "", Reading(answered=False)).rows[0].mistake
    )


def test_between_tabs_a_quote_is_a_character_unless_it_holds_whole_cells(tmp_path):
    rows = [
        ('He said "no", twice', "a"),
        ('"Quoted" start', "b"),
        ("two\nlines", "a"),
        ('5" and 6"', "b"),
    ]
    plain = "text\tlabel\n" + "".join(
        f"{text}\t{label}\n" for text, label in rows if "\n" not in text
    )
    assert [one.question for one in read_pasted(plain, "x.tsv").examples] == [
        text for text, _ in rows if "\n" not in text
    ]
    path = tmp_path / "x.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([("text", "label"), *rows])
    assert [one.question for one in read_file(path).examples] == [text for text, _ in rows]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("q{=a =b ~c}\n\nr{=a ~b}", "", "only questions with one right answer"),
        ("q{#3:1}\n\nr{=a ~b}", "", "only questions with one right answer"),
        ("q{=a -> b =c -> d}\n\nr{=a ~b}", "", "only questions with one right answer"),
        ("q\n\nr{=a ~b}", "", "no answers in braces"),
        (
            '[{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}]',
            "",
            "has 2 user",
        ),
        ('[{"messages": [{"role": "tool", "content": "a"}]}]', "", "a turn is not"),
        ('[{"question": "q", "distractor1": "a", "answer": ""}]', "", "no right one"),
        (
            '[{"question": "q", "options": {"text": ["a", null], "label": ["A", "B"]}, "answer": "A"}]',
            "",
            "is null",
        ),
    ],
)
def test_what_is_of_a_layout_and_no_example_is_a_mistake(text, name, message):
    assert message in read_pasted(text, name).rows[0].mistake
