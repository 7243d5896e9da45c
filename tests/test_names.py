"""One name has one meaning."""

from __future__ import annotations

import ast
from collections import Counter

from tests.conftest import ROOT


def test_no_two_classes_have_the_same_name():
    files = [file for folder in ("src", "demo") for file in (ROOT / folder).rglob("*.py")]
    found = Counter(
        part.name
        for file in files
        for part in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(part, ast.ClassDef)
    )
    assert found["Session"] == 1
    assert [name for name, count in found.items() if count > 1] == []
