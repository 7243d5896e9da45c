"""The pages hold together: links, anchors, the code and the files they name, formulas. Nothing here needs a network."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from docutils.utils.math.latex2mathml import tex2mathml

from tests.conftest import ROOT
from tests.docs.pages import PAGES, anchors, blocks, links, prose

IDS = [str(page.relative_to(ROOT)) for page in PAGES]
every_page = pytest.mark.parametrize("page", PAGES, ids=IDS)


def problem(page: Path, target: str) -> str | None:
    """What is wrong with a link; None for nothing, and for links that leave the project."""
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return f"there is no {path}"
    if ROOT not in file.parents:
        return f"{path} is outside of the project"
    if anchor and anchor not in anchors(file):
        return f"{file.name} has no heading #{anchor}"
    return None


OTHERS = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "conf/README.md")


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in OTHERS)], ids=[*IDS, *OTHERS])
def test_links_and_anchors_lead_somewhere(page):
    wrong = {target: problem(page, target) for _, target in links(page)}
    assert not {target: what for target, what in wrong.items() if what}


def test_a_wrong_link_is_found():
    page = ROOT / "docs/index.md"
    assert problem(page, "nowhere.md") == "there is no nowhere.md"
    assert problem(page, "method.md#nowhere") == "method.md has no heading #nowhere"
    assert problem(page, "../../etc") is not None
    assert problem(page, "method.md#words") is None


def test_the_index_leads_to_every_page():
    index = ROOT / "docs/index.md"
    listed = {
        line
        for block in blocks(index)
        if block.language == "{toctree}"
        for line in block.text.splitlines()
        if line and not line.startswith(":")
    }
    names = {page.stem for page in PAGES if page.parent.name == "docs"} - {"index"}
    assert listed == names
    linked = {target.partition(".md")[0] for _, target in links(index)}
    assert names <= linked


def symbols(file: Path) -> set[str]:
    """What a module defines, or takes in for others."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found.update(
                f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)
            )
        if isinstance(node, ast.ImportFrom):
            found.update(name.asname or name.name for name in node.names)
    return found


@every_page
def test_linked_code_exists(page):
    for text, target in links(page):
        if "src/degaml_kedro/" not in target:
            continue
        name = text.strip("`")
        module = target.partition("src/degaml_kedro/")[2].removesuffix(".py")
        module = module.removesuffix("/__init__").replace("/", ".")
        assert name.startswith(f"{module}."), f"{name} is not in {target}"
        symbol = name.removeprefix(f"{module}.")
        assert symbol in symbols((page.parent / target).resolve()), f"{target} has no {symbol}"


def test_every_equation_has_its_section_and_its_code():
    text = (ROOT / "docs/equations.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    numbered = [
        (int(number), section)
        for section in sections
        if section.startswith("Equation")
        for number in re.findall(r"\d+", section.splitlines()[0])
        if "../src/" in section and "$$" in section
    ]
    assert {number for number, _ in numbered} >= set(range(1, 11)) - {1}
    assert sorted(number for number, _ in numbered)[0] == 1


@every_page
def test_formulas_become_mathml(page):
    for block, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", prose(page), re.DOTALL):
        made = tex2mathml((block or inline).strip(), as_block=bool(block))
        assert "<math" in made


def test_the_first_run_names_every_file_of_the_catalog():
    catalog = yaml.safe_load((ROOT / "conf/base/catalog.yml").read_text(encoding="utf-8"))
    text = (ROOT / "docs/first-run.md").read_text(encoding="utf-8")
    # `${globals:runs,${globals:data}}` is a folder alone: the dataset reads what other entries name
    named = {
        re.sub(r"^\$\{globals:[^/]*\}(/|$)", "", entry["filepath"])
        for name, entry in catalog.items()
        # what several entries share
        if not name.startswith("_")
    }
    assert "08_reporting/results.md" in named
    missing = {path for path in named if path and f"`{path}`" not in text}
    assert not missing


@every_page
def test_no_machine_is_in_the_pages(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(tmp|work|root|home)/", text)


# what other programs say
NOT_OURS = {
    "No matching distribution found for torch==…",
    "No space left on device",
    "ModuleNotFoundError: degaml_kedro",
    "torch.cuda.is_available()",
    "Killed",
    "CUDA out of memory",
    "address already in use",
    "Cannot find empty port",
    "database is locked",
    "out-of-date database schema",
    "HF_HUB_OFFLINE=1",
    "--env",
    "conf/local",
    "git pull",
    "does not exist",
    "~",
}


def told() -> str:
    """Every sentence of the code, with … for what it fills in, and the Makefile's."""
    found = [(ROOT / "Makefile").read_text(encoding="utf-8").replace("$(PYTHON)", "python3")]
    for file in sorted((ROOT / "src/degaml_kedro").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values
                )
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_of_the_troubleshooting_page_are_the_program_s():
    sentences = told()
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)
    messages = {code for cell in cells for code in re.findall(r"`([^`]+)`", cell)} - NOT_OURS
    assert len(messages) > 20
    unknown = {
        message
        for message in messages
        for part in message.split("…")
        if len(part.strip(" '(),")) > 3 and part.strip() not in sentences
    }
    assert not unknown
