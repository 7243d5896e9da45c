from __future__ import annotations

import pytest

from degaml_kedro.tasks.example import (
    Question,
    TaskError,
    make_example,
    make_true_false_example,
    split_prompt,
)

PROMPT = "Which is a fruit?\nA: oak\nB: pear\nC: lamp"


def test_an_example_has_its_options_as_lines():
    made = make_example("Which is a fruit?", ["oak", "pear", "lamp"], 1, system="Be brief.")
    assert (made.prompt, made.response, made.labels) == (PROMPT, "[B]", ("A", "B", "C"))
    assert made.options[made.gold] == "pear"
    assert (made.question, made.system) == ("Which is a fruit?", "Be brief.")


def test_true_false_examples_have_no_option_lines():
    made = make_true_false_example("is ice cold?", True)
    assert made.labels == made.options == ("True", "False")
    assert made.question == made.prompt == "is ice cold?"
    assert (made.response, made.gold) == ("[True]", 0)
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
    with pytest.raises(TaskError, match=message):
        make_example(question, options, gold)


def test_a_dialogue_is_no_list_of_options():
    """Lines that look like options stay in the question, where the options are known."""
    dialogue = "A: I cannot log in\nB: Try again"
    assert make_true_false_example(dialogue, True).question == dialogue
    chosen = make_example(dialogue, ["Hi\nA: hello", "Bye"], gold=0)
    assert chosen.question == Question.of(chosen).question == dialogue
