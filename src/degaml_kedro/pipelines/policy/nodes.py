"""Nodes of the policy pipeline."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.generator.generator import Generator
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.io.rollouts import (
    RolloutRows,
    RolloutsChunk,
    RolloutsEnd,
    RolloutsStart,
    RolloutsState,
)
from degaml_kedro.io.trajectory import checksum, tensor_bytes
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.finetune import initial_adapter
from degaml_kedro.parameters import (
    BaseModelParameters,
    GeneratorParameters,
    PolicyParameters,
    PromptParameters,
    task_scoring,
)
from degaml_kedro.pipelines.fingerprint import digest
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.fallback import KINDS, learned_fallback
from degaml_kedro.policy.proposers import PolicyProposer
from degaml_kedro.policy.search import (
    ResumeMismatchError,
    Row,
    Tag,
    executed_rows,
    roll_out,
)
from degaml_kedro.policy.tabular import fit_rewards
from degaml_kedro.policy.training import learn
from degaml_kedro.progress import progress_bar
from degaml_kedro.results.figures import figure_page
from degaml_kedro.results.policy_figure import policy_figure, strategy_map
from degaml_kedro.results.policy_measures import policy_text
from degaml_kedro.seeds import derive_seed
from degaml_kedro.strategies.generated import generated_state, generated_workbench
from degaml_kedro.strategies.state import Member
from degaml_kedro.strategies.workbench import Workbench
from degaml_kedro.tasks.example import shares_options
from degaml_kedro.tasks.splits import frame_to_splits

logger = logging.getLogger(__name__)


def roll_out_task(
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
    validation: pd.DataFrame,
    adapter: Adapter | None = None,
    *,
    task: str,
    iteration: int,
) -> Iterator[RolloutsChunk]:
    """One iteration's trials on a meta-train task.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: how answers are scored.
        generator: the generator's parameters.
        policy: the policy's.
        task_parameters: the task's entry in the configuration.
        seed: the run's.
        resume: what an earlier run left.
        trained: the generator; it is not changed.
        embeddings: prompt states.
        support: the task's support examples: what families that read answers learn from.
        validation: what trials are scored on.
        adapter: the policy so far; None for the first iteration.
        task: the task's name.
        iteration: from 1.

    Yields:
        What the rollouts' dataset takes.
    """
    parameters = PolicyParameters.model_validate(policy)
    space = ActionSpace.of(parameters.families)
    bench = task_workbench(
        model, prompt, scoring, generator, task_parameters, trained, embeddings, len(support), False
    )
    examples = frame_to_splits(validation).validation
    exploration = parameters.exploration * (1 - (iteration - 1) / parameters.iterations)
    pilot = policy_model(model, parameters)
    proposer = PolicyProposer(pilot, adapter, space, parameters.temperature, exploration)
    own = derive_seed(seed, task, "rollouts", str(iteration))
    settings = parameters.model_dump(
        mode="json", exclude={"search", "training", "lora", "oracle_candidates", "folds"}
    )
    fingerprint = rollouts_fingerprint(
        bench.base,
        trained,
        embeddings,
        pd.concat([support, validation]),
        pilot,
        adapter,
        own,
        [settings, dict(prompt), dict(scoring), dict(task_parameters)],
    )

    def trials(finished: Sequence[Row]) -> Iterator[Row]:
        start = generated_state(bench, derive_seed(seed, task, "initialization"), iteration)
        return roll_out(
            bench,
            space,
            proposer,
            start,
            examples,
            parameters.rollouts,
            parameters.reward,
            own,
            Tag(task, "degaml", iteration),
            finished,
            frame_to_splits(support).support,
        )

    title = f"{task}, rollouts of iteration {iteration}"
    most = parameters.rollouts.count * parameters.rollouts.steps
    yield from recorded(title, trials, most, fingerprint, resume)


def train_policy(
    model: Mapping[str, Any],
    policy: Mapping[str, Any],
    seed: int,
    *material: Adapter | pd.DataFrame,
    iteration: int,
) -> tuple[Adapter, dict[str, Any]]:
    """One learning step of the policy.

    Args:
        model: which base model.
        policy: the policy's parameters.
        seed: the run's.
        *material: the policy before this step, if there is one, and rollouts of all tasks.
        iteration: from 1.

    Returns:
        The policy's adapter, and what the step came to.
    """
    parameters = PolicyParameters.model_validate(policy)
    base = policy_model(model, parameters)
    frames = [part for part in material if isinstance(part, pd.DataFrame)]
    rows = [row for frame in frames for row in rollout_rows(frame)]
    before = next((part for part in material if isinstance(part, Adapter)), None)
    untrained = initial_adapter(base, parameters.lora)
    start = untrained if before is None or parameters.training.start == "untrained" else before
    title = f"policy, iteration {iteration}"
    fresh = [row for row in rows if row["iteration"] == iteration]
    rate = sum(row["reward"] > 0 for row in fresh) / max(1, len(fresh))
    # an iteration without a reward teaches nothing: learning from the earlier ones again would move the policy
    taught = rows if any(row["valid"] and row["reward"] > 0 for row in fresh) else []
    with progress_bar(title, "step") as progress:
        step = learn(base, start, taught, parameters.training, derive_seed(seed, title), progress)
    if step.steps:
        logger.info(
            "%s: %d of %d rollouts rewarded (%.0f %%); %d steps on %d actions, loss %.3f to %.3f, %.0f s",
            title,
            sum(row["reward"] > 0 for row in fresh),
            len(fresh),
            100 * rate,
            step.steps,
            step.learned,
            step.losses[0],
            step.losses[-1],
            step.seconds,
        )
    else:
        logger.warning(
            "%s: none of %d rollouts was rewarded, so there is nothing to learn from; the policy stays as it is",
            title,
            len(fresh),
        )
    record = {
        "iteration": iteration,
        "rollouts": len(fresh),
        "reward_rate": rate,
        "learned": step.learned,
        "steps": step.steps,
        "losses": list(step.losses),
        "tokens": step.tokens,
        "forward_tokens": step.forward_tokens,
        "backward_tokens": step.backward_tokens,
        "seconds": step.seconds,
    }
    return (before or untrained) if not step.steps else step.adapter, record


def last_policy(adapter: Adapter) -> Adapter:
    """The policy after the last iteration."""
    return adapter


def learn_fallback(
    policy: Mapping[str, Any], *material: pd.DataFrame, tasks: Sequence[str]
) -> dict[str, Any]:
    """What a search executes where the support examples cannot tell: the action that was best on the meta-train tasks.

    Args:
        policy: the policy's parameters.
        *material: the support examples of each task, then rollouts of all of them and of all iterations.
        tasks: their names.

    Returns:
        Of :func:`~degaml_kedro.policy.fallback.learned_fallback`.
    """
    parameters = PolicyParameters.model_validate(policy)
    space = ActionSpace.of(parameters.families)
    shown = {
        task: shares_options(frame_to_splits(frame).support)
        for task, frame in zip(tasks, material, strict=False)
    }
    rows = [row for frame in material[len(tasks) :] for row in rollout_rows(frame)]
    open_tasks = {task for task, closed in shown.items() if not closed}
    learned = learned_fallback(rows, space, open_tasks, parameters.reward.price_per_second)
    for key, kind in (("actions", "all tasks"), *KINDS.items()):
        for action in learned[key] or ():
            logger.info("the fallback of %s: %s", kind, action)
    return learned


def learn_tabular(policy: Mapping[str, Any], *rollouts: pd.DataFrame) -> dict[str, Any]:
    """The control of the policy: a logistic regression of rewards on the state's numbers and the action, as JSON.

    Args:
        policy: the policy's parameters.
        *rollouts: of all meta-train tasks and iterations.
    """
    space = ActionSpace.of(PolicyParameters.model_validate(policy).families)
    return fit_rewards((row for frame in rollouts for row in rollout_rows(frame)), space).as_json()


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
    """How the policy learned, as a picture, as a page for a browser, and as tables to read.

    Args:
        rollouts: of all iterations.
        title: which policy.
    """
    figure = policy_figure(rollouts, title)
    return figure, figure_page(figure), policy_text(rollouts)


def draw_strategies(rollouts: pd.DataFrame, *, title: str) -> tuple[Any, str]:
    """Which family was proposed and executed for which task, as a picture and as a page (the paper's F.4).

    Args:
        rollouts: of tasks that were adapted to.
        title: which policy.
    """
    figure = strategy_map(rollouts, title)
    return figure, figure_page(figure)


def rollout_rows(frame: pd.DataFrame) -> list[Row]:
    """A table of rollouts, row by row."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def task_workbench(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    generator: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    trained: Generator,
    embeddings: PromptEmbeddings,
    support: int,
    from_support: bool,
    start: Adapter | None = None,
) -> Workbench:
    """The workbench of a task: adapters are made from its support prompts, or from its train prompts.

    The support prompts are the last ones of the embeddings. With ``start`` every adapter is that one.
    """
    first = len(embeddings) - support
    bench = generated_workbench(
        load_base_model(BaseModelParameters.model_validate(model)),
        PromptParameters.model_validate(prompt),
        task_scoring(scoring, task_parameters),
        trained,
        embeddings,
        range(first, len(embeddings)) if from_support else range(first),
        GeneratorParameters.model_validate(generator).encoder,
    )
    if start is None:
        return bench
    return replace(bench, draw=lambda seed, number: Member(start))


def policy_model(model: Mapping[str, Any], policy: PolicyParameters) -> BaseModel:
    """The model that the policy adapts: the base model, or one of its own."""
    return load_base_model(policy.model or BaseModelParameters.model_validate(model))


def rollouts_fingerprint(
    base: BaseModel,
    trained: Generator,
    embeddings: PromptEmbeddings,
    examples: pd.DataFrame,
    pilot: BaseModel | None,
    adapter: Adapter | None,
    seed: int,
    settings: Sequence[Any],
) -> str:
    """What rollouts were made from.

    Args:
        base: the model that is adapted.
        trained: the generator.
        embeddings: prompt states.
        examples: what trials learn from and are scored on.
        pilot: the model that proposes; None for uniform draws.
        adapter: the policy; None for the model as it came.
        seed: of these rollouts.
        settings: all parameters that decide about a row.
    """
    return digest(
        {
            "base_model": base.fingerprint,
            "computed_in": _computed_in(base),
            "policy_model": None if pilot is None else [pilot.fingerprint, _computed_in(pilot)],
            "generator": trained.fingerprint,
            "prompts": embeddings.prompts_digest,
            "examples": examples.to_json(orient="records"),
            "policy": None if adapter is None else checksum(tensor_bytes(adapter.tensors)),
            "seed": seed,
            "settings": list(settings),
        }
    )


def _computed_in(base: BaseModel) -> str:
    return f"{base.dtype} on {base.device.type}"


def _finished_rows(resume: RolloutsState | None, fingerprint: str, title: str) -> Sequence[Row]:
    """The rows that an earlier run of the same settings left."""
    if resume is None or not resume.rows:
        return ()
    if resume.fingerprint != fingerprint:
        logger.info(
            "%s: the rollouts on disk were made with other settings, data, weights or another policy; they start over",
            title,
        )
        return ()
    return resume.rows


def recorded(
    title: str,
    trials: Callable[[Sequence[Row]], Iterator[Row]],
    count: int,
    fingerprint: str,
    resume: RolloutsState | None,
) -> Iterator[RolloutsChunk]:
    """Every trial on the disk before the next one begins; nothing where all are there.

    Args:
        title: whose trials these are.
        trials: goes on behind finished rows.
        count: trials in all.
        fingerprint: of all that the rows depend on.
        resume: what an earlier run left. Where it was made from something else, it starts over; where what is proposed
            now is something else, those rows that are not of it are dropped.

    Yields:
        What the rollouts' dataset takes.
    """
    kept = list(_finished_rows(resume, fingerprint, title))
    if resume is not None and resume.complete and kept:
        yield RolloutsEnd()
        return
    while True:
        yield RolloutsStart(fingerprint, len(kept))
        try:
            yield from _recorded(title, trials(kept), count, kept)
        except ResumeMismatchError as mismatch:
            logger.warning("%s: %s; these are tried again", title, mismatch)
            kept = kept[: mismatch.kept]
        else:
            return


def _recorded(
    title: str, trials: Iterator[Row], count: int, finished: Sequence[Row]
) -> Iterator[RolloutsChunk]:
    began = time.perf_counter()
    rows = list(finished)
    with progress_bar(title, "trial", len(finished)) as progress:
        for row in trials:
            rows.append(row)
            if row["error"] is not None:
                logger.info("%s: %s earned nothing (%s)", title, row["action"][:120], row["error"])
            yield RolloutRows([row])
            progress(len(rows), count)
    yield RolloutsEnd()
    rewarded = sum(row["reward"] > 0 for row in rows)
    logger.info(
        "%s: %d of %d rewarded in %.1f s", title, rewarded, len(rows), time.perf_counter() - began
    )
