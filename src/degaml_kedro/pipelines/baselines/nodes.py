"""Nodes of the baselines pipeline."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel
from scipy.special import log_softmax

from degaml_kedro.baselines.baseline import Setup, answer, baseline
from degaml_kedro.baselines.compute import Clock, Compute
from degaml_kedro.baselines.learned import BaselineError, Learned, TaskExamples
from degaml_kedro.common.progress import progress_bar
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.methods import METHODS
from degaml_kedro.config.schema import BASELINES, READ_SUPPORT, ProjectParameters, required
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.io.trajectory import Trajectory
from degaml_kedro.llm.base_model import load_base_model
from degaml_kedro.llm.finetune import TrainingError, initial_adapter
from degaml_kedro.pipelines.checkpoints.nodes import drawn_episodes
from degaml_kedro.pipelines.counting import compute_record, count_training, trajectory_compute
from degaml_kedro.pipelines.evaluate.nodes import predictions_frame, timed_answers
from degaml_kedro.policy.indicators import measure_indicators
from degaml_kedro.results.measures import measure
from degaml_kedro.strategies.generated import question_embedder
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.splits import frame_to_splits

logger = logging.getLogger(__name__)


def take_warmup(trajectory: Trajectory, *, method: str, tasks: Sequence[str]) -> Learned:
    """The pooled warm-up as a method's meta-training: the same tasks, the same loss, nothing else."""
    records = [{"step": record.step, "loss": record.loss} for record in trajectory.records]
    spent, about = trajectory_compute(trajectory), {**trajectory.about, "tasks": sorted(tasks)}
    return Learned(method, trajectory.last, {}, records, spent, about)


def fit_baseline(
    pool: Trajectory | None,
    parameters: ProjectParameters,
    *splits: pd.DataFrame,
    method: str,
    tasks: Sequence[str],
) -> Learned:
    """Meta-train a method, on tasks that are scored in one mode.

    Args:
        pool: the pooled warm-up, whose cost is then a part of the method's; None where it does not start from it.
        parameters: the project's.
        *splits: the tasks' splits, of which only ``train`` is read; none where tasks are drawn from a distribution.
        method: which method.
        tasks: the tasks' names; with a distribution those that have trajectories, which are not read.
    """
    setup = _setup(parameters, method, tasks[0])
    # both orders of MAML see the same episodes
    own = derive_seed(parameters.seed, BASELINES[method], "fit")
    draw = None
    if not splits:
        drawn_from = parameters.meta_train_distribution
        assert drawn_from is not None
        draw = drawn_episodes(parameters.distributions[drawn_from], own)
    examples = [
        TaskExamples(name, frame_to_splits(frame).train, parameters.tasks[name].description)
        for name, frame in zip(tasks if splits else (), splits, strict=True)
    ]
    spent = Compute()
    if pool is not None:
        setup, spent = replace(setup, start=pool.last), trajectory_compute(pool)
    with progress_bar(f"{method} on {len(tasks)} tasks", "step") as progress:
        learned: Learned = baseline(method).fit(setup, examples, draw, own, progress)
    logger.info("%s: meta-trained in %.0f s", method, learned.compute.seconds)
    about = {**learned.about, "tasks": sorted(one.name for one in examples)}
    return replace(learned, compute=learned.compute + spent, about=about)


def _setup(parameters: ProjectParameters, method: str, task: str) -> Setup:
    base = load_base_model(parameters.model)
    embed = None
    if not METHODS[method].asks_model:
        encoder = required(parameters.generator).encoder
        # loaded here: no task pays for that
        load_prompt_encoder(encoder)
        embed = question_embedder(encoder)
    return Setup(
        method,
        base,
        parameters.prompt,
        parameters.scoring_of(task),
        _entry(parameters, method),
        initial_adapter(base, parameters.lora),
        parameters.tasks[task].description,
        embed,
        parameters.warmup,
    )


def _entry(parameters: ProjectParameters, method: str) -> Any:
    """What the key `baselines` says of a method."""
    return getattr(required(parameters.baselines), BASELINES[method])


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
    parts = frame_to_splits(splits)
    # tasks of development have nothing but a test split to ask, and are asked nothing else
    most = required(parameters.baselines).search.examples
    questions = (parts.validation or parts.test)[:most]
    setup = _setup(parameters, method, task)
    own = derive_seed(parameters.seed, task, BASELINES[method], "search")
    rows = []
    for number, setting in enumerate(setup.entry.settings):
        clock, spent = Clock(), Compute()
        accuracy, nll, failure = 0.0, math.inf, None
        try:
            adapted, spent = _adapted(setup, learned, parts.support, setting, own)
            predictions = answer(setup, adapted, questions, own)
            clock.read(sum(prediction.tokens for prediction in predictions))
            found = measure(predictions_frame(predictions, 0.0), f"{task}, {method}")
            accuracy, nll = found["accuracy"], found["nll"]
            if nll is None:
                # of what was written
                nll = measure_indicators(predictions).nll
            what = (task, method, setting.model_dump_json())
            logger.info("%s, %s, %s: accuracy %.2f (n = %d)", *what, accuracy, found["n"])
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
    settings = _entry(parameters, method).settings
    _check_search(method, tried, settings)
    # equal numbers of right answers may differ in the last bit of their means
    means = tried.groupby("number")[["accuracy", "nll"]].mean().round({"accuracy": 12})
    best = means.sort_values(["accuracy", "nll"], ascending=[False, True], kind="stable")
    chosen = int(best.index[0])
    logger.info(
        "%s: %s, with a mean accuracy of %.2f on %d held-out meta-train tasks",
        *(method, settings[chosen].model_dump_json()),
        *(means["accuracy"].loc[chosen], tried["task"].nunique()),
    )
    record = {
        "method": method,
        "chosen": chosen,
        "setting": settings[chosen].model_dump(mode="json"),
        "rows": tried.to_dict("records"),
    }
    parts = [tried] if learned is None else [tried, learned]
    return record, count_training(*parts, method=method, stage="search")


def _check_search(method: str, tried: pd.DataFrame, settings: Sequence[BaseModel]) -> None:
    """Searches are kept, and shared by runs: what was tried has to be what is configured, with one seed."""
    asked = {number: setting.model_dump_json() for number, setting in enumerate(settings)}
    fix = (
        f"delete the files *.{method}.search.parquet and search.*{method}.learned of the search (05_model_input and "
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
    seen: bool = True,
) -> tuple[Any, dict[str, Any]]:
    """Adapt a method to a task, as the search chose. Nothing but the support examples of the task comes in here.

    Returns:
        The weights, or the examples of a method that reads them when it answers, and what they cost: no token of the
        latter, whose cost of reading is one of answering and stands in the result's ``tokens``.

    Raises:
        BaselineError: the task is one that the weights must not have ``seen``, and they were meta-trained on it.
    """
    if learned is not None and not seen and task in learned.about.get("tasks", ()):
        raise BaselineError(
            f"the weights of {method} on disk were meta-trained on {', '.join(learned.about['tasks'])}, and {task} is "
            f"to be answered by weights that never saw it; delete what another configuration left in the data folder "
            f"(06_models/*{method}.learned), and run again"
        )
    setup = _setup(parameters, method, task)
    # all that show examples show the same ones
    seed_name = "icl" if method in READ_SUPPORT else BASELINES[method]
    own = derive_seed(parameters.seed, task, seed_name)
    # it comes as JSON
    setting = type(setup.entry.settings[0]).model_validate(chosen["setting"])
    adapted, spent = _adapted(setup, learned, frame_to_splits(support).support, setting, own)
    logger.info("%s, %s: adapted in %.1f s", task, method, spent.seconds)
    return adapted, compute_record(method, "adaptation", task, spent)


def predict_baseline(
    parameters: ProjectParameters, splits: pd.DataFrame, adapted: Any, *, task: str, method: str
) -> pd.DataFrame:
    """A baseline's answers to a task's test split: one row per example with the columns of ``PREDICTION_COLUMNS``."""
    seed = derive_seed(parameters.seed, task, BASELINES[method], "answers")
    examples, setup = frame_to_splits(splits).test, _setup(parameters, method, task)
    return timed_answers(f"{task}, {method}", partial(answer, setup, adapted, examples, seed))


def adapt_and_predict(
    parameters: ProjectParameters,
    splits: pd.DataFrame,
    *material: Any,
    task: str,
    method: str,
    seen: bool = True,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """:func:`adapt_baseline` on ``material`` and :func:`predict_baseline`, for what is kept nowhere between them."""
    adapted, spent = adapt_baseline(parameters, *material, task=task, method=method, seen=seen)
    return predict_baseline(parameters, splits, adapted, task=task, method=method), spent


def _adapted(
    setup: Setup, learned: Learned | None, support: Sequence[Example], setting: Any, seed: int
) -> tuple[Any, Compute]:
    """A method on a task, and its cost; the wall time is of adapting alone."""
    clock = Clock()
    adapted = baseline(setup.method).adapt(setup, learned, support, setting, seed)
    own = adapted.compute if isinstance(adapted, Learned) else Compute()
    return adapted, replace(own, seconds=clock.compute.seconds)


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
