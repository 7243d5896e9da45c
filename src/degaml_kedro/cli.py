"""The project's commands: Kedro's own, saying what went wrong in a sentence where that is all there is to say."""

from __future__ import annotations

import copy
import errno
import logging
from typing import Any

import click
from kedro.framework.cli.catalog import catalog
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.registry import registry

from degaml_kedro.common.errors import DegamlError

logger = logging.getLogger(__name__)


def _sentence(error: BaseException | None) -> str | None:
    """What the user can put right, of an error or what caused it; None where that is nothing."""
    while error is not None:
        if isinstance(error, DegamlError):
            return str(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"{error.filename or 'a file'} cannot be written ({error.strerror}); make room, or point 'data' in "
                "conf/local/globals.yml at another disk"
            )
        error = error.__cause__
    return None


def _translate_errors(command: click.Command) -> click.Command:
    """The same command, for which an error that the user can put right ends in its message alone."""
    command = copy.copy(command)
    invoke = command.invoke

    def translated(ctx: click.Context) -> Any:
        try:
            return invoke(ctx)
        except Exception as error:
            told = _sentence(error)
            if told is None:
                raise
            logger.debug("The error in full:", exc_info=error)
            raise click.ClickException(told) from error

    command.invoke = translated  # type: ignore[method-assign]
    return command


run = _translate_errors(kedro_run)


@click.group(name="kedro")
def cli() -> None:
    """Commands for working with this project."""


cli.add_command(run, "run")
cli.add_command(_translate_errors(registry), "registry")
cli.add_command(_translate_errors(catalog), "catalog")
