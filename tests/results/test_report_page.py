"""A page is whole, fetches nothing, and escapes all that it is given."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest

from degaml_kedro.results.report.document import (
    Bullets,
    Document,
    Listing,
    Picture,
    RowGroup,
    Section,
    Table,
    code,
    paragraph,
    strong,
)
from degaml_kedro.results.report.markdown import markdown_text
from degaml_kedro.results.report.page import html_page

VOID = {"meta", "wbr", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """What a browser would find: that tags are closed, what is loaded, and the tables' cells."""

    def __init__(self, page):
        super().__init__()
        self.open, self.starts, self.loads, self.scripts = [], [], [], []
        self.tables, self.ids = [], set()
        self._cell = None
        self.feed(page)
        self.close()
        assert self.open == []

    @property
    def tags(self):
        return {tag for tag, _ in self.starts}

    def handle_starttag(self, tag, attributes):
        self.starts.append((tag, [(name, value or "") for name, value in attributes]))
        for name, value in attributes:
            inside = (value or "").startswith("#")
            if name in ("src", "href", "srcset", "data", "action") and not inside:
                self.loads.append((tag, value))
            if name == "id":
                assert value not in self.ids
                self.ids.add(value)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._cell)
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


HOSTILE = '</script><a href="http://evil.example" onclick=x>&|`*_y_'


def document(text="words"):
    table = Table(
        text,
        ("method", text),
        (
            RowGroup(((text, "1.5"), (code(text), None)), text),
            RowGroup(((strong("b"), strong(text)),)),
        ),
        (text,),
    )
    figure = go.Figure(go.Scatter(x=[1], y=[2], name=text)).update_layout(height=300)
    blocks = (
        paragraph(text, " and ", code(text), strong(text)),
        Bullets((paragraph(text),)),
        table,
        Picture("curve", text, figure),
        Listing(text, "sh"),
    )
    inner = Section("inner", text, (paragraph("inside"),))
    return Document(text, text, (Section("first", text, blocks, (inner,)), Section("last", "Last")))


@pytest.mark.parametrize("text", ["words", HOSTILE])
def test_a_page_is_whole_and_fetches_nothing(text):
    reader = Reader(html_page(document(text)))
    assert reader.loads == []
    assert not reader.tags & {"link", "img", "iframe", "object", "embed", "base", "form"}
    # the drawing program, what calls it, and the figure's data
    assert len(reader.scripts) == 3
    assert sum("plotly.js v" in script for script in reader.scripts) == 1
    assert all("onclick" not in dict(attributes) for _, attributes in reader.starts)


def test_what_is_given_is_read_back():
    reader = Reader(html_page(document(HOSTILE)))
    assert [row[0] for row in reader.tables[0]] == ["method", HOSTILE, HOSTILE, HOSTILE, "b"]
    assert reader.tables[0][0][1] == HOSTILE
    assert reader.tables[0][3] == [HOSTILE, "—"]
    (drawn,) = [script for script in reader.scripts if script.startswith("{")]
    assert json.loads(drawn)["data"][0]["name"] == HOSTILE


def test_only_the_page_s_own_scripts_may_run():
    page = html_page(document(HOSTILE))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert "default-src &#x27;none&#x27;" in policy
    allowed = re.findall(r"sha256-([A-Za-z0-9+/=]+)", policy)
    programs = [script for script in Reader(page).scripts if not script.startswith("{")]
    digests = [
        base64.b64encode(hashlib.sha256(program.encode()).digest()).decode() for program in programs
    ]
    assert allowed == digests


def test_a_page_without_figures_has_no_program():
    page = html_page(Document("a", "b", (Section("s", "S", (paragraph("x"),)),)))
    assert "<script" not in page
    assert "script-src &#x27;none&#x27;" in page
    assert len(page) < 10_000


def test_a_page_can_be_read_by_all():
    page = html_page(document())
    reader = Reader(page)
    assert '<html lang="en">' in page
    attributes = [(tag, dict(pairs)) for tag, pairs in reader.starts]
    heads = [own for tag, own in attributes if tag == "th"]
    assert {own.get("scope") for own in heads} == {"col", "row", "rowgroup"}
    assert sum(tag == "caption" for tag, _ in attributes) == 1
    assert any(own.get("role") == "img" and own.get("aria-label") for _, own in attributes)
    # every entry of the contents leads somewhere
    targets = {own["href"][1:] for tag, own in attributes if tag == "a"}
    assert targets == {"content", "first", "inner", "last"}
    assert targets <= reader.ids
    assert "@media print" in page
    assert "prefers-color-scheme" in page


def test_the_figure_itself_is_left_as_it_is():
    made = document()
    before = made.pictures[0].figure.to_json()
    html_page(made)
    assert made.pictures[0].figure.to_json() == before


def test_markdown_of_a_document():
    assert (
        markdown_text(document(), "page.html")
        == """\
# words

words

## words

words and `words`**words**

- words

**words**

| method  | words     |
| ------- | --------: |
| *words* |           |
| words   |       1.5 |
| `words` |         — |
| **b**   | **words** |

words

—: missing; there is no result, which is not a result of 0.

[Figure](<page.html#figure-curve>): words

```sh
words
```

### words

inside

## Last
""".replace("| method  | words     |", "| method  |     words |")
    )


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a_b", "a_b"),
        ("_a_", r"\_a\_"),
        ("<b> & [x](y) *z* ~", r"\<b\> \& \[x\](y) \*z\* \~"),
        ("two\nlines", "two lines"),
        ("1. first", r"1\. first"),
        ("# head", r"\# head"),
        ("- item", r"\- item"),
        ("-1.5 points", r"\-1.5 points"),
        ("3 seeds", "3 seeds"),
    ],
)
def test_markdown_escapes(text, written):
    made = Document("t", "s", (Section("k", "K", (paragraph(text),)),))
    assert markdown_text(made, "p.html").endswith(f"\n\n{written}\n")


@pytest.mark.parametrize(
    ("text", "written"), [("a|b", "`a\\|b`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("", "")]
)
def test_code_in_markdown_tables(text, written):
    made = Document("t", "s", (Section("k", "K", (Table.of("c", ("x",), [(code(text),)]),)),))
    assert f"| {written.ljust(3)}" in markdown_text(made, "p.html")


def test_code_is_fenced_with_more_than_it_holds():
    made = Document("t", "s", (Section("k", "K", (Listing("```\nx"),)),))
    assert markdown_text(made, "p.html").endswith("````\n```\nx\n````\n")


def test_a_row_of_another_length_is_refused():
    with pytest.raises(
        ValueError, match="table 'sizes': a row has 1 cells and there are 2 columns"
    ):
        Table.of("sizes", ("a", "b"), [("x",)])
