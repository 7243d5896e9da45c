"""The ``degaml`` command: adapt to a file of examples, ask what came of it, say what pairs and adapters are.

Nothing heavy is imported before a command needs it, so that ``degaml --help`` answers at once.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from degaml_kedro import __version__
from degaml_kedro.checkpoint.layout import check_overwritable, trained_labels
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.texts import printable

if TYPE_CHECKING:
    from degaml_kedro.adaptation import Accuracy, Answer, Change, Progress
    from degaml_kedro.checkpoint.folder import TrainedPair
    from degaml_kedro.session import AdaptedModel
    from degaml_kedro.tasks.example import Example, Question
    from degaml_kedro.tasks.pasted import Pasted

INTERRUPTED = 130
CHANGES_SHOWN = 10
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
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            told = printable(str(error))
            # people are told in a sentence, with --debug the rest
            if not isinstance(error, DegamlError):
                told = (
                    f"something went wrong that was not foreseen ({type(error).__name__}: "
                    f"{' '.join(told.split()) or 'no message'}); `degaml --debug …` shows where"
                )
            raise click.ClickException(told) from None


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


class _Path(click.Path):
    """A path, with the user's home in place of ``~``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, checked.

        Raises:
            BadParameter: there is no such user, or the path is not what is asked for.
        """
        try:
            return super().convert(Path(value).expanduser(), param, ctx)
        except RuntimeError:
            self.fail(f"{value}: there is no such user; write ./{value} for a name like that.")


_Command = Callable[..., None]


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Options that several commands have, in this order."""

    def added(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return added


_reading_options = _options(
    click.option("--question-column", metavar="NAME", help="The questions."),
    click.option(
        "--option-columns",
        metavar="NAMES",
        help="The options: one column of lists, or several, with commas between.",
    ),
    click.option(
        "--answer-column", metavar="NAME", help="The answers, where no column has a usual name."
    ),
    click.option("--skip-mistakes", is_flag=True, help="Go on without the lines that have one."),
)
_pair_options = _options(
    click.option("--revision", metavar="REVISION", help="Of a pair on the Hugging Face hub."),
    click.option(
        "--tracking-uri", metavar="URI", help="Where MLflow is, for models:/ and runs:/ URIs."
    ),
)


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
@click.option("--out", required=True, type=_Path(path_type=Path), help="The folder to write.")
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
    force: bool,
    as_json: bool,
    quiet: bool,
    **reading: Any,
) -> None:
    """Adapt to EXAMPLES, a file or - for standard input, and write an adapter.

    The file is text, CSV, TSV, JSON, JSONL or Parquet. A line with a mistake is named, and stops the command.
    """
    _check_out(out, force)
    given = _read(examples, **reading).examples
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
    adapted.save(out, replace=force)
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
    target = out.resolve()
    if target == Path.cwd():
        raise click.ClickException("--out: it is the current folder; name one inside it.")
    place = target.parent
    try:
        check_overwritable(out)
        filled = out.is_dir() and any(out.iterdir())
        while not place.exists():
            place = place.parent
        # all of it is tried: access rights do not say what /proc refuses, nor a parent how long names may be
        with tempfile.TemporaryDirectory(dir=place, prefix=".") as trial:
            inside = trial / target.relative_to(place) / LONGEST_INSIDE
            inside.parent.mkdir(parents=True)
            inside.touch()
    except OSError as error:
        raise click.ClickException(
            f"--out: {_one_line(str(out), 60)} cannot be made ({error.strerror}); name another folder."
        ) from None
    if filled and not force:
        raise click.ClickException(
            f"--out: {out} holds an adapter; replace it with --force, or name another folder."
        )


def _argument(path: Path | str) -> str:
    """A path as a shell takes it, never for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


@contextmanager
def _cancelled_by_ctrl_c() -> Iterator[threading.Event]:
    """Ctrl-C asks the work to stop, so that it ends in order; a second one ends the process at once."""
    event = threading.Event()

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
    """What came of it, where it was saved, and what to do next."""
    from degaml_kedro.checkpoint.card import peft_code

    report, place = adapted.report, _argument(out)
    # questions of one's own: of those that it was adapted to, an answer says nothing
    asked = f"Ask it:\n  degaml predict {place} --base --question 'a new question'"
    if adapted.labels:
        asked += f"\n  degaml predict {place} new.csv --out predictions.csv   # a column `text` is enough"
    else:
        asked += " --option 'one answer' --option 'another'"
    code = textwrap.indent(peft_code(report.base_model, str(out)).rstrip(), "  ")
    parts = [
        adapted.explain().rstrip(),
        _changes_text(report.changes),
        f"Saved in {out} after {_duration(sum(report.seconds.values()))}.",
        asked,
        f"Load it with PEFT:\n{code}",
    ]
    return "\n\n".join(part for part in parts if part)


def _changes_text(changes: Sequence[Change]) -> str:
    """Held-out questions that are answered otherwise than before."""
    if not changes:
        return ""
    lines = ["Held-out questions whose answer changed:"]
    for change in changes[:CHANGES_SHOWN]:
        before, after = (
            "nothing" if place is None else _one_line(change.options[place], 30)
            for place in (change.before, change.after)
        )
        question = _one_line(change.question, 60)
        lines.append(f"  {change.kind:<6}  {question}: {before} → {after}")
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
@click.argument("adapter", type=_Path(exists=True, file_okay=False, path_type=Path))
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
    as_json: bool,
    **reading: Any,
) -> None:
    """Ask ADAPTER, a folder that `degaml adapt` wrote: one question, or those of FILE (- for standard input)."""
    if (file is None) == (question is None):
        raise click.UsageError("give either --question, or a file of questions.")
    if out is not None and out.suffix.lower() not in _WRITERS:
        raise click.UsageError(f"--out: {out} is none of {', '.join(_WRITERS)}.")
    trained = trained_labels(adapter)
    asked: Sequence[Question | Example]
    lines: Sequence[int | None]
    if question is not None:
        from degaml_kedro.tasks.pasted import read_question

        if not options and not trained:
            raise click.UsageError(
                "this adapter's examples had options of their own: give the question's with --option, at least two."
            )
        asked, lines = [read_question(question, options or trained)], [None]
    else:
        if file != "-" and out is not None and out.exists() and out.samefile(str(file)):
            raise click.UsageError(f"--out: {out} is the file of questions; name another.")
        read = _read(str(file), labels=options or trained, answered=False, **reading)
        asked = read.questions
        lines = [row.line for row in read.rows if row.question is not None]
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
    rows = [
        _Asked(line, one.question, one.options, getattr(one, "gold", None), answer, own)
        for line, one, answer, own in zip(
            lines, asked, answers, before or repeat(None), strict=False
        )
    ]
    if out is not None:
        _write_predictions(out, rows)
    if as_json:
        _print_json(_answers_json(rows))
        return
    if verbose or question is not None:
        click.echo("\n\n".join(map(_answer_text, rows)) + "\n")
    if file is not None:
        click.echo(_summary_text(rows))
    if out is not None:
        click.echo(f"{_count(len(asked), 'answer')} with probabilities in {out}.")


@dataclass(frozen=True)
class _Asked:
    """A question that was answered by the adapted model, and perhaps by the base model.

    Attributes:
        line: of the file, where it comes from one.
        gold: the place of the right option, where it is known.
    """

    line: int | None
    question: str
    options: tuple[str, ...]
    gold: int | None
    answer: Answer
    base: Answer | None

    @property
    def right(self) -> str | None:
        """The right answer, where it is known."""
        return None if self.gold is None else self.options[self.gold]


_WRITERS = (".csv", ".jsonl", ".parquet")


def _write_predictions(out: Path, rows: Sequence[_Asked]) -> None:
    """A row a question: the answer, its probability, and those of all options.

    Raises:
        ClickException: it cannot be written.
    """
    import pandas as pd

    from degaml_kedro.common.atomic import replace_file

    records = []
    for one in rows:
        record: dict[str, Any] = {} if one.line is None else {"line": one.line}
        record |= {"question": one.question, "label": one.answer.text}
        if one.right is not None:
            record |= {"answer": one.right, "right": one.gold == one.answer.choice}
        record["probability"] = one.answer.probabilities[one.answer.choice]
        record["probabilities"] = dict(zip(one.options, one.answer.probabilities, strict=True))
        records.append(record)
    if out.suffix.lower() == ".jsonl":
        content = _as_json_lines(records).encode()
    else:
        frame = pd.DataFrame(records)
        as_text = partial(json.dumps, ensure_ascii=False)
        frame["probabilities"] = frame["probabilities"].map(as_text)
        is_csv = out.suffix.lower() == ".csv"
        content = frame.to_csv(index=False).encode() if is_csv else frame.to_parquet(index=False)
    try:
        replace_file(out, lambda file: file.write(content))
    except OSError as error:
        raise click.ClickException(f"{out} cannot be written ({error.strerror}).") from None


def _summary_text(rows: Sequence[_Asked]) -> str:
    """How often each answer was given, and where answers are known, accuracy and what was taken for what."""
    names = list(dict.fromkeys(option for one in rows for option in one.options))
    known = sum(one.right is not None for one in rows)
    parts = []
    if 0 < known < len(rows):
        parts.append(f"{known} of {len(rows)} questions have an answer to compare with.")
    for name, side in (("base", "base"), ("adapted", "answer")):
        if (accuracy := _accuracy(rows, side)) is not None:
            parts.append(f"Accuracy of the {name} model: {accuracy.text}")
    # one set of answers: otherwise nothing would be counted but questions
    if len(names) <= _MOST_COUNTED and all(len(one.options) == len(names) for one in rows):
        parts.append(f"\n{_counts_text(names, rows)}")
    else:
        parts.append(f"{_count(len(rows), 'question')}; --verbose lists them.")
    return "\n".join(parts)


_MOST_COUNTED = 26


def _counts_text(names: Sequence[str], rows: Sequence[_Asked]) -> str:
    """How often each label was answered, in columns: a row a right answer, as far as these are known."""
    import pandas as pd

    place = {name: number for number, name in enumerate(names)}
    if all(one.right is None for one in rows):
        answered = pd.Series([one.answer.text for one in rows]).value_counts()
        counted = answered.reindex(pd.Index(names), fill_value=0)
        counted.index = pd.Index([_one_line(name, 16) for name in names], name="answered")
        return counted.to_frame("times").to_string()
    rights = [place.get(one.right or "", len(names)) for one in rows]
    counts = pd.crosstab(rights, [place[one.answer.text] for one in rows])
    counts = counts.reindex(columns=range(len(names)), fill_value=0)
    counts.loc[len(names) + 1] = counts.sum()
    counts["in all"] = counts.sum(axis="columns")
    shown = [*(_one_line(name, 16) for name in names), "not known", "in all"]
    counts.index = pd.Index([shown[number] for number in counts.index])
    counts.columns = pd.Index([*shown[:-2], "in all"], name="right answer \\ answered")
    return str(counts.to_string())


def _answers_json(rows: Sequence[_Asked]) -> dict[str, Any]:
    told = ("question", "options", "answer", "base", "gold")
    answers = [asdict(one) for one in rows]
    record: dict[str, Any] = {
        "answers": [{name: one[name] for name in told if one[name] is not None} for one in answers]
    }
    for name, side in (("accuracy", "answer"), ("base_accuracy", "base")):
        if (accuracy := _accuracy(rows, side)) is not None:
            record[name] = accuracy.as_json()
    return record


def _answer_text(one: _Asked) -> str:
    """A question, whether its answer is right, and the probability of its options, the chosen one marked."""
    import pandas as pd

    frame = pd.DataFrame(index=[_one_line(option, _WIDTH // 2) for option in one.options])
    for name, side in (("base", one.base), ("adapted", one.answer)):
        if side is not None:
            frame[name] = [
                f"{'>' if place == side.choice else ' '} {share:5.2f}"
                for place, share in enumerate(side.probabilities)
            ]
    verdict = ""
    if one.right is not None:
        is_right = one.gold == one.answer.choice
        verdict = "  (right)" if is_right else f"  (wrong: {_one_line(one.right, 40)})"
    table = textwrap.indent(frame.to_string(header=one.base is not None), "  ")
    return f"{_one_line(one.question, _WIDTH)}{verdict}\n{table}"


def _accuracy(rows: Sequence[_Asked], side: str) -> Accuracy | None:
    """Of the model that answered as ``answer`` or ``base``; None where nothing is known of its answers."""
    from degaml_kedro.adaptation import Accuracy

    answers = [(getattr(one, side), one.gold) for one in rows if one.gold is not None]
    known = [answer.choice == gold for answer, gold in answers if answer is not None]
    return Accuracy(sum(known), len(known)) if known else None


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
def info(source: str | None, as_json: bool, **origin: Any) -> None:
    """Say what SOURCE is: an adapter's folder, or a pair as --pair of `degaml adapt` names it.

    Without SOURCE: the pair that ships with the package, and versions.
    """
    folder = None if source is None else Path(os.path.expanduser(source))  # noqa: PTH111 - may be no path
    if folder is not None and (folder / "degaml.json").exists():
        from degaml_kedro.checkpoint.folder import load_adaptation

        state, saved = load_adaptation(folder)
        steering = state.steering
        facts: dict[str, Any] = {
            "adapter": str(folder),
            "base_model": saved.base_model,
            "fingerprint_of_the_base_model": saved.base_model_fingerprint,
            "adapters": len(state.members),
            "vote": state.vote and asdict(state.vote),
            "steering": steering
            and {name: getattr(steering, name) for name in ("scope", "times", "learning_rate")},
            "contexts": {
                f"adapter_{number}": asdict(shown) | {"examples": len(shown.examples)}
                for number, shown in enumerate(one.demonstrations for one in state.members)
                if shown is not None
            },
            "opened_whole_by_PEFT": state.is_one_adapter,
            "made_by": saved.report.source,
            "seed": saved.report.seed,
        }
        if as_json:
            _print_json({**facts, "report": saved.report.as_json()})
        else:
            from degaml_kedro.adaptation import explain

            click.echo(f"{_facts_text(facts)}\n\n{explain(saved.report)}")
        return
    from degaml_kedro.checkpoint import hub

    facts = _pair_facts(hub.load_trained_pair(source, **origin))
    if source is None:
        facts["versions"] = _versions()
    if as_json:
        _print_json(facts)
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
        "base_model": pair.base_model,
        "fingerprint_of_the_base_model": pair.base_model_fingerprint,
        "prompt_encoder": identity.encoder,
        "fingerprint_of_the_encoder": identity.encoder_fingerprint,
        "fingerprint_of_the_generator": pair.generator.fingerprint,
        "prompts_an_adapter_is_made_from": pair.generator.decoder.condition.prompts,
        "policy": "none: strategies are drawn uniformly"
        if pair.policy is None
        else f"LoRA of rank {pair.policy.config.rank}",
        "budget": f"{search.rounds} rounds of {search.proposals} proposals",
        "strategies": space.describe([family.name for family in space.families]).splitlines(),
    }
    # what is known is not to be replaced by what somebody wrote
    return {**facts, **pair.about, **facts}


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    return {
        "degaml-kedro": __version__,
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _facts_text(facts: Mapping[str, Any]) -> str:
    """The facts as YAML; they are anybody's text."""
    import yaml

    class Printable(yaml.SafeDumper):
        """Texts in one line each, without what steers a terminal."""

    Printable.add_representer(
        str, lambda dumper, text: yaml.SafeDumper.represent_str(dumper, printable(text))
    )
    # through JSON: there are no tuples in it, and no two names for one list
    plain = json.loads(
        json.dumps({name: value for name, value in facts.items() if value not in (None, {})})
    )
    told = yaml.dump(plain, Dumper=Printable, sort_keys=False, allow_unicode=True, width=10**6)
    return str(told).rstrip()


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
            told = ("name", "title", "description", "seen")
            _print_json([{name: getattr(task, name) for name in told} for task in every])
            return
        width = max(len(task.name) for task in every)
        for task in every:
            seen = "seen" if task.seen else ""
            click.echo(f"{task.name:<{width}}  {seen:4}  {task.description}")
        return
    name, path = write[0], Path(write[1])
    examples, _ = ready_task(name).draw(count, 0, seed)
    if path.suffix.lower() == ".csv":
        text = _as_csv(examples)
    else:
        text = _as_json_lines(
            {"question": one.question, "options": one.options, "answer": one.options[one.gold]}
            for one in examples
        )
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


def _as_json_lines(records: Iterable[Mapping[str, Any]]) -> str:
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
def base_model(folder: Path, pair: str | None, **origin: Any) -> None:
    """Write the base model into FOLDER, which PEFT, Transformers and other tools open by its path."""
    from degaml_kedro.checkpoint.hub import load_trained_pair
    from degaml_kedro.llm.base_model import export_base_model

    found = load_trained_pair(pair, **origin)
    export_base_model(found.settings.model, folder)
    click.echo(f"{found.base_model} is in {folder}.")


# --- files ----------------------------------------------------------------------------------------


def _read(
    file: str,
    question_column: str | None,
    option_columns: str | None,
    answer_column: str | None,
    skip_mistakes: bool,
    labels: Sequence[str] = (),
    answered: bool = True,
) -> Pasted:
    """What a file, or standard input for ``-``, holds; mistakes are named line by line.

    Raises:
        RecordError: it cannot be read at all.
        ClickException: there are mistakes and they are not to be skipped, or there is nothing but mistakes.
    """
    from degaml_kedro.tasks.pasted import MAX_BYTES, read_data, read_file
    from degaml_kedro.tasks.records import Reading

    columns = tuple(name.strip() for name in (option_columns or "").split(",") if name.strip())
    options = columns[0] if len(columns) == 1 else columns or None
    reading = Reading(question_column, options, answer_column, tuple(labels), answered)
    if not answered:
        # a few dozen are enough to adapt to; of those to be asked there may be any number
        reading = replace(reading, most=None)
    if file == "-":
        if sys.stdin.isatty():
            click.echo("Reading examples from the terminal; Ctrl-D ends them.", err=True)
        size = MAX_BYTES + 1 if answered else -1
        pasted = read_data(sys.stdin.buffer.read(size), "", reading)
    else:
        pasted = read_file(Path(file), reading)
    mistakes, good = pasted.mistakes, len(pasted.questions)
    for told in pasted.told_mistakes():
        click.echo(told, err=True)
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
    for note in pasted.notes:
        click.echo(f"{what}: {note}", err=True)
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
