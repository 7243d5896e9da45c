"""Generators: kept and read again, refused where they do not belong, and what they make is ordinary PEFT."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from degaml_kedro.adapters.adapter import load_peft_folder, save_peft_folder
from degaml_kedro.generator.generator import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Generator,
    GeneratorError,
    load_generator,
    save_generator,
)
from degaml_kedro.llm.lora import active_lora
from tests.generator.helpers import CONDITION, Watched, tiny_embeddings, tiny_generator
from tests.llm.helpers import plain_copy, tiny_base

KINDS = ("factorized", "hyperconvolutional")


def saved(folder: Path, kind: str = "factorized", **changes: Any) -> Generator:
    made = dataclasses.replace(
        tiny_generator(kind),
        fingerprint="f" * 64,
        about={"tasks": ["one", "two"], "seed": 3},
        # an objective that is not trained on has NaN for its loss
        records=[{"step": 1, "loss": 0.5, "sft": math.nan}],
        checks=[{"step": 1, "task": "one", "accuracy": None}],
        **changes,
    )
    save_generator(made, folder)
    return made


# --- the folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("center", ["matrix", "element"])
def test_a_folder_round_trips(tmp_path: Path, kind: str, center: Any) -> None:
    scales = tiny_generator(kind, center=center).scales
    made = saved(tmp_path / "g", kind, scales=scales)
    again = load_generator(tmp_path / "g")
    for name in ("identity", "adapter", "fingerprint", "about", "checks"):
        assert getattr(again, name) == getattr(made, name), name
    assert again.records[0]["loss"] == 0.5
    assert math.isnan(again.records[0]["sft"])
    assert again.grid == made.grid
    assert again.decoder.condition == CONDITION
    assert again.decoder.settings == made.decoder.settings
    assert not again.decoder.training
    for name, tensor in made.scales.tensors().items():
        assert torch.equal(again.scales.tensors()[name], tensor), name
    embeddings = tiny_embeddings()
    one, other = made.sample(embeddings, seed=5), again.sample(embeddings, seed=5)
    assert one.config == other.config
    assert all(torch.equal(other.tensors[name], tensor) for name, tensor in one.tensors.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("casts", [False, True])
def test_adapters_are_made_in_the_precision_of_training(
    tmp_path: Path, kind: str, casts: bool
) -> None:
    exact = tiny_generator(kind).tokens(*tiny_embeddings().rows([0, 1, 2]))
    stored = tiny_generator(kind)
    stored.about = {"training": {"precision": "bfloat16", "cast_weights": casts}}
    save_generator(stored, tmp_path / "g")
    made = load_generator(tmp_path / "g")
    made.to(torch.device("cpu"))
    assert next(made.decoder.parameters()).dtype == (torch.bfloat16 if casts else torch.float32)
    rounded = made.tokens(*tiny_embeddings().rows([0, 1, 2]))
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("about", [{}, {"training": 3}, {"training": {"precision": "int8"}}])
def test_what_says_no_precision_is_in_float32(about: Any) -> None:
    made = tiny_generator()
    made.about = about
    assert made.computing(torch.device("cpu")).dtype == torch.float32


def test_saving_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    saved(tmp_path / "g")
    saved(tmp_path / "g", "hyperconvolutional")
    assert load_generator(tmp_path / "g").decoder.settings.kind == "hyperconvolutional"
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_a_failed_save_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "g")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("degaml_kedro.generator.generator.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path / "g", "hyperconvolutional")
    assert load_generator(tmp_path / "g").decoder.settings.kind == "factorized"
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / CONFIG_FILE
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def change_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def not_finite(name: str, value: float) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[0] = value

    return change


HEADS = "decoder.network.heads"
WIDER = {"kind": "factorized", "condition_width": 8, "width": 16, "blocks": 1, "rank": 4}
# the flow that a hyper-convolutional decoder of another grid has
ASTRAY = {"kind": "hyperconvolutional", "flow": [[3, 6, 8], [5, 4, 4]], "kernel_size": 3}
DAMAGE: dict[str, tuple[Any, str]] = {
    "no config": (lambda f: (f / CONFIG_FILE).unlink(), "has no generator.json"),
    "no weights": (lambda f: (f / WEIGHTS_FILE).unlink(), "has no generator.safetensors"),
    "bad json": (lambda f: (f / CONFIG_FILE).write_text("{"), "generator.json cannot be read"),
    "a list": (lambda f: (f / CONFIG_FILE).write_text("[]"), "generator.json cannot be read"),
    "no text": (lambda f: (f / CONFIG_FILE).write_bytes(b"\xff"), "generator.json cannot be read"),
    "another format": (
        lambda f: change_config(f, format=2),
        r"^\S*generator\.json has format 2, this version reads 1",
    ),
    "no grid": (lambda f: change_config(f, grid=None), "generator.json cannot be read"),
    "a damaged grid": (
        lambda f: change_config(f, grid={"token_width": 0, "shapes": []}),
        r"generator\.json cannot be used: token_width is 0",
    ),
    "an unknown decoder": (
        lambda f: change_config(f, decoder={"kind": "transformer"}),
        "generator.json cannot be read",
    ),
    "another decoder": (
        lambda f: change_config(f, decoder=WIDER),
        "does not hold the decoder that generator.json describes: .* expected",
    ),
    "a decoder that ends elsewhere": (
        lambda f: change_config(f, decoder=ASTRAY),
        "does not hold the decoder that generator.json describes",
    ),
    "truncated weights": (
        lambda f: (f / WEIGHTS_FILE).write_bytes((f / WEIGHTS_FILE).read_bytes()[:-10]),
        "generator.safetensors cannot be read .* truncated or damaged",
    ),
    "no weights in it": (
        lambda f: (f / WEIGHTS_FILE).write_bytes(b""),
        "truncated or damaged",
    ),
    "a tensor is missing": (
        lambda f: change_weights(f, lambda tensors: tensors.pop(HEADS)),
        "'network.heads' is missing there and",
    ),
    "a tensor too many": (
        lambda f: change_weights(
            f, lambda tensors: tensors.update({"decoder.network.more": torch.zeros(2)})
        ),
        r"'network.more' is \(2,\) there and not expected",
    ),
    "scales are missing": (
        lambda f: change_weights(f, lambda tensors: tensors.pop("scales.std")),
        r"generator\.safetensors.*no 'std'",
    ),
    "scales of another grid": (
        lambda f: change_weights(f, lambda tensors: tensors.update({"scales.std": torch.ones(3)})),
        r"generator\.safetensors.*std has shape \(3,\)",
    ),
    "NaN": (
        lambda f: change_weights(f, not_finite(HEADS, math.nan)),
        "'decoder.network.heads' holds NaN or infinite",
    ),
    "infinite scales": (
        lambda f: change_weights(f, not_finite("scales.std", math.inf)),
        "'scales.std' holds NaN or infinite",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_folder_that_cannot_be_used_is_named_with_the_way_out(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "g"
    saved(folder)
    damage, message = DAMAGE[what]
    damage(folder)
    with pytest.raises(GeneratorError, match=message) as caught:
        load_generator(folder)
    assert str(folder) in str(caught.value)
    assert "kedro run" in str(caught.value)


# --- what it does not belong to -------------------------------------------------------------------


def test_another_base_model_is_refused_naming_both() -> None:
    made, other = tiny_generator(), tiny_base(seed=1)
    made.check_base_model(tiny_base().name, tiny_base().fingerprint)
    with pytest.raises(GeneratorError) as caught:
        made.check_base_model(other.name, other.fingerprint)
    for word in (tiny_base().name, tiny_base().fingerprint, other.name, other.fingerprint):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "other/encoder", "fingerprint": "0" * 16}, "tests/encoder.*other/encoder"),
        ({"fingerprint": "0" * 16}, "other weights or vocabulary"),
        ({"tokens": 7}, "reads 6 tokens a prompt of width 8, these embeddings have 7 of width 8"),
        ({"width": 9}, "reads 6 tokens a prompt of width 8, these embeddings have 6 of width 9"),
    ],
)
def test_another_encoder_s_prompts_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GeneratorError, match=message):
        tiny_generator().sample(tiny_embeddings(**changes), seed=0)


# --- sampling -------------------------------------------------------------------------------------


def flat(adapter: Any) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in adapter.tensors.values()])


@pytest.mark.parametrize("kind", KINDS)
def test_draws_differ_and_the_same_seed_gives_the_same_bits(kind: str) -> None:
    made, embeddings = tiny_generator(kind), tiny_embeddings(count=20)
    draws = [flat(made.sample(embeddings, seed=1, draw=draw)) for draw in range(4)]
    for place, draw in enumerate(draws):
        assert torch.equal(draw, flat(made.sample(embeddings, seed=1, draw=place)))
        assert not any(torch.equal(draw, other) for other in draws[:place])
    assert not torch.equal(draws[0], flat(made.sample(embeddings, seed=2)))


def test_a_draw_is_what_generate_makes_of_the_documented_prompts() -> None:
    made, embeddings = tiny_generator(), tiny_embeddings(count=8)
    watched = Watched(embeddings)
    asked = watched.asked
    for draw in range(10):
        adapter = made.sample(watched, seed=0, draw=draw, among=[1, 4, 5, 7])  # type: ignore[arg-type]
        # enough prompts: each at most once
        assert len(set(asked[-1])) == 3
        assert set(asked[-1]) <= {1, 4, 5, 7}
        assert torch.equal(flat(adapter), flat(made.generate(*embeddings.rows(asked[-1]))))
    assert len({tuple(sorted(chosen)) for chosen in asked}) > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2])
def test_fewer_prompts_than_a_batch_are_drawn_with_replacement(kind: str, count: int) -> None:
    adapter = tiny_generator(kind).sample(tiny_embeddings(count=count), seed=0)
    assert torch.isfinite(flat(adapter)).all()


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    made, embeddings = tiny_generator(), tiny_embeddings()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = flat(made.sample(embeddings, seed=1))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, flat(made.sample(embeddings, seed=1)))


def test_tokens_are_normalized_and_the_adapter_is_not() -> None:
    made, embeddings = tiny_generator(), tiny_embeddings()
    batch = embeddings.rows([0, 1, 2])
    tokens = made.tokens(*batch)
    grid = made.grid
    assert tokens.shape == (grid.tokens, grid.rank, grid.token_width)
    weights = grid.detokenize(made.scales.denormalize(tokens))
    adapter = made.generate(*batch)
    assert list(adapter.tensors) == list(grid.shapes)
    for name, tensor in adapter.tensors.items():
        assert torch.equal(tensor, weights[name])
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert tuple(tensor.shape) == grid.shapes[name]


def test_the_permutation_state_is_told_to_the_decoder() -> None:
    made = tiny_generator()
    with torch.no_grad():
        state = made.decoder.get_parameter("network.state.weight")
        state.copy_(torch.arange(float(state.numel())).view(state.shape))
    batch = tiny_embeddings().rows([0, 1, 2])
    assert not torch.equal(made.tokens(*batch), made.tokens(*batch, state=1))


def test_a_fresh_generator_makes_the_mean_adapter() -> None:
    made = tiny_generator(warm=False)
    assert made.scales.element_mean is not None
    mean = made.grid.detokenize(made.scales.element_mean)
    adapter = made.sample(tiny_embeddings(), seed=0)
    assert all(torch.equal(tensor, mean[name]) for name, tensor in adapter.tensors.items())


# --- plain PEFT -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_adapter_is_a_peft_folder_with_the_same_logits(
    tmp_path: Path, kind: str
) -> None:
    base = tiny_base()
    adapter = tiny_generator(kind).sample(tiny_embeddings(), seed=0)
    save_peft_folder(adapter, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(plain_copy(base), str(tmp_path / "adapter")).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 40, 41]])
    with torch.no_grad():
        plain = plain_copy(base)(ids).logits
        wanted = theirs(ids).logits
        with active_lora(base.activate_adapter(adapter)):
            own = base.model(ids).logits
        again = load_peft_folder(tmp_path / "adapter")
        with active_lora(base.activate_adapter(again)):
            assert torch.equal(own, base.model(ids).logits)
    # the adapter does something, and the same in both
    assert (wanted - plain).abs().max() > 0.1
    assert torch.allclose(own, wanted, atol=1e-4, rtol=1e-4)
