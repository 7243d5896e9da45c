"""A pair's folder: the same bits back, half the size where it is rounded, and strangers' files refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from degaml_kedro.checkpoint.folder import (
    PAIR_FILES,
    TrainedPair,
    read_files,
    read_pair,
    save_pair,
)
from degaml_kedro.checkpoint.layout import CheckpointError
from tests.checkpoint.helpers import (
    tiny_generator,
    tiny_pair,
    tiny_settings,
    write_json,
    write_tiny_pair,
)

GENERATOR = "generator/generator.json"
WEIGHTS = "generator/generator.safetensors"
POLICY = "policy/adapter_model.safetensors"


def tensors(pair: TrainedPair) -> dict[str, torch.Tensor]:
    """All numbers of a pair by name."""
    found = {f"decoder.{k}": v for k, v in pair.generator.decoder.state_dict().items()}
    found |= {f"scales.{k}": v for k, v in pair.generator.scales.tensors().items()}
    if pair.writer is not None:
        found |= {f"writer.{k}": v for k, v in pair.writer.decoder.state_dict().items()}
    return found | dict(pair.policy.tensors if pair.policy else {})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_tiny_pair(tmp_path_factory.mktemp("pairs") / "pair", writer=True)


@pytest.fixture
def folder(written, tmp_path):
    """A copy, to be tampered with."""
    return shutil.copytree(written, tmp_path / "pair")


def test_the_same_bits_come_back(written):
    pair, read = tiny_pair(writer=True), read_pair(written)
    theirs = tensors(read)
    assert theirs.keys() == tensors(pair).keys()
    assert all(torch.equal(value, theirs[name]) for name, value in tensors(pair).items())
    assert read.settings == pair.settings
    assert read.about == pair.about
    assert (read.name, read.source) == ("tiny", str(written))
    assert read.base_model_fingerprint == pair.base_model_fingerprint
    assert read.generator.fingerprint == pair.generator.fingerprint
    assert read.generator.identity == pair.generator.identity


def test_only_the_files_of_a_pair_are_written_and_no_training_record(written):
    found = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert found == {*PAIR_FILES, "README.md"}
    content = json.loads((written / GENERATOR).read_text())
    assert (content["records"], content["checks"]) == ([], [])
    assert "day_after" in (written / "README.md").read_text()


def test_bfloat16_halves_the_matrices_and_leaves_the_vectors(written, tmp_path):
    save_pair(tiny_pair(), tmp_path / "pair", "bfloat16")
    for name in (WEIGHTS, POLICY):
        whole, rounded = load_file(written / name), load_file(tmp_path / "pair" / name)
        assert whole.keys() == rounded.keys()
        for key, value in rounded.items():
            wanted = torch.bfloat16 if value.dim() > 1 else torch.float32
            assert value.dtype == wanted, key
            assert torch.equal(value, whole[key].to(wanted)), key
    before, after = tensors(tiny_pair()), tensors(read_pair(tmp_path / "pair"))
    assert {value.dtype for value in after.values()} == {torch.float32}
    # eight bits of significand
    assert all(torch.allclose(after[name], value, rtol=2**-8) for name, value in before.items())
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_rounded_weights_have_another_fingerprint_and_are_rounded_once(tmp_path):
    save_pair(tiny_pair(), tmp_path / "one", "bfloat16")
    read = read_pair(tmp_path / "one")
    assert read.generator.fingerprint != tiny_pair().generator.fingerprint
    save_pair(read, tmp_path / "two", "bfloat16")
    assert read_files(tmp_path / "one") == read_files(tmp_path / "two")


def test_a_pair_without_a_policy(tmp_path):
    save_pair(tiny_pair(policy=False), tmp_path / "pair")
    assert not (tmp_path / "pair" / "policy").exists()
    assert read_pair(tmp_path / "pair").policy is None


def test_an_earlier_pair_stays_where_writing_fails(written, folder):
    broken = tiny_pair(seed=1)
    broken = dataclasses.replace(broken, about={"tasks": object()})
    with pytest.raises(ValueError, match="serialize"):
        save_pair(broken, folder)
    assert read_files(folder) == read_files(written)
    assert [path.name for path in folder.parent.iterdir()] == ["pair"]


@settings(max_examples=25)
@given(
    name=st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1, max_size=40),
    about=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(
                st.characters(exclude_categories=["Cs"]), max_size=8
            ),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
        max_size=4,
    ),
    temperature=st.floats(0, 100),
)  # fmt: skip
def test_names_settings_and_what_is_known_come_back(tmp_path_factory, name, about, temperature):
    policy = {**tiny_settings().policy.model_dump(mode="json"), "temperature": temperature}
    pair = dataclasses.replace(tiny_pair(policy=policy), name=name, about=about)
    pair = dataclasses.replace(pair, settings=tiny_settings(policy=policy))
    place = tmp_path_factory.mktemp("any") / "pair"
    save_pair(pair, place)
    read = read_pair(place)
    assert (read.name, read.about, read.settings) == (name, about, pair.settings)


# --- parts that do not belong together ------------------------------------------------------------


def test_an_encoder_that_keeps_other_tokens_is_refused():
    encoder = {**tiny_settings().encoder.model_dump(mode="json"), "tokens": 9}
    with pytest.raises(CheckpointError, match=r"reads 24 tokens a prompt.*encoder\.tokens: 9"):
        tiny_pair(encoder=encoder)


def described(folder):
    """What ``pair.json`` says, without its own digest, as older versions wrote it."""
    content = json.loads((folder / "pair.json").read_text())
    content.pop("sha256", None)
    return content


def rewrite(folder, **changes):
    """Change ``pair.json``."""
    write_json(folder / "pair.json", described(folder) | changes)


def record(folder, name):
    """Write a changed file's size and digest down, as somebody who means harm would."""
    content = described(folder)
    data = (folder / name).read_bytes()
    content["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json(folder / "pair.json", content)


def test_a_policy_of_another_base_model_is_refused(folder):
    file = folder / "policy" / "adapter_config.json"
    write_json(file, {**json.loads(file.read_text()), "base_model_name_or_path": "their-llama"})
    record(folder, "policy/adapter_config.json")
    with pytest.raises(CheckpointError, match=r"policy is an adapter of their-llama.*random-llama"):
        read_pair(folder)


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIR_FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        read_pair(folder)


@pytest.mark.parametrize("name", PAIR_FILES[1:])
def test_a_truncated_or_changed_file_is_named(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    with pytest.raises(
        CheckpointError, match=f"'{name}' has {len(data) - 1} bytes, and {len(data)}"
    ):
        read_pair(folder)
    (folder / name).write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(CheckpointError, match=f"'{name}' is not the file that was written down"):
        read_pair(folder)


def test_a_changed_pair_json_is_named_and_one_without_its_digest_is_read(folder):
    file = folder / "pair.json"
    text = file.read_text()
    assert '"seed": 0' in text
    file.write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(CheckpointError, match=r"its pair\.json is not what was written down"):
        read_pair(folder)
    rewrite(folder)
    assert read_pair(folder).about["seed"] == 1


@pytest.mark.parametrize("name", PAIR_FILES)
def test_a_link_is_not_followed(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link|of its own"):
        read_pair(folder)


def test_a_linked_folder_is_not_followed(folder, tmp_path):
    shutil.move(folder / "policy", tmp_path / "elsewhere")
    (folder / "policy").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="'policy/adapter_config.json' is a link"):
        read_pair(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 2}, "format 2, this version reads 1"),
        ({"name": ""}, "wrong at name"),
        ({"name": "two\nlines"}, "wrong at name"),
        ({"more": 1}, "wrong at more"),
        ({"settings": {}}, r"wrong at settings\.model"),
        ({"settings": {"model": {"source": {"kind": "telepathy"}}}}, r"wrong at settings\.model"),
        ({"files": {}}, "does not list the files"),
        ({"files": {"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}}, "does not list"),
        ({"base_model_fingerprint": "other"}, "one base model"),
    ],
)
def test_what_pair_json_must_not_say(folder, changes, told):
    rewrite(folder, **changes)
    with pytest.raises(CheckpointError, match=told):
        read_pair(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "5", '{"format": 1}', "\0"])
def test_a_pair_json_that_is_none(folder, text):
    (folder / "pair.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"pair\.json"):
        read_pair(folder)


def test_a_huge_pair_json_is_not_read(folder):
    with (folder / "pair.json").open("wb") as stream:
        stream.truncate(17 * 2**20)
    with pytest.raises(CheckpointError, match="larger than 16 MB"):
        read_pair(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [WEIGHTS, POLICY])
def test_weights_that_are_not_finite_are_refused(folder, name, bad):
    found = load_file(folder / name)
    key = max(found, key=lambda key: found[key].numel())
    found[key].view(-1)[0] = bad
    (folder / name).unlink()
    save_file(found, folder / name)
    record(folder, name)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        read_pair(folder)


def test_weights_that_are_no_safetensors_are_refused(folder):
    for name in (WEIGHTS, POLICY):
        copy = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\x80\x04\x95 a pickle" * 100)
        record(folder, name)
        with pytest.raises(CheckpointError, match="cannot be used"):
            read_pair(folder)
        (folder / name).write_bytes(copy)
        record(folder, name)
    assert read_pair(folder)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("decoder", "width"), 65536),
        (("decoder", "rank"), 65536),
        (("decoder", "condition_width"), 65536),
        (("decoder", "blocks"), 64),
        (("grid", "token_width"), 10**12),
        (("condition", "width"), 10**9),
        (("condition", "states"), 10**12),
        (("condition", "prompts"), 10**9),
        (("condition", "prompts"), 0),
        (("condition", "prompts"), -4),
        (("condition", "prompts"), "4"),
        (("condition", "tokens"), 10**9),
        (("condition", "width"), 0),
    ],
)
def test_sizes_that_would_fill_the_memory_are_refused_before(folder, place, value):
    content = json.loads((folder / GENERATOR).read_text())
    content[place[0]][place[1]] = value
    write_json(folder / GENERATOR, content)
    record(folder, GENERATOR)
    with pytest.raises(CheckpointError, match="cannot be used: its generator's"):
        read_pair(folder)


def test_a_grid_that_would_fill_the_memory_is_refused_before(folder):
    content = json.loads((folder / GENERATOR).read_text())
    for shape in content["grid"]["shapes"]:
        shape[1 if shape[0].endswith("lora_B.weight") else 2] = 10**12
    write_json(folder / GENERATOR, content)
    record(folder, GENERATOR)
    with pytest.raises(CheckpointError, match="do not fit its file"):
        read_pair(folder)


def test_a_huge_flow_is_refused_before(folder):
    content = json.loads((folder / GENERATOR).read_text())
    shape = list(tiny_generator().grid.shape)
    content["decoder"] = {
        "kind": "hyperconvolutional",
        "flow": [[4, 24, 16], [10**6, 10**6, 10**6], shape],
        "kernel_size": 9,
    }
    write_json(folder / GENERATOR, content)
    record(folder, GENERATOR)
    with pytest.raises(CheckpointError, match="decoder is to have at least"):
        read_pair(folder)


@pytest.mark.parametrize("value", [[1], None, "text", {"a": {"b": 1}}])
@pytest.mark.parametrize("part", ["identity", "adapter", "condition", "decoder", "grid"])
def test_a_generator_json_of_another_shape(folder, part, value):
    content = json.loads((folder / GENERATOR).read_text())
    write_json(folder / GENERATOR, {**content, part: value})
    record(folder, GENERATOR)
    with pytest.raises(CheckpointError, match="cannot be used"):
        read_pair(folder)


@pytest.mark.parametrize("changes", [{"about": None}, {"about": [1]}, {"fingerprint": 5}])
def test_a_generator_that_does_not_say_what_it_is(folder, changes):
    content = json.loads((folder / GENERATOR).read_text())
    write_json(folder / GENERATOR, {**content, **changes})
    record(folder, GENERATOR)
    with pytest.raises(CheckpointError, match="does not say what it was trained on"):
        read_pair(folder)


def test_files_beside_the_pair_are_not_opened(folder):
    (folder / "evil.pkl").write_bytes(b"\x80\x04\x95")
    (folder / "policy" / "adapter_model.bin").write_bytes(b"\x80\x04\x95")
    assert read_pair(folder).policy is not None


def test_a_pair_compares_options():
    with pytest.raises(
        ValidationError, match="answers are written .* and here options are compared"
    ):
        tiny_settings(scoring={"mode": "generate"})
