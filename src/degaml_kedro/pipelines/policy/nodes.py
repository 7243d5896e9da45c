"""Nodes of the policy pipeline."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.common.progress import progress_bar
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import (
    ProjectParameters,
    required,
)
from degaml_kedro.generator.examples import ExampleGenerator
from degaml_kedro.generator.generator import Generator
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.io.rollouts import Rollouts
from degaml_kedro.io.trajectory import checksum, tensor_bytes
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.finetune import initial_adapter
from degaml_kedro.pipelines.fingerprint import digest, stated
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.fallback import KINDS, learned_fallback
from degaml_kedro.policy.proposers import PolicyProposer
from degaml_kedro.policy.search import Refinement, ResumeMismatchError, Row, Tag, executed_rows
from degaml_kedro.policy.tabular import fit_rewards
from degaml_kedro.policy.training import learn
from degaml_kedro.results.figures import figure_page, policy_figure, strategy_map
from degaml_kedro.results.policy_measures import policy_text
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.generated import generated_context, generated_state
from degaml_kedro.tasks.example import shares_options
from degaml_kedro.tasks.splits import frame_to_splits

logger = logging.getLogger(__name__)


def roll_out_task(
    parameters: ProjectParameters,
    resume: Rollouts | None,
    trained: Generator,
    embeddings: PromptEmbeddings,
    support: pd.DataFrame,
    validation: pd.DataFrame,
    adapter: Adapter | None = None,
    writer: ExampleGenerator | None = None,
    *,
    task: str,
    iteration: int,
) -> Iterator[Rollouts]:
    """One iteration's trials on a meta-train task.

    Families that read answers learn from the support examples, and trials are scored on the validation split. The
    policy so far proposes, which in the first iteration is the untrained one (None). ``writer`` serves the family
    ``written``.

    Yields:
        What the rollouts' dataset takes.
    """
    policy = required(parameters.policy)
    space = ActionSpace.of(policy.families)
    prompts = prompts_among(embeddings, len(support), unlabelled=True)
    context = task_context(parameters, task, trained, embeddings, prompts, writer)
    exploration = policy.exploration * (1 - (iteration - 1) / policy.iterations)
    policy_model = load_policy_model(parameters)
    proposer = PolicyProposer(policy_model, adapter, space, policy.temperature, exploration)
    own = derive_seed(parameters.seed, task, "rollouts", str(iteration))
    without = {"search", "training", "lora", "oracle_candidates", "folds"}
    fingerprint = rollouts_fingerprint(
        parameters,
        task,
        context,
        trained,
        embeddings,
        pd.concat([support, validation]),
        policy_model,
        adapter,
        own,
        [policy.model_dump(mode="json", exclude=without)],
    )

    def trials(finished: Sequence[Row]) -> Iterator[Row]:
        drawn = derive_seed(parameters.seed, task, "initialization")
        start = generated_state(context, drawn, iteration)
        shown = frame_to_splits(support).support
        return Refinement(context, space, policy, start, shown).roll_out(
            proposer,
            frame_to_splits(validation).validation,
            own,
            Tag(task, "degaml", iteration),
            finished,
        )

    title = f"{task}, rollouts of iteration {iteration}"
    most = policy.rollouts.count * policy.rollouts.steps
    yield from recorded(title, trials, most, fingerprint, resume)


def train_policy(
    before: Adapter | None,
    parameters: ProjectParameters,
    *rollouts: pd.DataFrame,
    iteration: int,
) -> tuple[Adapter, dict[str, Any]]:
    """One learning step of the policy, counted from 1, on rollouts of all tasks; ``before`` is None in the first one.

    Returns:
        The policy's adapter, and a record of the step.
    """
    policy = required(parameters.policy)
    base = load_policy_model(parameters)
    rows = rollout_rows(*rollouts)
    untrained = initial_adapter(base, policy.lora)
    start = untrained if before is None or policy.training.start == "untrained" else before
    title = f"policy, iteration {iteration}"
    fresh = [row for row in rows if row["iteration"] == iteration]
    rate = sum(row["reward"] > 0 for row in fresh) / max(1, len(fresh))
    # an iteration without a reward teaches nothing: learning from the earlier ones again would move the policy
    taught = rows if any(row["valid"] and row["reward"] > 0 for row in fresh) else []
    with progress_bar(title, "step") as progress:
        learned, step = learn(
            base, start, taught, policy.training, derive_seed(parameters.seed, title), progress
        )
    record = {"iteration": iteration, "rollouts": len(fresh), "reward_rate": rate, **step}
    if not step["steps"]:
        logger.warning(
            "%s: none of %d rollouts was rewarded, so there is nothing to learn from; the policy stays as it is",
            title,
            len(fresh),
        )
        return before or untrained, record
    logger.info(
        "%s: %.0f %% of %d rollouts rewarded; %d steps on %d actions, loss %.3f to %.3f, %.0f s",
        title,
        100 * rate,
        len(fresh),
        *(step["steps"], step["learned"], step["losses"][0], step["losses"][-1], step["seconds"]),
    )
    return learned, record


def last_policy(adapter: Adapter) -> Adapter:
    """The policy after the last iteration."""
    return adapter


def learn_fallback(
    parameters: ProjectParameters, *material: pd.DataFrame, tasks: Sequence[str]
) -> dict[str, Any]:
    """The fallback of a search where the support examples cannot tell: the best action on the meta-train tasks.

    ``material`` is the support examples of each of the tasks, then rollouts of all of them and of all iterations.

    Returns:
        Of :func:`~degaml_kedro.policy.fallback.learned_fallback`.
    """
    policy = required(parameters.policy)
    space = ActionSpace.of(policy.families)
    open_tasks = {
        task
        for task, frame in zip(tasks, material, strict=False)
        if not shares_options(frame_to_splits(frame).support)
    }
    rows = rollout_rows(*material[len(tasks) :])
    learned = learned_fallback(rows, space, open_tasks, policy.reward.price_per_second)
    for key, kind in (("actions", "all tasks"), *KINDS.items()):
        for action in learned[key] or ():
            logger.info("the fallback of %s: %s", kind, action)
    return learned


def learn_tabular(parameters: ProjectParameters, *rollouts: pd.DataFrame) -> dict[str, Any]:
    """The control of the policy: a logistic regression of rewards on the state's numbers and the action, as JSON."""
    space = ActionSpace.of(required(parameters.policy).families)
    return asdict(fit_rewards(rollout_rows(*rollouts), space))


def collect_rollouts(*rollouts: pd.DataFrame) -> pd.DataFrame:
    """All rollouts as one table; ``executed`` and ``decided_by`` are what they were at the end of a round."""
    frames = []
    for frame in rollouts:
        rows = rollout_rows(frame)
        kept = {int(row["rollout"]) for row in executed_rows(rows)}
        decided = {row["round"]: row.get("decided_by") for row in rows}
        frames.append(
            frame.assign(
                executed=frame["rollout"].isin(kept),
                decided_by=pd.Series([decided[row["round"]] for row in rows], frame.index, object),
            )
        )
    return pd.concat(frames, ignore_index=True)


def draw_policy(rollouts: pd.DataFrame, *, title: str) -> tuple[Any, str, str]:
    """The policy's learning over all iterations: a Plotly figure, an HTML page, and tables in Markdown."""
    figure = policy_figure(rollouts, title)
    return figure, figure_page(figure), policy_text(rollouts)


def draw_strategies(rollouts: pd.DataFrame, *, title: str) -> tuple[Any, str]:
    """Families by task, as proposed and as executed (the paper's F.4): a Plotly figure and an HTML page."""
    figure = strategy_map(rollouts, title)
    return figure, figure_page(figure)


def rollout_rows(*frames: pd.DataFrame) -> list[Row]:
    """Tables of rollouts, row by row."""
    records = (row for frame in frames for row in frame.to_dict("records"))
    return [{str(key): value for key, value in row.items()} for row in records]


def prompts_among(embeddings: PromptEmbeddings, support: int, *, unlabelled: bool) -> range:
    """Which of a task's embedded prompts batches are drawn from: the last ones, its support prompts, or those before.

    The latter are its pool of ``unlabelled`` prompts, of its train split; where there is none, its support prompts are.
    """
    train = len(embeddings) - support
    return range(train) if unlabelled and train else range(train, len(embeddings))


def task_context(
    parameters: ProjectParameters,
    task: str,
    trained: Generator,
    embeddings: PromptEmbeddings,
    among: Sequence[int],
    writer: ExampleGenerator | None = None,
) -> Context:
    """The context of a task, whose adapters are made from the prompts ``among`` its embeddings.

    The embeddings are of the train prompts, then of the support prompts. ``writer`` serves the family ``written``.
    """
    return generated_context(
        load_base_model(parameters.model),
        parameters.prompt,
        parameters.scoring_of(task),
        trained,
        embeddings,
        among,
        required(parameters.generator).encoder,
        writer,
    )


def load_policy_model(parameters: ProjectParameters) -> BaseModel:
    """The model that the policy adapts: the base model, or one of its own."""
    return load_base_model(required(parameters.policy).model or parameters.model)


def rollouts_fingerprint(
    parameters: ProjectParameters,
    task: str,
    context: Context,
    trained: Generator,
    embeddings: PromptEmbeddings,
    examples: pd.DataFrame,
    policy_model: BaseModel | None,
    adapter: Adapter | None,
    seed: int,
    settings: Sequence[Any],
) -> str:
    """A fingerprint of everything that rollouts depend on.

    Examples are what trials learn from and are scored on. Without a policy model draws are uniform; without an adapter
    it proposes as it came.
    """
    of_task = (parameters.prompt, parameters.scoring, parameters.tasks[task])
    written_by = [] if context.writer is None else [context.writer.fingerprint]
    return digest(
        {
            "base_model": context.base.fingerprint,
            "computed_in": _computed_in(context.base),
            "policy_model": policy_model and [policy_model.fingerprint, _computed_in(policy_model)],
            "generator": trained.fingerprint,
            "prompts": embeddings.prompts_digest,
            "examples": examples.to_json(orient="records"),
            "policy": None if adapter is None else checksum(tensor_bytes(adapter.tensors)),
            "seed": seed,
            "settings": [settings[0], *map(stated, of_task), *settings[1:], *written_by],
        }
    )


def _computed_in(base: BaseModel) -> str:
    return f"{base.dtype} on {base.device.type}"


def recorded(
    title: str,
    trials: Callable[[Sequence[Row]], Iterator[Row]],
    count: int,
    fingerprint: str,
    resume: Rollouts | None,
) -> Iterator[Rollouts]:
    """Every trial on the disk before the next one begins; none where all ``count`` are there.

    ``trials`` goes on behind finished rows, those of ``resume``. Where these were made from something else (another
    ``fingerprint``), it starts over; where what is proposed now is something else, rows that are not of it are dropped.

    Yields:
        What the rollouts' dataset takes.
    """
    rows: list[Row] = []
    if resume is not None and resume.fingerprint == fingerprint:
        if resume.complete and resume.rows:
            yield resume
            return
        rows = [dict(row) for row in resume.rows]
    elif resume is not None and resume.rows:
        logger.info(
            "%s: the rollouts on disk were made with other settings, data, weights or another policy; they start over",
            title,
        )
    began = time.perf_counter()
    finished = False
    while not finished:
        yield Rollouts(fingerprint, tuple(rows))
        try:
            with progress_bar(title, "trial", len(rows)) as progress:
                for row in trials(tuple(rows)):
                    rows.append(row)
                    if row["error"] is not None:
                        text = row["action"][:120]
                        logger.info("%s: %s earned nothing (%s)", title, text, row["error"])
                    yield Rollouts(fingerprint, tuple(rows))
                    progress(len(rows), count)
            finished = True
        except ResumeMismatchError as mismatch:
            logger.warning("%s: %s; these are tried again", title, mismatch)
            rows = rows[: mismatch.kept]
    yield Rollouts(fingerprint, tuple(rows), complete=True)
    rewarded = sum(row["reward"] > 0 for row in rows)
    logger.info(
        "%s: %d of %d rewarded in %.1f s", title, rewarded, len(rows), time.perf_counter() - began
    )
