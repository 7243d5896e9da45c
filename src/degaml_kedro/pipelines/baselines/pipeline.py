"""The baselines pipeline: a node per method and task.

A method's settings are chosen on meta-train tasks that its weights have not seen: it is fitted to the others for that,
and once more to all of them for what is scored.
"""

from __future__ import annotations

from kedro.pipeline import Pipeline
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
from degaml_kedro.pipelines.naming import PARAMETERS, bound, nodes_in
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
            make, cost = nodes_in(f"baselines.fit.{method}"), f"{method}.meta_training.compute"
            how = {"method": method, "stage": "meta_training"}
            nodes.append(make(count_training, f"{method}.learned", cost, "count", **how))
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
    task, predictions = cell.task, f"{cell.task}.{method}.predictions"
    inputs = [f"{task}.{part}.predictions" for part in SUMMED[method]]
    return [
        nodes_in(f"baselines.{task}")(sum_predictions, inputs, predictions, f"sum_{method}"),
        _counting(method, "adaptation", task),
        measuring(cell, method, predictions, f"{task}.{method}.result"),
    ]


def _counting(method: str, stage: str, task: str | None) -> Node:
    """The node that adds up the costs of two baselines."""
    ending = f".{stage}.compute" if task is None else ".compute"
    prefix = "" if task is None else f"{task}."
    return nodes_in(f"baselines.{task or 'fit'}")(
        count_training,
        [f"{prefix}{part}{ending}" for part in SUMMED[method]],
        f"{prefix}{method}{ending}",
        f"count_{method}",
        method=method,
        stage=stage,
        task=task,
    )


def _fit(parameters: ProjectParameters, method: str, fold: TaskFold, learned: str) -> Node:
    for_search = learned.startswith("search.")
    # Kedro wants nothing from elsewhere between the nodes of a namespace
    make = nodes_in(f"baselines.{'search' if for_search else 'fit'}.{method}")
    name = "fit_for_search" if for_search else "fit"
    drawn = parameters.meta_train_distribution is not None
    splits = [] if drawn else [f"{task}.splits" for task in fold.tasks]
    pool = [f"{fold.pool}.trajectory"]
    from_warmup = METHODS[method].fitted_by_warmup
    if from_warmup and not parameters.warmup.context_share:
        return make(take_warmup, pool, learned, name, method=method)
    first = pool if method in parameters.baselines_from_pool and not from_warmup else []
    function, inputs = bound(fit_baseline, *_absent(first)), [*first, PARAMETERS, *splits]
    return make(function, inputs, learned, name, method=method, tasks=fold.tasks)


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
    make = nodes_in(f"baselines.search.{method}")
    weights_for_task = [weights] if method in META_TRAINED else []
    nodes = [
        make(
            search_settings,
            [PARAMETERS, f"{task}.splits", *weights_for_task],
            f"{task}.{method}.search",
            f"try_on_{task}",
            task=task,
            method=method,
        )
        for task in tasks
    ]
    searches = [f"{task}.{method}.search" for task in tasks]
    outputs = [f"{method}.settings", f"{method}.search.compute"]
    choosing = bound(choose_setting, *_absent(learned))
    inputs = [*learned, PARAMETERS, *searches]
    return [*nodes, make(choosing, inputs, outputs, "choose", method=method)]


def _evaluation(cell: EvaluationCell, method: str) -> list[Node]:
    task, make = cell.task, nodes_in(f"baselines.{cell.task}", f"_{method}")
    predictions, cost = f"{task}.{method}.predictions", f"{task}.{method}.compute"
    known = [f"{method}.settings", f"{task}.support"]
    known += [f"{method}.learned"] if method in META_TRAINED else []
    names = {"task": task, "method": method}
    if method in READ_SUPPORT:
        inputs = [PARAMETERS, f"{task}.splits", *known]
        answering = [make(adapt_and_predict, inputs, [predictions, cost], "predict", **names)]
    else:
        adapted = f"{task}.{method}.adapted"
        inputs = [PARAMETERS, f"{task}.splits", adapted]
        answering = [
            make(adapt_baseline, [PARAMETERS, *known], [adapted, cost], "adapt", **names),
            make(predict_baseline, inputs, predictions, "predict", **names),
        ]
    return [*answering, measuring(cell, method, predictions, f"{task}.{method}.result")]
