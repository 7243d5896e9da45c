"""``python -m demo``: where it listens, and what it refuses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from demo.__main__ import _labeled, _parser, _settings, main
from demo.service import own_folder

from demo import SHIPPED_LABEL, DemoSettings


def test_loopback_by_default():
    assert DemoSettings().host == "127.0.0.1"
    assert _settings(_parser().parse_args([])).host == "127.0.0.1"


def test_other_addresses_need_a_password_or_a_word(capsys):
    assert main(["--host", "0.0.0.0"]) == 2
    told = capsys.readouterr().err
    assert "--auth-file" in told
    assert "--i-know-it-is-public" in told
    assert "TLS" in told


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_needs_neither(host, tmp_path, capsys):
    assert main(["--host", host, "--port", "0", "--pair", str(tmp_path / "nothing")]) == 1
    told = capsys.readouterr().err
    assert "No trained pair can be loaded" in told
    assert "--i-know-it-is-public" not in told


def test_a_port_that_is_taken_is_named(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert f"port {port} of 127.0.0.1 cannot be listened on" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name == "demo.app"]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["--port", "0"]) == 1
    assert "pip install '.[demo]'" in capsys.readouterr().err


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
def test_users_that_cannot_be_read(tmp_path, capsys, content, told):
    file = tmp_path / "users"
    file.write_bytes(content)
    assert main(["--auth-file", str(file)]) == 1
    assert told in capsys.readouterr().err


def test_pairs_have_labels():
    assert _labeled("shipped") == (SHIPPED_LABEL, None)
    assert _labeled("Mine=shipped") == ("Mine", None)
    assert _labeled("data/run") == ("data/run", "data/run")
    assert _labeled("Mine=models:/generator/3") == ("Mine", "models:/generator/3")


def test_what_make_run_trained_is_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    plain = _settings(_parser().parse_args([]))
    assert plain.pairs == ((SHIPPED_LABEL, None),)
    assert plain.tracking_uri is None
    (tmp_path / "data" / "06_models" / "policy").mkdir(parents=True)
    (tmp_path / "mlflow.db").touch()
    found = _settings(_parser().parse_args([]))
    assert [source for _, source in found.pairs] == [None, "data"]
    assert found.tracking_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.parametrize(
    "arguments", [["--max-examples", "0"], ["--concurrency", "-1"], ["--port", "x"]]
)
def test_limits_are_numbers_above_zero(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
