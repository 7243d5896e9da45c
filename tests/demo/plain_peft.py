"""The downloaded adapter in plain PEFT on a plain copy of the model: none of this project's scoring runs in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel

from degaml_kedro.checkpoint.folder import AnswerSettings
from degaml_kedro.llm.base_model import load_base_model
from degaml_kedro.llm.prompting import encode_questions
from degaml_kedro.llm.scoring import answer_length
from degaml_kedro.tasks.example import Question, make_example
from tests.llm.helpers import plain_copy


def probabilities(folder: Path, question: str, options: Sequence[str]) -> list[float]:
    """What the adapter says to a question.

    Args:
        folder: the PEFT folder, with the settings beside it.
        question: without its options.
        options: their texts.
    """
    about = json.loads((folder / "degaml.json").read_text(encoding="utf-8"))
    settings = AnswerSettings.model_validate(about["settings"])
    base = load_base_model(settings.model)
    model = PeftModel.from_pretrained(plain_copy(base), str(folder)).eval()
    asked = Question.of(make_example(question, list(options), 0))
    (encoded,) = encode_questions(base, [asked], settings.prompt, settings.scoring.mode)
    scores = []
    for option, answer in zip(options, encoded.answers, strict=True):
        ids = torch.tensor([[*encoded.prompt, *answer]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].float().log_softmax(-1)
        first = len(encoded.prompt) - 1
        total = sum(logits[first + i, token].item() for i, token in enumerate(answer))
        scores.append(total / answer_length(option, answer, settings.scoring.normalization))
    return torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
