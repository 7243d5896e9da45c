"""Texts of other people's files, for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text without line breaks and what a terminal would take for a command: spaces in their place."""
    return "".join(c if c.isprintable() else " " for c in text)
