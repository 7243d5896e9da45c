"""Parameters that nodes are given: the smoke profile's, with other values."""

from __future__ import annotations

from typing import Any

import yaml

from degaml_kedro.parameters import ProjectParameters
from tests.conftest import ROOT

BASE = yaml.safe_load((ROOT / "conf/base/parameters.yml").read_text())
SMOKE = yaml.safe_load((ROOT / "conf/smoke/parameters.yml").read_text())


def smoke_parameters(tasks: dict[str, Any] | None = None, **changes: Any) -> ProjectParameters:
    """The smoke profile with further tasks, and with other values of whole keys."""
    every = {**SMOKE["tasks"], **(tasks or {})}
    return ProjectParameters.model_validate({**BASE, **SMOKE, "tasks": every, **changes})
