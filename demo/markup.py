"""HTML out of texts that others wrote: everything is escaped, and shown as what it is."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from degaml_kedro.session import Accuracy

# the page's HTML component reads these as a template's placeholders
_PLACEHOLDERS = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"})


def escape(text: object) -> str:
    """A text that a browser shows letter by letter.

    Example:
        >>> escape("<b>${x}</b>")
        '&lt;b&gt;&#36;&#123;x&#125;&lt;/b&gt;'
    """
    return html.escape(str(text)).translate(_PLACEHOLDERS)


def cut(text: str, most: int = 200) -> str:
    r"""On one line, and not too long.

    Example:
        >>> cut("one  two\nthree", 8)
        'one two…'
    """
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 1].rstrip()}…"


def user_text(text: str, most: int = 200) -> str:
    """A text of the user or of a model, in its own writing direction."""
    return f'<bdi dir="auto">{escape(cut(text, most))}</bdi>'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str,
    kinds: Sequence[str] = (),
    row_kinds: Sequence[str] = (),
) -> str:
    """A table that scrolls by itself where it is too wide.

    Args:
        head: column titles, plain text.
        rows: cells, HTML already.
        caption: what it shows, for those who do not see it.
        kinds: CSS classes of the columns.
        row_kinds: CSS classes of the rows.
    """
    classes = [*kinds, *[""] * (len(head) - len(kinds))]
    titles = "".join(
        f'<th scope="col" class="{kind}">{escape(name)}</th>'
        for name, kind in zip(head, classes, strict=True)
    )
    body = ""
    for place, cells in enumerate(rows):
        kind = row_kinds[place] if place < len(row_kinds) else ""
        # phones show a row as a card, and a cell's title in front of it
        body += f'<tr class="{kind}">' + "".join(
            f'<td class="{one}" data-title="{escape(name)}">{cell}</td>'
            for cell, one, name in zip(cells, classes, head, strict=True)
        )
        body += "</tr>"
    return (
        f'<div class="dg-scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="dg-table">'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def note(text: str, kind: str = "") -> str:
    """A paragraph beside the matter; the text is plain."""
    return f'<p class="dg-note {kind}">{escape(text)}</p>'


def alert(text: str) -> str:
    """What went wrong, read aloud at once; empty for nothing."""
    if not text:
        return ""
    # sentences of the libraries begin in lower case
    return f'<div class="dg-alert" role="alert">{escape(text[:1].upper() + text[1:])}</div>'


def percent(share: float) -> str:
    """A place on a track.

    Example:
        >>> percent(0.3333)
        '33.3%'
    """
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"


def dot_row(label: str, value: float, low: float, high: float, text: str, kind: str) -> str:
    """An estimate as a dot on a band: the interval.

    Args:
        label: what it is of.
        value: the estimate, 0 to 1.
        low: the interval's lower end.
        high: its upper end.
        text: the same in numbers.
        kind: ``base``, ``generated``, ``adapted`` or ``other``: the color.
    """
    return (
        f'<div class="dg-dot dg-{kind}"><span class="dg-label">{escape(label)}</span>'
        f'<span class="dg-track" aria-hidden="true"><i class="dg-band" style="left:{percent(low)};'
        f'width:{percent(high - low)}"></i><i class="dg-point" style="left:{percent(value)}"></i></span>'
        f'<span class="dg-number">{escape(text)}</span></div>'
    )


def accuracy_row(label: str, accuracy: Accuracy | None, kind: str) -> str:
    """An accuracy as a dot on its interval; an empty track where it is not known yet."""
    if accuracy is None:
        return (
            f'<div class="dg-dot dg-pending"><span class="dg-label">{escape(label)}</span>'
            '<span class="dg-track" aria-hidden="true"></span><span class="dg-number">not yet known</span></div>'
        )
    return dot_row(label, accuracy.share, *accuracy.interval, accuracy.text, kind)


def axis() -> str:
    """The scale under dots."""
    ticks = "".join(
        f'<i style="left:{percent(share)}">{share:g}</i>' for share in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        '<div class="dg-dot dg-axis" aria-hidden="true"><span class="dg-label"></span>'
        f'<span class="dg-ticks">{ticks}</span><span class="dg-number"></span></div>'
    )


def bar(share: float, text: str, kind: str) -> str:
    """A share as a bar with its number."""
    return (
        f'<span class="dg-bar dg-{kind}"><i style="width:{percent(share)}" aria-hidden="true"></i>'
        f"<b>{escape(text)}</b></span>"
    )
