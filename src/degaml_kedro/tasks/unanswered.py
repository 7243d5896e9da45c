"""Questions without answers, as one list: what other programs import; the reader is ``pasted``'s."""

from __future__ import annotations

from degaml_kedro.tasks.example import Question
from degaml_kedro.tasks.pasted import read_data
from degaml_kedro.tasks.records import Reading, RecordError


def read_unanswered(data: bytes, name: str = "") -> list[Question] | None:
    """The questions of a file, which have options and no answers; None where one has an answer.

    The suffix of its name decides the layout, which may be any that examples have.

    Raises:
        RecordError: one cannot be read; the message names its line.
    """
    pasted = read_data(data, name, Reading(answered=False))
    if pasted.mistakes:
        raise RecordError(pasted.mistakes[0].mistake)
    if pasted.examples:
        return None
    return [row.question for row in pasted.rows if row.question is not None]
