"""``sentence_head``: logistic regression on a frozen sentence encoder (ours: the usual choice for a set of labels).

    p(y | x, D) = softmax(W e(x) + b)_y,      W, b = argmin  1/2 |W|² - C Σ_D log p(y_i | x_i)

e(x) is the sentence embedding of the question, and a class is the text of an answer among the support examples. The
language model is not asked. An option that no support example has as its answer gets the probability 0.01 in place of
a class's; over the options of a question the probabilities are made to sum to 1. Where none of them was ever an
answer, all are equally likely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from degaml_kedro.baselines.learned import BaselineError, Progress
from degaml_kedro.llm.scoring import Prediction, predictions_of
from degaml_kedro.parameters import PromptParameters, RegressionSetting, ScoringParameters
from degaml_kedro.tasks.example import Example, Question

METHOD = "sentence_head"
# sentence embeddings of questions, float32 [Q, C]
Embed = Callable[[Sequence[Question]], Tensor]

_UNSEEN = 0.01
_MOST_ITERATIONS = 1000


@dataclass(frozen=True, eq=False)
class SentenceHead:
    """A classifier of questions.

    Attributes:
        classes: the answers that were seen.
        regression: gives their probabilities; None where there is one alone, which is certain.
        embed: reads questions.
    """

    classes: tuple[str, ...]
    regression: LogisticRegression | None
    embed: Embed


def adapt(embed: Embed, support: Sequence[Example], setting: RegressionSetting) -> SentenceHead:
    """Fit the regression to the support examples.

    Args:
        embed: gives the embeddings of questions.
        support: the labelled examples.
        setting: C.

    Raises:
        BaselineError: there are no examples.
    """
    if not support:
        raise BaselineError(
            "sentence_head has no support examples to learn from; set splits.support"
        )
    answers = [example.options[example.gold] for example in support]
    classes = tuple(sorted(set(answers)))
    if len(classes) == 1:
        return SentenceHead(classes, None, embed)
    regression = LogisticRegression(C=setting.c, max_iter=_MOST_ITERATIONS)
    regression.fit(_embedded(embed, support), [classes.index(answer) for answer in answers])
    return SentenceHead(classes, regression, embed)


def predict(
    head: SentenceHead,
    examples: Sequence[Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answers to examples; ``option_scores`` are log-probabilities, and the language model computes no token.

    Args:
        head: what :func:`adapt` returned.
        examples: what to ask; their answers are only compared with in the end.
        prompt: how an answer becomes text.
        scoring: the mode.
        progress: called with (examples done, examples in all) at the end.
    """
    if not examples:
        return []
    known = np.zeros((len(examples), 1))
    if head.regression is not None:
        known = head.regression.predict_log_proba(_embedded(head.embed, examples))
    scores = []
    for example, row in zip(examples, known.tolist(), strict=True):
        of_class = dict(zip(head.classes, row, strict=True))
        found = [of_class.get(option, math.log(_UNSEEN)) for option in example.options]
        scores.append(torch.tensor(found, dtype=torch.float64).log_softmax(dim=0).tolist())
    if progress is not None:
        progress(len(examples), len(examples))
    return predictions_of(examples, scores, [0] * len(examples), prompt, scoring)


def _embedded(embed: Embed, examples: Sequence[Example]) -> np.ndarray:
    return embed([Question.of(example) for example in examples]).double().numpy()
