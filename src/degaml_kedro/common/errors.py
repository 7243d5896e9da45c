"""The root of the errors this project raises on purpose."""

from __future__ import annotations


class DegamlError(ValueError):
    """Something the user can put right: the message names the thing, the place and the fix."""
