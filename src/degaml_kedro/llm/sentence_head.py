"""Logistic regression on a frozen sentence encoder: the usual choice for a set of labels.

    p(y | x, D) = softmax(W e(x) + b)_y,      W, b = argmin  1/2 |W|² - C Σ_D log p(y_i | x_i)

e(x) is the sentence embedding of the question, and a class is the text of an answer among the examples D. The language
model is not asked.

Shapes: N examples, Q questions, C width of the encoder, Y classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

_MOST_ITERATIONS = 1000


@dataclass(frozen=True, eq=False)
class SentenceHead:
    """A classifier of sentence embeddings.

    Attributes:
        classes: the answers that were seen, sorted.
        regression: gives their probabilities; None where there is one alone, which is certain.
    """

    classes: tuple[str, ...]
    regression: LogisticRegression | None

    @classmethod
    def fit(cls, embeddings: Tensor, answers: Sequence[str], c: float) -> SentenceHead:
        """Fit the regression to embeddings [N, C] in float32; c is the regularization's inverse."""
        classes = tuple(sorted(set(answers)))
        if len(classes) == 1:
            return cls(classes, None)
        regression = LogisticRegression(C=c, max_iter=_MOST_ITERATIONS)
        regression.fit(embeddings.double().numpy(), [classes.index(answer) for answer in answers])
        return cls(classes, regression)

    def log_probabilities(self, embeddings: Tensor) -> NDArray[np.float64]:
        """Log-probabilities of the classes, in nats, [Q, Y], for embeddings [Q, C] in float32."""
        if self.regression is None:
            return np.zeros((len(embeddings), 1))
        found: NDArray[np.float64] = self.regression.predict_log_proba(embeddings.double().numpy())
        return found
