"""Nodes of the checkpoints pipeline. Training nodes are generators: Kedro saves every step as it is made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pandas as pd

from degaml_kedro.adapters.adapter import Adapter, average_adapters
from degaml_kedro.baselines import union_train
from degaml_kedro.io.trajectory import (
    StepRecord,
    Trajectory,
    TrajectoryChunk,
    TrajectoryEnd,
    TrajectoryStart,
    TrajectoryState,
    TrajectoryStep,
    checksum,
    tensor_bytes,
)
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.finetune import (
    FineTuneState,
    FineTuneStep,
    fine_tune,
    initial_adapter,
    total_steps,
)
from degaml_kedro.parameters import (
    AnswerForm,
    BaseModelParameters,
    LoraParameters,
    PromptParameters,
    ScoringParameters,
    TrainingParameters,
    TrajectoryParameters,
    WarmupParameters,
    task_scoring,
)
from degaml_kedro.pipelines.fingerprint import digest
from degaml_kedro.progress import progress_bar
from degaml_kedro.seeds import derive_seed
from degaml_kedro.tasks.episodes import distribution_of, draw_episode
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.splits import frame_to_splits

logger = logging.getLogger(__name__)


def train_on_pool(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    lora: Mapping[str, Any],
    warmup: Mapping[str, Any],
    first_task: Mapping[str, Any],
    seed: int,
    resume: TrajectoryState | None,
    *splits: pd.DataFrame,
    group: str,
) -> Iterator[TrajectoryChunk]:
    """The pooled warm-up: one adapter, trained on the tasks of a group in turn.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: its mode says what the answers are.
        lora: the adapter's shape.
        warmup: how it is trained; with a share of examples in the prompt, the tasks' episodes are.
        first_task: the first task's entry in the configuration; all are scored in one mode.
        seed: the run's.
        resume: what an earlier run left.
        *splits: the tasks' splits; only ``train`` is read.
        group: which tasks they are, in words.

    Yields:
        What the trajectory's dataset takes; only the last step's tensors are kept.
    """
    base = load_base_model(BaseModelParameters.model_validate(model))
    training: TrainingParameters = WarmupParameters.model_validate(warmup)
    pools = [frame_to_splits(frame).train for frame in splits]
    own = derive_seed(seed, "pool", "train")
    if isinstance(training, WarmupParameters) and training.context_share:
        steps = partial(union_train.fit_on_episodes, base, union_train.listed(pools, own))
    else:
        steps = partial(union_train.fit, base, pools)
        # settings of episodes that are not used change no fingerprint
        plain = training.model_dump(include=set(TrainingParameters.model_fields))
        training = TrainingParameters.model_validate(plain)
    yield from _train(
        "pooled warm-up" if group == "all" else f"pooled warm-up {group}",
        base,
        union_train.pooled(pools),
        PromptParameters.model_validate(prompt),
        _mode(scoring, first_task),
        training,
        initial_adapter(base, LoraParameters.model_validate(lora)),
        own,
        resume,
        keep="last",
        steps=steps,
    )


def train_on_drawn_tasks(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    lora: Mapping[str, Any],
    warmup: Mapping[str, Any],
    distribution: Mapping[str, Any],
    seed: int,
    resume: TrajectoryState | None,
) -> Iterator[TrajectoryChunk]:
    """The pooled warm-up on tasks of a distribution, new ones in every step.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: its mode says what the answers are.
        lora: the adapter's shape.
        warmup: how it is trained, and how many steps have examples in the prompt.
        distribution: what tasks are drawn from.
        seed: the run's.
        resume: what an earlier run left.

    Yields:
        What the trajectory's dataset takes; only the last step's tensors are kept.
    """
    base = load_base_model(BaseModelParameters.model_validate(model))
    own = derive_seed(seed, "pool", "train")
    draw = drawn_episodes(distribution, own)
    yield from _train(
        "warm-up on drawn tasks",
        base,
        draw(0, 0, 1)[1],
        PromptParameters.model_validate(prompt),
        _mode(scoring, {}),
        WarmupParameters.model_validate(warmup),
        initial_adapter(base, LoraParameters.model_validate(lora)),
        own,
        resume,
        keep="last",
        steps=partial(union_train.fit_on_episodes, base, draw),
        drawn_from=dict(distribution),
    )


def record_drawn_tasks(
    warmup: Mapping[str, Any], distribution: Mapping[str, Any], seed: int
) -> pd.DataFrame:
    """The tasks that the warm-up on drawn tasks draws: form, subject, classes, labels and seed by step.

    Args:
        warmup: how it is trained.
        distribution: what tasks are drawn from.
        seed: the run's.
    """
    training = WarmupParameters.model_validate(warmup)
    known, own = distribution_of(distribution), derive_seed(seed, "pool", "train")
    rows = []
    for step in range(1, total_steps(training) + 1):
        for number, support, query in union_train.episodes_of_step(training, own, step):
            sizes = {"support": support, "test": query}
            source, _ = draw_episode(known, sizes, own, str(number))
            drawn = source.model_dump(
                mode="json", include={"form", "subject", "classes", "labels", "seed"}
            )
            rows.append({"step": step, **sizes, **drawn})
    return pd.DataFrame(rows)


def drawn_episodes(distribution: Mapping[str, Any], seed: int) -> union_train.Draw:
    """Episodes of a distribution: a new task every time.

    Args:
        distribution: its entry in the configuration.
        seed: decides the draws.
    """
    known = distribution_of(distribution)

    def draw(number: int, support: int, query: int) -> tuple[list[Example], list[Example]]:
        sizes = {"support": support, "test": query}
        _, examples = draw_episode(known, sizes, seed, str(number))
        return examples["support"], examples["test"]

    return draw


def train_trajectory(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    lora: Mapping[str, Any],
    trajectory: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    seed: int,
    resume: TrajectoryState | None,
    splits: pd.DataFrame,
    start: Adapter | None = None,
    *,
    task: str,
) -> Iterator[TrajectoryChunk]:
    """One task's trajectory (App. C step 1.1): LoRA on its train split, a checkpoint after every step.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: its mode says what the answers are.
        lora: the adapter's shape.
        trajectory: how it is trained and stored.
        task_parameters: the task's entry in the configuration.
        seed: the run's.
        resume: what an earlier run left.
        splits: the task's splits; only ``train`` is read.
        start: where it starts; None for the initialization that all tasks share.
        task: the task's name.

    Yields:
        What the trajectory's dataset takes.
    """
    parameters = TrajectoryParameters.model_validate(trajectory)
    base = load_base_model(BaseModelParameters.model_validate(model))
    yield from _train(
        task,
        base,
        frame_to_splits(splits).train,
        PromptParameters.model_validate(prompt),
        _mode(scoring, task_parameters),
        parameters.training,
        start or initial_adapter(base, LoraParameters.model_validate(lora)),
        derive_seed(seed, task, "train"),
        resume,
        dtype=parameters.store_dtype,
    )


def train_alone(
    model: Mapping[str, Any],
    prompt: Mapping[str, Any],
    scoring: Mapping[str, Any],
    lora: Mapping[str, Any],
    training: Mapping[str, Any],
    task_parameters: Mapping[str, Any],
    seed: int,
    resume: TrajectoryState | None,
    splits: pd.DataFrame,
    *,
    task: str,
) -> Iterator[TrajectoryChunk]:
    """A task's own LoRA without meta-training: from the shared initialization, on the task's own examples.

    Args:
        model: which base model.
        prompt: how examples become text.
        scoring: its mode says what the answers are.
        lora: the adapter's shape.
        training: how it is trained.
        task_parameters: the task's entry in the configuration.
        seed: the run's.
        resume: what an earlier run left.
        splits: the task's splits; only ``train`` is read.
        task: the task's name.

    Yields:
        What the trajectory's dataset takes; only the last step's tensors are kept.
    """
    base = load_base_model(BaseModelParameters.model_validate(model))
    yield from _train(
        f"{task} alone",
        base,
        frame_to_splits(splits).train,
        PromptParameters.model_validate(prompt),
        _mode(scoring, task_parameters),
        TrainingParameters.model_validate(training),
        initial_adapter(base, LoraParameters.model_validate(lora)),
        derive_seed(seed, task, "train"),
        resume,
        keep="last",
    )


def last_adapter(trajectory: Trajectory) -> Adapter:
    """The adapter after the last step."""
    return trajectory.last


def mean_adapter(*adapters: Adapter) -> Adapter:
    """The element-wise mean of adapters: what a generator has to beat to show that its prompts matter.

    Args:
        *adapters: the last ones of the meta-train trajectories.

    Raises:
        AdapterError: they are not of one shape.
    """
    return average_adapters(adapters)


def _train(
    name: str,
    base: BaseModel,
    examples: Sequence[Example],
    prompt: PromptParameters,
    mode: AnswerForm,
    training: TrainingParameters,
    start: Adapter,
    seed: int,
    resume: TrajectoryState | None,
    keep: Literal["all", "last"] = "all",
    dtype: Literal["float32", "bfloat16"] = "float32",
    steps: Callable[..., Iterator[FineTuneStep]] | None = None,
    drawn_from: Mapping[str, Any] | None = None,
) -> Iterator[TrajectoryChunk]:
    """A run, step by step; ``steps`` makes them where plain fine-tuning does not."""
    make = steps or partial(fine_tune, base, examples)
    about = {
        "name": name,
        "base_model": base.name,
        "base_model_fingerprint": base.fingerprint,
        "computed_in": f"{base.dtype} on {base.device.type}".removeprefix("torch."),
        "prompt": prompt.model_dump(mode="json"),
        "mode": mode,
        "training": training.model_dump(mode="json"),
        "seed": seed,
        "examples": digest([_fields(example) for example in examples[: training.max_examples]]),
        "start": checksum(tensor_bytes(start.tensors)),
    }
    if drawn_from is not None:
        # tasks are drawn in the steps: this, the seed and the words that come with the package say which
        about["drawn_from"] = dict(drawn_from)
    fingerprint = digest(
        {**about, "alpha": start.config.alpha, "names": list(start.tensors), "store": [keep, dtype]}
    )
    total = total_steps(training)
    if resume is not None and resume.fingerprint != fingerprint:
        logger.info(
            "%s: what is on disk was made with other settings, data or another model; it starts over",
            name,
        )
        resume = None
    if resume is not None and resume.complete:
        logger.info("%s: all %d steps are on disk; nothing is trained", name, total)
        yield TrajectoryEnd(resume.records)
        return
    records = list(resume.records) if resume is not None else []
    logger.info("%s: %s", name, _plan(training, len(examples), len(records)))
    yield TrajectoryStart(
        fingerprint=fingerprint,
        config=start.config,
        shapes={key: tuple(tensor.shape) for key, tensor in start.tensors.items()},
        steps=total,
        keep=keep,
        dtype=dtype,
        about=about,
        resumed_from=len(records),
    )
    state = FineTuneState(len(records), dict(resume.state)) if resume is not None else None
    with progress_bar(name, "step", len(records)) as progress:
        for step in make(prompt, mode, training, start, seed, state):
            record = StepRecord(step.step, step.loss, step.learning_rate, step.seconds, step.tokens)
            records.append(record)
            yield TrajectoryStep(record, step.adapter.tensors, step.state.tensors)
            progress(step.step, total)
    yield TrajectoryEnd(tuple(records))


def _mode(scoring: Mapping[str, Any], task_parameters: Mapping[str, Any]) -> AnswerForm:
    if not task_parameters:
        return ScoringParameters.model_validate(scoring).answers
    return task_scoring(scoring, task_parameters).answers


def _plan(training: TrainingParameters, examples: int, done: int) -> str:
    phases = ", then ".join(f"{p.steps} steps at {p.learning_rate:g}" for p in training.phases)
    used = min(examples, training.max_examples)
    going_on = f"; goes on after step {done}" if done else ""
    return f"{phases}, batches of {training.batch_size} from {used:,} examples{going_on}"


def _fields(example: Example) -> list[Any]:
    return [example.prompt, example.response, example.system, example.options, example.gold]
