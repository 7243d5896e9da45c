"""The documentation's pages, taken apart: headings, links, blocks of code and the commands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PROGRAMS = ("make", "kedro", "degaml", "python", "python3", "accelerate", "torchrun", "pip", "hf")
NEEDS = ("gpu", "hub", "hours")

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)$")
_MARKER = re.compile(r"^<!-- needs: (?P<need>.+?) -->$")
_HEADING = re.compile(r"^#+ (?P<text>.+)$")
_LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])+)\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A block of code."""

    page: str
    line: int
    language: str
    text: str
    need: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands in a block of the shell, each on one line and without its comment."""
        if self.language not in ("", "sh", "bash", "console"):
            return ()
        joined = re.sub(r"\\\n\s*", "", self.text)
        lines = (re.sub(r"\s+# .*$", "", line).strip() for line in joined.splitlines())
        found = (line.removeprefix("$ ") for line in lines if line and not line.startswith("#"))
        if self.language:
            return tuple(found)
        # a block without a language may be anything: a picture, or commands
        return tuple(line for line in found if _program(line) in PROGRAMS)


def _program(command: str) -> str:
    words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
    return words[0].rsplit("/", 1)[-1] if words else ""


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """Every block of code of a page."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    opened: tuple[int, str, str, str | None] | None = None
    inside: list[str] = []
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            marker = _MARKER.match(lines[number - 2].strip()) if number > 1 else None
            need = marker["need"] if marker else None
            opened, inside = (number, fence["language"].strip(), fence["indent"], need), []
        elif opened is not None and line.strip() == "```":
            start, language, indent, need = opened
            text = "\n".join(one.removeprefix(indent) for one in inside)
            found.append(Block(_name(page), start, language, text, need))
            opened = None
        elif opened is not None:
            inside.append(line)
    assert opened is None, f"{page}: a block of code is not closed"
    return tuple(found)


@cache
def prose(page: Path) -> str:
    """A page without its blocks of code, lines kept."""
    kept, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = line.strip().startswith("```")
        kept.append("" if inside or fence else line)
        inside = inside != fence
    return "\n".join(kept)


@cache
def anchors(page: Path) -> frozenset[str]:
    """What can stand behind ``#`` in a link to the page, as code hosts make it of headings."""
    found: dict[str, int] = {}
    every: list[str] = []
    for line in prose(page).splitlines():
        heading = _HEADING.match(line)
        if heading is None:
            continue
        text = _LINK.sub(lambda link: link["text"], heading["text"])
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        every.append(f"{slug}-{count}" if count else slug)
    return frozenset(every)


def links(page: Path) -> list[tuple[str, str]]:
    """(text, target) of every link."""
    without_code = re.sub(r"`[^`\n]*`", lambda code: code[0].replace("](", "] ("), prose(page))
    return [(link["text"], link["target"]) for link in _LINK.finditer(without_code)]


def inline_commands(page: Path) -> list[str]:
    """Commands that stand in a sentence."""
    return [
        text
        for text in _CODE.findall(prose(page))
        if _program(text) in PROGRAMS[:4] and " " in text and "…" not in text
    ]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))
