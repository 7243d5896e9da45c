"""Questions as people have them, in a file or pasted: every record by itself, with the mistakes marked by line.

Plain text has these forms (GIFT and Aiken, in which quizzes are kept, are read too)::

    # the options are all the answers that occur
    What month comes after March? => April

    # options of its own, the right one with a star (or "=> April" at the end)
    What month comes after March? | May | April* | June

    What month comes after March?
    A: May
    B: April
    Answer: B

What keys and columns are called in JSON, JSON Lines, CSV, TSV and Parquet is in :mod:`~degaml_kedro.tasks.records`.
Answers may be missing, where questions are to be asked.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from degaml_kedro.common.texts import printable
from degaml_kedro.tasks.example import (
    MAX_OPTIONS,
    TRUE_FALSE,
    Example,
    Question,
    TaskError,
    make_open_example,
    shorten,
)
from degaml_kedro.tasks.file_records import (
    LAYOUTS,
    Raw,
    decode_text,
    json_records,
    layout_of,
    parquet_records,
    table_records,
    with_line_feeds,
)
from degaml_kedro.tasks.records import (
    EXAMPLES,
    TOO_DEEP,
    UNKNOWN_BASE,
    Found,
    Reading,
    RecordError,
    check_fields,
    check_repeats,
    example_of,
    marked_lines,
    named_option,
    plain_text,
    read_record,
    with_option_lines,
)
from degaml_kedro.tasks.text import text_records

MAX_BYTES = 1 << 20
MAX_SHOWN = 200
# with their sentences
MISTAKES_TOLD = 20
_MAX_MESSAGE = 500
_MAX_UNREAD = 20

# the name that other programs know
PastedError = RecordError


@dataclass(frozen=True)
class PastedRow:
    """One record.

    Attributes:
        line: the line it begins at, from 1.
        shown: what stands there, on one line and cut to 200 characters.
        example: what it was read as; None for a mistake, and for a question without its answer.
        mistake: what is wrong, and the way out; else None.
        question: the question, answered or not; None for a mistake.
    """

    line: int
    shown: str
    example: Example | None
    mistake: str | None
    question: Question | None = None


@dataclass(frozen=True)
class Pasted:
    """A text, read.

    Attributes:
        layout: ``text``, ``json``, ``jsonl``, ``csv`` or ``parquet``.
        rows: its records in order.
        unread: keys that have no meaning here, each once.
        notes: what may be meant otherwise, in sentences.
    """

    layout: str
    rows: tuple[PastedRow, ...]
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def examples(self) -> tuple[Example, ...]:
        """The examples in order."""
        return tuple(row.example for row in self.rows if row.example is not None)

    @property
    def questions(self) -> tuple[Question | Example, ...]:
        """All that can be asked, in order; with its answer where there is one."""
        return tuple(row.example or row.question for row in self.rows if row.question is not None)

    @property
    def mistakes(self) -> tuple[PastedRow, ...]:
        """The rows that are neither."""
        return tuple(row for row in self.rows if row.mistake is not None)

    def told_mistakes(self) -> list[str]:
        """What is wrong, a sentence a row; of the rows after the first 20 their lines alone, together."""
        told = [printable(str(row.mistake)) for row in self.mistakes[:MISTAKES_TOLD]]
        if rest := [row.line for row in self.mistakes[MISTAKES_TOLD:]]:
            told.append(f"… and {len(rest)} more, in lines {', '.join(map(str, rest))}.")
        return told


def read_file(path: Path, reading: Reading = EXAMPLES) -> Pasted:
    """Read a file of examples or questions; its suffix decides the layout.

    Raises:
        RecordError: the file cannot be read, or see ``read_pasted``.
    """
    try:
        if path.suffix.lower() == ".parquet" and path.is_file():
            records = parquet_records(path, reading.most and reading.most + 1)
            return read_rows(records, "parquet", f"The file {path}", reading)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1 if reading.most else -1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecordError(
            f"The file '{path}' cannot be read ({reason}); check its path and permissions."
        ) from error
    return read_data(data, path.name, reading)


def read_data(data: bytes, name: str, reading: Reading = EXAMPLES) -> Pasted:
    """Read what a file holds; the suffix of its name decides the layout.

    Raises:
        RecordError: it is too large, binary or in another encoding, or see ``read_pasted``.
    """
    called = _called(name)
    if reading.most and len(data) > MAX_BYTES:
        raise RecordError(_too_large(called))
    # two bytes a character have zeros, and a mark in front
    if not data.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in data:
        raise RecordError(_binary(called, data.count(b"\n", 0, data.index(b"\0")) + 1))
    return read_pasted(decode_text(data, called), name, reading)


_MARKUP = re.compile(r"\s*<(?:\?xml|!doctype|html|quiz)\b", re.IGNORECASE)


def _binary(called: str, line: int) -> str:
    return (
        f"{called} is binary, not text (line {line} has a zero byte); save it as CSV, JSON, JSONL or plain text in "
        "UTF-8."
    )


def read_pasted(text: str, name: str = "", reading: Reading = EXAMPLES) -> Pasted:
    r"""Read examples, or questions, from a text.

    Records without options of their own are given ``reading.labels``, or all the answers of such records as options, in
    the order in which they first occur. Everything is kept as it is written, apart from line ends and blanks around a
    field.

    Args:
        text: plain, JSON, JSON Lines, CSV or TSV.
        name: of the file that it comes from, whose suffix decides the layout; without a known one the text does.
        reading: what keys are called, and whether answers may be missing.

    Raises:
        RecordError: the text is empty, too large or binary, has too many records, or its layout cannot be read at
            all; or no record has options of its own, and their answers are fewer than 2 or more than 26.

    Example:
        >>> pasted = read_pasted("Is fire hot? => yes\nIs ice hot? => no\nIs it?")
        >>> pasted.examples[1].options, pasted.examples[1].gold
        (('yes', 'no'), 1)
        >>> [row.line for row in pasted.mistakes]
        [3]
    """
    called = _called(name)
    # the length is looked at first: a text of gigabytes is not encoded to be measured
    is_long = len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES
    if reading.most and is_long:
        raise RecordError(_too_large(called))
    if "\0" in text:
        raise RecordError(_binary(called, text.count("\n", 0, text.index("\0")) + 1))
    text = with_line_feeds(text.removeprefix("\ufeff"))
    if not text.strip():
        raise RecordError(f"{called} is empty; write at least two examples. {_FORMS}")
    layout = LAYOUTS.get(PurePath(name).suffix.lower(), "text")
    if layout == "text":
        layout = layout_of(text, reading)
    if _MARKUP.match(text):
        raise RecordError(f"{called} is XML or HTML; export it as CSV, JSON, Aiken or GIFT.")
    if layout == "parquet":
        raise RecordError(
            f"{called} is no text; Parquet is read by `degaml`, from a file of your own."
        )
    if layout == "csv":
        return read_rows(table_records(text, called, reading), layout, called, reading)
    return read_rows(
        text_records(text) if layout == "text" else json_records(text), layout, called, reading
    )


def read_rows(
    records: Iterator[Raw] | Iterator[tuple[int, str, Found | str]],
    layout: str,
    called: str,
    reading: Reading = EXAMPLES,
) -> Pasted:
    """Records with what only the whole file can tell: options, what numbers are counted from, contradictions.

    Args:
        records: their lines, how they look, and their keys, what they say or their mistakes.
        layout: what they were found in.
        called: how messages call the file.
        reading: how they are read.

    Raises:
        RecordError: there are none or too many, or their answers cannot be their options.
    """
    found: list[_Record] = []
    # keys that say nothing, and whether lists stand under them
    unread: dict[str, bool] = {}
    most = reading.most
    for line, raw, given in itertools.islice(records, most and most + 1):
        content: Found | str
        try:
            content, rest = (
                (given, {}) if not isinstance(given, dict) else read_record(given, reading)
            )
            if isinstance(content, Found):
                check_fields(content)
            for key, cell in rest.items():
                is_list = isinstance(cell, list | dict) or str(cell)[:1] in ("[", "{")
                unread[key] = unread.get(key, False) or is_list
        except TaskError as error:
            content = f"Line {line}: {error}"
        except RecursionError:
            content = f"Line {line}: {TOO_DEEP}"
        found.append((line, _on_one_line(raw, MAX_SHOWN), content))
    if most is not None and len(found) > most:
        raise RecordError(
            f"{called} has more than {most:,} examples; keep at most {most:,} of them."
        )
    if not found:
        raise RecordError(f"{called} has no examples; write at least two. {_FORMS}")
    whole = _WholeFile(_with_option_lines(found, reading), reading, unread)
    return Pasted(
        layout, tuple(whole.rows()), tuple(itertools.islice(unread, _MAX_UNREAD)), whole.notes
    )


# the line, what stands there on one line, and what it says or its mistake
_Record = tuple[int, str, Found | str]


def read_question(text: str, options: Sequence[str]) -> Question:
    """A question of one's own, with its options; blank ones are left out.

    Raises:
        RecordError: the question is blank or too long, an option comes twice, or there are fewer than 2 or more
            than 26.
    """
    question = with_line_feeds(text).strip()
    texts = tuple(option for given in options if (option := with_line_feeds(given).strip()))
    if not question:
        raise RecordError("The question is blank; write one.")
    # true and false, in this order, are no option lines
    found = Found(question, texts, prompt=question if texts == TRUE_FALSE else None)
    try:
        check_fields(found)
        check_repeats(texts)
        return Question.of(example_of(found, 0))
    except TaskError as error:
        raise RecordError(f"The question: {error}") from error


_FORMS = "Forms: 'question => answer', or 'question | wrong option | right option*'."


def _called(name: str) -> str:
    return f"The file {shorten(printable(PurePath(name).name))}" if name.strip() else "The text"


def _too_large(called: str) -> str:
    return (
        f"{called} is larger than {MAX_BYTES // 1024:,} KiB; keep fewer or shorter examples "
        "(a few dozen are enough to adapt to)."
    )


def _on_one_line(text: str, width: int) -> str:
    # blanks may shrink to nothing, so a little more than the width is looked at; all of it would be slow
    flat = printable(" ".join(text[: 10 * width].split()))
    return flat if len(flat) <= width else f"{flat[: width - 1]}…"


# --- rows -----------------------------------------------------------------------------------------


class _WholeFile:
    """What only all records together tell: options of those that have none, and what numbers are counted from.

    Attributes:
        notes: what may be meant otherwise.

    Raises:
        RecordError: no record has options of its own, and their answers cannot be these.
    """

    def __init__(
        self, records: Sequence[_Record], reading: Reading, unread: Mapping[str, bool]
    ) -> None:
        self._records, self._reading = records, reading
        contents = [content for _, _, content in records if isinstance(content, Found)]
        self._bases = _counted_from(contents)
        shared = [one for one in contents if not one.options and one.answer is not None]
        # answers that read the same are one, written as they first are
        self._answers: dict[str, str] = {}
        for text in reading.labels or (str(one.answer) for one in shared):
            self._answers.setdefault(plain_text(text), text.strip())
        self.notes = () if reading.labels else tuple(_notes(self._answers, len(shared)))
        self._unfit = _unfit(list(self._answers.values()), shared, unread, reading)
        alone = [one for one in contents if one.options is None and one.answer is not None]
        if self._unfit and len(alone) == len(records):
            raise RecordError(self._unfit)

    def rows(self) -> Iterator[PastedRow]:
        """The rows in order; one that contradicts an earlier one is a mistake, too."""
        first: dict[str, tuple[int, Example]] = {}
        for line, shown, content in self._records:
            example = None
            try:
                if isinstance(content, str):
                    raise RecordError(content)
                one = self._finished(content)
                if isinstance(one, Example):
                    example, one = one, Question.of(one)
                    before, other = first.setdefault(example.prompt, (line, example))
                    if (other.gold, other.response) != (example.gold, example.response):
                        right = shorten(other.options[other.gold])
                        raise RecordError(
                            f"the same question has the answer {right} in line {before}; keep the right one."
                        )
            except TaskError as error:
                told = str(error) if isinstance(content, str) else f"Line {line}: {error}"
                yield PastedRow(line, shown, None, _on_one_line(told, _MAX_MESSAGE))
            else:
                yield PastedRow(line, shown, example, None, one)

    def _finished(self, found: Found) -> Example | Question:
        reading = self._reading
        if found.options is None and not reading.open_answers:
            found = self._with_shared_options(found)
        elif found.options is not None and not (reading.repeats and found.prompt is not None):
            check_repeats(found.options)
        # what is wrong with the options is said before an answer is missed
        example = None if found.options is None else example_of(found, found.gold or 0)
        if found.answer is None and found.gold is None:
            if reading.answered:
                raise RecordError(_NO_ANSWER)
            open_question = Question(found.question, found.system, (), ())
            return Question.of(example) if example else open_question
        if example is None:
            return make_open_example(found.question, str(found.answer).strip(), found.system)
        if found.gold is not None:
            return example
        return example_of(found, named_option(found, self._bases[_first_number(found)]))

    def _with_shared_options(self, found: Found) -> Found:
        """A record without options, with the answers of the whole file."""
        if found.answer is None and self._reading.answered:
            raise RecordError(_NO_ANSWER)
        if found.answer is None and not self._answers:
            raise RecordError(
                "there are no options; give them, as in 'question | option | option'."
            )
        if self._unfit:
            raise RecordError(f"it has no options of its own. {self._unfit}")
        options, gold = tuple(self._answers.values()), None
        if found.answer is not None:
            known, answer = list(self._answers), plain_text(str(found.answer))
            if answer not in known:
                raise RecordError(
                    f"the answer {shorten(str(found.answer))} is none of {', '.join(map(shorten, options))}."
                )
            gold = known.index(answer)
        # true and false are no option lines
        prompt = found.question if set(options) == set(TRUE_FALSE) else None
        return replace(found, options=options, gold=gold, prompt=prompt)


def _with_option_lines(records: Sequence[_Record], reading: Reading) -> Sequence[_Record]:
    """Records whose questions end with their options, with these; what ends with such lines may be a dialogue, too.

    The whole file tells: where it is so of more than half of the records without options of their own, it has to be so
    of all of them.
    """
    read = {
        place: with_option_lines(content, reading.labels)
        for place, (_, _, content) in enumerate(records)
        if isinstance(content, Found) and content.options is None and content.gold is None
    }
    if reading.open_answers or 2 * sum(map(bool, read.values())) <= len(read):
        return records
    wrong = "its question does not end with options, or the answer is none of them, unlike those of other lines."
    told = list(records)
    for place, own in read.items():
        line, shown, _ = records[place]
        told[place] = line, shown, own if isinstance(own, Found) else f"Line {line}: {own or wrong}"
    return told


def _notes(answers: Mapping[str, str], records: int) -> Iterator[str]:
    """What may be meant otherwise with answers that are all options."""
    by_case: dict[str, str] = {}
    for answer in answers.values():
        other = by_case.setdefault(answer.casefold(), answer)
        if other != answer:
            yield f"the labels {shorten(other)} and {shorten(answer)} differ in case alone, and are two."
    if _MANY_ANSWERS <= len(answers) == records:
        yield (
            f"{records} answers, of which each occurs once, are the options of all questions; answers in free words "
            "need `scoring.mode: generate` (docs/your-own-task.md)."
        )


_MANY_ANSWERS = 5


def _unfit(
    answers: Sequence[str],
    records: Sequence[Found],
    unread: Mapping[str, bool],
    reading: Reading,
) -> str | None:
    """Why the answers of all records without options cannot be their options."""
    if reading.open_answers:
        return None
    if not (reading.labels or reading.answer) and _names_missing(answers, records, unread):
        return (
            "The answers are letters or numbers of options that were not found; name their columns "
            "(--option-columns), or, if these are labels, the answers' column (--answer-column)."
        )
    own = "give the questions options of their own: 'question | wrong option | right option*'."
    if len(answers) == 1:
        return f"Examples without options all have the answer {shorten(answers[0])}; add some with another, or {own}"
    if len(answers) > MAX_OPTIONS:
        return (
            f"There are {len(answers)} different answers, and a question has at most {MAX_OPTIONS} options; use "
            f"fewer, or {own}"
        )
    return None


def _names_missing(
    answers: Sequence[str], records: Sequence[Found], unread: Mapping[str, bool]
) -> bool:
    """Whether answers name options that stand in unread columns or in the question."""
    bare = [plain_text(answer).strip("[]().: ").casefold() for answer in answers]
    are_letters = all(len(one) == 1 and "a" <= one <= "h" for one in bare)
    if not bare or not (are_letters or all(re.fullmatch(r"\d", one) for one in bare)):
        return False
    alike = Counter(name[:-1] for name in unread)
    enough = len(unread) > 1 if are_letters else max(alike.values(), default=0) > 1
    listed = sum(len(marked_lines(one.question)) > 1 for one in records)
    return enough or any(unread.values()) or 2 * listed > len(records)


_NO_ANSWER = "the answer is blank or missing; give it, as 'question => answer' or by a star after the right option."


def _first_number(found: Found) -> int | None:
    """What the record's options are numbered from; None where they are not."""
    return min(found.numbers, default=None)


def _counted_from(contents: Iterable[Found]) -> dict[int | None, tuple[int, ...]]:
    """What numbers may be counted from, for each way that options are numbered.

    Columns and labels with numbers say it; where the file's answers contradict that, nothing is certain. Of others the
    answers alone can say it: a 0, or a number as large as there are options. Where all are texts of options, and one is
    too large for a number, they are no numbers.
    """
    # of each kind the number of an answer, how many options there are, and whether it is the text of one
    numbers: dict[int | None, list[tuple[int, int, bool]]] = {}
    for content in contents:
        if content.options is not None:
            known = numbers.setdefault(_first_number(content), [])
            if content.number is not None:
                is_text = plain_text(str(content.answer)) in map(plain_text, content.options)
                known.append((content.number, len(content.options), is_text))
    bases: dict[int | None, tuple[int, ...]] = {}
    for first, known in numbers.items():
        told = [(number, count) for number, count, is_text in known if not is_text]
        zero = any(number == 0 for number, _ in told)
        top = any(number == count for number, count in told)
        if not told and any(number > count for number, count, _ in known):
            bases[first] = ()
        elif first is None:
            bases[first] = UNKNOWN_BASE if zero == top else (int(top),)
        else:
            below = any(number < first for number, _ in told)
            bases[first] = UNKNOWN_BASE if below or (first == 0 and top and not zero) else (first,)
    return bases
