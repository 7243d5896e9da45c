"""What happens around a run: parameters are checked before it, and results are shown after it."""

from __future__ import annotations

from pathlib import Path

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from degaml_kedro.configuration import read_parameters
from degaml_kedro.io.atomic import is_main_process


class ParametersHook:
    """Checks all parameters before anything runs, and lets the pipelines follow them."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Validate, and forget pipelines that another environment's configuration made."""
        read_parameters(context.config_loader)
        pipelines.configure(f"{__package__}.pipeline_registry")

    @hook_impl
    def on_pipeline_error(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Close what a failed node left open."""
        for name in pipeline.all_outputs():
            catalog.release(name)


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
            f"Loss curves, parameters and earlier runs: make mlflow. The pipelines as a picture: make viz."
        )
