"""``python -m demo`` (``make demo``): start the page."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from degaml_kedro.common.errors import DegamlError
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


def _limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each limit of the settings."""
    for limit in reversed(fields(DemoSettings)):
        if "help" in limit.metadata:
            name = f"--{limit.name.replace('_', '-')}"
            kind, told = click.IntRange(min=1), limit.metadata["help"]
            command = click.option(
                name, type=kind, default=limit.default, show_default=True, help=told
            )(command)
    return command


@click.command(help="A page for adapting a language model to a few examples.")
@click.option("--host", default=DemoSettings.host, show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DemoSettings.port,
    show_default=True,
    help="0 for any.",
)
@click.option(
    "--pair",
    "pairs",
    multiple=True,
    metavar="[LABEL=]SOURCE",
    help="A trained pair to offer: a folder, an MLflow URI or a hub id; several may be given, 'shipped' is the one "
    "that ships (default: that one, and what `make run` trained).",
)
@_limit_options
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Adapt on this Ray cluster, --concurrency at once: HOST:PORT, auto or local (default: none).",
)
@click.option("--tracking-uri", help="MLflow's, for the comparison (default: mlflow.db here).")
@click.option(
    "--auth-file",
    type=click.Path(path_type=Path),
    help="user:password lines: who may use the page.",
)
@click.option("--i-know-it-is-public", is_flag=True, help="Listen on other addresses without one.")
def main(
    host: str,
    port: int,
    pairs: tuple[str, ...],
    ray: str | None,
    tracking_uri: str | None,
    auth_file: Path | None,
    i_know_it_is_public: bool,
    **limits: int,
) -> None:
    """Start the page, until Ctrl-C."""
    offered = tuple(map(labeled_pair, pairs)) or found_pairs()
    settings = DemoSettings(
        host, port, offered, tracking_uri or found_tracking_uri(), ray, **limits
    )
    try:
        users = _users(auth_file) if auth_file else None
        if not _is_loopback(host):
            click.echo(_EXPOSED, err=True)
            if users is None and not i_know_it_is_public:
                raise click.UsageError(
                    f"{host} is no loopback address and there is no --auth-file; give one, or say --i-know-it-is-public"
                )
        _serve(settings, users)
    except DegamlError as error:
        raise click.ClickException(str(error)) from error


def _serve(settings: DemoSettings, users: list[tuple[str, str]] | None) -> None:
    if settings.port:
        _check_port(settings.host, settings.port)
    try:
        from demo.app import DemoApp
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "gradio":
            raise
        raise DegamlError(
            "Gradio is not installed; run `pip install '.[demo]'` in the project's folder"
        ) from error
    print("Loading the models …", flush=True)
    app = DemoApp(settings)
    _, url, _ = app.launch(prevent_thread_lock=True, auth=users)
    print(f"Listening on {url} (Ctrl-C stops it)", flush=True)
    # a service manager's way of saying Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app.block_thread()
    except KeyboardInterrupt:
        pass
    finally:
        app.close(verbose=False)


def labeled_pair(text: str) -> tuple[str, str | None]:
    """The label and the source of ``[LABEL=]SOURCE``."""
    label, mark, source = text.partition("=")
    if not mark:
        label = source = text
    if source == "shipped":
        return SHIPPED_LABEL if not mark else label, None
    return label, source


def found_pairs() -> tuple[tuple[str, str | None], ...]:
    """The shipped pair, and what `make run` trained here."""
    shipped = (SHIPPED_LABEL, None)
    if (_RUN / "06_models" / "policy").is_dir():
        return shipped, ("Trained here by make run", str(_RUN))
    return (shipped,)


def found_tracking_uri() -> str | None:
    """MLflow's tracking URI: of the database here, or the environment's."""
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
    except OSError as error:
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
        name, _, password = line.partition(":")
        if name and password:
            users.append((name, password))
        elif line.strip():
            raise DegamlError(f"{file}, line {number}: this is not user:password; mend it")
    if not users:
        raise DegamlError(f"{file} names nobody; write user:password lines into it")
    return users


if __name__ == "__main__":
    main(prog_name="python -m demo")
