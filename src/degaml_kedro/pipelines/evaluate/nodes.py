"""Nodes of the evaluate pipeline."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from degaml_kedro.adaptation import task_refinement
from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines.compute import Clock, Compute
from degaml_kedro.common.progress import Progress, progress_bar
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.methods import METHODS
from degaml_kedro.config.schema import (
    GENERATED,
    EpisodeSource,
    PolicyParameters,
    ProjectParameters,
    required,
)
from degaml_kedro.generator.examples import ExampleGenerator, shuffled_answers
from degaml_kedro.generator.generator import Generator
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.io.rollouts import Rollouts
from degaml_kedro.io.trajectory import checksum, tensor_bytes
from degaml_kedro.llm.base_model import first_line, load_base_model
from degaml_kedro.llm.finetune import answer_sequences
from degaml_kedro.llm.scoring import Prediction, score_examples
from degaml_kedro.pipelines.counting import compute_record, count_training
from degaml_kedro.pipelines.fingerprint import digest, stated
from degaml_kedro.pipelines.policy.nodes import (
    load_policy_model,
    prompts_among,
    recorded,
    rollout_rows,
    rollouts_fingerprint,
    task_context,
)
from degaml_kedro.pipelines.tasks.nodes import versions
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.fallback import narrowed, with_fallback
from degaml_kedro.policy.search import Refinement, Row, Tag, executed_rows, most_trials
from degaml_kedro.policy.tabular import RewardModel, TabularProposer
from degaml_kedro.policy.trial import execute
from degaml_kedro.results.measures import PREDICTION_COLUMNS, measure_draws
from degaml_kedro.results.report import results_table
from degaml_kedro.strategies.answering import predict as answer_examples
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.generated import generated_state
from degaml_kedro.strategies.state import AdaptedState, Member
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.splits import frame_to_splits

logger = logging.getLogger(__name__)


def predict(
    parameters: ProjectParameters,
    splits: pd.DataFrame,
    *adapters: Adapter,
    task: str,
    method: str,
) -> pd.DataFrame:
    """Answers to a task's test split, by the base model itself, by an adapter, or by each of several that were drawn.

    Returns:
        One row per example and adapter with the columns of ``PREDICTION_COLUMNS``, and ``draw`` where there are
        several adapters; ``seconds`` is the example's share of the wall time, by its tokens.
    """
    how = parameters.scoring_of(task)
    base = load_base_model(parameters.model)
    examples = frame_to_splits(splits).test
    frames = []
    for draw, adapter in enumerate(adapters or (None,)):
        scoring_once = partial(score_examples, base, examples, parameters.prompt, how, adapter)
        frame = timed_answers(f"{task}, {method}", scoring_once)
        seconds = frame["seconds"].sum()
        logger.info("%s, %s: %d examples scored in %.1f s", task, method, len(examples), seconds)
        if len(adapters) > 1:
            frame.insert(0, "draw", draw)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def timed_answers(title: str, answer: Callable[[Progress], Sequence[Prediction]]) -> pd.DataFrame:
    """Answers as rows, with the time they took, under a progress bar."""
    began = time.perf_counter()
    with progress_bar(title, "example") as progress:
        predictions = answer(progress)
    return predictions_frame(predictions, time.perf_counter() - began)


def predictions_frame(predictions: Sequence[Prediction], seconds: float) -> pd.DataFrame:
    """Predictions as rows with the columns of ``PREDICTION_COLUMNS``.

    Each has its share of the wall time by its tokens, or an equal one where there are none.
    """
    tokens = sum(one.tokens for one in predictions)
    rows = []
    for index, one in enumerate(predictions):
        share = seconds * one.tokens / tokens if tokens else seconds / len(predictions)
        answered = (one.gold, one.predicted, list(one.option_scores), one.text)
        rows.append((index, *answered, share, one.tokens))
    frame = pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS))
    return frame.astype({"predicted": "Int64"})


def generate_adapters(
    parameters: ProjectParameters,
    trained: Generator,
    embeddings: PromptEmbeddings,
    splits: pd.DataFrame,
    *,
    task: str,
    method: str,
    prompts_of: str,
) -> tuple[Adapter | dict[str, Any], ...]:
    """Adapters for a task from prompts alone, its support prompts or its unlabelled ones: no answer is read.

    The support prompts are the last ones of the embeddings, as many as the splits say. For the control the prompts are
    those of another task (``prompts_of``).

    Returns:
        One adapter a draw, and the cost of one of them: no token of the base model.

    Raises:
        GeneratorError: the generator belongs to another base model or encoder.
    """
    base = load_base_model(parameters.model)
    trained.check_base_model(base.name, base.fingerprint)
    trained.to(base.device)
    support = int((splits["split"] == "support").sum())
    rows, draws = _prompts(parameters, embeddings, support), required(parameters.generator).draws
    began = time.perf_counter()
    own = derive_seed(parameters.seed, task, method)
    adapters = [trained.sample(embeddings, own, draw, rows) for draw in range(draws)]
    seconds = time.perf_counter() - began
    made = f"{draws} adapter(s) from {len(rows)} prompts of {prompts_of}"
    logger.info("%s, %s: %s in %.2f s", task, method, made, seconds)
    spent = Compute(seconds=seconds / max(1, draws))
    return (*adapters, compute_record(method, "adaptation", task, spent))


def write_adapter(
    parameters: ProjectParameters,
    trained: ExampleGenerator,
    splits: pd.DataFrame,
    *,
    task: str,
    method: str,
    examples_of: str,
    shuffled: bool = False,
) -> tuple[Adapter, dict[str, Any]]:
    """The adapter that a generator writes from support examples, with their answers.

    For controls they are another task's (``examples_of``), or have each other's answers (``shuffled``).

    Returns:
        The adapter, and its cost: the examples read once.

    Raises:
        GeneratorError: the generator belongs to another base model.
    """
    base = load_base_model(parameters.model)
    support: Sequence[Example] = frame_to_splits(splits).support
    if shuffled:
        support = shuffled_answers(support, derive_seed(parameters.seed, task, "shuffled answers"))
    mode = parameters.scoring_of(task).answers
    clock = Clock()
    sequences = answer_sequences(base, support, parameters.prompt, mode)
    adapter = trained.write(base, sequences)
    clock.read(sum(len(one.ids) for one in sequences))
    spent = clock.compute
    made = f"written from {len(support)} examples of {examples_of}"
    logger.info("%s, %s: %s in %.2f s", task, method, made, spent.seconds)
    return adapter, compute_record(method, "adaptation", task, spent)


def choose_strategies(
    parameters: ProjectParameters,
    resume: Rollouts | None,
    trained: Generator,
    embeddings: PromptEmbeddings,
    support: pd.DataFrame,
    adapter: Adapter | None = None,
    fallback: Mapping[str, Any] | None = None,
    tabular: Mapping[str, Any] | None = None,
    start: Adapter | None = None,
    writer: ExampleGenerator | None = None,
    *,
    task: str,
    method: str,
) -> Iterator[Rollouts]:
    """Propose strategies for a new task and try them on its support examples. Nothing else of the task comes in here.

    The policy proposes (``adapter``), or the logistic regression ``tabular``, or uniform draws. ``fallback`` is the
    best action on the meta-train tasks, where the search needs it; ``start`` is refined in place of a generated
    adapter (``no_generator``, which has no family that generates either); ``writer`` serves the family ``written``.

    Yields:
        What the rollouts' dataset takes.
    """
    given: Mapping[str, Any] = required(parameters.policy).model_dump(exclude_unset=True)
    if families := METHODS[method].families:
        given, fallback = narrowed(given, fallback, families)
    if start is not None:
        # nothing generates here
        given, fallback = narrowed(given, fallback, [*{*given["families"]} - {"written"}])
    # what was learned is data, and checked as such
    policy = PolicyParameters.model_validate(with_fallback(given, fallback))
    refinement = _refinement(parameters, policy, task, trained, embeddings, support, start, writer)
    context = refinement.context
    policy_model = None if adapter is None else load_policy_model(parameters)
    proposer = refinement.proposer(policy_model or context.base, adapter)
    if adapter is None and tabular is not None:
        proposer = TabularProposer(refinement.space, RewardModel(**tabular))
    own = derive_seed(parameters.seed, task, method)
    generator = required(parameters.generator)
    of_training = {"rollouts", "training", "lora", "iterations", "folds", "exploration"}
    chosen = policy.model_dump(mode="json", exclude={*of_training, "oracle_candidates"})
    fingerprint = rollouts_fingerprint(
        parameters,
        task,
        context,
        trained,
        embeddings,
        support,
        policy_model,
        adapter,
        own,
        [
            *(chosen, tabular),
            *([] if start is None else [checksum(tensor_bytes(start.tensors))]),
            *([] if generator.prompts_from == "support" else [generator.prompts_from]),
        ],
    )

    def trials(finished: Sequence[Row]) -> Iterator[Row]:
        return refinement.search(proposer, own, Tag(task, method), finished)

    most = most_trials(policy.search, refinement.space)
    yield from recorded(f"{task}, {method}", trials, most, fingerprint, resume)


def execute_strategies(
    parameters: ProjectParameters,
    trained: Generator,
    embeddings: PromptEmbeddings,
    support: pd.DataFrame,
    rollouts: pd.DataFrame | None = None,
    fallback: Mapping[str, Any] | None = None,
    start: Adapter | None = None,
    writer: ExampleGenerator | None = None,
    *,
    task: str,
    method: str,
) -> tuple[AdaptedState, dict[str, Any]]:
    """Carry out what was chosen among the rollouts or, without a search, what was best on the meta-train tasks.

    Returns:
        The refined adapter, or what was generated (or ``start``) where nothing beat it or carrying it out fails. And
        what adapting cost: the search with all that it computed between its trials, and carrying out what was chosen.
    """
    policy = required(parameters.policy)
    refinement = _refinement(parameters, policy, task, trained, embeddings, support, start, writer)
    rows = [] if rollouts is None else rollout_rows(rollouts)
    for action in fallback["actions"] if fallback is not None else ():
        family = refinement.space.parse(action)[0].family
        seed = derive_seed(parameters.seed, task, method)
        of_task = {"task": task, "seed": seed, "n": len(support)}
        executed = {"round": 1, "rollout": 0, "executed": True}
        rows.append({**of_task, **executed, "action": action, "family": family})
    actions = [str(row["action"]) for row in executed_rows(rows)]
    logger.info("%s, %s: %s", task, method, " then ".join(actions) or "left unrefined")
    began, meter = time.perf_counter(), refinement.context.meter
    state = refinement.execute(rows).state
    seconds = time.perf_counter() - began
    carried_out = compute_record(
        method, "adaptation", task, Compute(meter.forward, meter.backward, seconds)
    )
    parts = [carried_out] if rollouts is None else [rollouts, carried_out]
    return state, count_training(*parts, method=method, stage="adaptation", task=task)


def _refinement(
    parameters: ProjectParameters,
    policy: PolicyParameters,
    task: str,
    trained: Generator,
    embeddings: PromptEmbeddings,
    support: pd.DataFrame,
    start: Adapter | None,
    writer: ExampleGenerator | None,
) -> Refinement:
    """A new task's search and execution, on its support examples alone."""
    prompts = _prompts(parameters, embeddings, len(support))
    context = task_context(parameters, task, trained, embeddings, prompts, writer)
    if start is not None:
        context = replace(context, draw=lambda seed, number: Member(start))
    examples = frame_to_splits(support).support
    return task_refinement(
        context, policy, examples, derive_seed(parameters.seed, task, GENERATED[0])
    )


def _prompts(parameters: ProjectParameters, embeddings: PromptEmbeddings, support: int) -> range:
    """Which of a new task's embedded prompts its batches are drawn from."""
    unlabelled = required(parameters.generator).prompts_from == "train"
    return prompts_among(embeddings, support, unlabelled=unlabelled)


def predict_adapted(
    parameters: ProjectParameters,
    trained: Generator,
    embeddings: PromptEmbeddings,
    splits: pd.DataFrame,
    state: AdaptedState,
    *,
    task: str,
    method: str,
) -> pd.DataFrame:
    """An adapted state's answers to a task's test split: one row per example with ``PREDICTION_COLUMNS``."""
    context = task_context(parameters, task, trained, embeddings, range(len(embeddings)))
    return _answer(context, state, frame_to_splits(splits).test, f"{task}, {method}")


def predict_oracle(
    writer: ExampleGenerator | None,
    parameters: ProjectParameters,
    trained: Generator,
    embeddings: PromptEmbeddings,
    splits: pd.DataFrame,
    *others: pd.DataFrame,
    task: str,
) -> pd.DataFrame:
    """The best answers that any of many strategies gives, chosen by the test split itself: a bound, and no result.

    Candidates are the unrefined adapter, strategies drawn from every family in turn, and what ``others``, the
    predictions of the other methods that refine, chose. ``writer`` serves the family ``written``.

    Returns:
        The best candidate's predictions, with its action in the column ``strategy``.
    """
    policy = required(parameters.policy)
    parts = frame_to_splits(splits)
    examples, known = parts.test, parts.support
    prompts = _prompts(parameters, embeddings, len(known))
    context = task_context(parameters, task, trained, embeddings, prompts, writer)
    # the first adapter that `generalization_only` scores
    start = generated_state(context, derive_seed(parameters.seed, task, GENERATED[0]))
    found = [_answer(context, start, examples, f"{task}, unrefined").assign(strategy="unrefined")]
    found += [o.assign(strategy=f"what method {n} chose") for n, o in enumerate(others, start=1)]
    names = [family.name for family in ActionSpace.of(policy.families).proposed]
    for number in range(policy.oracle_candidates):
        one = names[number % len(names)]
        space = ActionSpace.of({one: policy.families[one]})
        own = derive_seed(parameters.seed, task, "oracle", str(number))
        text = space.draw(np.random.default_rng(own)).text
        try:
            state = execute(context, space, start, known, text, own)
            answers = _answer(context, state, examples, f"{task}, {text}")
            found.append(answers.assign(strategy=text))
        except Exception as error:  # noqa: BLE001 - a strategy may be anybody's code, and must not end the run
            why = f"{type(error).__name__}: {first_line(error)}"
            logger.info("%s, oracle: %s is no candidate (%s)", task, text, why)
    # of equally good ones the first
    return max(found, key=lambda answers: (answers["predicted"] == answers["gold"]).sum())


def _answer(
    context: Context, state: AdaptedState, examples: Sequence[Example], title: str
) -> pd.DataFrame:
    return timed_answers(title, partial(answer_examples, context, state, examples))


def measure_predictions(
    parameters: ProjectParameters,
    splits: pd.DataFrame,
    predictions: pd.DataFrame,
    *,
    task: str,
    method: str,
    pool: str,
    seen: bool | None = None,
) -> dict[str, Any]:
    """The measures of a method's predictions on a task, with what they are of.

    So results of other questions, seeds, profiles or base models can be told apart wherever they are put together: of
    the test split a digest goes into the result. ``pool`` is ``meta_train``, ``left_out`` or ``meta_test``; ``seen``
    says whether what answered was meta-trained on the task, None where nothing was meta-trained.
    """
    test = frame_to_splits(splits).test
    measures = measure_draws(predictions, f"{task}.{method}.predictions")
    # open questions cannot be guessed
    measures["chance"] = float(np.mean([1 / len(e.labels) if e.labels else 0.0 for e in test]))
    told = (measures[key] for key in ("accuracy", "accuracy_low", "accuracy_high", "n"))
    logger.info("%s, %s: accuracy %.2f (%.2f-%.2f), n = %d", task, method, *told)
    entry = parameters.tasks[task]
    return {
        "task": task,
        "group": entry.group,
        # one of many that a distribution gives: statistics draw such tasks again, too
        "drawn": isinstance(entry.source, EpisodeSource),
        "pool": pool,
        "seen": seen,
        "method": method,
        "profile": parameters.profile,
        "model": json.dumps(parameters.model.model_dump(mode="json"), sort_keys=True),
        "seed": parameters.seed,
        "split": digest([_asked(example) for example in test]),
        **measures,
    }


def _asked(example: Example) -> list[Any]:
    return [example.prompt, example.system, list(example.options), example.gold]


def collect_results(
    parameters: ProjectParameters, *results: Mapping[str, Any]
) -> tuple[pd.DataFrame, dict[str, Any], str]:
    """All results of :func:`measure_predictions` as a data frame, as JSON with the run's settings, and as Markdown.

    The Markdown table has a column a method.
    """
    frame = pd.DataFrame([dict(result) for result in results])
    drawn = list(dict.fromkeys(frame.loc[frame["drawn"], "group"]))
    record = {
        "profile": parameters.profile,
        "model": stated(parameters.model.source),
        "seed": parameters.seed,
        "versions": versions(),
        "results": [dict(result) for result in results],
    }
    return frame, record, results_table(frame, parameters.methods, drawn)
