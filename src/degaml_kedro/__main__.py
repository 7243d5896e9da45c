"""``python -m degaml_kedro`` runs the pipelines of the project in the current folder, like ``kedro run``."""

from __future__ import annotations

from pathlib import Path

from kedro.framework.project import configure_project


def main() -> None:
    """Configure the project, then hand over to its ``run`` command."""
    configure_project(Path(__file__).parent.name)

    # only now: the command reads the project's settings when it is imported
    from degaml_kedro.cli import run

    run()


if __name__ == "__main__":
    main()
