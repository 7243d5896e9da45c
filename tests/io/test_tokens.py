"""Tokens on disk: written checkpoint by checkpoint, read one at a time, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kedro.io import DataCatalog, DatasetError
from safetensors.torch import load_file, save_file
from torch import Tensor

from degaml_kedro.adapters.scales import TokenScales, TokenStatistics
from degaml_kedro.common import atomic
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.io.tokens import (
    TokenScalesDataset,
    TokensDataset,
    TokenSequence,
    TokenStatisticsDataset,
)
from tests.adapters.test_tokens import small_grid
from tests.io.sending import sent

GRID = small_grid(token_width=5)
ABOUT = {"task": "one", "base_model": "m", "adapter": {"alpha": 4.0, "target_modules": ["q"]}}
DTYPES = [torch.float32, torch.bfloat16]


def made(count: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    shape = (GRID.tokens, GRID.rank, GRID.token_width)
    return [(torch.randn(shape, generator=source) * GRID.mask()).to(dtype) for _ in range(count)]


def sequence(checkpoints: list[Tensor]) -> TokenSequence:
    read = checkpoints.__getitem__
    return TokenSequence(GRID, len(checkpoints), checkpoints[0].dtype, ABOUT, read)


@pytest.fixture
def dataset(tmp_path: Path) -> TokensDataset:
    return TokensDataset(filepath=tmp_path / "deep" / "one.tokens.safetensors")


def path_of(dataset: Any) -> Path:
    return Path(dataset._describe()["filepath"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_read_is_what_was_written(dataset: TokensDataset, dtype: torch.dtype) -> None:
    checkpoints = made(dtype=dtype)
    assert not dataset.exists()
    dataset.save(sequence(checkpoints))
    assert dataset.exists()
    found = dataset.load()
    assert found.grid == GRID
    assert (len(found), found.dtype, found.about) == (4, dtype, ABOUT)
    for index in (3, 0, 2, 1, 0):
        tokens = found.read(index)
        assert tokens.dtype == dtype
        assert torch.equal(tokens, checkpoints[index])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_file_is_plain_safetensors(dataset: TokensDataset, dtype: torch.dtype) -> None:
    dataset.save(sequence(made(dtype=dtype)))
    tensors = load_file(path_of(dataset))
    assert set(tensors) == {"tokens"}
    assert torch.equal(tensors["tokens"], torch.stack(made(dtype=dtype)))


def test_the_same_tokens_give_the_same_bytes(dataset: TokensDataset) -> None:
    dataset.save(sequence(made()))
    before = path_of(dataset).read_bytes()
    dataset.save(sequence(made()))
    assert path_of(dataset).read_bytes() == before


def test_only_one_checkpoint_is_held_at_a_time(dataset: TokensDataset) -> None:
    checkpoints = made()
    asked = []

    def read(index: int) -> Tensor:
        asked.append(index)
        return checkpoints[index]

    dataset.save(TokenSequence(GRID, 4, torch.float32, ABOUT, read))
    assert asked == [0, 1, 2, 3]


def test_loading_reads_the_header_and_a_checkpoint_its_part(dataset: TokensDataset) -> None:
    dataset.save(sequence(made()))
    path = path_of(dataset)
    # what lies behind checkpoint 1 is not touched: the file's numbers may be anything there
    found = dataset.load()
    size = GRID.tokens * GRID.rank * GRID.token_width * 4
    content = bytearray(path.read_bytes())
    content[-2 * size :] = b"\xff" * (2 * size)
    path.write_bytes(content)
    assert torch.equal(found.read(1), made()[1])
    assert found.read(2).isnan().all()


def test_it_can_be_sent_to_another_process_after_reading(dataset: TokensDataset) -> None:
    dataset.save(sequence(made()))
    found = dataset.load()
    found.read(0)
    again = sent(found)
    assert torch.equal(again.read(2), made()[2])


def test_a_write_that_breaks_off_leaves_the_old_file(dataset: TokensDataset) -> None:
    dataset.save(sequence(made()))

    def read(index: int) -> Tensor:
        if index == 2:
            raise OSError(5, "Input/output error")
        return torch.ones_like(made()[0])

    with pytest.raises((OSError, DatasetError), match="Input/output"):
        dataset.save(TokenSequence(GRID, 4, torch.float32, ABOUT, read))
    assert torch.equal(dataset.load().read(0), made()[0])
    assert [path.name for path in path_of(dataset).parent.iterdir()] == [path_of(dataset).name]


def test_a_full_disk_leaves_the_old_file(
    dataset: TokensDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.save(sequence(made()))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises((OSError, DatasetError), match="No space left"):
        dataset.save(sequence(made(2)))
    assert len(dataset.load()) == 4


# --- statistics and scales ------------------------------------------------------------------------


def small_files(folder: Path) -> Iterator[tuple[Any, Any]]:
    statistics = TokenStatistics.of(GRID, made(), "tests")
    yield TokenStatisticsDataset(filepath=folder / "deep" / "statistics"), statistics
    for center in ("matrix", "element"):
        scales = TokenScales.from_statistics(GRID, statistics, center)
        yield TokenScalesDataset(filepath=folder / "deep" / center), scales


def test_statistics_and_scales_give_the_same_bytes_every_time(tmp_path: Path) -> None:
    found = set()
    for turn in range(6):
        for dataset, data in small_files(tmp_path / str(turn)):
            dataset.save(data)
            found.add(path_of(dataset).read_bytes())
    assert len(found) == 3


def test_statistics_and_scales_come_back_bit_for_bit(tmp_path: Path) -> None:
    for dataset, data in small_files(tmp_path):
        assert not dataset.exists()
        dataset.save(data)
        assert dataset.exists()
        found = dataset.load()
        assert type(found) is type(data)
        assert found.tensors().keys() == data.tensors().keys()
        for name, tensor in data.tensors().items():
            assert torch.equal(found.tensors()[name], tensor), name
    scales = TokenScalesDataset(filepath=tmp_path / "deep" / "element").load()
    assert (scales.grid, scales.center) == (GRID, "element")


# --- damage ---------------------------------------------------------------------------------------


def every(folder: Path) -> list[Any]:
    tokens = TokensDataset(filepath=folder / "deep" / "tokens")
    tokens.save(sequence(made()))
    found = [tokens]
    for dataset, data in small_files(folder):
        dataset.save(data)
        found.append(dataset)
    return found


@pytest.mark.parametrize("cut", [0, 4, 40, 300, -1])
def test_a_truncated_file_is_named_with_the_way_out(tmp_path: Path, cut: int) -> None:
    for dataset in every(tmp_path):
        path = path_of(dataset)
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(DatasetError, match="truncated or damaged.*delete it") as caught:
            dataset.load()
        assert str(path) in str(caught.value)
        assert isinstance(caught.value.__cause__, DegamlError)


def test_another_file_is_named(tmp_path: Path) -> None:
    for dataset in every(tmp_path):
        save_file({"tokens": torch.zeros(2)}, path_of(dataset))
        with pytest.raises(DatasetError, match="delete it, then `kedro run") as caught:
            dataset.load()
        assert str(path_of(dataset)) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for kind in (TokensDataset, TokenStatisticsDataset, TokenScalesDataset):
        with pytest.raises(DatasetError, match="nowhere is not there.*kedro run"):
            kind(filepath=tmp_path / "nowhere").load()


def test_tokens_that_are_not_those_of_their_grid(dataset: TokensDataset) -> None:
    dataset.save(sequence(made()))
    about = {"grid": small_grid(token_width=4).as_json(), "about": ABOUT}
    metadata = {"degaml": json.dumps(about)}
    save_file({"tokens": torch.stack(made())}, path_of(dataset), metadata=metadata)
    with pytest.raises(DatasetError, match="holds tokens .* but describes TokenGrid"):
        dataset.load()


def test_tokens_of_an_unknown_dtype(dataset: TokensDataset) -> None:
    metadata = {"degaml": json.dumps({"grid": GRID.as_json(), "about": ABOUT})}
    path_of(dataset).parent.mkdir()
    save_file({"tokens": torch.stack(made()).double()}, path_of(dataset), metadata=metadata)
    with pytest.raises(DatasetError, match="F64"):
        dataset.load()


def test_they_are_catalog_datasets(tmp_path: Path) -> None:
    path = str(tmp_path / "t")
    kind = "degaml_kedro.io.tokens.TokensDataset"
    catalog = DataCatalog.from_config({"t": {"type": kind, "filepath": path}})
    catalog.save("t", sequence(made()))
    assert torch.equal(catalog.load("t").read(1), made()[1])
    for dataset in (TokensDataset, TokenStatisticsDataset, TokenScalesDataset):
        assert path in str(dataset(filepath=path))
