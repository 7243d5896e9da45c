"""What can be measured of a model on a few answered questions, and when one is better than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, log_softmax

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.llm.scoring import Prediction

_SAME_ACCURACY = 1e-12


class IndicatorError(DegamlError):
    """Predictions that nothing can be measured of."""


@dataclass(frozen=True)
class Indicators:
    """How a model answers a set of questions.

    Attributes:
        accuracy: share of right answers; no answer counts as a wrong one.
        confidence: mean of the largest option's probability; of a generated text its own.
        entropy: mean entropy over a question's options, in nats.
        nll: mean of -log p(gold), in nats; where answers are generated, of -log p(text).
        log_probability: mean of log p(gold), in nats; -inf where a right option has no probability at all. Where
            answers are generated, mean of log p(text).
        histogram: by option position, the share of questions answered by it; as long as the most options there are.
    """

    n: int
    accuracy: float
    confidence: float
    entropy: float
    nll: float
    log_probability: float
    histogram: tuple[float, ...]


def measure_indicators(predictions: Sequence[Prediction]) -> Indicators:
    """Measure predictions.

    Probabilities are the softmax of a question's option scores. Where all scores are -inf (a generated text that names
    no option) the options count as equally likely, and the right one as not written: log p(gold) is -inf.

    Raises:
        IndicatorError: there are no predictions, or a score is not a number.
    """
    if not predictions:
        raise IndicatorError("there are no predictions to measure; give the task support examples")
    most = max(len(prediction.option_scores) for prediction in predictions)
    confidence, entropy, gold, counts = [], [], [], [0] * most
    for index, prediction in enumerate(predictions):
        scores = np.asarray(prediction.option_scores, dtype=np.float64)
        if np.isnan(scores).any() or np.isposinf(scores).any():
            raise IndicatorError(
                f"the option scores of example {index} are {prediction.option_scores}, which are no "
                f"log-probabilities; the adapter's weights may have diverged"
            )
        logs = _log_probabilities(scores)
        entropy.append(entr(np.exp(logs)).sum())
        written = prediction.log_probability
        confidence.append(math.exp(logs.max() if written is None else written))
        gold.append(gold_log_probability(scores, prediction.gold) if written is None else written)
        if prediction.predicted is not None:
            counts[prediction.predicted] += 1
    n = len(predictions)
    log_probability = float(np.mean(gold))
    return Indicators(
        n=n,
        accuracy=sum(p.predicted == p.gold for p in predictions) / n,
        confidence=float(np.mean(confidence)),
        entropy=float(np.mean(entropy)),
        nll=0.0 - log_probability,  # and not -0.0
        log_probability=log_probability,
        histogram=tuple(count / n for count in counts),
    )


def gold_log_probability(scores: Sequence[float] | NDArray[np.float64], gold: int) -> float:
    """Log p(gold) of one question in nats: a log softmax over its options [O]; -inf where all scores are."""
    row = np.asarray(scores, dtype=np.float64)
    return float(_log_probabilities(row)[gold]) if np.isfinite(row).any() else -math.inf


def _log_probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    written = np.isfinite(scores).any()
    logs: NDArray[np.float64] = log_softmax(scores if written else np.zeros_like(scores))
    return logs


def better(
    after: Indicators, before: Indicators, tie_break: Literal["log_probability", "none"]
) -> bool:
    """Whether answers are strictly better: by accuracy, and between equal ones as ``tie_break`` says."""
    gain = after.accuracy - before.accuracy
    if abs(gain) < _SAME_ACCURACY:
        return tie_break == "log_probability" and after.log_probability > before.log_probability
    return gain > 0  # not so where either is NaN
