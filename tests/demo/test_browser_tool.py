from __future__ import annotations

import subprocess

import pytest
from tools import browser
from tools.browser import MISSING, VARIABLE, BrowserError, find_browser, install_browser, main


def program(folder, name):
    """An executable file that does nothing."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_first_name_on_the_path_wins(tmp_path):
    chrome = program(tmp_path, "chrome")
    assert find_browser({"PATH": str(tmp_path)}) == chrome
    chromium = program(tmp_path, "chromium")
    assert find_browser({"PATH": str(tmp_path)}) == chromium


def test_variable_wins_over_the_path(tmp_path):
    program(tmp_path, "chromium")
    mine = program(tmp_path / "mine", "my-browser")
    assert find_browser({"PATH": str(tmp_path), VARIABLE: mine}) == mine


def test_variable_that_names_nothing_is_a_sentence(tmp_path, monkeypatch, capsys):
    named = str(tmp_path / "no-browser")
    with pytest.raises(BrowserError, match="no-browser.*mend or unset"):
        find_browser({"PATH": str(tmp_path), VARIABLE: named})
    monkeypatch.setenv(VARIABLE, named)
    assert main([]) == 1
    assert "no-browser" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "required"),
    [(None, False), ("", False), ("false", False), ("0", False), ("true", True), ("1", True)],
)
def test_only_ci_requires_it(value, required):
    assert browser.is_required({} if value is None else {"CI": value}) is required


def test_nothing_is_installed_where_that_is_not_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a command was run"))
    monkeypatch.setattr(browser.os, "geteuid", lambda: 1000)
    program(tmp_path, "apt-get")
    assert install_browser({"PATH": str(tmp_path)}) == MISSING
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0)
    assert install_browser({"PATH": str(tmp_path / "empty")}) == MISSING


def test_root_installs_debians_package(tmp_path, monkeypatch):
    ran = []

    def run(command, **_):
        ran.append(command[:2])
        if command[1] == "install":
            program(tmp_path, "chromium")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0)
    program(tmp_path, "apt-get")
    assert install_browser({"PATH": str(tmp_path)}) == str(tmp_path / "chromium")
    assert ran == [("apt-get", "update"), ("apt-get", "install")]


def test_failed_installation_fails_nothing(tmp_path, monkeypatch, capsys):
    def run(command, **_):
        raise subprocess.CalledProcessError(100, command, stderr="E: no network\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0)
    program(tmp_path, "apt-get")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    assert main(["--install"]) == 0
    assert "E: no network" in capsys.readouterr().out
