"""What happens around a run: parameters are checked before it, and results are shown after it."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from degaml_kedro.configuration import check_action_space, current_loader, read_parameters
from degaml_kedro.io.atomic import is_main_process
from degaml_kedro.pipelines.costs import StageCost, about, stage_costs, stage_of, threads_of

logger = logging.getLogger(__name__)


class ParametersHook:
    """Checks all parameters before anything runs, and lets the pipelines follow them."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Validate, and forget pipelines that another environment's configuration made."""
        parameters = read_parameters(context.config_loader)
        check_action_space(context.config_loader, parameters)
        pipelines.configure(f"{__package__}.pipeline_registry")

    @hook_impl
    def on_pipeline_error(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Close what a failed node left open."""
        for name in pipeline.all_outputs():
            catalog.release(name)


class CostsHook:
    """Says what a run will cost: a line a stage before it starts, and one when a stage begins."""

    def __init__(self) -> None:
        """Nothing is known until a run starts."""
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._waiting: dict[str, StageCost] = {}

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Count what there is to do. Whatever goes wrong here, the run goes on."""
        self._process, self._waiting = os.getpid(), {}
        # where a launcher started several processes, one says it
        if not is_main_process():
            return
        threads = threads_of(str(run_params.get("runner")))
        try:
            costs = stage_costs(pipeline, read_parameters(current_loader()), threads)
        except Exception as error:  # noqa: BLE001 - an estimate must not end a run
            logger.debug("What this run will cost is not known: %r", error)
            return
        known = [cost.seconds for cost in costs if cost.seconds is not None]
        total = f"; {about(sum(known))}" if known and len(known) == len(costs) else ""
        if run_params.get("only_missing_outputs"):
            total += ", less what is there already"
        logger.info("This run: %d nodes%s", len(pipeline.nodes), total)
        for cost in costs:
            logger.info("%s, %d nodes: %s", cost.stage, cost.nodes, cost.work)
        self._waiting = {cost.stage: cost for cost in costs}

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Say once what a stage will do, when its first node begins."""
        # a worker process of a parallel runner may have inherited the hook
        if os.getpid() != self._process:
            return
        with self._lock:
            cost = self._waiting.pop(stage_of(node), None)
        if cost is not None:
            logger.info("stage %s: %s", cost.stage, cost.work)


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
