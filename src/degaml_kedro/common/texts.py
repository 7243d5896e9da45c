"""Untrusted text, for a terminal or a page."""

from __future__ import annotations

import re

# control characters steer a terminal, line separators and directional overrides forge what is shown, and half a
# surrogate pair cannot be encoded; joiners stay, which Persian words and composed emoji are written with
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text in one line: a space for each line break or tab, U+FFFD for each other character that is not shown."""
    return _UNPRINTABLE.sub(
        lambda found: " " if found[0].isspace() else "\N{REPLACEMENT CHARACTER}", text
    )
