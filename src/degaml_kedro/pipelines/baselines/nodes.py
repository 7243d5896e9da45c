"""Nodes of the baselines pipeline."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines import icl, methods
from degaml_kedro.baselines.compute import Clock, Compute
from degaml_kedro.baselines.learned import BaselineError, Learned, TaskExamples
from degaml_kedro.io.trajectory import Trajectory
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.finetune import TrainingError, initial_adapter
from degaml_kedro.parameters import (
    BASELINES,
    AdaptationSetting,
    BaselinesParameters,
    BaseModelParameters,
    InContextSetting,
    LoraParameters,
    PromptParameters,
    ScoringParameters,
    task_scoring,
)
from degaml_kedro.pipelines.counting import compute_record, trajectory_compute
from degaml_kedro.pipelines.evaluate.nodes import predictions_frame, timed_answers
from degaml_kedro.progress import progress_bar
from degaml_kedro.results.measures import measure
from degaml_kedro.seeds import derive_seed
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.splits import frame_to_splits

logger = logging.getLogger(__name__)


def take_union(trajectory: Trajectory) -> Learned:
    """Union's meta-training is the pooled warm-up: the same tasks, the same loss, nothing else.

    Args:
        trajectory: the pooled warm-up's.
    """
    records = [{"step": record.step, "loss": record.loss} for record in trajectory.records]
    spent = trajectory_compute(trajectory)
    return Learned("union_train", trajectory.last, {}, records, spent, dict(trajectory.about))


def fit_baseline(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    lora: Mapping[str, Any],
    baselines: Mapping[str, Any],
    first_task: Mapping[str, Any],
    seed: int,
    *inputs: Any,
    method: str,
    tasks: Sequence[str],
    from_pool: bool,
) -> Learned:
    """Meta-train a method by episodes.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: its mode says what the answers are.
        lora: the adapter's shape.
        baselines: all baselines' parameters.
        first_task: the first task's entry in the configuration; all are scored in one mode.
        seed: the run's.
        *inputs: the tasks' splits, of which only ``train`` is read; after them, where the method starts from the
            pooled warm-up, its trajectory.
        method: which method.
        tasks: the tasks' names.
        from_pool: whether it starts from the pooled warm-up, whose cost is then a part of its own.
    """
    splits: Sequence[pd.DataFrame] = inputs[: len(tasks)]
    base = load_base_model(BaseModelParameters.model_validate(model))
    how = task_scoring(scoring, first_task)
    start, spent = initial_adapter(base, LoraParameters.model_validate(lora)), Compute()
    if from_pool:
        pool: Trajectory = inputs[len(tasks)]
        start, spent = pool.last, trajectory_compute(pool)
    examples = [
        TaskExamples(name, frame_to_splits(frame).train)
        for name, frame in zip(tasks, splits, strict=True)
    ]
    with progress_bar(f"{method} on {len(tasks)} tasks", "step") as progress:
        learned = methods.fit(
            method,
            base,
            examples,
            PromptParameters.model_validate(prompt),
            how.mode,
            BaselinesParameters.model_validate(baselines),
            start,
            # both orders of MAML see the same episodes
            derive_seed(seed, BASELINES[method], "fit"),
            progress,
        )
    logger.info(
        "%s: meta-trained on %d tasks in %.0f s", method, len(tasks), learned.compute.seconds
    )
    return Learned(
        learned.method,
        learned.adapter,
        learned.extra,
        learned.records,
        learned.compute + spent,
        learned.about,
    )


def search_settings(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    lora: Mapping[str, Any],
    baselines: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    seed: int,
    splits: pd.DataFrame,
    learned: Learned | None = None,
    *,
    task: str,
    method: str,
) -> pd.DataFrame:
    """Try every setting of a method on a meta-train task that its weights have not seen.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        lora: the adapter's shape.
        baselines: all baselines' parameters.
        task_parameters: the task's entry in the configuration.
        seed: the run's.
        splits: the task's splits; ``support`` and ``validation`` are read.
        learned: what the method learned from the other tasks, if it learns.
        task: the task's name.
        method: the method's name.

    Returns:
        One row a setting: its number, accuracy and likelihood on the validation examples, and what it cost.
    """
    parameters = BaselinesParameters.model_validate(baselines)
    base = load_base_model(BaseModelParameters.model_validate(model))
    how = task_scoring(scoring, task_parameters)
    shape = PromptParameters.model_validate(prompt)
    parts = frame_to_splits(splits)
    questions = parts.validation[: parameters.search.examples]
    rows = []
    for number, setting in enumerate(methods.settings_of(method, parameters)):
        own = derive_seed(seed, task, BASELINES[method], "search")
        clock, spent = Clock(), Compute()
        accuracy, nll, failure = 0.0, math.inf, None
        try:
            adapted, spent = _adapted(
                method, base, learned, parts.support, shape, how, lora, parameters, setting, own
            )
            predictions = methods.answer(
                method, base, adapted, questions, shape, how, parameters, own
            )
            clock.read(sum(prediction.tokens for prediction in predictions))
            found = measure(predictions_frame(predictions, 0.0), f"{task}, {method}")
            accuracy, nll = found["accuracy"], found["nll"]
            logger.info(
                "%s, %s, %s: accuracy %.2f (n = %d)",
                task,
                method,
                setting.model_dump_json(),
                accuracy,
                found["n"],
            )
        except (BaselineError, TrainingError) as error:
            # a rate at which it diverges is a setting that is not chosen, and no reason to stop
            failure = str(error)
            logger.warning("%s, %s, %s: %s", task, method, setting.model_dump_json(), error)
        total = clock.compute
        rows.append(
            {
                "method": method,
                "task": task,
                "number": number,
                "setting": setting.model_dump_json(),
                "accuracy": accuracy,
                "nll": nll,
                "n": len(questions),
                "seed": seed,
                "error": failure,
                "forward_tokens": total.forward_tokens + spent.forward_tokens,
                "backward_tokens": spent.backward_tokens,
                "seconds": total.seconds,
            }
        )
    if all(row["error"] for row in rows):
        raise BaselineError(
            f"{method} fails on {task} with every setting that baselines.{BASELINES[method]}.settings lists; the last "
            f"one: {rows[-1]['error']}"
        )
    return pd.DataFrame(rows).astype({"error": "object"})


def choose_setting(
    baselines: Mapping[str, Any], *inputs: Any, method: str, fitted: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The setting with the best mean accuracy over the search's tasks; the likelier answers decide between equal ones.

    Args:
        baselines: all baselines' parameters.
        *inputs: what :func:`search_settings` returned of every task; after them, where the method learns, what it
            learned for the search.
        method: which method.
        fitted: whether it learns.

    Returns:
        The choice with everything that was tried, and what the search cost.
    """
    learned: Learned | None = inputs[-1] if fitted else None
    tried = pd.concat(inputs[:-1] if fitted else inputs, ignore_index=True)
    settings = methods.settings_of(method, BaselinesParameters.model_validate(baselines))
    _check_search(method, tried, settings)
    # equal numbers of right answers may differ in the last bit of their means
    means = tried.groupby("number")[["accuracy", "nll"]].mean().round({"accuracy": 12})
    best = means.sort_values(["accuracy", "nll"], ascending=[False, True], kind="stable")
    chosen = int(best.index[0])
    spent = Compute(
        int(tried["forward_tokens"].sum()),
        int(tried["backward_tokens"].sum()),
        float(tried["seconds"].sum()),
    )
    if learned is not None:
        spent = spent + learned.compute
    logger.info(
        "%s: %s, with a mean accuracy of %.2f on %d held-out meta-train tasks",
        method,
        settings[chosen].model_dump_json(),
        means["accuracy"].loc[chosen],
        tried["task"].nunique(),
    )
    record = {
        "method": method,
        "chosen": chosen,
        "setting": settings[chosen].model_dump(mode="json"),
        "rows": tried.to_dict("records"),
    }
    return record, compute_record(method, "search", None, spent)


def _check_search(method: str, tried: pd.DataFrame, settings: Sequence[methods.Setting]) -> None:
    """Searches are kept, and shared by runs: what was tried has to be what is configured, with one seed."""
    asked = {number: setting.model_dump_json() for number, setting in enumerate(settings)}
    way_out = (
        f"delete the files *.{method}.search.parquet and search.{method}.learned of the search (05_model_input and "
        f"06_models in the folder `search` of globals.yml), and run again"
    )
    for task, rows in tried.groupby("task"):
        found = dict(zip(rows["number"].astype(int), rows["setting"], strict=True))
        if found != asked:
            raise BaselineError(
                f"the search for {method} on {task} tried {', '.join(found.values())}, and "
                f"baselines.{BASELINES[method]}.settings asks for {', '.join(asked.values())}; {way_out}"
            )
    seeds = sorted(set(tried["seed"])) if "seed" in tried else []
    if len(seeds) > 1:
        raise BaselineError(
            f"the search for {method} was begun with seed {seeds[0]} and goes on with {seeds[1]}; {way_out}"
        )


def count_meta_training(learned: Learned) -> dict[str, Any]:
    """What a baseline's meta-training cost."""
    return compute_record(learned.method, "meta_training", None, learned.compute)


def adapt_baseline(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    lora: Mapping[str, Any],
    baselines: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    seed: int,
    chosen: Mapping[str, Any],
    support: pd.DataFrame,
    learned: Learned | None = None,
    *,
    task: str,
    method: str,
) -> tuple[Learned, dict[str, Any]]:
    """Adapt a method to a task. Nothing but the support examples of the task comes in here.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        lora: the adapter's shape.
        baselines: all baselines' parameters.
        task_parameters: the task's entry in the configuration.
        seed: the run's.
        chosen: what the search chose.
        support: the support examples.
        learned: what the method learned, if it learns.
        task: the task's name.
        method: the method's name.

    Returns:
        The weights, and what they cost.
    """
    parameters = BaselinesParameters.model_validate(baselines)
    base = load_base_model(BaseModelParameters.model_validate(model))
    setting = methods.setting_of(method, chosen["setting"])
    adapted, spent = _adapted(
        method,
        base,
        learned,
        frame_to_splits(support).support,
        PromptParameters.model_validate(prompt),
        task_scoring(scoring, task_parameters),
        lora,
        parameters,
        setting,
        derive_seed(seed, task, BASELINES[method]),
    )
    assert isinstance(adapted, Learned)
    logger.info("%s, %s: adapted in %.1f s", task, method, spent.seconds)
    return adapted, compute_record(method, "adaptation", task, spent)


def predict_baseline(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    baselines: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    seed: int,
    splits: pd.DataFrame,
    adapted: Learned,
    *,
    task: str,
    method: str,
) -> pd.DataFrame:
    """A baseline's answers to a task's test split.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        baselines: all baselines' parameters.
        task_parameters: the task's entry in the configuration.
        seed: the run's.
        splits: the task's splits; only ``test`` is read.
        adapted: the method's weights for the task.
        task: the task's name.
        method: the method's name.

    Returns:
        One row per example with the columns of ``PREDICTION_COLUMNS``.
    """
    base = load_base_model(BaseModelParameters.model_validate(model))
    return _answers(
        method,
        base,
        adapted,
        frame_to_splits(splits).test,
        prompt,
        task_scoring(scoring, task_parameters),
        BaselinesParameters.model_validate(baselines),
        derive_seed(seed, task, BASELINES[method], "answers"),
        task,
    )


def predict_in_context(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    baselines: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    seed: int,
    splits: pd.DataFrame,
    chosen: Mapping[str, Any],
    support: pd.DataFrame,
    *,
    task: str,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Answers to a task's test split with support examples in the prompt.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        baselines: all baselines' parameters.
        task_parameters: the task's entry in the configuration.
        seed: the run's.
        splits: the task's splits; only ``test`` is read.
        chosen: what the search chose.
        support: the support examples.
        task: the task's name.

    Returns:
        The answers, and what adapting cost: nothing. That every answer reads the examples is a cost of answering, and
        stands in the result's ``tokens``.
    """
    base = load_base_model(BaseModelParameters.model_validate(model))
    setting = InContextSetting.model_validate(chosen["setting"])
    clock = Clock()
    shown = icl.adapt(frame_to_splits(support).support, setting, derive_seed(seed, task, "icl"))
    spent = clock.compute
    frame = _answers(
        "icl",
        base,
        shown,
        frame_to_splits(splits).test,
        prompt,
        task_scoring(scoring, task_parameters),
        BaselinesParameters.model_validate(baselines),
        seed,
        task,
    )
    return frame, compute_record("icl", "adaptation", task, spent)


def _adapted(
    method: str,
    base: BaseModel,
    learned: Learned | None,
    support: Sequence[Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    lora: Mapping[str, Any],
    parameters: BaselinesParameters,
    setting: methods.Setting,
    seed: int,
) -> tuple[Learned | Sequence[Example], Compute]:
    if isinstance(setting, InContextSetting):
        return icl.adapt(support, setting, seed), Compute()
    assert isinstance(setting, AdaptationSetting)
    if learned is None:
        start: Adapter = initial_adapter(base, LoraParameters.model_validate(lora))
        learned = Learned(method, start)
    clock = Clock()
    adapted = methods.adapt(
        method, base, learned, support, prompt, scoring.mode, parameters, setting, seed
    )
    own = adapted.compute
    return adapted, Compute(own.forward_tokens, own.backward_tokens, clock.compute.seconds)


def _answers(
    method: str,
    base: BaseModel,
    adapted: Learned | Sequence[Example],
    examples: Sequence[Example],
    prompt: Mapping[str, Any],
    scoring: ScoringParameters,
    parameters: BaselinesParameters,
    seed: int,
    task: str,
) -> pd.DataFrame:
    answer = partial(
        methods.answer,
        method,
        base,
        adapted,
        examples,
        PromptParameters.model_validate(prompt),
        scoring,
        parameters,
        seed,
    )
    return timed_answers(f"{task}, {method}", answer)
