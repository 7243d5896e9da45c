"""Settings that Kedro reads from the project."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from pathlib import Path

from kedro.utils import find_kedro_project

from degaml_kedro.config.loader import ProjectConfigLoader
from degaml_kedro.hooks import ExtentHook, LockHook, ParametersHook, ResultsHook
from degaml_kedro.tracking.hook import TrackingHook

# nothing is reported to anybody unless the user says so: Kedro, MLflow and the Hugging Face hub honor this
os.environ.setdefault("DO_NOT_TRACK", "true")

# Kedro's own calls, of which nobody who runs this project can do anything
warnings.filterwarnings("ignore", r"(?s).*register_new_resolver\(\) is deprecated", UserWarning)

# kedro-mlflow's hook runs as part of TrackingHook; Kedro-Viz's keeps a log of its own and warns of every run that is
# not of the whole pipeline
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-telemetry", "kedro-mlflow", "kedro_mlflow", "kedro-viz")
HOOKS = (LockHook(), ParametersHook(), TrackingHook(), ExtentHook(), ResultsHook())

if sys.platform == "linux":
    # by Python's default the workers of a process that was killed wait for work for ever, and go on with what they have
    _LIBC, _PR_SET_PDEATHSIG = ctypes.CDLL(None), 1

    def _end_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    os.register_at_fork(after_in_child=_end_with_parent)
    # a worker that was not forked
    if multiprocessing.parent_process() is not None:
        _end_with_parent()

CONFIG_LOADER_CLASS = ProjectConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
    "custom_resolvers": {
        # for URIs: unlike file paths, Kedro does not make them absolute
        "project": lambda: (find_kedro_project(Path.cwd()) or Path.cwd()).as_posix()
    },
}
