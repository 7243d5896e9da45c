"""``maml_en_llm``: MAML over LoRA weights (Sinha et al., 2024; Finn et al., 2017).

    θ_0 = θ,    θ_k = θ_{k-1} - α ∇ L_support(θ_{k-1}),    θ <- θ - η Adam(mean over tasks of d L_query(θ_K) / dθ)

The derivative goes back through the inner steps: with H_k the Hessian of L_support at θ_k, plain steps give
(I - α H_0) ... (I - α H_{K-1}) ∇ L_query(θ_K). First order leaves the product out.

With shared moments (the paper's way to a stable run) an inner step is Adam's, and starts from the outer optimiser's
moments. Every episode starts from the same moments and leaves them as they were, so the order of a step's tasks does
not matter; the paper does not say, and this is the choice that does not depend on a shuffle.

Shapes: P adapter parameters, K inner steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter, unflatten
from degaml_kedro.baselines.baseline import Setup
from degaml_kedro.baselines.compute import Clock
from degaml_kedro.baselines.episodes import Draw, Episode, draw_episodes, tasks_of_step
from degaml_kedro.baselines.learned import BaselineError, Learned, TaskExamples
from degaml_kedro.baselines.support import support_batches
from degaml_kedro.common.progress import Progress
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import AdaptationSetting, MamlParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import (
    AnswerSequence,
    answer_loss,
    answer_sequences,
    computed_tokens,
)
from degaml_kedro.llm.in_context import in_context_sequences
from degaml_kedro.llm.packing import batches_by_length
from degaml_kedro.tasks.example import Example

FIRST_ORDER = "maml_en_llm_first_order"
# support tokens whose second derivative is held at once
_TOKENS_AT_ONCE = 2048

# Adam's usual constants
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8

# the loss at θ [P] in the inner step of this number, counted from 0
StepLoss = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Moments:
    """Adam's moments: running means [P] of gradients and of their squares, after so many of them."""

    first: Tensor
    second: Tensor
    step: int

    @classmethod
    def empty(cls, like: Tensor) -> Moments:
        """Before the first gradient."""
        return cls(torch.zeros_like(like), torch.zeros_like(like), 0)


def adam_direction(gradient: Tensor, moments: Moments) -> tuple[Tensor, Moments]:
    """Adam's direction for a gradient, and its moments afterwards: of the outer step, and of the inner one.

    It can be differentiated by the gradient, through both moments: a second moment held constant would make of the
    first step from empty moments, which is the gradient's sign, something with the slope ``1 / |gradient|``. Where the
    second moment is 0 its root has no derivative; there the direction is 0, and so is its derivative.

    Returns:
        The direction [P], to be multiplied by the learning rate and subtracted; the moments with the gradient.
    """
    step = moments.step + 1
    first = _BETA_1 * moments.first + (1 - _BETA_1) * gradient
    second = _BETA_2 * moments.second + (1 - _BETA_2) * gradient * gradient
    known = second > 0
    root = torch.where(known, second / (1 - _BETA_2**step), 1.0).sqrt()
    direction = torch.where(known, first / (1 - _BETA_1**step) / (root + _EPSILON), 0.0)
    return direction, Moments(first, second, step)


def inner_loop(
    loss: StepLoss | Sequence[StepLoss],
    start: Tensor,
    steps: int,
    learning_rate: float,
    moments: Moments | None = None,
    first_order: bool = False,
) -> tuple[Tensor, Tensor]:
    """K gradient steps at the rate α from the shared weights θ [P]; with ``moments`` they are Adam's.

    The support loss has to be differentiable twice, or once where ``first_order``: then the result is a constant.
    Where it is a sum of several, the graph of none is held: each is computed again when it is pulled back through.

    Returns:
        θ_K [P], differentiable by the start unless ``first_order``; the loss before each step [K], a constant.
    """
    at = start.detach() if first_order else start
    losses = []
    for step in range(steps):
        if not callable(loss):
            found: list[Any] = [_Recomputed.apply(at, part, step) for part in loss]  # type: ignore[no-untyped-call]
            gradient = torch.stack([part[0] for part in found]).sum(dim=0)
            value = torch.stack([part[1] for part in found]).sum(dim=0)
        elif first_order:
            gradient, value = _gradient(loss, at, step)
        else:
            gradient, value = torch.func.grad_and_value(loss)(at, step)
        direction = gradient
        if moments is not None:
            direction, moments = adam_direction(gradient, moments)
        at = at - learning_rate * direction
        losses.append(value.detach())
    return at, torch.stack(losses) if losses else start.new_zeros(0)


class _Recomputed(torch.autograd.Function):
    """A loss's gradient [P] and its value, of which no graph is held: the backward pass makes it again."""

    @staticmethod
    def forward(at: Tensor, loss: StepLoss, step: int) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = torch.func.grad_and_value(loss)(at, step)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        at, ctx.loss, ctx.step = inputs
        ctx.save_for_backward(at)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, along: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (at,) = ctx.saved_tensors
        slope = torch.func.grad(ctx.loss)
        pull_back = torch.func.vjp(lambda theta: slope(theta, ctx.step), at)[1]
        return pull_back(along)[0], None, None


def meta_gradient(
    query_loss: StepLoss,
    support_loss: StepLoss | Sequence[StepLoss],
    start: Tensor,
    steps: int,
    learning_rate: float,
    moments: Moments | None = None,
    first_order: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of the loss after adaptation by the weights before it.

    The query's gradient at θ_K is pulled back through the inner steps (``torch.func.vjp``), whose graphs are held
    till then: memory grows with K. Of a support loss that is a sum (of a large batch) they are not. The query loss
    itself needs a first derivative only. With ``first_order`` it is the gradient at θ_K as it is.

    Returns:
        The gradient [P], the query loss at θ_K, the support loss before each inner step [K].
    """

    def adapt_from(theta: Tensor) -> tuple[Tensor, Tensor]:
        return inner_loop(support_loss, theta, steps, learning_rate, moments, first_order)

    if first_order:
        adapted, losses = adapt_from(start)
        return *_gradient(query_loss, adapted, 0), losses
    adapted, pull_back, losses = torch.func.vjp(  # type: ignore[misc]  # three with has_aux
        adapt_from, start.detach(), has_aux=True
    )
    gradient, value = _gradient(query_loss, adapted, 0)
    with torch.no_grad():  # no third derivative
        (gradient,) = pull_back(gradient, retain_graph=False)
    return gradient, value, losses


def _gradient(loss: StepLoss, at: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """A first derivative and the value, by autograd: the model's fast backward is no ``torch.func`` function."""
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        value = loss(leaf, step)
        (gradient,) = torch.autograd.grad(value, leaf)
    return gradient, value.detach()


def fit(
    setup: Setup,
    tasks: Sequence[TaskExamples],
    draw: Draw | None,
    seed: int,
    progress: Progress | None = None,
) -> Learned:
    """Meta-training: shared weights from which a few steps on a task's support examples go far.

    A token of the support counts once forward and once back an inner step, and twice more back in second order: through
    the forward and through the backward pass. The seed decides the episodes; the order of the tasks does not matter.

    Returns:
        The shared weights; in ``extra`` the outer optimiser's ``first_moment`` and ``second_moment`` [P] and its
        ``step``; a record an outer step: ``loss`` of the query after and ``loss_before`` of the support before the
        inner steps, ``gradient_norm`` before clipping, ``seconds``, ``tokens`` read.

    Raises:
        BaselineError: there are no tasks, one has too few examples, or the loss stops being finite.
        PromptError: an example is longer than the model's context.
    """
    base, start = setup.base, setup.start
    parameters: MamlParameters = setup.entry
    first_order = setup.method == FIRST_ORDER
    clock = Clock()
    flat = _flatten(start, base.device)
    moments = Moments.empty(flat)
    records: list[dict[str, Any]] = []
    for step in range(1, parameters.outer_steps + 1):
        began, read = time.perf_counter(), clock.compute.forward_tokens
        pool = tasks_of_step(tasks, draw, parameters, step)
        episodes = draw_episodes(pool, parameters, step, seed, parameters.in_context_examples)
        gradient = torch.zeros_like(flat)
        after = before = 0.0
        for episode in episodes:
            support, query = _sequences(setup, episode)
            found, value, losses = meta_gradient(
                _loss_in(base, [query], start),
                support_losses(base, support, start, parameters.inner_steps, first_order),
                flat,
                parameters.inner_steps,
                parameters.inner_learning_rate,
                moments if parameters.share_moments else None,
                first_order,
            )
            gradient += found / len(episodes)
            after += value.item() / len(episodes)
            before += losses[0].item() / len(episodes)
            read_in_steps = computed_tokens(support) * parameters.inner_steps
            clock.trained(read_in_steps, 1 if first_order else 3)
            clock.trained(computed_tokens(query))
        norm = torch.linalg.vector_norm(gradient).item()
        if not (math.isfinite(after) and math.isfinite(norm)):
            raise BaselineError(
                f"the loss after adaptation became {after} and its gradient {norm} at outer step {step}; lower "
                f"inner_learning_rate (now {parameters.inner_learning_rate:g}) or outer_learning_rate (now "
                f"{parameters.outer_learning_rate:g})"
            )
        gradient *= min(1.0, parameters.max_gradient_norm / max(norm, _EPSILON))
        direction, moments = adam_direction(gradient, moments)
        flat = flat - parameters.outer_learning_rate * direction
        records.append(
            {
                "step": step,
                "loss": after,
                "loss_before": before,
                "gradient_norm": norm,
                "seconds": time.perf_counter() - began,
                "tokens": clock.compute.forward_tokens - read,
            }
        )
        if progress is not None:
            progress(step, parameters.outer_steps)
    extra = {
        "first_moment": moments.first.cpu(),
        "second_moment": moments.second.cpu(),
        "step": torch.tensor(moments.step, dtype=torch.float32),
    }
    about = {
        **parameters.model_dump(mode="json"),
        "first_order": first_order,
        "seed": seed,
        "tasks": sorted(task.name for task in tasks),
    }
    return Learned(setup.method, _adapter(flat, start), extra, records, clock.compute, about)


def adapt(
    setup: Setup,
    learned: Learned,
    support: Sequence[Example],
    setting: AdaptationSetting,
    seed: int,
) -> Learned:
    """The inner loop on a new task, with the moments that were learned with the weights where these are shared.

    No steps return the shared weights. The seed decides the order of the examples.

    Raises:
        BaselineError: there are no examples, the moments are missing, or the loss stops being finite.
        PromptError: an example is longer than the model's context.
    """
    base, share_moments = setup.base, setup.entry.share_moments
    clock = Clock()
    about = {**setting.model_dump(mode="json"), "share_moments": share_moments, "seed": seed}
    if setting.steps == 0:
        return Learned(learned.method, learned.adapter, {}, (), clock.compute, about)
    if not support:
        raise BaselineError(
            f"{learned.method} has no support examples to adapt to; raise splits.support"
        )
    sequences = answer_sequences(base, support, setup.prompt, setup.scoring.answers)
    batches = support_batches(sequences, setting, derive_seed(seed, "maml", "adapt"))
    flat, losses = inner_loop(
        _loss_in(base, batches, learned.adapter),
        _flatten(learned.adapter, base.device),
        setting.steps,
        setting.learning_rate,
        _stored_moments(learned, base) if share_moments else None,
        first_order=True,
    )
    clock.trained(sum(map(computed_tokens, batches)))
    records = [{"step": i, "loss": loss} for i, loss in enumerate(losses.tolist(), start=1)]
    wrong = [row["step"] for row in records if not math.isfinite(row["loss"])]
    if wrong or not bool(torch.isfinite(flat).all()):
        raise BaselineError(
            f"the loss of {learned.method} stopped being finite at adaptation step "
            f"{wrong[0] if wrong else setting.steps}; lower the learning rate (now {setting.learning_rate:g})"
        )
    return Learned(
        learned.method, _adapter(flat, learned.adapter), {}, records, clock.compute, about
    )


def _stored_moments(learned: Learned, base: BaseModel) -> Moments:
    if missing := {"first_moment", "second_moment", "step"} - set(learned.extra):
        raise BaselineError(
            f"{learned.method} shares Adam's moments, and what was learned lacks {', '.join(sorted(missing))}; "
            f"meta-train it again, or set share_moments to false"
        )
    first, second = (
        learned.extra[name].to(base.device) for name in ("first_moment", "second_moment")
    )
    return Moments(first, second, int(learned.extra["step"].item()))


def _sequences(setup: Setup, episode: Episode) -> tuple[list[AnswerSequence], list[AnswerSequence]]:
    """Support and query as the model reads them."""
    base, prompt, mode = setup.base, setup.prompt, setup.scoring.answers
    examples = (*episode.support, *episode.query)
    if any(episode.demonstrations):
        found = in_context_sequences(base, examples, episode.demonstrations, prompt, mode)
    else:
        found = answer_sequences(base, examples, prompt, mode)
    return found[: len(episode.support)], found[len(episode.support) :]


def support_losses(
    base: BaseModel,
    support: Sequence[AnswerSequence],
    like: Adapter,
    steps: int,
    first_order: bool = False,
) -> StepLoss | list[StepLoss]:
    """The support loss of every inner step; in second order, of many tokens, as a sum over parts of the batch."""
    parts = list(batches_by_length([len(one.ids) for one in support], _TOKENS_AT_ONCE))
    if first_order or len(parts) == 1:
        return _loss_in(base, [support] * steps, like, not first_order)
    answers = sum(one.answer for one in support)

    def weighted(part: list[AnswerSequence]) -> StepLoss:
        loss = _loss_in(base, [part] * steps, like, elementary=True)
        share = sum(one.answer for one in part) / answers
        return lambda flat, step: share * loss(flat, step)

    return [weighted([support[i] for i in part]) for part in parts]


def _loss_in(
    base: BaseModel,
    batches: Sequence[Sequence[AnswerSequence]],
    like: Adapter,
    elementary: bool = False,
) -> StepLoss:
    """The loss of each step's batch as a function of the flat weights."""

    def at(flat: Tensor, step: int) -> Tensor:
        # cast as one vector: a cast per layer costs more than its product
        tensors = unflatten(flat.to(base.dtype), _by_name(like))
        return answer_loss(base, batches[step], tensors, like.config, elementary)

    return at


def _by_name(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors in one order: safetensors sorts, and stored moments must meet their own weights again."""
    return dict(sorted(adapter.tensors.items()))


def _flatten(adapter: Adapter, device: torch.device) -> Tensor:
    return torch.cat([t.reshape(-1).float() for t in _by_name(adapter).values()]).to(device)


def _adapter(flat: Tensor, like: Adapter) -> Adapter:
    return Adapter(like.config, unflatten(flat.detach().cpu(), _by_name(like)))
