"""ABMLL with a bounded σ = c e^s, where the paper has σ = B_σ A_σ + c (Zhang, Snell and Griffiths, 2025).

Amortized Bayesian meta-learning for LoRA, after Ravi and Beatson (2019). The weights of a task are random, and so are
those that all tasks share, the prior of a task's:

    q(W | φ) = N(W0 + μ_φ, σ_φ²)      p(W | θ) = N(W0 + μ_θ, σ_θ²)

with, in every adapted layer,

    μ = (α / r) B_μ A_μ      σ = c e^s,  s = u / √(1 + (u / k)²),  u = B_σ A_σ / c,  k = log 10

The paper's σ can become negative. Ours equals it to first order and stays between c / 10 and 10 c: c says how uncertain
weights are, the pair where they are more or less so, and no step can make noise that drowns the model. At the start
B_σ = 0, so that σ = c. A sample W = W0 + μ + σ ε has full rank: the model computes with dense
weights (:class:`~degaml_kedro.llm.lora.DenseWeights`) and adds μ as a product of low rank.

What is as large as the model is made layer by layer. The gradients through σ, of the divergence and of the hyper-prior
are written out: autograd over all entries of W takes most of a step's time.

Shapes: O outputs and I inputs of a layer, r rank, P parameters: [A_μ and B_μ of all layers | A_σ and B_σ of all].
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from degaml_kedro.adapters.adapter import Adapter, AdapterConfig, parse_key, unflatten
from degaml_kedro.baselines.baseline import Setup
from degaml_kedro.baselines.compute import Clock
from degaml_kedro.baselines.episodes import Draw, checked_tasks, tasks_of_step
from degaml_kedro.baselines.learned import BaselineError, Learned, TaskExamples
from degaml_kedro.baselines.support import support_batches
from degaml_kedro.common.progress import Progress
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import AbmllParameters, AdaptationSetting
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import (
    AnswerSequence,
    answer_loss_under,
    answer_sequences,
    computed_tokens,
)
from degaml_kedro.llm.generation import Writing, distinct, group_answers
from degaml_kedro.llm.lora import ActiveLora, active_lora
from degaml_kedro.llm.scoring import (
    OptionScores,
    Prediction,
    WrittenAnswer,
    compare_options,
    graded,
    predictions_of,
    write_answers,
)
from degaml_kedro.tasks.example import Example

METHOD = "abmll"
# c, beside the pairs of σ: a posterior can be sampled without the parameters that made it
_SCALE = "scale"
# k: σ stays between c e^-k and c e^k
_RANGE = math.log(10)
# weights whose divergence is computed at once: they stay in the processor's cache
_BLOCK = 100_000
# of the hyper-prior on 1 / σ_θ², Gamma(1, rate), as Ravi and Beatson set it
_GAMMA_RATE = 0.01


class Pairs(NamedTuple):
    """One layer of q or p: A [r, I] and B [O, r] of μ, then of σ; also their gradients."""

    mean_a: Tensor
    mean_b: Tensor
    scale_a: Tensor
    scale_b: Tensor


class Divergence(NamedTuple):
    """KL(q || p) of one layer.

    Attributes:
        value: summed over the layer's weights.
        mean_curvature: its largest second derivative by an entry of B_μ A_μ.
        scale_curvature: a bound of that by an entry of B_σ A_σ, the bend of s(u) left out (Gauss-Newton).
    """

    value: float
    mean_curvature: float
    scale_curvature: float


def _exponent(layer: Pairs, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """u, √(1 + (u / k)²) and s, [O, I]; ``scale`` is c."""
    u = (layer.scale_b / scale) @ layer.scale_a
    root = _root(u)
    return u, root, u / root


def _root(u: Tensor) -> Tensor:
    return (u / _RANGE).square_().add_(1).sqrt_()


def spread(layer: Pairs, scale: float) -> Tensor:
    """σ [O, I] of a layer, between c / 10 and 10 c; ``scale`` is c."""
    return _exponent(layer, scale)[2].exp_().mul_(scale)


def layer_divergence(
    task: Pairs,
    shared: Pairs,
    factor: float,
    scale: float,
    weight: float = 0.0,
    into_task: Pairs | None = None,
    into_shared: Pairs | None = None,
) -> Divergence:
    """KL(q || p) of one layer of q (``task``) and p (``shared``); ``factor`` is α / r, ``scale`` is c.

    With Δ = μ_q - μ_p and d = s_q - s_p, an entry is (e^{2d} - 1) / 2 - d + Δ² / (2 σ_p²). Where q is close to p,
    these are small differences of large terms: Δ and d are computed from the differences of A and B, so that float32 is
    enough.

    ``weight`` times its gradients by φ are added to ``into_task``, and those by θ to ``into_shared``.
    """
    value = task.mean_a.new_zeros((), dtype=torch.float64)
    precisions, excesses = [], []
    rows = max(1, _BLOCK // task.mean_a.shape[1])
    for number in range(0, len(task.mean_b), rows):
        part = slice(number, number + rows)
        q, p = _rows(task, part), _rows(shared, part)
        mean = _difference(q.mean_a, q.mean_b, p.mean_a, p.mean_b).mul_(factor)
        u_p, root_p, s_p = _exponent(p, scale)
        u_d = _difference(q.scale_a, q.scale_b, p.scale_a, p.scale_b).div_(scale)
        u_q = u_p + u_d
        root_q = _root(u_q)
        # s_q - s_p, rearranged until it is u_q - u_p times something
        d = (u_p + u_q).mul_(u_p).div_(root_p + root_q).div_(-(_RANGE**2)).add_(root_p)
        d.mul_(u_d).div_(root_p).div_(root_q)
        precision = s_p.mul_(-2).exp_().div_(scale**2)
        excess = (2 * d).expm1_()
        by_mean = mean * precision
        quadratic = by_mean * mean
        value += (0.5 * (excess + quadratic) - d).sum(dtype=torch.float64)
        precisions.append(precision.amax())
        excesses.append(excess.amax())
        if into_shared is not None:
            into = _rows(into_shared, part)
            by_scale = (excess + quadratic).div_(root_p**3)
            _pull_back(by_mean, p[:2], into[:2], -weight * factor)
            _pull_back(by_scale, p[2:], into[2:], -weight / scale)
        if into_task is not None:
            into = _rows(into_task, part)
            by_scale = excess / root_q**3
            _pull_back(by_mean, q[:2], into[:2], weight * factor)
            _pull_back(by_scale, q[2:], into[2:], weight / scale)
    steepest = torch.stack(precisions).amax().item()
    widest = 1 + torch.stack(excesses).amax().item()
    return Divergence(value.item(), factor**2 * steepest, 2 * widest / scale**2)


def hyper_prior(
    layer: Pairs, factor: float, scale: float, weight: float = 0.0, into: Pairs | None = None
) -> float:
    """-log p(θ) of one layer, and its gradient: μ_θ ~ N(0, 1), 1 / σ_θ² ~ Gamma(1, 0.01).

    ``weight`` times its gradient is added to ``into``; ``factor`` is α / r, ``scale`` is c.
    """
    mean = factor * layer.mean_b @ layer.mean_a
    _, root, s = _exponent(layer, scale)
    penalty = s.mul_(-2).exp_().mul_(_GAMMA_RATE / scale**2)
    constant = mean.numel() * (0.5 * math.log(2 * math.pi) - math.log(_GAMMA_RATE))
    value = (0.5 * mean.square() + penalty).sum(dtype=torch.float64).item() + constant
    if into is not None:
        _pull_back(mean, layer[:2], into[:2], weight * factor)
        _pull_back(penalty.div_(root**3), layer[2:], into[2:], -2 * weight / scale)
    return value


def _rows(layer: Pairs, rows: slice) -> Pairs:
    """The pairs of some of a layer's outputs, as views."""
    return Pairs(layer.mean_a, layer.mean_b[rows], layer.scale_a, layer.scale_b[rows])


def _difference(a: Tensor, b: Tensor, other_a: Tensor, other_b: Tensor) -> Tensor:
    """B A - B' A' [O, I], as (B - B') A + B' (A - A'): nothing large cancels."""
    return torch.cat([b - other_b, other_b], dim=1) @ torch.cat([a, a - other_a])


def _pull_back(
    slope: Tensor, pair: tuple[Tensor, ...], into: tuple[Tensor, ...], weight: float
) -> None:
    """Add ``weight`` times the gradients by A and B of what has the gradient ``slope`` [O, I] by B A."""
    (a, b), (into_a, into_b) = pair, into
    into_a.addmm_(b.T, slope, alpha=weight)
    into_b.addmm_(slope, a.T, alpha=weight)


@dataclass(frozen=True)
class _Family:
    """The distributions of one shape, as flat float32 vectors [P].

    Attributes:
        like: an adapter of the shape that μ and σ have.
        scale: c.
    """

    like: Adapter
    scale: float

    @property
    def config(self) -> AdapterConfig:
        return self.like.config

    def halves(self, flat: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Views of μ, and of σ."""
        mean, spread = flat.chunk(2)
        return unflatten(mean, self.like.tensors), unflatten(spread, self.like.tensors)

    def pairs(self, flat: Tensor) -> dict[str, Pairs]:
        """Views by layer."""
        mean, spread = (Adapter(self.config, half).layers() for half in self.halves(flat))
        return {name: Pairs(*mean[name], *spread[name]) for name in mean}

    def start(self, seed: int) -> Tensor:
        """μ is ``like``, σ is c: A_σ is drawn as LoRA's A, B_σ is 0."""
        mean = torch.cat([tensor.reshape(-1).float() for tensor in self.like.tensors.values()])
        flat = torch.cat([mean, torch.zeros_like(mean)])
        _, spread = self.halves(flat)
        for name, (a, _) in Adapter(self.config, spread).layers().items():
            generator = torch.Generator().manual_seed(derive_seed(seed, METHOD, "sigma", name))
            bound = 1 / math.sqrt(a.shape[1])
            a.uniform_(-bound, bound, generator=generator)
        return flat

    def learned(self, flat: Tensor) -> tuple[Adapter, dict[str, Tensor]]:
        """The mean as an adapter, and what :meth:`flat` needs besides; both on the CPU, apart from ``flat``."""
        mean, spread = self.halves(flat.detach().to("cpu", copy=True))
        extra = {_SCALE: torch.tensor(self.scale, dtype=torch.float32)}
        for key, tensor in spread.items():
            name, kind = parse_key(key)
            extra[f"sigma.{name}.{kind}"] = tensor.clone()
        return Adapter(self.config, {key: tensor.clone() for key, tensor in mean.items()}), extra

    def flat(self, learned: Learned) -> Tensor:
        """Back from :meth:`learned`."""
        mean = learned.adapter.tensors
        spread = [learned.extra["sigma.{}.{}".format(*parse_key(key))] for key in mean]
        return torch.cat([tensor.reshape(-1).float() for tensor in (*mean.values(), *spread)])


def _family_of(learned: Learned) -> _Family:
    names = {"sigma.{}.{}".format(*parse_key(key)) for key in learned.adapter.tensors}
    if missing := sorted(({_SCALE} | names) - set(learned.extra)):
        raise BaselineError(
            f"the weights of {learned.method} have no {missing[0]}, so they are no distribution; "
            f"meta-train them with abmll"
        )
    return _Family(learned.adapter, float(learned.extra[_SCALE]))


def _noise(
    base: BaseModel, layers: Mapping[str, Pairs], seed: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The name, W0 and noise ε, float32 [O, I], of every layer.

    The order of the model's layers decides which numbers of the stream a layer gets, not that of ``layers``.
    """
    generator = torch.Generator(device=base.device).manual_seed(seed)
    for group in base.groups:
        for name, frozen in zip(group.names, group.weight.split(group.outputs), strict=True):
            if name in layers:
                noise = torch.empty(frozen.shape, dtype=torch.float32, device=base.device)
                yield name, frozen, noise.normal_(generator=generator)


def _draw(
    base: BaseModel, layers: Mapping[str, Pairs], scale: float, seed: int
) -> dict[str, Tensor]:
    """W0 + σ ε [O, I] by layer, in the model's dtype."""
    return {
        name: noise.mul_(spread(layers[name], scale)).add_(frozen).to(base.dtype)
        for name, frozen, noise in _noise(base, layers, seed)
    }


def _likelihood(
    base: BaseModel, batch: Sequence[AnswerSequence], family: _Family, flat: Tensor, seed: int
) -> tuple[float, Tensor]:
    """-log p(answers | W) per answer token for one sample W, and its gradient [P].

    The gradient by W is pulled back through σ layer by layer, with the same noise drawn again.
    """
    half = len(flat) // 2
    mean = flat[:half].clone().requires_grad_()
    # cast as one vector: a cast per layer costs more than its product
    views = unflatten(mean.to(base.dtype), family.like.tensors)
    layers = family.pairs(flat)
    weights = _draw(base, layers, family.scale, seed)
    for weight in weights.values():
        weight.requires_grad_()
    active = base.activate_weights(
        weights, Adapter(family.config, views).layers(), family.config.scale
    )
    loss = answer_loss_under(base, batch, active)
    gradient = torch.zeros_like(flat)
    by_mean, *by_weight = torch.autograd.grad(loss, [mean, *weights.values()])
    gradient[:half] = by_mean
    into = family.pairs(gradient)
    for (name, _, noise), slope in zip(_noise(base, layers, seed), by_weight, strict=True):
        layer, to = layers[name], into[name]
        _, root, s = _exponent(layer, family.scale)
        by_scale = noise.mul_(slope).mul_(s.exp_()).div_(root**3)
        _pull_back(by_scale, layer[2:], to[2:], 1.0)
    return loss.item(), gradient


def _divergence(
    family: _Family,
    flat: Tensor,
    shared: Tensor,
    beta: float,
    gradient: Tensor,
    shared_gradient: Tensor | None = None,
) -> tuple[float, dict[str, Divergence]]:
    """KL(φ || θ) over all layers; β times its gradients is added to the given ones."""
    theta, into_task = family.pairs(shared), family.pairs(gradient)
    into_shared = None if shared_gradient is None else family.pairs(shared_gradient)
    found = {
        name: layer_divergence(
            layer,
            theta[name],
            family.config.scale,
            family.scale,
            beta,
            into_task[name],
            None if into_shared is None else into_shared[name],
        )
        for name, layer in family.pairs(flat).items()
    }
    return math.fsum(each.value for each in found.values()), found


def _descend(
    family: _Family,
    flat: Tensor,
    gradient: Tensor,
    curvatures: Mapping[str, Divergence],
    rate: float,
    beta: float,
) -> None:
    """A gradient step, in place, that no β makes unstable.

    A plain step diverges where rate * β * curvature exceeds 2, and the curvature is c⁻². So the divergence counts as
    it does in an implicit Euler step, by its curvature H:

        φ <- φ - rate (1 + rate β H)⁻¹ ∇(-log p + β KL)

    with H = 2 h (A Aᵀ) for B and 2 h (Bᵀ B) for A, h the layer's largest second derivative by an entry of B A. The 2
    makes these blocks together a bound of the whole Gauss-Newton matrix. For small β it is the plain step; for β to
    infinity it stays where it is.
    """
    slopes = family.pairs(gradient)
    for name, layer in family.pairs(flat).items():
        slope, found = slopes[name], curvatures[name]
        for first, bend in ((0, found.mean_curvature), (2, found.scale_curvature)):
            a, b = layer[first], layer[first + 1]
            strength = 2 * rate * beta * bend
            by_a = _damped(slope[first], b.T @ b, strength)
            by_b = _damped(slope[first + 1].T, a @ a.T, strength).T
            a.sub_(by_a, alpha=rate)
            b.sub_(by_b, alpha=rate)


def _damped(gradient: Tensor, gram: Tensor, strength: float) -> Tensor:
    """(1 + strength * gram)⁻¹ gradient; gram [r, r], gradient [r, n]."""
    matrix = gram.double().mul_(strength)
    matrix.diagonal().add_(1.0)
    solved: Tensor = torch.linalg.solve(matrix, gradient.double())
    return solved.to(gradient.dtype)


def _task_steps(
    base: BaseModel,
    batches: Sequence[Sequence[AnswerSequence]],
    family: _Family,
    shared: Tensor,
    flat: Tensor,
    rate: float,
    beta: float,
    seed: int,
    clock: Clock,
) -> list[dict[str, Any]]:
    """Steps on E_q[-log p(D | W)] + β KL(q || p), one sample a step, in place; a row of each.

    Raises:
        BaselineError: the loss stops being finite.
    """
    rows = []
    for number, batch in enumerate(batches, start=1):
        loss, gradient = _likelihood(
            base, batch, family, flat, derive_seed(seed, "noise", str(number))
        )
        clock.trained(computed_tokens(batch))
        divergence, curvatures = _divergence(family, flat, shared, beta, gradient)
        if not math.isfinite(loss + divergence):
            raise BaselineError(
                f"abmll: at step {number} on a task's support examples the loss is {loss} and the divergence "
                f"{divergence}; lower the learning rate of these steps (now {rate:g}) or the scale (now "
                f"{family.scale:g})"
            )
        _descend(family, flat, gradient, curvatures, rate, beta)
        rows.append({"step": number, "loss": loss, "kl": divergence})
    return rows


def fit(
    setup: Setup,
    tasks: Sequence[TaskExamples],
    draw: Draw | None,
    seed: int,
    progress: Progress | None = None,
) -> Learned:
    """Meta-train θ with Adam, on the mean over an outer step's tasks.

        -log p(query_i | W_i) + β KL(q(φ_i) || p(φ_i | θ)) - γ log p(θ),      W_i ~ q(φ_i)

    where φ_i = θ after ``inner_steps`` steps on the same with the support examples (and no p(θ)). To first order, as
    in ABML: φ_i counts as θ plus a constant, so that θ gets the gradient by φ_i at φ_i, and the direct one by θ. Tasks
    are done one after another and only their gradients added up: memory is the same for any number of them.

    μ_θ starts from ``start``, whose shape all four pairs have. The seed decides the episodes, A_σ and the noise: an
    episode follows from it and its step alone.

    Returns:
        μ_θ, and the pairs of σ_θ in ``extra``.

    Raises:
        BaselineError: there are no tasks, a task has too few examples, or the loss stops being finite.
    """
    base, mode = setup.base, setup.scoring.answers
    parameters: AbmllParameters = setup.entry
    if draw is None:
        tasks = checked_tasks(tasks, parameters, entry=METHOD)
    clock = Clock()
    family = _Family(setup.start, parameters.scale)
    theta = family.start(seed).to(base.device).requires_grad_()
    optimizer = torch.optim.AdamW(
        [theta], lr=parameters.outer_learning_rate, weight_decay=0.0, fused=True
    )
    sequences: dict[str, list[AnswerSequence]] = {}
    records = []
    for step in range(1, parameters.outer_steps + 1):
        began, read = time.perf_counter(), clock.compute.forward_tokens
        gradient = torch.zeros_like(theta.detach())
        shared = theta.detach()
        losses, before, divergences = [], [], []
        if draw is not None:
            drawn = tasks_of_step((), draw, parameters, step)
            tasks = checked_tasks(drawn, parameters, entry=METHOD)
            sequences.clear()
        for place, number in enumerate(_chosen_tasks(len(tasks), parameters, step, seed)):
            task = tasks[number]
            if task.name not in sequences:
                sequences[task.name] = answer_sequences(base, task.examples, setup.prompt, mode)
            own = derive_seed(seed, METHOD, "episode", str(step), str(place), task.name)
            support, query = _episode(sequences[task.name], parameters, own)
            flat = shared.clone()
            batches, rate = [support] * parameters.inner_steps, parameters.inner_learning_rate
            rows = _task_steps(
                base, batches, family, shared, flat, rate, parameters.beta, own, clock
            )
            loss, by_task = _likelihood(base, query, family, flat, derive_seed(own, "query"))
            clock.trained(computed_tokens(query))
            divergence, _ = _divergence(
                family, flat, shared, parameters.beta, by_task, shared_gradient=by_task
            )
            gradient.add_(by_task)
            losses.append(loss)
            before.append(rows[0]["loss"])
            divergences.append(divergence)
        gradient.div_(parameters.tasks_per_step)
        if parameters.gamma > 0:
            into = family.pairs(gradient)
            for name, layer in family.pairs(shared).items():
                hyper_prior(layer, family.config.scale, family.scale, parameters.gamma, into[name])
        theta.grad = gradient
        norm = float(nn.utils.clip_grad_norm_([theta], parameters.max_gradient_norm))
        loss, divergence = fmean(losses), fmean(divergences)
        if not math.isfinite(loss + divergence + norm):
            raise BaselineError(
                f"abmll: at step {step} the loss is {loss}, the divergence {divergence} and the norm of the gradient "
                f"{norm}; lower baselines.abmll.inner_learning_rate (now {parameters.inner_learning_rate:g}), "
                f"outer_learning_rate (now {parameters.outer_learning_rate:g}) or scale (now {parameters.scale:g})"
            )
        optimizer.step()
        records.append(
            {
                "step": step,
                "loss": loss,
                "loss_before": fmean(before),
                "kl": divergence,
                "gradient_norm": norm,
                "seconds": time.perf_counter() - began,
                "tokens": clock.compute.forward_tokens - read,
            }
        )
        if progress is not None:
            progress(step, parameters.outer_steps)
    names = [task.name for task in tasks] if draw is None else []
    about = {**parameters.model_dump(mode="json"), "seed": seed, "tasks": names}
    return Learned(METHOD, *family.learned(theta), records, clock.compute, about)


def adapt(
    setup: Setup,
    learned: Learned,
    support: Sequence[Example],
    setting: AdaptationSetting,
    seed: int,
) -> Learned:
    """A task's posterior from its support examples: φ from θ by steps on E_q[-log p(D | W)] + β KL(q || p(· | θ)).

    Of the method's parameters only β is read. Without steps the posterior is the prior. The seed decides the order of
    the examples and the noise.

    Returns:
        μ_φ, and the pairs of σ_φ in ``extra``.

    Raises:
        BaselineError: ``learned`` is no distribution, there are no examples, or the loss stops being finite.
    """
    if not support:
        raise BaselineError("there are no support examples to adapt to; set splits.support")
    base, beta = setup.base, setup.entry.beta
    clock = Clock()
    family = _family_of(learned)
    shared = family.flat(learned).to(base.device)
    flat = shared.clone()
    records: list[dict[str, Any]] = []
    if setting.steps:
        sequences = answer_sequences(base, support, setup.prompt, setup.scoring.answers)
        batches = support_batches(sequences, setting, seed)
        own, rate = derive_seed(seed, METHOD, "adapt"), setting.learning_rate
        records = _task_steps(base, batches, family, shared, flat, rate, beta, own, clock)
    about = {**setting.model_dump(mode="json"), "beta": beta, "seed": seed}
    return Learned(METHOD, *family.learned(flat), records, clock.compute, about)


def predict(
    setup: Setup,
    posterior: Learned,
    examples: Sequence[Example],
    seed: int,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answers by the average over weights: p(option) = 1/S Σ_s softmax(option scores under W_s).

    Where answers are generated, the options are the answers that all samples write, and a sample's scores of them its
    likelihoods of these texts. Each of S samples answers all examples.

    Returns:
        One prediction an example, in order; ``option_scores`` are log p(option).

    Raises:
        BaselineError: ``posterior`` is no distribution.
    """
    base, prompt, scoring, samples = setup.base, setup.prompt, setup.scoring, setup.entry.samples
    family = _family_of(posterior)
    if not examples:
        return []
    layers = family.pairs(family.flat(posterior).to(base.device))
    mean = {name: (layer.mean_a, layer.mean_b) for name, layer in layers.items()}
    tokens = [0] * len(examples)

    def told(sample: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, of: progress(sample * len(examples) + done, of * samples)

    def with_each_sample(ask: Callable[[ActiveLora, Progress | None], Any]) -> list[Any]:
        found = []
        for sample in range(samples):
            own = derive_seed(seed, METHOD, "sample", str(sample))
            weights = _draw(base, layers, family.scale, own)
            active = base.activate_weights(weights, mean, family.config.scale)
            # gone before the next sample is drawn: two are twice the model
            del weights
            found.append(ask(active, told(sample)))
            del active
        return found

    def write(active: ActiveLora, progress: Progress | None) -> list[Writing]:
        with active_lora(active):
            return write_answers(base, examples, prompt, scoring, progress)

    written: list[list[Writing]] | None = None
    if scoring.mode == "generate":
        by_question = list(zip(*with_each_sample(write), strict=True))
        written = [distinct(some) for some in by_question]
        tokens = [sum(one.tokens for one in some) for some in by_question]

    def compare(active: ActiveLora, progress: Progress | None) -> OptionScores:
        counted = None if written else progress
        return compare_options(
            base, examples, prompt, scoring, progress=counted, active=active, written=written
        )

    compared: list[OptionScores] = with_each_sample(compare)
    tokens = [sum(some) for some in zip(tokens, *(one.tokens for one in compared), strict=True)]
    # by question, of each sample
    rows = list(zip(*(one.scores[0] for one in compared), strict=True))
    if written is None:
        scores = [_mean_probability([_log_softmax(row) for row in some]) for some in rows]
        return predictions_of(examples, scores, tokens, prompt, scoring)
    answers = []
    for example, texts, some, count in zip(examples, written, rows, tokens, strict=True):
        groups, logs = group_answers(texts, some, example, scoring)
        means = _mean_probability(logs)
        best = max(range(len(means)), key=means.__getitem__)
        answers.append(WrittenAnswer(texts[groups[best][0]].text, means[best], count))
    return graded(examples, answers, scoring)


def _log_softmax(row: Sequence[float]) -> list[float]:
    values: list[float] = torch.tensor(row, dtype=torch.float64).log_softmax(dim=0).tolist()
    return values


def _mean_probability(rows: Sequence[Sequence[float]]) -> list[float]:
    """Log of the mean over rows of probabilities, from their logs."""
    logs = torch.tensor(rows, dtype=torch.float64)
    means: list[float] = (logs.logsumexp(dim=0) - math.log(len(rows))).tolist()
    return means


def _chosen_tasks(count: int, parameters: AbmllParameters, step: int, seed: int) -> list[int]:
    """An outer step's tasks, as indices: none comes twice before all came once."""
    generator = torch.Generator().manual_seed(derive_seed(seed, METHOD, "tasks", str(step)))
    chosen: list[int] = []
    while len(chosen) < parameters.tasks_per_step:
        chosen += torch.randperm(count, generator=generator).tolist()
    return chosen[: parameters.tasks_per_step]


def _episode(
    sequences: Sequence[AnswerSequence], parameters: AbmllParameters, seed: int
) -> tuple[list[AnswerSequence], list[AnswerSequence]]:
    """Support and query of an episode; no example is in both."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "examples"))
    order = torch.randperm(len(sequences), generator=generator).tolist()
    chosen = [sequences[i] for i in order[: parameters.support + parameters.query]]
    return chosen[: parameters.support], chosen[parameters.support :]
