"""An adapted state's folder: the same bits again, or an error that names what is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from degaml_kedro.adapters.adapter import Adapter, AdapterConfig, load_peft_folder, tensor_key
from degaml_kedro.strategies import state as module
from degaml_kedro.strategies.state import (
    MAX_POOL,
    STATE_FILE,
    TENSORS_FILE,
    AdaptedState,
    Demonstrations,
    Member,
    Order,
    StateError,
    Steering,
    Vote,
    load_state,
    save_state,
)
from degaml_kedro.tasks.example import Example, make_example, make_true_false_example

ROME = make_example("Italy's capital?", ["Rome", "Paris"], gold=0)
SNOW = make_true_false_example("Snow is cold.", True, system="Be brief.")
ORDERS: tuple[Order, ...] = ("given", "random", "nearest")
METHODS = (
    "avg_sim_score",
    "avg_prompt_embed",
    "max_confidence",
    "majority_vote",
    "sum_logprobs",
)


def adapter(seed: int = 0, dtype: torch.dtype = torch.float32) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"A": (2, 5), "B": (3, 2)}
    tensors = {
        tensor_key(f"model.layers.{layer}.{name}", kind): torch.randn(
            shape, generator=generator
        ).to(dtype)
        for layer in range(2)
        for name in ("q_proj", "v_proj")
        for kind, shape in shapes.items()
    }
    return Adapter(AdapterConfig(2, 4.0, ("q_proj", "v_proj"), "random"), tensors)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ensemble() -> AdaptedState:
    """Two members, each with prompts, a vote, and a vector each."""
    members = tuple(Member(adapter(seed), numbers(4 + seed, 6, seed=seed)) for seed in range(2))
    vectors = numbers(2, 7)
    return AdaptedState(members, Vote("avg_sim_score"), Steering(3, 0.01, "task", vectors))


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    # as bytes: 0.0 and -0.0 are equal numbers and different bits
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def assert_same(one: AdaptedState, other: AdaptedState) -> None:
    assert len(one.members) == len(other.members)
    for mine, theirs in zip(one.members, other.members, strict=True):
        assert mine.adapter.config == theirs.adapter.config
        assert mine.adapter.tensors.keys() == theirs.adapter.tensors.keys()
        assert all(same(t, theirs.adapter.tensors[k]) for k, t in mine.adapter.tensors.items())
        assert same(mine.prompts, theirs.prompts)
        assert mine.demonstrations == theirs.demonstrations
    assert one.vote == other.vote
    assert (one.steering is None) == (other.steering is None)
    if one.steering is not None and other.steering is not None:
        assert same(one.steering.vectors, other.steering.vectors)
        plain = [dataclasses.replace(s, vectors=None) for s in (one.steering, other.steering)]
        assert dataclasses.astuple(plain[0]) == dataclasses.astuple(plain[1])


def floats(rows: int, columns: int) -> st.SearchStrategy[torch.Tensor]:
    one = st.floats(allow_nan=False, allow_infinity=False, width=32)
    many = st.lists(one, min_size=rows * columns, max_size=rows * columns)
    return many.map(lambda values: torch.tensor(values).view(rows, columns))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@st.composite
def solved(draw: st.DrawFn) -> Example:
    question, system = draw(TEXTS), draw(st.just("") | TEXTS)
    if draw(st.booleans()):
        return make_true_false_example(question, draw(st.booleans()), system)
    options = draw(st.lists(TEXTS, min_size=2, max_size=4))
    return make_example(question, options, draw(st.integers(0, len(options) - 1)), system)


CONTEXTS = st.builds(
    Demonstrations,
    st.lists(solved(), min_size=1, max_size=3).map(tuple),
    st.integers(1, 40),
    st.sampled_from(ORDERS),
    st.integers(0, 2**63 - 1),
    st.floats(0, 4),
)


@st.composite
def states(draw: st.DrawFn) -> AdaptedState:
    count = draw(st.integers(1, 3))
    width = draw(st.integers(1, 3))
    members = []
    # some of the members share one
    contexts = draw(st.lists(CONTEXTS, min_size=1, max_size=2))
    for _ in range(count):
        rank = draw(st.integers(1, 3))
        config = AdapterConfig(rank, draw(st.floats(0.5, 64)), ("q_proj",), "some/model")
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
        tensors = {
            tensor_key("model.layers.0.q_proj", "A"): draw(floats(rank, 2)),
            tensor_key("model.layers.0.q_proj", "B"): draw(floats(3, rank)),
        }
        if dtype == torch.bfloat16:
            tensors = {k: t.clamp(-1e30, 1e30).to(dtype) for k, t in tensors.items()}
        rows = draw(st.integers(1, 3))
        prompts = draw(st.none() | floats(rows, width))
        context = draw(st.none() | st.sampled_from(contexts))
        members.append(Member(Adapter(config, tensors), prompts, context))
    votes = st.builds(Vote, st.sampled_from(METHODS), st.sampled_from(["euclidean", "cosine"]))
    shares = st.lists(st.floats(0, 1000), min_size=count, max_size=count).map(tuple)
    weighted = st.builds(Vote, st.just("sum_logprobs"), weights=shares.filter(any))
    vote = draw(votes | weighted if count > 1 else st.none() | votes | weighted)
    rate = st.floats(1e-3, 1.0)
    steering = draw(
        st.none()
        | st.builds(Steering, st.integers(1, 10), rate, st.just("sample"))
        | st.builds(Steering, st.integers(1, 10), rate, st.just("task"), floats(count, 4))
    )
    return AdaptedState(tuple(members), vote, steering)


@settings(max_examples=25)
@given(state=states())
def test_what_was_saved_comes_back_bit_for_bit(state: AdaptedState) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "state"
        save_state(state, place)
        again = load_state(place)
        assert_same(again, state)
        first = content(place)
        save_state(again, place)
        assert content(place) == first
        assert [path.name for path in Path(folder).iterdir()] == ["state"]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_folder_is_open_files(tmp_path: Path) -> None:
    state = ensemble()
    save_state(state, tmp_path / "deep" / "s")
    place = tmp_path / "deep" / "s"
    names = {path.name for path in place.iterdir()}
    assert names == {"adapter_0", "adapter_1", STATE_FILE, TENSORS_FILE}
    assert json.loads((place / STATE_FILE).read_text()) == {
        "format": 3,
        "members": 2,
        "vote": {"method": "avg_sim_score", "distance": "euclidean", "weights": None},
        "steering": {"times": 3, "learning_rate": 0.01, "scope": "task"},
        "tensors": ["prompts.0", "prompts.1", "steering.vectors"],
        "contexts": [],
        "context_of": [None, None],
    }
    assert set(load_file(place / TENSORS_FILE)) == {"prompts.0", "prompts.1", "steering.vectors"}
    member = load_peft_folder(place / "adapter_1")
    assert all(torch.equal(member.tensors[k], t) for k, t in adapter(1).tensors.items())


def test_one_adapter_alone_needs_no_tensors_of_its_own(tmp_path: Path) -> None:
    save_state(AdaptedState((Member(adapter()),)), tmp_path / "s")
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"adapter_0", STATE_FILE}
    assert_same(load_state(tmp_path / "s"), AdaptedState((Member(adapter()),)))


def shown() -> AdaptedState:
    """Three members, two of which share a context, and a weighted vote."""
    context = Demonstrations((ROME, SNOW), 2, "random", 7)
    members = (
        Member(adapter(0), None, context),
        Member(adapter(1)),
        Member(adapter(2), None, Demonstrations((ROME, SNOW), 2, "random", 7)),
    )
    return AdaptedState(members, Vote("sum_logprobs", weights=(0.5, 0.0, 1.5)))


def test_contexts_are_plain_records_each_of_them_once(tmp_path: Path) -> None:
    save_state(shown(), tmp_path / "s")
    record = json.loads((tmp_path / "s" / STATE_FILE).read_text())
    assert record["context_of"] == [0, None, 0]
    assert record["vote"]["weights"] == [0.5, 0.0, 1.5]
    assert record["contexts"] == [
        {
            "examples": [
                {
                    "prompt": ROME.prompt,
                    "system": "",
                    "options": ["Rome", "Paris"],
                    "true_false": False,
                    "gold": 0,
                },
                {
                    "prompt": "Snow is cold.",
                    "system": "Be brief.",
                    "options": ["True", "False"],
                    "true_false": True,
                    "gold": 0,
                },
            ],
            "shots": 2,
            "order": "random",
            "seed": 7,
            "encoder_weight": 0.0,
        }
    ]
    again = load_state(tmp_path / "s")
    assert_same(again, shown())
    assert again.members[0].demonstrations is again.members[2].demonstrations


def test_what_counts_most_and_what_is_needed() -> None:
    assert shown().best == 2
    assert ensemble().best == 0
    assert AdaptedState((Member(adapter()),)).is_one_adapter
    alone = {order: Member(adapter(), None, Demonstrations((ROME,), 1, order)) for order in ORDERS}
    assert not any(AdaptedState((member,)).is_one_adapter for member in alone.values())
    needs = [order for order, member in alone.items() if AdaptedState((member,)).needs_encoder]
    assert needs == ["nearest"]
    assert ensemble().needs_encoder
    assert not shown().needs_encoder


@pytest.mark.parametrize(
    ("vote", "message"),
    [
        (Vote("majority_vote", weights=(1.0, 1.0)), "majority_vote has no weights; sum_logprobs"),
        (Vote("sum_logprobs", weights=(1.0,)), r"2 adapters need as many weights.*\[1.0\]"),
        (Vote("sum_logprobs", weights=(0.0, 0.0)), "one above 0"),
        (Vote("sum_logprobs", weights=(float("nan"), 1.0)), "one above 0"),
    ],
)
def test_weights_belong_to_members(vote: Vote, message: str) -> None:
    with pytest.raises(StateError, match=message):
        AdaptedState(shown().members[:2], vote)


def test_the_new_state_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    save_state(ensemble(), tmp_path / "s")
    save_state(AdaptedState((Member(adapter(5)),)), tmp_path / "s")
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"adapter_0", STATE_FILE}
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_members_may_share_a_batch_and_tensors_may_be_views(tmp_path: Path) -> None:
    block = numbers(6, 8)
    shared = block.t()[:, :4]
    assert not shared.is_contiguous()
    members = (Member(adapter(0), shared), Member(adapter(1), shared))
    vectors = numbers(1, 5).expand(2, 5).requires_grad_()
    state = AdaptedState(members, Vote("majority_vote"), Steering(1, 0.1, "task", vectors))
    save_state(state, tmp_path / "s")
    again = load_state(tmp_path / "s")
    assert_same(again, state)
    assert again.steering is not None
    assert again.steering.vectors is not None
    assert not again.steering.vectors.requires_grad


def test_a_save_that_fails_half_way_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(ensemble(), tmp_path / "s")
    before = content(tmp_path / "s")
    original = module.save_peft_folder

    def full(one: Adapter, path: Path) -> None:
        if path.name == "adapter_1":
            raise OSError(28, "No space left on device")
        original(one, path)

    other = AdaptedState((Member(adapter(7)), Member(adapter(8))), Vote("sum_logprobs"))
    monkeypatch.setattr(module, "save_peft_folder", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(other, tmp_path / "s")
    assert content(tmp_path / "s") == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


# --- what is refused ------------------------------------------------------------------------------


def steered(
    scope: Any, vectors: torch.Tensor | None, times: Any = 1, learning_rate: float = 0.1
) -> AdaptedState:
    return AdaptedState((Member(adapter()),), None, Steering(times, learning_rate, scope, vectors))


def prompted(*batches: torch.Tensor) -> AdaptedState:
    return AdaptedState(tuple(Member(adapter(), b) for b in batches), Vote("avg_sim_score"))


def broken_adapter() -> Adapter:
    tensors = dict(adapter().tensors)
    tensors[next(iter(tensors))] = torch.full((2, 5), float("inf"))
    return Adapter(adapter().config, tensors)


def behind(context: Demonstrations) -> AdaptedState:
    return AdaptedState((Member(adapter(), None, context),))


UNFIT: dict[str, tuple[Callable[[], AdaptedState], str]] = {
    "widths": (
        lambda: prompted(numbers(2, 3), numbers(2, 4)),
        r"'prompts.1' is float32 \[2, 4\], but 'prompts.0' is 3 wide",
    ),
    "one axis": (lambda: prompted(numbers(3)), "two axes"),
    "empty": (lambda: prompted(numbers(0, 3)), "something in them"),
    "half precision": (lambda: prompted(numbers(2, 3).half()), r"float16 \[2, 3\]; it has to be"),
    "NaN prompts": (lambda: prompted(numbers(2, 3) * float("nan")), "'prompts.0' holds NaN"),
    "a vector too many": (lambda: steered("task", numbers(2, 3)), "but there are 1 members"),
    "NaN vectors": (
        lambda: steered("task", torch.tensor([[float("nan")]])),
        "'steering.vectors' holds NaN",
    ),
    "no vectors": (lambda: steered("task", None), "scope 'task' has no vectors"),
    "vectors for nobody": (lambda: steered("sample", numbers(1, 3)), "'sample' has vectors"),
    "NaN rate": (lambda: steered("sample", None, learning_rate=float("nan")), "learning_rate"),
    "no number": (lambda: steered("sample", None, times="3"), "steering.times"),
    "no such scope": (lambda: steered("word", None), "steering.scope"),
    "no such vote": (
        lambda: AdaptedState((Member(adapter()),), Vote("best")),  # type: ignore[arg-type]
        "vote.method",
    ),
    "no examples": (lambda: behind(Demonstrations((), 1)), "contexts.0.examples"),
    "a crowd of examples": (
        lambda: behind(Demonstrations((ROME,) * (MAX_POOL + 1), 1)),
        "contexts.0.examples: Tuple should have at most 1000 items",
    ),
    "fewer than no shots": (lambda: behind(Demonstrations((ROME,), -1)), "contexts.0.shots"),
    "no such order": (
        lambda: behind(Demonstrations((ROME,), 1, "best")),  # type: ignore[arg-type]
        "contexts.0.order",
    ),
    "a heavy encoder": (
        lambda: behind(Demonstrations((ROME,), 1, encoder_weight=4.5)),
        "contexts.0.encoder_weight",
    ),
    "a seed too large": (lambda: behind(Demonstrations((ROME,), 1, seed=2**63)), "contexts.0.seed"),
    "half a character": (
        lambda: behind(Demonstrations((make_example("\ud800?", ["a", "b"], 0),), 1)),
        "contexts.0.examples.0.prompt",
    ),
    "too much text": (
        lambda: behind(Demonstrations((make_example("?" * 2**24, ["a", "b"], 0),), 1)),
        "larger than 16 MB; give its contexts fewer examples",
    ),
    "an infinite weight": (
        lambda: AdaptedState((Member(adapter()),), Vote("sum_logprobs", weights=(float("inf"),))),
        "vote.weights.0",
    ),
    "infinite weights": (lambda: AdaptedState((Member(broken_adapter()),)), "lora_A.*adapter_0"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_does_not_belong_together_is_not_written(tmp_path: Path, what: str) -> None:
    make, message = UNFIT[what]
    with pytest.raises(StateError, match=message) as caught:
        save_state(make(), tmp_path / "s")
    assert str(tmp_path / "s") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / STATE_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def write(text: str | bytes) -> Callable[[Path], None]:
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / STATE_FILE).write_bytes(data) and None


def tensors(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        found = load_file(folder / TENSORS_FILE) | {
            name.replace("_", ".", 1): value for name, value in changes.items()
        }
        save_file({k: t for k, t in found.items() if t is not None}, folder / TENSORS_FILE)

    return change


def cut(name: str, keep: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep]) and None


def remove(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


STEERING = {"times": 3, "learning_rate": 0.01, "scope": "task"}

DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no state": (remove(STATE_FILE), "has no state.json"),
    "no tensors": (remove(TENSORS_FILE), "no state.safetensors, which holds prompts.0"),
    "no member": (remove("adapter_1"), "its member adapter_1 is missing"),
    "no weights": (remove("adapter_1/adapter_model.safetensors"), "has no adapter_model"),
    "no member's config": (remove("adapter_0/adapter_config.json"), "has no adapter_config"),
    "half the state": (cut(STATE_FILE, 40), "state.json cannot be read"),
    "an empty state": (write(""), "state.json cannot be read"),
    "another coding": (write(b"\xff\xfe{"), "state.json cannot be read"),
    "a list": (write("[1]"), "state.json cannot be read .the whole"),
    "a deep list": (write("[" * 100_000), "state.json cannot be read"),
    "half the tensors": (cut(TENSORS_FILE, 100), "state.safetensors cannot be read.*truncated"),
    "half a member": (
        cut("adapter_0/adapter_model.safetensors", -1),
        "adapter_0 cannot be read.*truncated",
    ),
    "half a member's config": (cut("adapter_0/adapter_config.json", 30), "adapter_0 cannot be"),
    "another format": (edit(format=4), "has format 4, this version reads 3"),
    "no format": (edit(format=None), "has format None"),
    "an extra key": (edit(extra=1), "extra: Extra inputs"),
    "an extra key within": (
        edit(steering=STEERING | {"vectors": []}),
        "steering.vectors: Extra inputs",
    ),
    "a missing key": (edit(steering={"times": 3}), "steering.learning_rate: Field required"),
    "text for a number": (edit(members="2"), "members"),
    "a NaN rate": (edit(steering=STEERING | {"learning_rate": float("nan")}), "learning_rate"),
    "a huge rate": (edit(steering=STEERING | {"learning_rate": 1e300}), "learning_rate"),
    "a rate below 0": (edit(steering=STEERING | {"learning_rate": -1.0}), "learning_rate"),
    "steps for hours": (edit(steering=STEERING | {"times": 20_000}), "steering.times"),
    "no steps": (edit(steering=STEERING | {"times": 0}), "steering.times"),
    "nobody": (edit(members=0), "members"),
    "a crowd": (edit(members=21), "members: Input should be less than or equal to 20"),
    "a huge file": (write(" " * (16 * 2**20 + 1)), "larger than 16 MB"),
    "another vote": (edit(vote={"method": "best", "distance": "cosine"}), "vote.method"),
    "no vote": (edit(vote=None), "2 adapters need a vote"),
    "another scope": (edit(steering=STEERING | {"scope": "sample"}), "'sample' has vectors"),
    "a member more": (edit(members=3, context_of=[None] * 3), "its member adapter_2 is missing"),
    "a member less": (
        edit(members=1, context_of=[None]),
        "names the tensor 'prompts.1', and no member has it",
    ),
    "a strange tensor": (edit(tensors=["weights"]), "names the tensor 'weights'"),
    "a tensor gone": (tensors(prompts_1=None), "'prompts.1' is in one of them only"),
    "a tensor more": (tensors(prompts_7=numbers(1, 6)), "'prompts.7' is in one of them only"),
    "another width": (tensors(prompts_1=numbers(2, 5)), "'prompts.0' is 6 wide"),
    "another axis": (tensors(prompts_1=numbers(6)), "two axes"),
    "another type": (tensors(prompts_1=numbers(2, 6).double()), r"float64 \[2, 6\]"),
    "vectors of others": (tensors(steering_vectors=numbers(3, 7)), "but there are 2 members"),
    "NaN": (tensors(steering_vectors=numbers(2, 7) / 0), "'steering.vectors' holds NaN"),
}


def within(*keys: str | int, value: Any) -> Callable[[Path], None]:
    """Sets one value in the first context."""

    def change(folder: Path) -> None:
        path = folder / STATE_FILE
        record = json.loads(path.read_text())
        place = record["contexts"][0]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        path.write_text(json.dumps(record))

    return change


FORGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "hours of shots": (within("shots", value=10**9), "contexts.0.shots"),
    "a negative seed": (within("seed", value=-1), "contexts.0.seed"),
    "a huge seed": (within("seed", value=2**64), "contexts.0.seed"),
    "another order": (within("order", value="best"), "contexts.0.order"),
    "no examples": (within("examples", value=[]), "contexts.0.examples"),
    "a crowd of examples": (
        lambda folder: within(
            "examples",
            value=json.loads((folder / STATE_FILE).read_text())["contexts"][0]["examples"] * 501,
        )(folder),
        "contexts.0.examples: Tuple should have at most 1000 items",
    ),
    "an example of another shape": (within("examples", 0, value="x"), "contexts.0.examples.0"),
    "a text that is none": (within("examples", 0, "prompt", value=7), "examples.0.prompt"),
    "half a character": (within("examples", 0, "system", value="\ud800"), "cannot be read"),
    "no option": (within("examples", 0, "options", value=[]), "examples.0.options"),
    "a crowd of options": (within("examples", 0, "options", value=["a"] * 27), "0.options"),
    "gold beyond": (within("examples", 0, "gold", value=2), "gold 2 is none of 2 options"),
    "gold before": (within("examples", 0, "gold", value=-1), "examples.0.gold"),
    "true or false of others": (
        within("examples", 0, "true_false", value=True),
        "answered by true or false has these options",
    ),
    "more than an example": (within("examples", 0, "run", value="x"), "run: Extra inputs"),
    "a context of nobody": (edit(context_of=[None] * 3), "context_of names .. of 1 contexts"),
    "no such context": (edit(context_of=[0, 1, None]), r"context_of names \[0, 1\] of 1"),
    "a place before the first": (edit(context_of=[0, -1, None]), r"names \[-1, 0\] of 1"),
    "too few places": (edit(context_of=[0]), "context_of has 1 entries for 3 members"),
    "a crowd of contexts": (edit(contexts=[{}] * 21), "contexts"),
    "weights for a majority": (
        edit(vote={"method": "majority_vote", "distance": "cosine", "weights": [1, 1, 1]}),
        "majority_vote has no weights",
    ),
    "a weight too few": (
        edit(vote={"method": "sum_logprobs", "distance": "cosine", "weights": [1, 1]}),
        "3 adapters need as many weights",
    ),
    "a huge weight": (
        edit(vote={"method": "sum_logprobs", "distance": "cosine", "weights": [1, 1, 1e300]}),
        "vote.weights.2",
    ),
    "a weight that is none": (
        edit(vote={"method": "sum_logprobs", "distance": "cosine", "weights": [1, 1, "1"]}),
        "vote.weights.2",
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_contexts_and_weights_are_named_with_the_way_out(tmp_path: Path, what: str) -> None:
    save_state(shown(), tmp_path / "s")
    damage, message = FORGED[what]
    damage(tmp_path / "s")
    with pytest.raises(StateError, match=message) as caught:
        load_state(tmp_path / "s")
    assert f"delete the folder {tmp_path / 's'}" in str(caught.value)


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_with_the_way_out(tmp_path: Path, what: str) -> None:
    save_state(ensemble(), tmp_path / "s")
    damage, message = DAMAGE[what]
    damage(tmp_path / "s")
    with pytest.raises(StateError, match=message) as caught:
        load_state(tmp_path / "s")
    assert f"delete the folder {tmp_path / 's'}" in str(caught.value)


def test_a_member_s_config_of_another_shape_is_damage_too(tmp_path: Path) -> None:
    save_state(ensemble(), tmp_path / "s")
    path = tmp_path / "s" / "adapter_0" / "adapter_config.json"
    whole = json.loads(path.read_text())
    for changed in ([], {k: v for k, v in whole.items() if k != "r"}, whole | {"r": None}):
        path.write_text(json.dumps(changed))
        with pytest.raises(StateError, match="adapter_0 cannot be read"):
            load_state(tmp_path / "s")


def test_a_member_of_nan_weights_is_refused(tmp_path: Path) -> None:
    save_state(ensemble(), tmp_path / "s")
    path = tmp_path / "s" / "adapter_0" / "adapter_model.safetensors"
    save_file({k: t * float("nan") for k, t in load_file(path).items()}, path)
    with pytest.raises(StateError, match="adapter_0 cannot be read.*NaN or infinite weights"):
        load_state(tmp_path / "s")


def test_no_folder_at_all_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="nowhere cannot be used: it has no state.json; delete"):
        load_state(tmp_path / "nowhere")


def test_a_state_has_members_and_several_need_a_vote() -> None:
    with pytest.raises(StateError, match="at least one adapter"):
        AdaptedState(())
    with pytest.raises(StateError, match="2 adapters need a vote"):
        AdaptedState((Member(adapter()), Member(adapter())))
