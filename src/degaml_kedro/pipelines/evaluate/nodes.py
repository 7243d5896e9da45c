"""Nodes of the evaluate pipeline."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from degaml_kedro import __version__
from degaml_kedro.adaptation import Refinement
from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines.compute import Compute
from degaml_kedro.generator.generator import Generator
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.io.rollouts import RolloutsChunk, RolloutsState
from degaml_kedro.io.trajectory import checksum, tensor_bytes
from degaml_kedro.llm.base_model import describe, first_line, load_base_model
from degaml_kedro.llm.scoring import Prediction, score_examples
from degaml_kedro.parameters import (
    GENERATED,
    PAPER_FAMILIES,
    BaseModelParameters,
    EpisodeSource,
    GeneratorParameters,
    PolicyParameters,
    PromptParameters,
    TaskParameters,
    task_scoring,
)
from degaml_kedro.pipelines.counting import compute_record, count_training
from degaml_kedro.pipelines.fingerprint import digest
from degaml_kedro.pipelines.policy.nodes import (
    policy_model,
    recorded,
    rollout_rows,
    rollouts_fingerprint,
    task_workbench,
)
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.fallback import narrowed, with_fallback
from degaml_kedro.policy.search import Row, Tag, executed_rows, most_trials
from degaml_kedro.policy.tabular import RewardModel, TabularProposer
from degaml_kedro.policy.trial import execute
from degaml_kedro.progress import Progress, progress_bar
from degaml_kedro.results.measures import PREDICTION_COLUMNS, measure_draws
from degaml_kedro.results.table import results_table
from degaml_kedro.seeds import derive_seed
from degaml_kedro.strategies.answering import predict as answer_examples
from degaml_kedro.strategies.generated import generated_state
from degaml_kedro.strategies.state import AdaptedState
from degaml_kedro.strategies.workbench import Workbench
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.splits import frame_to_splits

logger = logging.getLogger(__name__)

_PACKAGES = ("kedro", "torch", "transformers", "peft")


def predict(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    splits: pd.DataFrame,
    *adapters: Adapter,
    task: str,
    method: str,
) -> pd.DataFrame:
    """Answers to a task's test split.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        task_parameters: the task's entry in the configuration.
        splits: the task's splits; only ``test`` is read.
        *adapters: the method's weights: none for the base model itself, several for a method that draws them.
        task: the task's name.
        method: the method's name.

    Returns:
        One row per example and adapter with the columns of ``PREDICTION_COLUMNS``, and ``draw`` where there are
        several adapters; ``seconds`` is the example's share of the wall time, by its tokens.
    """
    how = task_scoring(scoring, task_parameters)
    base = load_base_model(BaseModelParameters.model_validate(model))
    examples = frame_to_splits(splits).test
    frames = []
    for draw, adapter in enumerate(adapters or (None,)):
        scoring_once = partial(
            score_examples, base, examples, PromptParameters.model_validate(prompt), how, adapter
        )
        frame = timed_answers(f"{task}, {method}", scoring_once)
        seconds = frame["seconds"].sum()
        logger.info("%s, %s: %d examples scored in %.1f s", task, method, len(examples), seconds)
        if len(adapters) > 1:
            frame.insert(0, "draw", draw)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def timed_answers(title: str, answer: Callable[[Progress], Sequence[Prediction]]) -> pd.DataFrame:
    """Answers as rows, with the time they took, under a progress bar.

    Args:
        title: of the bar.
        answer: gives the predictions, and calls what it is given with (examples done, examples in all).
    """
    began = time.perf_counter()
    with progress_bar(title, "example") as progress:
        predictions = answer(progress)
    return predictions_frame(predictions, time.perf_counter() - began)


def predictions_frame(predictions: Sequence[Prediction], seconds: float) -> pd.DataFrame:
    """Predictions as rows with the columns of ``PREDICTION_COLUMNS``.

    Args:
        predictions: in the order of the questions.
        seconds: wall time of all; each has its share by its tokens, or an equal one where there are none.
    """
    tokens = sum(prediction.tokens for prediction in predictions)
    rows = [
        (
            index,
            prediction.gold,
            prediction.predicted,
            list(prediction.option_scores),
            prediction.text,
            seconds * prediction.tokens / tokens if tokens else seconds / len(predictions),
            prediction.tokens,
        )
        for index, prediction in enumerate(predictions)
    ]
    frame = pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS))
    return frame.astype({"predicted": "Int64"})


def generate_adapters(
    model: Mapping[str, Any],
    generator: Mapping[str, Any],
    seed: int,
    trained: Generator,
    embeddings: PromptEmbeddings,
    splits: pd.DataFrame,
    *,
    task: str,
    method: str,
    prompts_of: str,
) -> tuple[Adapter | dict[str, Any], ...]:
    """Adapters for a task from its support prompts alone: no answer is read.

    Args:
        model: which base model, to refuse a generator of another one.
        generator: how many adapters are drawn.
        seed: the run's.
        trained: the generator.
        embeddings: prompt states; the support prompts are the last ones.
        splits: the splits of the same task, for the number of support prompts.
        task: the task's name.
        method: the method's name.
        prompts_of: whose prompts these are: the task's own, or another's for the control.

    Returns:
        One adapter a draw, and what one of them cost: no token of the base model.

    Raises:
        GeneratorError: the generator belongs to another base model or encoder.
    """
    base = load_base_model(BaseModelParameters.model_validate(model))
    trained.check_base_model(base.name, base.fingerprint)
    support = int((splits["split"] == "support").sum())
    rows = range(len(embeddings) - support, len(embeddings))
    draws = GeneratorParameters.model_validate(generator).draws
    began = time.perf_counter()
    own = derive_seed(seed, task, method)
    adapters = [trained.sample(embeddings, own, draw, rows) for draw in range(draws)]
    seconds = time.perf_counter() - began
    logger.info(
        "%s, %s: %d adapter(s) from %d prompts of %s in %.2f s",
        task,
        method,
        draws,
        support,
        prompts_of,
        seconds,
    )
    spent = Compute(seconds=seconds / max(1, draws))
    return (*adapters, compute_record(method, "adaptation", task, spent))


def choose_strategies(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    generator: Mapping[str, Any],
    policy: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    seed: int,
    resume: RolloutsState | None,
    trained: Generator,
    embeddings: PromptEmbeddings,
    support: pd.DataFrame,
    adapter: Adapter | None = None,
    fallback: Mapping[str, Any] | None = None,
    tabular: Mapping[str, Any] | None = None,
    start: Adapter | None = None,
    *,
    task: str,
    method: str,
) -> Iterator[RolloutsChunk]:
    """Propose strategies for a new task and try them on its support examples. Nothing else of the task comes in here.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        generator: the generator's parameters.
        policy: the policy's.
        task_parameters: the task's entry in the configuration.
        seed: the run's.
        resume: what an earlier run left.
        trained: the generator.
        embeddings: prompt states.
        support: the support examples.
        adapter: the policy; None for uniform draws, or those of ``tabular``.
        fallback: what was best on the meta-train tasks; None where the search needs none.
        tabular: the logistic regression of ``tabular_policy``.
        start: what is refined in place of a generated adapter (``no_generator``).
        task: the task's name.
        method: the method's name.

    Yields:
        What the rollouts' dataset takes.
    """
    if method == "paper_families":
        policy, fallback = narrowed(policy, fallback, PAPER_FAMILIES)
    parameters = PolicyParameters.model_validate(with_fallback(policy, fallback))
    bench = task_workbench(
        model,
        prompt,
        scoring,
        generator,
        task_parameters,
        trained,
        embeddings,
        len(support),
        True,
        start,
    )
    refinement = _refinement(bench, parameters, support, seed, task)
    pilot = None if adapter is None else policy_model(model, parameters)
    proposer = refinement.proposer(pilot or bench.base, adapter)
    if adapter is None and tabular is not None:
        proposer = TabularProposer(refinement.space, RewardModel.from_json(tabular))
    own = derive_seed(seed, task, method)
    chosen = parameters.model_dump(
        mode="json",
        exclude={
            "rollouts",
            "training",
            "lora",
            "oracle_candidates",
            "iterations",
            "folds",
            "exploration",
        },
    )
    fingerprint = rollouts_fingerprint(
        bench.base,
        trained,
        embeddings,
        support,
        pilot,
        adapter,
        own,
        [
            *(chosen, dict(prompt), dict(scoring), dict(task_parameters), tabular),
            *([] if start is None else [checksum(tensor_bytes(start.tensors))]),
        ],
    )

    def trials(finished: Sequence[Row]) -> Iterator[Row]:
        return refinement.search(proposer, own, Tag(task, method), finished)

    most = most_trials(parameters.search, refinement.space)
    yield from recorded(f"{task}, {method}", trials, most, fingerprint, resume)


def execute_fallback(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    generator: Mapping[str, Any],
    policy: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    seed: int,
    trained: Generator,
    embeddings: PromptEmbeddings,
    support: pd.DataFrame,
    fallback: Mapping[str, Any],
    *,
    task: str,
    method: str,
) -> tuple[AdaptedState, dict[str, Any]]:
    """Carry out what was best on the meta-train tasks, without a search.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        generator: the generator's parameters.
        policy: the policy's.
        task_parameters: the task's entry in the configuration.
        seed: the run's.
        trained: the generator.
        embeddings: prompt states.
        support: the support examples.
        fallback: of the node ``learn_fallback``.
        task: the task's name.
        method: the method's name.

    Returns:
        The refined adapter, or the generated one as it is where nothing gained anything on the meta-train tasks or
        carrying it out fails; and what it cost.
    """
    parameters = PolicyParameters.model_validate(policy)
    space = ActionSpace.of(parameters.families)
    rows = [
        {
            "task": task,
            "action": action,
            "family": space.parse(action)[0].family,
            "seed": derive_seed(seed, task, method),
            "round": 1,
            "rollout": 0,
            "n": len(support),
            "executed": True,
        }
        for action in fallback["actions"]
    ]
    bench = task_workbench(
        model, prompt, scoring, generator, task_parameters, trained, embeddings, len(support), True
    )
    refinement = _refinement(bench, parameters, support, seed, task)
    state, spent = _carried_out(refinement, rows, f"{task}, {method}")
    return state, count_training(spent, method=method, stage="adaptation", task=task)


def execute_strategies(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    generator: Mapping[str, Any],
    policy: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    seed: int,
    trained: Generator,
    embeddings: PromptEmbeddings,
    support: pd.DataFrame,
    rollouts: pd.DataFrame,
    start: Adapter | None = None,
    *,
    task: str,
    method: str,
) -> tuple[AdaptedState, dict[str, Any]]:
    """Carry out what was chosen; the generated adapter as it is where nothing beat it.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        generator: the generator's parameters.
        policy: the policy's.
        task_parameters: the task's entry in the configuration.
        seed: the run's.
        trained: the generator.
        embeddings: prompt states.
        support: the support examples.
        rollouts: what was tried.
        start: what is refined in place of a generated adapter.
        task: the task's name.
        method: the method's name.

    Returns:
        The refined adapter, and what adapting cost: the search with all that it computed between its trials, and
        carrying out what was chosen once more.
    """
    bench = task_workbench(
        model,
        prompt,
        scoring,
        generator,
        task_parameters,
        trained,
        embeddings,
        len(support),
        True,
        start,
    )
    parameters = PolicyParameters.model_validate(policy)
    refinement = _refinement(bench, parameters, support, seed, task)
    state, spent = _carried_out(refinement, rollout_rows(rollouts), f"{task}, {method}")
    return state, count_training(rollouts, spent, method=method, stage="adaptation", task=task)


def _refinement(
    bench: Workbench, policy: PolicyParameters, support: pd.DataFrame, seed: int, task: str
) -> Refinement:
    examples = frame_to_splits(support).support
    space = ActionSpace.of(policy.families)
    return Refinement(bench, space, policy, _unrefined(bench, seed, task), examples)


def _carried_out(
    refinement: Refinement, rows: Sequence[Row], title: str
) -> tuple[AdaptedState, dict[str, Any]]:
    """The state that the rows come to, and what carrying them out cost."""
    actions = [str(row["action"]) for row in executed_rows(rows)]
    logger.info("%s: %s", title, " then ".join(actions) or "left unrefined")
    began, meter = time.perf_counter(), refinement.bench.meter
    state = refinement.execute(rows).state
    return state, {
        "forward_tokens": meter.forward,
        "backward_tokens": meter.backward,
        "seconds": time.perf_counter() - began,
    }


def predict_adapted(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    generator: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    trained: Generator,
    embeddings: PromptEmbeddings,
    splits: pd.DataFrame,
    state: AdaptedState,
    *,
    task: str,
    method: str,
) -> pd.DataFrame:
    """An adapted state's answers to a task's test split.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        generator: the generator's parameters.
        task_parameters: the task's entry in the configuration.
        trained: the generator, for its encoder.
        embeddings: prompt states.
        splits: the task's splits; only ``test`` is read.
        state: who answers.
        task: the task's name.
        method: the method's name.

    Returns:
        One row per example with the columns of ``PREDICTION_COLUMNS``.
    """
    bench = task_workbench(
        model, prompt, scoring, generator, task_parameters, trained, embeddings, 0, False
    )
    return _answer(bench, state, frame_to_splits(splits).test, f"{task}, {method}")


def predict_oracle(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    generator: Mapping[str, Any],
    policy: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    seed: int,
    trained: Generator,
    embeddings: PromptEmbeddings,
    splits: pd.DataFrame,
    *others: pd.DataFrame,
    task: str,
) -> pd.DataFrame:
    """The best answers that any of many strategies gives, chosen by the test split itself: a bound, and no result.

    Candidates are the unrefined adapter, strategies drawn from every family in turn, and what other methods chose.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        generator: the generator's parameters.
        policy: the policy's.
        task_parameters: the task's entry in the configuration.
        seed: the run's.
        trained: the generator.
        embeddings: prompt states.
        splits: the task's splits.
        *others: predictions of the other methods that refine.
        task: the task's name.

    Returns:
        The best candidate's predictions, with its action in the column ``strategy``.
    """
    parameters = PolicyParameters.model_validate(policy)
    parts = frame_to_splits(splits)
    examples, known = parts.test, parts.support
    bench = task_workbench(
        model, prompt, scoring, generator, task_parameters, trained, embeddings, len(known), True
    )
    start = _unrefined(bench, seed, task)
    best = _answer(bench, start, examples, f"{task}, unrefined").assign(strategy="unrefined")
    for number, other in enumerate(others):
        best = _better(best, other.assign(strategy=f"what method {number + 1} chose"))
    names = [family.name for family in ActionSpace.of(parameters.families).proposed]
    for number in range(parameters.oracle_candidates):
        one = names[number % len(names)]
        space = ActionSpace.of({one: parameters.families[one]})
        own = derive_seed(seed, task, "oracle", str(number))
        text = space.draw(np.random.default_rng(own)).text
        try:
            state = execute(bench, space, start, known, text, own)
            answers = _answer(bench, state, examples, f"{task}, {text}")
            best = _better(best, answers.assign(strategy=text))
        except Exception as error:  # noqa: BLE001 - a strategy may be anybody's code, and must not end the run
            logger.info(
                "%s, oracle: %s is no candidate (%s: %s)",
                task,
                text,
                type(error).__name__,
                first_line(error),
            )
    return best


def _better(best: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    right = [(frame["predicted"] == frame["gold"]).fillna(False).sum() for frame in (best, other)]
    return other if right[1] > right[0] else best


def _unrefined(bench: Workbench, seed: int, task: str) -> AdaptedState:
    """The first adapter that ``generalization_only`` scores."""
    return generated_state(bench, derive_seed(seed, task, GENERATED[0]))


def _answer(
    bench: Workbench, state: AdaptedState, examples: Sequence[Example], title: str
) -> pd.DataFrame:
    return timed_answers(title, partial(answer_examples, bench, state, examples))


def measure_predictions(
    task_parameters: Mapping[str, Any],
    profile: str,
    model: Mapping[str, Any],
    seed: int,
    splits: pd.DataFrame,
    predictions: pd.DataFrame,
    *,
    task: str,
    method: str,
    pool: str,
) -> dict[str, Any]:
    """What the predictions amount to, with what they are of.

    So results of other questions, seeds, profiles or base models can be told apart wherever they are put together.

    Args:
        task_parameters: the task's entry in the configuration.
        profile: the configuration's name.
        model: which base model.
        seed: the run's.
        splits: the task's splits; of ``test`` a digest goes into the result.
        predictions: what :func:`predict` returned.
        task: the task's name.
        method: the method's name.
        pool: ``meta_train``, ``left_out`` or ``meta_test``.
    """
    test = frame_to_splits(splits).test
    measures = measure_draws(predictions, f"{task}.{method}.predictions")
    # open questions cannot be guessed
    measures["chance"] = float(np.mean([1 / len(e.labels) if e.labels else 0.0 for e in test]))
    logger.info(
        "%s, %s: accuracy %.2f (%.2f-%.2f), n = %d",
        task,
        method,
        measures["accuracy"],
        measures["accuracy_low"],
        measures["accuracy_high"],
        measures["n"],
    )
    parameters = TaskParameters.model_validate(task_parameters)
    return {
        "task": task,
        "group": parameters.group,
        # one of many that a distribution gives: statistics draw such tasks again, too
        "drawn": isinstance(parameters.source, EpisodeSource),
        "pool": pool,
        "method": method,
        "profile": profile,
        "model": describe(BaseModelParameters.model_validate(model)),
        "seed": seed,
        "split": digest([_asked(example) for example in test]),
        **measures,
    }


def _asked(example: Example) -> list[Any]:
    return [example.prompt, example.system, list(example.options), example.gold]


def collect_results(
    profile: str,
    model: Mapping[str, Any],
    seed: int,
    methods: Sequence[str],
    *results: Mapping[str, Any],
) -> tuple[pd.DataFrame, dict[str, Any], str]:
    """All results as a table for programs, as JSON with what they were made with, and as a table to read.

    Args:
        profile: the configuration's name.
        model: which base model.
        seed: the run's.
        methods: the readable table's columns.
        *results: what :func:`measure_predictions` returned.
    """
    frame = pd.DataFrame([dict(result) for result in results])
    drawn = list(dict.fromkeys(frame.loc[frame["drawn"], "group"]))
    record = {
        "profile": profile,
        "model": dict(model["source"]),
        "seed": seed,
        "versions": {
            "degaml-kedro": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
        "results": [dict(result) for result in results],
    }
    return frame, record, results_table(frame, methods, drawn)
