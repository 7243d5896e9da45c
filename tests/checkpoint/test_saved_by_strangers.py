"""A saved adaptation as anybody may have changed it: none of it is run, and damage is a sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from degaml_kedro.adaptation import Accuracy
from degaml_kedro.checkpoint.layout import CheckpointError
from degaml_kedro.session import AdaptedModel, Session, SessionError
from tests.checkpoint.helpers import write_tiny_pair
from tests.test_session import HELD_OUT, MODELS

ABOUT, STATE, TENSORS = "degaml.json", "state/state.json", "state/state.safetensors"


def edit(name: str, *keys: str, value: Any) -> Callable[[Path], None]:
    """Sets one value in a JSON file; a stranger's description has no digest of itself."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content.pop("sha256", None)
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / name).write_text(json.dumps(content))

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def reshape(make: Callable[[torch.Tensor], torch.Tensor], kind: str) -> Callable[[Path], None]:
    """Changes the tensors beside the adapters whose name begins with ``kind``."""

    def change(folder: Path) -> None:
        found = load_file(folder / TENSORS)
        changed = {k: make(t).clone() if k.startswith(kind) else t for k, t in found.items()}
        (folder / TENSORS).unlink()
        save_file(changed, folder / TENSORS)

    return change


def accuracy(right: Any, n: Any) -> Callable[[Path], None]:
    return edit(ABOUT, "report", "base", value={"right": right, "n": n})


def without_state(folder: Path) -> None:
    for path in sorted((folder / "state").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "state").rmdir()


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40]) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


ONE, ROUTER, TASK = "one adapter", "router", "δ of the task"
SHOWN = "context"
# what is saved, what is done to it, and what is told of it
DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no description": (ROUTER, remove(ABOUT), "PEFT folder does not say how questions were asked"),
    "a description that is cut off": (ROUTER, cut(ABOUT), "cannot be read"),
    "a description that is no object": (ROUTER, write(ABOUT, "[]"), "wrong at the whole"),
    "another format": (ROUTER, edit(ABOUT, "format", value=2), "format 2, this version reads 1"),
    "a report that is none": (ROUTER, edit(ABOUT, "report", value={"support": "x"}), "support"),
    "settings that are none": (ROUTER, edit(ABOUT, "settings", value={}), r"settings\.model"),
    "no state's description": (ROUTER, remove(STATE), r"no state\.json"),
    "a state's description that is cut off": (ROUTER, cut(STATE), "cannot be read"),
    "weights that are cut off": (ONE, cut("adapter_model.safetensors"), "adapter_model"),
    "a member's weights": (ROUTER, cut("state/adapter_0/adapter_model.safetensors"), "adapter_0"),
    "a link": (ONE, lambda folder: (folder / "more").symlink_to("/"), "'more' is a link"),
    "nothing was asked": (ONE, accuracy(0, 0), "no accuracy"),
    "more right than asked": (ONE, accuracy(5, 2), "no accuracy"),
    "less than none right": (ONE, accuracy(-5, 2), "no accuracy"),
    "half a character": (
        ONE,
        edit(ABOUT, "settings", "prompt", "plain_prefix", value="\ud800"),
        "plain_prefix.*surrogate",
    ),
    "a huge description": (ONE, write(ABOUT, " " * (16 * 2**20 + 1)), "larger than 16 MB"),
    "a deep description": (ONE, write(ABOUT, '{"a":' * 100_000), "cannot be read"),
    "no state where one is said to be": (ROUTER, without_state, "state is missing"),
    "a state where none is said to be": (
        ROUTER,
        edit(ABOUT, "more_than_peft", value=False),
        "state is there, and is not to be",
    ),
    "a config of no adapter": (ONE, write("adapter_config.json", "[1]"), "object"),
    "an absurd alpha": (ONE, edit("adapter_config.json", "lora_alpha", value=1e308), "lora_alpha"),
    "a member's config": (
        ROUTER,
        write("state/adapter_1/adapter_config.json", "[" * 100_000),
        "adapter_1",
    ),
    "a crowd": (ROUTER, edit(STATE, "members", value=10**9), "members"),
    "steps for hours": (TASK, edit(STATE, "steering", "times", value=20_000), "times"),
    "a rate below 0": (
        TASK,
        edit(STATE, "steering", "learning_rate", value=-1.0),
        "learning_rate",
    ),
    "hours of shots": (
        SHOWN,
        edit(STATE, "contexts", value=[{"examples": [], "shots": 10**9}]),
        "contexts.0",
    ),
    "a context of nobody": (SHOWN, edit(STATE, "context_of", value=[7]), "context_of"),
    "cut tensors": (ROUTER, write(TENSORS, "cut"), "state.safetensors"),
    "prompts of another encoder": (
        ROUTER,
        reshape(lambda t: t[:, :3], "prompts."),
        "'prompts.0' is 3 wide",
    ),
    "a vector of another model": (
        TASK,
        reshape(lambda t: t[:, :7], "steering."),
        "'steering.vectors' is 7 wide",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_a_sentence_with_the_way_out(what: str, tmp_path: Path) -> None:
    model, damage, message = DAMAGES[what]
    folder = MODELS[model]().save(tmp_path / "adapter")
    # a stranger writes what digests they like, or none
    edit(ABOUT, "files", value={})(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        AdaptedModel.open(folder)
    told = str(caught.value)
    assert str(folder) in told
    assert "again" in told or what == "no description"
    # that is how a run's own folders are made again
    assert "kedro run" not in told


def test_a_folder_that_is_none_and_another_base_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no degaml\.json; name a folder"):
        AdaptedModel.open(tmp_path)
    folder = MODELS[ONE]().save(tmp_path / "adapter")
    edit(ABOUT, "base_model_fingerprint", value="f" * 16)(folder)
    with pytest.raises(SessionError, match="; install the base model it was made for"):
        AdaptedModel.open(folder)


@pytest.mark.parametrize("right", [-1, 3])
def test_an_accuracy_is_one(right: int) -> None:
    assert Accuracy(0, 1).share == 0
    assert Accuracy(2, 2).share == 1
    for n in (0, 2):
        with pytest.raises(ValueError, match="no accuracy"):
            Accuracy(right, n)


@pytest.mark.parametrize("model", [ONE, ROUTER])
def test_every_file_of_weights_is_the_one_that_was_written_down(model: str, tmp_path: Path) -> None:
    folder = MODELS[model]().save(tmp_path / "adapter")
    for path in folder.rglob("*.safetensors"):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=r"is not the file that was written down"):
            AdaptedModel.open(folder)
        path.write_bytes(data)
    AdaptedModel.open(folder)


def test_weights_that_no_score_survives_give_no_answer(tmp_path: Path) -> None:
    folder = MODELS[ONE]().save(tmp_path / "adapter")
    edit(ABOUT, "files", value={})(folder)
    weights = folder / "adapter_model.safetensors"
    huge = {k: torch.full_like(t, 1e38) for k, t in load_file(weights).items()}
    weights.unlink()
    save_file(huge, weights)
    with pytest.raises(SessionError, match="not finite"):
        AdaptedModel.open(folder).predict(HELD_OUT[:1])


@pytest.mark.parametrize("group", ["model", "encoder"])
@pytest.mark.parametrize("package", ["adapter.x", "adapter"])
def test_code_in_the_folder_is_not_run(
    group: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = {"kind": "package", "package": package}
    source["gguf_file" if group == "model" else "folder"] = "x"
    folder = MODELS[ROUTER]().save(tmp_path / "adapter")
    edit(ABOUT, "settings", group, "source", value=source)(folder)
    pair = write_tiny_pair(tmp_path / "pair")
    source["package"] = package.replace("adapter", "pair")
    edit("pair.json", "settings", group, "source", value=source)(pair)
    for place in (folder, pair):
        (place / "__init__.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n")
    with pytest.raises(ValueError, match=r"package|holds no"):
        AdaptedModel.open(folder)
    if "." in package:
        with pytest.raises(CheckpointError, match="package"):
            Session.load(pair)
    assert not (tmp_path / "was_run").exists()
    assert not {"adapter", "pair"} & set(sys.modules)
