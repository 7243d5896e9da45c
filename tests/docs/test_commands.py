"""Every command and every piece of Python in the documentation is executed, or marked as needing what is not here."""

from __future__ import annotations

import ast
import importlib
import io
import logging
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from kedro.framework.cli.cli import KedroCLI
from kedro.framework.project import pipelines

from degaml_kedro import cli
from degaml_kedro.commands import main as degaml
from degaml_kedro.config.loader import ProjectConfigLoader
from degaml_kedro.strategies.registry import _FAMILIES
from tests.conftest import ROOT
from tests.docs.pages import NEEDS, PAGES, Block, blocks, inline_commands, prose
from tests.docs.table import (
    COMPILE_PYTHON,
    ELSEWHERE,
    INSTALLING,
    INSTEAD,
    LITERALLY,
    RECIPES,
    RUN_PYTHON,
    SMOKE,
)

pytestmark = pytest.mark.xdist_group("runs")

EVERY = [block for page in PAGES for block in blocks(page)]
DOCUMENTED = [
    (block, command)
    for block in EVERY
    for command in block.commands
    if block.need not in ("gpu", "hub")
]
PYTHON = [block for block in EVERY if block.language == "python" and block.need is None]


def executed() -> list[str]:
    """Everything that is executed, each once, in an order that works."""
    order = [SMOKE, "kedro run --env smoke --pipelines report"]
    order += [
        "degaml tasks --write tenant_desks messages.jsonl",
        *INSTEAD[ADAPT],
        *INSTEAD[ADAPT_PETS],
    ]
    order += [*LITERALLY, *(one for several in INSTEAD.values() for one in several)]
    return list(dict.fromkeys(order))


ADAPT = "degaml adapt messages.jsonl --held-out 10 --out desks"
ADAPT_PETS = "degaml adapt pets.csv --held-out 4 --out pets"


# --- the table ------------------------------------------------------------------------------------


def test_every_command_is_executed_or_marked():
    known = {*LITERALLY, *INSTEAD, *INSTALLING, *ELSEWHERE}
    unknown = [f"{block.place}: {command}" for block, command in DOCUMENTED if command not in known]
    assert not unknown, "put them into tests/docs/table.py, or mark the block: <!-- needs: gpu -->"


def test_the_table_has_no_commands_that_no_page_has():
    written = {command for _, command in DOCUMENTED}
    assert {*LITERALLY, *INSTEAD, *INSTALLING, *ELSEWHERE} <= written


def test_markers_are_of_the_known_kinds():
    assert {block.need for block in EVERY} <= {None, *NEEDS}
    for block in EVERY:
        # hours only where a cheaper way of the same is gone
        if block.need == "hours":
            assert set(block.commands) <= set(INSTEAD), block.place


def test_a_new_command_would_be_noticed():
    block = Block("docs/new.md", 1, "sh", "$ kedro run --env nowhere  # never seen\n", None)
    assert block.commands == ("kedro run --env nowhere",)
    assert "kedro run --env nowhere" not in {*LITERALLY, *INSTEAD, *ELSEWHERE}


# tests that a page names for what it claims
NAMED = {name for page in PAGES for name in re.findall(r"`(tests/[\w/]+\.py::\w+)`", prose(page))}


@pytest.mark.parametrize("test", sorted({*ELSEWHERE.values(), *COMPILE_PYTHON.values(), *NAMED}))
def test_tests_that_are_named_exist(test):
    path, _, name = test.partition("::")
    if not name:
        assert list((ROOT / path).glob("test_*.py"))
        return
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_line_of_the_security_page_has_its_test():
    rows = [line for line in prose(ROOT / "docs/security.md").splitlines() if line.startswith("|")]
    claims = [row for row in rows if not re.match(r"\|( what |---)", row)]
    assert len(claims) > 30
    assert [row for row in claims if "`tests/" not in row] == []


def targets() -> dict[str, str]:
    """The Makefile's targets with their recipes."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Makefile").read_text(encoding="utf-8"))
    text = text.replace("$(BIN)/", "").replace("$(VENV)", ".venv")
    found: dict[str, str] = {}
    for block in re.split(r"\n(?=[^\s#])", text):
        head, _, recipe = block.partition("\n")
        if match := re.match(r"(\$\(\w+\)|[a-z][a-z-]*):(?!=)", head):
            found[match[1]] = recipe
    return found


def test_make_targets_still_do_what_is_executed_in_their_place():
    recipes = targets()
    for command, part in RECIPES.items():
        assert part in recipes[command.removeprefix("make ")], command


def test_installing_by_hand_is_what_make_does():
    recipe = targets()["$(INSTALLED)"].replace("--quiet ", "")
    for command in INSTALLING:
        if "pip install" in command:
            assert command.removeprefix(".venv/bin/") in recipe


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_exist(page):
    for command in inline_commands(page):
        program, *words = shlex.split(command)
        if program == "make":
            assert words[0] in targets(), command
        elif program == "kedro" and words[0] == "run":
            check_options(cli.run, words[1:], command)
            for name, value in pairwise(words):
                if name == "--env":
                    assert (ROOT / "conf" / value).is_dir(), command
        elif program == "degaml":
            assert words[0].startswith("-") or words[0] in degaml.commands, command
            if words[0] in degaml.commands:
                check_options(degaml.commands[words[0]], words[1:], command)
        elif words[:1] == ["-m"]:
            assert find_spec(words[1]), command


def check_options(found, words, command):
    known = {name for parameter in found.params for name in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{command}: {word}"


# --- execution ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, reference) -> Iterator[Path]:
    """A copy of the project with what the pages tell to write, and the most of a run's data."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("conf", "demo", "pyproject.toml", ".telemetry"):
        source = ROOT / name
        shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy)
    # Kedro wants the folder; what is imported is what is tested
    (copy / "src").mkdir()
    (copy / "data/01_raw").mkdir(parents=True)
    shutil.copytree(reference.data, copy / "data/smoke")
    for missing in ("06_models/mse.generator", "08_reporting"):
        shutil.rmtree(copy / "data/smoke" / missing)
    write_the_pages_files(copy)
    before = Path.cwd()
    path = list(sys.path)
    os.chdir(copy)
    yield copy
    os.chdir(before)
    sys.path[:] = path
    _FAMILIES.pop("shrink", None)
    ProjectConfigLoader.current = None
    pipelines.configure("degaml_kedro.pipeline_registry")


def write_the_pages_files(copy: Path) -> None:
    task = {block.language: block for block in reversed(blocks(ROOT / "docs/your-own-task.md"))}
    (copy / "conf/pets").mkdir()
    (copy / "conf/pets/globals.yml").write_text("data: data/pets\n")
    (copy / "conf/pets/parameters_tasks.yml").write_text(task["yaml"].text)
    for place in ("pets.csv", "data/01_raw/pets.csv"):
        (copy / place).write_text(task["text"].text)
    for block in EVERY:
        named = re.match(r"# ((?:conf|src)/\S+|pyproject\.toml)\n", block.text)
        if named is None:
            continue
        family = block.page == "docs/your-own-strategy.md"
        file = copy / ("degaml-shrink" if family else "") / named[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text + "\n")


def execute(command: str, copy: Path) -> str:
    """Execute a command as a person would in the copy; where it can be had, without starting another Python."""
    program, *arguments = shlex.split(command)
    group = {"degaml": degaml}.get(program)
    if program == "kedro":
        group = KedroCLI(copy)
    if arguments[:1] == ["-m"] and arguments[1] != "pip":
        return run_module(*arguments[1:])
    if group is None:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=copy,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
    logging.disable(logging.WARNING)  # the log shares its stream with the output
    try:
        result = CliRunner().invoke(group, arguments, prog_name=program)
    finally:
        logging.disable(logging.NOTSET)
    assert result.exit_code == 0, (command, result.output, result.exception)
    return result.output


def run_module(name: str, *arguments: str) -> str:
    """What ``python -m`` does, here; what it prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", [name, *arguments])
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                raise
    return printed.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("command", executed())
def test_it_runs(command, checkout):
    said = execute(command, checkout)
    if not command.endswith("--help"):
        return
    # in place of a server: it has to know what the pages give the server
    for documented, several in INSTEAD.items():
        if command in several:
            for word in shlex.split(documented):
                assert not word.startswith("--") or word in said, documented


@pytest.mark.slow
def test_the_first_run_explains_every_column(checkout):
    text = (ROOT / "docs/first-run.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", text))
    data = checkout / "data/smoke"
    results = pd.read_parquet(data / "08_reporting/results.parquet")
    answers = pd.read_parquet(data / "07_model_output/day_before.generalization_only.parquet")
    assert set(results.columns) <= named
    assert set(answers.columns) <= named
    policy = (ROOT / "docs/policy.md").read_text(encoding="utf-8")
    strategies = pd.read_parquet(data / "08_reporting/strategies.parquet")
    assert set(strategies.columns) <= set(re.findall(r"`(\w+)`", policy))


# --- Python ---------------------------------------------------------------------------------------


def test_every_page_with_python_is_known():
    assert {block.page for block in PYTHON} <= {*RUN_PYTHON, *COMPILE_PYTHON}


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_what_it_imports_is_there(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            for name in node.names:
                assert find_spec(name.name), block.place
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{block.place}: {node.module}.{name.name}"


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PYTHON)
def test_python_runs(page, checkout):
    sys.path.insert(0, str(checkout / "site"))  # where the family of one's own was installed
    importlib.invalidate_caches()
    namespace: dict[str, object] = {"__name__": "documentation"}
    for block in PYTHON:
        # what begins with a file's name was written to that file
        if block.page != page or block.text.startswith("# src/"):
            continue
        text = block.text
        for old, new in RUN_PYTHON[page].items():
            text = text.replace(old, new)
        exec(compile(text, block.place, "exec"), namespace)
    if page == "docs/your-own-strategy.md":
        assert namespace["refined"] is not namespace["start"]
