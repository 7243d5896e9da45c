"""The tokenize pipeline: two nodes a trajectory, one a fold of trajectories, one a task's prompts."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from degaml_kedro.config.schema import ProjectParameters
from degaml_kedro.pipelines.naming import PARAMETERS, nodes_in
from degaml_kedro.pipelines.task_folds import generator_folds
from degaml_kedro.pipelines.tokenize.nodes import (
    encode_prompts,
    measure_tokens,
    take_scales,
    tokenize_trajectory,
)


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Tokens and scales of every fold of trajectories, and every task's prompt states."""
    if not parameters.needs_generator:
        return Pipeline([])
    nodes = []
    made: set[str] = set()
    for fold in generator_folds(parameters):
        for task in fold.with_trajectory:
            run, make = fold.trajectory_of(task), nodes_in(f"tokenize.{task}", fold.suffix)
            # trajectories that start from the shared initialization serve every fold
            if run not in made:
                made.add(run)
                inputs, tokens = [PARAMETERS, f"{run}.trajectory"], f"{run}.tokens"
                nodes.append(make(tokenize_trajectory, inputs, tokens, task=task))
                nodes.append(make(measure_tokens, tokens, f"{run}.token_statistics", task=task))
        scaled = [fold.trajectory_of(task) for task in fold.tasks]
        parts = [f"{run}.{part}" for part in ("tokens", "token_statistics") for run in scaled]
        make = nodes_in("tokenize", f"_{fold.label}")
        nodes.append(make(take_scales, [PARAMETERS, *parts], fold.name("token_scales")))
    for task in (*parameters.meta_train, *parameters.further_tasks, *parameters.meta_test):
        make = nodes_in(f"tokenize.{task}")
        inputs = [PARAMETERS, f"{task}.splits"]
        nodes.append(make(encode_prompts, inputs, f"{task}.prompt_embeddings", task=task))
    return Pipeline(nodes)
