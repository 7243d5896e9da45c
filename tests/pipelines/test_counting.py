"""Costs put together from what trainings and trials recorded, by any version."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd
import pytest
from accelerate import Accelerator

from degaml_kedro.generator.training import pairs_of_step, train_generator
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.pipelines.counting import count_training
from tests.generator.helpers import tiny_generator, tiny_task, tiny_training
from tests.llm.helpers import tiny_base

TRIALS: dict[str, Any] = {
    "rollout": [0, 1, 2],
    "tokens": [100, 200, 300],
    "forward_tokens": [150, 120, 300],
    "backward_tokens": [40, 80, 0],
    "seconds": [1.0, 2.0, 3.0],
    "overhead_seconds": [0.5, 0.0, 0.25],
}
POLICY = {"tokens": 20, "forward_tokens": 10, "backward_tokens": 10, "seconds": 4.0}


def count(*parts: Any) -> tuple[Any, ...]:
    record = count_training(*parts, method="degaml", stage="meta_training")
    assert (record["method"], record["stage"], record["task"]) == ("degaml", "meta_training", None)
    return tuple(
        record[name] for name in ("forward_tokens", "backward_tokens", "tokens", "seconds")
    )


def trials(**changes: Any) -> pd.DataFrame:
    return pd.DataFrame({**TRIALS, **changes})


def test_trials_that_know_directions_are_told_apart_with_what_was_between_them() -> None:
    assert count(trials()) == (570, 120, 690, 6.75)
    assert count(trials(), POLICY) == (580, 130, 710, 10.75)


def test_no_trials_cost_nothing() -> None:
    assert count(trials().head(0)) == (0, 0, 0, 0.0)


def test_a_generator_s_tokens_go_forward_and_back() -> None:
    steps = pd.DataFrame({"step": [1, 2], "seconds": [1.0, 2.0]})
    assert count(steps.assign(tokens=[0, 0])) == (0, 0, 0, 3.0)
    assert count(steps.assign(tokens=[30, 40])) == (70, 70, 140, 3.0)
    assert count(steps.assign(tokens=[0, 40]), POLICY) == (50, 50, 100, 7.0)


@pytest.mark.parametrize("objectives", [{"sft": 0.0}, {"mse": 0.0, "sft": 1.0}, {"sft": 1.0}])
def test_a_generator_s_steps_record_what_the_base_model_read(
    objectives: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # loading reads tokens, too
    base = tiny_base()
    read: list[int] = []
    original = BaseModel.hidden_states

    def watched(self: BaseModel, pack: Any, elementary: bool = False) -> Any:
        read.append(pack.input_ids.shape[1])
        return original(self, pack, elementary)

    monkeypatch.setattr(BaseModel, "hidden_states", watched)
    tasks = [tiny_task("one", 1), tiny_task("two", 2, state=1)]
    training = tiny_training(steps=3, **objectives)
    made = tiny_generator()
    steps = list(train_generator(made, tasks, training, 7, Accelerator(cpu=True), base))
    frame = pd.DataFrame([asdict(step.record) for step in steps])
    assert (frame["tokens"] > 0).all() == bool(objectives["sft"])
    assert len(read) == (3 * len(pairs_of_step(1, 2, training, 7)) if objectives["sft"] else 0)
    assert frame["tokens"].sum() == sum(read)
    assert count(frame)[:2] == (sum(read), sum(read))
