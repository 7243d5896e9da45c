"""The configuration's shape: every key of ``conf/*/parameters*.yml``, validated once, at the edge.

Unknown keys and out-of-range values are errors. Nothing below this module reads configuration: nodes receive all of it
as one frozen ``ProjectParameters``.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeVar, get_args

import regex
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic import BaseModel as _PydanticModel

from degaml_kedro.config.methods import METHODS, Method, names

ScoringMode = Literal["letter", "text", "generate"]
# how an answer is written: its option's label in brackets, or its text
AnswerForm = Literal["letter", "text"]
Normalization = Literal["none", "characters", "tokens"]

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
# without dots: looking for a submodule would import, and so run, the package above it
PackageName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]


def _plain_path(text: str) -> str:
    path = PurePosixPath(text)
    odd = not text.isprintable() or any(mark in text for mark in "\\:")
    if odd or not text or path.is_absolute() or ".." in path.parts:
        raise ValueError("a relative path is needed, with '/' alone and without '..'")
    return text


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("half a character (a lone surrogate) stands in it") from error
    return text


def _compiles(pattern: str) -> str:
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"extraction.regex is no regular expression: {error}") from error
    return pattern


PlainPath = Annotated[str, AfterValidator(_plain_path)]
# a stranger's folder may bring one: it is short here, and searched for with a time limit (llm/extraction.py)
RegularExpression = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_compiles)]
Text = Annotated[str, AfterValidator(_utf8)]


class Parameters(_PydanticModel):
    """Base of all parameter groups: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


Part = TypeVar("Part", bound=Parameters)


# --- base model -----------------------------------------------------------------------------------


class HubModel(Parameters):
    """A causal language model on the Hugging Face hub."""

    kind: Literal["hub"]
    id: str
    revision: str = "main"


class FolderModel(Parameters):
    """A model folder on disk: ``config.json``, safetensors weights and a tokenizer (or one GGUF file)."""

    kind: Literal["folder"]
    path: str
    gguf_file: PlainPath | None = None


class PackageModel(Parameters):
    """A GGUF file that an installed Python package ships."""

    kind: Literal["package"]
    package: PackageName
    gguf_file: PlainPath


class RandomModel(Parameters):
    """A tiny randomly initialised Llama with a byte-level tokenizer, for smoke runs and tests."""

    kind: Literal["random"]
    hidden_size: int = Field(32, ge=8)
    layers: int = Field(2, ge=1)
    seed: int = 0


class BaseModelParameters(Parameters):
    """Which frozen language model, and where and how it runs."""

    source: Annotated[
        HubModel | FolderModel | PackageModel | RandomModel, Field(discriminator="kind")
    ]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    # algorithms of this process that give the same bits every time, on a GPU, too, where they are slower; what has none
    # is refused by PyTorch
    deterministic: bool = Field(False, exclude_if=operator.not_)


class PromptParameters(Parameters):
    """How an example becomes text: ``plain`` question-and-answer lines, or the model's chat template."""

    format: Literal["plain", "chat"] = "chat"
    # how the options stand in the prompt: as the "A: …" lines the example has, in one line, or not at all
    options: Literal["lines", "inline", "hidden"] = "lines"
    plain_prefix: Text = "Question: "
    plain_suffix: Text = "\nAnswer:"


class PatternExtraction(Parameters):
    """The answer in a generated text is what a regular expression finds: its group, or all of it without one."""

    regex: RegularExpression
    take: Literal["first", "last"] = "first"
    # what is found is compared with what is found in the right answer: as it is written, as a number or as a text
    compare: Literal["exact", "number", "text"] = "exact"


Extraction = Annotated[
    Annotated[Literal["letter", "number", "text"], Tag("name")]
    | Annotated[PatternExtraction, Tag("pattern")],
    Discriminator(lambda given: "name" if isinstance(given, str) else "pattern"),
]


class ScoringParameters(Parameters):
    """How answers are scored (see ``llm/scoring.py``)."""

    mode: ScoringMode = "letter"
    normalization: Normalization = "none"
    batch_tokens: int = Field(4096, ge=64, le=1_000_000)
    # of `generate`: how many tokens are written at most, and what of the text is the answer (llm/extraction.py)
    max_new_tokens: int = Field(16, ge=1, le=4096)
    extraction: Extraction = "letter"

    @property
    def is_open(self) -> bool:
        """Whether answers are compared as texts, so that a question needs no options."""
        return self.mode == "generate" and self.extraction != "letter"

    @property
    def answers(self) -> AnswerForm:
        """How answers are written where a model learns from them, or is shown them."""
        return "text" if self.mode == "text" or self.is_open else "letter"

    @property
    def room(self) -> int:
        """Tokens of the model's context that are kept for what it writes."""
        return self.max_new_tokens if self.mode == "generate" else 0


def _compares(scoring: ScoringParameters) -> ScoringParameters:
    if scoring.mode == "generate":
        raise ValueError(
            "answers are written (mode 'generate'), and here options are compared; a Kedro run scores written answers"
        )
    return scoring


# of a pair or an adaptation: its questions have options
ComparedScoring = Annotated[ScoringParameters, AfterValidator(_compares)]


def _as_mode(given: Any) -> Any:
    return {"mode": given} if isinstance(given, str) else given


# in a task's entry: a mode, or those values of `scoring` that are its own
TaskScoring = Annotated[ScoringParameters, BeforeValidator(_as_mode)]


# --- fine-tuning ----------------------------------------------------------------------------------


class LoraParameters(Parameters):
    """The adapter's shape, as PEFT's ``LoraConfig`` names it."""

    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    initialization_seed: int = 999


class Phase(Parameters):
    """A number of optimiser steps at one learning rate."""

    steps: int = Field(ge=1, le=1_000_000)
    learning_rate: float = Field(gt=0, le=1.0)


class TrainingParameters(Parameters):
    """One LoRA fine-tuning run: AdamW, constant learning rate within a phase, loss on response tokens."""

    phases: tuple[Phase, ...] = Field(min_length=1)
    batch_size: int = Field(32, ge=1, le=65536)
    max_examples: int = Field(5000, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)


class WarmupParameters(TrainingParameters):
    """The pooled warm-up: one adapter for all meta-train tasks."""

    # share of the steps whose examples stand behind labeled examples of their task, so that one adapter serves with
    # and without examples in the prompt
    context_share: float = Field(0.0, ge=0, le=1)
    # in these steps: demonstrations, between half of it and all, and examples that are learned behind them
    shots: int = Field(20, ge=1, le=40)
    context_queries: int = Field(4, ge=1, le=64)
    # in the others, where tasks are drawn: how many tasks share a batch
    tasks_per_step: int = Field(4, ge=1, le=64)


class TrajectoryParameters(Parameters):
    """Trajectories (App. C step 1.1): where they start, how they train, how a step is stored."""

    start: Literal["shared_random", "pooled_warmup"] = "shared_random"
    training: TrainingParameters
    store_dtype: Literal["float32", "bfloat16"] = "float32"


# --- generator ------------------------------------------------------------------------------------


class PackageEncoder(Parameters):
    """A sentence-transformers folder that an installed Python package ships."""

    kind: Literal["package"]
    package: PackageName
    folder: PlainPath


class RandomEncoder(Parameters):
    """A tiny randomly initialised BERT with a byte-level tokenizer, for smoke runs and tests."""

    kind: Literal["random"]
    hidden_size: int = Field(16, ge=4)
    seed: int = 0


class EncoderFolder(Parameters):
    """An encoder's folder on disk: ``config.json``, safetensors weights and a tokenizer."""

    kind: Literal["folder"]
    path: str


class EncoderParameters(Parameters):
    """The frozen prompt encoder, and which prompts of a task are stored for the generator."""

    source: Annotated[
        HubModel | EncoderFolder | PackageEncoder | RandomEncoder, Field(discriminator="kind")
    ]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    # L: tokens of a prompt that are kept
    tokens: int = Field(512, ge=1, le=8192)
    # how many prompts of a task's train split are stored; its support prompts are stored as well
    train_prompts: int = Field(5000, ge=1)
    # how the options stand in the prompt that the encoder reads
    options: Literal["lines", "inline", "hidden"] = "lines"
    batch_tokens: int = Field(8192, ge=64, le=1_000_000)


class TokenizationParameters(Parameters):
    """How LoRA weights become tokens (E.2)."""

    # k: columns of a token; its height is the rank. None: the greatest common divisor of all adapted widths, so that no
    # token has padding (Qwen2.5-0.5B: 128, 1.5B: 256, SmolLM2-135M: 192)
    token_width: int | None = Field(None, ge=1, le=65536)
    # what normalisation subtracts: the mean of each layer's, module's and matrix's cells (the paper), or every
    # cell's own mean over the trajectories, so that the generator only makes what tells adapters apart
    center: Literal["matrix", "element"] = "matrix"


class HyperconvolutionalDecoder(Parameters):
    """The paper's decoder (eq. 9)."""

    kind: Literal["hyperconvolutional"]
    # sizes (prompts, height, width) from the condition on; the token grid with its border follows where it is not the
    # last of them
    flow: tuple[tuple[int, int, int], ...] = Field(min_length=1)
    kernel_size: int = Field(9, ge=1, le=63)
    # computes a layer again in the backward pass instead of keeping what it made
    checkpoint: bool = False
    # convolutions get zeros as channels, up to a multiple of 8, which some cards multiply faster: off until measured
    pad_channels: bool = Field(False, exclude_if=operator.not_)


class FactorizedDecoder(Parameters):
    """The efficient decoder: one small network over (task, layer, module), low-rank heads per module."""

    kind: Literal["factorized"]
    condition_width: int = Field(128, ge=1, le=65536)
    width: int = Field(256, ge=1, le=65536)
    blocks: int = Field(2, ge=0, le=64)
    rank: int = Field(64, ge=1, le=65536)
    # the size of a fresh decoder's first steps, in units of the normalised tokens
    output_scale: float = Field(1.0, gt=0)


class AssociativeDecoder(Parameters):
    """A decoder that reads questions and answers: memories in a few layers, written by ridge regression.

    See ``llm/associative.py``. Beside the memories there is one LoRA for all tasks, of the profile's
    ``lora``.
    """

    kind: Literal["associative"]
    # which layers: the share that lies below each of those that add to the hidden state, attention's and the MLP's in
    # turn
    depths: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(min_length=1)
    # of a memory, at most; an adapter has this and the shared LoRA's together
    rank: int = Field(16, ge=1, le=1024)
    # of what is learned of a memory's metric and values
    metric_rank: int = Field(32, ge=1, le=1024)
    # where training starts: how much of the keys' mean direction is left out of them, lambda for keys of mean square
    # length 1, and the length of what a recalled answer adds, in lengths of the hidden state there
    center: float = Field(0.0, ge=-10, le=10)
    ridge: float = Field(0.1, gt=0, le=1.0e6)
    scale: float = Field(0.33, gt=0, le=1.0e3)
    seed: int = 0
    # learning rates in units of the shared LoRA's: of the maps, and of the numbers above
    map_rate: float = Field(4.0, ge=0, le=1.0e4)
    number_rate: float = Field(30.0, ge=0, le=1.0e4)


class GeneratorTraining(Parameters):
    """How a generator is trained: AdamW, linear warm-up, cosine decay to a tenth."""

    # weights of the two objectives: masked MSE on tokens (eq. 5/10), and the frozen model's loss on answers under
    # the generated adapter
    mse: float = Field(1.0, ge=0)
    sft: float = Field(0.0, ge=0)
    # 0: as it starts, which for an associative decoder is the closed form
    steps: int = Field(4000, ge=0, le=10_000_000)
    # pairs of an optimiser step, over all processes
    batch_size: int = Field(64, ge=1, le=65536)
    # pairs that go forward and back through the decoder at once: as many as fit the device's memory. None: all of a
    # process's share of the step
    device_batch_size: int | None = Field(None, ge=1, le=65536)
    # random (prompt batch, checkpoint) pairs of a task that training goes through, again and again
    pairs: int = Field(5000, ge=1)
    learning_rate: float = Field(3.0e-5, gt=0, le=1.0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    condition_noise: float = Field(1.0e-4, ge=0)
    target_noise: float = Field(1.0e-5, ge=0)
    variance_weighted: bool = False
    # what the decoder multiplies in, while it trains and afterwards; weights and moments stay in float32. auto is
    # bfloat16 where the hardware multiplies in it, else float16 on a GPU and float32 elsewhere. With float16 losses are
    # scaled
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    # the weights are cast to it for every use, so that norms and sums are computed in it, too: features take half the
    # memory
    cast_weights: bool = Field(False, exclude_if=operator.not_)
    # the decoder by torch.compile, and what is read of prompts and checkpoints for the next step while one is computed:
    # off until measured on a card
    compile: bool = Field(False, exclude_if=operator.not_)
    prefetch: bool = Field(False, exclude_if=operator.not_)
    # examples that the sft objective draws for every generated adapter
    sft_examples: int = Field(8, ge=1, le=65536)
    # and how many examples of a task an adapter is written from, where the decoder reads them: drawn of these numbers
    support: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field((20,), min_length=1)
    # how many tasks such a decoder learns from, of which every step has other examples; None: new ones in every step
    # where meta_train is a distribution, else all
    tasks: int | None = Field(None, ge=1)
    # in such a share of episodes the questions stand behind the support examples, too
    context_share: float = Field(0.0, ge=0, le=1)
    # weight of the divergence from the base model that has the support examples in its prompt (context distillation)
    distill: float = Field(0.0, ge=0)
    # a killed run goes on from the last multiple of it
    save_every: int = Field(100, ge=1)
    # held-out error and accuracy on meta-train validation questions; 0 for never
    check_every: int = Field(0, ge=0)
    check_examples: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _has_an_objective(self) -> GeneratorTraining:
        if self.mse == 0 and self.sft == 0:
            raise ValueError(
                "mse and sft are both 0, so there is nothing to train on; set one of them"
            )
        return self


class GeneratorVariant(Parameters):
    """A generator that is trained: a decoder, and how it learns."""

    decoder: Annotated[
        HyperconvolutionalDecoder | FactorizedDecoder | AssociativeDecoder,
        Field(discriminator="kind"),
    ]
    training: GeneratorTraining

    @property
    def condition(self) -> Literal["prompts", "examples"]:
        """What of a task is read: unlabelled prompts (the paper), or questions with their answers."""
        return "examples" if isinstance(self.decoder, AssociativeDecoder) else "prompts"

    @property
    def token_decoder(self) -> HyperconvolutionalDecoder | FactorizedDecoder:
        """The decoder of a variant that reads prompts."""
        assert not isinstance(self.decoder, AssociativeDecoder)
        return self.decoder

    @model_validator(mode="after")
    def _learns_from_answers(self) -> GeneratorVariant:
        if self.condition == "examples" and self.training.mse:
            raise ValueError(
                "the associative decoder learns from answers (sft): it makes no tokens that could be compared with a "
                "trajectory's; set training.mse to 0 and training.sft to 1"
            )
        of_episodes = [
            name for name in ("tasks", "context_share", "distill") if getattr(self.training, name)
        ]
        if self.condition == "prompts" and of_episodes:
            raise ValueError(
                f"training.{of_episodes[0]} is for an associative decoder, which learns from episodes: one that reads "
                "prompts learns from tasks that have a trajectory; leave it out"
            )
        of_tokens = ("device_batch_size", "cast_weights", "compile", "prefetch")
        given = [name for name in of_tokens if getattr(self.training, name)]
        if self.condition == "examples" and given:
            raise ValueError(
                f"training.{given[0]} is for a decoder that reads prompts: an associative one goes through an "
                "episode at a time, in the base model's precision; leave it out"
            )
        return self


class GeneratorParameters(Parameters):
    """The generalization module."""

    tokenization: TokenizationParameters
    encoder: EncoderParameters
    # what the encoder reads of a task: prompts alone (the paper), or examples, prompts with their answers. An
    # associative decoder reads examples in any case
    condition: Literal["prompts", "examples"] = "prompts"
    # N: prompts in a batch that the generator is conditioned on
    prompts: int = Field(128, ge=1, le=65536)
    # where a new task's batches are drawn from: its support prompts, or, as in the paper, a pool of unlabelled prompts:
    # its train split's, or its support prompts where it has none. Rollouts draw from the train split's in any case
    prompts_from: Literal["support", "train"] = "support"
    # by name; the first is what the method `generalization_only` means
    variants: dict[Name, GeneratorVariant] = Field(min_length=1)
    # adapters that a generator makes of a task, each from a prompt batch of its own
    draws: int = Field(1, ge=1, le=1000)
    # groups of meta-train tasks that get generators that never saw them, for results on these tasks
    leave_out: tuple[tuple[Name, ...], ...] = ()
    # score generated adapters on the tasks that their generator learned from, too
    score_seen: bool = False

    @model_validator(mode="after")
    def _pool_is_unlabelled(self) -> GeneratorParameters:
        if self.prompts_from == "train" and self.condition == "examples":
            raise ValueError(
                "prompts_from is 'train', a pool of unlabelled prompts, and with condition 'examples' answers are "
                "read; leave one of them out"
            )
        return self


# --- policy ---------------------------------------------------------------------------------------


class RewardParameters(Parameters):
    """What a trial earns."""

    # improvement: 1 where the score is strictly better than the initialization's, else 0 (the paper's, made strict);
    # utility: gain in accuracy minus a price per second
    kind: Literal["improvement", "utility"] = "improvement"
    # what decides between equal accuracies
    tie_break: Literal["log_probability", "none"] = "log_probability"
    # accuracy points (0 to 1) that a second is worth, for `utility`
    price_per_second: float = Field(0.0, ge=0, le=1.0)
    # share of trials whose reward is turned over, for studies of robustness; only while a policy is trained
    noise: float = Field(0.0, ge=0, le=0.5)

    @model_validator(mode="after")
    def _has_no_idle_key(self) -> RewardParameters:
        if self.kind == "utility" and self.noise > 0:
            raise ValueError(
                f"reward.noise is {self.noise:g}, but it turns over rewards of 0 and 1, and with kind 'utility' there "
                f"are none; leave it out, or use kind: improvement"
            )
        if self.kind == "improvement" and self.price_per_second > 0:
            raise ValueError(
                f"reward.price_per_second is {self.price_per_second:g}, but with kind 'improvement' seconds have no "
                f"price; leave it out, or use kind: utility"
            )
        return self


class RolloutParameters(Parameters):
    """Trials on a meta-train task in one iteration."""

    # episodes, per task and iteration
    count: int = Field(ge=1, le=100_000)
    # T of Algorithm 2: trials of an episode, each from where the one before it ended; one that reads answers ends it
    steps: int = Field(1, ge=1, le=100)
    # proposals that are written together and see the same history
    at_once: int = Field(4, ge=1, le=1024)
    # D_val: how many validation examples a trial is scored on
    examples: int = Field(20, ge=1)
    # whether every episode draws its own D_val
    resample: bool = True
    # wall-clock budget of a task and iteration; trials that it leaves no time for are not made
    seconds: float | None = Field(None, gt=0)


class SearchParameters(Parameters):
    """Test time: trials on the support examples of a new task."""

    # T: the best strategy of a round is executed, and the next round starts from there
    rounds: int = Field(2, ge=1, le=100)
    proposals: int = Field(4, ge=1, le=1024)
    # D_val: at most so many of the support examples are scored in a trial
    examples: int = Field(200, ge=1)
    # stop when a round has executed nothing
    early_stop: bool = True
    # wall-clock budget of a task
    seconds: float | None = Field(None, gt=0)
    # what is executed after a round. strict: the best of those that scored better than the start (the paper's); paired:
    # what a paired test on the support examples prefers to the fallback, else the fallback
    rule: Literal["strict", "paired"] = "strict"
    # of `paired`: into how many folds D_val is dealt for families that read answers
    folds: int = Field(2, ge=2, le=20)
    # of `paired`: the level of the one-sided test
    level: float = Field(0.05, gt=0, le=0.5)
    # of `paired`: actions as JSON, the best first; the first one that the action space allows is tried before what is
    # proposed. None: learned from the policy's rollouts, where there are any
    fallback: tuple[str, ...] | None = None
    # the same of open tasks, whose questions have options of their own; None: `fallback` serves all tasks
    open_fallback: tuple[str, ...] | None = None


class PolicyTraining(Parameters):
    """The policy's supervised step on rewarded actions (F.2)."""

    epochs: int = Field(8, ge=1, le=1000)
    learning_rate: float = Field(5.0e-5, gt=0, le=1.0)
    batch_size: int = Field(8, ge=1, le=65536)
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    # where an iteration's training starts: the policy before it, or the untrained one (ReST^EM as published)
    start: Literal["previous", "untrained"] = "previous"
    # which rewarded actions it learns from: this iteration's, or all so far
    learn_from: Literal["iteration", "all"] = "iteration"
    # at most so many of them, drawn evenly over tasks
    max_actions: int = Field(100_000, ge=1)


Limits = tuple[float | bool | str, ...]


class PolicyParameters(Parameters):
    """The adaptation module."""

    # None: the base model
    model: BaseModelParameters | None = None
    lora: LoraParameters = LoraParameters(rank=16, alpha=32.0)
    # which generator's adapters are refined; None: the first variant
    variant: Name | None = None
    # the action space: families, and by field narrower bounds than the family's own: [low, high], or the values allowed
    families: dict[Name, dict[str, Limits]] = Field(min_length=1)
    # rollouts on a task start from the adapters of a generator that never saw it: the meta-train tasks are dealt into
    # so many folds, and each costs a warm-up, trajectories and a generator. 0: from the generator that saw them all
    # (the paper)
    folds: int = Field(0, ge=0, le=1000)
    # iterations of ReST^EM
    iterations: int = Field(20, ge=1, le=10_000)
    rollouts: RolloutParameters
    # share of proposals drawn uniformly in the first iteration; it falls in a line to 0 after the last
    exploration: float = Field(0.5, ge=0, le=1.0)
    temperature: float = Field(1.0, ge=0, le=100.0)
    reward: RewardParameters = RewardParameters()
    training: PolicyTraining
    search: SearchParameters
    # strategies that `oracle_strategy` scores on the test split, beside those that other methods chose
    oracle_candidates: int = Field(10, ge=1, le=10_000)

    def search_temperature(self, search: SearchParameters) -> float:
        """The temperature of the policy's proposals in a search: a single one is the likeliest, several are drawn."""
        return 0.0 if search.proposals == 1 else self.temperature


# --- baselines ------------------------------------------------------------------------------------


class AdaptationSetting(Parameters):
    """Steps on the support examples of a task: one of the settings that a search tries."""

    steps: int = Field(ge=0, le=10_000)
    learning_rate: float = Field(gt=0, le=10.0)
    batch_size: int = Field(8, ge=1, le=65536)


class InContextSetting(Parameters):
    """How many support examples stand in the prompt, at most: one of the settings that a search tries."""

    shots: int = Field(ge=1, le=10_000)


class ClosedFormSetting(Parameters):
    """How an adapter is written without training (``llm/associative.py``): one of the settings that a search tries."""

    # which layer: the share that lies below it of those that add to the hidden state, attention's and the MLP's in turn
    depth: float = Field(0.9, ge=0, lt=1)
    # whether what inputs have in the direction of their mean is left out
    center: bool = True
    # lambda, for keys of mean square length 1
    ridge: float = Field(0.1, gt=0, le=1.0e6)
    # length of what a recalled answer adds, in lengths of the hidden state there
    scale: float = Field(1.0, gt=0, le=1.0e3)


MetaStart = Literal["shared_random", "pooled_warmup"]


class RegressionSetting(Parameters):
    """How strongly a logistic regression is regularized: one of the settings that a search tries."""

    # scikit-learn's C: the regularization's inverse
    c: float = Field(gt=0, le=1.0e6)


class MetaTraining(Parameters):
    """Meta-training by episodes: what all that learn from episodes have in common."""

    # where the shared weights start. pooled_warmup: where trajectories start, so that all methods share it
    start: MetaStart = "shared_random"
    outer_steps: int = Field(ge=1, le=1_000_000)
    # tasks of an outer step, and examples of an episode
    tasks_per_step: int = Field(2, ge=1, le=1024)
    support: int = Field(8, ge=1, le=65536)
    query: int = Field(8, ge=1, le=65536)
    outer_learning_rate: float = Field(gt=0, le=1.0)
    max_gradient_norm: float = Field(1.0, gt=0)


class InnerLoopTraining(MetaTraining):
    """Episodes whose support examples are learned from by gradient steps."""

    inner_steps: int = Field(2, ge=1, le=1000)
    inner_learning_rate: float = Field(gt=0, le=10.0)


class MamlParameters(InnerLoopTraining):
    """MAML-en-LLM (Sinha et al., 2024)."""

    # the inner steps are Adam's, from the moments of the outer optimiser; false: plain gradient steps
    share_moments: bool = True
    # other examples of the task in front of each meta-training prompt
    in_context_examples: int = Field(0, ge=0, le=64)
    settings: tuple[AdaptationSetting, ...] = Field(min_length=1)


class AbmllParameters(InnerLoopTraining):
    """ABMLL (Zhang, Snell and Griffiths, 2025)."""

    # c: the standard deviation of every weight at the start
    scale: float = Field(1.0e-3, gt=0)
    # weights of KL(task || shared) and of the hyper-prior on the shared weights
    beta: float = Field(1.0e-6, ge=0)
    gamma: float = Field(1.0e-12, ge=0)
    # S: weight samples that a prediction averages
    samples: int = Field(4, ge=1, le=1000)
    settings: tuple[AdaptationSetting, ...] = Field(min_length=1)


class SupportTraining(Parameters):
    """LoRA fine-tuning on the support examples."""

    settings: tuple[AdaptationSetting, ...] = Field(min_length=1)


class UnionParameters(SupportTraining):
    """Union training: one LoRA on all meta-train tasks, then fine-tuning on the support examples."""

    # where the pooled warm-up has examples in the prompt, union is trained by itself, for as many steps: this many
    # examples each; null: as in the warm-up's
    batch_size: int | None = Field(None, ge=1, le=65536)


class InContextParameters(Parameters):
    """In-context learning."""

    settings: tuple[InContextSetting, ...] = Field(min_length=1)


class MetaIclParameters(MetaTraining):
    """MetaICL (Min et al., 2022), and in-context tuning (Chen et al., 2022) by `metaict`.

    ``support`` is the largest number of demonstrations: an episode has a random number of them, from 1 on.
    """

    # that a step computes at most: an episode gives up demonstrations, then queries, where it takes more
    max_tokens: int = Field(1024, ge=64, le=1_000_000)
    settings: tuple[InContextSetting, ...] = Field(min_length=1)


class SentenceHeadParameters(Parameters):
    """Logistic regression on the embeddings of the support questions, by `generator.encoder`."""

    settings: tuple[RegressionSetting, ...] = Field(min_length=1)


class SettingsSearch(Parameters):
    """How every method's settings are chosen: on meta-train tasks that its weights have not seen."""

    # of the tasks that are held out (half of them), at most so many are tried on
    tasks: int = Field(3, ge=1)
    # validation questions of each
    examples: int = Field(60, ge=1)


class ClosedFormParameters(Parameters):
    """An adapter written from the support examples without training."""

    settings: tuple[ClosedFormSetting, ...] = Field(min_length=1)


class BaselinesParameters(Parameters):
    """The methods to compare with. Every one gets the same number of settings to choose from."""

    search: SettingsSearch = SettingsSearch()
    # score them on the meta-train tasks, too
    score_seen: bool = False
    icl: InContextParameters | None = None
    no_meta_train_support: SupportTraining | None = None
    union_train: UnionParameters | None = None
    maml_en_llm: MamlParameters | None = None
    abmll: AbmllParameters | None = None
    metaicl: MetaIclParameters | None = None
    sentence_head: SentenceHeadParameters | None = None
    closed_form: ClosedFormParameters | None = None

    @model_validator(mode="after")
    def _budgets_are_equal(self) -> BaselinesParameters:
        counts = {
            name: len(entry.settings)
            for name in type(self).model_fields
            if (entry := getattr(self, name)) is not None and hasattr(entry, "settings")
        }
        if len(set(counts.values())) > 1:
            raise ValueError(
                "every baseline gets the same number of settings to choose from, and here they have "
                + ", ".join(f"{name} {count}" for name, count in counts.items())
            )
        return self


# --- tasks ----------------------------------------------------------------------------------------


class SuiteSource(Parameters):
    """A family of the built-in suite."""

    kind: Literal["suite"]
    family: Name


class FileSource(Parameters):
    """A JSON, JSONL, CSV, TSV or Parquet file, or a folder holding one file per split."""

    kind: Literal["file"]
    path: str
    # keys of the question, of the options (one, or one an option) and of the answer; None for the usual names
    question: str | None = None
    options: str | tuple[str, ...] | None = None
    answer: str | None = None
    # questions without options stay so, each with an answer of its own; false: the file's answers are their options
    open_answers: bool = False
    # one file per split in a folder or through "{split}" in the path; None for a single file
    split_files: dict[str, str] | None = None
    # a prompt that two splits share: refused, or kept where it is tested on
    overlap: Literal["error", "drop_from_train"] = "error"
    # records with mistakes: left out, or nothing runs
    skip_mistakes: bool = False
    # of data that nobody may pass on: where the file is not there, pools do without the task, and that is said
    optional: bool = False


class HubSource(Parameters):
    """A dataset on the Hugging Face hub with a field mapping (see ``tasks/hub.py``)."""

    kind: Literal["hub"]
    id: str
    config: str | None = None
    revision: str = "main"
    splits: dict[str, str]
    mapping: str
    # a local copy in the hub's own schema: used instead of the network when set
    local_path: str | None = None

    @property
    def open_answers(self) -> bool:
        """Whether the questions have no options."""
        return self.mapping in ("gsm8k", "math")


class SplitSizes(Parameters):
    """How many examples each split takes."""

    train: int = Field(ge=0)
    support: int = Field(20, ge=1)
    validation: int = Field(ge=0)
    test: int = Field(ge=1)


class LabelFile(Parameters):
    """A file of texts with their labels (see ``tasks/labeled.py``)."""

    path: str
    text: str = "text"
    label: str = "label"
    # columns that say to which group of labels a row belongs, and whether it is for training or testing
    group: str | None = None
    split: str | None = None


Pool = Literal["train", "development", "final_1", "final_2", "final_3"]
Form = Literal["rules", "words", "messages"]
# the forms in which something can be unseen; in any of them where it is not named
_UNSEEN_IN: dict[str, tuple[Form, ...]] = {
    "rules": ("rules",),
    "labels": ("words", "messages"),
    "templates": ("messages",),
}


class SuiteDistribution(Parameters):
    """Tasks that only examples define, drawn from the suite without end (see ``tasks/episodes.py``)."""

    kind: Literal["suite"]
    pool: Pool = "train"
    # what no training task has: the rule (or the split of it), its domain, the words that stand for labels, or the
    # messages' templates
    unseen: Literal["rules", "domains", "labels", "templates"] | None = None
    # how often each form of task is drawn
    forms: dict[Form, Annotated[float, Field(ge=0)]] = {"rules": 1.0, "words": 1.0, "messages": 1.0}
    # fewest and most labels of a classification
    labels: tuple[Annotated[int, Field(ge=2, le=26)], Annotated[int, Field(ge=2, le=26)]] = (2, 6)
    # share of classifications whose labels are arbitrary words or codes instead of the classes' names
    coded: float = Field(0.5, ge=0, le=1)
    # options of a bare input
    options: int = Field(4, ge=2, le=8)
    splits: SplitSizes | None = None

    @model_validator(mode="after")
    def _is_of_a_pool(self) -> SuiteDistribution:
        if (self.pool == "train") != (self.unseen is None):
            raise ValueError(
                "a held-out pool says what is unseen in it (rules, domains, labels or templates), and the pool "
                "'train' has nothing unseen"
            )
        if self.labels[0] > self.labels[1]:
            raise ValueError(f"labels is {list(self.labels)}; the smaller number comes first")
        if not any(self.drawn_forms.values()):
            raise ValueError(
                f"forms gives no weight to any form of task that there is with unseen {self.unseen}: "
                f"{', '.join(_UNSEEN_IN.get(self.unseen or '', get_args(Form)))}"
            )
        return self

    @property
    def drawn_forms(self) -> dict[Form, float]:
        """The weights of the forms in which what is to be unseen can be."""
        among = _UNSEEN_IN.get(self.unseen or "", get_args(Form))
        return {form: weight for form, weight in self.forms.items() if form in among}


class FileDistribution(Parameters):
    """Classifications drawn from a file of texts with labels: some of the labels of a group, and their texts."""

    kind: Literal["file"]
    file: LabelFile
    # the groups that tasks are drawn from; empty for all
    groups: tuple[str, ...] = ()
    labels: tuple[Annotated[int, Field(ge=2, le=26)], Annotated[int, Field(ge=2, le=26)]] = (5, 5)
    coded: float = Field(0.0, ge=0, le=1)
    # whose label words stand for the labels of a coded task
    pool: Pool = "train"
    splits: SplitSizes | None = None


Distribution = Annotated[SuiteDistribution | FileDistribution, Field(discriminator="kind")]


class EpisodeSource(Parameters):
    """One task of a distribution: what was drawn, from which its examples follow."""

    kind: Literal["episode"]
    form: Literal["rules", "words", "messages", "file"]
    # the domain, word set, topic or group
    subject: str
    # a rule's name alone, or the classes in the order of their labels
    classes: tuple[str, ...] = Field(min_length=1)
    # what the answers are called; empty for a rule
    labels: tuple[str, ...] = ()
    options: int = Field(4, ge=2, le=8)
    pool: Pool = "train"
    unseen: Literal["rules", "domains", "labels", "templates"] | None = None
    file: LabelFile | None = None
    seed: int


class DrawnTasks(Parameters):
    """Meta-train tasks that are drawn: so many have trajectories, tokens and rollouts, others are drawn in nodes."""

    distribution: Name
    trajectory_tasks: int = Field(ge=1, le=10_000)
    # further ones that have rollouts alone: iterations of the policy after the first share them out
    rollout_tasks: int = Field(0, ge=0, le=10_000)


class TaskParameters(Parameters):
    """One task: data, not code."""

    description: str = ""
    group: str = ""
    source: Annotated[
        SuiteSource | FileSource | HubSource | EpisodeSource, Field(discriminator="kind")
    ]
    # None: the profile's
    splits: SplitSizes | None = None
    scoring: TaskScoring | None = None

    def scored(self, scoring: ScoringParameters) -> ScoringParameters:
        """How the task is scored: as the profile says, but for what the task's own entry sets."""
        if self.scoring is None:
            return scoring
        own = {name: getattr(self.scoring, name) for name in self.scoring.model_fields_set}
        return scoring.model_copy(update=own)


def required(part: Part | None) -> Part:
    """A part that the configuration has wherever it is asked for: without it there is no node that needs it."""
    assert part is not None
    return part


def task_scoring(
    scoring: Mapping[str, object], task_parameters: Mapping[str, object]
) -> ScoringParameters:
    """How a task is scored: as the profile says, but for what the task's own entry sets.

    Args:
        scoring: the profile's ``scoring``.
        task_parameters: the task's entry.
    """
    every = ScoringParameters.model_validate(scoring)
    return TaskParameters.model_validate(task_parameters).scored(every)


PLAIN_METHODS = names(lambda row: row.kind == "plain")
GENERATED = names(lambda row: row.kind == "generated")
ADAPTED = names(lambda row: row.kind == "adapted")
FROM_ROLLOUTS = names(lambda row: row.needs_rollouts)
# by method, the entry of `baselines` that it is set by
BASELINES = {row.name: row.entry for row in METHODS.values() if row.entry}
SUMMED = {row.name: row.parts for row in METHODS.values() if row.parts}
META_TRAINED = names(lambda row: row.kind == "baseline" and row.meta_trained)
READ_SUPPORT = names(lambda row: row.in_prompt)
CLASSIFIERS = names(lambda row: not row.asks_model)


class ProjectParameters(Parameters):
    """Everything in ``parameters*.yml``."""

    profile: str
    seed: int = Field(ge=0, lt=2**63)
    model: BaseModelParameters
    # on a Ray cluster with GPUs: how much of one a node takes that computes with a model; 0.5 lets two share one
    gpu_share: float = Field(1.0, gt=0, le=1)
    prompt: PromptParameters
    scoring: ScoringParameters
    splits: SplitSizes
    lora: LoraParameters
    warmup: WarmupParameters
    trajectory: TrajectoryParameters
    no_meta_train: TrainingParameters
    # used where a method needs it
    generator: GeneratorParameters | None = None
    policy: PolicyParameters | None = None
    baselines: BaselinesParameters | None = None
    # rows of the table in methods.py; generalization_only_NAME, other_prompts_NAME and shuffled_answers_NAME are those
    # of another variant
    methods: tuple[str, ...] = Field(min_length=1)
    tasks: dict[Name, TaskParameters]
    # a folder of files that are no part of the project, where an environment's tasks or distributions read some:
    # --params datasets=FOLDER
    datasets: str | None = None
    # what tasks are drawn from, by name
    distributions: dict[Name, Distribution] = {}
    # in a file: names of tasks, or {distribution: NAME, trajectory_tasks: n, rollout_tasks: m}: the loader draws n
    # tasks in its place, and m as rollout_tasks
    meta_train: tuple[Name, ...] = Field(min_length=1)
    # tasks that the policy's later iterations roll out in place of meta_train's
    rollout_tasks: tuple[Name, ...] = ()
    # names of tasks, or {NAME: n}: n tasks of each distribution
    meta_test: tuple[Name, ...] = ()
    # tasks that settings are chosen on, in neither of the others; likewise. None: some meta-train tasks are held out
    development: tuple[Name, ...] = ()
    # tasks that a pool names and whose optional file is not there: the loader takes them out of the pools
    absent: tuple[Name, ...] = ()
    # the distribution that meta_train was drawn from: warm-ups and baselines draw further tasks of it
    meta_train_distribution: Name | None = None

    @property
    def generated_methods(self) -> dict[str, str]:
        """The variant of every method that a generator serves, by the method's name."""
        return {
            method: self._variant_of(method)
            for method in self.methods
            if method.startswith(GENERATED)
        }

    def has_method(self, chosen: Callable[[Method], bool]) -> bool:
        """Whether a condition holds for the row of one of the methods."""
        return bool(set(names(chosen)) & set(self.methods))

    def scoring_of(self, task: str) -> ScoringParameters:
        """How a task is scored."""
        return self.tasks[task].scored(self.scoring)

    @property
    def trained_variants(self) -> tuple[str, ...]:
        """The variants that a method needs."""
        if self.generator is None:
            return ()
        wanted = set(self.generated_methods.values())
        if self.adapted_methods:
            wanted.add(self.policy_variant)
            wanted.add(self.writer_variant or self.policy_variant)
        return tuple(name for name in self.generator.variants if name in wanted)

    @property
    def writer_variant(self) -> str | None:
        """The first variant that reads examples, where strategies of the family ``written`` are tried."""
        if self.generator is None or self.policy is None or "written" not in self.policy.families:
            return None
        variants = self.generator.variants.items()
        return next((name for name, one in variants if one.condition == "examples"), None)

    def _variant_of(self, method: str) -> str:
        if self.generator is None:
            raise ValueError(f"the method {method} needs a generator; add the key 'generator'")
        prefix = next(name for name in GENERATED if method.startswith(name))
        if method == prefix:
            return next(iter(self.generator.variants))
        return method.removeprefix(f"{prefix}_")

    def reads_examples(self, method: str) -> bool:
        """Whether a generated method's adapters are written from questions with their answers."""
        assert self.generator is not None
        return self.generator.variants[self._variant_of(method)].condition == "examples"

    @property
    def needs_generator(self) -> bool:
        """Whether tokens, prompt states and a generator are made."""
        return bool(self.generated_methods or self.adapted_methods)

    @property
    def adapted_methods(self) -> tuple[str, ...]:
        """The methods that refine a generated adapter."""
        return tuple(method for method in self.methods if method in ADAPTED)

    @property
    def baseline_methods(self) -> tuple[str, ...]:
        """The methods of the pipeline ``baselines``."""
        return tuple(method for method in self.methods if method in BASELINES)

    @property
    def needs_support(self) -> bool:
        """Whether a method reads a new task's support answers."""
        return bool(self.adapted_methods or self.baseline_methods)

    @property
    def baselines_from_pool(self) -> tuple[str, ...]:
        """The baselines that start from the pooled warm-up."""
        return tuple(
            method
            for method in self.baseline_methods
            if METHODS[method].fitted_by_warmup
            or (
                isinstance(entry := getattr(self.baselines, BASELINES[method]), MetaTraining)
                and entry.start == "pooled_warmup"
            )
        )

    @property
    def needs_policy(self) -> bool:
        """Whether a policy is trained."""
        return "degaml" in self.methods

    @property
    def falls_back(self) -> bool:
        """Whether a search falls back on what was best in the policy's rollouts."""
        return (
            self.needs_policy
            and self.policy is not None
            and self.policy.search.rule == "paired"
            and self.policy.search.fallback is None
        )

    @property
    def learns_fallback(self) -> bool:
        """Whether what was best in the policy's rollouts is needed: by a search, or as a method."""
        return self.falls_back or self.has_method(lambda row: row.executes_fallback)

    @property
    def further_tasks(self) -> tuple[str, ...]:
        """The rollout tasks, where a policy is trained."""
        return self.rollout_tasks if self.needs_policy else ()

    def tasks_of_iteration(self, iteration: int) -> tuple[str, ...]:
        """The rollout tasks that are an iteration's own; nothing where it rolls out the meta-train tasks.

        Args:
            iteration: of ReST^EM, from 1.
        """
        if self.policy is None or iteration < 2:
            return ()
        return self.further_tasks[iteration - 2 :: self.policy.iterations - 1]

    @property
    def policy_variant(self) -> str:
        """The generator whose adapters are refined."""
        if self.generator is None or self.policy is None:
            raise ValueError("there is no policy here; add the keys 'generator' and 'policy'")
        return self.policy.variant or next(iter(self.generator.variants))

    @property
    def scores_seen(self) -> bool:
        """Whether generated adapters are scored on tasks that their generator learned from."""
        return self.generator is not None and self.generator.score_seen

    @property
    def needs_warmup(self) -> bool:
        """Whether the pooled warm-up is trained: trajectories or a baseline start from it, or a method scores it."""
        return (
            self.trajectory.start == "pooled_warmup"
            or self.has_method(lambda row: row.adapter == "pool.warmup_adapter")
            or bool(self.baselines_from_pool)
        )

    @property
    def trajectory_is_no_meta_train(self) -> bool:
        """Whether a meta-train task's trajectory is already the run that ``no_meta_train`` asks for."""
        return (
            self.trajectory.start == "shared_random"
            and self.trajectory.store_dtype == "float32"
            and self.trajectory.training == self.no_meta_train
        )

    @model_validator(mode="after")
    def _pools_name_declared_tasks(self) -> ProjectParameters:
        pools = ("meta_train", "rollout_tasks", "development", "meta_test")
        for pool in pools:
            names = getattr(self, pool)
            unknown = [name for name in names if name not in self.tasks]
            if unknown:
                raise ValueError(
                    f"{pool} names the unknown task(s) {', '.join(unknown)}; "
                    f"declare them under 'tasks' or use one of: {', '.join(sorted(self.tasks))}"
                )
            if len(set(names)) != len(names):
                raise ValueError(f"{pool} names a task twice: {', '.join(names)}")
        for one, other in itertools.combinations(pools, 2):
            both = sorted(set(getattr(self, one)) & set(getattr(self, other)))
            if both:
                raise ValueError(f"task(s) in both {one} and {other}: {', '.join(both)}")
        self._check_distribution()
        taken_names = (
            ("pool", "the pooled warm-up"),
            ("policy", "the policy's run"),
            ("search", "the search for settings"),
        )
        for taken, what in taken_names:
            if taken in self.tasks:
                raise ValueError(
                    f"a task is called '{taken}', which is the name of {what}; call it otherwise"
                )
        forms = {self.scoring_of(name).answers for name in self.meta_train}
        together = [method for method in self.methods if method in META_TRAINED]
        if self.needs_warmup and not together:
            together = ["the pooled warm-up"]
        if together and len(forms) > 1:
            raise ValueError(
                f"the answers of some meta-train tasks are letters, those of others texts (scoring), but "
                f"{', '.join(together)} train on them together; give them one, or use trajectory.start: shared_random "
                f"and leave {', '.join(('pooled', *META_TRAINED))} out of the methods"
            )
        for name in (name for pool in pools for name in getattr(self, pool)):
            source, scoring = self.tasks[name].source, self.scoring_of(name)
            if (
                isinstance(source, FileSource | HubSource)
                and source.open_answers
                and not scoring.is_open
            ):
                raise ValueError(
                    f"the questions of {name} have no options, and scoring by mode '{scoring.mode}' needs some; set "
                    f"tasks.{name}.scoring to {{mode: generate, extraction: number}}, or text, or a regular expression"
                )
        self._check_policy()
        self._check_baselines()
        for method in self.methods:
            if method in PLAIN_METHODS or method in self.adapted_methods or method in BASELINES:
                continue
            if method in SUMMED:
                for part in SUMMED[method]:
                    if part not in self.methods:
                        raise ValueError(
                            f"the method {method} adds {' and '.join(SUMMED[method])} up; add {part} to the methods"
                        )
                continue
            variants = tuple(self.generator.variants) if self.generator else ()
            known = [
                *PLAIN_METHODS,
                *BASELINES,
                *SUMMED,
                *(GENERATED if variants else ()),
                *(ADAPTED if variants and self.policy else ()),
                *(f"{name}_{variant}" for name in GENERATED for variant in variants),
            ]
            if method not in known:
                raise ValueError(
                    f"methods names the unknown method '{method}'; use of: {', '.join(known)}"
                )
            if method.startswith("shuffled_answers") and not self.reads_examples(method):
                raise ValueError(
                    f"{method} is a control of generators that read answers, and the decoder of that variant reads "
                    f"prompts alone; leave it out, or name one with decoder.kind: associative"
                )
        if self.generator is not None:
            for group in self.generator.leave_out:
                strange = [name for name in group if name not in self.meta_train]
                if strange or not group or len(set(group)) != len(group):
                    raise ValueError(
                        f"generator.leave_out has the group [{', '.join(group)}]; a group names meta-train tasks, each "
                        f"once: {', '.join(self.meta_train)}"
                    )
                if len(group) == len(self.meta_train):
                    raise ValueError(
                        "generator.leave_out leaves out every meta-train task; leave some in"
                    )
            left_out = [name for group in self.generator.leave_out for name in group]
            if len(set(left_out)) != len(left_out):
                raise ValueError(
                    "generator.leave_out leaves a task out in two groups; name each once"
                )
        if len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods names a method twice: {', '.join(self.methods)}")
        return self

    def _check_distribution(self) -> None:
        name = self.meta_train_distribution
        if name is None:
            return
        if name not in self.distributions:
            raise ValueError(f"meta_train is drawn from '{name}', which is no distribution")
        if self.generator is not None and self.generator.leave_out:
            raise ValueError(
                "generator.leave_out names listed meta-train tasks, and here they are drawn: a distribution's held-out "
                "pools (unseen) are what no training task has"
            )
        if self.policy is not None and self.needs_policy and self.policy.folds:
            raise ValueError(
                f"policy.folds is {self.policy.folds}, and meta-train tasks are drawn: rollouts there start from "
                f"adapters for other draws as they are; set policy.folds to 0"
            )

    def _check_baselines(self) -> None:
        for method in self.baseline_methods:
            entry = BASELINES[method]
            if self.baselines is None or getattr(self.baselines, entry) is None:
                raise ValueError(
                    f"the method {method} needs the key 'baselines.{entry}', and there is none"
                )
            if not METHODS[method].asks_model and self.generator is None:
                raise ValueError(
                    f"the method {method} reads questions with generator.encoder, and there is none; add the key "
                    f"'generator'"
                )
            if len(self.meta_train) < 2 and not self.development:
                raise ValueError(
                    f"the settings of {method} are chosen on meta-train tasks that are held out, and there is only "
                    f"one meta-train task; name at least two"
                )
        if not self.baseline_methods:
            return
        every = (*self.meta_train, *self.development, *self.meta_test)
        opened = next((name for name in every if self.scoring_of(name).is_open), None)
        classifier = next((name for name in self.methods if name in CLASSIFIERS), None)
        if classifier is not None and opened is not None:
            raise ValueError(
                f"{classifier} chooses among the answers of the support examples, and the answers of {opened} are "
                f"open (scoring.extraction); leave one of them out"
            )
        if not self.development and any(
            (self.tasks[name].splits or self.splits).validation < 1 for name in self.meta_train
        ):
            raise ValueError(
                "settings are chosen on validation examples of the meta-train tasks, and a task has none; "
                "set splits.validation"
            )

    def _check_policy(self) -> None:
        if not self.adapted_methods:
            return
        learning = next((name for name in FROM_ROLLOUTS if name in self.methods), None)
        if learning is not None and not self.needs_policy:
            raise ValueError(
                f"the method {learning} learns from degaml's rollouts; add degaml to the methods"
            )
        if self.generator is None or self.policy is None:
            missing = "generator" if self.generator is None else "policy"
            raise ValueError(
                f"the method {self.adapted_methods[0]} needs the key '{missing}', and there is none"
            )
        for method in self.adapted_methods:
            families = METHODS[method].families
            if families and not set(families) & set(self.policy.families):
                raise ValueError(
                    f"the method {method} chooses from {', '.join(families)}, and policy.families enables none of them"
                )
        if self.policy_variant not in self.generator.variants:
            raise ValueError(
                f"policy.variant is '{self.policy.variant}', which is none of generator.variants: "
                f"{', '.join(self.generator.variants)}"
            )
        if "written" in self.policy.families and self.writer_variant is None:
            raise ValueError(
                "policy.families enables 'written', and none of generator.variants reads examples; add one with "
                "decoder.kind: associative, or leave the family out"
            )
        if self.generator.variants[self.policy_variant].condition == "examples":
            raise ValueError(
                f"the policy refines adapters that know no answer yet: its trials are scored on the answers, and the "
                f"generator '{self.policy_variant}' reads them; set policy.variant to another of "
                f"generator.variants"
            )
        if self.generator.condition == "examples":
            raise ValueError(
                f"the policy refines adapters that know no answer yet: its trials are scored on the answers, and "
                f"generator.condition is 'examples'; leave the method {self.adapted_methods[0]} out, or set it to "
                f"'prompts'"
            )
        if self.further_tasks and self.policy.iterations < 2:
            raise ValueError(
                "rollout_tasks are for the policy's iterations after the first, and policy.iterations is 1; leave them "
                "out"
            )
        groups = [len(self.meta_train) - len(left) for left in ((), *self.generator.leave_out)]
        if self.needs_policy and self.policy.folds and not 2 <= self.policy.folds <= min(groups):
            raise ValueError(
                f"policy.folds is {self.policy.folds}; it is 0 or between 2 and {min(groups)}, the number of "
                f"meta-train tasks that a policy learns from"
            )
        if self.needs_policy and any(
            (self.tasks[name].splits or self.splits).validation < 1
            for name in (*self.meta_train, *self.further_tasks)
        ):
            raise ValueError(
                "the policy is rewarded on validation examples of the meta-train tasks, and a task has none; "
                "set splits.validation"
            )
