"""What visitors keep: theirs alone, and gone with them."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import pytest
from demo.visitors import UnknownModelError, Visitors


class Model:
    report = None

    def save(self, folder: Path) -> Path:
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
        return folder


@pytest.fixture
def visitors(tmp_path):
    return Visitors(tmp_path / "downloads", ttl=100, max_models=2)


def keep(visitors, key):
    return visitors.keep(visitors.enter(key), Model(), "a title", "a pair")


def test_models_are_found_by_their_owner_alone(visitors):
    kept = keep(visitors, "a")
    keep(visitors, "b")
    assert visitors.find("a", kept.id) is kept
    for key in ("b", "nobody", "None", ""):
        with pytest.raises(UnknownModelError):
            visitors.find(key, kept.id)
        with pytest.raises(UnknownModelError):
            visitors.archive(key, kept.id)
        with pytest.raises(UnknownModelError):
            visitors.drop(key, kept.id)
    assert visitors.find("a", kept.id) is kept


def test_ids_cannot_be_guessed(visitors):
    ids = {keep(visitors, f"visitor {n}").id for n in range(50)}
    assert len(ids) == 50
    assert min(map(len, ids)) >= 32


def test_the_oldest_goes_first(visitors, tmp_path):
    first, second = keep(visitors, "a"), keep(visitors, "a")
    archive = visitors.archive("a", first.id)
    third = keep(visitors, "a")
    assert visitors.all_of("a") == [second, third]
    assert visitors.freed("a") == 1
    assert third.number == 3
    assert not archive.exists()
    with pytest.raises(UnknownModelError, match="Adapt again"):
        visitors.find("a", first.id)


def test_the_oldest_of_all_goes_first(tmp_path):
    visitors = Visitors(tmp_path, ttl=100, max_models=2, max_models_total=3)
    first, second = keep(visitors, "a"), keep(visitors, "b")
    third, fourth = keep(visitors, "a"), keep(visitors, "c")
    assert visitors.all_of("a") == [third]
    assert visitors.freed("a") == 1
    assert first not in visitors.all_of("a")
    visitors.forget("b")
    visitors.drop("c", fourth.id)
    fifth = keep(visitors, "d")
    assert [*visitors.all_of("a"), *visitors.all_of("d")] == [third, fifth]
    assert second not in visitors.all_of("b")
    assert visitors.models == 2


@pytest.mark.parametrize("back", ["enter", "find", "find_again", None])
def test_who_comes_back_soon_keeps_all(tmp_path, back):
    visitors = Visitors(tmp_path, ttl=100, max_models=2, grace=0.1)
    kept = keep(visitors, "a")
    visitors.lose("a")
    visitors.sweep()
    assert visitors.all_of("a") == [kept]
    if back:
        getattr(visitors, back)("a", *([kept.id] if back == "find" else []))
    time.sleep(0.15)
    visitors.sweep()
    assert visitors.all_of("a") == ([kept] if back else [])


def test_nothing_is_left_of_who_leaves(visitors, tmp_path):
    kept, other = keep(visitors, "a"), keep(visitors, "b")
    mine, theirs = visitors.archive("a", kept.id), visitors.archive("b", other.id)
    with zipfile.ZipFile(mine) as archive:
        assert archive.namelist() == ["adapter/adapter_config.json"]
    assert mine.parent.parent != theirs.parent.parent
    visitors.forget("a")
    assert not mine.parent.parent.exists()
    assert theirs.exists()
    assert visitors.models == 1


def test_what_is_finished_after_its_owner_left_is_not_kept(visitors):
    visitor = visitors.enter("a")
    visitors.forget("a")
    assert visitors.keep(visitor, Model(), "", "") is None
    assert visitors.models == 0


def test_the_idle_are_forgotten(tmp_path):
    visitors = Visitors(tmp_path, ttl=0.2, max_models=2)
    keep(visitors, "idle")
    busy = keep(visitors, "busy")
    time.sleep(0.15)
    visitors.find("busy", busy.id)
    time.sleep(0.1)
    visitors.sweep()
    assert visitors.all_of("idle") == []
    assert visitors.all_of("busy") == [busy]
