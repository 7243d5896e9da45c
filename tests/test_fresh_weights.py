"""A seed, or a folder, decides weights alone: not what else the process draws or loads meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from degaml_kedro.config.schema import BaseModelParameters, EncoderParameters
from degaml_kedro.generator import prompt_encoder
from degaml_kedro.generator.decoders.build import Decoder
from degaml_kedro.llm import base_model
from tests.generator.decoders.test_build import CONDITION, EVERY, GRID

Maker = Callable[[int], Mapping[str, Tensor]]


def base(dtype: str = "float32", **source: Any) -> base_model.BaseModel:
    content = {"source": source, "dtype": dtype, "device": "cpu"}
    # past the loader, which keeps what it has loaded
    return base_model._load(BaseModelParameters.model_validate(content))


def encoder(**source: Any) -> prompt_encoder.PromptEncoder:
    content = {"source": source, "dtype": "float32", "device": "cpu"}
    return prompt_encoder._load(EncoderParameters.model_validate(content))


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Maker]:
    places = {}
    for name, model in (("base", base(kind="random")), ("encoder", encoder(kind="random"))):
        places[name] = {"kind": "folder", "path": str(tmp_path_factory.mktemp(name))}
        model.model.save_pretrained(places[name]["path"])
        model.tokenizer.save_pretrained(places[name]["path"])
    decoders = {
        name: lambda seed, kind=kind: Decoder(kind, GRID, CONDITION, seed).state_dict()
        for name, kind in EVERY.items()
    }
    return {
        "base": lambda seed: base(kind="random", seed=seed).model.state_dict(),
        "encoder": lambda seed: encoder(kind="random", seed=seed).model.state_dict(),
        "base of a folder": lambda _: base("bfloat16", **places["base"]).model.state_dict(),
        "encoder of a folder": lambda _: encoder(**places["encoder"]).model.state_dict(),
        **decoders,
    }


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key])
        for key in {*one, *other}
    )


def test_the_seed_decides_and_the_process_s_random_state_is_left_alone(
    makers: dict[str, Maker],
) -> None:
    for name, make in makers.items():
        torch.manual_seed(1)
        one, state = make(3), torch.get_rng_state()
        torch.manual_seed(1)
        assert torch.equal(state, torch.get_rng_state()), name
        torch.manual_seed(2)
        assert same(one, make(3)), name
        assert same(one, make(4)) == name.endswith("folder"), name


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_overlapping_loads_give_the_weights_of_loads_one_by_one(makers: dict[str, Maker]) -> None:
    alone = {name: make(3) for name, make in makers.items()}
    with ThreadPoolExecutor(len(makers)) as pool:
        for _ in range(3):
            together = list(pool.map(lambda make: make(3), makers.values()))
            differing = [
                name
                for name, made in zip(makers, together, strict=True)
                if not same(alone[name], made)
            ]
            assert not differing
    assert torch.get_default_dtype() == torch.float32


def test_the_fingerprint_of_a_random_model_is_of_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = base(kind="random")
    assert base("bfloat16", kind="random").fingerprint == one.fingerprint
    seeded = base_model.library_weights
    monkeypatch.setattr(base_model, "library_weights", lambda seed: seeded(seed + 1))
    other = base(kind="random")
    assert other.name == one.name
    assert other.fingerprint != one.fingerprint
