"""Nodes of the baselines pipeline."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from degaml_kedro.baselines import metaict, methods, sentence_head, union_train
from degaml_kedro.baselines.compute import Clock, Compute
from degaml_kedro.baselines.learned import BaselineError, Learned, TaskExamples
from degaml_kedro.baselines.sentence_head import Embed
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.io.trajectory import Trajectory
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.finetune import TrainingError, initial_adapter, total_steps
from degaml_kedro.parameters import (
    BASELINES,
    AdaptationSetting,
    BaselinesParameters,
    ClosedFormSetting,
    FileDistribution,
    ProjectParameters,
    SuiteDistribution,
    WarmupParameters,
    required,
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
    """Union's meta-training is the pooled warm-up: the same tasks, the same loss, nothing else."""
    records = [{"step": record.step, "loss": record.loss} for record in trajectory.records]
    spent = trajectory_compute(trajectory)
    return Learned("union_train", trajectory.last, {}, records, spent, dict(trajectory.about))


def union_warmup(warmup: WarmupParameters, baselines: BaselinesParameters) -> WarmupParameters:
    """Union's training where the pooled warm-up has examples in the prompt: without them, in batches of its own."""
    own = baselines.union_train.batch_size if baselines.union_train else None
    return warmup.model_copy(update={"context_share": 0.0, "batch_size": own or warmup.batch_size})


def fit_union(parameters: ProjectParameters, *splits: pd.DataFrame) -> Learned:
    """Union's meta-training where the pooled warm-up is something else: as many steps, no examples in any prompt.

    It draws from the tasks' train splits, or from the distribution of meta-train tasks where there are no splits.
    """
    base = load_base_model(parameters.model)
    training = union_warmup(parameters.warmup, required(parameters.baselines))
    own = derive_seed(parameters.seed, "union_train", "fit")
    draw = (
        union_train.listed([frame_to_splits(frame).train for frame in splits], own)
        if splits
        else drawn_episodes(_distribution(parameters), own)
    )
    clock, records, adapter = Clock(), [], None
    with progress_bar("union_train", "step") as progress:
        for step in union_train.fit_on_episodes(
            base,
            draw,
            parameters.prompt,
            parameters.scoring.answers,
            training,
            initial_adapter(base, parameters.lora),
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
    pool: Trajectory | None,
    parameters: ProjectParameters,
    *splits: pd.DataFrame,
    method: str,
    tasks: Sequence[str],
) -> Learned:
    """Meta-train a method by episodes.

    Args:
        pool: the pooled warm-up, whose cost is then a part of the method's; None where it does not start from it.
        parameters: the project's; all tasks that are trained on are scored in one mode.
        *splits: the tasks' splits, of which only ``train`` is read; none where tasks are drawn from a distribution.
        method: which method.
        tasks: the tasks' names; with a distribution those that have trajectories, which are not read.
    """
    base = load_base_model(parameters.model)
    # both orders of MAML see the same episodes
    own = derive_seed(parameters.seed, BASELINES[method], "fit")
    baselines = required(parameters.baselines)
    if pool is None:
        start, spent = initial_adapter(base, parameters.lora), Compute()
    else:
        start, spent = pool.last, trajectory_compute(pool)
    draw, examples = None, list[TaskExamples]()
    if splits:
        examples = [
            TaskExamples(name, _as_read(method, frame_to_splits(frame).train, parameters, name))
            for name, frame in zip(tasks, splits, strict=True)
        ]
    else:
        episode = getattr(baselines, BASELINES[method])
        draw = _drawn_tasks(_distribution(parameters), episode.support, episode.query, own)
    with progress_bar(f"{method} on {len(tasks)} tasks", "step") as progress:
        learned = methods.fit(
            method,
            base,
            examples,
            parameters.prompt,
            parameters.scoring_of(tasks[0]).answers,
            baselines,
            start,
            own,
            progress,
            draw,
        )
    logger.info("%s: meta-trained in %.0f s", method, learned.compute.seconds)
    return replace(learned, compute=learned.compute + spent)


def _distribution(parameters: ProjectParameters) -> SuiteDistribution | FileDistribution:
    """The distribution of the meta-train tasks."""
    assert parameters.meta_train_distribution is not None
    return parameters.distributions[parameters.meta_train_distribution]


def _drawn_tasks(
    distribution: SuiteDistribution | FileDistribution, support: int, query: int, seed: int
) -> Callable[[int], TaskExamples]:
    """Tasks of a distribution, by number, each with the examples of one episode."""
    episodes = drawn_episodes(distribution, seed)

    def draw(number: int) -> TaskExamples:
        shown, asked = episodes(number, support, query)
        return TaskExamples("drawn", [*shown, *asked])

    return draw


def search_settings(
    parameters: ProjectParameters,
    splits: pd.DataFrame,
    learned: Learned | None = None,
    *,
    task: str,
    method: str,
) -> pd.DataFrame:
    """Try every setting of a method on a meta-train task that its weights have not seen.

    Of the splits ``support`` and ``validation`` are read, or ``test`` where the latter is empty.

    Returns:
        One row a setting: its number, accuracy and likelihood on the validation examples, and what it cost.
    """
    baselines = required(parameters.baselines)
    how = parameters.scoring_of(task)
    parts = frame_to_splits(splits)
    # tasks of development have nothing but a test split to ask, and are asked nothing else
    asked = (parts.validation or parts.test)[: baselines.search.examples]
    questions = _as_read(method, asked, parameters, task)
    base = load_base_model(parameters.model)
    embed = _embedder(method, parameters)
    rows = []
    for number, setting in enumerate(methods.settings_of(method, baselines)):
        own = derive_seed(parameters.seed, task, BASELINES[method], "search")
        clock, spent = Clock(), Compute()
        accuracy, nll, failure = 0.0, math.inf, None
        try:
            adapted, spent = _adapted(
                method, base, learned, parts.support, parameters, task, setting, own, embed
            )
            predictions = methods.answer(
                method, base, adapted, questions, parameters.prompt, how, baselines, own
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
                "seed": parameters.seed,
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
    learned: Learned | None, parameters: ProjectParameters, *searches: pd.DataFrame, method: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The setting with the best mean accuracy over the search's tasks; the likelier answers decide between equal ones.

    What the method learned for the search is a part of its cost; ``learned`` is None where it learned nothing for it.

    Returns:
        The choice with everything that was tried, and what the search cost.
    """
    tried = pd.concat(searches, ignore_index=True)
    settings = methods.settings_of(method, required(parameters.baselines))
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
    fix = (
        f"delete the files *.{method}.search.parquet and search.{method}.learned of the search (05_model_input and "
        f"06_models in the folder `search` of globals.yml), and run again"
    )
    for task, rows in tried.groupby("task"):
        found = dict(zip(rows["number"].astype(int), rows["setting"], strict=True))
        if found != asked:
            raise BaselineError(
                f"the search for {method} on {task} tried {', '.join(found.values())}, and "
                f"baselines.{BASELINES[method]}.settings asks for {', '.join(asked.values())}; {fix}"
            )
    seeds = sorted(set(tried["seed"])) if "seed" in tried else []
    if len(seeds) > 1:
        raise BaselineError(
            f"the search for {method} was begun with seed {seeds[0]} and goes on with {seeds[1]}; {fix}"
        )


def adapt_baseline(
    parameters: ProjectParameters,
    chosen: Mapping[str, Any],
    support: pd.DataFrame,
    learned: Learned | None = None,
    *,
    task: str,
    method: str,
) -> tuple[Learned, dict[str, Any]]:
    """Adapt a method to a task, as the search chose. Nothing but the support examples of the task comes in here.

    Returns:
        The weights, and what they cost.
    """
    adapted, spent = _adapted(
        method,
        load_base_model(parameters.model),
        learned,
        frame_to_splits(support).support,
        parameters,
        task,
        methods.setting_of(method, chosen["setting"]),
        derive_seed(parameters.seed, task, BASELINES[method]),
    )
    assert isinstance(adapted, Learned)
    logger.info("%s, %s: adapted in %.1f s", task, method, spent.seconds)
    return adapted, compute_record(method, "adaptation", task, spent)


def predict_baseline(
    parameters: ProjectParameters,
    splits: pd.DataFrame,
    adapted: Learned,
    *,
    task: str,
    method: str,
) -> pd.DataFrame:
    """A baseline's answers to a task's test split: one row per example with the columns of ``PREDICTION_COLUMNS``."""
    seed = derive_seed(parameters.seed, task, BASELINES[method], "answers")
    return _answers(method, adapted, frame_to_splits(splits).test, parameters, seed, task)


def adapt_and_predict(
    parameters: ProjectParameters,
    splits: pd.DataFrame,
    chosen: Mapping[str, Any],
    support: pd.DataFrame,
    learned: Learned | None = None,
    *,
    task: str,
    method: str,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Answers to a task's test split by a method that reads the support examples when it answers.

    Returns:
        The answers, and what adapting cost: no token. That every answer reads the examples is a cost of answering, and
        stands in the result's ``tokens``.
    """
    adapted, spent = _adapted(
        method,
        load_base_model(parameters.model),
        learned,
        frame_to_splits(support).support,
        parameters,
        task,
        methods.setting_of(method, chosen["setting"]),
        # all that show examples show the same ones
        derive_seed(parameters.seed, task, "icl"),
        _embedder(method, parameters),
    )
    questions = _as_read(method, frame_to_splits(splits).test, parameters, task)
    frame = _answers(method, adapted, questions, parameters, parameters.seed, task)
    return frame, compute_record(method, "adaptation", task, spent)


def _as_read(
    method: str, examples: Sequence[Example], parameters: ProjectParameters, task: str
) -> Sequence[Example]:
    """A task's examples as a method reads them: for ``metaict`` with the task's instruction in front."""
    if method != metaict.METHOD:
        return examples
    return metaict.instructed(examples, parameters.tasks[task].description)


def _embedder(method: str, parameters: ProjectParameters) -> Embed | None:
    """Sentence embeddings of questions for ``sentence_head``; the encoder is loaded here: no task pays for that."""
    if method != sentence_head.METHOD:
        return None
    encoder = required(parameters.generator).encoder
    load_prompt_encoder(encoder)
    return question_embedder(encoder)


def _adapted(
    method: str,
    base: BaseModel,
    learned: Learned | None,
    support: Sequence[Example],
    parameters: ProjectParameters,
    task: str,
    setting: methods.Setting,
    seed: int,
    embed: Embed | None = None,
) -> tuple[methods.Adapted, Compute]:
    """A method on a task, and its cost; the wall time is of adapting alone."""
    if learned is None and isinstance(setting, AdaptationSetting | ClosedFormSetting):
        learned = Learned(method, initial_adapter(base, parameters.lora))
    shown, mode = _as_read(method, support, parameters, task), parameters.scoring_of(task).answers
    baselines = required(parameters.baselines)
    clock = Clock()
    adapted = methods.adapt(
        method, base, learned, shown, parameters.prompt, mode, baselines, setting, seed, embed
    )
    own = adapted.compute if isinstance(adapted, Learned) else Compute()
    return adapted, Compute(own.forward_tokens, own.backward_tokens, clock.compute.seconds)


def _answers(
    method: str,
    adapted: methods.Adapted,
    examples: Sequence[Example],
    parameters: ProjectParameters,
    seed: int,
    task: str,
) -> pd.DataFrame:
    answer = partial(
        methods.answer,
        method,
        load_base_model(parameters.model),
        adapted,
        examples,
        parameters.prompt,
        parameters.scoring_of(task),
        required(parameters.baselines),
        seed,
    )
    return timed_answers(f"{task}, {method}", answer)


def sum_predictions(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Two methods asked together: the sum of their log-probabilities decides, and the costs add up.

    Where answers are generated, neither says how likely the other's text is: the likelier text is the answer.

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
