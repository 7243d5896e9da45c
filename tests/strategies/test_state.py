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
    STATE_FILE,
    TENSORS_FILE,
    AdaptedState,
    Member,
    StateError,
    Steering,
    Vote,
    load_state,
    save_state,
)

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


@st.composite
def states(draw: st.DrawFn) -> AdaptedState:
    count = draw(st.integers(1, 3))
    width = draw(st.integers(1, 3))
    members = []
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
        members.append(Member(Adapter(config, tensors), prompts))
    votes = st.builds(Vote, st.sampled_from(METHODS), st.sampled_from(["euclidean", "cosine"]))
    vote = draw(votes if count > 1 else st.none() | votes)
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
        "format": 1,
        "members": 2,
        "vote": {"method": "avg_sim_score", "distance": "euclidean"},
        "steering": {"times": 3, "learning_rate": 0.01, "scope": "task"},
        "tensors": ["prompts.0", "prompts.1", "steering.vectors"],
    }
    assert set(load_file(place / TENSORS_FILE)) == {"prompts.0", "prompts.1", "steering.vectors"}
    member = load_peft_folder(place / "adapter_1")
    assert all(torch.equal(member.tensors[k], t) for k, t in adapter(1).tensors.items())


def test_one_adapter_alone_needs_no_tensors_of_its_own(tmp_path: Path) -> None:
    save_state(AdaptedState((Member(adapter()),)), tmp_path / "s")
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"adapter_0", STATE_FILE}
    assert_same(load_state(tmp_path / "s"), AdaptedState((Member(adapter()),)))


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
    "another format": (edit(format=2), "has format 2, this version reads 1"),
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
    "a member more": (edit(members=3), "its member adapter_2 is missing"),
    "a member less": (edit(members=1), "names the tensor 'prompts.1', and no member has it"),
    "a strange tensor": (edit(tensors=["weights"]), "names the tensor 'weights'"),
    "a tensor gone": (tensors(prompts_1=None), "'prompts.1' is in one of them only"),
    "a tensor more": (tensors(prompts_7=numbers(1, 6)), "'prompts.7' is in one of them only"),
    "another width": (tensors(prompts_1=numbers(2, 5)), "'prompts.0' is 6 wide"),
    "another axis": (tensors(prompts_1=numbers(6)), "two axes"),
    "another type": (tensors(prompts_1=numbers(2, 6).double()), r"float64 \[2, 6\]"),
    "vectors of others": (tensors(steering_vectors=numbers(3, 7)), "but there are 2 members"),
    "NaN": (tensors(steering_vectors=numbers(2, 7) / 0), "'steering.vectors' holds NaN"),
}


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
    with pytest.raises(StateError, match="not an adapted state's folder: it has no state.json"):
        load_state(tmp_path / "nowhere")


def test_a_state_has_members_and_several_need_a_vote() -> None:
    with pytest.raises(StateError, match="at least one adapter"):
        AdaptedState(())
    with pytest.raises(StateError, match="2 adapters need a vote"):
        AdaptedState((Member(adapter()), Member(adapter())))
