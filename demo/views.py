"""What the page shows, as HTML: the macros of ``views.html.j2``, into which every text goes letter by letter."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.session import Report
from degaml_kedro.tasks.pasted import Pasted

if TYPE_CHECKING:
    from degaml_kedro.tracking.comparison import ComparisonView

_MOST = 100
_POOLS = ("meta_test", "meta_train")
# Gradio's HTML component reads these as a template's placeholders
_PLACEHOLDERS = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"})


def escape(text: object) -> Markup:
    """A text that a browser shows letter by letter.

    Example:
        >>> str(escape("<b>${x}</b>"))
        '&lt;b&gt;&#36;&#123;x&#125;&lt;/b&gt;'
    """
    return Markup(html.escape(str(text)).translate(_PLACEHOLDERS))


def render(part: str, *values: Any) -> str:
    """A part of the page, a macro of ``views.html.j2`` with its arguments; empty where there is nothing to show."""
    return str(getattr(_PARTS, part)(*values)).strip()


def cut(text: str, most: int = 200) -> str:
    r"""On one line, and not too long.

    Example:
        >>> cut("one  two\nthree", 8)
        'one two…'
    """
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 1].rstrip()}…"


def user_text(text: str, most: int = 200) -> Markup:
    """A text of the user or of a model, in its own writing direction."""
    return Markup(f'<bdi dir="auto">{escape(cut(text, most))}</bdi>')


def percent(share: float) -> str:
    """A place on a track.

    Example:
        >>> percent(0.3333)
        '33.3%'
    """
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"


def verdict(report: Report) -> str:
    """The numbers of an adaptation with held-out examples in a sentence, with how sure they are."""
    before, after = report.base, report.adapted
    if before is None or after is None:
        return "More is measured while the adaptation goes on."
    n = f"n = {after.n}"
    if after.right == before.right:
        return f"The adapted model is right as often as the base model ({n})."
    word = "more" if after.right > before.right else "fewer"
    told = f"The adapted model has {abs(after.right - before.right)} {word} of {after.n} right than the base model. "
    (low, high), (base_low, base_high) = after.interval, before.interval
    if low <= base_high and base_low <= high:
        return f"{told}The intervals overlap: with {n} the difference may be chance. Hold out more examples to know."
    return f"{told}The intervals do not overlap, so this is unlikely to be chance ({n})."


def _count_answers(pasted: Pasted) -> int:
    return len({one.options[one.gold] for one in pasted.examples})


def comparison(views: Sequence[ComparisonView]) -> str:
    """A comparison, once for each of its pools: methods as dots, with what adapting costs."""
    from degaml_kedro.config.methods import METHODS
    from degaml_kedro.results.runs import POOL_TITLES

    meanings = {name: row.meaning for name, row in METHODS.items()}
    measured = [view for view in views if any(one.accuracy is not None for one in view.methods)]
    return render("comparison", measured, POOL_TITLES, meanings)


@lru_cache(maxsize=1)
def newest_comparison(uri: str | None, minute: int) -> str:
    """The newest whole comparison in MLflow as HTML, or why it cannot be read; nothing is written there.

    What was read is shown again for a ``minute`` of the clock; without a tracking URI there is nothing to read.
    """
    if uri is None:
        return comparison([])
    # seconds to import, which the page's start need not wait for
    from degaml_kedro.tracking.comparison import EXPERIMENT, read_comparison

    try:
        views = [read_comparison(uri, EXPERIMENT, pool=pool) for pool in _POOLS]
    except DegamlError as error:
        return render("note", f"The comparison cannot be read: {error}", "dg-warn")
    return comparison([view for view in views if view is not None])


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: value if hasattr(value, "__html__") else escape(value),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.globals["most"] = _MOST
    made.filters |= {
        "user": user_text,
        "percent": percent,
        "verdict": verdict,
        "count_answers": _count_answers,
    }
    return made


_PARTS = _environment().get_template("views.html.j2").module
