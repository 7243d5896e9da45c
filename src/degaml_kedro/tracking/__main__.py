"""``python -m degaml_kedro.tracking FOLDER`` logs what is on disk: for runs that MLflow's server missed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from kedro.framework.startup import bootstrap_project
from kedro.io import DatasetError
from kedro.utils import find_kedro_project

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.config.loader import current_loader
from degaml_kedro.io.runs import RunsDataset, fetched_runs
from degaml_kedro.results.statistics import find
from degaml_kedro.tracking.comparison import EXPERIMENT, log_comparison
from degaml_kedro.tracking.registry import is_checkpoint, register_models
from degaml_kedro.tracking.server import Place, masked, place_of


def main(arguments: Iterable[str] | None = None) -> int:
    """Log a folder's comparison and register its models; 1 for what went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m degaml_kedro.tracking",
        description="Put finished runs and their models into MLflow; what is there already stays as it is.",
    )
    parser.add_argument(
        "folder",
        help="a run's data folder or one with a folder a seed, also as URLs; or a trained pair's or an adaptation's",
    )
    parser.add_argument("--uri", help="MLflow's tracking URI; otherwise that of conf/*/mlflow.yml")
    parser.add_argument("--experiment", help="its name; otherwise that of conf/*/mlflow.yml")
    asked = parser.parse_args(None if arguments is None else list(arguments))
    try:
        place = _place(asked.uri, asked.experiment)
        folder = fetched_runs(asked.folder)
        if not is_checkpoint(folder):
            runs = RunsDataset(filepath=str(folder)).load()
            page = folder / "08_reporting" / "report.html"
            run = log_comparison(runs, find(runs).comparison, place, page)
            print(f"The comparison is run {run} of '{place.experiment}' in {masked(place.uri)}")
        for model in register_models(folder, place):
            print(f"Registered: {model}")
    except (DegamlError, DatasetError, OSError) as error:
        # Kedro's own error has its dataset's name in front of ours
        inner = error.__cause__ if isinstance(error, DatasetError) else None
        reason = inner if isinstance(inner, DegamlError) else error
        print(f"Error: {reason}", file=sys.stderr)
        return 1
    return 0


def _place(uri: str | None, experiment: str | None) -> Place:
    """What was given, filled up from the project's configuration."""
    project = find_kedro_project(Path.cwd())
    if project is None:
        if uri is None:
            raise DegamlError(
                f"{Path.cwd()} is in no Kedro project, so there is no mlflow.yml; name MLflow's tracking URI with --uri"
            )
        return Place(uri, experiment or EXPERIMENT)
    bootstrap_project(project)
    loader = current_loader()
    server = loader["mlflow"].get("server") or {}
    if server.get("credentials"):
        os.environ.update(loader["credentials"].get(server["credentials"]) or {})
    place = place_of(loader, project)
    return Place(uri or place.uri, experiment or place.experiment, place.artifact_location)


if __name__ == "__main__":
    sys.exit(main())
