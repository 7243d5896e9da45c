"""What ``docs/conf.py`` does besides setting things: links to code, formulas, and lines of docstrings."""

from __future__ import annotations

import importlib.util

import pytest
from docutils import nodes

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def conf():
    pytest.importorskip("sphinx", reason="the docs extra is not installed")
    spec = importlib.util.spec_from_file_location("documentation_conf", ROOT / "docs/conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("written", "built"),
    [
        (
            "see [`strategies.mixing.mix_halves`](../src/degaml_kedro/strategies/mixing.py).",
            "see {py:obj}`mix_halves <degaml_kedro.strategies.mixing.mix_halves>`.",
        ),
        (
            "[`adapters.tokens.TokenGrid.tokenize`](../src/degaml_kedro/adapters/tokens.py)",
            "{py:obj}`TokenGrid.tokenize <degaml_kedro.adapters.tokens.TokenGrid.tokenize>`",
        ),
        ("[benchmarks/README.md](../benchmarks/README.md) says", "benchmarks/README.md says"),
        ("[method.md](method.md#words)", "[method.md](method.md#words)"),
    ],
)
def test_links_out_of_the_site(conf, written, built):
    source = [written]
    conf.link_code(None, "page", source)
    assert source == [built]


def test_nothing_is_fetched_from_elsewhere(conf):
    assert conf.html_math_renderer == "mathml"
    assert not {"sphinx.ext.mathjax", "sphinx.ext.intersphinx"} & set(conf.extensions)


def test_a_formula_is_mathml(conf):
    assert "<mfrac>" in conf.mathml(nodes.math(r"\frac{a}{b}", r"\frac{a}{b}"))
    block = conf.mathml(nodes.math_block(r"\sum_i x_i", r"\sum_i x_i"))
    assert "<math" in block
    assert "block" in block


def test_indented_lines_of_a_docstring_stay_lines(conf):
    lines = [
        "Mixing.",
        "",
        "    B M A",
        "    A1 + A2",
        "",
        "Args:",
        "    state: what.",
        "",
        "        b",
    ]
    conf.keep_lines(None, "function", "f", None, None, lines)
    assert lines[:6] == ["Mixing.", "", "::", "", "    B M A", "    A1 + A2"]
    assert lines[7:] == ["Args:", "    state: what.", "", "        b"]
