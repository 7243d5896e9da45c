"""The ``degaml`` command: adapt to a file of examples, ask what came of it, say what pairs and adapters are.

Nothing heavy is imported before a command needs it, so that ``degaml --help`` answers at once.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from degaml_kedro import __version__
from degaml_kedro.checkpoint.layout import check_overwritable, trained_labels
from degaml_kedro.errors import DegamlError
from degaml_kedro.texts import printable

if TYPE_CHECKING:
    from degaml_kedro.adaptation import Accuracy, Answer, Change, Progress
    from degaml_kedro.checkpoint.folder import TrainedPair
    from degaml_kedro.session import AdaptedModel
    from degaml_kedro.tasks.example import Example, Question
    from degaml_kedro.tasks.pasted import Pasted
    from degaml_kedro.tasks.records import Reading

INTERRUPTED = 130
MISTAKES_SHOWN = 20
CHANGES_SHOWN = 10
CARD_LINES = 60
NAME_BYTES = 255
# the longest path that a saved adaptation holds
LONGEST_INSIDE = Path("state/.0123456789abcdef.tmp/adapter_19/adapter_model.safetensors")
# from so many on, predict says on a terminal that it is at work
MANY_QUESTIONS = 50
PACKAGES = ("torch", "transformers", "peft", "safetensors")
_WIDTH = 100


class _Commands(click.Group):
    """A group that says what went wrong in a sentence, whatever it was."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command.

        Raises:
            ClickException: the command failed; the message says why.
        """
        try:
            return super().invoke(ctx)
        # click ends these itself, a closed pipe among them
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(INTERRUPTED)
        except DegamlError as error:
            self._reraise(ctx, error)
            raise click.ClickException(printable(str(error))) from None
        except Exception as error:  # noqa: BLE001 - people are told in a sentence, with --debug the rest
            self._reraise(ctx, error)
            told = " ".join(printable(str(error)).split()) or "no message"
            raise click.ClickException(
                f"something went wrong that was not foreseen ({type(error).__name__}: {told}); "
                f"`degaml --debug …` shows where"
            ) from None

    @staticmethod
    def _reraise(ctx: click.Context, error: Exception) -> None:
        if ctx.params.get("debug"):
            raise error


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH},
    epilog="""\b
First steps:
  degaml tasks
  degaml tasks --write tenant_desks messages.jsonl
  degaml adapt messages.jsonl --held-out 10 --out desks
  degaml predict desks --question "Water is dripping from my ceiling"
  degaml info desks
""",
)
@click.version_option(__version__, prog_name="degaml")
@click.option("--debug", is_flag=True, help="Show where an error happened.")
def main(debug: bool) -> None:
    """Adapt a small language model to a task, from a few examples of it.

    A generator makes a LoRA adapter from the questions alone. A policy then proposes strategies to refine it; each is
    tried on the examples, and the best is carried out. What comes of it is a folder that PEFT opens.
    """
    if not debug:
        # of other packages, about themselves; what a user should know is in the report
        warnings.simplefilter("ignore")
        logging.getLogger("degaml_kedro").addHandler(logging.NullHandler())
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        # threads that wait for each other give way to whoever else computes; read when torch is imported
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """How a file is read, as several commands ask."""
    for option in (
        click.option(
            "--skip-mistakes", is_flag=True, help="Go on without the lines that have one."
        ),
        click.option(
            "--answer-column", metavar="NAME", help="The answers, where no column has a usual name."
        ),
        click.option(
            "--option-columns",
            metavar="NAMES",
            help="The options: one column of lists, or several, with commas between.",
        ),
        click.option("--question-column", metavar="NAME", help="The questions."),
    ):
        command = option(command)
    return command


def _reading(
    question: str | None,
    options: str | None,
    answer: str | None,
    labels: Sequence[str] = (),
    answered: bool = True,
) -> Reading:
    from degaml_kedro.tasks.records import Reading

    names = tuple(name.strip() for name in (options or "").split(",") if name.strip())
    one_or_more = names[0] if len(names) == 1 else names or None
    return Reading(question, one_or_more, answer, tuple(labels), answered)


def _pair_options(command: Callable[..., None]) -> Callable[..., None]:
    """Which generator and policy, as several commands ask."""
    for option in (
        click.option(
            "--tracking-uri", metavar="URI", help="Where MLflow is, for models:/ and runs:/ URIs."
        ),
        click.option("--revision", metavar="REVISION", help="Of a pair on the Hugging Face hub."),
    ):
        command = option(command)
    return command


# --- adapt ----------------------------------------------------------------------------------------


@main.command(
    short_help="Adapt to a file of examples, and write an adapter.",
    epilog="""\b
Examples:
  degaml adapt messages.jsonl --out desks
  degaml adapt messages.jsonl --held-out 10 --out desks --force
  degaml adapt notes.txt --skip-mistakes --rounds 1 --proposals 2 --out notes
  degaml adapt - --out piped --json < messages.jsonl

\b
What EXAMPLES may look like, one line or one block an example:
  What month comes after March? => April
  What month comes after March? | May | April* | June
  {"question": "What month comes after March?", "options": ["May", "April"], "answer": "April"}
  a CSV, TSV, JSON or Parquet file with text and label, or question, options and answer
""",
)
@click.argument("examples", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--held-out",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Keep N examples out of adaptation, and score on them. Without any, nothing is known of new questions.",
)
@click.option(
    "--pair",
    metavar="SOURCE",
    help="Generator and policy: a folder, a run's data folder, an MLflow URI or a hub id. "
    "Default: the pair that ships with the package.",
)
@_pair_options
@click.option(
    "--rounds", type=click.IntRange(1, 100), help="Rounds of proposals. Default: the pair's own."
)
@click.option("--proposals", type=click.IntRange(1, 1024), help="Proposals in a round.")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), help="Time for trying proposals."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of all randomness.")
@_reading_options
@click.option("--force", is_flag=True, help="Replace an adapter that is in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="No progress and no report; errors are still told.")
def adapt(
    examples: str,
    out: Path,
    held_out: int,
    pair: str | None,
    revision: str | None,
    tracking_uri: str | None,
    rounds: int | None,
    proposals: int | None,
    seconds: float | None,
    seed: int,
    question_column: str | None,
    option_columns: str | None,
    answer_column: str | None,
    skip_mistakes: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Adapt to EXAMPLES, a file or - for standard input, and write an adapter.

    The file is text, CSV, TSV, JSON, JSONL or Parquet. A line with a mistake is named, and stops the command.
    """
    out = _expanded(out)
    _check_out(out, force)
    reading = _reading(question_column, option_columns, answer_column)
    given = _read(examples, reading, skip_mistakes).examples
    from degaml_kedro.session import AdaptationCancelled, Budget, Session

    line = _ProgressLine(quiet)
    line.say("loading the pair")
    try:
        session = Session.load(pair, revision=revision, tracking_uri=tracking_uri)
        with _cancelled_by_ctrl_c() as cancel:
            adapted = session.adapt(
                given,
                held_out=held_out,
                budget=Budget(rounds=rounds, proposals=proposals, seconds=seconds),
                seed=seed,
                progress=line,
                cancel=cancel,
            )
    except AdaptationCancelled:
        line.clear()
        click.echo("Stopped; nothing was written.", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        line.clear()
    # somebody else may have put something there meanwhile
    _check_out(out, force)
    adapted.save(out)
    if as_json:
        _print_json({**adapted.report.as_json(), "out": str(out)})
    elif not quiet:
        click.echo(_adaptation_text(adapted, out))


def _check_out(out: Path, force: bool) -> None:
    """Nobody's folder is lost, and it is known before the work begins whether there can be one.

    Raises:
        CheckpointError: there is something that is not ours.
        ClickException: there is one of ours without ``--force``, or no folder can be made.
    """
    _check_name(out)
    if out.resolve() == Path.cwd():
        raise click.ClickException("--out: it is the current folder; name one inside it.")
    check_overwritable(out)
    if out.is_dir() and any(out.iterdir()) and not force:
        raise click.ClickException(
            f"--out: {out} holds an adapter; replace it with --force, or name another folder."
        )
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    try:
        # what access rights say is not all: in /proc root has all of them, and can make nothing
        tempfile.TemporaryDirectory(dir=place, prefix=".").cleanup()
    except OSError:
        raise click.ClickException(
            f"--out: {out} cannot be made, nothing can be written in {place}; name another folder."
        ) from None


def _check_name(out: Path) -> None:
    """Nothing in the path is longer than file systems allow.

    Raises:
        ClickException: a name is, or all of it.
    """
    # folders that are not there yet hide the names below them from the system
    long = any(len(os.fsencode(part)) > NAME_BYTES for part in out.parts)
    try:
        os.lstat(out / LONGEST_INSIDE)
    except OSError as error:
        long = long or error.errno == errno.ENAMETOOLONG
    if long:
        raise click.ClickException(f"--out: {_one_line(str(out), 60)} is too long; shorten it.")


def _expanded(path: Path) -> Path:
    """A path with the user's home in place of ``~``.

    Raises:
        ClickException: there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise click.ClickException(
            f"{path}: there is no such user; write ./{path} for a folder of that name."
        ) from None


def _argument(path: Path | str) -> str:
    """A path as a shell takes it, never for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


@contextmanager
def _cancelled_by_ctrl_c() -> Iterator[threading.Event]:
    """Ctrl-C asks the work to stop, so that it ends in order; a second one ends the process at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        # only the main thread may say what a signal does
        yield event
        return

    def ask(*_: object) -> None:
        if event.is_set():
            # not by an exception: one that comes while an object is taken down is printed and lost
            os.write(2, b"\nStopped; nothing was written.\n")
            os._exit(INTERRUPTED)
        event.set()

    earlier = signal.signal(signal.SIGINT, ask)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, earlier)


class _ProgressLine:
    """Where an adaptation stands, on standard error: one line that is written over, or a line a stage in a log."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._told: object = None

    def __call__(self, progress: Progress) -> None:
        left = progress.seconds_left
        known = left is not None and progress.stage != "done"
        # in front of the message, which may be cut
        time_left = f", about {_duration(left or 0.0)} left" if known else ""
        text = f"[{progress.share:.0%} {progress.stage}{time_left}] {progress.message}"
        # in a log a line a message, not one a step
        if self._terminal or (progress.stage, progress.message) != self._told:
            self._told = (progress.stage, progress.message)
            self.say(text)

    def say(self, text: str) -> None:
        """Show a text in place of the last one."""
        if self._quiet:
            return
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            click.echo(f"\r\x1b[K{_one_line(text, width)}", nl=False, err=True)
        else:
            click.echo(_one_line(text, _WIDTH), err=True)

    def clear(self) -> None:
        """Leave nothing on a terminal."""
        if self._terminal and not self._quiet:
            click.echo("\r\x1b[K", nl=False, err=True)


def _adaptation_text(adapted: AdaptedModel, out: Path) -> str:
    """What came of it, and what to do next.

    Args:
        adapted: what was made.
        out: where it was saved.
    """
    from degaml_kedro.checkpoint.card import peft_code

    report = adapted.report
    place = _argument(out)
    code = peft_code(report.base_model, str(out)).rstrip()
    # questions of one's own: of those that it was adapted to, an answer says nothing
    ask = f"degaml predict {place} --base --question 'a new question'"
    ask += "" if adapted.labels else " --option 'one answer' --option 'another'"
    asked = f"Ask it:\n  {ask}"
    if adapted.labels:
        asked += f"\n  degaml predict {place} new.csv --out predictions.csv   # a column `text` is enough"
    parts = [
        adapted.explain().rstrip(),
        _changes_text(report.changes),
        f"Saved in {out} after {_duration(sum(report.seconds.values()))}.",
        asked,
        "Load it with PEFT:\n" + "\n".join(f"  {line}" for line in code.splitlines()),
    ]
    return "\n\n".join(part for part in parts if part)


def _changes_text(changes: Sequence[Change]) -> str:
    """Held-out questions that are answered otherwise than before."""
    if not changes:
        return ""
    lines = ["Held-out questions whose answer changed:"]
    for change in changes[:CHANGES_SHOWN]:
        before = "nothing" if change.before is None else change.options[change.before]
        after = "nothing" if change.after is None else change.options[change.after]
        lines.append(
            f"  {change.kind:<6}  {_one_line(change.question, 60)}: "
            f"{_one_line(before, 30)} → {_one_line(after, 30)}"
        )
    if len(changes) > CHANGES_SHOWN:
        lines.append(f"  … and {len(changes) - CHANGES_SHOWN} more")
    return "\n".join(lines)


# --- predict --------------------------------------------------------------------------------------


@main.command(
    short_help="Ask an adapter questions.",
    epilog="""\b
Examples:
  degaml predict desks --question "Water is dripping from my ceiling" --base
  degaml predict desks new.csv --out predictions.csv
  degaml predict desks messages.jsonl --base --verbose
  degaml predict desks - --json < messages.jsonl

\b
FILE is like that of `degaml adapt`; answers may be missing, and options, where the examples had one set of answers:
  a CSV file with a column `text`
  What month comes after March? | May | April | June
""",
)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@click.option("--question", metavar="TEXT", help="One question, in place of FILE.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="TEXT",
    help="An answer to choose from, at least two; default: those that the adapter was trained with.",
)
@click.option("--base", is_flag=True, help="Ask the frozen base model too, side by side.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write answers and probabilities: .csv, .jsonl or .parquet.",
)
@click.option("--verbose", is_flag=True, help="List every question of FILE with its options.")
@_reading_options
@click.option("--json", "as_json", is_flag=True, help="Print answers as JSON.")
def predict(
    adapter: Path,
    file: str | None,
    question: str | None,
    options: tuple[str, ...],
    base: bool,
    out: Path | None,
    verbose: bool,
    question_column: str | None,
    option_columns: str | None,
    answer_column: str | None,
    skip_mistakes: bool,
    as_json: bool,
) -> None:
    """Ask ADAPTER, a folder that `degaml adapt` wrote: one question, or those of FILE (- for standard input)."""
    if (file is None) == (question is None):
        raise click.UsageError("give either --question, or a file of questions.")
    if out is not None and out.suffix.lower() not in _WRITERS:
        raise click.UsageError(f"--out: {out} is none of {', '.join(_WRITERS)}.")
    adapter = _expanded(adapter)
    _check_adapter(adapter)
    trained = trained_labels(adapter)
    asked: Sequence[Question | Example]
    if question is not None:
        from degaml_kedro.tasks.pasted import read_question

        if not options and not trained:
            raise click.UsageError(
                "this adapter's examples had options of their own: give the question's with --option, at least two."
            )
        asked = [read_question(question, options or trained)]
    else:
        reading = _reading(
            question_column, option_columns, answer_column, options or trained, answered=False
        )
        asked = _read(str(file), reading, skip_mistakes).questions
    if options and trained and set(options) != set(trained):
        told = ", ".join(_one_line(label, 30) for label in trained)
        click.echo(f"Asked with your own options; the adapter was trained with: {told}", err=True)
    from degaml_kedro.session import AdaptedModel

    line = _ProgressLine(quiet=len(asked) < MANY_QUESTIONS or not sys.stderr.isatty())
    line.say("loading the adapter")
    try:
        model = AdaptedModel.open(adapter)
        line.say(f"asking the adapted model {len(asked)} questions")
        answers = model.predict(asked)
        if base:
            line.say(f"asking the base model {len(asked)} questions")
        before = model.predict_base(asked) if base else None
    finally:
        line.clear()
    if out is not None:
        _write_predictions(out, asked, answers)
    if as_json:
        _print_json(_answers_json(asked, answers, before))
        return
    if verbose or question is not None:
        click.echo(_answers_text(asked, answers, before) + "\n")
    if file is not None:
        click.echo(_summary_text(asked, answers, before))
    if out is not None:
        click.echo(f"{_count(len(asked), 'answer')} with probabilities in {out}.")


_WRITERS = (".csv", ".jsonl", ".parquet")


def _write_predictions(
    out: Path, asked: Sequence[Question | Example], answers: Sequence[Answer]
) -> None:
    """A row a question: the answer, its probability, and those of all options.

    Raises:
        ClickException: it cannot be written.
    """
    import pandas as pd

    from degaml_kedro.io.atomic import replace_file

    rows = []
    for one, answer in zip(asked, answers, strict=True):
        row: dict[str, Any] = {"question": _stem(one), "label": answer.text}
        gold = _gold(one)
        if gold is not None:
            row |= {"answer": one.options[gold], "right": gold == answer.choice}
        row["probability"] = answer.probabilities[answer.choice]
        shares = dict(zip(one.options, answer.probabilities, strict=True))
        rows.append({**row, "probabilities": json.dumps(shares, ensure_ascii=False)})
    frame = pd.DataFrame(rows)
    suffix = out.suffix.lower()
    if suffix == ".csv":
        content = frame.to_csv(index=False).encode()
    elif suffix == ".parquet":
        content = frame.to_parquet(index=False)
    else:
        lines = [{**row, "probabilities": json.loads(row["probabilities"])} for row in rows]
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines).encode()
    try:
        replace_file(out, lambda file: file.write(content))
    except OSError as error:
        raise click.ClickException(f"{out} cannot be written ({error.strerror}).") from None


def _summary_text(
    asked: Sequence[Question | Example], answers: Sequence[Answer], before: Sequence[Answer] | None
) -> str:
    """How often each answer was given, and where answers are known, accuracy and what was taken for what."""
    given = Counter(answer.text for answer in answers)
    known = [
        (one.options[gold], answer.text)
        for one, answer in zip(asked, answers, strict=True)
        if (gold := _gold(one)) is not None
    ]
    names = list(dict.fromkeys(option for one in asked for option in one.options))
    parts = []
    if 0 < len(known) < len(asked):
        parts.append(f"{len(known)} of {len(asked)} questions have an answer to compare with.")
    for name, said in (("base model", before), ("adapted model", answers)):
        if (accuracy := _accuracy(asked, said)) is not None:
            parts.append(f"Accuracy of the {name}: {accuracy.text}")
    # one set of answers: otherwise nothing would be counted but questions
    if len(names) <= _MOST_COUNTED and all(len(one.options) == len(names) for one in asked):
        parts.append("\n" + _table(_counts(names, given, known)))
    else:
        parts.append(f"{_count(len(asked), 'question')}; --verbose lists them.")
    return "\n".join(parts)


_MOST_COUNTED = 26


def _counts(
    names: Sequence[str], given: Mapping[str, int], known: Sequence[tuple[str, str]]
) -> list[list[str]]:
    """A row a label: how often it was answered, and, where right answers are known, what was answered in its place."""
    short = [_one_line(name, 16) for name in names]
    if not known:
        return [["", "answered"], *([s, str(given[n])] for s, n in zip(short, names, strict=True))]
    pairs = Counter(known)
    head = ["right answer \\ answered", *short, "right"]
    rows = [head]
    for label, name in zip(short, names, strict=True):
        total = sum(pairs[name, other] for other in names)
        cells = [str(pairs[name, other] or "·") for other in names]
        rows.append([label, *cells, f"{pairs[name, name]} of {total}"])
    rows.append(["answered in all", *(str(given[name]) for name in names), ""])
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _check_adapter(folder: Path) -> None:
    """The folder is there, before seconds are spent on imports."""
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "is not there"
        raise click.ClickException(
            f"ADAPTER: {folder} {what}; name a folder that `degaml adapt --out` wrote."
        )


def _answers_json(
    asked: Sequence[Question | Example], answers: Sequence[Answer], before: Sequence[Answer] | None
) -> dict[str, Any]:
    rows = []
    for place, (one, answer) in enumerate(zip(asked, answers, strict=True)):
        row: dict[str, Any] = {
            "question": _stem(one),
            "options": list(one.options),
            "answer": asdict(answer),
        }
        if before is not None:
            row["base"] = asdict(before[place])
        gold = _gold(one)
        if gold is not None:
            row["gold"] = gold
        rows.append(row)
    record: dict[str, Any] = {"answers": rows}
    for name, given in (("accuracy", answers), ("base_accuracy", before)):
        accuracy = _accuracy(asked, given)
        if accuracy is not None:
            record[name] = accuracy.as_json()
    return record


def _answers_text(
    asked: Sequence[Question | Example], answers: Sequence[Answer], before: Sequence[Answer] | None
) -> str:
    """Every question, whether its answer is right, and the probability of its options, the chosen one marked."""
    blocks = []
    for place, (one, answer) in enumerate(zip(asked, answers, strict=True)):
        sides = [answer] if before is None else [before[place], answer]
        gold = _gold(one)
        width = min(_WIDTH // 2, max(len(_one_line(option, _WIDTH // 2)) for option in one.options))
        heads = "" if before is None else f"  {'':<{width}}      base  adapted\n"
        lines = []
        for index, option in enumerate(one.options):
            shares = "  ".join(
                f"{'>' if side.choice == index else ' '} {side.probabilities[index]:5.2f}"
                for side in sides
            )
            lines.append(f"  {_one_line(option, _WIDTH // 2):<{width}}  {shares}")
        verdict = ""
        if gold is not None:
            right = answer.choice == gold
            verdict = "  (right)" if right else f"  (wrong: {_one_line(one.options[gold], 40)})"
        blocks.append(f"{_one_line(_stem(one), _WIDTH)}{verdict}\n{heads}" + "\n".join(lines))
    return "\n\n".join(blocks)


def _accuracy(
    asked: Sequence[Question | Example], answers: Sequence[Answer] | None
) -> Accuracy | None:
    """Of the questions whose answer is known; None where there is no such question."""
    from degaml_kedro.adaptation import Accuracy

    golds = [_gold(one) for one in asked]
    known = [gold for gold in golds if gold is not None]
    if answers is None or not known:
        return None
    right = sum(answer.choice == gold for answer, gold in zip(answers, golds, strict=True))
    return Accuracy(right, len(known))


def _gold(one: Question | Example) -> int | None:
    return getattr(one, "gold", None)


def _stem(one: Question | Example) -> str:
    """The question without its options."""
    from degaml_kedro.tasks.example import Example, split_prompt

    return one.question if isinstance(one, Example) else split_prompt(one.prompt)[0]


# --- info -----------------------------------------------------------------------------------------


@main.command(
    short_help="Say what an adapter or a pair is.",
    epilog="""\b
Examples:
  degaml info
  degaml info desks
  degaml info desks --json
""",
)
@click.argument("source", required=False)
@_pair_options
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info(
    source: str | None,
    revision: str | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Say what SOURCE is: an adapter's folder, or a pair as --pair of `degaml adapt` names it.

    Without SOURCE: the pair that ships with the package, and versions.
    """
    folder = None if source is None else _expanded(Path(source))
    if folder is not None and (folder / "degaml.json").exists():
        from degaml_kedro.checkpoint.folder import load_adaptation

        saved = load_adaptation(folder)
        facts: dict[str, Any] = {
            "adapter": str(folder),
            "base model": saved.base_model,
            "fingerprint of the base model": saved.base_model_fingerprint,
            "adapters": len(saved.state.members),
            "vote": saved.state.vote and asdict(saved.state.vote),
            "steering": saved.state.steering
            and {
                "scope": saved.state.steering.scope,
                "times": saved.state.steering.times,
                "learning rate": saved.state.steering.learning_rate,
            },
            "contexts": {
                f"adapter_{number}": {
                    "shots": member.context.shots,
                    "order": member.context.order,
                    "encoder weight": member.context.encoder_weight,
                    "examples": len(member.context.examples),
                }
                for number, member in enumerate(saved.state.members)
                if member.context is not None
            }
            or None,
            "opened whole by PEFT": saved.state.is_one_adapter,
            "made by": saved.report.source,
            "seed": saved.report.seed,
        }
        if as_json:
            _print_json({**_keys(facts), "report": saved.report.as_json()})
        else:
            from degaml_kedro.adaptation import explain

            click.echo(f"{_facts_text(facts)}\n\n{explain(saved.report)}")
        return
    from degaml_kedro.checkpoint import hub

    pair = hub.load_trained_pair(source, revision=revision, tracking_uri=tracking_uri)
    facts = _pair_facts(pair)
    facts["accuracy, as its card says"] = _card_accuracy(folder or hub.SHIPPED)
    if source is None:
        facts["versions"] = _versions()
    if as_json:
        _print_json(_keys(facts))
    else:
        click.echo(_facts_text(facts))


def _pair_facts(pair: TrainedPair) -> dict[str, Any]:
    """What there is to know of a pair without loading its base model."""
    from degaml_kedro.policy.actions import ActionSpace

    identity = pair.generator.identity
    space = ActionSpace.of(pair.settings.policy.families)
    search = pair.settings.policy.search
    facts: dict[str, Any] = {
        "pair": pair.name,
        "source": pair.source,
        "base model": pair.base_model,
        "fingerprint of the base model": pair.base_model_fingerprint,
        "prompt encoder": identity.encoder,
        "fingerprint of the encoder": identity.encoder_fingerprint,
        "fingerprint of the generator": pair.generator.fingerprint,
        "prompts an adapter is made from": pair.generator.decoder.condition.prompts,
        "policy": "none: strategies are drawn uniformly"
        if pair.policy is None
        else f"LoRA of rank {pair.policy.config.rank}",
        "budget": f"{search.rounds} rounds of {search.proposals} proposals",
        "strategies": space.describe([family.name for family in space.families]).splitlines(),
    }
    about = {printable(str(key)).replace("_", " "): value for key, value in pair.about.items()}
    # what is known is not to be replaced by what somebody wrote
    return {**facts, **{name: value for name, value in about.items() if name not in facts}}


def _card_accuracy(folder: Path) -> list[str] | None:
    """The lines of the model card below its heading ``Accuracy``; None where there is no such card."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    _, found, rest = card.partition("\n## Accuracy\n")
    section = rest.partition("\n## ")[0].strip()
    return [printable(line) for line in section.splitlines()][:CARD_LINES] if found else None


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    return {
        "degaml-kedro": __version__,
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _keys(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts under names that programs like."""
    return {name.replace(",", "").replace(" ", "_"): value for name, value in facts.items()}


def _facts_text(facts: Mapping[str, Any]) -> str:
    """One fact a line, lists and groups below their name; they are anybody's text."""
    width = max(len(name) for name, value in facts.items() if not isinstance(value, Mapping | list))
    return "\n".join(printable(line) for line in _fact_lines(facts, "", width))


def _fact_lines(facts: Mapping[str, Any], indent: str, width: int) -> Iterator[str]:
    for name, value in facts.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            yield f"{indent}{name}"
            inner = max((len(str(key)) for key in value), default=0)
            yield from _fact_lines({str(k): v for k, v in value.items()}, f"{indent}  ", inner)
        elif isinstance(value, list | tuple) and any(" " in str(one) for one in value):
            yield f"{indent}{name}"
            yield from (f"{indent}  {one}" for one in value)
        else:
            listed = isinstance(value, list | tuple)
            told = ", ".join(str(one) for one in value) if listed else _value(value)
            yield f"{indent}{name:<{width}}  {told}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- tasks and the base model ---------------------------------------------------------------------


@main.command(
    short_help="List ready tasks, or write examples of one.",
    epilog="""\b
Examples:
  degaml tasks
  degaml tasks --write tenant_desks messages.jsonl
  degaml tasks --write number_roman roman.jsonl --count 12 --seed 1
""",
)
@click.option(
    "--write",
    nargs=2,
    metavar="NAME FILE",
    type=str,
    help="Write examples of a task as JSONL, a start for a file of your own.",
)
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    default=30,
    show_default=True,
    help="How many to write.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of their choice.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def tasks(write: tuple[str, str] | None, count: int, seed: int, as_json: bool) -> None:
    """List ready tasks. The shipped pair was trained on tasks like those marked `seen`."""
    from degaml_kedro.tasks.ready import ready_task, ready_tasks

    if write is None:
        every = ready_tasks()
        if as_json:
            _print_json([asdict(task) for task in every])
            return
        width = max(len(task.name) for task in every)
        click.echo(
            "\n".join(
                f"{task.name:<{width}}  {'seen' if task.seen else '    '}  {task.description}"
                for task in every
            )
        )
        return
    name, path = write[0], Path(write[1])
    examples, _ = ready_task(name).draw(count, 0, seed)
    text = _as_csv(examples) if path.suffix.lower() == ".csv" else _as_jsonl(examples)
    try:
        # "x": nobody's file is lost, not even one that comes at this moment
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError:
        raise click.ClickException(f"{path} is there already; name another file.") from None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written ({error.strerror}).") from None
    click.echo(f"{len(examples)} examples of {name} are in {path}. Adapt to them:")
    click.echo(f"  degaml adapt {_argument(path)} --held-out {len(examples) // 3} --out {name}")


def _as_jsonl(examples: Sequence[Example]) -> str:
    records = (
        {"question": one.question, "options": list(one.options), "answer": one.options[one.gold]}
        for one in examples
    )
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _as_csv(examples: Sequence[Example]) -> str:
    """Texts with labels where all examples have one set of answers, else questions with their options."""
    from degaml_kedro.tasks.example import shares_options

    file = io.StringIO(newline="")
    writer = csv.writer(file)
    closed = shares_options(examples)
    writer.writerow(["text", "label"] if closed else ["question", "options", "answer"])
    for one in examples:
        options = [] if closed else [json.dumps(one.options, ensure_ascii=False)]
        writer.writerow([one.question, *options, one.options[one.gold]])
    return file.getvalue()


@main.command(
    "base-model",
    short_help="Write the base model as a folder that other tools open.",
    epilog="""\b
Example:
  degaml base-model base
""",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--pair", metavar="SOURCE", help="Whose base model. Default: the shipped pair's.")
@_pair_options
def base_model(
    folder: Path,
    pair: str | None,
    revision: str | None,
    tracking_uri: str | None,
) -> None:
    """Write the base model into FOLDER, which PEFT, Transformers and other tools open by its path."""
    from degaml_kedro.checkpoint.hub import load_trained_pair
    from degaml_kedro.llm.base_model import export_base_model

    found = load_trained_pair(pair, revision=revision, tracking_uri=tracking_uri)
    export_base_model(found.settings.model, folder)
    click.echo(f"{found.base_model} is in {folder}.")


# --- files ----------------------------------------------------------------------------------------


def _read(file: str, reading: Reading, skip_mistakes: bool) -> Pasted:
    """What a file, or standard input for ``-``, holds; mistakes are named line by line.

    Raises:
        RecordError: it cannot be read at all.
        ClickException: there are mistakes and they are not to be skipped, or there is nothing but mistakes.
    """
    from degaml_kedro.tasks.pasted import MAX_BYTES, read_data, read_file

    if file == "-":
        if sys.stdin.isatty():
            click.echo("Reading examples from the terminal; Ctrl-D ends them.", err=True)
        pasted = read_data(sys.stdin.buffer.read(MAX_BYTES + 1), "", reading)
    else:
        pasted = read_file(Path(file), reading)
    mistakes, good = pasted.mistakes, len(pasted.questions)
    for row in mistakes[:MISTAKES_SHOWN]:
        click.echo(printable(str(row.mistake)), err=True)
    if len(mistakes) > MISTAKES_SHOWN:
        click.echo(f"… and {len(mistakes) - MISTAKES_SHOWN} more", err=True)
    what = "standard input" if file == "-" else Path(file).name
    if not good:
        raise click.ClickException(f"{what} has no example that could be read; correct it there.")
    if mistakes and not skip_mistakes:
        raise click.ClickException(
            f"{what}: {_count(len(mistakes), 'mistake')} beside {_count(good, 'example')}; "
            f"correct them, or go on without them with --skip-mistakes."
        )
    if pasted.unread:
        names = ", ".join(f"'{_one_line(name, 30)}'" for name in pasted.unread)
        click.echo(f"{what}: not read: {names}", err=True)
    return pasted


# --- texts ----------------------------------------------------------------------------------------


def _print_json(record: Any) -> None:
    text = json.dumps(record, indent=1, ensure_ascii=False)
    # JSON's own line breaks stay, all else that a terminal might obey is escaped
    click.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def _one_line(text: str, width: int) -> str:
    """A text without line breaks and what a terminal would take for a command, cut to a width."""
    flat = " ".join(printable(text).split())
    return flat if len(flat) <= width else f"{flat[: width - 1]}…"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
