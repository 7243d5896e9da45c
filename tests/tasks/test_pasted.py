from __future__ import annotations

import contextlib
import csv
import io
import json
import string
import time

import pytest
from hypothesis import example as with_example
from hypothesis import given, settings
from hypothesis import strategies as st

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.tasks.example import Question, make_example, make_true_false_example, split_prompt
from degaml_kedro.tasks.pasted import (
    MAX_BYTES,
    MAX_SHOWN,
    PastedError,
    read_data,
    read_file,
    read_pasted,
    read_question,
)
from degaml_kedro.tasks.records import MAX_FIELD, MAX_ROWS, Reading

MARCH = make_example("What month comes after March?", ["May", "April", "June"], 1)
FIRE = make_example("Is fire hot?", ["yes", "no"], 0)
ICE = make_example("Is ice hot?", ["yes", "no"], 1)


def one(text, name=""):
    (example,) = read_pasted(text, name).examples
    return example


def mistake(text, name=""):
    """The only mistake of a text; the right rows around it must be there all the same."""
    pasted = read_pasted(text, name)
    (row,) = pasted.mistakes
    assert row.example is None
    assert len(pasted.examples) == len(pasted.rows) - 1
    return row


# --- plain text -----------------------------------------------------------------------------------


def test_answers_alone_are_each_others_options():
    pasted = read_pasted("Is fire hot? => yes\nIs ice hot?=>no\n\nIs lava hot? =>  yes \n")
    assert pasted.layout == "text"
    assert pasted.examples[:2] == (FIRE, ICE)
    assert [(row.line, row.shown, row.mistake) for row in pasted.rows] == [
        (1, "Is fire hot? => yes", None),
        (2, "Is ice hot?=>no", None),
        (4, "Is lava hot? => yes", None),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "What month comes after March? | May | April* | June",
        "What month comes after March?|May|April *|June",
        "What month comes after March? | May | April | June => April",
        "What month comes after March? | May | April | June => B",
        "What month comes after March? | May | April* | June => April",
        "What month comes after March? | May | April* | June => [b]",
    ],
)
def test_a_line_may_have_options_of_its_own(line):
    assert one(line) == MARCH


@pytest.mark.parametrize(
    "options",
    ["A: May\nB: April\nC: June", "A) May\nB) April\nC) June", " A. May\n B. April\n C. June",
     "(a) May\n(b) April\n(c) June", "[A] May\n[B] April\n[C] June"],
)  # fmt: skip
@pytest.mark.parametrize(
    "answer",
    ["Answer: B", "answer: April", "Correct answer: B) April", "ANSWER = (b)", "=> B", "\nAnswer: [B]"],
)  # fmt: skip
@pytest.mark.parametrize("gap", ["\n", "\n\n", "\n# a comment\n"])
def test_blocks(options, answer, gap):
    assert one(f"{MARCH.question}{gap}{options}\n{answer}\n") == MARCH


def test_blocks_may_have_stars_or_no_options_and_follow_each_other():
    text = (
        "Is fire hot?\nA: yes*\nB: no\n\nTwo lines:\n  is ice hot?\nA: yes\nB: no\nAnswer: no\n"
        "What is\nred?\nAnswer: blood\nWhat is green? => grass"
    )
    pasted = read_pasted(text)
    assert pasted.examples == (
        FIRE,
        make_example("Two lines:\n  is ice hot?", ["yes", "no"], 1),
        make_example("What is\nred?", ["blood", "grass"], 0),
        make_example("What is green?", ["blood", "grass"], 1),
    )
    assert [row.line for row in pasted.rows] == [1, 5, 10, 13]


def test_options_may_be_like_marks():
    assert one("1 + 1? | 1 | 2 | 3 => 2").gold == 1
    assert one("Which ends in a star?\nA: f*\nB: f\nAnswer: f").options == ("f*", "f")
    assert one("Which? | f | f* => f*").options == ("f", "f*")
    assert one("Which pipe?\nA: a | b\nB: c\nAnswer: B").options == ("a | b", "c")
    assert one("Which? | b | a => a").gold == 1
    assert one("Which?\nA: two\nlines\nB: one\nAnswer: A").options == ("two\nlines", "one")
    assert one("B. Franklin or A. Lincoln?\nA: B.\nB: A.\nAnswer: [A]").options == ("B.", "A.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("What now?", "the answer is blank or missing; give it, as 'question => answer'"),
        ("=> yes", "there is no question above"),
        (" | a | b*", "The question is blank"),
        ("What? =>", "the answer is blank"),
        ("What? | a | b =>", "the answer is blank"),
        ("What? | a | b", "missing; .* by a star after the right option"),
        ("What? | a* | b*", "2 options have a star"),
        ("What? | a*", "has 1 option.* 2 to 26"),
        ("What? | a | | b*", "An option of .* is blank"),
        ("What? | a | b* | a", "the option 'a' comes twice"),
        ("What? | a* | a", "the option 'a' comes twice"),
        ("What? | a | b => c", "the answer 'c' is not among the 2 options"),
        ("What? | a | b => C", "the answer 'C' is not among the 2 options"),
        ("What? | B | A => A", "can be read as letter or text of different options"),
        ("What?" + "".join(f" | {i}" for i in range(26)) + " | x*", "27 option"),
        ("What?\nA: x\nC: y\nB: z\nAnswer: A", "option C comes where B should"),
        ("What?\nA: x\nB: y\nA: z\nAnswer: A", "option A comes where C should"),
        ("What?\nA: x\nB: y\nAnswer: C", "'C' is not among the 2 options"),
        ("What?\nA: x\nAnswer: A", "an option A but no option B"),
        ("What?\nA: x\nB:\nAnswer: A", "An option of .* is blank"),
        ("A: x\nB: y\nAnswer: A", "there is no question above"),
        ("Is it? => yes\nWhat?\nA: x\nB: y\nAnswer: A", "put a blank line between two"),
        ("Is it? | yes* | no\nWhat?\nA: x\nB: y\nAnswer: A", "put a blank line between two"),
        ("What?\nA: x => y\nB: y\nAnswer: A", "'=>' or a starred option stands inside"),
        ("x" * (MAX_FIELD + 1) + " => yes", "the question has 20,001 characters"),
        ("What? => " + "x" * (MAX_FIELD + 1), "the answer has 20,001 characters"),
        (f"What? | a* | {'x' * (MAX_FIELD + 1)}", "the option has 20,001 characters"),
        ("What? => \ud800", r"the answer has the code U\+D800"),
        ("\udfff? | a* | b", r"the question has the code U\+DFFF"),
    ],
)  # fmt: skip
def test_mistakes_of_plain_text_stand_beside_the_right_rows(text, message):
    row = mistake(f"Is fire hot? => yes\nIs ice hot? => no\n\n{text}\n\nIs lava hot? => yes")
    assert row.line == 4
    with pytest.raises(PastedError, match=f"Line 4.*{message}"):
        raise PastedError(row.mistake)


def test_a_contradiction_is_a_mistake_and_a_repetition_is_none():
    row = mistake("Is it? => yes\nIs it? => yes\nWas it? => no\nIs it? => no")
    assert (row.line, row.mistake) == (
        4,
        "Line 4: the same question has the answer 'yes' in line 1; keep the right one.",
    )


def test_text_is_kept_as_it_is():
    texts = [
        "<script>alert(1)</script>",
        "מה הצבע של הים?",
        "e\u0301 \u200fx\u200e",
        "a\u2028b\x0bc",
    ]
    pasted = read_pasted("".join(f"{text} | <b>&amp;</b> | כחול*\n" for text in texts))
    assert [example.question for example in pasted.examples] == texts
    assert {example.options for example in pasted.examples} == {("<b>&amp;</b>", "כחול")}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks(start, end):
    text = start + "Is fire hot? => yes\n\nIs ice hot?\nAnswer: no\nwhat\n".replace("\n", end)
    for pasted in (read_pasted(text), read_data(text.encode(), "x.txt")):
        assert pasted.examples == (FIRE, ICE)
        assert [row.line for row in pasted.rows] == [1, 3, 5]


def test_what_is_shown_is_short_and_printable():
    row = mistake("a\tb \x1b[31m \ud800" + "x" * 500 + "\nIs fire hot? => yes\nIs ice hot? => no")
    assert row.shown.startswith("a b �[31m �xxx")
    assert row.shown.endswith("x…")
    assert len(row.shown) == MAX_SHOWN


# --- the whole text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "", "The text is empty"),
        ("\ufeff \n\t\r\n", "a.csv", "The file 'a.csv' is empty"),
        ("# only a comment", "", "The text has no examples"),
        ("[]", "", "has no examples"),
        ("question,answer\n", "", "has no examples"),
        ("a => b", "", "all have the answer 'b'"),
        ("a => b\nc => b", "", "all have the answer 'b'; add some with another"),
        ("\n".join(f"q{i} => a{i}" for i in range(27)), "", "27 different answers.* at most 26"),
        ("a\0b => c", "", r"is binary, not text \(line 1 "),
        ("q => a\n" * 10_000, "", "more than 2,000 examples; keep at most 2,000"),
        ("x" * (MAX_BYTES + 1), "", "larger than 1,024 KiB"),
        ("é" * (MAX_BYTES // 2 + 1), "", "larger than 1,024 KiB"),
        ("x" * 10 * MAX_BYTES, "", "larger than 1,024 KiB"),
        (
            "a,b\n1,2",
            "a.csv",
            "line 1: there is no question .the keys are 'a, b'.; name it 'question'",
        ),
        ("\nquestion,b\n1,2", "a.csv", "line 2: there is no answer .*; name it 'answer'"),
        ("question,Question,answer\n1,2,3", "", "the column 'question' comes twice"),
        ('"', "a.csv", "there is no question"),
    ],
)
def test_texts_that_hold_nothing_are_refused(text, name, message):
    with pytest.raises(PastedError, match=message):
        read_pasted(text, name)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Is fire hot? => yes\ncaf\xe9 => no", "The file 'x.txt', line 2: byte 0xE9 is not UTF-8"),
        (
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            "is binary, not text .line 3 has a zero byte",
        ),
        (b"x" * 10 * MAX_BYTES, "larger than 1,024 KiB"),
        (b"", "is empty"),
    ],
)
def test_data_that_is_no_text_is_refused(data, message):
    with pytest.raises(PastedError, match=message):
        read_data(data, "x.txt")


def test_files(tmp_path):
    path = tmp_path / "examples.csv"
    path.write_bytes("\ufeffquestion;answer\r\nIs fire hot?;yes\r\nIs ice hot?;no\r\n".encode())
    assert read_file(path).examples == (FIRE, ICE)
    for missing in (tmp_path / "none.csv", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(PastedError, match="cannot be read .*; check its path"):
            read_file(missing)
    path.write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(PastedError, match="larger than"):
        read_file(path)


@pytest.mark.parametrize("name", ["", "x.txt", "x.TXT", "x.unknown", "x", "..", "/", "\0"])
def test_names_without_a_known_suffix_leave_the_layout_to_the_text(name):
    assert read_pasted("Is fire hot? => yes\nIs ice hot? => no", name).layout == "text"


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ('[{"question": "Is fire hot?", "answer": "yes"}, {', "json"),
        (' \n[\n {"question": "Is fire hot?", "answer": "yes"}, 1]', "json"),
        ('{"question": "Is fire hot?", "answer": "yes"}\nx', "jsonl"),
        ("Question,Answer\nIs fire hot?,yes\nx,", "csv"),
        ("answer\tid\tinput\nyes\t1\tIs fire hot?\n\t2\tx", "csv"),
        ("[1] Is fire hot? => yes\nx", "text"),
        ("{x} Is fire hot? => yes\nx", "text"),
        ("question, answer and so on => yes\nx", "text"),
    ],
)
def test_layouts_are_found_from_the_text(text, layout):
    pasted = read_pasted(text)
    assert (pasted.layout, len(pasted.examples), len(pasted.mistakes)) == (layout, 0, 2)


def test_one_answer_beside_mistakes_is_a_mistake_of_its_row_too():
    pasted = read_pasted("Is fire hot? => yes\nWhat?\nIs ice hot? | yes | no*")
    assert pasted.examples == (ICE,)
    assert pasted.mistakes[0].mistake.startswith("Line 1: it has no options of its own. Examples")
    assert pasted.mistakes[0].mistake.endswith("| right option*'.")


# --- JSON, JSONL and CSV --------------------------------------------------------------------------


def rendered(records, name):
    if name.endswith(".json"):
        return json.dumps(records, indent=1, ensure_ascii=False)
    if name.endswith(".jsonl"):
        return "\n".join(json.dumps(record) for record in records)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(records[0]), delimiter="\t" if name == "x.tsv" else ",")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


NAMES = ["x.json", "x.jsonl", "x.csv", "x.tsv"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    "record",
    [
        {"prompt": MARCH.prompt, "response": MARCH.response, "system": ""},
        {"question": MARCH.question, "options": "May|April|June", "answer": "April"},
        {"question": MARCH.question, "options": "May|April|June", "answer": "b) April"},
        {"Question": MARCH.question, "Choices": '["May", "April", "June"]', "Answer": "[B]"},
        {"id": 7, "input": MARCH.question, "options": "May | April | June", "output": "B"},
        {"text": MARCH.question, "A": "May", "B": "April", "C": "June", "D": "", "label": "b"},
        {"text": MARCH.question, "option 1": "May", "option 2": "April", "option 3": "June", "label": "April"},
        {"question": MARCH.question, "opa": "May", "opb": "April", "opc": "June", "answer": "[B]"},
    ],
)  # fmt: skip
def test_records_with_options(name, named, record):
    assert one(rendered([record], name), name if named else "") == MARCH


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "keys", [("question", "answer"), ("input", "output"), ("text", "label"), ("prompt", "response")]
)
@pytest.mark.parametrize("extra", [{}, {"system": "Be brief."}])
def test_records_without_options(name, keys, extra):
    records = [{keys[0]: e.question, keys[1]: e.options[e.gold], **extra} for e in (FIRE, ICE)]
    expected = [
        make_example(e.question, e.options, e.gold, extra.get("system", "")) for e in (FIRE, ICE)
    ]
    assert list(read_pasted(rendered(records, name), name).examples) == expected


def test_records_of_other_types():
    records = [
        {"question": "One?", "options": {"a": "May", "B": "April"}, "answer": "b"},
        {"question": "Two?", "options": [5, 6.5], "answer": "[A]"},
        {"question": "Either?", "options": {"left": "May", "right": "April"}, "answer": "right"},
        {"question": "Three?", "options": None, "answer": True},
        {"question": "Four?", "options": " ", "answer": 3},
        {"prompt": "Five?", "response": "[True]"},
    ]
    assert read_pasted(json.dumps(records)).examples == (
        make_example("One?", ["May", "April"], 1),
        make_example("Two?", ["5", "6.5"], 0),
        make_example("Either?", ["May", "April"], 1),
        make_example("Three?", ["True", "3"], 0),
        make_example("Four?", ["True", "3"], 1),
        make_true_false_example("Five?", True),
    )


def test_eleven_option_columns_are_in_the_order_of_their_numbers():
    record = {"question": "Which?", **{f"option{i}": f"o{i}" for i in range(1, 12)}, "answer": "K"}
    assert one(rendered([record], "x.csv")).options[-2:] == ("o10", "o11")


Q, A = '"question"', '"answer"'
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("1", "expected an object"),
        ("[]", "expected an object"),
        ("null", "expected an object"),
        ("'x'", "not valid JSON .*but there is"),
        ("{'question': 1}", "not valid JSON .*but there is"),
        (f'{{{Q}: "a" {A}: "b"}}', "not valid JSON .*Expecting ',' delimiter"),
        (f'{{{Q}: "a", {Q}: "b", {A}: "c"}}', "'question' comes twice"),
        (f'{{{Q}: "a", "Question": "b", {A}: "c"}}', "'Question' comes twice"),
        ("{}", "there is no question .*the keys are none"),
        ('{"questoin": "a", "answer": "b"}', "no question .*rename 'questoin' to 'question'"),
        (f'{{{Q}: "a", "x": "b"}}', "there is no answer .*name it 'answer'"),
        (f'{{{Q}: 1, {A}: "b"}}', "key 'question': expected a text, found a number"),
        (f'{{{Q}: null, {A}: "b"}}', "key 'question': expected a text, found null"),
        (f'{{{Q}: "a", {A}: null}}', "the answer is blank or missing"),
        (f'{{{Q}: "a", {A}: ["b", "c"]}}', "key 'answer': expected a text, found a list"),
        (f'{{{Q}: "a", {A}: {{}}}}', "key 'answer': expected a text, found an object"),
        (f'{{{Q}: " ", {A}: "b"}}', "the question is blank"),
        (f'{{{Q}: "a", {A}: NaN}}', "the answer is blank or missing"),
        (f'{{{Q}: "a", {A}: Infinity}}', "a number is not finite, or too large"),
        (f'{{{Q}: "a", "choices": {{"text": ["x", "y"], "label": ["A"]}}, {A}: "A"}}', "2 texts and 1 labels"),
        (f'{{{Q}: "a", {A}: -Infinity}}', "a number is not finite, or too large"),
        (f'{{{Q}: "a", {A}: 1e999}}', "a number is not finite, or too large"),
        (f'{{{Q}: "a", "options": [1, 1e999], {A}: 1}}', "a number is not finite, or too large"),
        (f'{{{Q}: "a", {A}: {"9" * 5000}}}', "a number has too many digits"),
        (f'{{{Q}: "a", "options": "[{"9" * 5000}]", {A}: 1}}', "not a JSON list .*digits"),
        (f'{{{Q}: "a", "options": ["x", "y"], {A}: "{"9" * 5000}"}}', "is not among the 2"),
        (f'{{{Q}: "a", {A}: "\\ud800"}}', r"the answer has the code U\+D800"),
        (f'{{{Q}: "a\\u0000", {A}: "b"}}', r"the question has the code U\+0000"),
        (f'{{{Q}: "a", "optoins": ["x", "y"], {A}: "x"}}', "'optoins' .*did you mean 'options'"),
        (f'{{{Q}: "a", "options": ["x", "x"], {A}: "x"}}', "the option 'x' comes twice"),
        (f'{{{Q}: "a", "options": ["x"], {A}: "x"}}', "has 1 option"),
        (f'{{{Q}: "a", "options": "x", {A}: "x"}}', "has 1 option"),
        (f'{{{Q}: "a", "options": [], {A}: "x"}}', "has 0 option"),
        (f'{{{Q}: "a", "options": 3, {A}: "x"}}', "expected a list of options, found a number"),
        (f'{{{Q}: "a", "options": "[x, y]", {A}: "x"}}', "begins with a bracket but is not a JSON list"),
        (f'{{{Q}: "a", "options": ["x", ""], {A}: "x"}}', "is blank"),
        (f'{{{Q}: "a", "options": ["x", "y"], {A}: true}}', "'True' is not among"),
        (f'{{{Q}: "a", "options": ["x", "y"], {A}: 4}}', "'4' is not among the 2 options"),
        (f'{{{Q}: "a", "options": ["x", "y"], {A}: "C"}}', "'C' is not among the 2 options"),
        (f'{{{Q}: "a", "options": ["B", "A"], {A}: "A"}}', "can be read as letter or text"),
        (f'{{{Q}: "a", "options": ["1", "2", "3"], {A}: "1"}}', "may be counted from 0 or from 1"),
        (f'{{{Q}: "a", "options": [1, 2, 3], {A}: 1}}', "may be counted from 0 or from 1"),
        (f'{{{Q}: "a", "options": ["x", "y"], {A}: "z"}}', "'z' is not among the 2 options"),
        (f'{{{Q}: "a", "options": ["x", null], {A}: "x"}}', "an option is null"),
        (f'{{{Q}: "a", "options": "{DEEP[:9000]}", {A}: "x"}}', "not a JSON list .*recursion"),
        (f'{{{Q}: "a", "options": ["x", "y"], {A}: {"[" * 300}{"]" * 300}}}', "found a list"),
        ('{"prompt": "a", "response": "[B]"}', "fewer than two option lines"),
        ('{"prompt": "Q\\nA: one", "response": "[A]"}', "fewer than two option lines"),
        ('{"prompt": "Q\\nA: one\\nB:", "response": "[A]"}', "An option of .* is blank"),
        ('{"prompt": "Q\\nA: x\\nB: y", "response": "[z]"}', r"give the option's text, or its letter A to B"),
        ('{"prompt": "Q\\nA: x\\nB: y", "response": 1}', "the answer '1' is not among the 2 options"),
        ('{"prompt": "Q\\nA: x\\nB: y", "response": " "}', "the answer is blank or missing"),
        ('{"prompt": " ", "response": "[True]"}', "question .*is blank"),
        ('{"prompt": "Q\\nA: x\\nB: x", "response": "[B]"}', "the option 'x' comes twice"),
        ('{"prompt": "Q\\nA: x\\nB: y", "response": "[C]"}', r"'\[C\]' is not among the 2 options"),
        (f'{{{Q}: "{"x" * (MAX_FIELD + 1)}", {A}: "b"}}', "the question has 20,001 characters"),
        (f'{{{Q}: "{"x" * 3 * MAX_FIELD}", {A}: "b"}}', "or longer than 60,000 characters"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_mistakes_of_records_stand_beside_the_right_ones(name, record, message):
    good = '{"question": "Is fire hot?", "answer": "yes"}'
    other = '{"question": "Is ice hot?", "answer": "no"}'
    lines = ",\n".join([good, record, other])
    text = f"[{lines}]" if name == "x.json" else lines.replace(",\n", "\n")
    row = mistake(text, name)
    assert row.line == 2
    with pytest.raises(PastedError, match=f"Line 2.*{message}"):
        raise PastedError(row.mistake)
    assert len(row.mistake) <= 500


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[{"question": "a", "answer": "b"},\n {"question": "c"', 2, "may be cut off"),
        ('[{"question": "a", "answer": "b"},\n', 2, "no closing bracket; it looks cut off"),
        ('[{"question": "a", "answer": "b"}\n', 2, "no closing bracket"),
        ('[{"question": "a", "answer": "b"}]\n\nand so on', 3, "text after the closing bracket"),
        ('{"question": "a", "answer": "b"}\n{"question": "c', 2, "may be cut off"),
        (
            '{"question": "a", "answer": "b"}\n{"question": "c", "answer": "b"} x',
            2,
            "but there is 'x'",
        ),
        ("hello", 1, "but there is 'hello'"),
        (f"[\n{DEEP}", 2, "nested too deeply"),
        (f'[\n{{"a": {DEEP}', 2, "nested too deeply"),
    ],
)
def test_json_that_is_cut_off(text, line, message):
    row = read_pasted(text, "" if text[0] in "[{" else "a.json").mistakes[-1]
    assert row.line == line
    assert message in row.mistake


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", ""])
@pytest.mark.parametrize("indent", [None, 1])
def test_objects_may_follow_each_other_each_over_several_lines(name, indent):
    records = [{"question": e.question, "answer": e.options[e.gold]} for e in (FIRE, ICE)]
    whole = [json.dumps(record, indent=indent) for record in records]
    assert read_pasted("\n".join(whole), name).examples == (FIRE, ICE)
    # a broken one ends where the next line begins one, whatever objects are in it
    broken = '{"question": "x", "options": [{"a": 1}, {"text": "y"}, "answer" "b"}'
    found = read_pasted("\n".join([whole[0], broken, whole[1]]), name)
    assert (found.examples, len(found.mistakes)) == ((FIRE, ICE), 1)


def test_commas_between_the_items_of_a_list_may_be_missing():
    text = '[{"question": "Is fire hot?", "answer": "yes"}\n{"question": "Is ice hot?", "answer": "no"},]'
    pasted = read_pasted(text)
    assert (pasted.examples, pasted.mistakes) == ((FIRE, ICE), ())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('"a,b', "a quote is opened and not closed"),
        ('"a"b,c', "the quotes are not valid CSV"),
        ("a,b,c", "3 field.s. where the header has 2"),
        ("a", "1 field.s. where the header has 2"),
        ("a,", "the answer is blank"),
        (",a", "the question is blank"),
        (f"{'x' * (MAX_FIELD + 1)},b", "the question has 20,001 characters"),
        (f"{'x' * 4 * MAX_FIELD},b", "the question has 80,000 characters"),
        (f'"{"x" * 10 * MAX_FIELD},b', "a quote is opened and not closed"),
        ("\ud800,b", r"the question has the code U\+D800"),
    ],
)
def test_mistakes_of_csv_rows_stand_beside_the_right_ones(row, message):
    found = mistake(f"question,answer\nIs fire hot?,yes\n{row}\n\n,\nIs ice hot?,no,,\n", "x.csv")
    assert found.line == 3
    with pytest.raises(PastedError, match=f"Line 3.*{message}"):
        raise PastedError(found.mistake)


def test_csv_fields_may_have_lines_and_the_next_row_knows_its_own():
    text = 'question;answer\n"Is fire\nhot; really ""hot""?";yes\nx\nIs ice hot?;no'
    pasted = read_pasted(text)
    assert pasted.examples[0].question == 'Is fire\nhot; really "hot"?'
    assert [row.line for row in pasted.rows] == [2, 4, 5]


# --- round trips ----------------------------------------------------------------------------------

characters = st.characters(codec="utf-8", exclude_characters="\0\r")
fields = st.text(characters, min_size=1, max_size=20).map(str.strip).filter(bool)
plain_fields = (
    st.text(
        st.characters(codec="utf-8", exclude_characters="\0\r\n|=*#:.)](["), min_size=1, max_size=20
    )
    .map(str.strip)
    .filter(bool)
)
names = st.sampled_from(["", *NAMES])


def of_own_options(texts):
    """Questions with options of their own, no question twice."""
    options = st.lists(texts, min_size=2, max_size=5, unique=True)
    one_of = options.flatmap(lambda o: st.tuples(texts, st.just(o), st.integers(0, len(o) - 1)))
    return st.lists(one_of, min_size=1, max_size=6, unique_by=lambda item: item[0]).map(
        lambda items: [make_example(*item) for item in items]
    )


def of_shared_options(texts):
    """Questions that share their options, each of which is the answer to one."""
    options = st.lists(texts, min_size=2, max_size=5, unique=True)
    return st.tuples(options, st.lists(texts, min_size=5, max_size=8, unique=True)).map(
        lambda drawn: [
            make_example(question, drawn[0], i % len(drawn[0]))
            for i, question in enumerate(drawn[1])
        ]
    )


@settings(max_examples=150, deadline=None)
@given(examples=of_own_options(plain_fields), form=st.sampled_from(["star", "arrow", "block"]))
def test_own_options_survive_plain_text(examples, form):
    def line(example):
        answer = example.options[example.gold]
        if form == "block":
            return f"{example.prompt}\nAnswer: [{example.labels[example.gold]}]\n"
        if form == "star":
            marked = [f"{o}*" if o == answer else o for o in example.options]
            return " | ".join([example.question, *marked])
        return (
            " | ".join([example.question, *example.options])
            + f" => [{string.ascii_uppercase[example.gold]}]"
        )

    pasted = read_pasted("\n".join(map(line, examples)), "x.txt")
    assert list(pasted.examples) == examples


@settings(max_examples=100, deadline=None)
@given(examples=of_shared_options(plain_fields), block=st.booleans())
def test_shared_options_survive_plain_text(examples, block):
    form = "{}\nAnswer: {}\n" if block else "{} => {}"
    text = "\n".join(form.format(e.question, e.options[e.gold]) for e in examples)
    assert list(read_pasted(text, "x.txt").examples) == examples


@settings(max_examples=150, deadline=None)
@given(examples=of_own_options(fields), name=st.sampled_from(NAMES), layout=st.integers(0, 2))
def test_own_options_survive_json_jsonl_and_csv(examples, name, layout):
    def record(example):
        right = f"[{example.labels[example.gold]}]"
        if layout == 0:
            return {"prompt": example.prompt, "response": right}
        if layout == 1:
            return {
                "question": example.question,
                "options": json.dumps(example.options),
                "answer": right,
            }
        columns = dict.fromkeys("ABCDE", "") | dict(zip("ABCDE", example.options, strict=False))
        return {"question": example.question, **columns, "answer": right}

    # A question may have lines that look like options, and an option may look like a letter in brackets.
    clear = [
        example
        for example in examples
        if split_prompt(example.prompt) == (example.question, example.options)
        and example.response not in example.options
    ]
    if clear:
        assert list(read_pasted(rendered(list(map(record, clear)), name), name).examples) == clear


@settings(max_examples=100, deadline=None)
@given(examples=of_shared_options(fields), name=st.sampled_from(NAMES))
def test_shared_options_survive_json_jsonl_and_csv(examples, name):
    records = [{"question": e.question, "answer": e.options[e.gold]} for e in examples]
    assert list(read_pasted(rendered(records, name), name).examples) == examples


# --- whatever comes -------------------------------------------------------------------------------

PIECES = [
    "=>", "|", "*", "#", "A: ", "B) ", "C.", "Answer: ", "A", "B", "\n", "\n\n", "\r", " ", "\t", ",", ";", '"', '""',
    "[", "]", "{", "}", ":", "\\u0000", "\\ud800", "\ud800", "NaN", "1e999", "null", "question", "answer", "options",
    '"question":', '"answer":', '"options":', '"prompt":', '"response":', "question,answer\n", "x", "é",
    "\u2028", "\ufeff",
    "[" * 2000, '{"a":' * 2000, "9" * 5000,
]  # fmt: skip
scraps = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.text(st.characters(), max_size=60),
)
any_name = st.sampled_from(["", "x.txt", "x.json", "x.jsonl", "x.csv", "x.tsv", "x.png", "\0"])


@settings(max_examples=600, deadline=None)
@given(text=scraps, name=any_name)
@with_example(
    text='[{"question":"q","a":"x","b":' + "[" * 900 + "]" * 900 + ',"answer":"x"}]', name=""
)
@with_example(
    text='{"question":"q","options":["a"],"answer":' + "[" * 990 + "]" * 990 + "}", name=""
)
def test_any_text_is_rows_or_a_pasted_error(text, name):
    try:
        pasted = read_pasted(text, name)
    except PastedError as error:
        message = str(error)
        assert message.endswith(".")
        message.encode()
        return
    assert pasted.rows
    assert len(pasted.examples) + len(pasted.mistakes) == len(pasted.rows)
    lines = [row.line for row in pasted.rows]
    assert lines == sorted(lines)
    assert (
        1 <= lines[0] <= lines[-1] <= text.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1
    )
    for row in pasted.rows:
        assert (row.example is None) != (row.mistake is None)
        assert len(row.shown) <= MAX_SHOWN
        assert "\n" not in row.shown
        (row.shown + (row.mistake or "")).encode()
        if row.example:
            row.example.prompt.encode()
            assert len(set(row.example.options)) == len(row.example.options)


@settings(max_examples=300, deadline=None)
@given(
    data=st.one_of(st.binary(max_size=60), scraps.map(lambda t: t.encode("utf-8", "replace"))),
    name=any_name,
)
def test_any_data_are_rows_or_a_pasted_error(data, name):
    with contextlib.suppress(PastedError):
        assert read_data(data, name).rows


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"{'x' * 480} {i} => a{i % 20}" for i in range(MAX_ROWS)),
        json.dumps([{"question": f"{'x' * 440} {i}", "options": ["a", "b"], "answer": "b"} for i in range(MAX_ROWS)]),
        "question,options,answer\n" + f'"{"x" * 480}",a|b,b\n' * MAX_ROWS,
        "Q\n" + "B:\n" * (MAX_BYTES // 3 - 1),
        json.dumps([{"prompt": "B:\n" * 4900, "response": "[B]"}] * 50),
        "[" + '{"a":[{},' * (MAX_BYTES // 9 - 1),
        "[" + "{]}" + " " * (MAX_BYTES - 9),
        ",".join(["question", "answer", *(f"c{i}" for i in range(120_000))]) + "\nx,y",
        json.dumps([{"question": "q", "options": ["a"] * 10_000, "answer": "a"}] * 15),
    ],
    ids=["text", "json", "csv", "letters", "prompts", "nested", "blanks", "columns", "options"],
)  # fmt: skip
def test_a_full_text_is_read_in_seconds(text):
    assert len(text) <= MAX_BYTES
    began = time.process_time()
    with contextlib.suppress(PastedError):
        read_pasted(text)
    assert time.process_time() - began < 5


# --- questions ------------------------------------------------------------------------------------


def test_questions_are_those_of_examples():
    asked = read_question(
        " What month comes after March?\r\n", ["May", " April ", "", "June", "\n"]
    )
    assert asked == Question.of(MARCH)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (" ", ["a", "b"], "The question is blank"),
        ("What?", [], "has 0 option"),
        ("What?", ["a", " "], "has 1 option"),
        ("What?", ["a", "b", "a "], "the option 'a' comes twice"),
        ("What?", [str(i) for i in range(27)], "has 27 option"),
        ("x" * (MAX_FIELD + 1), ["a", "b"], "the question has 20,001 characters"),
        ("What?", ["a", "x" * (MAX_FIELD + 1)], "the option has 20,001 characters"),
        ("What?\0", ["a", "b"], r"U\+0000"),
        ("What?", ["a", "\udc00"], r"U\+DC00"),
    ],
)
def test_questions_that_cannot_be_asked(text, options, message):
    with pytest.raises(PastedError, match=message):
        read_question(text, options)


def test_pasted_errors_are_the_projects_own():
    assert issubclass(PastedError, DegamlError)


@pytest.mark.parametrize(
    ("columns", "answers", "right"),
    [
        # a number names the column of that number, whatever the columns are called
        (("c1", "c2", "c3"), (1, 2), ["w", "x"]),
        (("Response 0", "Response 1", "Response 2"), (1, 2), ["x", "y"]),
        (("option3", "option1", "option2"), (1, 2), ["x", "y"]),
        # of columns without numbers nothing tells what it is counted from
        (("first", "second", "third"), (1, 2), None),
    ],
)
def test_a_number_names_the_column_of_that_number(columns, answers, right):
    rows = "".join(f"{name}?,w,x,y,{answer}\n" for name, answer in zip("AB", answers, strict=True))
    given = Reading(question="q", options=columns, answer="right")
    found = read_data(f"q,{','.join(columns)},right\n{rows}".encode(), "a.csv", given)
    if right is None:
        assert all("may be counted from 0 or from 1" in row.mistake for row in found.rows)
    else:
        assert [one.options[one.gold] for one in found.examples] == right
