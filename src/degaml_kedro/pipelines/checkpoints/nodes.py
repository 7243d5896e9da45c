"""Nodes of the checkpoints pipeline. Training nodes are generators: Kedro saves every step as it is made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import pandas as pd

from degaml_kedro.adapters.adapter import Adapter, average_adapters
from degaml_kedro.baselines import union_train
from degaml_kedro.baselines.episodes import Draw
from degaml_kedro.common.progress import progress_bar
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import (
    AnswerForm,
    FileDistribution,
    ProjectParameters,
    SuiteDistribution,
    TrainingParameters,
)
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
from degaml_kedro.llm.base_model import load_base_model
from degaml_kedro.llm.finetune import (
    FineTuneState,
    FineTuneStep,
    fine_tune,
    initial_adapter,
    total_steps,
)
from degaml_kedro.pipelines.fingerprint import digest, stated
from degaml_kedro.pipelines.task_folds import TaskFold
from degaml_kedro.tasks.episodes import draw_episode, episode_examples
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.splits import frame_to_splits

logger = logging.getLogger(__name__)


def train_on_pool(
    parameters: ProjectParameters,
    resume: TrajectoryState | None,
    *splits: pd.DataFrame,
    fold: TaskFold,
) -> Iterator[TrajectoryChunk]:
    """The pooled warm-up: one adapter, trained on the train splits of a fold's tasks in turn.

    With a share of examples in the prompt it is trained on episodes of the tasks, and where tasks are drawn from a
    distribution on new ones in every step. All are scored in one mode. Of its steps only the last one's tensors are
    kept.
    """
    base = load_base_model(parameters.model)
    training: TrainingParameters = parameters.warmup
    name = f"pooled warm-up {fold.label}" if fold.left_out else "pooled warm-up"
    own = derive_seed(parameters.seed, "pool", "train")
    draw, drawn_from = None, None
    if parameters.meta_train_distribution is not None:
        distribution = parameters.distributions[parameters.meta_train_distribution]
        name, drawn_from = "warm-up on drawn tasks", stated(distribution)
        draw = drawn_episodes(distribution, own)
        examples, mode = draw(0, 0, 1)[1], parameters.scoring.answers
    else:
        pools = [frame_to_splits(frame).train for frame in splits]
        examples, mode = union_train.pooled(pools), parameters.scoring_of(fold.tasks[0]).answers
        if parameters.warmup.context_share:
            draw = union_train.listed(pools, own)
        else:
            # settings of episodes that are not used change no fingerprint
            plain = training.model_dump(include=set(TrainingParameters.model_fields))
            training = TrainingParameters(**plain)
    yield from _train(
        name,
        parameters,
        examples,
        mode,
        training,
        own,
        resume,
        keep="last",
        steps=partial(union_train.fit_on_episodes, base, draw) if draw else None,
        drawn_from=drawn_from,
    )


def record_drawn_tasks(parameters: ProjectParameters) -> pd.DataFrame:
    """The tasks that the warm-up on drawn tasks draws: form, subject, classes, labels and seed by step."""
    known = parameters.distributions[str(parameters.meta_train_distribution)]
    own = derive_seed(parameters.seed, "pool", "train")
    rows = []
    for step in range(1, total_steps(parameters.warmup) + 1):
        for number, support, query in union_train.episodes_of_step(parameters.warmup, own, step):
            sizes = {"support": support, "test": query}
            source, _ = draw_episode(known, sizes, own, str(number))
            drawn = source.model_dump(
                mode="json", include={"form", "subject", "classes", "labels", "seed"}
            )
            rows.append({"step": step, **sizes, **drawn})
    return pd.DataFrame(rows)


def drawn_episodes(
    distribution: SuiteDistribution | FileDistribution,
    seed: int,
    tasks: int | None = None,
    most: int = 0,
) -> Draw:
    """Episodes of a distribution; the seed decides the draws.

    ``tasks`` are so many in turn, each time with other examples, and with at least ``most`` support examples; None is
    a new task every time.
    """

    def draw(number: int, support: int, query: int) -> tuple[list[Example], list[Example]]:
        sizes = {"support": support, "test": query}
        if tasks is None:
            _, examples = draw_episode(distribution, sizes, seed, str(number))
        else:
            turn, place = divmod(number, tasks)
            enough = {**sizes, "support": max(support, most)}
            source, _ = draw_episode(distribution, enough, seed, str(place))
            own = derive_seed(source.seed, "turn", str(turn))
            examples = episode_examples(source.model_copy(update={"seed": own}), sizes)
        return examples["support"], examples["test"]

    return draw


def train_trajectory(
    parameters: ProjectParameters,
    resume: TrajectoryState | None,
    splits: pd.DataFrame,
    start: Adapter | None = None,
    *,
    task: str,
    alone: bool = False,
) -> Iterator[TrajectoryChunk]:
    """One task's trajectory (App. C step 1.1): LoRA on its train split, a checkpoint after every step.

    It starts from the initialization that all tasks share where no ``start`` is given. ``alone`` is the baseline
    without meta-training, from that initialization: only the last step's tensors are kept.
    """
    own = parameters.trajectory
    yield from _train(
        f"{task} alone" if alone else task,
        parameters,
        frame_to_splits(splits).train,
        parameters.scoring_of(task).answers,
        parameters.no_meta_train if alone else own.training,
        derive_seed(parameters.seed, task, "train"),
        resume,
        start,
        keep="last" if alone else "all",
        dtype="float32" if alone else own.store_dtype,
    )


def last_adapter(trajectory: Trajectory) -> Adapter:
    """The adapter after the last step."""
    return trajectory.last


def mean_adapter(*adapters: Adapter) -> Adapter:
    """The element-wise mean of adapters: what a generator has to beat to show that its prompts matter.

    Raises:
        AdapterError: they are not of one shape.
    """
    return average_adapters(adapters)


def _train(
    name: str,
    parameters: ProjectParameters,
    examples: Sequence[Example],
    mode: AnswerForm,
    training: TrainingParameters,
    seed: int,
    resume: TrajectoryState | None,
    start: Adapter | None = None,
    keep: Literal["all", "last"] = "all",
    dtype: Literal["float32", "bfloat16"] = "float32",
    steps: Callable[..., Iterator[FineTuneStep]] | None = None,
    drawn_from: dict[str, Any] | None = None,
) -> Iterator[TrajectoryChunk]:
    """A run, step by step; ``steps`` makes them where plain fine-tuning does not."""
    base = load_base_model(parameters.model)
    start = start or initial_adapter(base, parameters.lora)
    make = steps or partial(fine_tune, base, examples)
    about = {
        "name": name,
        "base_model": base.name,
        "base_model_fingerprint": base.fingerprint,
        "computed_in": f"{base.dtype} on {base.device.type}".removeprefix("torch."),
        "prompt": parameters.prompt.model_dump(mode="json"),
        "mode": mode,
        "training": training.model_dump(mode="json"),
        "seed": seed,
        "examples": digest([_fields(example) for example in examples[: training.max_examples]]),
        "start": checksum(tensor_bytes(start.tensors)),
    }
    if drawn_from is not None:
        # tasks are drawn in the steps: this, the seed and the words that come with the package say which
        about["drawn_from"] = drawn_from
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
    head = TrajectoryStart(
        fingerprint=fingerprint,
        config=start.config,
        shapes={key: tuple(tensor.shape) for key, tensor in start.tensors.items()},
        steps=total,
        keep=keep,
        dtype=dtype,
        about=about,
        resumed_from=len(records),
    )
    yield head
    state = FineTuneState(len(records), dict(resume.state)) if resume is not None else None
    with progress_bar(name, "step", len(records)) as progress:
        for step in make(parameters.prompt, mode, training, start, seed, state):
            record = StepRecord(step.step, step.loss, step.learning_rate, step.seconds, step.tokens)
            records.append(record)
            # what is not written stays on the device
            tensors = step.adapter.tensors if step.step in head.kept else {}
            state_of = step.state.tensors if head.is_resume_checkpoint(step.step) else {}
            yield TrajectoryStep(record, tensors, state_of)
            progress(step.step, total)
    yield TrajectoryEnd(tuple(records))


def _plan(training: TrainingParameters, examples: int, done: int) -> str:
    phases = ", then ".join(f"{p.steps} steps at {p.learning_rate:g}" for p in training.phases)
    used = min(examples, training.max_examples)
    going_on = f"; goes on after step {done}" if done else ""
    return f"{phases}, batches of {training.batch_size} from {used:,} examples{going_on}"


def _fields(example: Example) -> list[Any]:
    return [example.prompt, example.response, example.system, example.options, example.gold]
