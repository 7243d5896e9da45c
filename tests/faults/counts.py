"""What was tried by all calls of ``make faults``, in ``tests/artifacts/faults.json``."""

from __future__ import annotations

import json
from typing import Any

from degaml_kedro.common.atomic import replace_file
from tests.conftest import ROOT

RESULTS = ROOT / "tests/artifacts/faults.json"


def read_counts() -> dict[str, Any]:
    """The counts by name; nothing where there are none yet."""
    return dict(json.loads(RESULTS.read_text())) if RESULTS.is_file() else {}


def write_counts(**counts: Any) -> None:
    """Write counts down in the place of those of the same name; the others stay."""
    text = json.dumps(read_counts() | counts, indent=1) + "\n"
    RESULTS.parent.mkdir(exist_ok=True)
    replace_file(RESULTS, lambda file: file.write(text.encode()))
