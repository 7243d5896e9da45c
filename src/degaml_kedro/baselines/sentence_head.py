"""``sentence_head``: logistic regression on a frozen sentence encoder (ours: the usual choice for a set of labels).

An option that no support example has as its answer gets the probability 0.01 in place of a class's; over the options of
a question the probabilities are made to sum to 1. Where none of them was ever an answer, all are equally likely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from degaml_kedro.baselines.learned import BaselineError, Progress
from degaml_kedro.llm.scoring import Prediction, predictions_of
from degaml_kedro.llm.sentence_head import SentenceHead
from degaml_kedro.parameters import PromptParameters, RegressionSetting, ScoringParameters
from degaml_kedro.tasks.example import Example, Question

METHOD = "sentence_head"
# sentence embeddings of questions, float32 [Q, C]
Embed = Callable[[Sequence[Question]], Tensor]

_UNSEEN = 0.01


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier of questions.

    Attributes:
        head: of their embeddings.
        embed: reads questions.
    """

    head: SentenceHead
    embed: Embed


def adapt(embed: Embed, support: Sequence[Example], setting: RegressionSetting) -> Classifier:
    """Fit the regression to the support examples.

    Raises:
        BaselineError: there are no examples.
    """
    if not support:
        raise BaselineError(
            "sentence_head has no support examples to learn from; set splits.support"
        )
    if not all(example.labels for example in support):
        raise BaselineError(
            "sentence_head chooses among answers that it has seen, and these questions have open answers; leave it out "
            "of the methods"
        )
    answers = [example.options[example.gold] for example in support]
    return Classifier(SentenceHead.fit(_embedded(embed, support), answers, setting.c), embed)


def predict(
    adapted: Classifier,
    examples: Sequence[Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answers to examples; ``option_scores`` are log-probabilities, and the language model computes no token."""
    if not examples:
        return []
    known = adapted.head.log_probabilities(_embedded(adapted.embed, examples))
    scores = []
    for example, row in zip(examples, known.tolist(), strict=True):
        of_class = dict(zip(adapted.head.classes, row, strict=True))
        found = [of_class.get(option, math.log(_UNSEEN)) for option in example.options]
        scores.append(torch.tensor(found, dtype=torch.float64).log_softmax(dim=0).tolist())
    if progress is not None:
        progress(len(examples), len(examples))
    return predictions_of(examples, scores, [0] * len(examples), prompt, scoring)


def _embedded(embed: Embed, examples: Sequence[Example]) -> Tensor:
    return embed([Question.of(example) for example in examples])
