"""What a run writes is whole or not there: on a full disk, and after a power failure."""

from __future__ import annotations

import gc
import random
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from degaml_kedro.cli import _sentence
from tests.faults.injection import FullFrom, Tape, watched
from tests.faults.writers import WRITERS, tree

OLD, NEW = 1, 2


@pytest.fixture
def tmp_path():
    """In memory where there is such a place: disks take their time to sync."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(params=WRITERS)
def writer(request):
    return WRITERS[request.param]


@pytest.fixture
def finished(writer, tmp_path):
    """What is there when nothing goes wrong."""
    folder = tmp_path / "finished"
    folder.mkdir()
    writer.write(folder, OLD)
    writer.write(folder, NEW)
    return tree(folder)


def test_of_any_prefix_without_what_was_not_synced_the_next_run_makes_the_same_bytes(
    writer, finished, tmp_path
):
    folder, torn = tmp_path / "folder", tmp_path / "torn"
    folder.mkdir()
    writer.write(folder, OLD)
    tape, source = Tape(folder), random.Random(0)
    count = 0

    def fail(*_):
        nonlocal count
        # all names of now, those of the last sync, and a mixture
        for choose in (lambda: True, lambda: False, lambda: source.random() < 0.5):
            count += 1
            tape.write(torn / f"{count}", choose)

    def after(name, args):
        tape.after(name, args)
        fail()

    torn.mkdir()
    with watched(fail, after):
        writer.write(folder, NEW)
    fail()
    tape.close()
    assert count > 6
    for number in range(1, count + 1):
        found = torn / f"{number}"
        dataset = writer.dataset(found)
        if dataset.exists():
            # or else a run that makes what is missing would be stopped by it
            dataset.load()
        writer.write(found, NEW)
        assert tree(found) == finished, f"power failure {number}"


def test_a_disk_that_is_full_from_any_call_on_is_a_sentence_and_leaves_no_part(
    writer, finished, tmp_path
):
    number, told = 0, True
    while told:
        number += 1
        folder = tmp_path / f"{number}"
        folder.mkdir()
        writer.write(folder, OLD)
        full = FullFrom(number)
        with watched(full.before):
            try:
                writer.write(folder, NEW)
            except Exception as error:  # noqa: BLE001
                told = _sentence(error)
                assert told, repr(error)  # noqa: PT017
            else:
                told = None
        # what wrote it has it open as long as the error is known
        gc.collect()
        dataset = writer.dataset(folder)
        if dataset.exists():
            dataset.load()
        writer.write(folder, NEW)
        assert tree(folder) == finished, f"full from call {number} on"
        shutil.rmtree(folder)
    assert number > 2
