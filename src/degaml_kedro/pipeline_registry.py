"""The project's pipelines, generated from its configuration: tasks and methods are data."""

from __future__ import annotations

import warnings

from kedro.pipeline import Pipeline
from pydantic import ValidationError

from degaml_kedro.config.loader import current_loader, read_parameters
from degaml_kedro.config.methods import METHODS
from degaml_kedro.config.schema import BASELINES, ProjectParameters
from degaml_kedro.pipelines import (
    baselines,
    checkpoints,
    evaluate,
    generator,
    policy,
    report,
    tasks,
    tokenize,
)

# functions of nodes that compute with the base model, a generator or the encoder
_ON_DEVICE = frozenset(
    {
        *("encode_prompts", "train_on_pool", "train_trajectory"),
        *("train", "train_on_examples", "read_health", "generate_adapters", "write_adapter"),
        *("roll_out_task", "train_policy", "choose_strategies", "execute_strategies"),
        *("fit_baseline", "search_settings", "adapt_baseline", "adapt_and_predict"),
        *("predict", "predict_adapted", "predict_oracle", "predict_baseline"),
    }
)


def register_pipelines() -> dict[str, Pipeline]:
    """The pipelines by name; ``__default__`` is all of them in order, but the report."""
    parameters = read_parameters(current_loader())
    with warnings.catch_warnings():
        # Kedro warns of a dot in a dataset's name where the node has another namespace. It is meant here: a node
        # of one task reads `pool.warmup_adapter`, and the last node reads every task's result.
        warnings.filterwarnings("ignore", "One or more dataset names contain '.'", UserWarning)
        make_tasks = tasks.create_pipeline(parameters)
        make_checkpoints = checkpoints.create_pipeline(parameters)
        make_tokens = tokenize.create_pipeline(parameters)
        make_generator = generator.create_pipeline(parameters)
        make_policy = policy.create_pipeline(parameters)
        make_baselines = baselines.create_pipeline(parameters)
        alone = make_baselines
        if not parameters.baseline_methods:
            # asked for by its name it runs those that are configured, though `methods` names none
            alone = baselines.create_pipeline(with_baselines(parameters))
        make_evaluation = evaluate.create_pipeline(parameters)
        make_report = report.create_pipeline(parameters)
    made = {
        "tasks": make_tasks,
        "checkpoints": make_tasks + make_checkpoints,
        "tokenize": make_tokens,
        "generator": make_generator,
        "policy": make_policy,
        "baselines": alone,
        "evaluate": make_evaluation,
        # of everything that is on disk, which may be several seeds' runs: never a part of one of them
        "report": make_report,
        "__default__": make_tasks
        + make_checkpoints
        + make_tokens
        + make_generator
        + make_policy
        + make_baselines
        + make_evaluation,
    }
    return {name: with_gpus(pipeline, parameters) for name, pipeline in made.items()}


def with_gpus(pipeline: Pipeline, parameters: ProjectParameters) -> Pipeline:
    """The pipeline, whose nodes that compute with a model say what of a GPU they take (``RayRunner``)."""
    if parameters.model.device == "cpu":
        return pipeline
    tag = f"gpu_{parameters.gpu_share:g}"
    return Pipeline(
        [node.tag(tag) if node.func.__name__ in _ON_DEVICE else node for node in pipeline.nodes]
    )


def with_baselines(parameters: ProjectParameters) -> ProjectParameters:
    """The same with every method that the key ``baselines`` sets; as it is where that makes no valid configuration."""
    entries = parameters.baselines
    added = [
        name
        for name, entry in BASELINES.items()
        if getattr(entries, entry, None) is not None
        # without a generator there is no encoder
        and (METHODS[name].asks_model or parameters.generator is not None)
    ]
    try:
        return ProjectParameters.model_validate(
            {**parameters.model_dump(), "methods": (*parameters.methods, *added)}
        )
    except ValidationError:
        return parameters
