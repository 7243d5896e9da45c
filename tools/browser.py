"""The browser of the browser tests: a Chromium of this machine, or Debian's where it can be installed.

``python tools/browser.py`` prints where it is. With ``--install`` it is installed first where there is none, apt-get is
there and may be used; otherwise a sentence says what to do, and nothing fails: the tests skip then, except in CI.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

VARIABLE = "DEGAML_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = (
    "There is no Chromium here. Install one (Debian and Ubuntu: apt-get install chromium), put it on the PATH, or name "
    f"its program in {VARIABLE}."
)
_COMMANDS = (
    ("apt-get", "update"),
    ("apt-get", "install", "-y", "--no-install-recommends", "chromium"),
)
_SECONDS = 900


class BrowserError(Exception):
    """The browser that was asked for is not there."""


def find_browser(environment: Mapping[str, str] = os.environ) -> str | None:
    """The path of a Chromium: the one that ``DEGAML_BROWSER`` names, else the first on the PATH; None for none.

    Raises:
        BrowserError: ``DEGAML_BROWSER`` names no program.
    """
    path = environment.get("PATH")
    named = environment.get(VARIABLE)
    if named:
        found = shutil.which(named, path=path)
        if found is None:
            raise BrowserError(
                f"{VARIABLE} names {named!r}, which is no program; mend or unset it."
            )
        return found
    return next((found for name in NAMES if (found := shutil.which(name, path=path))), None)


def is_required(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a missing browser is a failure: in continuous integration, where nobody reads reasons for skipping."""
    return environment.get("CI", "").lower() not in ("", "0", "false")


def install_browser(environment: Mapping[str, str] = os.environ) -> str:
    """Install Debian's Chromium where that is possible.

    Returns:
        What came of it, a sentence for people.
    """
    if os.geteuid() != 0 or shutil.which("apt-get", path=environment.get("PATH")) is None:
        return MISSING
    for command in _COMMANDS:
        print(f"{' '.join(command)} …", file=sys.stderr, flush=True)
        try:
            subprocess.run(
                command,
                env={**environment, "DEBIAN_FRONTEND": "noninteractive"},
                check=True,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout).strip().splitlines() or ["nothing"]
            return f"'{' '.join(command)}' failed, and its last words were: {said[-1]} {MISSING}"
        except subprocess.TimeoutExpired:
            return f"'{' '.join(command)}' was not done after {_SECONDS} s. {MISSING}"
    return find_browser(environment) or MISSING


def main(arguments: Sequence[str] | None = None) -> int:
    """Print where the browser is, or why there is none."""
    parser = argparse.ArgumentParser(prog="python tools/browser.py", description=__doc__)
    parser.add_argument("--install", action="store_true", help="install one where there is none")
    asked = parser.parse_args(arguments)
    try:
        found = find_browser()
    except BrowserError as error:
        print(error, file=sys.stderr)
        return 1
    print(found or (install_browser() if asked.install else MISSING))
    return 0


if __name__ == "__main__":
    sys.exit(main())
