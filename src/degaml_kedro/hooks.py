"""What happens around a run: parameters are checked before it, and results are shown after it."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog, DatasetError, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner

from degaml_kedro.common.atomic import is_main_process
from degaml_kedro.common.folders import held_folder
from degaml_kedro.config.loader import check_action_space, read_parameters
from degaml_kedro.config.schema import ProjectParameters
from degaml_kedro.pipelines.naming import PARAMETERS, STAGES, stage_of
from degaml_kedro.results.formatting import seconds

logger = logging.getLogger(__name__)


class ParametersHook:
    """Checks all parameters before anything runs, hands them to the nodes, and lets the pipelines follow them."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Validate, say what runs without, and forget pipelines that another environment's configuration made."""
        parameters = read_parameters(context.config_loader)
        check_action_space(parameters)
        for task in parameters.absent:
            entry = parameters.tasks[task]
            told = f"Without {task}: its file {getattr(entry.source, 'path', '')} is not there. {entry.description}"
            logger.warning(told.strip())
        pipelines.configure(f"{__package__}.pipeline_registry")

    @hook_impl
    def after_catalog_created(self, catalog: DataCatalog, parameters: dict[str, Any]) -> None:
        """Give nodes all parameters as one typed object.

        Kedro's own validation types one key for each input of a node: most nodes would have more than ten inputs, and
        which entries of `params:tasks` are typed would depend on the pipelines that are asked for.
        """
        typed = ProjectParameters.model_validate(parameters["parameters"])
        catalog[PARAMETERS] = MemoryDataset(typed, copy_mode="assign")

    @hook_impl
    def on_pipeline_error(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Close what a failed node left open."""
        for name in pipeline.all_outputs():
            catalog.release(name)


class LockHook:
    """Holds the data folder while a run writes it: a second run is told who has it.

    One on another filesystem (S3, …) is not held.
    """

    def __init__(self) -> None:
        """Nothing is held until a run starts."""
        self._folder: Path | None = None
        self._held = ExitStack()

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Find the folder."""
        data = str(context.config_loader["globals"].get("data", "data"))
        self._folder = None if "://" in data else Path(context.project_path) / data

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self) -> None:
        """Hold it, before anything is logged.

        Raises:
            FolderError: another run has it.
        """
        # of a run that was interrupted in this process
        self._held.close()
        # where a launcher started several processes, one holds it for all
        if self._folder is not None and is_main_process():
            command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
            self._held.enter_context(held_folder(self._folder, command))

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Let go of it."""
        self._held.close()

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """Let go of it."""
        self._held.close()


class ExtentHook:
    """Logs how many nodes of each stage are to run, and the wall time of the profile's last whole run."""

    def __init__(self) -> None:
        """No run is timed until one starts."""
        self._began: float | None = None

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Count the nodes, and start the clock where all of the profile's are to run and none has run before."""
        self._began = None
        # where a launcher started several processes, one says it
        if not is_main_process():
            return
        # the runner does the same after this hook; Kedro 1.7 has no public way to ask for it
        missing = SequentialRunner()._filter_pipeline_for_missing_outputs(pipeline, catalog)
        nodes = (missing if run_params["only_missing_outputs"] else pipeline).nodes
        stages = Counter(map(stage_of, nodes))
        counts = ", ".join(f"{stage} {stages[stage]}" for stage in STAGES if stages[stage])
        logger.info("%d of %d nodes to run: %s", len(nodes), len(pipeline.nodes), counts or "none")
        try:
            last = catalog.load("run_time")
            took = f"{last['nodes']} nodes in {seconds(last['seconds'])}"
        except (DatasetError, KeyError, TypeError) as error:
            # there was none, or its file was damaged: no reason to stop a run
            logger.debug("The last whole run's time cannot be read: %s", error)
        else:
            logger.info("The last whole run of this profile: %s", took)
        if _names(missing) == _names(pipelines["__default__"]):
            self._began = time.perf_counter()

    @hook_impl
    def after_pipeline_run(self, catalog: DataCatalog) -> None:
        """Keep a whole run's wall time beside its results."""
        if self._began is not None:
            took = {
                "nodes": len(pipelines["__default__"].nodes),
                "seconds": time.perf_counter() - self._began,
            }
            catalog.save("run_time", took)


def _names(pipeline: Pipeline) -> set[str]:
    return {node.name for node in pipeline.nodes}


class ResultsHook:
    """Shows the results when a run has made them."""

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Print the table, and where everything is."""
        # where a launcher started several processes, one shows it
        if "results_table" not in pipeline.all_outputs() or not is_main_process():
            return
        folder = Path(str(catalog["results_table"]._describe()["filepath"])).parent
        if folder.is_relative_to(Path.cwd()):
            folder = folder.relative_to(Path.cwd())
        print(
            f"\n{catalog.load('results_table')}\n"
            f"The same with likelihood, calibration and cost: {folder}/results.json and results.parquet\n"
            f"Every single answer: {folder.parent}/07_model_output\n"
            f"One page with figures and statistics: kedro run --pipelines report, with the same --env and --params\n"
            f"Loss curves, parameters and earlier runs: make mlflow. The pipelines as a picture: make viz."
        )
