"""Fingerprints of stored things: they change with anything that changes the numbers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel


def digest(value: Any) -> str:
    """SHA-256 of a value that JSON can hold, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def stated(parameters: BaseModel) -> dict[str, Any]:
    """The keys of a parameter group that the configuration states, without those left to their defaults, as JSON."""
    return parameters.model_dump(mode="json", exclude_unset=True)
