"""The evaluate pipeline: one scoring node per task and method."""

from __future__ import annotations

from dataclasses import dataclass

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from degaml_kedro.parameters import ProjectParameters
from degaml_kedro.pipelines.checkpoints.nodes import last_adapter, train_alone
from degaml_kedro.pipelines.checkpoints.pipeline import SETTINGS
from degaml_kedro.pipelines.evaluate.nodes import (
    choose_strategies,
    collect_results,
    execute_strategies,
    generate_adapters,
    measure_predictions,
    predict,
    predict_adapted,
    predict_oracle,
)
from degaml_kedro.pipelines.groups import Group, groups
from degaml_kedro.pipelines.naming import bound
from degaml_kedro.pipelines.policy.nodes import collect_rollouts, draw_strategies
from degaml_kedro.pipelines.policy.pipeline import SETTINGS as SETTINGS_OF_POLICY


@dataclass(frozen=True)
class _Place:
    """A task in a part of the results table.

    Attributes:
        task: its name.
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
        group: whose generator, pool and mean serve it.
    """

    task: str
    pool: str
    group: Group

    def name(self, method: str, dataset: str) -> str:
        """A dataset of a method here."""
        own = f"{self.task}.{method}.{dataset}"
        # what no group had a part in is the same in all of them
        return own if method in ("base", "no_meta_train") else self.group.name(own)


def create_pipeline(parameters: ProjectParameters) -> Pipeline:
    """Score every method on every task, measure, and join."""
    nodes: dict[str, Node] = {}
    results: list[str] = []
    tried: list[str] = []
    for place in _places(parameters):
        for method in parameters.methods:
            generated = (
                method in parameters.generated_methods or method in parameters.adapted_methods
            )
            if generated and place.pool == "meta_train" and not parameters.scores_seen:
                continue
            result = place.group.name(f"{place.task}.{method}.result")
            if method in parameters.adapted_methods:
                every = _adapted(parameters, place, method, result)
                if method != "oracle_strategy":
                    tried.append(place.name(method, "rollouts"))
            else:
                adapters, making = _adapters(parameters, place, method)
                every = [*making, *_scoring(place, method, adapters, result)]
            for made in every:
                nodes[made.name] = made
            results.append(result)
    collect = node(
        collect_results,
        inputs=["params:profile", "params:model", "params:seed", "params:methods", *results],
        outputs=["results", "results_record", "results_table"],
        name="collect_results",
        namespace="evaluate",
    )
    return Pipeline([*nodes.values(), collect, *_strategies(tried)])


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


def _places(parameters: ProjectParameters) -> list[_Place]:
    everything, *folds = groups(parameters)
    found = [_Place(task, "meta_train", everything) for task in parameters.meta_train]
    found += [_Place(task, "left_out", fold) for fold in folds for task in fold.left_out]
    return found + [_Place(task, "meta_test", everything) for task in parameters.meta_test]


def _adapters(
    parameters: ProjectParameters, place: _Place, method: str
) -> tuple[list[str], list[Node]]:
    """The names of a method's adapters, if it has any, and the nodes that make them."""
    task, group = place.task, place.group
    if method == "base":
        return [], []
    if method == "pooled":
        return [f"{group.pool}.warmup_adapter"], []
    if method == "mean_adapter":
        return [group.name("mean.adapter")], []
    if method in parameters.generated_methods:
        return _generated(parameters, place, method)
    if task in parameters.meta_train and parameters.trajectory_is_no_meta_train:
        return [f"{task}.final_adapter"], []
    run = f"{task}.{method}"
    training = node(
        bound(train_alone, task=task),
        inputs=[
            *SETTINGS,
            "params:no_meta_train",
            f"params:tasks.{task}",
            "params:seed",
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
    return [f"{run}.adapter"], [training, taking]


def _generated(
    parameters: ProjectParameters, place: _Place, method: str
) -> tuple[list[str], list[Node]]:
    assert parameters.generator is not None
    prompts_of = place.task
    if method.startswith("other_prompts"):
        prompts_of = other_task(parameters, place)
    draws = [
        place.name(method, f"draw_{number}.adapter") for number in range(parameters.generator.draws)
    ]
    generating = node(
        bound(generate_adapters, task=place.task, method=method, prompts_of=prompts_of),
        inputs=[
            "params:model",
            "params:generator",
            "params:seed",
            place.group.name(f"{parameters.generated_methods[method]}.generator"),
            f"{prompts_of}.prompt_embeddings",
            f"{prompts_of}.splits",
        ],
        outputs=draws,
        name=f"generate_{method}{place.group.suffix}",
        namespace=f"evaluate.{place.task}",
    )
    return draws, [generating]


def _adapted(parameters: ProjectParameters, place: _Place, method: str, result: str) -> list[Node]:
    """The nodes of a method that refines a generated adapter.

    The node that chooses is given the task's support examples, and neither its splits nor anything made from its test
    split.
    """
    task, suffix = place.task, place.group.suffix
    settings = (*SETTINGS_OF_POLICY, f"params:tasks.{task}", "params:seed")
    generator = place.group.name(f"{parameters.policy_variant}.generator")
    embeddings = f"{task}.prompt_embeddings"
    predictions = place.name(method, "predictions")
    measuring = _measuring(place, method, predictions, result)
    if method == "oracle_strategy":
        others = [name for name in parameters.adapted_methods if name != method]
        oracle = node(
            bound(predict_oracle, task=task),
            inputs=[
                *settings,
                generator,
                embeddings,
                f"{task}.splits",
                *(place.name(name, "predictions") for name in others),
            ],
            outputs=predictions,
            name=f"predict_{method}{suffix}",
            namespace=f"evaluate.{task}",
        )
        return [oracle, measuring]
    rollouts, state = place.name(method, "rollouts"), place.name(method, "state")
    policy = [place.group.name("policy")] if method == "degaml" else []
    known = [generator, embeddings, f"{task}.support"]
    return [
        node(
            bound(choose_strategies, task=task, method=method),
            inputs=[*settings, f"{rollouts}_resume", *known, *policy],
            outputs=rollouts,
            name=f"choose_{method}{suffix}",
            namespace=f"evaluate.{task}",
        ),
        node(
            bound(execute_strategies, task=task, method=method),
            inputs=[*settings, *known, rollouts],
            outputs=state,
            name=f"execute_{method}{suffix}",
            namespace=f"evaluate.{task}",
        ),
        node(
            bound(predict_adapted, task=task, method=method),
            inputs=[
                *(name for name in settings if name not in ("params:policy", "params:seed")),
                generator,
                embeddings,
                f"{task}.splits",
                state,
            ],
            outputs=predictions,
            name=f"predict_{method}{suffix}",
            namespace=f"evaluate.{task}",
        ),
        measuring,
    ]


def other_task(parameters: ProjectParameters, place: _Place) -> str:
    """Whose prompts the control gets: the next task of another kind, among those that the generator knows as well."""
    alike = {
        "meta_train": parameters.meta_train,
        "left_out": (*place.group.left_out, *parameters.meta_test),
        "meta_test": parameters.meta_test,
    }[place.pool]
    start = alike.index(place.task)
    following = [*alike[start + 1 :], *alike[:start]]
    own = parameters.tasks[place.task].group
    apart = [task for task in following if task != place.task]
    strangers = [task for task in apart if parameters.tasks[task].group != own]
    # a project with one unseen task has only its meta-train tasks to take prompts from
    return next(iter([*strangers, *apart, *place.group.tasks]))


def _scoring(place: _Place, method: str, adapters: list[str], result: str) -> list[Node]:
    task, suffix = place.task, place.group.suffix
    shared = method in ("base", "no_meta_train")
    predictions = place.name(method, "predictions")
    return [
        node(
            bound(predict, task=task, method=method),
            inputs=[
                "params:model",
                "params:prompt",
                "params:scoring",
                f"params:tasks.{task}",
                f"{task}.splits",
                *adapters,
            ],
            outputs=predictions,
            name=f"predict_{method}{'' if shared else suffix}",
            namespace=f"evaluate.{task}",
        ),
        _measuring(place, method, predictions, result),
    ]


def _measuring(place: _Place, method: str, predictions: str, result: str) -> Node:
    return node(
        bound(measure_predictions, task=place.task, method=method, pool=place.pool),
        inputs=[f"params:tasks.{place.task}", predictions],
        outputs=result,
        name=f"measure_{method}{place.group.suffix}",
        namespace=f"evaluate.{place.task}",
    )
