"""``sentence_head``: logistic regression on a frozen sentence encoder (ours: the usual choice for a set of labels).

An option that no support example has as its answer gets the probability 0.01 in place of a class's; over the options of
a question the probabilities are made to sum to 1. Where none of them was ever an answer, all are equally likely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from degaml_kedro.baselines.baseline import Embed, Setup
from degaml_kedro.baselines.learned import BaselineError, Learned
from degaml_kedro.common.progress import Progress
from degaml_kedro.config.schema import RegressionSetting
from degaml_kedro.llm.scoring import Prediction, predictions_of
from degaml_kedro.llm.sentence_head import SentenceHead
from degaml_kedro.tasks.example import Example, Question

_UNSEEN = 0.01


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier of questions by their embeddings."""

    head: SentenceHead
    embed: Embed


def adapt(
    setup: Setup,
    learned: Learned | None,
    support: Sequence[Example],
    setting: RegressionSetting,
    seed: int,
) -> Classifier:
    """Fit the regression to the support examples.

    Raises:
        BaselineError: there is no encoder, there are no examples, or their answers are open.
    """
    if setup.embed is None:
        raise BaselineError("sentence_head has no encoder to read questions with; give it one")
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
    head = SentenceHead.fit(_embedded(setup.embed, support), answers, setting.c)
    return Classifier(head, setup.embed)


def predict(
    setup: Setup,
    adapted: Classifier,
    examples: Sequence[Example],
    seed: int,
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
    return predictions_of(examples, scores, [0] * len(examples), setup.prompt, setup.scoring)


def _embedded(embed: Embed, examples: Sequence[Example]) -> Tensor:
    return embed([Question.of(example) for example in examples])
