"""``python -m demo`` (``make demo``): start the page."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from degaml_kedro.errors import DegamlError
from demo import SHIPPED_LABEL, DemoSettings

# threads that wait for each other give way to whoever else computes; read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_RUN = Path("data")
_EXPOSED = """
This page is about to be reachable from other machines. Before that:
  1. Ask for a password: --auth-file FILE, with one user:password a line, readable by you alone.
  2. Put a reverse proxy with TLS in front of it (nginx, Caddy), and let it listen on loopback: that is the better way.
     The proxy should limit the size of requests (2 MB), their number, and connections per address.
  3. Keep the limits low: --max-examples, --max-seconds, --queue-size. An adaptation takes a core for up to a minute.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the page; 2 for a command that cannot be carried out, 1 for what went wrong later."""
    asked = _parser().parse_args(arguments)
    settings = _settings(asked)
    try:
        auth = _users(asked.auth_file) if asked.auth_file else None
        if not _is_loopback(settings.host):
            print(_EXPOSED, file=sys.stderr)
            if auth is None and not asked.i_know_it_is_public:
                print(
                    f"Error: {settings.host} is no loopback address and there is no --auth-file; give one, or say "
                    "--i-know-it-is-public",
                    file=sys.stderr,
                )
                return 2
        if settings.port:
            _check_port(settings.host, settings.port)
        try:
            from demo.app import build_app
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "gradio":
                raise
            raise DegamlError(
                "Gradio is not installed; run `pip install '.[demo]'` in the project's folder"
            ) from error
        print("Loading the models …", flush=True)
        app = build_app(settings)
    except DegamlError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    _, url, _ = app.launch(prevent_thread_lock=True, auth=auth)
    print(f"Listening on {url} (Ctrl-C stops it)", flush=True)
    # a service manager's way of saying Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app.block_thread()
    except KeyboardInterrupt:
        pass
    finally:
        app.close(verbose=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="A page for adapting a language model to a few examples."
    )
    plain = DemoSettings()
    parser.add_argument("--host", default=plain.host, help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=plain.port, help="%(default)s; 0 for any")
    parser.add_argument(
        "--pair",
        action="append",
        metavar="[LABEL=]SOURCE",
        help="a trained pair to offer: a folder, an MLflow URI or a hub id; several may be given, 'shipped' is the one "
        "that ships (default: that one, and what `make run` trained)",
    )
    for name, limit in _limits().items():
        option = f"--{name.replace('_', '-')}"
        told = f"{limit.metadata['help']} (%(default)s)"
        parser.add_argument(option, type=_positive, default=limit.default, help=told)
    parser.add_argument(
        "--tracking-uri", help="MLflow's, for the comparison (default: mlflow.db here)"
    )
    parser.add_argument("--auth-file", type=Path, help="user:password lines: who may use the page")
    parser.add_argument(
        "--i-know-it-is-public", action="store_true", help="listen on other addresses without one"
    )
    return parser


def _limits() -> dict[str, Any]:
    return {one.name: one for one in fields(DemoSettings) if "help" in one.metadata}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("give a number above 0")
    return value


def _settings(asked: argparse.Namespace) -> DemoSettings:
    return DemoSettings(
        host=asked.host,
        port=asked.port,
        pairs=tuple(map(_labeled, asked.pair)) if asked.pair else _found_pairs(),
        tracking_uri=asked.tracking_uri or _found_tracking(),
        **{name: getattr(asked, name) for name in _limits()},
    )


def _labeled(text: str) -> tuple[str, str | None]:
    label, mark, source = text.partition("=")
    if not mark:
        label = source = text
    if source == "shipped":
        return SHIPPED_LABEL if not mark else label, None
    return label, source


def _found_pairs() -> tuple[tuple[str, str | None], ...]:
    """The shipped pair, and what `make run` trained here."""
    shipped = (SHIPPED_LABEL, None)
    if (_RUN / "06_models" / "policy").is_dir():
        return shipped, ("Trained here by make run", str(_RUN))
    return (shipped,)


def _found_tracking() -> str | None:
    database = Path("mlflow.db")
    if database.is_file():
        return f"sqlite:///{database.resolve()}"
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_port(host: str, port: int) -> None:
    """Refuse a port that is taken before the models are loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        raise DegamlError(
            f"port {port} of {host} cannot be listened on ({error}); name another one with --port, or 0 for any"
        ) from error


def _users(file: Path) -> list[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DegamlError(f"{file} cannot be read: {error}") from error
    users = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, mark, password = line.partition(":")
        if not (name and mark and password):
            raise DegamlError(f"{file}, line {number}: this is not user:password; mend it")
        users.append((name, password))
    if not users:
        raise DegamlError(f"{file} names nobody; write user:password lines into it")
    return users


if __name__ == "__main__":
    sys.exit(main())
