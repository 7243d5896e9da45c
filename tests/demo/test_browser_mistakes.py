"""Bad input of every kind: the mistake is shown with its line, and nothing is adapted to it."""

from __future__ import annotations

import json
import re

import pytest

from tests.demo.pages import TWENTY

pytestmark = pytest.mark.xdist_group("browser")

GOOD = "Is fire hot? => yes\nIs ice hot? => no\nIs steam hot? => yes"
ROW = {"question": "Is fire hot?", "answer": "yes"}
# by name: what is pasted, and what is said of it
MISTAKES = {
    "no answer": (f"{GOOD}\nIs snow hot?", ["Line 4", "the answer is blank or missing"]),
    "blank answer": (f"{GOOD}\nIs snow hot? =>", ["Line 4", "answer"]),
    "blank question": (f"{GOOD}\n\n=> yes", ["Line 5", "question"]),
    "two stars": (
        f"{GOOD}\nWhat is hot? | fire* | steam* | ice",
        ["Line 4", "2 options have a star"],
    ),
    "no star": (f"{GOOD}\nWhat is hot? | fire | ice", ["Line 4", "a star after the right option"]),
    "option twice": (f"{GOOD}\nWhat is hot? | fire* | ice | ice", ["Line 4", "comes twice"]),
    "answer is no option": (
        f"{GOOD}\n\nWhat is hot?\nA: ice\nB: fire\nAnswer: snow",
        ["Line 5", "snow"],
    ),
    "one answer": ("Is fire hot? => yes\nIs steam hot? => yes", ["all have the answer", "yes"]),
    "contradiction": (f"{GOOD}\nIs fire hot? => no", ["Line 4", "same question"]),
    "too many answers": (
        "\n".join(f"What is {i}? => n{i}" for i in range(30)),
        ["30 different answers"],
    ),
    "only comments": ("# nothing here\n# nor here", ["no examples"]),
    "only blanks": ("  \n\t\n ", []),
    "too few": ("What is hot? | fire* | ice", ["At least 2 examples"]),
    "cut-off JSON": (f'[{json.dumps(ROW)}, {{"question": "Is ice', ["cut off"]),
    "JSON that is no record": (f'{json.dumps(ROW)}\n["a", "b"]', ["Line 2"]),
    "JSON of numbers": (json.dumps([ROW, {**ROW, "answer": 5}, 5]), ["object"]),
    "unknown keys": (json.dumps([ROW, {"hello": "you", "how": "are"}]), ["hello"]),
    "ragged CSV": ("question,answer\nIs fire hot?,yes\nIs ice hot?,no,never\n", ["Line 3"]),
    "open quote in CSV": ('question,answer\nIs fire hot?,yes\n"Is ice hot?,no\n', ["Line 3"]),
    "zero byte": ("Is fire hot? => yes\nIs ice\0 hot? => no", []),
    "too many": (
        "\n".join(f"Is {i} even? => {('yes', 'no')[i % 2]}" for i in range(201)),
        ["at most 200"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_shown_and_adapt_stays_off(same_page, name):
    text, said = MISTAKES[name]
    same_page.paste(text)
    for words in said:
        same_page.wait_text("parse-summary", words)
    if not said:
        # nothing is said of nothing; a browser cannot send a zero byte by hand, and what it sends is shown
        same_page.page.wait_for_timeout(400)
    if name == "zero byte":
        return
    assert not same_page.enabled("adapt"), same_page.text("parse-summary")


def test_mistakes_are_marked_where_they_are(same_page):
    same_page.paste(f"{TWENTY}\nIs this one?\nWhat is hot? | fire | ice\nWhat is <b>hot</b>? =>")
    same_page.wait_rows("parsed-table", 23)
    wrong = same_page.part("parsed-table").locator("tr.dg-wrong")
    assert wrong.count() == 3
    assert [re.match(r"\d+", row)[0] for row in wrong.all_inner_texts()] == ["21", "22", "23"]
    assert "<b>hot</b>" in wrong.nth(2).inner_text()
    assert "3 mistakes" in same_page.text("parse-summary")
    assert same_page.part("parse-summary").get_by_role("alert").count() == 1
    same_page.picture("parsed-with-mistakes")
    # the way out: leave them out
    same_page.part("skip-mistakes").locator("input").check()
    same_page.wait_button("adapt", True)
    same_page.part("skip-mistakes").locator("input").uncheck()
    same_page.wait_button("adapt", False)


def test_mended_text_can_be_adapted_to(same_page):
    same_page.paste(f"{GOOD}\nIs snow hot?")
    same_page.wait_text("parse-summary", "Line 4")
    assert not same_page.enabled("adapt")
    same_page.paste(f"{GOOD}\nIs snow hot? => no")
    same_page.wait_button("adapt", True)
    assert same_page.part("parse-summary").get_by_role("alert").count() == 0


UPLOADS = {
    "picture.txt": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary"),
    "latin.txt": ("Is Käse hot? => yes\nIs Eis hot? => no".encode("latin-1"), "UTF-8"),
    "empty.csv": (b"", "empty"),
    "wrong.json": (b'[{"question": ', "cut off"),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_file_that_cannot_be_read(same_page, tmp_path, name):
    content, said = UPLOADS[name]
    path = tmp_path / name
    path.write_bytes(content)
    same_page.drop_file()
    same_page.upload(path)
    same_page.wait_text("parse-summary", said)
    assert not same_page.enabled("adapt")
    same_page.picture("error")


QUESTIONS = {
    "blank question": ("", "May | June", "blank"),
    "one option": ("What is next?", "May", "option"),
    "option twice": ("What is next?", "May | May", "twice"),
    "too long": ("What is next? " * 300, "May | June", "at most"),
}


def test_pasting_after_a_file_is_read_as_what_it_is(same_page, tmp_path):
    """The file's name decides over its own text alone."""
    path = tmp_path / "examples.json"
    path.write_text(json.dumps([ROW, {**ROW, "question": "Is ice hot?", "answer": "no"}]))
    same_page.drop_file()
    same_page.upload(path)
    same_page.wait_rows("parsed-table", 2)
    same_page.paste(TWENTY)
    same_page.wait_rows("parsed-table", 20)


def test_questions_that_cannot_be_asked(same_page):
    same_page.drop_file()
    same_page.paste(TWENTY)
    same_page.wait_rows("parsed-table", 20)
    same_page.adapt()
    for name, (question, options, said) in QUESTIONS.items():
        same_page.part("side-question").locator("textarea").fill(question)
        same_page.part("side-options").locator("textarea").fill(options)
        same_page.press("side-ask")
        same_page.wait_text("side-answers", said)
        assert same_page.part("side-answers").get_by_role("alert").count() == 1, name
    assert "May" in same_page.ask("What is next?", "May | June")
    # none: those that all examples share
    assert "December" in same_page.ask("What follows?", "")
