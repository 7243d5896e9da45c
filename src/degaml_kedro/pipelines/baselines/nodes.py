"""Nodes of the baselines pipeline."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from degaml_kedro.baselines import metaict, methods, union_train
from degaml_kedro.baselines.compute import Clock, Compute
from degaml_kedro.baselines.learned import BaselineError, Learned, TaskExamples
from degaml_kedro.baselines.sentence_head import Embed
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.io.trajectory import Trajectory
from degaml_kedro.llm.associative import AssociativeError
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.finetune import TrainingError, initial_adapter, total_steps
from degaml_kedro.parameters import (
    BASELINES,
    AdaptationSetting,
    AnswerForm,
    BaselinesParameters,
    BaseModelParameters,
    ClosedFormSetting,
    EncoderParameters,
    LoraParameters,
    PromptParameters,
    ScoringParameters,
    TaskParameters,
    WarmupParameters,
    task_scoring,
)
from degaml_kedro.pipelines.checkpoints.nodes import drawn_episodes
from degaml_kedro.pipelines.counting import compute_record, trajectory_compute
from degaml_kedro.pipelines.evaluate.nodes import predictions_frame, timed_answers
from degaml_kedro.policy.indicators import measure_indicators
from degaml_kedro.progress import progress_bar
from degaml_kedro.results.measures import measure
from degaml_kedro.seeds import derive_seed
from degaml_kedro.strategies.generated import question_embedder
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


def union_warmup(warmup: WarmupParameters, baselines: BaselinesParameters) -> WarmupParameters:
    """How union is meta-trained where the pooled warm-up has examples in the prompt.

    Args:
        warmup: the pooled warm-up.
        baselines: how many examples a step of union has.
    """
    own = baselines.union_train.batch_size if baselines.union_train else None
    return warmup.model_copy(update={"context_share": 0.0, "batch_size": own or warmup.batch_size})


def fit_union(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    lora: Mapping[str, Any],
    warmup: Mapping[str, Any],
    baselines: Mapping[str, Any],
    seed: int,
    *material: Any,
) -> Learned:
    """Union's meta-training where the pooled warm-up is something else: as many steps, no examples in any prompt.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: its mode says what the answers are.
        lora: the adapter's shape.
        warmup: how the pooled warm-up is trained.
        baselines: how many examples a step has.
        seed: the run's.
        *material: the distribution that tasks are drawn from, or the splits of those that are listed.
    """
    base = load_base_model(BaseModelParameters.model_validate(model))
    training = union_warmup(
        WarmupParameters.model_validate(warmup), BaselinesParameters.model_validate(baselines)
    )
    own = derive_seed(seed, "union_train", "fit")
    frames = [part for part in material if isinstance(part, pd.DataFrame)]
    draw = (
        union_train.listed([frame_to_splits(frame).train for frame in frames], own)
        if frames
        else drawn_episodes(material[0], own)
    )
    clock, records, adapter = Clock(), [], None
    with progress_bar("union_train", "step") as progress:
        for step in union_train.fit_on_episodes(
            base,
            draw,
            PromptParameters.model_validate(prompt),
            ScoringParameters.model_validate(scoring).answers,
            training,
            initial_adapter(base, LoraParameters.model_validate(lora)),
            own,
        ):
            clock.trained(step.tokens)
            adapter = step.adapter
            records.append({"step": step.step, "loss": step.loss})
            progress(step.step, total_steps(training))
    assert adapter is not None
    return Learned(
        "union_train", adapter, {}, records, clock.compute, training.model_dump(mode="json")
    )


def fit_baseline(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    lora: Mapping[str, Any],
    baselines: Mapping[str, Any],
    task_parameters: Mapping[str, Mapping[str, Any]],
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
        task_parameters: every task's entry in the configuration; all that are trained on are scored in one mode.
        seed: the run's.
        *inputs: the tasks' splits, of which only ``train`` is read, or the distribution that they are drawn from; last,
            where the method starts from the pooled warm-up, its trajectory.
        method: which method.
        tasks: the tasks' names; with a distribution those that have trajectories, which are not read.
        from_pool: whether it starts from the pooled warm-up, whose cost is then a part of its own.
    """
    base = load_base_model(BaseModelParameters.model_validate(model))
    how = task_scoring(scoring, task_parameters[tasks[0]])
    # both orders of MAML see the same episodes
    own = derive_seed(seed, BASELINES[method], "fit")
    parameters = BaselinesParameters.model_validate(baselines)
    start, spent = initial_adapter(base, LoraParameters.model_validate(lora)), Compute()
    if from_pool:
        pool: Trajectory = inputs[-1]
        start, spent = pool.last, trajectory_compute(pool)
    draw, examples = None, list[TaskExamples]()
    if isinstance(inputs[0], Mapping):
        episode = getattr(parameters, BASELINES[method])
        draw = _drawn_tasks(inputs[0], episode.support, episode.query, own)
    else:
        examples = [
            TaskExamples(
                name, _as_read(method, frame_to_splits(frame).train, task_parameters[name])
            )
            for name, frame in zip(tasks, inputs, strict=False)
        ]
    with progress_bar(f"{method} on {len(tasks)} tasks", "step") as progress:
        learned = methods.fit(
            method,
            base,
            examples,
            PromptParameters.model_validate(prompt),
            how.answers,
            parameters,
            start,
            own,
            progress,
            draw,
        )
    logger.info("%s: meta-trained in %.0f s", method, learned.compute.seconds)
    return Learned(
        learned.method,
        learned.adapter,
        learned.extra,
        learned.records,
        learned.compute + spent,
        learned.about,
    )


def _drawn_tasks(
    distribution: Mapping[str, Any], support: int, query: int, seed: int
) -> Callable[[int], TaskExamples]:
    """Tasks of a distribution, by number, each with the examples of one episode."""
    episodes = drawn_episodes(distribution, seed)

    def draw(number: int) -> TaskExamples:
        shown, asked = episodes(number, support, query)
        return TaskExamples("drawn", [*shown, *asked])

    return draw


def search_settings(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    lora: Mapping[str, Any],
    baselines: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    seed: int,
    splits: pd.DataFrame,
    encoder: Mapping[str, Any] | None = None,
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
        splits: the task's splits; ``support`` and ``validation`` are read, or ``test`` where that is empty.
        encoder: what reads questions, if the method is ``sentence_head``.
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
    support = _as_read(method, parts.support, task_parameters)
    # tasks of development have nothing but a test split to ask, and are asked nothing else
    asked = (parts.validation or parts.test)[: parameters.search.examples]
    questions = _as_read(method, asked, task_parameters)
    embed = _embedder(encoder)
    rows = []
    for number, setting in enumerate(methods.settings_of(method, parameters)):
        own = derive_seed(seed, task, BASELINES[method], "search")
        clock, spent = Clock(), Compute()
        accuracy, nll, failure = 0.0, math.inf, None
        try:
            adapted, spent = _adapted(
                method,
                base,
                learned,
                support,
                shape,
                how.answers,
                lora,
                parameters,
                setting,
                own,
                embed,
            )
            predictions = methods.answer(
                method, base, adapted, questions, shape, how, parameters, own
            )
            clock.read(sum(prediction.tokens for prediction in predictions))
            found = measure(predictions_frame(predictions, 0.0), f"{task}, {method}")
            accuracy, nll = found["accuracy"], found["nll"]
            if nll is None:
                # of what was written
                nll = measure_indicators(predictions).nll
            logger.info(
                "%s, %s, %s: accuracy %.2f (n = %d)",
                task,
                method,
                setting.model_dump_json(),
                accuracy,
                found["n"],
            )
        except (AssociativeError, BaselineError, TrainingError) as error:
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
        task_scoring(scoring, task_parameters).answers,
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


def adapt_and_predict(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    lora: Mapping[str, Any],
    baselines: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    seed: int,
    splits: pd.DataFrame,
    chosen: Mapping[str, Any],
    support: pd.DataFrame,
    encoder: Mapping[str, Any] | None = None,
    learned: Learned | None = None,
    *,
    task: str,
    method: str,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Answers to a task's test split by a method that reads the support examples when it answers.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        lora: the adapter's shape.
        baselines: all baselines' parameters.
        task_parameters: the task's entry in the configuration.
        seed: the run's.
        splits: the task's splits; only ``test`` is read.
        chosen: what the search chose.
        support: the support examples.
        encoder: what reads questions, if the method is ``sentence_head``.
        learned: what the method learned, if it learns.
        task: the task's name.
        method: the method's name.

    Returns:
        The answers, and what adapting cost: no token. That every answer reads the examples is a cost of answering, and
        stands in the result's ``tokens``.
    """
    parameters = BaselinesParameters.model_validate(baselines)
    base = load_base_model(BaseModelParameters.model_validate(model))
    how = task_scoring(scoring, task_parameters)
    adapted, spent = _adapted(
        method,
        base,
        learned,
        _as_read(method, frame_to_splits(support).support, task_parameters),
        PromptParameters.model_validate(prompt),
        how.answers,
        lora,
        parameters,
        methods.setting_of(method, chosen["setting"]),
        # all that show examples show the same ones
        derive_seed(seed, task, "icl"),
        _embedder(encoder),
    )
    questions = _as_read(method, frame_to_splits(splits).test, task_parameters)
    frame = _answers(method, base, adapted, questions, prompt, how, parameters, seed, task)
    return frame, compute_record(method, "adaptation", task, spent)


def _as_read(
    method: str, examples: Sequence[Example], task_parameters: Mapping[str, Any]
) -> Sequence[Example]:
    """A task's examples as a method reads them: for ``metaict`` with the task's instruction in front."""
    if method != metaict.METHOD:
        return examples
    return metaict.instructed(examples, TaskParameters.model_validate(task_parameters).description)


def _embedder(encoder: Mapping[str, Any] | None) -> Embed | None:
    """What gives sentence embeddings of questions; it is loaded here, so that no task pays for that."""
    if encoder is None:
        return None
    parameters = EncoderParameters.model_validate(encoder)
    load_prompt_encoder(parameters)
    return question_embedder(parameters)


def _adapted(
    method: str,
    base: BaseModel,
    learned: Learned | None,
    support: Sequence[Example],
    prompt: PromptParameters,
    mode: AnswerForm,
    lora: Mapping[str, Any],
    parameters: BaselinesParameters,
    setting: methods.Setting,
    seed: int,
    embed: Embed | None = None,
) -> tuple[methods.Adapted, Compute]:
    if learned is None and isinstance(setting, AdaptationSetting | ClosedFormSetting):
        learned = Learned(method, initial_adapter(base, LoraParameters.model_validate(lora)))
    clock = Clock()
    adapted = methods.adapt(
        method, base, learned, support, prompt, mode, parameters, setting, seed, embed
    )
    own = adapted.compute if isinstance(adapted, Learned) else Compute()
    return adapted, Compute(own.forward_tokens, own.backward_tokens, clock.compute.seconds)


def _answers(
    method: str,
    base: BaseModel,
    adapted: methods.Adapted,
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


def sum_predictions(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Two methods asked together: the sum of their log-probabilities decides, and the costs add up.

    Where answers are generated, neither says how likely the other's text is: the likelier text is the answer.

    Args:
        first: answers to a task's test split, a row a question.
        second: the other method's answers to the same questions.

    Returns:
        One row a question with the columns of ``PREDICTION_COLUMNS``; ``scores`` are log-probabilities of options,
        up to a constant of the question.
    """
    spent = {name: first[name] + second[name] for name in ("seconds", "tokens")}
    pairs = list(zip(first["scores"], second["scores"], strict=True))
    if not all(np.isfinite(row).all() for pair in pairs for row in pair):
        likelier = pd.Series([max(one) >= max(other) for one, other in pairs], first.index)
        return first.where(likelier, second).astype(first.dtypes).assign(**spent)
    scores = [(log_softmax(one) + log_softmax(other)).tolist() for one, other in pairs]
    predicted = pd.array([int(np.argmax(row)) for row in scores], dtype="Int64")
    # where neither would have said it, nobody spelt it out
    text = second["text"].where(second["predicted"] == predicted, "")
    return first.assign(
        scores=scores,
        predicted=predicted,
        text=first["text"].where(first["predicted"] == predicted, text),
        **spent,
    )
