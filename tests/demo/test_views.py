"""What the page shows: numbers as they are, texts as texts, and the comparison as it is read from MLflow."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from demo.views import (
    comparison,
    escape,
    newest_comparison,
    render,
    user_text,
    verdict,
)
from hypothesis import given
from hypothesis import strategies as st

from degaml_kedro.session import Accuracy, Answer, Change, Progress, Report, Tried
from degaml_kedro.tasks.example import Question, make_example
from degaml_kedro.tasks.pasted import PastedError, read_pasted
from degaml_kedro.tracking.comparison import ComparisonView, MethodRow

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> ${1+1} {{x}} \" ' &amp; `"
_ALLOWED = {
    *("header", "h1"),
    *("b", "bdi", "code", "details", "div", "h4", "i", "li", "ol", "p", "progress", "section"),
    *("span", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}


class _Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text += data


def check_harmless(html):
    found = _Tags(html)
    assert set(found.tags) <= _ALLOWED
    assert not any(name.startswith("on") for name in found.attributes)
    # the page's component would fill these in
    assert "${" not in html
    assert "{{" not in html
    return found.text


def tried(**changes):
    plain = Tried(
        1,
        1,
        '{"family":"ttt"}',
        "ttt",
        "Train it",
        Accuracy(9, 15),
        Accuracy(12, 15),
        0.2,
        1.5,
        True,
    )
    return replace(plain, **changes)


def report(**changes):
    plain = Report(
        support=15,
        held_out=40,
        base=Accuracy(20, 40),
        generated=Accuracy(30, 40),
        adapted=Accuracy(39, 40),
        base_support=Accuracy(7, 15),
        generated_support=Accuracy(9, 15),
        tried=(tried(),),
        strategy=('{"family":"ttt"}',),
        words="Train it",
        changes=(Change("Which?", ("x", "y"), 1, 0, 1), Change("What?", ("x", "y"), 0, 0, None)),
        seconds={"base": 1.0, "trying": 2.5},
    )
    return replace(plain, **changes)


def kept(title):
    """What the history shows of a model."""
    model = SimpleNamespace(report=report())
    return SimpleNamespace(id="0", number=1, title=title, model=model, trained_on=True)


def method(name, accuracy, by_seed=(), bound=False, tokens=None):
    return MethodRow(
        method=name,
        bound=bound,
        accuracy=accuracy,
        by_seed=by_seed,
        n=200.0,
        tokens=tokens,
        seconds=None,
    )


def view(*methods, pool="meta_test"):
    return ComparisonView(
        run="0",
        when=datetime(2026, 11, 23, tzinfo=UTC),
        profile="comparison",
        seeds=(999, 1000, 1001),
        pool=pool,
        methods=methods,
    )


@given(st.text())
def test_any_text_is_shown_letter_by_letter(text):
    assert _Tags(f"<p>{escape(text)}</p>").text.replace("\r\n", "\n") == text.replace("\r\n", "\n")
    check_harmless(f"<p>{escape(text)}</p>")


@pytest.mark.parametrize(
    "make",
    [
        lambda: render("alert", EVIL),
        lambda: render("note", EVIL),
        lambda: user_text(EVIL),
        lambda: render("header", EVIL),
        lambda: render("outcome", report(words=EVIL, strategy=(EVIL,), seconds={EVIL: 1}), EVIL),
        lambda: render(
            "proposals", report(tried=(tried(words=EVIL), tried(after=None, error=EVIL)))
        ),
        lambda: render("changes", report(changes=(Change(EVIL, (EVIL, "y"), 1, 0, None),))),
        lambda: render("accuracies", report(warnings=(EVIL,))),
        lambda: render("progress", Progress("trying", EVIL, 0.5, 1, None, report())),
        lambda: render(
            "answers",
            Question.of(make_example(EVIL, [EVIL, "y"], 0)),
            Answer(0, EVIL, (0.5, 0.5)),
            Answer(1, "y", (0.1, 0.9)),
            EVIL,
        ),
        lambda: render("parsed_table", read_pasted(f"{EVIL} => a\nb => {EVIL}\nno answer {EVIL}")),
        lambda: render(
            "summary", read_pasted("Which? | a | b => <i>alert(1)</i>\na => b\nc => d"), EVIL
        ),
        lambda: render("history", [kept(EVIL)], None, 0),
        lambda: comparison([view(method(EVIL, 0.9))]),
    ],
)
def test_scripts_are_shown_as_text(make):
    assert "alert(1)" in check_harmless(make())


def test_the_accuracies_come_with_interval_and_n():
    text = _Tags(render("accuracies", report())).text
    for accuracy in (Accuracy(20, 40), Accuracy(30, 40), Accuracy(39, 40)):
        assert accuracy.text in text
    assert "On the 15 examples it was given" in text


def test_dots_lie_at_the_estimate_and_bands_span_the_interval():
    html = render("accuracies", report(adapted=Accuracy(1, 4), held_out=4))
    low, high = Accuracy(1, 4).interval
    row = html[html.index("Adapted model") :]
    assert 'class="dg-point" style="left:25.0%"' in row
    assert f'class="dg-band" style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"' in row


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            Accuracy(2, 5),
            Accuracy(4, 5),
            "2 more of 5 right than the base model. The intervals overlap",
        ),
        (
            Accuracy(4, 5),
            Accuracy(2, 5),
            "2 fewer of 5 right than the base model. The intervals overlap",
        ),
        (Accuracy(2, 5), Accuracy(2, 5), "as often as the base model (n = 5)"),
        (Accuracy(10, 100), Accuracy(90, 100), "The intervals do not overlap"),
        (Accuracy(2, 5), None, "while the adaptation goes on"),
    ],
)
def test_the_verdict_says_how_sure_it_is(before, after, told):
    assert told in verdict(report(base=before, adapted=after))


def test_without_held_out_examples_nothing_is_claimed():
    plain = report(held_out=0, base=None, generated=None, adapted=None, changes=())
    text = _Tags(render("accuracies", plain)).text
    assert "Nothing was held out" in text
    assert "held-out examples" not in text
    assert Accuracy(7, 15).text in text
    assert render("changes", plain) == ""


def test_what_was_written_from_the_examples_is_shown_with_the_time_that_it_took():
    written = report(written=Accuracy(33, 40), written_seconds=0.42)
    text = _Tags(render("accuracies", written)).text
    assert "Written in 0.4 s" in text
    assert Accuracy(33, 40).text in text
    assert "Written" not in _Tags(render("accuracies", report())).text


def test_what_is_not_known_yet_is_said():
    text = _Tags(render("accuracies", report(generated=None, adapted=None))).text
    assert text.count("not yet known") == 2


def test_proposals_with_scores_and_failures():
    found = render(
        "proposals",
        report(tried=(tried(), tried(number=2, after=None, executed=False, error="too slow"))),
    )
    assert Accuracy(12, 15).text in found
    assert found.count("carried out</b>") == 1
    assert "could not be carried out: too slow" in found
    assert render("proposals", report(tried=())) == ""


def test_changes_are_counted_by_kind():
    text = _Tags(render("changes", report())).text
    assert "1 mended, 1 broken, 0 wrong in another way." in text
    many = (Change("q", ("x", "y"), 1, 0, 1),) * 150
    assert "And 50 more." in render("changes", report(changes=many))


def test_progress_names_the_stage_and_the_time_left():
    html = render("progress", Progress("trying", "Trying 2 of 6", 0.4, 10, 15.2, report()))
    assert '<li class="now" aria-current="step">Try strategies</li>' in html
    assert html.count('class="done"') == 2
    assert "10 s · about 15 s left" in html
    assert 'value="40"' in html


def test_places_in_the_queue():
    assert render("queue", 0) == ""
    assert "1 adaptation is ahead" in render("queue", 1)
    assert "3 adaptations are ahead" in render("queue", 3)


def test_answers_side_by_side():
    question = Question.of(make_example("Which?", ["May", "June"], 0))
    text = _Tags(
        render(
            "answers", question, Answer(0, "May", (0.75, 0.25)), Answer(1, "June", (0.1, 0.9)), 1
        )
    ).text
    assert "75.0 %" in text
    assert "90.0 %" in text
    assert "They give different answers" in text


def test_mistakes_are_named_once_with_their_line():
    pasted = read_pasted("a => b\nno answer\nc => d")
    told = _Tags(render("summary", pasted)).text
    assert "2 examples read as plain text" in told
    assert len(re.findall("Line 2", told)) == 1
    assert "dg-wrong" in render("parsed_table", pasted)


def test_mistakes_are_shown_before_the_rest_of_a_long_list():
    lines = [f"q{n} => {n % 3}" for n in range(150)]
    pasted = read_pasted("\n".join([*lines, "no answer"]))
    html = render("parsed_table", pasted)
    assert html.index("dg-wrong") < html.index("q0")
    assert "And 51 more rows" in html


@given(st.text(max_size=200))
def test_whatever_is_pasted_is_shown(text):
    try:
        pasted = read_pasted(text)
    except PastedError:
        return
    check_harmless(render("parsed_table", pasted) + render("summary", pasted))


def test_methods_are_shown_best_first_with_their_seeds_and_costs():
    html = comparison(
        [
            view(
                method("base", 0.4, (0.38, 0.4, 0.42)),
                method("oracle_strategy", 0.99, (0.98, 1.0), bound=True),
                method("degaml", 0.9, (0.88, 0.92), tokens=1234.0),
                method("cut_off", None),
            )
        ]
    )
    assert html.index("degaml") < html.index(">base<") < html.index("oracle strategy (bound)")
    assert "0.900 (0.880–0.920)" in html
    assert "1,234 tokens" in html
    assert "200 test questions a task and seed" in html
    assert "3 seeds" in html
    assert "2026-11-23" in html
    assert "cut off" not in html


@pytest.mark.parametrize("by_seed", [(0.9,), ()])
def test_one_seed_has_no_range(by_seed):
    html = comparison([view(method("degaml", 0.9, by_seed))])
    assert "0.900" in html
    assert "0.900 (" not in html


def test_nothing_is_made_where_nothing_is(tmp_path):
    file = tmp_path / "mlflow.db"
    assert "make compare" in newest_comparison(f"sqlite:///{file}", 0)
    assert not file.exists()
    file.touch()
    assert "make compare" in newest_comparison(f"sqlite:///{file}", 1)
    assert file.stat().st_size == 0
    assert "make compare" in newest_comparison(None, 0)


def test_what_cannot_be_read_is_told(tmp_path):
    file = tmp_path / "mlflow.db"
    file.write_text("this is no database, and long enough to be taken for one", encoding="utf-8")
    assert "cannot be read" in newest_comparison(f"sqlite:///{file}", 0)
