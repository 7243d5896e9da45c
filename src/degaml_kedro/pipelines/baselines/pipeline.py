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
    """Fit, choose settings, adapt, answer and measure, in every fold; nothing where no method is a baseline."""
    if parameters.baselines is None or not parameters.baseline_methods:
        return Pipeline([])
    nodes: list[Node] = []
    scored = baseline_cells(parameters)
    for method in parameters.baseline_methods:
        for fold in task_folds(parameters):
            nodes += _learning(parameters, method, fold)
        for cell in scored:
            nodes += _evaluation(cell, method)
    for method in (name for name in parameters.methods if name in SUMMED):
        nodes.append(_counting(method, "meta_training"))
        for cell in scored:
            nodes += _sum(cell, method)
    # folds share what they try settings with
    return Pipeline(list({node.name: node for node in nodes}.values()))


def _learning(parameters: ProjectParameters, method: str, fold: TaskFold) -> list[Node]:
    """The nodes that fit a method to a fold's tasks and choose its settings."""
    if method not in META_TRAINED:
        return _search(parameters, method, fold)
    learned = fold.name(f"{method}.learned")
    nodes = [_fit(parameters, method, fold, learned, f"fit{fold.suffix}")]
    if not fold.left_out:
        make, cost = nodes_in(f"baselines.fit.{method}"), f"{method}.meta_training.compute"
        nodes.append(
            make(count_training, learned, cost, "count", method=method, stage="meta_training")
        )
    return [*nodes, *_search(parameters, method, fold)]


def _sum(cell: EvaluationCell, method: str) -> list[Node]:
    """Two baselines asked together."""
    task, predictions = cell.task, _named(cell, method, "predictions")
    inputs = [_named(cell, part, "predictions") for part in SUMMED[method]]
    make = nodes_in(f"baselines.{task}", cell.fold.suffix)
    return [
        make(sum_predictions, inputs, predictions, f"sum_{method}"),
        _counting(method, "adaptation", cell),
        measuring(cell, method, predictions, _named(cell, method, "result")),
    ]


def _named(cell: EvaluationCell, method: str, dataset: str) -> str:
    """A dataset of a baseline in a cell: settings are chosen anew in every fold, so that nothing is shared."""
    return cell.fold.name(f"{cell.task}.{method}.{dataset}")


def _counting(method: str, stage: str, cell: EvaluationCell | None = None) -> Node:
    """The node that adds up the costs of two baselines: on a cell's task, or of their meta-training."""
    cost = f"{{}}.{stage}.compute" if cell is None else _named(cell, "{}", "compute")
    place, suffix = ("fit", "") if cell is None else (cell.task, cell.fold.suffix)
    return nodes_in(f"baselines.{place}", suffix)(
        count_training,
        [cost.format(part) for part in SUMMED[method]],
        cost.format(method),
        f"count_{method}",
        method=method,
        stage=stage,
        task=cell and cell.task,
    )


def _fit(
    parameters: ProjectParameters, method: str, fold: TaskFold, learned: str, name: str
) -> Node:
    # Kedro wants nothing from elsewhere between the nodes of a namespace
    make = nodes_in(f"baselines.{'search' if learned.startswith('search.') else 'fit'}.{method}")
    drawn = parameters.meta_train_distribution is not None
    splits = [] if drawn else [f"{task}.splits" for task in fold.tasks]
    pool = [f"{fold.pool}.trajectory"]
    from_warmup = METHODS[method].fitted_by_warmup
    if from_warmup and not parameters.warmup.context_share:
        return make(take_warmup, pool, learned, name, method=method, tasks=fold.tasks)
    first = pool if method in parameters.baselines_from_pool and not from_warmup else []
    function, inputs = bound(fit_baseline, *_absent(first)), [*first, PARAMETERS, *splits]
    return make(function, inputs, learned, name, method=method, tasks=fold.tasks)


def _absent(inputs: list[str]) -> list[None]:
    """None for a node's first argument where there is no input for it."""
    return [] if inputs else [None]


def _search(parameters: ProjectParameters, method: str, fold: TaskFold) -> list[Node]:
    """Where there are tasks of development settings are tried on these, by the weights that are scored.

    Elsewhere some of the fold's tasks are held out, and the method is fitted to others for the search.
    """
    assert parameters.baselines is not None
    make, everything = nodes_in(f"baselines.search.{method}"), task_folds(parameters)[0]
    tasks, searched = parameters.development, fold
    if not tasks:
        searched = search_fold(parameters, fold)
        held_out = [task for task in searched.left_out if task in fold.tasks]
        tasks = tuple(held_out or fold.tasks)[: parameters.baselines.search.tasks]
    # what no fold has a part in is the same in all of them
    shared = method not in META_TRAINED or searched == search_fold(parameters, everything)
    place = everything if shared else searched
    nodes, learned, fitted = list[Node](), list[str](), list[str]()
    if method in META_TRAINED:
        learned = [place.name(f"{method}.learned")]
        if searched != fold:
            learned = fitted = [f"search.{learned[0]}"]
            name = f"fit_for_search{place.suffix}"
            nodes.append(_fit(parameters, method, searched, learned[0], name))
    searches = [place.name(f"{task}.{method}.search") for task in tasks]
    nodes += [
        make(
            search_settings,
            [PARAMETERS, f"{task}.splits", *learned],
            search,
            f"try_on_{task}{place.suffix}",
            task=task,
            method=method,
        )
        for task, search in zip(tasks, searches, strict=True)
    ]
    outputs = [fold.name(f"{method}.settings"), fold.name(f"{method}.search.compute")]
    choosing, inputs = bound(choose_setting, *_absent(fitted)), [*fitted, PARAMETERS, *searches]
    return [*nodes, make(choosing, inputs, outputs, f"choose{fold.suffix}", method=method)]


def _evaluation(cell: EvaluationCell, method: str) -> list[Node]:
    task, make = cell.task, nodes_in(f"baselines.{cell.task}", f"_{method}{cell.fold.suffix}")
    predictions, cost = _named(cell, method, "predictions"), _named(cell, method, "compute")
    known = [cell.fold.name(f"{method}.settings"), f"{task}.support"]
    known += [cell.fold.name(f"{method}.learned")] if method in META_TRAINED else []
    names = {"task": task, "method": method}
    adapting = {**names, "seen": task in cell.fold.tasks}
    if method in READ_SUPPORT:
        inputs = [PARAMETERS, f"{task}.splits", *known]
        answering = [make(adapt_and_predict, inputs, [predictions, cost], "predict", **adapting)]
    else:
        adapted = _named(cell, method, "adapted")
        inputs = [PARAMETERS, f"{task}.splits", adapted]
        answering = [
            make(adapt_baseline, [PARAMETERS, *known], [adapted, cost], "adapt", **adapting),
            make(predict_baseline, inputs, predictions, "predict", **names),
        ]
    return [*answering, measuring(cell, method, predictions, _named(cell, method, "result"))]
