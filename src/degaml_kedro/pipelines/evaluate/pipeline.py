"""The evaluate pipeline: one scoring node per task and method."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from degaml_kedro.parameters import BASELINES, FROM_ROLLOUTS, SUMMED, ProjectParameters
from degaml_kedro.pipelines.checkpoints.nodes import last_adapter, train_alone
from degaml_kedro.pipelines.counting import count_training
from degaml_kedro.pipelines.evaluate.nodes import (
    choose_strategies,
    collect_results,
    execute_fallback,
    execute_strategies,
    generate_adapters,
    predict,
    predict_adapted,
    predict_oracle,
    write_adapter,
)
from degaml_kedro.pipelines.evaluation_cells import EvaluationCell, evaluation_cells, measuring
from degaml_kedro.pipelines.naming import PARAMETERS, bound
from degaml_kedro.pipelines.policy.nodes import collect_rollouts, draw_strategies
from degaml_kedro.pipelines.task_folds import rollout_folds, task_folds, writer_input


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Score every method on every task, measure, and join."""
    nodes: dict[str, Node] = {}
    results: list[str] = []
    tried: list[str] = []
    baselines = parameters.baselines
    for cell in evaluation_cells(parameters):
        for method in parameters.methods:
            if method in (*BASELINES, *SUMMED):
                seen = baselines is not None and baselines.score_seen
                if cell.pool == "meta_test" or (cell.pool == "meta_train" and seen):
                    # the pipeline `baselines` makes them
                    results.append(f"{cell.task}.{method}.result")
                continue
            generated = (
                method in parameters.generated_methods or method in parameters.adapted_methods
            )
            if generated and cell.pool == "meta_train" and not parameters.scores_seen:
                continue
            result = cell.fold.name(f"{cell.task}.{method}.result")
            if method in parameters.adapted_methods:
                every = _adapted(parameters, cell, method, result)
                if method not in ("oracle_strategy", "best_fixed"):
                    tried.append(cell.name(method, "rollouts"))
            else:
                adapters, making = _adapters(parameters, cell, method)
                every = [*making, *_scoring(cell, method, adapters, result)]
            for made in every:
                nodes[made.name] = made
            results.append(result)
    for made in _counting(parameters):
        nodes[made.name] = made
    collect = node(
        collect_results,
        inputs=[PARAMETERS, *results],
        outputs=["results", "results_record", "results_table"],
        name="collect_results",
        namespace="evaluate",
    )
    return Pipeline([*nodes.values(), collect, *_strategies(tried)])


def _counting(parameters: ProjectParameters) -> list[Node]:
    """The nodes that add up the meta-training cost of every method that has one."""
    everything = task_folds(parameters)[0]
    pool = [f"{everything.pool}.trajectory"] if parameters.needs_warmup else []
    own_pool = pool if parameters.trajectory.start == "pooled_warmup" else []
    trajectories = [f"{everything.trajectory_of(task)}.trajectory" for task in everything.tasks]
    parts: dict[str, list[str]] = {"pooled": pool, "mean_adapter": [*own_pool, *trajectories]}
    for method, variant in parameters.generated_methods.items():
        before = [] if parameters.reads_examples(method) else [*own_pool, *trajectories]
        parts[method] = [*before, f"{variant}.generator_steps"]
    if parameters.adapted_methods:
        steps = f"{parameters.policy_variant}.generator_steps"
        parts["random_policy"] = [*own_pool, *trajectories, steps]
        policy = []
        if parameters.policy is not None and parameters.needs_policy:
            apart = {fold.label: fold for fold in rollout_folds(parameters, everything).values()}
            for fold in apart.values():
                if fold.left_out:
                    if own_pool:
                        policy.append(f"{fold.pool}.trajectory")
                    if fold.own_start:
                        policy += [f"{fold.trajectory_of(t)}.trajectory" for t in fold.tasks]
                    policy.append(fold.name(steps))
            policy.append("policy_rollouts")
            policy += [
                f"policy_{number}.record" for number in range(1, parameters.policy.iterations + 1)
            ]
        parts["degaml"] = [*parts["random_policy"], *policy]
        parts |= dict.fromkeys(FROM_ROLLOUTS, parts["degaml"])
        if parameters.falls_back:
            # uniform draws are held against what the policy's rollouts found
            parts["random_policy"] = parts["degaml"]
    return [
        node(
            bound(count_training, method=method, stage="meta_training"),
            inputs=parts[method],
            outputs=f"{method}.meta_training.compute",
            name=f"count_{method}",
            namespace="evaluate",
        )
        for method in parameters.methods
        if parts.get(method)
    ]


def _strategies(rollouts: list[str]) -> list[Node]:
    """All trials on new tasks in one table and one picture, if there are any."""
    if not rollouts:
        return []
    return [
        node(
            collect_rollouts,
            inputs=rollouts,
            outputs="strategies",
            name="collect_strategies",
            namespace="evaluate",
        ),
        node(
            bound(draw_strategies, title="Strategies by task"),
            inputs="strategies",
            outputs=["strategy_map", "strategy_map_page"],
            name="draw_strategies",
            namespace="evaluate",
        ),
    ]


def _adapters(
    parameters: ProjectParameters, cell: EvaluationCell, method: str
) -> tuple[list[str], list[Node]]:
    """The names of a method's adapters, if it has any, and the nodes that make them."""
    task, fold = cell.task, cell.fold
    if method == "base":
        return [], []
    if method == "pooled":
        return [f"{fold.pool}.warmup_adapter"], []
    if method == "mean_adapter":
        return [fold.name("mean.adapter")], []
    if method in parameters.generated_methods:
        return _generated(parameters, cell, method)
    run = f"{task}.{method}"

    def counting(trajectory: str) -> Node:
        return node(
            bound(count_training, method=method, stage="adaptation", task=task),
            inputs=trajectory,
            outputs=f"{run}.compute",
            name="count_alone",
            namespace=f"evaluate.{task}",
        )

    if task in parameters.meta_train and parameters.trajectory_is_no_meta_train:
        return [f"{task}.final_adapter"], [counting(f"{task}.trajectory")]
    training = node(
        bound(train_alone, task=task),
        inputs=[
            PARAMETERS,
            f"{run}.trajectory_resume",
            f"{task}.splits",
        ],
        outputs=f"{run}.trajectory",
        name="train_alone",
        namespace=f"evaluate.{task}",
    )
    taking = node(
        last_adapter,
        inputs=f"{run}.trajectory",
        outputs=f"{run}.adapter",
        name="last_adapter_alone",
        namespace=f"evaluate.{task}",
    )
    return [f"{run}.adapter"], [training, taking, counting(f"{run}.trajectory")]


def _generated(
    parameters: ProjectParameters, cell: EvaluationCell, method: str
) -> tuple[list[str], list[Node]]:
    assert parameters.generator is not None
    prompts_of = cell.task
    if method.startswith("other_prompts"):
        prompts_of = other_task(parameters, cell)
    generator = cell.fold.name(f"{parameters.generated_methods[method]}.generator")
    name = f"generate_{method}{cell.fold.suffix}"
    if parameters.reads_examples(method):
        adapter = cell.name(method, "draw_0.adapter")
        writing = node(
            bound(write_adapter, task=cell.task, method=method, examples_of=prompts_of),
            inputs=[PARAMETERS, generator, f"{prompts_of}.splits"],
            outputs=[adapter, cell.name(method, "compute")],
            name=name,
            namespace=f"evaluate.{cell.task}",
        )
        return [adapter], [writing]
    draws = [
        cell.name(method, f"draw_{number}.adapter") for number in range(parameters.generator.draws)
    ]
    generating = node(
        bound(generate_adapters, task=cell.task, method=method, prompts_of=prompts_of),
        inputs=[
            PARAMETERS,
            generator,
            f"{prompts_of}.prompt_embeddings",
            f"{prompts_of}.splits",
        ],
        outputs=[*draws, cell.name(method, "compute")],
        name=name,
        namespace=f"evaluate.{cell.task}",
    )
    return draws, [generating]


def _adapted(
    parameters: ProjectParameters, cell: EvaluationCell, method: str, result: str
) -> list[Node]:
    """The nodes of a method that refines a generated adapter.

    The node that chooses is given the task's support examples, and neither its splits nor anything made from its test
    split.
    """
    task, suffix = cell.task, cell.fold.suffix
    generator = cell.fold.name(f"{parameters.policy_variant}.generator")
    embeddings = f"{task}.prompt_embeddings"
    predictions = cell.name(method, "predictions")
    measured = measuring(cell, method, predictions, result)
    if method == "oracle_strategy":
        others = [name for name in parameters.adapted_methods if name != method]
        writing = [*writer_input(parameters, cell.fold).values()]
        oracle = node(
            bound(predict_oracle, *([] if writing else [None]), task=task),
            inputs=[
                *writing,
                PARAMETERS,
                generator,
                embeddings,
                f"{task}.splits",
                *(cell.name(name, "predictions") for name in others),
            ],
            outputs=predictions,
            name=f"predict_{method}{suffix}",
            namespace=f"evaluate.{task}",
        )
        return [oracle, measured]
    rollouts, state = cell.name(method, "rollouts"), cell.name(method, "state")
    known = {
        "parameters": PARAMETERS,
        "trained": generator,
        "embeddings": embeddings,
        "support": f"{task}.support",
    }
    writer = {} if method == "no_generator" else writer_input(parameters, cell.fold)
    learned = {}
    if method in ("degaml", "no_generator", "paper_families"):
        learned["adapter"] = cell.fold.name("policy")
    if method == "tabular_policy":
        learned["tabular"] = cell.fold.name("tabular_policy")
    fallback = cell.fold.name("policy_fallback")
    if parameters.falls_back:
        learned["fallback"] = fallback
    start = {"start": f"{cell.fold.pool}.warmup_adapter"} if method == "no_generator" else {}
    without_search = method == "best_fixed"
    choosing = node(
        bound(choose_strategies, task=task, method=method),
        inputs={"resume": f"{rollouts}_resume", **known, **learned, **start, **writer},
        outputs=rollouts,
        name=f"choose_{method}{suffix}",
        namespace=f"evaluate.{task}",
    )
    executing = execute_fallback if without_search else execute_strategies
    carried = {"fallback": fallback} if without_search else {"rollouts": rollouts}
    return [
        *([] if without_search else [choosing]),
        node(
            bound(executing, task=task, method=method),
            inputs={**known, **carried, **start, **writer},
            outputs=[state, cell.name(method, "compute")],
            name=f"execute_{method}{suffix}",
            namespace=f"evaluate.{task}",
        ),
        node(
            bound(predict_adapted, task=task, method=method),
            inputs=[PARAMETERS, generator, embeddings, f"{task}.splits", state],
            outputs=predictions,
            name=f"predict_{method}{suffix}",
            namespace=f"evaluate.{task}",
        ),
        measured,
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


def _scoring(cell: EvaluationCell, method: str, adapters: list[str], result: str) -> list[Node]:
    task, suffix = cell.task, cell.fold.suffix
    shared = method in ("base", "no_meta_train")
    predictions = cell.name(method, "predictions")
    return [
        node(
            bound(predict, task=task, method=method),
            inputs=[PARAMETERS, f"{task}.splits", *adapters],
            outputs=predictions,
            name=f"predict_{method}{'' if shared else suffix}",
            namespace=f"evaluate.{task}",
        ),
        measuring(cell, method, predictions, result),
    ]
