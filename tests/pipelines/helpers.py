"""Parameters that nodes are given, and runs: the smoke profile's, with other values."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from kedro.runner import SequentialRunner

from degaml_kedro.config.schema import ProjectParameters
from tests.conftest import ROOT, Project

BASE = yaml.safe_load((ROOT / "conf/base/parameters.yml").read_text())
SMOKE = yaml.safe_load((ROOT / "conf/smoke/parameters.yml").read_text())


def smoke_parameters(tasks: dict[str, Any] | None = None, **changes: Any) -> ProjectParameters:
    """The smoke profile with further tasks, and with other values of whole keys."""
    every = {**SMOKE["tasks"], **(tasks or {})}
    return ProjectParameters.model_validate({**BASE, **SMOKE, "tasks": every, **changes})


def run(
    project: Project,
    *names: str,
    runner: Any = None,
    only_missing_outputs: bool = False,
    **parameters: Any,
) -> None:
    """Run the pipelines of these names, or all of them."""
    with project.session(**parameters) as session:
        session.run(
            pipeline_names=list(names) or None,
            runner=runner or SequentialRunner(),
            only_missing_outputs=only_missing_outputs,
        )


class Killed(Exception):  # noqa: N818
    """The end of a run in the middle of it."""


def run_killed_after_saving(
    project: Project, monkeypatch: pytest.MonkeyPatch, dataset: type, *names: str, **options: Any
) -> None:
    """Run the pipelines until a dataset of this type has saved something for the first time."""
    save = dataset.save

    def killed_after_saving(self: Any, data: Any) -> None:
        save(self, data)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "save", killed_after_saving)
        with pytest.raises(Killed):
            run(project, *names, **options)
