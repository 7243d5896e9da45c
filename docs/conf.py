"""How the pages become HTML: offline, without JavaScript for formulas, with an API reference from the docstrings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import sphinx.util.docutils
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

# imported while autodoc pretends to be a type checker, MLflow and Kedro would import each other in a circle
import degaml_kedro.tracking.hook  # noqa: E402, F401
from degaml_kedro import __version__  # noqa: E402

project = "degaml-kedro"
author = "The degaml-kedro authors"
release = version = __version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "api/modules.rst"]
templates_path: list[str] = []

myst_enable_extensions = ["dollarmath"]
# `your-own-task.md#from-a-csv` means the same here as on a code host
myst_heading_anchors = 4

apidoc_modules = [
    {
        "path": str(ROOT / "src/degaml_kedro"),
        "destination": "api",
        "separate_modules": False,
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
        # what Kedro reads, and what runs Kedro
        "exclude_patterns": [
            str(ROOT / f"src/degaml_kedro/{name}.py") for name in ("__main__", "cli", "settings")
        ],
    }
]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# fields of dataclasses are described once, in the class's docstring
napoleon_use_ivar = True

# every page has the whole tree beside it: with each function in it, a build takes twice as long
toc_object_entries = False
suppress_warnings = [
    # two modules have an error of one name, and `Raises` names the class alone
    "ref.python",
]

html_theme = "furo"
html_title = "degaml-kedro"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False

logger = logging.getLogger(__name__)

SECTION = re.compile(r"(Args|Attributes|Example|Raises|Returns|Shapes|Yields):$")


def keep_lines(
    app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]
) -> None:
    """Formulas and code, which stand indented in a docstring, keep their lines."""
    del app, what, name, found, options
    place = len(lines) - 1
    while place > 1:
        before = lines[place - 2]
        told = re.match(r"[^\s>*-]", before) and not SECTION.match(before)
        indented = lines[place].startswith("    ") and not lines[place - 1].strip()
        if told and indented and not before.endswith("::"):
            lines[place:place] = ["::", ""]
        place -= 1


SOURCE_LINK = re.compile(
    r"\[`(?P<name>[\w.]+)`\]\((?:\.\./)+src/degaml_kedro/(?P<module>[\w/]+)\.py\)"
)

# to files that are no part of the site
OUTSIDE_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?:\.\./)+[^)]+\)")


def link_code(app: Sphinx, document: str, source: list[str]) -> None:
    """On a code host a link to code opens the file; here it opens the symbol in the API reference."""

    def reference(found: re.Match[str]) -> str:
        name = found["name"]
        module = found["module"].replace("/", ".")
        symbol = name.removeprefix(f"{module}.")
        return f"{{py:obj}}`{symbol} <degaml_kedro.{name}>`"

    linked = SOURCE_LINK.sub(reference, source[0])
    source[0] = OUTSIDE_LINK.sub(lambda found: found["text"], linked)


def mathml(formula: nodes.math | nodes.math_block) -> str:
    """A formula as MathML, which browsers set themselves."""
    block = isinstance(formula, nodes.math_block)
    try:
        return tex2mathml(formula.astext(), as_block=block)
    except MathError as error:
        logger.warning("the formula %s: %s", formula.astext(), error, location=formula)
        return f"<code>{formula.astext()}</code>"


def visit_math(translator: sphinx.util.docutils.SphinxTranslator, node: nodes.math) -> None:
    """Write a formula in a line."""
    translator.body.append(mathml(node))
    raise nodes.SkipNode


def visit_math_block(
    translator: sphinx.util.docutils.SphinxTranslator, node: nodes.math_block
) -> None:
    """Write a formula that stands alone."""
    translator.body.append(f'<div class="math">{mathml(node)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """What the pages need besides the extensions."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("source-read", link_code)
    # before napoleon, which reads sections
    app.connect("autodoc-process-docstring", keep_lines, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
