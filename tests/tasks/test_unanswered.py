from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degaml_kedro.tasks.example import Question, make_example, split_prompt
from degaml_kedro.tasks.records import RecordError
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
        ("", "What comes? | April | May => May\n"),
        ("", "What comes? => April\nWhat went? => June\n"),
        ("", "What comes?\nA: April\nB: May\nAnswer: B\n"),
        ("a.jsonl", '{"question": "What?", "options": ["a", "b"], "answer": "a"}'),
        ("a.json", '[{"prompt": "What?\\nA: a\\nB: b", "response": "[A]"}]'),
        ("a.csv", "question,options,answer\nWhat?,a|b,a\n"),
    ],
)
def test_what_has_answers_is_not_unanswered(name, text):
    assert read_unanswered(text.encode(), name) is None


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("", b"What comes?", "Line 1: there are no options"),
        ("a.csv", b"question,options\nWhat?,a|b,c\n", "3 field.s. where the header has 2"),
        ("", b"\xff\xfe", "is empty"),
        ("", b"What comes? | April | May\n\nWhat went? | June | June\n", "Line 3: .*comes twice"),
    ],
)
def test_what_cannot_be_read_is_named(name, data, message):
    with pytest.raises(RecordError, match=message):
        read_unanswered(data, name)


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "ignore")),
    st.sampled_from(["", "a.csv", "a.json", "a.jsonl"]),
)
def test_anything_is_read_or_refused_in_a_sentence(data, name):
    questions = None
    # anything else that is raised fails the test
    with contextlib.suppress(RecordError):
        questions = read_unanswered(data, name)
    assert questions is None or all(len(question.options) >= 2 for question in questions)


@given(st.data())
def test_records_come_back_as_they_were_written(data):
    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
    texts = text.filter(lambda t: t == t.strip() and "\r" not in t and not split_prompt(t)[1])
    records = data.draw(
        st.lists(
            st.fixed_dictionaries(
                {"question": texts, "options": st.lists(texts, min_size=2, max_size=5, unique=True)}
            ),
            min_size=1,
            max_size=5,
        )
    )
    lines = "\n".join(json.dumps(record) for record in records)
    questions = read_unanswered(lines.encode(), "a.jsonl")
    assert [list(question.options) for question in questions] == [r["options"] for r in records]
    assert all(
        question.prompt.startswith(record["question"])
        for question, record in zip(questions, records, strict=True)
    )
