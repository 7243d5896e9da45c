"""The ``degaml`` command, in this process where that shows as much as in one of its own."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from safetensors import SafetensorError

from degaml_kedro import commands
from degaml_kedro.adaptation import Progress, Report
from degaml_kedro.checkpoint import hub
from degaml_kedro.checkpoint.folder import save_pair
from degaml_kedro.config.schema import SearchParameters
from degaml_kedro.session import AdaptedModel, SessionError
from degaml_kedro.tasks.pasted import read_file
from degaml_kedro.tasks.ready import ready_task, ready_tasks
from tests.checkpoint.helpers import tiny_pair, write_tiny_pair
from tests.conftest import ROOT
from tests.llm.helpers import plain_copy, tiny_base

DESKS = "tasks --write tenant_desks messages.jsonl"
ADAPT = "adapt messages.jsonl --held-out 10 --out desks"
QUICK = "--rounds 1 --proposals 1"


def degaml(line: str, given: bytes | str | None = None) -> Result:
    """A command line, without the command's own name."""
    # Kedro, which other tests load, logs to standard output
    logging.disable(logging.WARNING)
    try:
        return CliRunner().invoke(commands.main, shlex.split(line), input=given, prog_name="degaml")
    finally:
        logging.disable(logging.NOTSET)


def done(line: str, given: bytes | str | None = None) -> Result:
    """The same, for one that has to work."""
    result = degaml(line, given)
    assert result.exit_code == 0, result.output
    return result


def sentence(result: Result, code: int = 1) -> str:
    """The one sentence that a failed command ends with."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    return last


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_tiny_pair(tmp_path_factory.mktemp("pairs") / "pair")


@pytest.fixture
def place(tmp_path, monkeypatch, pair):
    """A folder to work in, where the tiny pair is the one that ships with the package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "SHIPPED", pair)
    return tmp_path


@pytest.fixture
def desks(place):
    """With examples, and an adapter that was made from them."""
    done(DESKS)
    done(f"{ADAPT} {QUICK} --quiet")
    return place / "desks"


def process(line: str, **options) -> subprocess.Popen:
    """A command line in a process of its own."""
    code = "from degaml_kedro.commands import main; main(prog_name='degaml')"
    return subprocess.Popen(
        [sys.executable, "-c", code, *shlex.split(line)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# --- help -----------------------------------------------------------------------------------------


def examples_of(epilog: str | None) -> list[str]:
    lines = (line.strip() for line in (epilog or "").splitlines())
    return [line for line in lines if line.startswith("degaml ")]


@pytest.mark.parametrize("name", ["", *commands.main.commands])
def test_examples_of_the_help_work(name, place):
    command = commands.main.commands[name] if name else commands.main
    if name in ("adapt", "predict", "info"):
        done(DESKS)
        Path("notes.txt").write_text("Is fire hot? => yes\nIs ice?\nIs ice hot? => no\n")
        Path("new.csv").write_text("text\nThe tap drips\nWho has my key?\n")
    if name in ("predict", "info"):
        done(f"{ADAPT} {QUICK} --quiet")
    if name == "base-model":
        _ship_a_pair_whose_model_is_a_folder(place)
    examples = examples_of(command.epilog)
    assert examples
    for line in examples:
        # nothing that an earlier example wrote is in the way of the next
        line, _, file = line.removeprefix("degaml ").partition(" < ")
        if f" {QUICK}" not in line and line.startswith("adapt"):
            line = f"{line} {QUICK}"
        done(line, Path(file).read_bytes() if file else None)
        if name == "adapt" and line.startswith("adapt messages.jsonl --out"):
            assert AdaptedModel.open("desks").report.support == 30
    shown = done(f"{name} --help").output
    assert all(line in shown for line in examples)


def _ship_a_pair_whose_model_is_a_folder(place):
    model = place / "tiny-model"
    plain_copy(tiny_base()).save_pretrained(model)
    tiny_base().tokenizer.save_pretrained(model)
    source = {"kind": "folder", "path": str(model)}
    save_pair(tiny_pair(model={"source": source}), place / "shipped")
    hub.SHIPPED = place / "shipped"


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom degaml_kedro.commands import main\n"
        "try: main(['adapt', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'pydantic', 'kedro'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


# --- adapt ----------------------------------------------------------------------------------------


def test_the_report_says_what_the_saved_adapter_is(place):
    done(DESKS)
    result = done(ADAPT)
    adapted = AdaptedModel.open("desks")
    assert adapted.explain() in result.stdout
    assert (adapted.report.support, adapted.report.held_out) == (20, 10)
    assert "Saved in desks" in result.stdout
    assert "PeftModel.from_pretrained" in result.stdout
    # what it says to do next works
    again = next(line for line in result.stdout.splitlines() if "degaml predict" in line)
    assert ">" in done(again.strip().removeprefix("degaml ")).stdout


def test_json_is_the_saved_report_alone(place):
    done(DESKS)
    result = done(f"{ADAPT} --json --quiet")
    record = json.loads(result.stdout)
    assert record.pop("out") == "desks"
    # through JSON: there are no tuples in it
    assert record == json.loads(json.dumps(AdaptedModel.open("desks").report.as_json()))
    assert result.stderr == ""


def test_quiet_says_nothing(place):
    done(DESKS)
    assert done(f"{ADAPT} {QUICK} --quiet").output == ""
    assert Path("desks/adapter_model.safetensors").is_file()


def test_the_budget_and_the_seed_are_the_sessions(place):
    done(DESKS)
    record = json.loads(done(f"{ADAPT} --rounds 1 --proposals 2 --seed 7 --json").stdout)
    assert record["seed"] == 7
    assert [(row["round"], row["number"]) for row in record["tried"]] == [(1, 1), (1, 2)]
    late = json.loads(done("adapt messages.jsonl --out late --seconds 1e-9 --json").stdout)
    assert late["tried"] == []


def test_progress_tells_stages_and_time_left_in_order(place):
    done(DESKS)
    lines = done(ADAPT).stderr.splitlines()
    stages = [
        line[1:].split("]")[0].replace(",", "").split()[1] for line in lines if line[0] == "["
    ]
    assert list(dict.fromkeys(stages)) == [
        "base",
        "generating",
        "trying",
        "executing",
        "scoring",
        "done",
    ]
    assert lines[-1] == "[100% done] Done"
    assert any("trying, about " in line and " left]" in line for line in lines)


class Terminal(StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_one_line_is_written_over_and_removed(monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", "40")
    line = commands._ProgressLine()
    for share in (0.1, 0.5):
        line(Progress("trying", "x" * 100, share, 1.0, 61.0, Report(2, 0)))
    line.clear()
    assert "\n" not in shown.getvalue()
    *parts, last = shown.getvalue().split("\r\x1b[K")[1:]
    assert [len(part) for part in parts] == [39, 39]
    assert parts[1].startswith("[50% trying, about 1 min 1 s left] xx")
    assert last == ""


def test_mistakes_are_named_by_line_and_stop_the_command(place):
    Path("notes.txt").write_text("Is fire hot? => yes\nIs ice?\nIs ice hot? => no\n")
    result = degaml(f"adapt notes.txt --out notes {QUICK}")
    assert "1 mistake beside 2 examples" in sentence(result)
    assert "--skip-mistakes" in result.stderr
    assert result.stderr.startswith("Line 2: ")
    assert not Path("notes").exists()

    skipped = done(f"adapt notes.txt --out notes {QUICK} --skip-mistakes")
    assert skipped.stderr.startswith("Line 2: ")
    assert AdaptedModel.open("notes").report.support == 2


def test_many_mistakes_are_not_all_shown(place):
    Path("notes.txt").write_text("Is fire hot? => yes\nIs ice hot? => no\n" + "Is it?\n" * 50)
    result = degaml("adapt notes.txt --out notes")
    assert "50 mistakes" in sentence(result)
    assert result.stderr.count("Line ") == 20
    assert "… and 30 more, in lines 23, 24, " in result.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"\0\1\2", "binary"),
        (b"caf\xe9 => yes", "not UTF-8"),
        (b"Is it? => yes\n" * 5, "the answer 'yes'"),
        (b"x" * (2 << 20), "larger than"),
        (b"no question here", "no example"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(content, told, place):
    Path("notes.txt").write_bytes(content)
    assert told in sentence(degaml("adapt notes.txt --out notes"))
    assert told in sentence(degaml("adapt - --out notes", content))
    assert not Path("notes").exists()


def test_what_the_session_refuses_is_one_sentence(place):
    Path("one.txt").write_text("Is fire hot? | yes* | no\n")
    assert "2 are needed" in sentence(degaml("adapt one.txt --out x"))
    Path("long.txt").write_text(f"{'very ' * 1000} hot? => yes\nIs ice hot? => no\n")
    assert "example 0 is" in sentence(degaml("adapt long.txt --out x"))
    assert not Path("x").exists()


@pytest.mark.parametrize("name", ["rounds", "proposals"])
def test_a_budget_out_of_range_is_refused_before_anything_is_loaded(name, place):
    Path("messages.jsonl").write_text("not even read")
    field = {info.__class__.__name__: info for info in SearchParameters.model_fields[name].metadata}
    least, most = field["Ge"].ge, field["Le"].le
    for number in (least - 1, most + 1):
        told = sentence(degaml(f"adapt messages.jsonl --out x --{name} {number}"), 2)
        assert f"{least}<=x<={most}" in told


@pytest.mark.parametrize(
    "line",
    [
        "adapt nope.jsonl --out x",
        "adapt messages.jsonl",
        "adapt messages.jsonl --out x --rounds -1",
        "adapt messages.jsonl --out x --seconds 0",
        "adapt messages.jsonl --out x --held-out some",
        "predict desks",
        "predict desks messages.jsonl --question Why?",
        "predict desks messages.jsonl --out answers.txt",
        "adept",
    ],
)
def test_wrong_usage_ends_with_2(line, place):
    Path("messages.jsonl").write_text("{}")
    sentence(degaml(line), 2)


# --- --out ----------------------------------------------------------------------------------------


def test_an_adapter_is_replaced_by_force_alone(desks):
    before = (desks / "degaml.json").read_bytes()
    assert "--force" in sentence(degaml(f"{ADAPT} {QUICK}"))
    assert (desks / "degaml.json").read_bytes() == before
    done(f"{ADAPT} {QUICK} --seed 3 --force")
    assert AdaptedModel.open(desks).report.seed == 3
    assert sorted(path.name for path in desks.parent.iterdir()) == ["desks", "messages.jsonl"]


def test_what_another_adapt_wrote_meanwhile_is_not_replaced(desks, monkeypatch):
    first = desks.rename("first")
    files = {path.name: path.read_bytes() for path in first.iterdir() if path.is_file()}
    save = AdaptedModel.save

    def later(model, folder, **options):
        first.rename(folder)
        return save(model, folder, **options)

    monkeypatch.setattr(AdaptedModel, "save", later)
    told = sentence(degaml(f"{ADAPT} {QUICK} --seed 3 --quiet"))
    assert "desks is there by now" in told
    assert "--force" in told
    assert {path.name: path.read_bytes() for path in desks.iterdir() if path.is_file()} == files
    assert sorted(path.name for path in desks.parent.iterdir()) == ["desks", "messages.jsonl"]


def test_a_folder_of_somebody_is_never_replaced(place):
    done(DESKS)
    own = Path("own")
    own.mkdir()
    (own / "thesis.txt").write_text("years of work")
    assert "no saved adaptation" in sentence(degaml("adapt messages.jsonl --out own --force"))
    # not even where an adapter is in it, too
    done(f"adapt messages.jsonl --out mixed {QUICK} --quiet")
    Path("mixed/thesis.txt").write_text("years of work")
    assert "'thesis.txt'" in sentence(degaml("adapt messages.jsonl --out mixed --force"))
    Path("file").write_text("a file")
    assert "no folder" in sentence(degaml("adapt messages.jsonl --out file --force"))
    Path("link").symlink_to(own)
    assert "it is a link" in sentence(degaml("adapt messages.jsonl --out link --force"))
    assert "cannot be made" in sentence(degaml("adapt messages.jsonl --out file/deep/x"))
    assert (own / "thesis.txt").read_text() == Path("mixed/thesis.txt").read_text()


def test_what_cannot_be_made_is_known_before_the_work_begins(place, monkeypatch):
    Path("messages.jsonl").write_text("not even read")
    long = "x" * 300
    for out in (long, f"new/{long}", f"new/{long}/deep", "/".join(["y" * 250] * 17)):
        assert "name too long" in sentence(degaml(f"adapt messages.jsonl --out {out}"))
    assert "no such user" in sentence(degaml("adapt messages.jsonl --out '~nobody at all/x'"), 2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    assert "No space left" in sentence(degaml("adapt messages.jsonl --out x"))
    assert [path.name for path in place.iterdir()] == ["messages.jsonl"]


def test_a_disk_that_fills_up_is_one_sentence(place, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    done(DESKS)
    monkeypatch.setattr("degaml_kedro.checkpoint.folder.write_peft_files", full)
    told = sentence(degaml(f"{ADAPT} {QUICK} --quiet"))
    assert "cannot be saved in desks" in told
    assert "No space left" in told
    assert "foreseen" not in told
    assert [path.name for path in place.iterdir()] == ["messages.jsonl"]


def test_a_folder_that_looks_like_an_option_can_be_asked(place):
    done(DESKS)
    shown = done(f"adapt messages.jsonl --out=-x {QUICK}").stdout
    again = next(line for line in shown.splitlines() if "degaml predict" in line)
    assert ">" in done(again.strip().removeprefix("degaml ")).stdout


def test_home_is_the_users(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    done(DESKS)
    done(f"adapt messages.jsonl --out '~/mine' {QUICK} --quiet")
    assert AdaptedModel.open(place / "mine").report.support == 30
    done("predict '~/mine' --question Why? --option a --option b")


def test_an_empty_folder_and_a_new_deep_one_are_filled(place):
    done(DESKS)
    Path("empty").mkdir()
    for folder in ("empty", "a/b/c", "no/../../{}/up"):
        folder = folder.format(place.name)
        done(f"adapt messages.jsonl --out {folder} {QUICK} --quiet")
        assert AdaptedModel.open(place / folder).report.support == 30
    assert sorted(one.name for one in place.iterdir()) == [
        "a",
        "empty",
        "messages.jsonl",
        "no",
        "up",
    ]


def test_the_current_folder_is_not_replaced(place, monkeypatch):
    Path("here").mkdir()
    done("tasks --write tenant_desks messages.jsonl")
    monkeypatch.chdir("here")
    assert "current folder" in sentence(degaml("adapt ../messages.jsonl --out ."))
    assert "current folder" in sentence(degaml("adapt ../messages.jsonl --out ../here"))


def test_ctrl_c_ends_with_130_and_leaves_nothing(place, pair):
    done(DESKS)
    running = process(
        f"adapt messages.jsonl --out desks --pair {shlex.quote(str(pair))} --rounds 100 --proposals 1000",
        cwd=place,
    )
    # once the trials go on
    while "trying" not in running.stderr.readline():
        assert running.poll() is None
    began = time.monotonic()
    running.send_signal(signal.SIGINT)
    output, told = running.communicate(timeout=120)
    assert running.returncode == 130
    assert told.strip().splitlines()[-1] == "Stopped; nothing was written."
    assert "Traceback" not in told
    assert output == ""
    assert time.monotonic() - began < 30
    assert [path.name for path in place.iterdir()] == ["messages.jsonl"]


def test_a_second_ctrl_c_ends_at_once_and_prints_no_traceback():
    # an exception would be lost in what Python calls as it takes an object down
    code = (
        "import os, signal, time\nfrom degaml_kedro.commands import _cancelled_by_ctrl_c\n"
        "class Dying:\n    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n        time.sleep(0.1)\n"
        "with _cancelled_by_ctrl_c() as cancel:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    assert cancel.wait(1)\n"
        "    dying = Dying()\n    del dying\n    print('went on')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 130
    assert (ended.stdout, ended.stderr) == ("", "\nStopped; nothing was written.\n")


# --- predict --------------------------------------------------------------------------------------


def test_answers_are_those_of_the_api(desks):
    asked = read_file(Path("messages.jsonl")).examples
    record = json.loads(done("predict desks messages.jsonl --base --json").stdout)
    adapted = AdaptedModel.open(desks)
    for side, answers in (
        ("answer", adapted.predict(asked)),
        ("base", adapted.predict_base(asked)),
    ):
        rows = [row[side] for row in record["answers"]]
        assert [row["choice"] for row in rows] == [answer.choice for answer in answers]
        assert [tuple(row["probabilities"]) for row in rows] == [a.probabilities for a in answers]
    assert record["accuracy"] == adapted.score(asked).as_json()
    assert [row["gold"] for row in record["answers"]] == [example.gold for example in asked]


def test_answers_for_people_show_probabilities_side_by_side(desks):
    shown = done("predict desks --question 'What comes?' --option April --option May --base").stdout
    [answer] = json.loads(
        done("predict desks --question 'What comes?' --option April --option May --json").stdout
    )["answers"]
    title, heads, *options = shown.strip().splitlines()
    assert title == "What comes?"
    assert heads.split() == ["base", "adapted"]
    assert [line.split()[0] for line in options] == ["April", "May"]
    chosen = options[answer["answer"]["choice"]]
    assert chosen.endswith(f"> {max(answer['answer']['probabilities']):5.2f}")
    # nothing is known of the right answer
    assert "Accuracy" not in shown
    assert "right" not in shown


def test_accuracy_is_told_where_answers_are_known(desks):
    shown = done("predict desks messages.jsonl --base --verbose").stdout
    adapted = AdaptedModel.open(desks)
    asked = read_file(Path("messages.jsonl")).examples
    score = adapted.score(asked)
    assert f"Accuracy of the adapted model: {score.text}" in shown
    assert "Accuracy of the base model: " in shown
    # beside a question stands whether its answer is right
    assert shown.count("  (right)\n") == score.right
    assert shown.count("  (wrong: ") == len(asked) - score.right
    # what was answered in place of what, by label
    rights = Counter(one.options[one.gold] for one in asked)
    brief = done("predict desks messages.jsonl").stdout
    assert "(right)" not in brief
    for label, total in rights.items():
        assert re.search(rf"^{label} .* {total}$", brief, re.MULTILINE)


def test_a_text_is_enough_where_the_examples_had_one_set_of_answers(desks):
    labels = AdaptedModel.open(desks).labels
    assert set(labels) == {"bell", "wagon", "honey", "tiger", "roof"}
    texts = ["The tap drips", "Who has my key?"]
    Path("new.csv").write_text("Text,Source\n" + "".join(f"{text},mail\n" for text in texts))
    result = done("predict desks new.csv --json")
    rows = json.loads(result.stdout)["answers"]
    assert [row["options"] for row in rows] == [list(labels)] * 2
    assert "not read: 'source'" in result.stderr
    one = json.loads(done(f"predict desks --question '{texts[0]}' --json").stdout)["answers"]
    assert one == rows[:1]
    assert [a.text for a in AdaptedModel.open(desks).predict(texts)] == [
        row["answer"]["text"] for row in rows
    ]
    # some of the labels in a file are asked with all of them
    Path("some.csv").write_text("text,label\nThe tap drips,roof\nWho has my key?,roof\n")
    rows = json.loads(done("predict desks some.csv --json").stdout)["answers"]
    assert [(row["options"], row["gold"]) for row in rows] == [
        (list(labels), labels.index("roof"))
    ] * 2
    # another set is asked with, and told
    other = done("predict desks new.csv --option yes --option no --json")
    assert json.loads(other.stdout)["answers"][0]["options"] == ["yes", "no"]
    assert "the adapter was trained with: " in other.stderr


def test_without_one_set_of_answers_options_are_asked_for(place):
    lines = ["What comes? | May* | June", "What went? | July | August*", "And now? | a* | b"]
    Path("own.txt").write_text("\n".join(lines))
    done(f"adapt own.txt --out own {QUICK} --quiet")
    assert AdaptedModel.open(place / "own").labels == ()
    assert "--option" in degaml("predict own --question Why?").stderr
    with pytest.raises(SessionError, match="has no options"):
        AdaptedModel.open(place / "own").predict("Why?")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predictions_are_written(suffix, desks):
    Path("some.csv").write_text("text,label\nThe tap drips,roof\nWho has my key?,\n")
    done(f"predict desks some.csv --out answers.{suffix}")
    readers = {
        "csv": pd.read_csv,
        "jsonl": partial(pd.read_json, lines=True),
        "parquet": pd.read_parquet,
    }
    frame = readers[suffix](f"answers.{suffix}")
    assert list(frame["line"]) == [2, 3]
    assert list(frame["question"]) == ["The tap drips", "Who has my key?"]
    answers = AdaptedModel.open(desks).predict(list(frame["question"]))
    assert list(frame["label"]) == [answer.text for answer in answers]
    assert list(frame["probability"]) == pytest.approx([max(a.probabilities) for a in answers])
    assert list(frame["answer"].fillna("")) == ["roof", ""]
    shares = frame["probabilities"][0]
    shares = json.loads(shares) if isinstance(shares, str) else shares
    assert sum(shares.values()) == pytest.approx(1)


def test_predictions_do_not_replace_the_questions(desks):
    Path("new.csv").write_text("text\nThe tap drips\n")
    assert "is the file of questions" in degaml("predict desks new.csv --out new.csv").stderr
    # an earlier file of answers is replaced, also where the questions come from standard input
    Path("answers.csv").write_text("old")
    piped = degaml("predict desks - --out answers.csv", "The tap drips\n")
    assert piped.exit_code == 0, piped.output
    assert "The tap drips" in Path("answers.csv").read_text()
    # without right answers, how often each label was answered
    counts = re.findall(r"^(\w+) +(\d+)$", done("predict desks new.csv").stdout, re.MULTILINE)
    assert sum(int(count) for _, count in counts) == 1


def test_columns_of_other_names(place):
    Path("own.csv").write_text("mail;queue\nIs fire hot?;yes\nIs ice hot?;no\nIs lava hot?;yes\n")
    assert "there is no question" in sentence(degaml(f"adapt own.csv --out own {QUICK}"))
    done(f"adapt own.csv --question-column mail --answer-column queue --out own {QUICK} --quiet")
    assert AdaptedModel.open(place / "own").labels == ("yes", "no")


def test_questions_without_answers_are_asked(desks):
    Path("asked.txt").write_text("What comes? | April | May\nWhat went? | June | July | May\n")
    record = json.loads(done("predict desks asked.txt --json").stdout)
    assert "accuracy" not in record
    asked = [(row["question"], row["options"]) for row in record["answers"]]
    assert asked == [("What comes?", ["April", "May"]), ("What went?", ["June", "July", "May"])]


def test_a_question_that_is_none_is_named_by_its_line(desks):
    Path("odd.txt").write_text("What comes? | April | May\nWhat went? | June | June\n")
    assert degaml("predict desks odd.txt").stderr.startswith("Line 2")
    assert "blank" in sentence(degaml("predict desks --question ' ' --option a --option b"))
    assert "1 option" in sentence(degaml("predict desks --question 'Why?' --option a"))


def test_a_mistake_beside_answers_stops_predict(desks):
    Path("mixed.txt").write_text("What comes? | April* | May\nWhat went? | June* | July*\n")
    result = degaml("predict desks mixed.txt")
    assert "1 mistake" in sentence(result)
    assert result.stderr.startswith("Line 2")
    done("predict desks mixed.txt --skip-mistakes")


def test_nothing_steers_the_terminal(desks):
    Path("odd.txt").write_text("What\x1b[2J comes? | Apr\x1b]0;il | May\n")
    assert "\x1b" not in done("predict desks odd.txt --base").output


@pytest.mark.parametrize("many", [30, 31])
def test_many_questions_on_a_terminal_show_that_it_is_at_work(many, desks, monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(commands, "MANY_QUESTIONS", many)
    commands.main(["predict", "desks", "messages.jsonl", "--base"], standalone_mode=False)
    if many > 30:
        assert shown.getvalue() == ""
        return
    parts = shown.getvalue().split("\r\x1b[K")
    assert "asking the adapted model 30 questions" in parts
    assert "asking the base model 30 questions" in parts
    assert parts[-1] == ""


def test_predict_without_an_adapter_is_one_sentence(place):
    options = "--question Why? --option a --option b"
    assert "does not exist" in sentence(degaml(f"predict nope {options}"), 2)
    Path("empty").mkdir()
    assert "no saved adaptation" in sentence(degaml(f"predict empty {options}"))


# --- info and tasks -------------------------------------------------------------------------------


def test_info_of_an_adapter_is_its_report(desks):
    adapted = AdaptedModel.open(desks)
    shown = done("info desks").stdout
    assert adapted.explain() in shown
    assert adapted.base_model in shown
    record = json.loads(done("info desks --json").stdout)
    assert record["report"]["support"] == 20
    assert record["base_model"] == adapted.base_model
    assert record["opened_whole_by_PEFT"] is (adapted.state.steering is None)


ODD = "a\x1b]0;b\x07c\x7fd\x9be\nforged\u202eg"


def assert_shows_nothing_odd(text):
    assert all(line.isprintable() for line in text.split("\n")), text
    assert "\nforged" not in text


def test_info_of_an_adapter_shows_nothing_that_steers_a_terminal(desks):
    about = desks / "degaml.json"
    content = json.loads(about.read_text())
    del content["sha256"]
    content["base_model"] = ODD
    report = content["report"]
    report.update(words=ODD, source="x\npair  forged", warnings=[ODD])
    report["tried"][0].update(words=ODD, error=ODD, after=None)
    about.write_text(json.dumps(content))
    shown = done("info desks").stdout
    assert_shows_nothing_odd(shown)
    assert not any(line.startswith("pair") for line in shown.splitlines())
    record = done("info desks --json").stdout
    assert_shows_nothing_odd(record)
    assert json.loads(record)["base_model"] == ODD
    # nor does what is said where it cannot be read
    about.write_text(json.dumps({**content, ODD: 1}))
    assert_shows_nothing_odd(degaml("info desks").stderr)


def test_info_of_a_pair_shows_nothing_that_steers_a_terminal(place):
    write_tiny_pair(place / "odd")
    file = place / "odd" / "pair.json"
    content = json.loads(file.read_text())
    del content["sha256"]
    content["name"] = "a\x7fb\x9bc"
    content["about"] = {
        ODD: ODD,
        "inner": {ODD: [ODD, 1]},
        "fingerprint_of_the_base_model": "invented",
        "list": [ODD, "two words"],
    }
    file.write_text(json.dumps(content))
    shown = done("info odd").stdout
    assert_shows_nothing_odd(shown)
    assert "invented" not in shown
    assert_shows_nothing_odd(done("info odd --json").stdout)


def test_info_of_a_pair_names_what_it_is(place, pair):
    shown = done("info").stdout
    record = json.loads(done(f"info {shlex.quote(str(pair))} --json").stdout)
    made = tiny_pair()
    assert record["base_model"] == made.base_model
    assert record["fingerprint_of_the_base_model"] == made.base_model_fingerprint
    assert record["prompt_encoder"] == made.generator.identity.encoder
    assert record["tasks"] == ["day_after"]
    assert any(line.startswith("ttt ") and "ttl_steps 1-2" in line for line in record["strategies"])
    for text in ("degaml-kedro", "torch", made.base_model, "day_after", "ttl_steps 1-2"):
        assert text in shown
    # versions belong to the program, not to a pair
    assert "versions" not in record


def test_info_of_what_is_neither_is_one_sentence(desks):
    assert "no trained pair" in sentence(degaml("info nope"))
    (desks / "degaml.json").write_text("{")
    assert "cannot be read" in sentence(degaml("info desks"))


def test_tasks_are_listed_and_written(place):
    shown = done("tasks").stdout
    assert [line.split()[0] for line in shown.splitlines()] == [task.name for task in ready_tasks()]
    assert [task["name"] for task in json.loads(done("tasks --json").stdout)] == [
        task.name for task in ready_tasks()
    ]
    done("tasks --write number_roman roman.jsonl --count 12 --seed 1")
    written = read_file(Path("roman.jsonl"))
    drawn, _ = ready_task("number_roman").draw(12, 0, 1)
    assert [(e.prompt, e.gold) for e in written.examples] == [(e.prompt, e.gold) for e in drawn]


def test_tasks_write_over_nothing(place):
    Path("messages.jsonl").write_text("mine")
    assert "is there already" in sentence(degaml(DESKS))
    assert Path("messages.jsonl").read_text() == "mine"
    assert "cannot be written" in sentence(degaml("tasks --write tenant_desks no/such/place.jsonl"))
    assert "did you mean 'tenant_desks'" in sentence(degaml("tasks --write tenant_deks x.jsonl"))


# --- whatever happens -----------------------------------------------------------------------------


def test_an_unforeseen_error_is_a_sentence_and_debug_shows_it(place, monkeypatch):
    def broken():
        raise RuntimeError("out\nof luck")

    monkeypatch.setattr("degaml_kedro.tasks.ready.ready_tasks", broken)
    told = sentence(degaml("tasks"))
    assert "RuntimeError: out of luck" in told
    assert isinstance(degaml("--debug tasks").exception, RuntimeError)


def test_an_interruption_anywhere_ends_with_130(place, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("degaml_kedro.tasks.ready.ready_tasks", interrupted)
    result = degaml("tasks")
    assert (result.exit_code, result.stderr) == (130, "Stopped.\n")


def test_a_closed_pipe_is_silent(place):
    running = process("tasks --json", cwd=place)
    running.stdout.close()
    assert running.stderr.read() == ""
    running.wait(timeout=120)
