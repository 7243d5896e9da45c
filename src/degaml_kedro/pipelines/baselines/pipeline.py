"""The baselines pipeline: a node per method and task.

A method's settings are chosen on meta-train tasks that its weights have not seen: it is fitted to the others for that,
and once more to all of them for what is scored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from degaml_kedro.config.methods import METHODS
from degaml_kedro.config.schema import META_TRAINED, READ_SUPPORT, SUMMED, ProjectParameters
from degaml_kedro.pipelines.baselines.nodes import (
    adapt_and_predict,
    adapt_baseline,
    choose_setting,
    fit_baseline,
    predict_baseline,
    search_settings,
    sum_predictions,
    take_warmup,
)
from degaml_kedro.pipelines.counting import count_training
from degaml_kedro.pipelines.evaluation_cells import EvaluationCell, baseline_cells, measuring
from degaml_kedro.pipelines.naming import PARAMETERS, bound
from degaml_kedro.pipelines.task_folds import TaskFold, search_fold, task_folds


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Fit, choose settings, adapt, answer and measure; nothing where no method is a baseline."""
    if parameters.baselines is None or not parameters.baseline_methods:
        return Pipeline([])
    nodes: list[Node] = []
    scored = baseline_cells(parameters)
    for method in parameters.baseline_methods:
        if method in META_TRAINED:
            if not parameters.development:
                searched = search_fold(parameters)
                nodes.append(_fit(parameters, method, searched, f"search.{method}.learned"))
            nodes.append(_fit(parameters, method, task_folds(parameters)[0], f"{method}.learned"))
            nodes.append(
                node(
                    bound(count_training, method=method, stage="meta_training"),
                    inputs=f"{method}.learned",
                    outputs=f"{method}.meta_training.compute",
                    name="count",
                    namespace=f"baselines.fit.{method}",
                )
            )
        nodes += _search(parameters, method)
        for cell in scored:
            nodes += _evaluation(cell, method)
    for method in (name for name in parameters.methods if name in SUMMED):
        nodes.append(_counting(method, "meta_training", None))
        for cell in scored:
            nodes += _sum(cell, method)
    return Pipeline(nodes)


def _sum(cell: EvaluationCell, method: str) -> list[Node]:
    """Two baselines asked together."""
    task = cell.task
    predictions = f"{task}.{method}.predictions"
    adding = node(
        sum_predictions,
        inputs=[f"{task}.{part}.predictions" for part in SUMMED[method]],
        outputs=predictions,
        name=f"sum_{method}",
        namespace=f"baselines.{task}",
    )
    measured = measuring(cell, method, predictions, f"{task}.{method}.result")
    return [adding, _counting(method, "adaptation", task), measured]


def _counting(method: str, stage: str, task: str | None) -> Node:
    """The node that adds up the costs of two baselines."""
    ending = f".{stage}.compute" if task is None else ".compute"
    prefix = "" if task is None else f"{task}."
    return node(
        bound(count_training, method=method, stage=stage, task=task),
        inputs=[f"{prefix}{part}{ending}" for part in SUMMED[method]],
        outputs=f"{prefix}{method}{ending}",
        name=f"count_{method}",
        namespace=f"baselines.{task or 'fit'}",
    )


def _fit(parameters: ProjectParameters, method: str, fold: TaskFold, learned: str) -> Node:
    for_search = learned.startswith("search.")
    name = "fit_for_search" if for_search else "fit"
    # Kedro wants nothing from elsewhere between the nodes of a namespace
    namespace = f"baselines.{'search' if for_search else 'fit'}.{method}"
    drawn = parameters.meta_train_distribution is not None
    splits = [] if drawn else [f"{task}.splits" for task in fold.tasks]
    pool = [f"{fold.pool}.trajectory"]
    function: Callable[..., Any]
    from_warmup = METHODS[method].fitted_by_warmup
    if from_warmup and not parameters.warmup.context_share:
        function, inputs = bound(take_warmup, method=method), pool
    else:
        first = pool if method in parameters.baselines_from_pool and not from_warmup else []
        function = bound(fit_baseline, *_absent(first), method=method, tasks=fold.tasks)
        inputs = [*first, PARAMETERS, *splits]
    return node(function, inputs=inputs, outputs=learned, name=name, namespace=namespace)


def _absent(inputs: list[str]) -> list[None]:
    """None for a node's first argument where there is no input for it."""
    return [] if inputs else [None]


def _search(parameters: ProjectParameters, method: str) -> list[Node]:
    """Where there are tasks of development settings are tried on these, by the weights that are scored.

    Elsewhere some meta-train tasks are held out, and the method is fitted to the others for the search.
    """
    assert parameters.baselines is not None
    apart = bool(parameters.development)
    tasks = parameters.development
    if not apart:
        tasks = search_fold(parameters).left_out[: parameters.baselines.search.tasks]
    weights = f"{method}.learned" if apart else f"search.{method}.learned"
    learned = [weights] if method in META_TRAINED and not apart else []
    searching = [
        node(
            bound(search_settings, task=task, method=method),
            inputs=[
                PARAMETERS,
                f"{task}.splits",
                *([weights] if method in META_TRAINED else []),
            ],
            outputs=f"{task}.{method}.search",
            name=f"try_on_{task}",
            namespace=f"baselines.search.{method}",
        )
        for task in tasks
    ]
    choosing = node(
        bound(choose_setting, *_absent(learned), method=method),
        inputs=[*learned, PARAMETERS, *(f"{task}.{method}.search" for task in tasks)],
        outputs=[f"{method}.settings", f"{method}.search.compute"],
        name="choose",
        namespace=f"baselines.search.{method}",
    )
    return [*searching, choosing]


def _evaluation(cell: EvaluationCell, method: str) -> list[Node]:
    task = cell.task
    namespace = f"baselines.{task}"
    predictions, result = f"{task}.{method}.predictions", f"{task}.{method}.result"
    settings, support = f"{method}.settings", f"{task}.support"
    learned = [f"{method}.learned"] if method in META_TRAINED else []
    if method in READ_SUPPORT:
        answering = [
            node(
                bound(adapt_and_predict, task=task, method=method),
                inputs=[PARAMETERS, f"{task}.splits", settings, support, *learned],
                outputs=[predictions, f"{task}.{method}.compute"],
                name=f"predict_{method}",
                namespace=namespace,
            )
        ]
    else:
        answering = [
            node(
                bound(adapt_baseline, task=task, method=method),
                inputs=[PARAMETERS, settings, support, *learned],
                outputs=[f"{task}.{method}.adapted", f"{task}.{method}.compute"],
                name=f"adapt_{method}",
                namespace=namespace,
            ),
            node(
                bound(predict_baseline, task=task, method=method),
                inputs=[PARAMETERS, f"{task}.splits", f"{task}.{method}.adapted"],
                outputs=predictions,
                name=f"predict_{method}",
                namespace=namespace,
            ),
        ]
    return [*answering, measuring(cell, method, predictions, result)]
