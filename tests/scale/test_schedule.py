"""The paper profile's schedule, from the times that come with the project."""

from __future__ import annotations

import pytest
from benchmarks.schedule import main
from kedro.framework.project import pipelines

from degaml_kedro.config.loader import ProjectConfigLoader


@pytest.mark.slow
def test_every_kind_of_the_paper_profile_s_nodes_has_a_time(capsys):
    try:
        assert main(["--env", "paper_0_5b"]) == 0
    finally:
        ProjectConfigLoader.current = None
        pipelines.configure("degaml_kedro.pipeline_registry")
    said = capsys.readouterr().out
    for cards in ("4 x A6000", "64 x H100"):
        assert f"{cards}, " in said
    assert said.count("list schedule") == 2
    assert "measured" not in said
