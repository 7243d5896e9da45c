"""Prompt embeddings on disk: what is read, how much of it, and what is refused."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kedro.io import DataCatalog
from safetensors.torch import load_file, save_file

from degaml_kedro.common import atomic
from degaml_kedro.common.atomic import StoredDataError
from degaml_kedro.config.schema import EncoderParameters
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.io.prompt_embeddings import (
    PromptEmbeddingsDataset,
    read_prompt_embeddings,
    write_prompt_embeddings,
)
from tests.io.sending import sent

PROMPTS = ["one", "a longer one", "", "one", "two"]


@pytest.fixture(scope="module")
def embeddings() -> PromptEmbeddings:
    source = {"kind": "random", "hidden_size": 16}
    encoder = load_prompt_encoder(
        EncoderParameters.model_validate({"source": source, "device": "cpu"})
    )
    return encoder.encode(PROMPTS, tokens=24)


@pytest.fixture
def file(tmp_path: Path, embeddings: PromptEmbeddings) -> Path:
    path = tmp_path / "task" / "prompt_embeddings.safetensors"
    write_prompt_embeddings(embeddings, path)
    return path


def same(one: PromptEmbeddings, two: PromptEmbeddings) -> bool:
    names = ("tokens", "width", "encoder", "fingerprint", "prompts_digest")
    return (
        all(getattr(one, name) == getattr(two, name) for name in names)
        and torch.equal(one.states, two.states)
        and torch.equal(one.lengths, two.lengths)
    )


def test_what_is_read_is_what_was_written(file: Path, embeddings: PromptEmbeddings) -> None:
    found = read_prompt_embeddings(file)
    assert same(found, embeddings)
    states, lengths = found.rows([[4, 1]])
    assert torch.equal(states[0, 1], embeddings.states[1])
    assert lengths.tolist() == [[5, 14]]
    assert repr(found) == "PromptEmbeddings(5 x 24 x 16, random-bert-16-seed0)"


def test_the_file_is_plain_safetensors(file: Path, embeddings: PromptEmbeddings) -> None:
    tensors = load_file(file)
    assert set(tensors) == {"states", "starts", "lengths"}
    assert torch.equal(tensors["states"], embeddings.token_states[:])
    # a repeated prompt and padding take no room
    assert tensors["states"].shape == (5 + 14 + 2 + 5, 16)


def test_a_dataset_saves_and_loads_through_a_catalog(
    tmp_path: Path, embeddings: PromptEmbeddings
) -> None:
    path = tmp_path / "deep" / "e.safetensors"
    kind = "degaml_kedro.io.prompt_embeddings.PromptEmbeddingsDataset"
    catalog = DataCatalog.from_config({"e": {"type": kind, "filepath": str(path)}})
    assert not catalog.exists("e")
    catalog.save("e", embeddings)
    assert catalog.exists("e")
    assert same(catalog.load("e"), embeddings)
    assert str(path) in str(PromptEmbeddingsDataset(filepath=path))


def test_embeddings_of_a_file_can_be_written_over_it(
    file: Path, embeddings: PromptEmbeddings
) -> None:
    found = read_prompt_embeddings(file)
    write_prompt_embeddings(found, file)
    assert same(found, embeddings)
    assert same(read_prompt_embeddings(file), embeddings)


def test_another_process_opens_the_file_for_itself(
    file: Path, embeddings: PromptEmbeddings
) -> None:
    found = read_prompt_embeddings(file)
    found.rows([0])
    assert same(sent(found), embeddings)


def test_an_interrupted_write_leaves_the_old_file(
    file: Path, embeddings: PromptEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_prompt_embeddings(embeddings, file)
    monkeypatch.undo()
    assert same(read_prompt_embeddings(file), embeddings)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def mapped_kilobytes(path: Path) -> int:
    """How much of a file this process has in memory through its mappings."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_the_rows_that_are_asked_for_are_read(tmp_path: Path) -> None:
    prompts, length, width = 1000, 32, 384
    states = torch.randn(prompts * length, width).half()
    starts = torch.arange(prompts) * length
    lengths = torch.full((prompts,), length, dtype=torch.int32)
    path = tmp_path / "e.safetensors"
    write_prompt_embeddings(
        PromptEmbeddings(states, starts, lengths, 64, width, "none", "", ""), path
    )
    whole = path.stat().st_size // 1024
    assert whole > 24_000
    found = read_prompt_embeddings(path)
    assert mapped_kilobytes(path) < whole / 50
    rows, _ = found.rows([0, 500, 999])
    assert torch.equal(rows[1, :length], states[500 * length : 501 * length])
    assert 0 < mapped_kilobytes(path) < whole / 10
    assert torch.equal(found.token_states[:], states)
    assert mapped_kilobytes(path) > whole / 2


# --- bad files ------------------------------------------------------------------------------------

WAY_OUT = r"delete it, then `kedro run --only-missing-outputs` makes it again"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoredDataError, match=r"x.safetensors is not there; `kedro run"):
        read_prompt_embeddings(tmp_path / "x.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, -1000, -1])
def test_a_truncated_file_is_named(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(StoredDataError, match=rf"{file} cannot be read .*{WAY_OUT}"):
        read_prompt_embeddings(file)


def test_a_dataset_that_cannot_be_read_says_so_through_kedro(file: Path) -> None:
    file.write_bytes(b"not a safetensors file at all")
    with pytest.raises(Exception, match=WAY_OUT):
        PromptEmbeddingsDataset(filepath=file).load()


def test_a_file_that_goes_away_or_breaks_later_is_named(file: Path) -> None:
    found = read_prompt_embeddings(file)
    file.write_bytes(b"")
    with pytest.raises(StoredDataError, match=WAY_OUT):
        found.rows([0])
    file.unlink()
    with pytest.raises(StoredDataError, match="is not there; `kedro run"):
        found.rows([0])


def rewritten(
    file: Path, tensors: dict[str, Any] | None = None, about: dict[str, str | None] | None = None
) -> None:
    """Change some of a file's tensors and metadata; None takes one away."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    metadata = {**json.loads(data[8 : 8 + length])["__metadata__"], **(about or {})}
    content = {**load_file(file), **(tensors or {})}
    save_file(
        {name: tensor for name, tensor in content.items() if tensor is not None},
        file,
        {name: value for name, value in metadata.items() if value is not None},
    )


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"format": None}, "its format is None"),
        ({"format": "pt"}, "its format is pt, not degaml prompt embeddings 1"),
        ({"tokens": None}, r"KeyError\('tokens'\)"),
        ({"tokens": "many"}, "many"),
        ({"fingerprint": None}, r"KeyError\('fingerprint'\)"),
        ({"tokens": "4"}, "tokens outside its 26 of at most 4 a prompt"),
    ],
)
def test_a_wrong_header_is_named(file: Path, about: dict[str, str | None], message: str) -> None:
    rewritten(file, about=about)
    with pytest.raises(StoredDataError, match=f"{message}.*{WAY_OUT}"):
        read_prompt_embeddings(file)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"states": None}, "states"),
        ({"states": torch.zeros(26, 16)}, "its states are F32, not F16"),
        ({"states": torch.zeros(26, 4, 4).half()}, "too many values"),
        ({"starts": torch.tensor([0, 5, 19, 0])}, "starts and lengths are not one of each"),
        ({"starts": torch.tensor([0, 5, 19, 0, 22])}, "tokens outside its 26"),
        ({"starts": torch.tensor([0, 5, -1, 0, 21])}, "tokens outside its 26"),
        ({"lengths": torch.tensor([5, 14, 2, -5, 5], dtype=torch.int32)}, "tokens outside"),
    ],
)
def test_wrong_tensors_are_named(file: Path, tensors: dict[str, Any], message: str) -> None:
    rewritten(file, tensors=tensors)
    with pytest.raises(StoredDataError, match=f"{message}.*{WAY_OUT}"):
        read_prompt_embeddings(file)
