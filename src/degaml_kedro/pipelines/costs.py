"""What a run will cost: how much there is to do by stage, in units that people know, and about how long it takes.

The amounts are counted from the nodes that are to run and from the parameters. A stage's time is

    2 x parameters x tokens (three times for those that are trained on) / (rate x 0.6 x threads)

the rate being that of a matrix product of this machine, measured in a fraction of a second, and 0.6 the share of it
that training and scoring have reached. No model is loaded and no data is read: tokens are guessed from the kind of a
task, the model's size is read from the header of its files. It is right within a factor of two where the time goes
into the base model, on a CPU. Where something is not known there are counts, and no time.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import try_to_load_from_cache
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from degaml_kedro.baselines.methods import Setting, settings_of
from degaml_kedro.generator.decoders.hyperconv import flow_costs, total_cost
from degaml_kedro.llm.base_model import cache_folder, choose_dtype, in_package
from degaml_kedro.parameters import (
    BASELINES,
    READ_SUPPORT,
    AdaptationSetting,
    BaseModelParameters,
    FolderModel,
    GeneratorParameters,
    GeneratorVariant,
    HyperconvolutionalDecoder,
    InnerLoopTraining,
    MetaTraining,
    PackageModel,
    PolicyParameters,
    ProjectParameters,
    RandomModel,
    SplitSizes,
    TrainingParameters,
)
from degaml_kedro.pipelines.baselines.nodes import (
    adapt_and_predict,
    adapt_baseline,
    fit_baseline,
    fit_union,
    predict_baseline,
    search_settings,
    union_warmup,
)
from degaml_kedro.pipelines.checkpoints.nodes import (
    train_alone,
    train_on_drawn_tasks,
    train_on_pool,
    train_trajectory,
)
from degaml_kedro.pipelines.evaluate.nodes import (
    choose_strategies,
    execute_fallback,
    execute_strategies,
    generate_adapters,
    predict,
    predict_adapted,
    predict_oracle,
)
from degaml_kedro.pipelines.generator.nodes import train as train_generator
from degaml_kedro.pipelines.policy.nodes import roll_out_task, train_policy
from degaml_kedro.pipelines.tasks.nodes import read_source
from degaml_kedro.pipelines.tokenize.nodes import encode_prompts, tokenize_trajectory
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.search import most_trials
from degaml_kedro.strategies.registry import FieldSpace
from degaml_kedro.strategies.seen import Labeled

logger = logging.getLogger(__name__)

STAGES = (
    "tasks",
    "checkpoints",
    "tokenize",
    "generator",
    "policy",
    "baselines",
    "evaluate",
    "report",
)
_OTHER = "other"

_TRAINED = 3  # a backward pass is twice a forward pass
# a training pass in units of a forward one: through the backward pass of inner steps, and with weights that are sampled
# whole and compared with those of all tasks, which costs as much whatever the batch
_SECOND_ORDER, _SAMPLED = 12, 30
_EFFICIENCY = 0.6
# what stands in front of a bare question in the suite and elsewhere, and what the options and the rest add
_SUITE_QUESTION, _QUESTION, _OPTIONS, _CHAT, _ANSWER = 14, 90, 30, 25, 4
# what the policy reads and writes
_STATE, _ACTION = 230, 40
# of a policy's trials, those that are rewarded
_REWARDED = 0.5
# a node's own: reading, writing, checking
_NODE_SECONDS = 0.05
_MEASURE_SECONDS = 0.08


@dataclass(frozen=True)
class StageCost:
    """What a stage will do.

    Attributes:
        stage: its name.
        nodes: how many of its nodes are to run.
        units: what they do, in words; empty where nothing is known.
        seconds: about how long it takes; None where that is not known.
    """

    stage: str
    nodes: int
    units: str
    seconds: float | None

    @property
    def work(self) -> str:
        """``80 trials on 10 tasks, 2 learning steps; about 4 min``."""
        parts = [self.units or _counted(self.nodes, "node")]
        if self.seconds is not None:
            parts.append(about(self.seconds))
        return "; ".join(parts)


@dataclass(frozen=True)
class Work:
    """What one node does.

    Attributes:
        unit: what is counted: ``training step``.
        count: how many of it.
        detail: what follows the count: `` of 8 examples``.
        task: on which task, where it is worth a count.
        flop: operations of the language model, in its own floating type; NaN where they are not known.
        float32: operations of anything else, in float32.
        alone: no two nodes of the kind run at the same time.
    """

    unit: str
    count: int
    detail: str = ""
    task: str | None = None
    flop: float = 0.0
    float32: float = 0.0
    alone: bool = False


@dataclass(frozen=True)
class ModelSize:
    """The size of a decoder as Llama's.

    Attributes:
        layers: of them.
        hidden: width.
        inner: width inside the feed-forward part.
        key_value: width of keys and values.
        vocabulary: tokens.
    """

    layers: int
    hidden: int
    inner: int
    key_value: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Weights, the embedding once."""
        layer = 2 * self.hidden * (self.hidden + self.key_value) + 3 * self.hidden * self.inner
        return self.layers * layer + self.hidden * self.vocabulary

    @property
    def sides(self) -> int:
        """Inputs and outputs of all linear layers together: what a LoRA has for every rank."""
        attention = 6 * self.hidden + 2 * self.key_value
        return self.layers * (attention + 3 * (self.hidden + self.inner))


def stage_costs(
    pipeline: Pipeline, parameters: ProjectParameters, threads: int = 1
) -> list[StageCost]:
    """What every stage that has nodes in a pipeline will do and take.

    Args:
        pipeline: what is to run; nodes of somebody else's are counted.
        parameters: the project's.
        threads: how many nodes run at the same time.

    Returns:
        In the order of the stages.
    """
    by_stage: dict[str, list[Node]] = {stage: [] for stage in (*STAGES, _OTHER)}
    for node in pipeline.nodes:
        by_stage[stage_of(node)].append(node)
    known = _Sizes(parameters)
    rates = functools.cache(lambda dtype: _rate(dtype))
    costs = []
    for stage, nodes in by_stage.items():
        if not nodes:
            continue
        works = [(_verb(node), _work(node, parameters, known)) for node in nodes]
        seconds = None
        if stage != _OTHER and _on_cpu(parameters.model):
            seconds = _seconds(works, parameters.model, threads, rates)
        units = _units(work for _, work in works if work is not None)
        costs.append(StageCost(stage, len(nodes), units, seconds))
    return costs


def stage_of(node: Node) -> str:
    """The stage that a node belongs to."""
    stage = (node.namespace or "").partition(".")[0]
    return stage if stage in STAGES else _OTHER


def about(seconds: float) -> str:
    """A time as one says it.

    Example:
        >>> about(7), about(44), about(250), about(9000)
        ('a few seconds', 'about 40 s', 'about 4 min', 'about 2.5 h')
    """
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def _counted(count: int, unit: str, detail: str = "") -> str:
    return f"{count:,} {unit}{'' if count == 1 else 's'}{detail}"


def _units(works: Iterable[Work]) -> str:
    counts: dict[tuple[str, str], int] = {}
    tasks: dict[tuple[str, str], set[str]] = {}
    for work in works:
        key = work.unit, work.detail
        counts[key] = counts.get(key, 0) + work.count
        if work.task is not None:
            tasks.setdefault(key, set()).add(work.task)
    return ", ".join(
        _counted(count, *key) + (f" on {_counted(len(tasks[key]), 'task')}" if key in tasks else "")
        for key, count in counts.items()
        if count
    )


def _seconds(
    works: Sequence[tuple[Callable[..., Any], Work | None]],
    model: BaseModelParameters,
    threads: int,
    rate: Callable[[torch.dtype], float],
) -> float | None:
    """A stage's time: its kinds of nodes one after the other, the nodes of a kind side by side."""
    kinds: dict[Callable[..., Any], list[Work]] = {}
    for verb, work in works:
        kinds.setdefault(verb, []).append(work or Work("", 0))
    total = 0.0
    for found in kinds.values():
        flop, float32 = (sum(getattr(work, name) for work in found) for name in ("flop", "float32"))
        own = _NODE_SECONDS * len(found)
        if flop:
            own += flop / (rate(choose_dtype(model.dtype, torch.device("cpu"))) * _EFFICIENCY)
        if float32:
            own += float32 / (rate(torch.float32) * _EFFICIENCY)
        total += own if found[0].alone else own / min(threads, len(found))
    return total if math.isfinite(total) else None


# --- what the nodes do ----------------------------------------------------------------------------


class _Sizes:
    """What works need to know, from parameters and the headers of files."""

    def __init__(self, parameters: ProjectParameters) -> None:
        self._parameters = parameters
        self.model = model_size(parameters.model)
        own = parameters.policy.model if parameters.policy else None
        self.policy_model = self.model if own is None else model_size(own)

    def splits(self, task: str) -> SplitSizes:
        return self._parameters.tasks[task].splits or self._parameters.splits

    def tokens(self, task: str) -> int:
        """Of a question and what is compared or learned of its answer, guessed."""
        settings = self._parameters
        entry = settings.tasks[task]
        suite = entry.source.kind in ("suite", "episode")
        tokens = (_SUITE_QUESTION if suite else _QUESTION) + _ANSWER
        if settings.prompt.options != "hidden":
            tokens += _OPTIONS
        scoring = settings.scoring_of(task)
        if not suite and scoring.answers == "text" and not scoring.is_open:
            tokens += _OPTIONS
        tokens += scoring.room
        return tokens + (_CHAT if settings.prompt.format == "chat" else 0)

    def flop(self, tokens: float) -> float:
        return _flop(self.model, tokens)

    def policy_flop(self, tokens: float) -> float:
        return _flop(self.policy_model, tokens)


def _flop(size: ModelSize | None, tokens: float) -> float:
    return math.nan if size is None else 2.0 * size.parameters * tokens


def _verb(node: Node) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(node.func, "func", node.func)
    return found


def _work(node: Node, parameters: ProjectParameters, sizes: _Sizes) -> Work | None:
    """What a node does, or None for one that takes no time worth a word, or is somebody else's."""
    count = _COUNTED.get(_verb(node))
    if count is None:
        return None
    try:
        return count(node, getattr(node.func, "keywords", {}), parameters, sizes)
    except Exception as error:  # noqa: BLE001 - an estimate must not end a run, whatever parameters or families do
        logger.debug("what %s costs is not known: %r", node.name, error)
        return Work("node", 1, flop=math.nan)


Names = Mapping[str, Any]
Count = Callable[[Node, Names, ProjectParameters, _Sizes], Work]


def _examples(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    splits = sizes.splits(names["task"])
    count = splits.train + splits.support + splits.validation + splits.test
    return Work("example", count, task=names["task"])


def _steps(training: TrainingParameters, tokens: float, sizes: _Sizes) -> Work:
    steps = sum(phase.steps for phase in training.phases)
    flop = sizes.flop(_TRAINED * steps * training.batch_size * tokens)
    return Work("training step", steps, f" of {training.batch_size} examples", flop=flop)


def _pool(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    tasks = [name.removesuffix(".splits") for name in node.inputs if name.endswith(".splits")]
    tokens = sum(sizes.tokens(task) for task in tasks) / max(1, len(tasks))
    return _steps(parameters.warmup, tokens, sizes)


def _drawn_pool(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    warmup = parameters.warmup
    if node.func is fit_union and parameters.baselines is not None:
        warmup = union_warmup(warmup, parameters.baselines)
    tokens = sum(map(sizes.tokens, parameters.meta_train)) / len(parameters.meta_train)
    # three quarters of the demonstrations on average, read once for all queries
    behind = 0.75 * warmup.shots + warmup.context_queries
    share = warmup.context_share
    questions = share * behind + (1 - share) * warmup.batch_size
    steps = sum(phase.steps for phase in warmup.phases)
    flop = sizes.flop(_TRAINED * steps * questions * tokens)
    return Work("training step", steps, " on drawn tasks", flop=flop)


def _trajectory(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    return _steps(parameters.trajectory.training, sizes.tokens(names["task"]), sizes)


def _alone(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    return _steps(parameters.no_meta_train, sizes.tokens(names["task"]), sizes)


def _checkpoints(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    phases = parameters.trajectory.training.phases
    return Work("checkpoint", sum(phase.steps for phase in phases), " cut into tokens")


def _prompts(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    splits = sizes.splits(names["task"])
    count = min(_generator(parameters).encoder.train_prompts, splits.train) + splits.support
    # an encoder of 11 million weights besides its embeddings, whatever is configured
    return Work("prompt", count, " read", flop=2 * 11e6 * count * sizes.tokens(names["task"]))


def _generator_steps(
    node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes
) -> Work:
    settings = _generator(parameters)
    variant = settings.variants[names["variant"]]
    training = variant.training
    every = (*names["names"], *names["left_out"])
    pairs = training.steps * training.batch_size
    tokens = sum(sizes.tokens(task) for task in every) / len(every)
    learned = _TRAINED * pairs * training.sft_examples * tokens if training.sft else 0.0
    checks = training.steps // training.check_every if training.check_every else 0
    asked = checks * len(every) * training.check_examples * tokens
    decoder = 2.0 * _multiply_adds(settings, variant, parameters.lora.rank, sizes.model)
    made = decoder * (_TRAINED * pairs + checks * len(every))
    half = training.precision == "bfloat16"
    return Work(
        "training step",
        training.steps,
        f" of {_counted(training.batch_size, 'adapter')} ({names['variant']})",
        flop=sizes.flop(learned + asked) + (made if half else 0.0),
        float32=0.0 if half else made,
    )


def _generator(parameters: ProjectParameters) -> GeneratorParameters:
    assert parameters.generator is not None
    return parameters.generator


def _policy(parameters: ProjectParameters) -> PolicyParameters:
    assert parameters.policy is not None
    return parameters.policy


def _multiply_adds(
    settings: GeneratorParameters, variant: GeneratorVariant, rank: int, model: ModelSize | None
) -> float:
    """Of a decoder, one sample forward."""
    decoder = variant.decoder
    if isinstance(decoder, HyperconvolutionalDecoder):
        return total_cost(flow_costs(decoder.flow, decoder.kernel_size)).multiply_adds
    if model is None:
        return math.nan
    width = settings.tokenization.token_width
    tokens = model.sides / width
    inside = 4 * decoder.blocks * decoder.width**2 + decoder.width * decoder.rank
    return tokens * (inside + decoder.rank * rank * width)


def _drawn(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    adapters = sum(name.endswith(".adapter") for name in node.outputs)
    return Work("adapter", adapters, " generated")


def _asked(task: str, times: float, sizes: _Sizes) -> Work:
    count = sizes.splits(task).test
    flop = sizes.flop(times * count * sizes.tokens(task))
    return Work("question", round(times * count), flop=flop)


def _answers(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    adapters = sum(name.endswith("adapter") for name in node.inputs)
    return _asked(names["task"], max(1, adapters), sizes)


def _adapted(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    # a strategy may have made several adapters of one
    return _asked(names["task"], 1, sizes)


def _oracle(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    return _asked(names["task"], 1 + _policy(parameters).oracle_candidates, sizes)


def _rollouts(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    policy = _policy(parameters)
    task, settings = names["task"], policy.rollouts
    examples = min(settings.examples, sizes.splits(task).validation)
    measured = sizes.splits(task).validation * sizes.tokens(task)
    most = settings.count * settings.steps
    # a family that reads answers learns from other examples than those that are scored
    return _trials(policy, most, examples, 1, measured, task, sizes)


def _search(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    policy = _policy(parameters)
    task, settings = names["task"], policy.search
    examples = min(settings.examples, sizes.splits(task).support)
    measured = settings.rounds * examples * sizes.tokens(task)
    folds = settings.folds if settings.rule == "paired" else 2
    space = ActionSpace.of(policy.families)
    # what puts trials together computes nothing
    most = most_trials(settings, space) - settings.rounds * len(space.pooling)
    return _trials(policy, most, examples, folds, measured, task, sizes)


def _trials(
    policy: PolicyParameters,
    count: int,
    examples: int,
    folds: int,
    measured: float,
    task: str,
    sizes: _Sizes,
) -> Work:
    tokens = sizes.tokens(task)
    flop = sizes.flop(measured + count * _trial_tokens(policy, examples, folds, tokens))
    flop += sizes.policy_flop(count * (_STATE + _ACTION))
    return Work("trial", count, task=task, flop=flop)


def _trial_tokens(policy: PolicyParameters, examples: int, folds: int, tokens: int) -> float:
    """Of a trial whose strategy is drawn uniformly: refining, and answering D_val."""
    space = ActionSpace.of(policy.families)
    total = 0.0
    for family in space.proposed:
        fields = {field.name: _mean(field) for field in space.fields[family.name]}
        steps = fields.get("ttl_steps", fields.get("steps", 0.0))
        # one that sees answers is refined once a fold of D_val
        times = folds if family.sees is Labeled else 1
        total += times * _TRAINED * steps * fields.get("batch_size", 1.0) * tokens
        total += fields.get("num_prompt_batches", 1.0) * examples * tokens
    return total / len(space.proposed)


def _mean(field: FieldSpace) -> float:
    numbers = [float(value) for value in field.offered if isinstance(value, int | float)]
    return sum(numbers) / max(1, len(numbers))


def _execution(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    flop = sizes.flop(_trial_tokens(_policy(parameters), 0, 1, sizes.tokens(names["task"])))
    return Work("adaptation", 1, flop=flop)


def _learning(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    policy = _policy(parameters)
    frames = sum(name.endswith(".rollouts") for name in node.inputs)
    actions = min(
        policy.training.max_actions,
        _REWARDED * frames * policy.rollouts.count * policy.rollouts.steps,
    )
    flop = sizes.policy_flop(_TRAINED * policy.training.epochs * actions * (_STATE + _ACTION))
    return Work("learning step", 1, flop=flop, alone=True)


def _episodes(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    entry = _meta(names["method"], parameters)
    tokens = sum(sizes.tokens(task) for task in names["tasks"]) / len(names["tasks"])
    count = entry.outer_steps * entry.tasks_per_step
    inner = _trained(names["method"])
    # half of the demonstrations on average, read once for all queries
    passes = inner * (entry.support / 2 + entry.query)
    if isinstance(entry, InnerLoopTraining):
        passes = inner * entry.inner_steps * entry.support + min(inner, _SAMPLED) * entry.query
    return Work("episode", count, flop=sizes.flop(count * passes * tokens))


def _meta(method: str, parameters: ProjectParameters) -> MetaTraining:
    entry = getattr(parameters.baselines, BASELINES[method])
    assert isinstance(entry, MetaTraining)
    return entry


def _trained(method: str) -> int:
    return {"maml_en_llm": _SECOND_ORDER, "abmll": _SAMPLED}.get(method, _TRAINED)


def _tried(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    assert parameters.baselines is not None
    task, method = names["task"], names["method"]
    settings = settings_of(method, parameters.baselines)
    asked = min(parameters.baselines.search.examples, sizes.splits(task).validation)
    tokens = sum(
        _adapting(method, setting, task, sizes) + _asking(method, parameters, asked, task, sizes)
        for setting in settings
    )
    return Work("setting", len(settings), " tried", flop=sizes.flop(tokens))


def _adapting(method: str, setting: Setting, task: str, sizes: _Sizes) -> float:
    if not isinstance(setting, AdaptationSetting):
        return 0.0
    passes = _SAMPLED if method == "abmll" else _TRAINED
    return passes * setting.steps * setting.batch_size * sizes.tokens(task)


def _asking(
    method: str, parameters: ProjectParameters, count: int, task: str, sizes: _Sizes
) -> float:
    times = 1
    if method == "abmll" and parameters.baselines and parameters.baselines.abmll:
        times = parameters.baselines.abmll.samples
    if method == "sentence_head":
        # the base model is not asked
        return 0.0
    if method in READ_SUPPORT:
        # the examples are read once for many questions, but a question once for each of its options
        times = 4
    return float(times * count * sizes.tokens(task))


def _support(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    assert parameters.baselines is not None
    # which one is chosen is not known yet
    settings = settings_of(names["method"], parameters.baselines)
    tokens = [_adapting(names["method"], one, names["task"], sizes) for one in settings]
    return Work("adaptation", 1, flop=sizes.flop(sum(tokens) / len(tokens)))


def _compared(node: Node, names: Names, parameters: ProjectParameters, sizes: _Sizes) -> Work:
    task, method = names["task"], names["method"]
    count = sizes.splits(task).test
    return Work("question", count, flop=sizes.flop(_asking(method, parameters, count, task, sizes)))


_COUNTED: Mapping[Callable[..., Any], Count] = {
    fit_baseline: _episodes,
    search_settings: _tried,
    adapt_baseline: _support,
    predict_baseline: _compared,
    adapt_and_predict: _compared,
    read_source: _examples,
    train_on_pool: _pool,
    train_on_drawn_tasks: _drawn_pool,
    fit_union: _drawn_pool,
    train_trajectory: _trajectory,
    train_alone: _alone,
    tokenize_trajectory: _checkpoints,
    encode_prompts: _prompts,
    train_generator: _generator_steps,
    generate_adapters: _drawn,
    predict: _answers,
    predict_adapted: _adapted,
    predict_oracle: _oracle,
    roll_out_task: _rollouts,
    choose_strategies: _search,
    execute_fallback: _execution,
    execute_strategies: _execution,
    train_policy: _learning,
}


# --- the machine ----------------------------------------------------------------------------------


def threads_of(runner: str) -> int:
    """How many nodes run at the same time without taking each other's cores.

    Args:
        runner: its name, as Kedro's run record has it.
    """
    if runner == "None" or "SequentialRunner" in runner:
        return 1
    return max(1, (os.cpu_count() or 1) // torch.get_num_threads())


def _rate(dtype: torch.dtype) -> float:
    """Operations a second of a matrix product on this CPU: the best of some, for others may use the machine."""
    a = torch.ones(512, 1024, dtype=dtype)
    b = torch.ones(1024, 1024, dtype=dtype)
    best = math.inf
    end = time.perf_counter() + _MEASURE_SECONDS
    while True:
        began = time.perf_counter()
        try:
            torch.mm(a, b)
        except RuntimeError:  # not in this type, on this processor
            return math.nan
        now = time.perf_counter()
        best = min(best, now - began)
        if now > end:
            return 2.0 * 512 * 1024 * 1024 / best


def _on_cpu(model: BaseModelParameters) -> bool:
    if model.device != "auto":
        return model.device == "cpu"
    # counted without starting CUDA, which processes that are forked later could not do again
    return torch.cuda.device_count() == 0 and not torch.backends.mps.is_available()


# --- the model ------------------------------------------------------------------------------------


def model_size(parameters: BaseModelParameters) -> ModelSize | None:
    """A model's size from its ``config.json`` or its GGUF header; None where neither is on this machine.

    Args:
        parameters: which model.
    """
    source = parameters.source
    try:
        if isinstance(source, RandomModel):
            inner, key_value = 2 * source.hidden_size, source.hidden_size // 2
            return ModelSize(source.layers, source.hidden_size, inner, key_value, 259)
        if isinstance(source, PackageModel):
            file = in_package(source.package, source.gguf_file)
            return None if file is None else _size_of_gguf(file)
        if isinstance(source, FolderModel):
            folder = Path(source.path).expanduser()
            if source.gguf_file is not None:
                return _size_of_gguf(folder / source.gguf_file)
            return _size_of_config(folder / "config.json")
        cached = try_to_load_from_cache(source.id, "config.json", revision=source.revision)
        return _size_of_config(Path(cached)) if isinstance(cached, str) else None
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, struct.error) as error:
        logger.debug("the size of the model %s is not known: %r", source, error)
        return None


def _size_of_config(path: Path) -> ModelSize:
    config = json.loads(path.read_text(encoding="utf-8"))
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    return ModelSize(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        inner=config["intermediate_size"],
        key_value=head * config.get("num_key_value_heads", heads),
        vocabulary=config["vocab_size"],
    )


def _size_of_gguf(path: Path) -> ModelSize:
    # converted before: the same numbers, under the names of Transformers
    for config in (cache_folder() / "models").glob(f"{path.stem}-*/config.json"):
        return _size_of_config(config)
    with path.open("rb") as file:
        facts = _gguf_facts(file)
    kind = facts["general.architecture"]
    hidden, heads = facts[f"{kind}.embedding_length"], facts[f"{kind}.attention.head_count"]
    return ModelSize(
        layers=facts[f"{kind}.block_count"],
        hidden=hidden,
        inner=facts[f"{kind}.feed_forward_length"],
        key_value=hidden // heads * facts.get(f"{kind}.attention.head_count_kv", heads),
        # without reading the vocabulary: what is common
        vocabulary=facts.get(f"{kind}.vocab_size", 49152),
    )


_GGUF_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_GGUF_TEXT, _GGUF_LIST = 8, 9


def _gguf_facts(file: BinaryIO) -> dict[str, Any]:
    """What a GGUF file says of its model, up to the vocabulary: the package that reads all of it takes seconds."""
    _, _, _, count = struct.unpack("<4sIQQ", file.read(24))
    facts: dict[str, Any] = {}
    for _ in range(count):
        name = _gguf_value(file, _GGUF_TEXT)
        if name.startswith("tokenizer."):
            break
        facts[name] = _gguf_value(file, *_unpacked(file, "I"))
    return facts


def _gguf_value(file: BinaryIO, kind: int) -> Any:
    if kind == _GGUF_TEXT:
        return file.read(_unpacked(file, "Q")[0]).decode("utf-8", "replace")
    if kind == _GGUF_LIST:
        inside, length = *_unpacked(file, "I"), *_unpacked(file, "Q")
        return [_gguf_value(file, inside) for _ in range(length)]
    return _unpacked(file, _GGUF_NUMBERS[kind])[0]


def _unpacked(file: BinaryIO, kind: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))
