"""Training a generator on (prompt batch, checkpoint) pairs (the paper's eq. 5 and 10), one step at a time.

Two objectives, alone or together: the masked mean squared error between made and stored tokens, and ``sft``, the frozen
base model's loss on the task's answers under the generated adapter, back-propagated into the generator. Neither sees
anything of a strategy or a policy: the generator stays decoupled from adaptation.

Which pairs, noise and examples step s has is drawn from seeds with s in their names: a run resumed from step s gives
the bits of one that never stopped, and on several devices each takes its share of the same pairs.

Shapes: B pairs of a step, N prompts, L prompt tokens, C encoder width, T tokens, r rank, k token width.
"""

from __future__ import annotations

import atexit
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from torch import Tensor, nn

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import GeneratorTraining
from degaml_kedro.generator import sharding
from degaml_kedro.generator.decoders.build import Computing
from degaml_kedro.generator.generator import Generator, GeneratorError
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.llm.base_model import BaseModel, choose_device, choose_dtype
from degaml_kedro.llm.finetune import AnswerSequence, answer_loss, computed_tokens

Item = TypeVar("Item")
Made = TypeVar("Made")

_FLOOR = 0.1
# what a scaler of losses goes on from
_SCALER = ("scale", "_growth_tracker", "steps")


def join_processes(asked: str) -> Accelerator:
    """The accelerator of this process on ``model.device``, one a training: what it holds goes with the training.

    Raises:
        ModelError: as :func:`~degaml_kedro.llm.base_model.choose_device`.
        GeneratorError: the launcher is configured for what is not there (DeepSpeed and the like).
    """
    device = choose_device(asked)
    if device.type == "cuda":
        torch.cuda.set_device(device if device.index is not None else torch.cuda.current_device())
    # gradients lie in the buffers that they are exchanged in: one copy of them, and not two
    buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[buckets])
    kind = accelerator.distributed_type.value
    if kind not in ("NO", "FSDP") and not kind.startswith("MULTI_"):
        raise GeneratorError(
            f"the launcher is configured for {kind}, which generators are not trained with: configure accelerate "
            f"without it, or with FSDP (--use_fsdp); training.device_batch_size saves memory, too"
        )
    if accelerator.num_processes > 1:
        _leave_at_exit()
    return accelerator


@cache
def _leave_at_exit() -> None:
    """Leave the group of processes once, before the interpreter is taken down.

    Otherwise threads of gloo's (several processes on the CPU) may let go of tensors too late, which aborts the process.
    """
    atexit.register(PartialState().destroy_process_group)


@dataclass(frozen=True, eq=False)
class TrainingTask:
    """A generator's training data of one task.

    Attributes:
        rows: which of them may condition the generator: those of the train split.
        checkpoints: reads one checkpoint's tokens, [T, r, k]; only mse needs them.
        state: the permutation state of its trajectory.
        sequences: prompts with answers, of the train split; only sft needs them.
    """

    name: str
    embeddings: PromptEmbeddings
    rows: Sequence[int]
    checkpoints: Callable[[int], Tensor] | None = None
    checkpoint_count: int = 0
    state: int = 0
    sequences: Sequence[AnswerSequence] = ()


@dataclass(frozen=True)
class GeneratorStep:
    """The record of one training step, counted from 1.

    Attributes:
        loss: the weighted sum, over all pairs of the step.
        mse: of normalised tokens; NaN where it is not trained on.
        sft: nats per answer token; NaN where it is not trained on.
        gradient_norm: before clipping.
        tokens: that sft put through the base model, over all pairs, each forward and back once.
    """

    step: int
    loss: float
    mse: float
    sft: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    tokens: int = 0


@dataclass(frozen=True, eq=False)
class TrainingState:
    """All that a resume needs: parameters and both moments by name, and how far it is."""

    step: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """One step's outcome; ``state()`` copies what a resume after it needs.

    Where the weights are in shares, all processes call ``state()`` at once, and ``settle()``, which copies them into
    the generator's decoder; where they are not, there is nothing to settle.
    """

    record: GeneratorStep
    state: Callable[[], TrainingState] = field(repr=False)
    settle: Callable[[], None] | None = field(repr=False, default=None)


@dataclass(frozen=True)
class TrainingPair:
    """One (prompt batch, checkpoint) pair: which task's, and which of its pairs."""

    task: int
    index: int


def pairs_of_step(
    step: int, tasks: int, training: GeneratorTraining, seed: int
) -> list[TrainingPair]:
    """The pairs of a step, counted from 1: the tasks in turn, each round in an order of its own."""
    first = (step - 1) * training.batch_size
    pairs = []
    for position in range(first, first + training.batch_size):
        turn, place = divmod(position, tasks)
        pairs.append(TrainingPair(_order(tasks, seed, turn)[place], turn % training.pairs))
    return pairs


@lru_cache(maxsize=64)
def _order(tasks: int, seed: int, turn: int) -> tuple[int, ...]:
    source = torch.Generator().manual_seed(derive_seed(seed, "order", str(turn)))
    return tuple(torch.randperm(tasks, generator=source).tolist())


def learning_rate(training: GeneratorTraining, step: int) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    if step <= training.warmup_steps:
        return training.learning_rate * step / training.warmup_steps
    after = training.steps - training.warmup_steps
    way = (step - training.warmup_steps) / max(1, after)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, way)))
    return training.learning_rate * (_FLOOR + (1 - _FLOOR) * cosine)


def masked_mse(made: Tensor, wanted: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error (eq. 5/10): the sum of w (made - wanted)^2 over the sum of w, a scalar.

    Over the cells of ``made`` and ``wanted`` [B, T, r, k] that hold weights, by ``mask`` [T, r, k], with a weight w [T]
    for each token; without ``weights`` all are 1.
    """
    share = mask.to(made.dtype)
    if weights is not None:
        share = share * weights[:, None, None]
    return ((made - wanted).square() * share).sum() / (share.sum() * made.shape[0])


def train_generator(
    generator: Generator,
    tasks: Sequence[TrainingTask],
    training: GeneratorTraining,
    seed: int,
    accelerator: Accelerator,
    base: BaseModel | None = None,
    resume: TrainingState | None = None,
) -> Iterator[TrainingStep]:
    """Train the generator's decoder in place, yielding after every step that ``resume`` has not done.

    Only sft needs the base model. A process's share of a step goes through the decoder in parts of
    ``device_batch_size`` pairs, whose gradients are added up.

    Raises:
        GeneratorError: there are no tasks, the objectives lack what they need, the batch cannot be shared
            out, or the loss stops being finite.
    """
    _check(tasks, training, base, accelerator.num_processes)
    device = accelerator.device
    is_shared = accelerator.num_processes > 1 and sharding.is_asked_for()
    decoder = generator.decoder.to("cpu" if is_shared else device).train()
    dtype = choose_dtype(training.precision, device)
    computing = Computing(dtype, device, training.cast_weights)
    types = {dtype, base.dtype} if training.sft and base is not None else {dtype}
    is_scaled = torch.float16 in types
    model: Any = decoder
    if is_shared:
        if is_scaled or training.compile or training.cast_weights:
            raise GeneratorError(
                "a decoder in shares (FSDP) is trained in float32 or bfloat16, without training.compile and "
                "training.cast_weights; change that, or configure accelerate without FSDP"
            )
        model = sharding.sharded(decoder, device, accelerator.num_processes)
    optimization = Optimization(model, training, resume, is_scaled=is_scaled)
    computing.cast(decoder)
    if training.compile:
        model = torch.compile(decoder)
    if accelerator.num_processes > 1 and not is_shared:
        model = accelerator.prepare(model)
    scales, grid = generator.scales, generator.grid
    mask = grid.mask().to(device)
    weights = scales.variance.to(device) if training.variance_weighted else None
    share = training.batch_size // accelerator.num_processes
    most = training.device_batch_size or share
    first = accelerator.process_index * share

    def parts_of(step: int) -> list[Sequence[tuple[int, TrainingPair]]]:
        mine = list(enumerate(pairs_of_step(step, len(tasks), training, seed)))[first:]
        return [mine[start : min(start + most, share)] for start in range(0, share, most)]

    read_part = partial(_read, generator, tasks, training, seed, device)
    every = (part for step in optimization.steps() for part in parts_of(step))
    material = _ahead(read_part, every) if training.prefetch else map(read_part, every)

    def settle() -> None:
        sharding.settle(model, decoder.to(device))

    for step in optimization.steps():
        began = time.perf_counter()
        if is_shared:
            decoder.to("cpu")
        parts = parts_of(step)
        mse = 0.0 if training.mse else math.nan
        sft = 0.0 if training.sft else math.nan
        computed, scale = 0, optimization.scale
        for number, part in enumerate(parts, start=1):
            weight = len(part) / share
            # processes exchange gradients once a step, behind the last part; of weights in shares behind every part:
            # until then each process would hold whole gradients
            exchanges = is_shared or number == len(parts)
            with nullcontext() if exchanges else accelerator.no_sync(model):
                conditions, wanted = _drawn(
                    generator, tasks, part, next(material), training, seed, step, device
                )
                with computing.context():
                    tokens = model(*conditions)
                tokens = tokens.float()
                gradient = torch.zeros_like(tokens)
                if wanted is not None:
                    leaf = tokens.detach().requires_grad_()
                    loss = masked_mse(leaf, wanted, mask, weights)
                    (slope,) = torch.autograd.grad(loss, leaf)
                    gradient += training.mse * scale * slope
                    mse += loss.item() * weight
                if training.sft:
                    assert base is not None
                    loss_of_answers, slope, read = _answer_gradient(
                        generator, base, tokens, tasks, part, training, seed, scale
                    )
                    gradient += training.sft * slope
                    sft += loss_of_answers * weight
                    computed += read
                tokens.backward(gradient.mul_(weight))
        if accelerator.num_processes > 1:
            sums = torch.tensor([mse, sft, computed], dtype=torch.float64, device=device)
            sums = accelerator.reduce(sums, "sum")
            mse, sft = (sums[:2] / accelerator.num_processes).tolist()
            computed = int(sums[2])
        total = training.mse * (mse if training.mse else 0.0)
        total += training.sft * (sft if training.sft else 0.0)
        taken = optimization.take(step, began, total, mse, sft, computed)
        yield replace(taken, settle=settle) if is_shared else taken
    if is_shared:
        settle()
    accelerator.free_memory()
    computing.restore(decoder)
    decoder.eval()


class Optimization:
    """AdamW over a network, step by step: from the first one that a resume checkpoint has not done.

    A group of parameters with a ``factor`` has its own multiple of the learning rate. For float16 losses are scaled:
    the caller's gradients are those of the loss times ``scale``, and a step whose gradients overflow is left out.
    """

    def __init__(
        self,
        network: nn.Module,
        training: GeneratorTraining,
        resume: TrainingState | None,
        groups: Sequence[dict[str, Any]] | None = None,
        is_scaled: bool = False,
    ) -> None:
        self.parameters, self.training = dict(network.named_parameters()), training
        everything: Any = list(self.parameters.values())
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            groups or everything, weight_decay=training.weight_decay, fused=True
        )
        device = next(iter(self.parameters.values())).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=is_scaled)
        # it has a state from its first use on
        self.scaler.scale(torch.zeros((), device=device))
        self.first = 1 if resume is None else resume.step + 1
        if resume is not None:
            self._restore(resume)

    def steps(self) -> range:
        """The steps that are left."""
        return range(self.first, self.training.steps + 1)

    @property
    def scale(self) -> float:
        """What the loss is multiplied with in the next step: 1 but for float16."""
        return self.scaler.get_scale()

    def take(
        self, step: int, began: float, loss: float, mse: float, sft: float, tokens: int
    ) -> TrainingStep:
        """One step on clipped gradients, which began at a time of ``perf_counter``.

        Raises:
            GeneratorError: the loss is not finite, or gradients overflow at every scale.
        """
        rate = learning_rate(self.training, step)
        if not math.isfinite(loss):
            raise GeneratorError(
                f"the generator's loss became {loss} at step {step}; lower training.learning_rate (now {rate:g})"
            )
        self.scaler.unscale_(self.optimizer)
        most = self.training.max_gradient_norm
        norm = sharding.whole(nn.utils.clip_grad_norm_(list(self.parameters.values()), most)).item()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scale < 1:
            raise GeneratorError(
                f"the generator's gradients overflow float16 at step {step}, however the loss is scaled; set "
                f"training.precision to float32"
            )
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - began
        record = GeneratorStep(step, loss, mse, sft, norm, rate, seconds, tokens)
        return TrainingStep(record, partial(self._state, step))

    def _state(self, step: int) -> TrainingState:
        """Parameters and moments after a step, copied."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state[parameter]
            found = {"parameter": parameter.detach(), "first_moment": moments["exp_avg"]}
            for what, tensor in {**found, "second_moment": moments["exp_avg_sq"]}.items():
                tensors[f"{what}.{name}"] = sharding.whole(tensor).to("cpu", copy=True)
            taken = moments["step"].to("cpu", copy=True)
        if self.scaler.is_enabled():
            # steps that were left out do not count for the moments
            found = {**self.scaler.state_dict(), "steps": taken}
            tensors |= {f"scaler.{name}": torch.as_tensor(found[name]) for name in _SCALER}
        return TrainingState(step, tensors)

    @torch.no_grad()
    def _restore(self, state: TrainingState) -> None:
        taken = torch.tensor(state.step, dtype=torch.float32)
        if self.scaler.is_enabled():
            scale, growth, taken = (state.tensors[f"scaler.{name}"] for name in _SCALER)
            own = {"scale": scale.item(), "_growth_tracker": growth.item()}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **own})
        for name, parameter in self.parameters.items():
            parameter.copy_(sharding.placed(state.tensors[f"parameter.{name}"], parameter))
            self.optimizer.state[parameter] = {
                "step": taken.to(parameter.device, copy=True),
                "exp_avg": sharding.placed(state.tensors[f"first_moment.{name}"], parameter),
                "exp_avg_sq": sharding.placed(state.tensors[f"second_moment.{name}"], parameter),
            }


def _check(
    tasks: Sequence[TrainingTask],
    training: GeneratorTraining,
    base: BaseModel | None,
    processes: int,
) -> None:
    if not tasks:
        raise GeneratorError("there are no tasks to train a generator on; name meta_train")
    for task in tasks:
        for is_missing, what in (
            (not len(task.rows), "prompts to condition a generator on; give it a train split"),
            (
                training.mse and not task.checkpoint_count,
                "checkpoints, which the mse objective needs; make its trajectory, or set training.mse to 0",
            ),
            (
                training.sft and not task.sequences,
                "training examples, which the sft objective needs; give it a train split, or set training.sft to 0",
            ),
        ):
            if is_missing:
                raise GeneratorError(f"the task {task.name} has no {what}")
    if training.sft and base is None:
        raise GeneratorError("the sft objective needs the base model")
    if training.batch_size % processes:
        raise GeneratorError(
            f"training.batch_size is {training.batch_size}, which {processes} processes cannot share evenly; "
            f"make it a multiple of {processes}"
        )


def _source(seed: int, task: TrainingTask, what: str, pair: TrainingPair) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, task.name, what, str(pair.index)))


def _read(
    generator: Generator,
    tasks: Sequence[TrainingTask],
    training: GeneratorTraining,
    seed: int,
    device: torch.device,
    pairs: Sequence[tuple[int, TrainingPair]],
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """What is stored for the pairs: prompt states [N, L, C] and lengths [N] and, for mse, a checkpoint's tokens."""
    found = []
    for _, pair in pairs:
        task, tokens = tasks[pair.task], None
        source = _source(seed, task, "prompts", pair)
        prompts = generator.decoder.condition.prompts
        rows, lengths = task.embeddings.rows(task.embeddings.draw(prompts, source, task.rows))
        if training.mse:
            assert task.checkpoints is not None
            source = _source(seed, task, "checkpoint", pair)
            index = int(torch.randint(task.checkpoint_count, (1,), generator=source))
            tokens = task.checkpoints(index)
        if training.prefetch and device.type == "cuda":
            # memory that the card reads while it computes
            rows, tokens = rows.pin_memory(), None if tokens is None else tokens.pin_memory()
        found.append((rows, lengths, tokens))
    return found


def _ahead(read: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What is read of the items, each in a thread while the caller is busy with the one before it."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        waiting: Future[Made] | None = None
        for item in items:
            following = thread.submit(read, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _drawn(
    generator: Generator,
    tasks: Sequence[TrainingTask],
    pairs: Sequence[tuple[int, TrainingPair]],
    material: Sequence[tuple[Tensor, Tensor, Tensor | None]],
    training: GeneratorTraining,
    seed: int,
    step: int,
    device: torch.device,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
    """What the decoder is given for the pairs, and what it is to make, of what was read for them.

    Returns:
        Prompt states with noise [B, N, L, C], lengths [B, N] and permutation states [B, states]; and, for mse,
        normalised tokens of the checkpoints with noise [B, T, r, k].
    """
    condition = generator.decoder.condition
    states, lengths, wanted = [], [], []
    for (place, _), (rows, found, stored) in zip(pairs, material, strict=True):
        rows = rows.to(device, non_blocking=training.prefetch).float()
        states.append(_noisy(rows, training.condition_noise, seed, "condition", step, place))
        lengths.append(found.long())
        if stored is not None:
            stored = stored.to(device, non_blocking=training.prefetch).float()
            tokens = generator.scales.normalize(stored)
            wanted.append(_noisy(tokens, training.target_noise, seed, "target", step, place))
    which = torch.tensor([tasks[pair.task].state for _, pair in pairs])
    hot = nn.functional.one_hot(which, condition.states).float()
    given = torch.stack(states), torch.stack(lengths).to(device), hot.to(device)
    return given, torch.stack(wanted) if wanted else None


def _noisy(clean: Tensor, size: float, seed: int, what: str, step: int, place: int) -> Tensor:
    """With Gaussian noise, drawn where the tensor is: at the paper's sizes the CPU would be in the way."""
    if not size:
        return clean
    source = torch.Generator(clean.device)
    source.manual_seed(derive_seed(seed, what, str(step), str(place)))
    noise = torch.randn(clean.shape, generator=source, dtype=torch.float32, device=clean.device)
    return clean + size * noise


def _answer_gradient(
    generator: Generator,
    base: BaseModel,
    tokens: Tensor,
    tasks: Sequence[TrainingTask],
    pairs: Sequence[tuple[int, TrainingPair]],
    training: GeneratorTraining,
    seed: int,
    scale: float,
) -> tuple[float, Tensor, int]:
    """The base model's mean answer loss under the made adapters, its gradient, [B, T, r, k], and the tokens it read.

    The gradient is that of the loss times ``scale``.

    One adapter at a time: the base model's activations of all of them are never held together.
    """
    gradients, total, computed = [], 0.0, 0
    for made, (_, pair) in zip(tokens.detach(), pairs, strict=True):
        task = tasks[pair.task]
        leaf = made.to(base.device).requires_grad_()
        # one cast for the whole adapter: a cast a layer costs more than its product
        weights = generator.scales.denormalize(leaf).to(base.dtype)
        tensors = generator.grid.detokenize(weights)
        source = _source(seed, task, "examples", pair)
        count = min(training.sft_examples, len(task.sequences))
        chosen = torch.randperm(len(task.sequences), generator=source)[:count].tolist()
        batch = [task.sequences[i] for i in chosen]
        loss = answer_loss(base, batch, tensors, generator.adapter)
        (gradient,) = torch.autograd.grad(loss * scale, leaf)
        gradients.append(gradient.to(tokens.device) / len(pairs))
        total += loss.item() / len(pairs)
        computed += computed_tokens(batch)
    return total, torch.stack(gradients), computed
