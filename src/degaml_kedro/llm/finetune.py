"""LoRA fine-tuning on answers, one step at a time (App. C step 1.1).

The loss is the mean cross-entropy of the answer's tokens given the prompt. The adapter is one flat float32 vector, so
that the optimiser, the clipping and a resume handle one tensor; the layers' A and B are views of it. The same call
gives the same bits, and one resumed from step s those of one that never stopped.

Shapes: P adapter parameters, r rank, I inputs, O outputs, T tokens in a batch.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from degaml_kedro.adapters.adapter import Adapter, AdapterConfig, tensor_key, unflatten
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.config.schema import (
    AnswerForm,
    LoraParameters,
    PromptParameters,
    TrainingParameters,
)
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.lora import ActiveLora, active_lora
from degaml_kedro.llm.packing import TokenTree, TokenTrie, pack_trees
from degaml_kedro.llm.prompting import closing_tokens, encode_questions
from degaml_kedro.tasks.example import Example

# logits held at once where there are more: 268 MB in float32
_LOGITS_AT_ONCE = 1 << 26


class TrainingError(DegamlError):
    """An adapter that cannot be trained or written: for this model, from these examples, or at this rate."""


@dataclass(frozen=True)
class FineTuneState:
    """All that a resume needs.

    Attributes:
        tensors: ``parameters``, ``first_moment`` and ``second_moment``, each [P], float32.
    """

    step: int
    tensors: dict[str, Tensor]


@dataclass(eq=False)
class _FineTuneRun:
    """A run's tensors on its device, as they are after ``step``, and the adapter that it began with."""

    start: Adapter
    tensors: dict[str, Tensor]
    step: int = 0


@dataclass(frozen=True, eq=False)
class FineTuneStep:
    """One optimiser step's outcome; its tensors are copied to the CPU when they are first asked for.

    Attributes:
        step: counted from 1.
        loss: mean cross-entropy of the batch before the step, in nats per answer token.
        tokens: prompt and answer tokens in the batch, as many as were computed.
    """

    step: int
    loss: float
    learning_rate: float
    seconds: float
    tokens: int
    run: _FineTuneRun = field(repr=False)

    @cached_property
    def adapter(self) -> Adapter:
        """The adapter after the step.

        Raises:
            TrainingError: the run has gone on since.
        """
        start = self.run.start
        return Adapter(start.config, unflatten(self._parameters, start.tensors))

    @cached_property
    def state(self) -> FineTuneState:
        """What a resume after the step needs.

        Raises:
            TrainingError: the run has gone on since.
        """
        moments = {name: self._copied(name) for name in ("first_moment", "second_moment")}
        return FineTuneState(self.step, {"parameters": self._parameters, **moments})

    @cached_property
    def _parameters(self) -> Tensor:
        return self._copied("parameters")

    def _copied(self, name: str) -> Tensor:
        if self.run.step != self.step:
            raise TrainingError(
                f"step {self.step} is over, the run is at step {self.run.step}: ask for a step's tensors before the "
                "next one"
            )
        return self.run.tensors[name].detach().to("cpu", copy=True)


def target_layers(base: BaseModel, lora: LoraParameters) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the layers that the adapter covers, in module order.

    ``target_modules`` is read as PEFT does: all linear layers but the head, or name endings.

    Raises:
        TrainingError: an ending names no linear layer of the model.
    """
    layers = chosen = base.linear_layers()
    if lora.target_modules != "all-linear":
        wanted = tuple(f".{ending}" for ending in lora.target_modules)
        for ending in wanted:
            if not any(f".{name}".endswith(ending) for name in layers):
                endings = sorted({name.rsplit(".", 1)[-1] for name in layers})
                raise TrainingError(
                    f"lora.target_modules names '{ending[1:]}', which is no linear layer of {base.name}; "
                    f"its linear layers are called {', '.join(endings)}"
                )
        chosen = {name: shape for name, shape in layers.items() if f".{name}".endswith(wanted)}
    if not chosen:
        raise TrainingError(f"{base.name} has no linear layers that LoRA could adapt")
    return chosen


def initial_adapter(base: BaseModel, lora: LoraParameters) -> Adapter:
    """The shared start: A uniform as PEFT draws it, B zero, from one seed."""
    generator = torch.Generator().manual_seed(lora.initialization_seed)
    tensors: dict[str, Tensor] = {}
    layers = target_layers(base, lora)
    for name, (outputs, inputs) in layers.items():
        bound = 1 / math.sqrt(inputs)  # kaiming_uniform_(a=sqrt(5))
        a = torch.rand(lora.rank, inputs, generator=generator, dtype=torch.float32)
        tensors[tensor_key(name, "A")] = a.mul_(2 * bound).sub_(bound)
        tensors[tensor_key(name, "B")] = torch.zeros(outputs, lora.rank, dtype=torch.float32)
    # whole names where PEFT would take the last parts for other modules, too
    endings = {name.rsplit(".", 1)[-1] for name in layers}
    modules = (name for name, _ in base.model.named_modules())
    named = {name for name in modules if name.rsplit(".", 1)[-1] in endings}
    config = AdapterConfig(
        rank=lora.rank,
        alpha=lora.alpha,
        target_modules=tuple(sorted(endings if named == set(layers) else layers)),
        base_model=base.name,
    )
    return Adapter(config, tensors)


@dataclass(frozen=True)
class AnswerSequence:
    """A prompt and its right answer as one sequence.

    Attributes:
        ids: the tokens of both.
        answer: how many of the last ones are the answer.
    """

    ids: tuple[int, ...]
    answer: int


def answer_sequences(
    base: BaseModel,
    examples: Sequence[Example],
    prompt: PromptParameters,
    mode: AnswerForm,
    prompts: Sequence[str] | None = None,
) -> list[AnswerSequence]:
    """Examples as sequences to train on, behind the texts ``prompts`` in place of the question alone.

    Raises:
        PromptError: an example is longer than the model's context.
    """
    encoded = encode_questions(base, examples, prompt, mode, prompts=prompts)
    sequences = []
    for example, question in zip(examples, encoded, strict=True):
        answer = question.answers[example.gold] + closing_tokens(base, example, prompt)
        sequences.append(AnswerSequence(question.prompt + answer, len(answer)))
    return sequences


def computed_tokens(batch: Sequence[AnswerSequence], share_prefixes: bool = False) -> int:
    """How many tokens the model computes for a batch; with shared prefixes each of them once."""
    if share_prefixes:
        return len(TokenTrie(sequence.ids for sequence in batch))
    return sum(len(sequence.ids) for sequence in batch)


def answer_loss(
    base: BaseModel,
    batch: Sequence[AnswerSequence],
    tensors: Mapping[str, Tensor],
    config: AdapterConfig,
    elementary: bool = False,
    share_prefixes: bool = False,
) -> Tensor:
    """Mean cross-entropy of a batch's answer tokens given their prompts, in nats, under an adapter: a scalar.

    The gradient flows to the adapter's tensors (by PEFT's name), whatever they were made from.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    active = base.activate(Adapter(config, tensors).layers(), config.scale)
    return answer_loss_under(base, batch, active, elementary, share_prefixes)


def answer_loss_under(
    base: BaseModel,
    batch: Sequence[AnswerSequence],
    active: ActiveLora,
    elementary: bool = False,
    share_prefixes: bool = False,
) -> Tensor:
    """The same under whatever is to be active; see :func:`answer_logits`.

    Of many answer tokens the logits of a part at a time are held, and made again in the backward pass.
    """
    hidden, answers = _answer_states(base, batch, active, elementary, share_prefixes)
    at_once = max(1, _LOGITS_AT_ONCE // base.model.config.get_text_config().vocab_size)
    # checkpoints are differentiated once
    if elementary or len(answers) <= at_once:
        return nn.functional.cross_entropy(base.logits(hidden), answers)
    # PyTorch's linear_cross_entropy is for heads that are a matrix and nothing else
    parts = [
        checkpointed(
            _summed_loss, base, rows, labels, use_reentrant=False, preserve_rng_state=False
        )
        for rows, labels in zip(hidden.split(at_once), answers.split(at_once), strict=True)
    ]
    return torch.stack(parts).sum() / len(answers)


def _summed_loss(base: BaseModel, hidden: Tensor, answers: Tensor) -> Tensor:
    return nn.functional.cross_entropy(base.logits(hidden), answers, reduction="sum")


def answer_logits(
    base: BaseModel,
    batch: Sequence[AnswerSequence],
    active: ActiveLora | None,
    elementary: bool = False,
    share_prefixes: bool = False,
) -> tuple[Tensor, Tensor]:
    """Logits [T, V] of a batch's answer tokens given what stands before them, and these tokens' ids [T].

    Args:
        active: by group, what the model computes with; the gradient flows to its leaves. None: the base model itself.
        elementary: from the library's modules and operations with derivatives of every order, so that a meta-gradient
            goes back through gradient steps. A gradient costs a third more.
        share_prefixes: what several sequences begin with is computed once (``TokenTrie``): the same loss.
    """
    hidden, answers = _answer_states(base, batch, active, elementary, share_prefixes)
    return base.logits(hidden), answers


def _answer_states(
    base: BaseModel,
    batch: Sequence[AnswerSequence],
    active: ActiveLora | None,
    elementary: bool,
    share_prefixes: bool,
) -> tuple[Tensor, Tensor]:
    """Final hidden states [T, C] that predict a batch's answer tokens, and these tokens' ids [T]."""
    paths: Sequence[Sequence[int]]
    if share_prefixes:
        trie = TokenTrie(sequence.ids for sequence in batch)
        pack, paths = trie.pack(base.device, base.dtype), trie.paths
    else:
        pack = pack_trees([TokenTree(sequence.ids) for sequence in batch], base.device, base.dtype)
        paths = [
            range(start, start + len(sequence.ids))
            for sequence, start in zip(batch, pack.starts, strict=True)
        ]
    rows: list[int] = []
    labels: list[int] = []
    for sequence, path in zip(batch, paths, strict=True):
        rows.extend(path[-sequence.answer - 1 : -1])
        labels.extend(sequence.ids[-sequence.answer :])
    with active_lora(active):
        hidden = base.hidden_states(pack, elementary)
    return hidden[rows], torch.tensor(labels).to(base.device)


def fine_tune(
    base: BaseModel,
    examples: Sequence[Example],
    prompt: PromptParameters,
    mode: AnswerForm,
    training: TrainingParameters,
    start: Adapter,
    seed: int,
    resume: FineTuneState | None = None,
) -> Iterator[FineTuneStep]:
    """Train an adapter on the first ``training.max_examples`` examples; see :func:`train_on_batches`.

    Raises:
        TrainingError: there are no examples, or the loss stops being finite.
        PromptError: an example is longer than the model's context.
        ModelError: the adapter does not fit the model.
    """
    if not examples:
        raise TrainingError("there are no training examples; give the task a train split")
    sequences = answer_sequences(base, examples[: training.max_examples], prompt, mode)

    def batch(step: int) -> list[AnswerSequence]:
        return [sequences[i] for i in batch_indices(len(sequences), training, step, seed)]

    yield from train_on_batches(base, batch, training, start, resume)


def train_on_batches(
    base: BaseModel,
    batches: Callable[[int], Sequence[AnswerSequence]],
    training: TrainingParameters,
    start: Adapter,
    resume: FineTuneState | None = None,
    share_prefixes: bool = False,
) -> Iterator[FineTuneStep]:
    """Train an adapter on given batches, by the number of the step from 1, yielding after every step.

    It begins with the first step that ``resume`` has not done.

    Raises:
        TrainingError: the loss stops being finite.
        ModelError: the adapter does not fit the model.
    """
    device = base.device
    if resume is None:
        flat = torch.cat([tensor.reshape(-1).float() for tensor in start.tensors.values()])
        moments = {"first_moment": torch.zeros_like(flat), "second_moment": torch.zeros_like(flat)}
        resume = FineTuneState(0, {"parameters": flat, **moments})
    flat, first, second = (
        resume.tensors[name].to(device, copy=True)
        for name in ("parameters", "first_moment", "second_moment")
    )
    flat.requires_grad_()
    optimizer = torch.optim.AdamW([flat], weight_decay=training.weight_decay, fused=True)
    done = torch.tensor(resume.step, dtype=torch.float32, device=device)
    optimizer.state[flat] = {"step": done, "exp_avg": first, "exp_avg_sq": second}
    run = _FineTuneRun(start, {"parameters": flat, "first_moment": first, "second_moment": second})

    rates = (phase.learning_rate for phase in training.phases for _ in range(phase.steps))
    for step, rate in enumerate(rates, start=1):
        if step <= resume.step:
            continue
        began = time.perf_counter()
        run.step = step
        batch = batches(step)
        # cast as one vector: a cast per layer costs more than its product
        tensors = unflatten(flat.to(base.dtype), start.tensors)
        loss = answer_loss(base, batch, tensors, start.config, share_prefixes=share_prefixes)
        loss.backward()
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} at step {step}; lower the learning rate (now {rate})"
            )
        nn.utils.clip_grad_norm_([flat], training.max_gradient_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        yield FineTuneStep(
            step=step,
            loss=value,
            learning_rate=rate,
            seconds=time.perf_counter() - began,
            tokens=computed_tokens(batch, share_prefixes),
            run=run,
        )


def total_steps(training: TrainingParameters) -> int:
    """Optimiser steps over all phases."""
    return sum(phase.steps for phase in training.phases)


def batch_indices(count: int, training: TrainingParameters, step: int, seed: int) -> list[int]:
    """Which examples a step (counted from 1) trains on: passes over the examples, each in an order of its own."""
    first = (step - 1) * training.batch_size
    orders: dict[int, list[int]] = {}
    chosen = []
    for position in range(first, first + training.batch_size):
        epoch, place = divmod(position, count)
        if epoch not in orders:
            key = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
            orders[epoch] = torch.randperm(count, generator=generator).tolist()
        chosen.append(orders[epoch][place])
    return chosen
