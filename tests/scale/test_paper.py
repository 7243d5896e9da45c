"""The paper's profile to its report, against a mirror of the hub: few steps of a tiny model."""

from __future__ import annotations

import json

import pytest

from degaml_kedro.config.loader import read_parameters
from tests.conftest import ROOT
from tests.hub_mirror import mirrored, write_mirror
from tests.test_cli import kedro
from tests.test_conf import rehearsed
from tests.test_configuration import loader


@pytest.mark.slow
def test_the_paper_s_profile_reaches_its_report(project, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    project.edit("paper_0_5b/globals.yml", data=str(project.data))
    write_mirror(tmp_path / "mirror")
    command = ("run", "--env", "paper_0_5b", "--config", "conf/rehearsal.yml")
    with mirrored(tmp_path / "mirror", tmp_path / "cache"):
        for names in ("__default__", "report"):
            done = kedro(*command, "--conf-source", str(project.conf), "--pipelines", names)
            assert done.exit_code == 0, done.output
    parameters = read_parameters(loader(project, "paper_0_5b", **rehearsed()))
    results = json.loads((project.data / "08_reporting/results.json").read_text())["results"]
    found = {(row["task"], row["method"]) for row in results}
    # JAMA's file is not there
    tasks = {*parameters.meta_train, *parameters.meta_test}
    assert len(tasks) == 11
    for task in tasks:
        assert {method for name, method in found if name == task} == set(parameters.methods), task
    report = (project.data / "08_reporting/report.md").read_text()
    assert all(method in report for method in parameters.methods)
