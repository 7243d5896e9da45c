from __future__ import annotations

import pytest
import torch
from benchmarks.material import Settings, SkippedError

from benchmarks import adaptation
from degaml_kedro.adaptation import STAGES
from degaml_kedro.checkpoint.hub import load_trained_pair
from degaml_kedro.session import Session
from degaml_kedro.tasks.ready import ready_task

QUICK = Settings(quick=True)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return Session(load_trained_pair(adaptation._pair_folder(QUICK, folder)))


def test_the_stages_add_up_to_the_whole(session):
    rows, details = adaptation._adaptations(QUICK, session)
    by_name = {row.name: row for row in rows}
    assert [name.removeprefix("… ") for name in by_name][-6:] == list(STAGES[:-1])
    for one in details["tasks"]:
        assert one["seconds"] == pytest.approx(sum(one["seconds_by_stage"].values()), rel=0.2)
        assert one["base"]["n"] == one["ours"]["n"] == one["peer"]["n"] == details["asked"]
    assert by_name["… until the first result"].ours.largest < rows[0].ours.median
    # a random model's speed says nothing
    assert all(row.met is None for row in rows)


def test_the_peer_learns_the_examples(session):
    examples, _ = ready_task("element_symbol").draw(4, 0, 0)
    base = QUICK.base()
    tuned, seconds = adaptation._plain_peft(base, session, examples)
    assert seconds > 0
    assert tuned.config == session.trained.generator.adapter
    weights = [tensor for name, tensor in tuned.tensors.items() if "lora_B" in name]
    assert all(tensor.abs().sum() > 0 for tensor in weights)
    assert all(torch.isfinite(tensor).all() for tensor in tuned.tensors.values())
    # it is read back as what it is
    assert adaptation._accuracy(base, session, examples, tuned).n == 4


def test_no_task_of_the_benchmark_was_trained_on():
    assert not any(ready_task(name).seen for name in adaptation.TASKS)


def test_without_the_shipped_pair_it_is_skipped_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation, "SHIPPED", tmp_path / "nope")
    with pytest.raises(SkippedError, match="make shipped"):
        adaptation.run(Settings())


def test_the_page_answers(tmp_path):
    pytest.importorskip("gradio", reason="the demo extra is not installed")
    assert 0 < adaptation._page_seconds(adaptation._pair_folder(QUICK, tmp_path)) < 60
