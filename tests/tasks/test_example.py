from __future__ import annotations

import pytest

from degaml_kedro.tasks.example import (
    ExampleError,
    make_example,
    make_true_false_example,
    parse_example,
    split_prompt,
)

PROMPT = "Which is a fruit?\nA: oak\nB: pear\nC: lamp"


def test_made_and_parsed_examples_are_the_same():
    made = make_example("Which is a fruit?", ["oak", "pear", "lamp"], 1, system="Be brief.")
    record = {"prompt": PROMPT, "response": "[B]", "system": "Be brief."}
    assert parse_example(record, "here") == made
    assert (made.prompt, made.response, made.labels) == (PROMPT, "[B]", ("A", "B", "C"))
    assert made.options[made.gold] == "pear"
    assert made.question == "Which is a fruit?"


def test_true_false_examples_have_no_option_lines():
    parsed = parse_example({"prompt": "is ice cold?", "response": "[True]"}, "here")
    assert parsed == make_true_false_example("is ice cold?", True)
    assert parsed.labels == parsed.options == ("True", "False")
    assert parsed.question == "is ice cold?"
    assert make_true_false_example("is ice hot?", False).gold == 1


@pytest.mark.parametrize(
    ("prompt", "question", "options"),
    [
        (PROMPT, "Which is a fruit?", ("oak", "pear", "lamp")),
        ("no options here", "no options here", ()),
        ("one\nA: only", "one\nA: only", ()),
        (
            "A: said hi.\nB: said no.\nWho?\nA: x\nB: y",
            "A: said hi.\nB: said no.\nWho?",
            ("x", "y"),
        ),
        ("Fix.\nA: do\nthis\nB: do A: that\nor so", "Fix.", ("do\nthis", "do A: that\nor so")),
        ("Q\nA: x\nB: y\nA: z", "Q", ("x", "y\nA: z")),
        ("Vitamin\nB: is good\nA: x\nB: y\nC: z", "Vitamin\nB: is good", ("x", "y", "z")),
        ("Q\nA:\nB: y", "Q", ("", "y")),
    ],
)
def test_option_lines_are_found_from_the_end(prompt, question, options):
    assert split_prompt(prompt) == (question, options)


def test_question_of_an_example_with_odd_options():
    example = make_example("Who?\nA: spoke\nB: listened", ["one\nC: two", "three"], 0)
    assert example.question == "Who?\nA: spoke\nB: listened"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": PROMPT}, "f.json, item 3: the key 'response' is missing"),
        ({"promt": PROMPT, "response": "[A]"}, "unknown key 'promt'.*did you mean 'prompt'"),
        ({"prompt": PROMPT, "response": "[A]", "xyz": "?"}, "unknown key 'xyz'.*remove it"),
        ({"prompt": PROMPT, "response": 1}, "key 'response': expected a text, found int"),
        ({"prompt": "  ", "response": "[A]"}, "key 'prompt': the text is blank"),
        (
            {"prompt": PROMPT, "response": "[D]"},
            r"'\[D\]' is not among the options; use one of \[A\]",
        ),
        ({"prompt": PROMPT, "response": "pear"}, "'pear' is not among the options"),
        ({"prompt": "Q\nA: one", "response": "[A]"}, "fewer than two option lines"),
        ({"prompt": "Q\nA: one\nB:", "response": "[A]"}, "option B is blank"),
    ],
)
def test_malformed_records_are_named(record, message):
    with pytest.raises(ExampleError, match=message) as error:
        parse_example(record, "f.json, item 3")
    assert str(error.value).startswith("f.json, item 3")


@pytest.mark.parametrize(
    ("question", "options", "gold", "message"),
    [
        (" ", ["a", "b"], 0, "question is blank"),
        ("Q", ["a"], 0, "has 1 option"),
        ("Q", ["a"] * 27, 0, "has 27 option"),
        ("Q", ["a", " "], 0, "option of the question 'Q' is blank"),
        ("Q", ["a", "b"], 2, "answer index 2"),
        ("Q", ["a", "b"], -1, "answer index -1"),
    ],
)
def test_parts_that_make_no_example(question, options, gold, message):
    with pytest.raises(ExampleError, match=message):
        make_example(question, options, gold)
