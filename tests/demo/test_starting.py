"""``python -m demo``: where it listens, and what it refuses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from demo.__main__ import found_pairs, found_tracking_uri, labeled_pair, main
from demo.service import own_folder

from demo import SHIPPED_LABEL, DemoSettings


def start(*arguments):
    """The exit status, and what was printed."""
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_other_addresses_need_a_password_or_a_word():
    assert DemoSettings().host == "127.0.0.1"
    status, told = start("--host", "0.0.0.0")
    assert status == 2
    assert "--auth-file" in told
    assert "--i-know-it-is-public" in told
    assert "TLS" in told


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_needs_neither(host, tmp_path):
    status, told = start("--host", host, "--port", "0", "--pair", str(tmp_path / "nothing"))
    assert status == 1
    assert "No trained pair can be loaded" in told
    assert "--i-know-it-is-public" not in told


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, told = start("--port", str(port))
    assert status == 1
    assert f"port {port} of 127.0.0.1 cannot be listened on" in told


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name == "demo.app"]:
        monkeypatch.delitem(sys.modules, name)
    status, told = start("--port", "0")
    assert status == 1
    assert "pip install '.[demo]'" in told


def test_what_killed_pages_left_is_deleted(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = f"degaml-demo-{socket.gethostname()}"
    killed, *others = (
        tmp_path / name
        for name in (
            f"{here}-{ended.pid}-a",
            f"{here}-{os.getpid()}-a",
            f"degaml-demo-another-{ended.pid}-a",
            "theirs",
        )
    )
    for folder in (killed, *others):
        (folder / "downloads").mkdir(parents=True)
    own = Path(own_folder())
    assert set(tmp_path.iterdir()) == {*others, own}
    assert own.name.startswith(f"{here}-{os.getpid()}-")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "names nobody"),
        (b"someone", "line 1: this is not user:password"),
        (b"a:b\n\n:c", "line 3"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_users_that_cannot_be_read(tmp_path, content, told):
    file = tmp_path / "users"
    file.write_bytes(content)
    status, said = start("--auth-file", str(file))
    assert status == 1
    assert told in said


def test_pairs_have_labels():
    assert labeled_pair("shipped") == (SHIPPED_LABEL, None)
    assert labeled_pair("Mine=shipped") == ("Mine", None)
    assert labeled_pair("data/run") == ("data/run", "data/run")
    assert labeled_pair("Mine=models:/generator/3") == ("Mine", "models:/generator/3")


def test_what_make_run_trained_is_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert found_pairs() == ((SHIPPED_LABEL, None),)
    assert found_tracking_uri() is None
    (tmp_path / "data" / "06_models" / "policy").mkdir(parents=True)
    (tmp_path / "mlflow.db").touch()
    assert [source for _, source in found_pairs()] == [None, "data"]
    assert found_tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.parametrize(
    "arguments", [["--max-examples", "0"], ["--concurrency", "-1"], ["--port", "x"]]
)
def test_limits_are_numbers_above_zero(arguments):
    status, told = start(*arguments)
    assert status == 2
    assert arguments[0] in told
