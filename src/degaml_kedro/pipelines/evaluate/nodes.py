"""Nodes of the evaluate pipeline."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import pandas as pd

from degaml_kedro import __version__
from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.generator.generator import Generator
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.llm.base_model import load_base_model
from degaml_kedro.llm.scoring import Prediction, score_examples
from degaml_kedro.parameters import (
    BaseModelParameters,
    GeneratorParameters,
    PromptParameters,
    TaskParameters,
    task_scoring,
)
from degaml_kedro.progress import progress_bar
from degaml_kedro.results.measures import PREDICTION_COLUMNS, measure_draws
from degaml_kedro.results.table import results_table
from degaml_kedro.seeds import derive_seed
from degaml_kedro.tasks.splits import frame_to_splits

logger = logging.getLogger(__name__)

_PACKAGES = ("kedro", "torch", "transformers", "peft")


def predict(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    splits: pd.DataFrame,
    *adapters: Adapter,
    task: str,
    method: str,
) -> pd.DataFrame:
    """Answers to a task's test split.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        task_parameters: the task's entry in the configuration.
        splits: the task's splits; only ``test`` is read.
        *adapters: the method's weights: none for the base model itself, several for a method that draws them.
        task: the task's name.
        method: the method's name.

    Returns:
        One row per example and adapter with the columns of ``PREDICTION_COLUMNS``, and ``draw`` where there are
        several adapters; ``seconds`` is the example's share of the wall time, by its tokens.
    """
    how = task_scoring(scoring, task_parameters)
    base = load_base_model(BaseModelParameters.model_validate(model))
    examples = frame_to_splits(splits).test
    frames = []
    for draw, adapter in enumerate(adapters or (None,)):
        began = time.perf_counter()
        with progress_bar(f"{task}, {method}", "example") as progress:
            predictions = score_examples(
                base, examples, PromptParameters.model_validate(prompt), how, adapter, progress
            )
        seconds = time.perf_counter() - began
        logger.info("%s, %s: %d examples scored in %.1f s", task, method, len(examples), seconds)
        frame = _frame(predictions, seconds)
        if len(adapters) > 1:
            frame.insert(0, "draw", draw)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _frame(predictions: Sequence[Prediction], seconds: float) -> pd.DataFrame:
    tokens = sum(prediction.tokens for prediction in predictions) or 1
    rows = [
        (
            index,
            prediction.gold,
            prediction.predicted,
            list(prediction.option_scores),
            prediction.text,
            seconds * prediction.tokens / tokens,
            prediction.tokens,
        )
        for index, prediction in enumerate(predictions)
    ]
    frame = pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS))
    return frame.astype({"predicted": "Int64"})


def generate_adapters(
    model: Mapping[str, Any],
    generator: Mapping[str, Any],
    seed: int,
    trained: Generator,
    embeddings: PromptEmbeddings,
    splits: pd.DataFrame,
    *,
    task: str,
    method: str,
    prompts_of: str,
) -> list[Adapter]:
    """Adapters for a task from its support prompts alone: no answer is read.

    Args:
        model: which base model, to refuse a generator of another one.
        generator: how many adapters are drawn.
        seed: the run's.
        trained: the generator.
        embeddings: prompt states; the support prompts are the last ones.
        splits: the splits of the same task, for the number of support prompts.
        task: the task's name.
        method: the method's name.
        prompts_of: whose prompts these are: the task's own, or another's for the control.

    Returns:
        One adapter a draw.

    Raises:
        GeneratorError: the generator belongs to another base model or encoder.
    """
    base = load_base_model(BaseModelParameters.model_validate(model))
    trained.check_base_model(base.name, base.fingerprint)
    support = int((splits["split"] == "support").sum())
    rows = range(len(embeddings) - support, len(embeddings))
    draws = GeneratorParameters.model_validate(generator).draws
    began = time.perf_counter()
    own = derive_seed(seed, task, method)
    adapters = [trained.sample(embeddings, own, draw, rows) for draw in range(draws)]
    logger.info(
        "%s, %s: %d adapter(s) from %d prompts of %s in %.2f s",
        task,
        method,
        draws,
        support,
        prompts_of,
        time.perf_counter() - began,
    )
    return adapters


def measure_predictions(
    task_parameters: Mapping[str, Any],
    predictions: pd.DataFrame,
    *,
    task: str,
    method: str,
    pool: str,
) -> dict[str, Any]:
    """What the predictions amount to, with what they are of.

    Args:
        task_parameters: the task's entry in the configuration.
        predictions: what :func:`predict` returned.
        task: the task's name.
        method: the method's name.
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
    """
    measures = measure_draws(predictions, f"{task}.{method}.predictions")
    group = TaskParameters.model_validate(task_parameters).group
    return {"task": task, "group": group, "pool": pool, "method": method, **measures}


def collect_results(
    profile: str,
    model: Mapping[str, Any],
    seed: int,
    methods: Sequence[str],
    *results: Mapping[str, Any],
) -> tuple[pd.DataFrame, dict[str, Any], str]:
    """All results as a table for programs, as JSON with what they were made with, and as a table to read.

    Args:
        profile: the configuration's name.
        model: which base model.
        seed: the run's.
        methods: the readable table's columns.
        *results: what :func:`measure_predictions` returned.
    """
    frame = pd.DataFrame([dict(result) for result in results])
    record = {
        "profile": profile,
        "model": dict(model["source"]),
        "seed": seed,
        "versions": {
            "degaml-kedro": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
        "results": [dict(result) for result in results],
    }
    return frame, record, results_table(frame, methods)
