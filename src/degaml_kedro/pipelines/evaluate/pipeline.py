"""The evaluate pipeline: one scoring node per task and method."""

from __future__ import annotations

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from degaml_kedro.config.methods import METHODS, Method, method_of
from degaml_kedro.config.schema import ProjectParameters, required
from degaml_kedro.pipelines.checkpoints.nodes import last_adapter, train_trajectory
from degaml_kedro.pipelines.counting import count_training
from degaml_kedro.pipelines.evaluate.nodes import (
    choose_strategies,
    collect_results,
    execute_strategies,
    generate_adapters,
    predict,
    predict_adapted,
    predict_oracle,
    write_adapter,
)
from degaml_kedro.pipelines.evaluation_cells import (
    EvaluationCell,
    baseline_cells,
    evaluation_cells,
    is_meta_trained,
    measuring,
)
from degaml_kedro.pipelines.naming import PARAMETERS, bound, nodes_in
from degaml_kedro.pipelines.policy.nodes import collect_rollouts, draw_strategies
from degaml_kedro.pipelines.task_folds import TaskFold, rollout_folds, task_folds, writer_input


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Score every method on every task, measure, and join."""
    nodes: dict[str, Node] = {}
    results: list[str] = []
    tried: list[str] = []
    scored_by_baselines = baseline_cells(parameters)
    for cell in evaluation_cells(parameters):
        for method in parameters.methods:
            row = method_of(method)
            assert row is not None
            if row.kind in ("baseline", "sum"):
                # the pipeline `baselines` makes them
                if cell in scored_by_baselines:
                    results.append(cell.fold.name(f"{cell.task}.{method}.result"))
                continue
            if row.kind != "plain" and cell.pool == "meta_train" and not parameters.scores_seen:
                continue
            result = cell.fold.name(f"{cell.task}.{method}.result")
            if row.is_bound:
                every = _oracle(parameters, cell, method)
            elif row.kind == "adapted":
                every = _refined(parameters, cell, row)
                if row.proposer is not None:
                    tried.append(cell.name(method, "rollouts"))
            else:
                adapters, every = _adapters(parameters, cell, row, method)
                every.append(_answering(cell, method, adapters))
            every.append(measuring(cell, method, cell.name(method, "predictions"), result))
            for made in every:
                nodes[made.name] = made
            results.append(result)
    for made in _counting(parameters):
        nodes[made.name] = made
    make = nodes_in("evaluate")
    collected = ["results", "results_record", "results_table"]
    last = [make(collect_results, [PARAMETERS, *results], collected)]
    if tried:
        # all trials on new tasks in one table and one picture
        pictures, title = ["strategy_map", "strategy_map_page"], "Strategies by task"
        last += [
            make(collect_rollouts, tried, "strategies", "collect_strategies"),
            make(draw_strategies, "strategies", pictures, title=title),
        ]
    return Pipeline([*nodes.values(), *last])


def _counting(parameters: ProjectParameters) -> list[Node]:
    """The nodes that add up the meta-training cost of every method that has one."""
    everything = task_folds(parameters)[0]
    pool = [f"{everything.pool}.trajectory"] if parameters.needs_warmup else []
    own_pool = pool if parameters.trajectory.start == "pooled_warmup" else []
    checkpoints = [
        *own_pool,
        *(f"{everything.trajectory_of(task)}.trajectory" for task in everything.tasks),
    ]
    parts: dict[str, list[str]] = {"pooled": pool, "mean_adapter": checkpoints}
    for method, variant in parameters.generated_methods.items():
        before = [] if parameters.reads_examples(method) else checkpoints
        parts[method] = [*before, f"{variant}.generator_steps"]
    if parameters.adapted_methods:
        steps = f"{parameters.policy_variant}.generator_steps"
        generated = [*checkpoints, steps]
        with_policy = [*generated, *_policy_parts(parameters, everything, steps)]
        for method in parameters.adapted_methods:
            row = METHODS[method]
            # uniform draws are held against what the policy's rollouts found, where a search falls back on that
            falls_back = row.proposer == "uniform" and parameters.falls_back
            if not row.is_bound:
                parts[method] = with_policy if row.needs_rollouts or falls_back else generated
    make = nodes_in("evaluate")
    return [
        make(
            count_training,
            parts[method],
            f"{method}.meta_training.compute",
            f"count_{method}",
            method=method,
            stage="meta_training",
        )
        for method in parameters.methods
        if parts.get(method)
    ]


def _policy_parts(parameters: ProjectParameters, everything: TaskFold, steps: str) -> list[str]:
    """What the policy's training cost beside the generator's: its folds' generators, rollouts and learning steps."""
    if parameters.policy is None or not parameters.needs_policy:
        return []
    parts: list[str] = []
    for fold in dict.fromkeys(rollout_folds(parameters, everything).values()):
        if fold.left_out:
            if parameters.trajectory.start == "pooled_warmup":
                parts.append(f"{fold.pool}.trajectory")
            if fold.own_start:
                parts += [f"{fold.trajectory_of(task)}.trajectory" for task in fold.tasks]
            parts.append(fold.name(steps))
    iterations = range(1, parameters.policy.iterations + 1)
    return [*parts, "policy_rollouts", *(f"policy_{number}.record" for number in iterations)]


def _adapters(
    parameters: ProjectParameters, cell: EvaluationCell, row: Method, method: str
) -> tuple[list[str], list[Node]]:
    """The names of a method's adapters, if it has any, and the nodes that make them."""
    task, run = cell.task, f"{cell.task}.{method}"
    if row.kind == "generated":
        return _generated(parameters, cell, row, method)
    if row.adapter is not None:
        return [cell.fold.name(row.adapter)], []
    if not row.adapts:
        return [], []
    # a task's own training; a trajectory may be just that
    make, making = nodes_in(f"evaluate.{task}", "_alone"), list[Node]()
    adapter, trajectory = f"{run}.adapter", f"{run}.trajectory"
    if task in parameters.meta_train and parameters.trajectory_is_no_meta_train:
        adapter, trajectory = f"{task}.final_adapter", f"{task}.trajectory"
    else:
        inputs = [PARAMETERS, f"{trajectory}_resume", f"{task}.splits"]
        making = [
            make(train_trajectory, inputs, trajectory, "train", task=task, alone=True),
            make(last_adapter, trajectory, adapter),
        ]
    how = {"method": method, "stage": "adaptation", "task": task}
    return [adapter], [*making, make(count_training, trajectory, f"{run}.compute", "count", **how)]


def _generated(
    parameters: ProjectParameters, cell: EvaluationCell, row: Method, method: str
) -> tuple[list[str], list[Node]]:
    """The adapters that a generator makes of a task's support examples, and the node that makes them."""
    read = other_task(parameters, cell) if row.control == "other task" else cell.task
    generator = cell.fold.name(f"{parameters.generated_methods[method]}.generator")
    names = {"task": cell.task, "method": method}
    if parameters.reads_examples(method):
        count = 1
        function = bound(
            write_adapter, **names, examples_of=read, shuffled=row.control == "shuffled answers"
        )
        inputs = [f"{read}.splits"]
    else:
        count = required(parameters.generator).draws
        function = bound(generate_adapters, **names, prompts_of=read)
        inputs = [f"{read}.prompt_embeddings", f"{read}.splits"]
    draws = [cell.name(method, f"draw_{number}.adapter") for number in range(count)]
    make = nodes_in(f"evaluate.{cell.task}", cell.fold.suffix)
    outputs = [*draws, cell.name(method, "compute")]
    return draws, [make(function, [PARAMETERS, generator, *inputs], outputs, f"generate_{method}")]


def _oracle(parameters: ProjectParameters, cell: EvaluationCell, method: str) -> list[Node]:
    """The node that tries strategies on the test split itself, and what the other methods that refine chose."""
    others = [name for name in parameters.adapted_methods if name != method]
    writer = [*writer_input(parameters, cell.fold).values()]
    inputs = [
        *writer,
        PARAMETERS,
        cell.fold.name(f"{parameters.policy_variant}.generator"),
        f"{cell.task}.prompt_embeddings",
        f"{cell.task}.splits",
        *(cell.name(name, "predictions") for name in others),
    ]
    function = bound(predict_oracle, *([] if writer else [None]))
    make = nodes_in(f"evaluate.{cell.task}", cell.fold.suffix)
    predictions = cell.name(method, "predictions")
    return [make(function, inputs, predictions, f"predict_{method}", task=cell.task)]


def _refined(parameters: ProjectParameters, cell: EvaluationCell, row: Method) -> list[Node]:
    """The nodes of a method that refines an adapter: choose strategies, execute the best, answer.

    The node that chooses is given the task's support examples, and neither its splits nor anything made from its test
    split.
    """
    task, fold, method = cell.task, cell.fold, row.name
    names = {"task": task, "method": method}
    rollouts, state = cell.name(method, "rollouts"), cell.name(method, "state")
    made = {
        "trained": fold.name(f"{parameters.policy_variant}.generator"),
        "embeddings": f"{task}.prompt_embeddings",
    }
    known = {"parameters": PARAMETERS, **made, "support": f"{task}.support"}
    if row.adapter is not None:
        known["start"] = fold.name(row.adapter)
    else:
        known |= writer_input(parameters, fold)
    make = nodes_in(f"evaluate.{task}", f"_{method}{fold.suffix}")
    fallback = {"fallback": fold.name("policy_fallback")}
    nodes, carried_out = [], fallback
    if not row.executes_fallback:
        learned = fallback if parameters.falls_back else {}
        if row.proposer == "policy":
            learned = {"adapter": fold.name("policy"), **learned}
        if row.proposer == "tabular_policy":
            learned = {"tabular": fold.name("tabular_policy"), **learned}
        inputs = {"resume": f"{rollouts}_resume", **known, **learned}
        nodes = [make(choose_strategies, inputs, rollouts, "choose", **names)]
        carried_out = {"rollouts": rollouts}
    outputs = [state, cell.name(method, "compute")]
    asked = [PARAMETERS, *made.values(), f"{task}.splits", state]
    return [
        *nodes,
        make(execute_strategies, {**known, **carried_out}, outputs, "execute", **names),
        make(predict_adapted, asked, cell.name(method, "predictions"), "predict", **names),
    ]


def other_task(parameters: ProjectParameters, cell: EvaluationCell) -> str:
    """Whose prompts the control gets: the next task of another kind, among those that the generator knows as well."""
    alike = {
        "meta_train": parameters.meta_train,
        "left_out": (*cell.fold.left_out, *parameters.meta_test),
        "meta_test": parameters.meta_test,
    }[cell.pool]
    start = alike.index(cell.task)
    following = [*alike[start + 1 :], *alike[:start]]
    own = parameters.tasks[cell.task].group
    apart = [task for task in following if task != cell.task]
    strangers = [task for task in apart if parameters.tasks[task].group != own]
    # a project with one unseen task has only its meta-train tasks to take prompts from
    return next(iter([*strangers, *apart, *cell.fold.tasks]))


def _answering(cell: EvaluationCell, method: str, adapters: list[str]) -> Node:
    suffix = cell.fold.suffix if is_meta_trained(method) else ""
    return nodes_in(f"evaluate.{cell.task}", f"_{method}{suffix}")(
        predict,
        [PARAMETERS, f"{cell.task}.splits", *adapters],
        cell.name(method, "predictions"),
        task=cell.task,
        method=method,
    )
