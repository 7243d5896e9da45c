"""Questions alone, for other programs; what layouts there are is ``test_layouts``' and ``test_pasted``'s."""

from __future__ import annotations

import pytest

from degaml_kedro.tasks.example import Question, make_example
from degaml_kedro.tasks.pasted import read_data
from degaml_kedro.tasks.records import Reading, RecordError
from degaml_kedro.tasks.unanswered import read_unanswered

LAYOUTS = {
    "lines.txt": "# months\nWhat comes? | April | May\n\nWhat went? | June | July | May\n",
    "blocks.txt": "What comes?\nA: April\nB: May\n\nWhat went?\nA: June\nB: July\nC: May\n",
    "crlf.txt": "What comes? | April | May\r\nWhat went? | June | July | May",
    "lines.jsonl": '{"question": "What comes?", "options": ["April", "May"]}\n\n'
    '{"question": "What went?", "options": "June|July|May"}\n',
    "list.json": '[{"prompt": "What comes?\\nA: April\\nB: May"},\n'
    '{"text": "What went?", "choices": ["June", "July", "May"]}]',
    "columns.csv": "question,A,B,C\nWhat comes?,April,May,\nWhat went?,June,July,May\n",
    "bars.csv": "question;options\nWhat comes?;April|May\nWhat went?;June|July|May\n",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_questions(name):
    questions = read_unanswered(LAYOUTS[name].encode(), name)
    assert questions == [
        Question.of(make_example("What comes?", ["April", "May"], 0)),
        Question.of(make_example("What went?", ["June", "July", "May"], 0)),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "What comes? | April* | May\nWhat went? | June | July\n"),
        ("", "What comes? => April\nWhat went? => June\n"),
        ("a.json", '[{"prompt": "What?\\nA: a\\nB: b", "response": "[A]"}]'),
    ],
)
def test_what_has_answers_is_not_unanswered(name, text):
    assert read_unanswered(text.encode(), name) is None


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("", b"What comes?", "Line 1: there are no options"),
        ("a.csv", b"question,options\nWhat?,a|b,c\n", "3 field.s. where the header has 2"),
        ("", b"What comes? | April | May\n\nWhat went? | June | June\n", "Line 3: .*comes twice"),
    ],
)
def test_what_cannot_be_read_is_named(name, data, message):
    with pytest.raises(RecordError, match=message):
        read_unanswered(data, name)


@pytest.mark.parametrize(
    "text",
    [
        'text\nhello\n"no, thanks"\n',
        'id,text\n1,hello\n2,"no, thanks"\n',
        "hello\nno, thanks\n",
    ],
)
def test_a_table_of_texts_from_a_pipe_may_have_a_header(text):
    found = read_data(text.encode(), "", Reading(answered=False, labels=("a", "b")))
    asked = [row.question.question for row in found.rows if row.question is not None]
    assert asked == ["hello", "no, thanks"]
