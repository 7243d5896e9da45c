"""MAML: the meta-gradient against closed forms, then the method on a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter, unflatten
from degaml_kedro.baselines.episodes import draw_episodes
from degaml_kedro.baselines.learned import BaselineError, Learned, TaskExamples
from degaml_kedro.baselines.maml import (
    FIRST_ORDER,
    Moments,
    StepLoss,
    adam_direction,
    adapt,
    fit,
    inner_loop,
    meta_gradient,
    support_losses,
)
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import (
    AdaptationSetting,
    LoraParameters,
    MamlParameters,
    Phase,
    PromptParameters,
    TrainingParameters,
)
from degaml_kedro.llm.finetune import (
    answer_loss,
    answer_sequences,
    fine_tune,
    initial_adapter,
)
from degaml_kedro.tasks.example import Example, make_example
from tests.baselines.helpers import setup
from tests.llm.helpers import random_adapter, tiny_base

SECOND_ORDER = "maml_en_llm"
PLAIN = PromptParameters(format="plain")
LORA = LoraParameters(rank=2, alpha=4)
SETTING = AdaptationSetting(steps=2, learning_rate=1e-3, batch_size=4)

# --- a quadratic ----------------------------------------------------------------------------------


def quadratic(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A, a, B, b, a start and a vector, float64; A and B are symmetric, not always positive."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    big_a, big_b = drawn(size, size), drawn(size, size)
    return big_a + big_a.T, drawn(size), big_b + big_b.T, drawn(size), drawn(size), drawn(size)


def bowl(matrix: Tensor, center: Tensor) -> StepLoss:
    return lambda theta, _=0: 0.5 * (theta - center) @ matrix @ (theta - center)


@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 5),
    steps=st.integers(1, 4),
    rate=st.floats(0, 0.3),
    first_order=st.booleans(),
)
def test_the_meta_gradient_of_plain_steps_is_the_closed_form(
    seed: int, size: int, steps: int, rate: float, first_order: bool
) -> None:
    big_a, a, big_b, b, start, _ = quadratic(seed, size)
    contraction = torch.eye(size, dtype=torch.float64) - rate * big_a
    power = torch.linalg.matrix_power(contraction, steps)
    adapted = a + power @ (start - a)
    slope = big_b @ (adapted - b)

    gradient, value, losses = meta_gradient(
        bowl(big_b, b), bowl(big_a, a), start, steps, rate, None, first_order
    )
    expected = slope if first_order else power.T @ slope
    assert torch.allclose(gradient, expected, rtol=1e-9, atol=1e-9)
    assert torch.allclose(value, bowl(big_b, b)(adapted, 0))
    assert torch.allclose(losses[0], bowl(big_a, a)(start, 0))
    assert len(losses) == steps


@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 4),
    steps=st.integers(1, 3),
    taken=st.integers(1, 50),
)
def test_with_shared_moments_the_meta_gradient_is_the_slope_of_the_query_loss(
    seed: int, size: int, steps: int, taken: int
) -> None:
    big_a, a, big_b, b, start, vector = quadratic(seed, size)
    # as large as they are after a few gradients of this size
    moments = Moments(0.3 * vector, vector**2 + 0.5, taken)

    def after(theta: Tensor) -> Tensor:
        adapted, _ = inner_loop(bowl(big_a, a), theta, steps, 0.05, moments, first_order=True)
        return bowl(big_b, b)(adapted, 0)

    step = 1e-5
    differences = torch.stack(
        [
            (after(start + step * axis) - after(start - step * axis)) / (2 * step)
            for axis in torch.eye(size, dtype=torch.float64)
        ]
    )
    gradient, value, _ = meta_gradient(bowl(big_b, b), bowl(big_a, a), start, steps, 0.05, moments)
    assert torch.allclose(gradient, differences, rtol=1e-4, atol=1e-6)
    assert torch.allclose(value, after(start))


def test_one_step_with_shared_moments_by_hand() -> None:
    big_a, a, big_b, b, start, vector = quadratic(5, 3)
    moments, rate = Moments(0.3 * vector, vector**2 + 0.5, 4), 0.05
    g = big_a @ (start - a)
    one, two = 1 - 0.9**5, 1 - 0.999**5
    first = (0.9 * moments.first + 0.1 * g) / one
    root = ((0.999 * moments.second + 0.001 * g**2) / two).sqrt()
    adapted = start - rate * first / (root + 1e-8)
    slope = 0.1 / one / (root + 1e-8) - first / (root + 1e-8) ** 2 * 0.001 * g / two / root
    expected = (torch.eye(3) - rate * slope[:, None] * big_a).T @ big_b @ (adapted - b)

    gradient, _, _ = meta_gradient(bowl(big_b, b), bowl(big_a, a), start, 1, rate, moments)
    assert torch.allclose(gradient, expected, rtol=1e-9)


@given(seed=st.integers(0, 2**31), size=st.integers(1, 5))
def test_first_order_with_shared_moments_is_the_slope_at_the_adapted_point(
    seed: int, size: int
) -> None:
    big_a, a, big_b, b, start, vector = quadratic(seed, size)
    moments = Moments(vector, vector**2, 3)
    adapted, _ = inner_loop(bowl(big_a, a), start, 2, 0.1, moments)
    gradient, _, _ = meta_gradient(
        bowl(big_b, b), bowl(big_a, a), start, 2, 0.1, moments, first_order=True
    )
    assert torch.allclose(gradient, big_b @ (adapted - b))


def test_the_inner_loop_can_be_differentiated_by_autograd_and_is_constant_in_first_order() -> None:
    big_a, a, *_, start, _ = quadratic(1, 4)
    leaf = start.clone().requires_grad_()
    adapted, losses = inner_loop(bowl(big_a, a), leaf, 2, 0.1)
    (slope,) = torch.autograd.grad(adapted.sum(), leaf)
    contraction = torch.eye(4, dtype=torch.float64) - 0.1 * big_a
    assert torch.allclose(slope, (contraction @ contraction).sum(0))
    assert not losses.requires_grad
    constant, _ = inner_loop(bowl(big_a, a), leaf, 2, 0.1, first_order=True)
    assert not constant.requires_grad
    assert torch.allclose(constant, adapted)


def test_no_inner_steps_leave_the_start() -> None:
    big_a, a, *_, start, _ = quadratic(2, 3)
    adapted, losses = inner_loop(bowl(big_a, a), start, 0, 0.1)
    assert torch.equal(adapted, start)
    assert losses.shape == (0,)


def test_a_step_from_empty_moments_is_the_sign_and_adds_no_second_order_term() -> None:
    big_a, a, big_b, b, start, _ = quadratic(3, 4)
    empty = Moments.empty(start)
    second, _, _ = meta_gradient(bowl(big_b, b), bowl(big_a, a), start, 1, 0.1, empty)
    first, _, _ = meta_gradient(bowl(big_b, b), bowl(big_a, a), start, 1, 0.1, empty, True)
    assert torch.allclose(second, first, rtol=1e-5)


def test_a_weight_without_gradient_and_without_moments_stays_and_is_finite() -> None:
    # the second weight's gradient is 0 at the start, and depends on the first one, as A's does while B is 0
    def loss(theta: Tensor, _: int = 0) -> Tensor:
        return theta[0] * theta[1] + theta[0]

    start = torch.tensor([0.0, 2.0])
    adapted, _ = inner_loop(loss, start, 1, 0.1, Moments.empty(start))
    assert torch.allclose(adapted, torch.tensor([-0.1, 2.0]))
    gradient, _, _ = meta_gradient(loss, loss, start, 2, 0.1, Moments.empty(start))
    assert torch.isfinite(gradient).all()
    assert gradient.norm() < 10


def test_adam_is_torch_s() -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = torch.zeros(7, requires_grad=True)
    optimizer = torch.optim.AdamW([theirs], lr=0.03, weight_decay=0.0)
    mine, moments = torch.zeros(7), Moments.empty(torch.zeros(7))
    for _ in range(20):
        gradient = torch.randn(7, generator=generator)
        theirs.grad = gradient.clone()
        optimizer.step()
        direction, moments = adam_direction(gradient, moments)
        mine = mine - 0.03 * direction
    assert torch.allclose(mine, theirs, atol=1e-6)
    assert moments.step == 20


def test_the_inner_loop_leaves_the_shared_moments_as_they_were() -> None:
    big_a, a, *_, start, vector = quadratic(4, 3)
    moments = Moments(vector.clone(), vector**2, 3)
    inner_loop(bowl(big_a, a), start, 3, 0.1, moments)
    assert torch.equal(moments.first, vector)
    assert torch.equal(moments.second, vector**2)
    assert moments.step == 3


# --- a tiny model ---------------------------------------------------------------------------------


def task(name: str, answer: int, count: int = 12) -> TaskExamples:
    examples = [
        make_example(f"Which {name} is {i}?", ["red", "blue", "green"], answer)
        for i in range(count)
    ]
    return TaskExamples(name, examples)


TASKS = [task("stone", 0), task("door", 1), task("leaf", 2)]


def settings_of(**changes: object) -> MamlParameters:
    values: dict[str, object] = {
        "outer_steps": 3,
        "tasks_per_step": 2,
        "support": 3,
        "query": 3,
        "inner_steps": 2,
        "inner_learning_rate": 1e-3,
        "outer_learning_rate": 5e-3,
        "settings": (SETTING,),
    }
    return MamlParameters.model_validate({**values, **changes})


def learn(
    parameters: MamlParameters,
    tasks: list[TaskExamples] = TASKS,
    seed: int = 1,
    first_order: bool = False,
) -> Learned:
    method = FIRST_ORDER if first_order else SECOND_ORDER
    return fit(setup(method, parameters, prompt=PLAIN), tasks, None, seed)


def adapt_to(
    learned: Learned,
    support: Sequence[Example],
    setting: AdaptationSetting = SETTING,
    parameters: MamlParameters | None = None,
    seed: int = 5,
) -> Learned:
    own = setup(SECOND_ORDER, parameters or settings_of(), prompt=PLAIN)
    return adapt(own, learned, support, setting, seed)


def same(one: Adapter, other: Adapter) -> bool:
    return all(torch.equal(tensor, other.tensors[key]) for key, tensor in one.tensors.items())


def flat(adapter: Adapter) -> Tensor:
    return torch.cat([adapter.tensors[key].reshape(-1) for key in sorted(adapter.tensors)])


@pytest.mark.parametrize(
    ("first_order", "share", "rate"),
    [(False, True, 1e-3), (False, False, 0.1), (True, True, 1e-3), (True, False, 0.1)],
)
def test_meta_training_lowers_the_query_loss(first_order: bool, share: bool, rate: float) -> None:
    parameters = settings_of(outer_steps=30, share_moments=share, inner_learning_rate=rate)
    learned = learn(parameters, first_order=first_order)
    losses = [row["loss"] for row in learned.records]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert learned.method == (FIRST_ORDER if first_order else SECOND_ORDER)
    assert learned.extra["step"].item() == 30
    assert learned.extra["first_moment"].shape == flat(learned.adapter).shape
    assert {tensor.dtype for tensor in learned.extra.values()} == {torch.float32}


def test_the_meta_gradient_of_the_model_is_the_slope_of_its_query_loss() -> None:
    base = tiny_base()
    start = random_adapter(base, LORA)
    sequences = answer_sequences(base, TASKS[1].examples, PLAIN, "text")
    shapes = {key: tensor.shape for key, tensor in start.tensors.items()}

    def tensors(theta: Tensor) -> dict[str, Tensor]:
        parts = theta.split([shape.numel() for shape in shapes.values()])
        return {k: p.view(shape) for (k, shape), p in zip(shapes.items(), parts, strict=True)}

    def support(theta: Tensor, _: int) -> Tensor:
        return answer_loss(base, sequences[:4], tensors(theta), start.config, elementary=True)

    def query(theta: Tensor, _: int = 0) -> Tensor:
        return answer_loss(base, sequences[4:8], tensors(theta), start.config)

    theta = 0.5 * flat(start)
    gradient, _, _ = meta_gradient(query, support, theta, 2, 0.05)
    plain, _, _ = meta_gradient(query, support, theta, 2, 0.05, first_order=True)
    along = gradient / gradient.norm()

    def after(distance: float) -> float:
        adapted, _ = inner_loop(support, theta + distance * along, 2, 0.05, first_order=True)
        return query(adapted).item()

    slope = (after(1e-3) - after(-1e-3)) / 2e-3
    assert slope == pytest.approx(gradient.norm().item(), rel=0.02)
    # and that is more than the first-order slope would tell
    assert abs((plain @ along).item() - slope) > 0.05 * slope


@pytest.mark.parametrize("share", [True, False])
def test_inner_steps_that_are_computed_again_give_the_same_meta_gradient(
    share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, start = tiny_base(), random_adapter(tiny_base(), LORA)
    sequences = answer_sequences(base, TASKS[1].examples, PLAIN, "text")
    theta = 0.5 * flat(start)
    moments = Moments(0.1 * theta, theta**2 + 0.1, 3) if share else None

    def query(at: Tensor, _: int) -> Tensor:
        tensors = unflatten(at, dict(sorted(start.tensors.items())))
        return answer_loss(base, sequences[4:8], tensors, start.config)

    found = []
    for tokens in (10_000, 40):
        monkeypatch.setattr("degaml_kedro.baselines.maml._TOKENS_AT_ONCE", tokens)
        support = support_losses(base, sequences[:4], start, 2)
        assert callable(support) == (tokens > 40)
        found.append(meta_gradient(query, support, theta, 2, 0.05, moments))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()


def test_the_same_call_gives_the_same_bits_and_another_seed_does_not() -> None:
    one, again, other = learn(settings_of()), learn(settings_of()), learn(settings_of(), seed=2)
    assert same(one.adapter, again.adapter)
    assert [row["loss"] for row in one.records] == [row["loss"] for row in again.records]
    assert not same(one.adapter, other.adapter)


@pytest.mark.parametrize("share", [True, False])
def test_the_order_of_the_tasks_does_not_matter(share: bool) -> None:
    parameters = settings_of(tasks_per_step=3, share_moments=share)
    assert same(
        learn(parameters).adapter, learn(parameters, [TASKS[2], TASKS[0], TASKS[1]]).adapter
    )


def test_shared_moments_change_the_inner_steps() -> None:
    shared, plain = learn(settings_of()), learn(settings_of(share_moments=False))
    assert not same(shared.adapter, plain.adapter)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**40),
    step=st.integers(1, 1000),
    count=st.integers(1, 8),
    k=st.integers(0, 4),
)
def test_episodes(seed: int, step: int, count: int, k: int) -> None:
    parameters = settings_of(tasks_per_step=count)
    episodes = draw_episodes(TASKS, parameters, step, seed, k)
    assert episodes == draw_episodes(TASKS[::-1], parameters, step, seed, k)
    names = [episode.task for episode in episodes]
    # none comes a second time before all came once
    assert len(names) == count
    assert max(names.count(t.name) for t in TASKS) - min(names.count(t.name) for t in TASKS) <= 1
    pools = {t.name: set(t.examples) for t in TASKS}
    for episode in episodes:
        support, query = set(episode.support), set(episode.query)
        assert len(support) == 3
        assert len(query) == 3
        assert not support & query
        assert support | query <= pools[episode.task]
        rows = zip((*episode.support, *episode.query), episode.demonstrations, strict=True)
        for example, shown in rows:
            assert len(set(shown)) == k
            assert example not in shown
            assert not query & set(shown)


def test_a_task_that_comes_twice_in_a_step_has_two_episodes() -> None:
    parameters = settings_of(tasks_per_step=2)
    first, second = draw_episodes([task("stone", 0, count=100)], parameters, 1, 0)
    assert first.support != second.support


def test_examples_in_the_prompt_are_read_and_change_the_weights() -> None:
    plain, context = learn(settings_of()), learn(settings_of(in_context_examples=2))
    assert context.compute.forward_tokens > 2 * plain.compute.forward_tokens
    assert not same(plain.adapter, context.adapter)


@pytest.mark.parametrize(("first_order", "back"), [(False, 3), (True, 1)])
def test_compute_is_counted(first_order: bool, back: int) -> None:
    base = tiny_base()
    parameters = settings_of(outer_steps=1, tasks_per_step=1)
    learned = learn(parameters, first_order=first_order)
    (episode,) = draw_episodes(TASKS, parameters, 1, seed=1)

    def tokens(examples: tuple[Example, ...]) -> int:
        return sum(len(x.ids) for x in answer_sequences(base, examples, PLAIN, "text"))

    support, query = 2 * tokens(episode.support), tokens(episode.query)
    assert learned.compute.forward_tokens == support + query == learned.records[0]["tokens"]
    assert learned.compute.backward_tokens == back * support + query


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    own = setup(SECOND_ORDER, settings_of(), prompt=PLAIN)
    fit(own, TASKS, None, 1, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# --- adapting -------------------------------------------------------------------------------------


def fresh(share_step: int = 0) -> Learned:
    adapter = random_adapter(tiny_base(), LORA)
    empty = torch.zeros_like(flat(adapter))
    extra = {
        "first_moment": empty,
        "second_moment": empty,
        "step": torch.tensor(float(share_step)),
    }
    return Learned(SECOND_ORDER, adapter, extra)


SUPPORT = TASKS[0].examples


@pytest.mark.parametrize("batch_size", [4, 12, 64])
def test_adapting_from_empty_moments_is_fine_tuning(batch_size: int) -> None:
    setting = AdaptationSetting(steps=4, learning_rate=2e-3, batch_size=batch_size)
    learned = fresh()
    adapted = adapt_to(learned, SUPPORT, setting)
    training = TrainingParameters(
        phases=(Phase(steps=4, learning_rate=2e-3),),
        batch_size=min(batch_size, len(SUPPORT)),
        max_gradient_norm=1e9,
    )
    own = derive_seed(5, "maml", "adapt")
    steps = list(fine_tune(tiny_base(), SUPPORT, PLAIN, "text", training, learned.adapter, own))
    assert torch.allclose(flat(adapted.adapter), flat(steps[-1].adapter), atol=1e-4)
    assert [row["loss"] for row in adapted.records] == pytest.approx(
        [step.loss for step in steps], abs=1e-4
    )
    assert adapted.compute.forward_tokens == sum(step.tokens for step in steps)
    assert adapted.compute.backward_tokens == adapted.compute.forward_tokens


def test_adapting_with_plain_steps_goes_down_the_gradient() -> None:
    base, learned = tiny_base(), replace(fresh(), extra={})
    setting = AdaptationSetting(steps=1, learning_rate=0.1, batch_size=100)
    parameters = settings_of(share_moments=False)
    adapted = adapt_to(learned, SUPPORT, setting, parameters)
    leaves = {k: t.clone().requires_grad_() for k, t in learned.adapter.tensors.items()}
    batch = answer_sequences(base, SUPPORT, PLAIN, "text")
    answer_loss(base, batch, leaves, learned.adapter.config).backward()
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        expected = leaf.detach() - 0.1 * leaf.grad
        assert torch.allclose(adapted.adapter.tensors[key], expected, atol=1e-5)


def test_adapting_after_meta_training_learns_the_support_examples() -> None:
    learned = learn(settings_of(outer_steps=10))
    setting = AdaptationSetting(steps=15, learning_rate=5e-3, batch_size=12)
    adapted, again = (adapt_to(learned, SUPPORT, setting) for _ in range(2))
    assert same(adapted.adapter, again.adapter)
    assert adapted.records[-1]["loss"] < 0.7 * adapted.records[0]["loss"]
    assert adapted.method == SECOND_ORDER


def test_no_steps_return_the_shared_weights() -> None:
    learned = fresh()
    setting = AdaptationSetting(steps=0, learning_rate=1e-3)
    adapted = adapt_to(learned, (), setting)
    assert same(adapted.adapter, learned.adapter)
    assert adapted.compute.forward_tokens == 0


# --- tasks without end ----------------------------------------------------------------------------


def test_a_source_gives_every_episode_a_task_of_its_own() -> None:
    asked: list[int] = []

    def draw(number: int, support: int, query: int) -> tuple[list[Example], list[Example]]:
        asked.append(number)
        examples = list(TASKS[number % 3].examples)
        return examples[:support], examples[support : support + query]

    given = settings_of()
    own = setup(SECOND_ORDER, given, prompt=PLAIN)
    one, again = (fit(own, (), draw, 1) for _ in range(2))
    assert asked == [*range(6), *range(6)]
    assert same(one.adapter, again.adapter)
    assert one.about["tasks"] == []
    assert not same(one.adapter, learn(given).adapter)


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_task_with_too_few_examples_is_named() -> None:
    tasks = [*TASKS, task("cup", 0, count=5)]
    with pytest.raises(BaselineError, match=r"cup has 5 train examples, and an episode takes 6: 3"):
        learn(settings_of(), tasks)
    with pytest.raises(BaselineError, match=r"cup has 5 .* takes 8: .* behind 4 others"):
        learn(settings_of(in_context_examples=4), tasks)


def test_no_tasks_and_a_task_twice_are_refused() -> None:
    with pytest.raises(BaselineError, match="no tasks to meta-train on"):
        learn(settings_of(), [])
    with pytest.raises(BaselineError, match="door is listed 2 times"):
        learn(settings_of(), [*TASKS, TASKS[1]])


def test_a_loss_that_is_not_finite_names_the_step_and_the_rates() -> None:
    parameters = settings_of(
        outer_steps=20, share_moments=False, inner_learning_rate=10.0, outer_learning_rate=1.0
    )
    wild = Adapter(
        initial_adapter(tiny_base(), LORA).config,
        {k: 1e25 * t for k, t in random_adapter(tiny_base(), LORA).tensors.items()},
    )
    with pytest.raises(BaselineError, match=r"outer step 1; .*now 10\) or .*now 1\)"):
        fit(setup(SECOND_ORDER, parameters, prompt=PLAIN, start=wild), TASKS, None, 1)
    with pytest.raises(BaselineError, match=r"at adaptation step 1; .*\(now 0\.001\)"):
        adapt_to(replace(fresh(), adapter=wild), SUPPORT)


def test_adapting_needs_examples_and_the_moments() -> None:
    with pytest.raises(BaselineError, match="no support examples"):
        adapt_to(fresh(), ())
    bare = replace(fresh(), extra={})
    with pytest.raises(BaselineError, match="lacks first_moment, second_moment, step"):
        adapt_to(bare, SUPPORT)


def test_the_order_of_an_adapter_s_tensors_does_not_matter():
    """A folder that was written and read has them in another order, and the stored moments are one vector."""
    base = tiny_base()
    start = random_adapter(base, LORA)
    size = sum(tensor.numel() for tensor in start.tensors.values())
    generator = torch.Generator().manual_seed(3)
    extra = {
        "first_moment": 1e-3 * torch.randn(size, generator=generator),
        "second_moment": 1e-6 * torch.rand(size, generator=generator),
        "step": torch.tensor(5.0),
    }
    turned = Adapter(start.config, dict(reversed(list(start.tensors.items()))))
    support = [make_example(f"question {i}", ("one", "two"), i % 2) for i in range(4)]
    parameters = MamlParameters(
        outer_steps=1, inner_learning_rate=1e-3, outer_learning_rate=1e-3, settings=(SETTING,)
    )
    one, other = (
        adapt_to(Learned(SECOND_ORDER, it, extra), support, SETTING, parameters, 1)
        for it in (start, turned)
    )
    for key, tensor in one.adapter.tensors.items():
        assert torch.equal(tensor, other.adapter.tensors[key])
        assert not torch.equal(tensor, start.tensors[key])
