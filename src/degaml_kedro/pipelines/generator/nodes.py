"""Nodes of the generator pipeline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

import pandas as pd

from degaml_kedro import __version__
from degaml_kedro.adapters.adapter import AdapterConfig
from degaml_kedro.adapters.scales import TokenScales
from degaml_kedro.adapters.tokens import permutation_states
from degaml_kedro.baselines import union_train
from degaml_kedro.common.atomic import is_main_process
from degaml_kedro.common.progress import progress_bar
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import (
    AssociativeDecoder,
    FactorizedDecoder,
    GeneratorTraining,
    HyperconvolutionalDecoder,
    ProjectParameters,
    required,
)
from degaml_kedro.generator.decoders.build import ConditionSize, Decoder
from degaml_kedro.generator.examples import ExampleGenerator, train_on_episodes
from degaml_kedro.generator.generator import Generator, GeneratorError, Identity
from degaml_kedro.generator.health import HealthCheck, check_generator
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.generator.training import (
    GeneratorStep,
    TrainingState,
    TrainingStep,
    TrainingTask,
    join_processes,
    train_generator,
)
from degaml_kedro.io.generators import GeneratorProgress
from degaml_kedro.io.tokens import TokenSequence
from degaml_kedro.llm.base_model import BaseModel, choose_dtype, load_base_model
from degaml_kedro.llm.finetune import answer_sequences
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.pipelines.checkpoints.nodes import drawn_episodes
from degaml_kedro.pipelines.fingerprint import digest, stated
from degaml_kedro.pipelines.task_folds import TaskFold
from degaml_kedro.pipelines.tokenize.nodes import check_alike
from degaml_kedro.results.figures import figure_page, generator_figure
from degaml_kedro.tasks.splits import TaskSplits, frame_to_splits

logger = logging.getLogger(__name__)

AnyGenerator = TypeVar("AnyGenerator", Generator, ExampleGenerator)


def train(
    parameters: ProjectParameters,
    resume: Generator | GeneratorProgress | None,
    scales: TokenScales,
    *material: Any,
    variant: str,
    fold: TaskFold,
) -> Iterator[Generator | GeneratorProgress]:
    """Train a generator on a fold of the meta-train tasks; on those left out only errors are measured.

    ``material`` is of every task of the fold with a trajectory: tokens (``TokenSequence``), then prompt states
    (``PromptEmbeddings``), then splits; the tasks that it learns from come first.

    Yields:
        A resume checkpoint now and then, and the generator.
    """
    settings = required(parameters.generator)
    own = settings.variants[variant]
    decoder = own.token_decoder
    # it chooses the device of this process: the base model must come after it
    accelerator = join_processes(parameters.model.device)
    base = load_base_model(parameters.model)
    # of `auto`, what it is on this device
    precision = str(choose_dtype(own.training.precision, accelerator.device))
    training = own.training.model_copy(update={"precision": precision.removeprefix("torch.")})
    names, every, seed = fold.tasks, fold.with_trajectory, parameters.seed
    count = len(every)
    tokens, embeddings, splits = (
        material[first : first + count] for first in range(0, 3 * count, count)
    )
    # the scales were taken of those that are learned from; errors are measured on the others
    check_alike(tokens)
    starts = [str(part.about["start"]) for part in tokens]
    states = permutation_states(starts[: len(names)]).tolist()
    condition = ConditionSize(
        settings.prompts, embeddings[0].tokens, embeddings[0].width, max(states) + 1
    )
    fresh = _fresh(decoder, scales, condition, tokens[0], embeddings[0], base, seed)
    fresh.check_base_model(base.name, base.fingerprint)
    states += [0] * (count - len(names))
    learned = _tasks(every, tokens, embeddings, splits, states, training, base, parameters)
    about = {
        **_about(parameters, variant, fold, training),
        "condition": asdict(condition),
        "trajectories": [part.about["trajectory"] for part in tokens],
        "prompts": [part.prompts_digest for part in embeddings],
        "parameter_count": fresh.decoder.parameter_count,
        "multiply_adds": fresh.decoder.multiply_adds,
    }
    # the kind of device: every process has a card of its own, and all of them one fingerprint
    device = accelerator.device.type
    identity = {**asdict(fresh.identity), "computed_in": f"{base.dtype} on {device}"}
    fingerprint = digest(
        [about, identity, stated(parameters.prompt), settings.tokenization.model_dump()]
    )
    fresh.fingerprint, fresh.about = fingerprint, about
    title = f"generator {variant}" + (f" {fold.label}" if count > len(names) else "")
    what = (
        f"{training.batch_size} pairs from {len(names)} tasks, {fresh.decoder.parameter_count / 1e6:.1f} million "
        f"parameters, {fresh.decoder.multiply_adds / 1e9:.2f} billion multiply-adds a sample, in {training.precision}"
    )
    own_seed = derive_seed(seed, "generator", variant, fold.label)

    def steps(state: TrainingState | None) -> Iterator[TrainingStep]:
        return train_generator(
            fresh, learned[: len(names)], training, own_seed, accelerator, base, state
        )

    def check(number: int) -> list[dict[str, Any]]:
        checks: list[HealthCheck] = []
        for task, frame in zip(learned, splits, strict=True):
            asked = frame_to_splits(frame).validation[: training.check_examples]
            questions = None
            if training.check_every and asked:
                questions = (base, asked, parameters.prompt, parameters.scoring_of(task.name))
            drawn = derive_seed(own_seed, "check", task.name, str(number))
            held_out = task.name not in names
            checks += check_generator(fresh, task, number, drawn, held_out, questions)
        return [one.as_row() for one in checks]

    yield from _learned(fresh, resume, training, title, what, steps, check)


def train_on_examples(
    parameters: ProjectParameters,
    resume: ExampleGenerator | GeneratorProgress | None,
    *splits: pd.DataFrame,
    variant: str,
    fold: TaskFold,
) -> Iterator[ExampleGenerator | GeneratorProgress]:
    """Train a generator that reads examples, over episodes.

    ``splits`` are those of every task of the fold; the tasks that it learns from come first. Where tasks are drawn from
    a distribution, episodes come from there, and the splits are for health checks alone.

    Yields:
        A resume checkpoint now and then, and the generator.
    """
    own = required(parameters.generator).variants[variant]
    training, names, every = own.training, fold.tasks, fold.with_trajectory
    assert isinstance(own.decoder, AssociativeDecoder)
    base = load_base_model(parameters.model)
    seed = derive_seed(parameters.seed, "generator", variant, fold.label)
    parts = [frame_to_splits(frame) for frame in splits]
    learned_from: Any
    if parameters.meta_train_distribution is None:
        pools = [part.train for part in parts[: len(names)]]
        draw = union_train.listed(pools[: training.tasks], seed)
        learned_from = [sorted(one.question for one in pool) for pool in pools]
    else:
        source = parameters.distributions[parameters.meta_train_distribution]
        draw = drawn_episodes(source, seed, training.tasks, max(training.support))
        learned_from = stated(source)
    fresh = ExampleGenerator.fresh(base, own.decoder, parameters.lora)
    about = {
        **_about(parameters, variant, fold, training),
        "parameter_count": fresh.parameter_count,
    }
    computed = [asdict(fresh.identity), f"{base.dtype} on {base.device.type}"]
    mode = parameters.scoring_of(names[0]).answers
    fresh.about = about
    fresh.fingerprint = digest(
        [about, computed, learned_from, stated(parameters.prompt), stated(parameters.lora), mode]
    )
    title = f"generator {variant}" + (f" {fold.label}" if len(every) > len(names) else "")
    what = f"{training.batch_size} episodes, {fresh.parameter_count / 1e6:.1f} million parameters"

    def steps(state: TrainingState | None) -> Iterator[TrainingStep]:
        return train_on_episodes(fresh, base, draw, parameters.prompt, mode, training, seed, state)

    def check(number: int) -> list[dict[str, Any]]:
        return [
            _check_written(fresh, base, task, part, number, place >= len(names), parameters)
            for place, (task, part) in enumerate(zip(every, parts, strict=True))
            if part.validation
        ]

    yield from _learned(fresh, resume, training, title, what, steps, check)


def _about(
    parameters: ProjectParameters, variant: str, fold: TaskFold, training: GeneratorTraining
) -> dict[str, Any]:
    """What a generator is trained with, as it is stored beside it."""
    own = required(parameters.generator).variants[variant]
    return {
        "variant": variant,
        "tasks": list(fold.tasks),
        "left_out": list(fold.with_trajectory[len(fold.tasks) :]),
        "training": training.model_dump(mode="json", exclude_none=True),
        "decoder": own.decoder.model_dump(mode="json"),
        "seed": parameters.seed,
        "version": __version__,
    }


def _learned(
    fresh: AnyGenerator,
    resume: AnyGenerator | GeneratorProgress | None,
    training: GeneratorTraining,
    title: str,
    what: str,
    steps: Callable[[TrainingState | None], Iterator[TrainingStep]],
    check: Callable[[int], list[dict[str, Any]]],
) -> Iterator[AnyGenerator | GeneratorProgress]:
    """Train a generator in place from where an earlier run left it, with its health checks.

    ``what`` tells people of a step, and how large the generator is. ``check`` gives the health checks after a step.

    Yields:
        A resume checkpoint now and then, and the generator.
    """
    state, records, checks = None, list[dict[str, Any]](), list[dict[str, Any]]()
    if resume is not None and resume.fingerprint != fresh.fingerprint:
        logger.info("%s: what is on disk was made with other settings; it starts over", title)
    elif isinstance(resume, GeneratorProgress):
        state = resume.state
        records, checks = ([dict(row) for row in rows] for rows in (resume.records, resume.checks))
    elif resume is not None:
        logger.info("%s: it is on disk; nothing is trained", title)
        yield resume
        return
    goes_on = f"; goes on after step {state.step}" if state else ""
    logger.info("%s: %d steps of %s%s", title, training.steps, what, goes_on)
    with progress_bar(title, "step", len(records)) as progress:
        for step in steps(state):
            records.append(asdict(step.record))
            number, last = step.record.step, step.record.step == training.steps
            progress(number, training.steps)
            if last or (training.check_every and number % training.check_every == 0):
                if step.settle is not None:
                    step.settle()
                checks += check(number)
            is_due = number % training.save_every == 0 and not last
            if is_due and (is_main_process() or step.settle is not None):
                found = step.state()
                if is_main_process():
                    rows = tuple(records), tuple(checks)
                    yield GeneratorProgress(fresh.fingerprint, found, *rows)
                # it is three times the decoder
                del found
    fresh.decoder.to("cpu").eval()
    fresh.records, fresh.checks = records, checks
    yield fresh


def _check_written(
    generator: ExampleGenerator,
    base: BaseModel,
    task: str,
    parts: TaskSplits,
    step: int,
    held_out: bool,
    parameters: ProjectParameters,
) -> dict[str, Any]:
    """The accuracy on a task's validation questions of the adapter that is written from its support examples."""
    training = generator.decoder.training
    generator.decoder.eval()
    score = parameters.scoring_of(task)
    shown = answer_sequences(base, parts.support, parameters.prompt, score.answers)
    adapter = generator.write(base, shown)
    generator.decoder.train(training)
    count = int(generator.about["training"]["check_examples"])
    predictions = score_examples(base, parts.validation[:count], parameters.prompt, score, adapter)
    right = sum(one.predicted == one.gold for one in predictions)
    accuracy = right / len(predictions)
    logger.info("%s, written after step %d: accuracy %.2f", task, step, accuracy)
    check = HealthCheck(step, task, held_out, accuracy=accuracy, questions=len(predictions))
    return check.as_row()


def read_health(generator: Generator | ExampleGenerator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A generator's training as two tables: one row a step, and one a health check."""
    steps = [one.name for one in fields(GeneratorStep)]
    checks = [one.name for one in fields(HealthCheck)]
    return pd.DataFrame(generator.records, columns=steps), pd.DataFrame(
        generator.checks, columns=checks
    )


def draw_health(steps: pd.DataFrame, checks: pd.DataFrame, *, title: str) -> tuple[Any, str]:
    """A generator's health as a Plotly figure, for Kedro-Viz and the report, and as an HTML page without network."""
    figure = generator_figure(steps, checks, title)
    return figure, figure_page(figure)


def _fresh(
    settings: FactorizedDecoder | HyperconvolutionalDecoder,
    scales: TokenScales,
    condition: ConditionSize,
    tokens: TokenSequence,
    embeddings: PromptEmbeddings,
    base: BaseModel,
    seed: int,
) -> Generator:
    config = tokens.about["adapter"]
    identity = Identity(
        base_model=str(tokens.about["base_model"]),
        base_model_fingerprint=str(tokens.about["base_model_fingerprint"]),
        encoder=embeddings.encoder,
        encoder_fingerprint=embeddings.fingerprint,
    )
    return Generator(
        Decoder(settings, scales.grid, condition, derive_seed(seed, "decoder")),
        scales,
        AdapterConfig(config["rank"], config["alpha"], tuple(config["target_modules"]), base.name),
        identity,
    )


def _tasks(
    names: Sequence[str],
    tokens: Sequence[TokenSequence],
    embeddings: Sequence[PromptEmbeddings],
    splits: Sequence[pd.DataFrame],
    states: Sequence[int],
    training: GeneratorTraining,
    base: BaseModel,
    parameters: ProjectParameters,
) -> list[TrainingTask]:
    """The material of each task."""
    how = parameters.prompt
    learned = []
    for name, own_tokens, states_of, frame, state in zip(
        names, tokens, embeddings, splits, states, strict=True
    ):
        parts, form = frame_to_splits(frame), parameters.scoring_of(name).answers
        if states_of.fingerprint != embeddings[0].fingerprint:
            raise GeneratorError(
                f"the prompts of {name} were read by {states_of.encoder}, those of {names[0]} by "
                f"{embeddings[0].encoder}; encode all of them with one"
            )
        if states_of.tokens != embeddings[0].tokens:
            raise GeneratorError(
                f"of the prompts of {name} {states_of.tokens} tokens are kept, of those of {names[0]} "
                f"{embeddings[0].tokens}; encode all of them with one generator.encoder.tokens"
            )
        learned.append(
            TrainingTask(
                name,
                states_of,
                # the support prompts lie behind the train prompts
                range(len(states_of) - len(parts.support)),
                own_tokens.read,
                len(own_tokens),
                state,
                answer_sequences(base, parts.train, how, form) if training.sft else (),
            )
        )
    return learned
