"""A generator that reads the examples: questions and answers in, a LoRA adapter out, in one forward pass.

It is trained over episodes (eq. 2 with the whole support set as the condition): an adapter is written from a task's
support examples and judged by the base model's loss on other examples of the task; both are drawn anew in every step.
Its folder has the files of any generator's (:mod:`~degaml_kedro.generator.generator`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from degaml_kedro.adapters.adapter import Adapter, tensor_key
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import (
    AnswerForm,
    AssociativeDecoder,
    GeneratorTraining,
    LoraParameters,
    PromptParameters,
)
from degaml_kedro.generator.generator import (
    CONFIG_FILE,
    Identity,
    adapter_shape,
    checked_weights,
    common_fields,
    described_in,
    read_generator_files,
    write_generator_files,
)
from degaml_kedro.generator.training import (
    Optimization,
    TrainingState,
    TrainingStep,
)
from degaml_kedro.llm.associative import AssociativeWriter, ExampleReader, layers_at
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import (
    AnswerSequence,
    answer_logits,
    answer_loss_under,
    answer_sequences,
    computed_tokens,
    initial_adapter,
)
from degaml_kedro.llm.in_context import in_context_sequences
from degaml_kedro.llm.lora import ActiveLora
from degaml_kedro.tasks.example import Example, make_open_example

_DECODER = "decoder."

# a source of tasks: (which draw, support examples, query examples) -> the two, of one task
Draw = Callable[[int, int, int], tuple[Sequence[Example], Sequence[Example]]]


@dataclass(eq=False)
class ExampleGenerator:
    """The associative decoder with what it belongs to.

    Attributes:
        identity: the base model it belongs to; it has no encoder.
        about: task names, training settings, seed, versions; goes into the folder as it is.
        records: one row a training step.
        checks: one row a health check and task.
    """

    decoder: AssociativeWriter
    identity: Identity
    fingerprint: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()
    checks: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def fresh(
        cls, base: BaseModel, settings: AssociativeDecoder, lora: LoraParameters
    ) -> ExampleGenerator:
        """An untrained one: memories take keys and values as they are, and the shared LoRA adds nothing."""
        every = base.linear_layers()
        sizes = {name: every[name] for name in layers_at(base, settings.depths)}
        decoder = AssociativeWriter(settings, initial_adapter(base, lora), sizes)
        return cls(decoder.to(base.device), Identity(base.name, base.fingerprint, "", ""))

    @property
    def parameter_count(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.decoder.parameters())

    def write(self, base: BaseModel, sequences: Sequence[AnswerSequence]) -> Adapter:
        """The adapter of a task, from its labelled examples, on the CPU.

        Raises:
            GeneratorError: it belongs to another base model.
        """
        self.identity.check_base_model(base.name, base.fingerprint)
        self.decoder.to(base.device)
        return self.decoder.adapter(base, sequences)


def train_on_episodes(
    generator: ExampleGenerator,
    base: BaseModel,
    draw: Draw,
    prompt: PromptParameters,
    mode: AnswerForm,
    training: GeneratorTraining,
    seed: int,
    resume: TrainingState | None = None,
) -> Iterator[TrainingStep]:
    """Train a generator's decoder in place on ``batch_size`` episodes a step, yielding after every step.

    It begins with the first step that ``resume`` has not done.

    Raises:
        GeneratorError: the loss stops being finite.
        PromptError: an example is longer than the model's context.
    """
    decoder = generator.decoder.to(base.device).train()
    is_scaled = base.dtype == torch.float16
    optimization = Optimization(decoder, training, resume, _rated(decoder), is_scaled)
    reader = ExampleReader.of(base, tuple(decoder.sizes))
    for step in optimization.steps():
        began = time.perf_counter()
        total, tokens = 0.0, 0
        first = (step - 1) * training.batch_size
        for number in range(first, first + training.batch_size):
            drawn = derive_seed(seed, "support", str(number))
            size = training.support[drawn % len(training.support)]
            support, query = draw(number, size, training.sft_examples)
            shown = answer_sequences(base, support, prompt, mode)
            written = base.activate(decoder.write(reader, shown), 1.0)
            in_context = derive_seed(seed, "context", str(number)) / 2**63 < training.context_share
            loss, read = _episode_loss(
                base, support, query, written, prompt, mode, training, in_context
            )
            (optimization.scale * loss / training.batch_size).backward()
            total += loss.item() / training.batch_size
            tokens += read + computed_tokens(shown)
        yield optimization.take(step, began, total, math.nan, total, tokens)
    decoder.eval()


def _episode_loss(
    base: BaseModel,
    support: Sequence[Example],
    query: Sequence[Example],
    written: ActiveLora,
    prompt: PromptParameters,
    mode: AnswerForm,
    training: GeneratorTraining,
    in_context: bool,
) -> tuple[torch.Tensor, int]:
    """What the written adapter is judged by, and how many tokens that took.

        L = sft · mean(−log p_φ(y | x)) + distill · mean KL(p_θ(· | D, x, y_<t) ‖ p_φ(· | x, y_<t))

    over the answer tokens of the query; φ is the base model θ under the adapter, D the support examples. With
    ``in_context`` φ has the support examples in its prompt, too; then there is nothing to distil.
    """
    asked = answer_sequences(base, query, prompt, mode)
    if not in_context and not training.distill:
        return training.sft * answer_loss_under(base, asked, written), computed_tokens(asked)
    behind = in_context_sequences(base, query, [support] * len(query), prompt, mode)
    read = computed_tokens(behind, share_prefixes=True)
    if in_context:
        return training.sft * answer_loss_under(base, behind, written, share_prefixes=True), read
    with torch.no_grad():
        told, their_answers = answer_logits(base, behind, None, share_prefixes=True)
    logits, answers = answer_logits(base, asked, written)
    loss = training.sft * nn.functional.cross_entropy(logits, answers)
    # an answer may be cut into tokens otherwise where something stands in front
    if torch.equal(answers, their_answers):
        divergence = nn.functional.kl_div(
            logits.log_softmax(-1), told.log_softmax(-1), reduction="batchmean", log_target=True
        )
        loss = loss + training.distill * divergence
    return loss, read + computed_tokens(asked)


def _rated(decoder: AssociativeWriter) -> list[dict[str, Any]]:
    """The optimiser's groups: the shared LoRA, the maps and the numbers of the memories, by their rates."""
    settings = decoder.settings
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in decoder.named_parameters():
        factor = settings.map_rate if name.startswith("memories.") else 1.0
        if parameter.dim() == 0:
            factor = settings.number_rate
        found.setdefault(factor, []).append(parameter)
    return [{"params": group, "factor": factor} for factor, group in found.items()]


def save_example_generator(generator: ExampleGenerator, folder: Path) -> None:
    """Write a generator's folder; whole or not at all."""
    decoder = generator.decoder
    content = {
        "adapter": asdict(decoder.shape),
        "decoder": decoder.settings.model_dump(mode="json"),
        "layers": {
            name: [b.shape[0], a.shape[1]]
            for name, a, b in zip(decoder.adapted, decoder.a, decoder.b, strict=True)
        },
        "written": {name: list(size) for name, size in decoder.sizes.items()},
    }
    tensors = {_DECODER + name: value for name, value in decoder.state_dict().items()}
    write_generator_files(folder, generator, tensors, content)


def reads_examples(folder: Path) -> bool:
    """Whether the generator of a folder reads examples; errors in the folder are for whoever loads it to report."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return bool(content["decoder"]["kind"] == "associative")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_example_generator(folder: Path) -> ExampleGenerator:
    """Read a generator's folder.

    Raises:
        GeneratorError: a file is missing, damaged, or of another format.
    """
    content, tensors, fix = read_generator_files(folder)
    # no memory for sizes that anybody may have written before the weights turn out to have them
    with described_in(folder, fix), torch.device("meta"):
        settings = AssociativeDecoder.model_validate(content["decoder"])
        shape, common = adapter_shape(content), common_fields(content)
        start: dict[str, torch.Tensor] = {}
        for name, (outputs, inputs) in content["layers"].items():
            start[tensor_key(name, "A")] = torch.empty(shape.rank, int(inputs))
            start[tensor_key(name, "B")] = torch.empty(int(outputs), shape.rank)
        sizes = {name: (int(o), int(i)) for name, (o, i) in content["written"].items()}
        decoder = AssociativeWriter(settings, Adapter(shape, start), sizes)
    stored = checked_weights(folder, tensors, _DECODER, decoder, fix)
    decoder.load_state_dict(stored, assign=True)
    return ExampleGenerator(decoder.eval(), **common)


def shuffled_answers(examples: Sequence[Example], seed: int) -> list[Example]:
    """The same questions with other questions' answers: a control for what is read of a task.

    Where questions share their options, or have none, each gets the answer of the next one in a random order; where
    each has options of its own a wrong one is marked as right.
    """
    source = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=source).tolist()
    answered_as = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    found = []
    for place, example in enumerate(examples):
        other = examples[answered_as[place]]
        if not example.labels:
            found.append(make_open_example(example.prompt, other.options[0], example.system))
            continue
        gold = other.gold
        if other.options != example.options:
            gold = (example.gold + 1) % len(example.options)
        found.append(replace(example, gold=gold, response=f"[{example.labels[gold]}]"))
    return found
