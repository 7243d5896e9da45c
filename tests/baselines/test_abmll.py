"""ABMLL: σ against the paper's, the divergence at its limits, and what the steps must do."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Gamma, Normal, kl_divergence

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines import abmll
from degaml_kedro.baselines.abmll import Pairs, hyper_prior, layer_divergence, spread
from degaml_kedro.baselines.baseline import Setup
from degaml_kedro.baselines.learned import BaselineError, Learned, TaskExamples
from degaml_kedro.config.schema import (
    AbmllParameters,
    AdaptationSetting,
    PromptParameters,
    ScoringParameters,
)
from degaml_kedro.llm.finetune import answer_sequences
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.tasks.example import make_example
from tests.baselines.helpers import setup
from tests.strategies.helpers import adapter, examples, tiny_base

PLAIN = PromptParameters(format="plain", options="hidden")
TEXT = ScoringParameters(mode="text")
SETTING = AdaptationSetting(steps=3, learning_rate=0.05, batch_size=4)


def parameters(**changes: object) -> AbmllParameters:
    values: dict[str, object] = {
        "outer_steps": 3,
        "tasks_per_step": 2,
        "support": 3,
        "query": 3,
        "inner_steps": 2,
        "inner_learning_rate": 0.05,
        "outer_learning_rate": 0.01,
        "scale": 0.01,
        "settings": [SETTING],
    }
    return AbmllParameters.model_validate(values | changes)


def task(name: str, offset: int = 0, count: int = 8) -> TaskExamples:
    found = [
        make_example(f"{name} {i + offset}?", [f"{i}", f"{i + 7}", "no"], gold=i % 3)
        for i in range(count)
    ]
    return TaskExamples(name, found)


TASKS = [task("one"), task("two", 5), task("three", 9)]


def pairs(seed: int, outputs: int = 5, inputs: int = 7, rank: int = 2, size: float = 0.3) -> Pairs:
    source = torch.Generator().manual_seed(seed)
    shapes = [(rank, inputs), (outputs, rank)] * 2
    return Pairs(
        *(size * torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes)
    )


def distribution(layer: Pairs, factor: float, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What the module's text says of μ and σ."""
    mean = factor * layer.mean_b @ layer.mean_a
    u = layer.scale_b @ layer.scale_a / scale
    return mean, scale * torch.exp(u / torch.sqrt(1 + (u / math.log(10)) ** 2))


def leaves(layer: Pairs) -> Pairs:
    return Pairs(*(tensor.clone().requires_grad_() for tensor in layer))


def zeros(layer: Pairs) -> Pairs:
    return Pairs(*(torch.zeros_like(tensor) for tensor in layer))


def learned_of(base_adapter: Adapter, scale: float, size: float = 0.0, seed: int = 0) -> Learned:
    """A distribution whose σ is c, or varies."""
    family = abmll._Family(base_adapter, scale)
    flat = family.start(seed)
    half = len(flat) // 2
    flat[half:] += size * torch.randn(half, generator=torch.Generator().manual_seed(seed))
    return Learned("abmll", *family.learned(flat))


def distance(one: Learned, other: Learned) -> float:
    """Between the means, as weights."""
    found = zip(one.adapter.layers().values(), other.adapter.layers().values(), strict=True)
    return math.sqrt(
        sum(float((b_1 @ a_1 - b_2 @ a_2).square().sum()) for (a_1, b_1), (a_2, b_2) in found)
    )


# --- closed forms ---------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 2.0), factor=st.floats(0.5, 4.0))
@settings(max_examples=50, deadline=None)
def test_a_layer_s_divergence_and_gradients_are_autograd_s(seed, scale, factor):
    task_pairs, shared = leaves(pairs(seed)), leaves(pairs(seed + 1))
    q = Normal(*distribution(task_pairs, factor, scale))
    p = Normal(*distribution(shared, factor, scale))
    expected = kl_divergence(q, p).sum()
    (0.7 * expected).backward()
    into_task, into_shared = zeros(task_pairs), zeros(shared)
    with torch.no_grad():
        found = layer_divergence(task_pairs, shared, factor, scale, 0.7, into_task, into_shared)
    assert found.value == pytest.approx(expected.item(), rel=1e-9)
    for layer, into in ((task_pairs, into_task), (shared, into_shared)):
        for tensor, gradient in zip(layer, into, strict=True):
            assert torch.allclose(gradient, tensor.grad, rtol=1e-8, atol=1e-8)


def test_a_scale_is_positive_bounded_and_the_paper_s_to_first_order():
    log_scale = (spread(pairs(3, size=1e3), 0.5) / 0.5).log()
    assert float(log_scale.abs().max()) < math.log(10)
    near = pairs(3, size=1e-4)
    found = spread(near, 0.5)
    assert torch.allclose(found, 0.5 + near.scale_b @ near.scale_a, rtol=0, atol=1e-14)
    assert torch.allclose(found, distribution(near, 1.0, 0.5)[1], rtol=1e-12)


def test_both_gradients_may_go_into_one_buffer():
    """As the outer step has it: φ counts as θ plus a constant."""
    task_pairs, shared = pairs(1), pairs(2)
    one, into_task, into_shared = (zeros(task_pairs) for _ in range(3))
    layer_divergence(task_pairs, shared, 2.0, 0.5, 1.0, into_task, into_shared)
    layer_divergence(task_pairs, shared, 2.0, 0.5, 1.0, one, one)
    for both, first, second in zip(one, into_task, into_shared, strict=True):
        assert torch.allclose(both, first + second)


@pytest.mark.parametrize("flat", [False, True], ids=["sigma_varies", "sigma_is_c"])
def test_at_the_prior_there_is_neither_divergence_nor_gradient(flat):
    layer = pairs(3)
    if flat:
        layer = layer._replace(scale_b=torch.zeros_like(layer.scale_b))
    into = zeros(layer)
    other = Pairs(*(tensor.clone() for tensor in layer))
    found = layer_divergence(layer, other, 2.0, 0.5, 1.0, into, into)
    assert found.value == 0.0
    assert not any(gradient.any() for gradient in into)


def test_curvatures_bound_the_second_derivatives():
    """By an entry of B A, from autograd twice."""
    task_pairs, shared, factor, scale = pairs(4), pairs(5), 2.0, 0.5
    mean_p, scale_p = distribution(shared, factor, scale)
    product = (task_pairs.mean_b @ task_pairs.mean_a).requires_grad_()
    # the bend of s(u) left out: by s itself
    log_scale = (spread(task_pairs, scale) / scale).log().requires_grad_()
    q = Normal(factor * product, scale * torch.exp(log_scale))
    value = kl_divergence(q, Normal(mean_p, scale_p)).sum()
    seconds = []
    for entry in (product, log_scale):
        (slope,) = torch.autograd.grad(value, entry, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), entry)  # entries do not mix
        seconds.append(float(second.max()))
    found = layer_divergence(task_pairs, shared, factor, scale)
    assert found.mean_curvature == pytest.approx(seconds[0], rel=1e-9)
    assert found.scale_curvature == pytest.approx(seconds[1] / scale**2, rel=1e-9)


@pytest.mark.parametrize("flat", [False, True], ids=["sigma_varies", "sigma_is_c"])
def test_the_hyper_prior_is_torch_s_and_its_gradient_autograd_s(flat):
    layer, factor, scale = pairs(6), 2.0, 0.5
    if flat:
        layer = layer._replace(scale_b=torch.zeros_like(layer.scale_b))
    own = leaves(layer)
    mean, spread = distribution(own, factor, scale)
    one = torch.ones((), dtype=torch.float64)
    precision = Gamma(one, 0.01 * one)
    value = -(Normal(0 * one, one).log_prob(mean).sum() + precision.log_prob(spread**-2).sum())
    (0.3 * value).backward()
    into = zeros(layer)
    found = hyper_prior(layer, factor, scale, 0.3, into)
    assert found == pytest.approx(value.item(), rel=1e-9)
    for tensor, gradient in zip(own, into, strict=True):
        assert torch.allclose(gradient, tensor.grad, rtol=1e-8, atol=1e-8)


# --- the sampled likelihood -----------------------------------------------------------------------


def test_the_sampled_loss_has_the_gradient_of_its_reparameterisation():
    """W = W0 + μ + σ ε as one graph over whole weights, against gradients pulled back layer by layer."""
    base = tiny_base()
    start = adapter(0, scale=0.1)
    family = abmll._Family(start, 0.05)
    flat = family.start(1)
    flat[len(flat) // 2 :] += 0.05 * torch.randn(
        len(flat) // 2, generator=torch.Generator().manual_seed(2)
    )
    batch = answer_sequences(base, examples(3), PLAIN, "text")
    loss, gradient = abmll._likelihood(base, batch, family, flat, 7)

    graph = flat.clone().requires_grad_()
    layers = family.pairs(graph)
    drawn = abmll._draw(base, family.pairs(flat), family.scale, 7)
    weights = {}
    for name, layer in layers.items():
        mean, spread = distribution(layer, start.config.scale, family.scale)
        frozen = base.model.get_submodule(name).weight
        noise = (drawn[name] - frozen) / spread.detach()
        weights[name] = frozen + mean + spread * noise
    expected = abmll.answer_loss_under(base, batch, base.activate_weights(weights))
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert (gradient - graph.grad).norm() <= 1e-4 * graph.grad.norm()
    # both halves learn
    for part in gradient.chunk(2):
        assert part.norm() > 0


def test_samples_have_the_scale_they_should():
    base = tiny_base()
    start = adapter(0)
    learned = learned_of(start, 0.02, size=0.05)
    family = abmll._family_of(learned)
    layers = family.pairs(family.flat(learned))
    draws = [abmll._draw(base, layers, family.scale, seed) for seed in range(400)]
    name = next(iter(layers))
    _, spread = distribution(layers[name], start.config.scale, family.scale)
    found = torch.stack([draw[name] for draw in draws]) - base.model.get_submodule(name).weight
    assert float((found.std(dim=0) / spread).mean()) == pytest.approx(1.0, abs=0.01)
    assert float((found.mean(dim=0) / spread).square().mean()) == pytest.approx(1 / 400, rel=0.2)


# --- adapting -------------------------------------------------------------------------------------


def adapted(learned: Learned, beta: float, **changes: object) -> Learned:
    setting = SETTING.model_copy(update=changes)
    own = setup("abmll", parameters(beta=beta), prompt=PLAIN)
    return abmll.adapt(own, learned, examples(6), setting, 5)


@pytest.mark.parametrize("size", [0.0, 0.01], ids=["sigma_is_c", "sigma_varies"])
def test_the_larger_beta_the_closer_to_the_prior(size):
    learned = learned_of(adapter(0, scale=0.1), 1e-3, size=size * 1e-1)
    moved = []
    for beta in (0.0, 1e-6, 1e-4, 1e-2, 1.0, 1e6):
        posterior = adapted(learned, beta)
        moved.append(distance(posterior, learned))
        flat = torch.cat([x.reshape(-1) for x in posterior.extra.values()])
        assert torch.isfinite(flat).all()
        assert all(math.isfinite(row["loss"] + row["kl"]) for row in posterior.records)
    assert moved[0] > 1e-3
    assert all(later < earlier for earlier, later in pairwise(moved))
    assert moved[-1] < 1e-6 * moved[0]


def test_without_divergence_a_step_is_a_plain_gradient_step():
    learned = learned_of(adapter(0, scale=0.1), 1e-2, size=1e-2)
    family = abmll._family_of(learned)
    flat = family.flat(learned)
    gradient = torch.randn(len(flat), generator=torch.Generator().manual_seed(0))
    curvatures = abmll._divergence(family, flat, flat, 0.0, torch.zeros_like(flat))[1]
    moved = flat.clone()
    abmll._descend(family, moved, gradient, curvatures, 0.1, 0.0)
    assert torch.allclose(moved, flat - 0.1 * gradient, atol=1e-7)
    # and a small β hardly changes it
    slightly = flat.clone()
    abmll._descend(family, slightly, gradient, curvatures, 0.1, 1e-8)
    assert (slightly - moved).norm() < 1e-2 * (moved - flat).norm()


def test_steps_on_the_divergence_alone_go_down_however_large_beta():
    start = adapter(0, scale=0.1)
    learned = learned_of(start, 1e-3, size=1e-4)
    family = abmll._family_of(learned)
    shared = family.flat(learned)
    for beta in (1e-6, 1.0, 1e6):
        flat = shared + 1e-3 * torch.randn(len(shared), generator=torch.Generator().manual_seed(1))
        values = []
        for _ in range(20):
            gradient = torch.zeros_like(flat)
            value, curvatures = abmll._divergence(family, flat, shared, beta, gradient)
            values.append(value)
            abmll._descend(family, flat, gradient, curvatures, 0.1, beta)
        assert all(later < earlier for earlier, later in pairwise(values))


def test_adapting_lowers_the_loss_and_no_steps_change_nothing():
    learned = learned_of(adapter(0, scale=0.1), 1e-3)
    posterior = adapted(learned, 1e-8, steps=8, learning_rate=0.2)
    losses = [row["loss"] for row in posterior.records]
    assert losses[-1] < losses[0]
    assert posterior.records[0]["kl"] == 0.0
    assert posterior.records[-1]["kl"] > 0.0
    assert posterior.compute.backward_tokens > 0
    still = adapted(learned, 1e-8, steps=0)
    assert still.records == []
    assert distance(still, learned) == 0.0
    for name, tensor in learned.extra.items():
        assert torch.equal(still.extra[name], tensor)


def test_the_order_of_an_adapter_s_tensors_does_not_matter():
    """A folder that was written and read has them in another order."""
    learned = learned_of(adapter(0, scale=0.1), 1e-2, size=1e-3)
    turned = dataclasses.replace(
        learned,
        adapter=Adapter(
            learned.adapter.config, dict(reversed(list(learned.adapter.tensors.items())))
        ),
    )
    one, other = adapted(learned, 1e-8), adapted(turned, 1e-8)
    for key, tensor in one.adapter.tensors.items():
        assert torch.equal(tensor, other.adapter.tensors[key])


# --- meta-training --------------------------------------------------------------------------------


def fitted(tasks=TASKS, seed=3, **changes: object) -> Learned:
    return abmll.fit(starting(parameters(**changes)), tasks, None, seed)


def starting(entry: AbmllParameters) -> Setup:
    return setup("abmll", entry, prompt=PLAIN, start=adapter(0, scale=0.1))


def test_meta_training_repeats_and_follows_the_seed():
    one, again, other = fitted(), fitted(TASKS[::-1]), fitted(seed=4)
    for key, tensor in one.adapter.tensors.items():
        assert torch.equal(tensor, again.adapter.tensors[key])
    for key, tensor in one.extra.items():
        assert torch.equal(tensor, again.extra[key])
    assert distance(one, other) > 0
    assert [row["loss"] for row in one.records] == [row["loss"] for row in again.records]


def test_a_source_gives_every_episode_a_task_of_its_own():
    asked = []

    def draw(number, support, query):
        asked.append(number)
        made = TASKS[number % len(TASKS)].examples
        return made[:support], made[support : support + query]

    own = starting(parameters(outer_steps=2, tasks_per_step=2))
    one, again = (abmll.fit(own, (), draw, 3) for _ in range(2))
    assert asked == [0, 1, 2, 3] * 2
    assert distance(one, again) == 0
    assert one.about["tasks"] == []
    assert distance(one, fitted(outer_steps=2, tasks_per_step=2)) > 0


def test_meta_training_learns_means_and_scales():
    seen = []
    own = starting(parameters(outer_steps=25, outer_learning_rate=0.02, gamma=0.0))
    learned = abmll.fit(own, TASKS, None, 3, lambda done, of: seen.append((done, of)))
    assert seen == [(i, 25) for i in range(1, 26)]
    losses = [row["loss"] for row in learned.records]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert [row["step"] for row in learned.records] == list(range(1, 26))
    assert all(row["kl"] > 0 and row["gradient_norm"] > 0 for row in learned.records)
    assert any(t.any() for name, t in learned.extra.items() if name.endswith(".B"))
    tokens = sum(row["tokens"] for row in learned.records)
    assert learned.compute.forward_tokens == learned.compute.backward_tokens == tokens


def test_a_step_s_gradient_is_first_order(monkeypatch):
    """θ moves by Adam's first step: the sign of the gradient by φ at φ plus the direct one by θ, times the rate."""
    start = adapter(0, scale=0.1)
    settings_ = parameters(
        outer_steps=1, tasks_per_step=1, beta=1e-5, gamma=1e-7, max_gradient_norm=1e9
    )
    kept = []
    plain = abmll._likelihood

    def spy(base, batch, family, flat, seed):
        loss, gradient = plain(base, batch, family, flat, seed)
        kept.append((flat.clone(), gradient.clone()))
        return loss, gradient

    monkeypatch.setattr(abmll, "_likelihood", spy)
    learned = abmll.fit(starting(settings_), TASKS[:1], None, 3)
    (theta, _), _, (phi, gradient) = kept
    family = abmll._Family(start, settings_.scale)
    # the rest of the objective, through autograd at φ and θ apart
    by_phi, by_theta = phi.clone().requires_grad_(), theta.clone().requires_grad_()
    total = torch.zeros(())
    for layer, own in zip(
        family.pairs(by_phi).values(), family.pairs(by_theta).values(), strict=True
    ):
        q = distribution(layer, start.config.scale, family.scale)
        p = distribution(own, start.config.scale, family.scale)
        total = total + settings_.beta * kl_divergence(Normal(*q), Normal(*p)).sum()
        total = total + settings_.gamma * (0.5 * p[0].square().sum() + 0.01 * (p[1] ** -2).sum())
    total.backward()
    expected = gradient + by_phi.grad + by_theta.grad
    assert learned.records[0]["gradient_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
    moved = family.flat(learned) - theta
    clear = expected.abs() > 1e-4 * expected.abs().max()
    assert clear.sum() > 100
    rate = settings_.outer_learning_rate
    assert torch.allclose(moved[clear], -rate * expected[clear].sign(), rtol=1e-2)


def test_episodes_follow_from_seed_and_step_and_keep_support_and_query_apart():
    base = tiny_base()
    sequences = answer_sequences(base, TASKS[0].examples, PLAIN, "text")
    own = parameters()
    seen = set()
    for seed in range(20):
        support, query = abmll._episode(sequences, own, seed)
        assert (len(support), len(query)) == (3, 3)
        assert not {x.ids for x in support} & {x.ids for x in query}
        seen.add(tuple(x.ids for x in (*support, *query)))
        again = abmll._episode(sequences, own, seed)
        assert again == (support, query)
    assert len(seen) > 10
    for step in range(1, 10):
        chosen = abmll._chosen_tasks(3, parameters(tasks_per_step=3), step, 0)
        assert sorted(chosen) == [0, 1, 2]
        more = abmll._chosen_tasks(3, parameters(tasks_per_step=7), step, 0)
        assert sorted(more.count(i) for i in range(3)) == [2, 2, 3]


# --- predicting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["none", "tokens"])
def test_a_sample_without_spread_is_the_mean_adapter(normalization):
    base, mean = tiny_base(), adapter(0)
    scoring = TEXT.model_copy(update={"normalization": normalization})
    own = setup("abmll", parameters(samples=1), prompt=PLAIN, scoring=scoring)
    found = abmll.predict(own, learned_of(mean, 1e-12), examples(5), 0)
    expected = score_examples(base, examples(5), PLAIN, scoring, mean)
    for one, other in zip(found, expected, strict=True):
        shifted = torch.tensor(other.option_scores, dtype=torch.float64).log_softmax(0).tolist()
        assert one.option_scores == pytest.approx(shifted, abs=1e-5)
        assert (one.predicted, one.gold, one.text) == (other.predicted, other.gold, other.text)
        assert one.tokens == other.tokens


def test_a_prediction_averages_the_probabilities_of_its_samples():
    base, learned = tiny_base(), learned_of(adapter(0), 0.05, size=0.02)
    seen = []
    given = setup("abmll", parameters(samples=3), prompt=PLAIN)
    found = abmll.predict(given, learned, examples(4), 11, lambda done, of: seen.append((done, of)))
    assert seen[-1] == (12, 12)
    total = torch.zeros(4, 3, dtype=torch.float64)
    family = abmll._family_of(learned)
    layers = family.pairs(family.flat(learned))
    tokens = 0
    for sample in range(3):
        # each as merged weights
        own = abmll.derive_seed(11, "abmll", "sample", str(sample))
        drawn = abmll._draw(base, layers, family.scale, own)
        weights = {
            name: weight + learned.adapter.config.scale * layers[name].mean_b @ layers[name].mean_a
            for name, weight in drawn.items()
        }
        active = base.activate_weights(weights)
        one = abmll.compare_options(base, examples(4), PLAIN, TEXT, active=active)
        total += torch.tensor(one.scores[0], dtype=torch.float64).softmax(dim=1) / 3
        tokens += one.tokens[0]
    for row, prediction in zip(total, found, strict=True):
        assert [math.exp(x) for x in prediction.option_scores] == pytest.approx(
            row.tolist(), abs=1e-5
        )
        assert prediction.predicted == int(row.argmax())
    assert found[0].tokens == tokens
    assert abmll.predict(given, learned, examples(4), 11) == found
    assert abmll.predict(given, learned, examples(4), 12) != found
    assert abmll.predict(given, learned, [], 11) == []


# --- what is refused ------------------------------------------------------------------------------


def test_what_cannot_be_learned_from_is_refused():
    with pytest.raises(BaselineError, match=r"no tasks to meta-train on"):
        fitted([])
    with pytest.raises(BaselineError, match=r"the task one is listed 2 times"):
        fitted([TASKS[0], TASKS[0]])
    with pytest.raises(
        BaselineError,
        match=r"the task short has 5 train examples, and an episode takes 6.*abmll.support",
    ):
        fitted([task("short", count=5)])
    learned = learned_of(adapter(0), 1e-3)
    with pytest.raises(BaselineError, match=r"no support examples"):
        abmll.adapt(starting(parameters()), learned, [], SETTING, 0)


def test_other_methods_weights_are_refused():
    plain = Learned("maml_en_llm", adapter(0))
    with pytest.raises(BaselineError, match=r"weights of maml_en_llm have no scale"):
        abmll.predict(starting(parameters()), plain, examples(2), 0)


@pytest.mark.parametrize(
    ("breaks_at", "message"),
    [
        (2, r"at step 2 on a task's support .*lower the learning rate of these steps \(now 0.05\)"),
        (
            3,
            r"at step 1 the loss is nan.*inner_learning_rate \(now 0.05\), outer_learning_rate \(now 0.01\)",
        ),
    ],
    ids=["inner", "outer"],
)
def test_a_loss_that_is_not_finite_is_an_error_that_names_the_rates(
    monkeypatch, breaks_at, message
):
    calls = []
    plain = abmll._likelihood

    def breaks(*given):
        calls.append(1)
        loss, gradient = plain(*given)
        return (math.nan if len(calls) == breaks_at else loss), gradient

    monkeypatch.setattr(abmll, "_likelihood", breaks)
    with pytest.raises(BaselineError, match=message):
        fitted()
