"""Pasted examples as a table, with mistakes where they are."""

from __future__ import annotations

from collections.abc import Sequence

from degaml_kedro.tasks.example import split_prompt
from degaml_kedro.tasks.pasted import Pasted, PastedRow
from demo.markup import alert, escape, note, table, user_text

_MOST = 100
_LAYOUTS = {"text": "plain text", "json": "JSON", "jsonl": "JSON lines", "csv": "CSV"}


def parsed_table(pasted: Pasted) -> str:
    """What was understood, line by line; rows with a mistake come first where not all rows are shown.

    Args:
        pasted: what was read.
    """
    shown = _shown(pasted.rows)
    rows = [(f"{one.line}", *_cells(one)) for one in shown]
    marks = ["dg-wrong" if one.mistake else "" for one in shown]
    more = len(pasted.rows) - len(shown)
    rest = note(f"And {more} more rows, read in the same way.") if more else ""
    titles = ("Line", "Question", "Right answer")
    return table(titles, rows, "Examples as they were read", ("dg-num", "dg-wide"), marks) + rest


def _shown(rows: Sequence[PastedRow]) -> list[PastedRow]:
    if len(rows) <= _MOST:
        return list(rows)
    wrong = [row for row in rows if row.mistake]
    return [*wrong, *(row for row in rows if not row.mistake)][:_MOST]


def _cells(row: PastedRow) -> tuple[str, str]:
    if row.example is None:
        return (
            f'{user_text(row.shown)}<span class="dg-mistake">✗ {escape(row.mistake or "")}</span>',
            "",
        )
    one = row.example
    options = f'<span class="dg-under">{user_text(" · ".join(one.options), 120)}</span>'
    right = f'<span class="dg-right">{user_text(one.options[one.gold], 80)}</span>'
    return f"{user_text(split_prompt(one.prompt)[0])}{options}", right


def _placed(row: PastedRow) -> str:
    told = row.mistake or ""
    return told if told.startswith(f"Line {row.line}") else f"Line {row.line}: {told}"


def summary(pasted: Pasted, more: str = "") -> str:
    """How many examples there are, and every mistake with its line, up to a few.

    Args:
        pasted: what was read.
        more: what else is to be mended.
    """
    good, wrong = len(pasted.examples), len(pasted.mistakes)
    answers = len({one.options[one.gold] for one in pasted.examples})
    told = f"<b>{good}</b> example{'' if good == 1 else 's'} read as {_LAYOUTS[pasted.layout]}"
    different = "1 answer" if answers == 1 else f"{answers} different answers"
    told += f", {different}." if good else "."
    if pasted.unread:
        told += f" Not read: {user_text(', '.join(pasted.unread), 120)}."
    parts = [f'<p class="dg-line"><span>{told}</span></p>']
    if wrong:
        items = "".join(f"<li>{escape(_placed(one))}</li>" for one in pasted.mistakes[:5])
        rest = f"<li>and {wrong - 5} more</li>" if wrong > 5 else ""
        count = f"{wrong} mistake{'' if wrong == 1 else 's'}"
        parts.append(
            f'<div class="dg-alert" role="alert"><b>{count}.</b> Mend them in the text, or leave them out. '
            f"{escape(more)}<ul>{items}{rest}</ul></div>"
        )
    elif more:
        parts.append(alert(more))
    return "".join(parts)
