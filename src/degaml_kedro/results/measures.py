"""Measures of one method on one task, from its predictions.

Shapes: N predictions, O options of one example (it may differ between examples).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax
from scipy.stats import binomtest

from degaml_kedro.common.errors import DegamlError

CALIBRATION_BINS = 15
PREDICTION_COLUMNS = ("index", "gold", "predicted", "scores", "text", "seconds", "tokens")


class ResultsError(DegamlError):
    """Predictions that cannot be measured."""


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, 1927): sound for small n and near 0 and 1.

    Example:
        >>> low, high = wilson_interval(8, 10)
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
    """
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def calibration_error(
    confidence: ArrayLike, correct: ArrayLike, bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error: sum over bins of ``|B| / N * |accuracy(B) - confidence(B)|`` (Guo et al., 2017).

    ``confidence`` [N] are the probabilities of the predicted options, ``correct`` [N] whether these were right. Bins
    are of equal width; a bin holds its upper edge.
    """
    p = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    place = _bin_of(p, bins)
    gaps = np.bincount(place, right, minlength=bins) - np.bincount(place, p, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))


def reliability(answers: pd.DataFrame, bins: int = CALIBRATION_BINS) -> pd.DataFrame:
    """The reliability diagram behind :func:`calibration_error`: how often one method is right when it is so sure.

    ``answers`` has a row an answer, with ``right`` (0 or 1) and ``confidence`` (NaN: none, options were ruled out).

    Returns:
        A row a bin, empty ones too: ``lower`` and ``upper`` (a bin holds its upper edge), ``n``, ``confidence`` and
        ``accuracy`` (means; NaN in an empty bin), ``accuracy_low`` and ``accuracy_high`` (95 %, Wilson's). In every
        row ``ece``, the calibration error of all answers together, which is not the mean of the tasks' errors (NaN if
        there are none), and ``left_out``, how many have no confidence.
    """
    known = answers.dropna(subset=["confidence"]).astype({"confidence": float, "right": float})
    of_bin = known.groupby(_bin_of(known["confidence"].to_numpy(), bins))
    curve = of_bin.agg(
        n=("right", "size"), confidence=("confidence", "mean"), accuracy=("right", "mean")
    ).reindex(range(bins))
    curve["n"] = curve["n"].fillna(0).astype("int64")
    curve[["accuracy_low", "accuracy_high"]] = [
        wilson_interval(round(n * accuracy), n) if n else (np.nan, np.nan)
        for n, accuracy in zip(curve["n"], curve["accuracy"], strict=True)
    ]
    curve.insert(0, "lower", np.arange(bins) / bins)
    curve.insert(1, "upper", np.arange(1, bins + 1) / bins)
    error = calibration_error(known["confidence"], known["right"], bins) if len(known) else np.nan
    return curve.assign(ece=error, left_out=len(answers) - len(known))


def _bin_of(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """The bin of each confidence, which holds its upper edge."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def measure(predictions: pd.DataFrame, where: str = "predictions") -> dict[str, Any]:
    """Accuracy with its interval, likelihood, calibration, and what it cost.

    Args:
        predictions: [N] rows with the columns ``index``, ``gold``, ``predicted`` (missing: no valid answer),
            ``scores`` (log-probability of each option, [O]; -inf for one that is ruled out), ``text``,
            ``seconds``, ``tokens``.
        where: whose predictions they are, for errors.

    Returns:
        ``n``, ``accuracy``, ``accuracy_low`` and ``accuracy_high`` (95 % Wilson interval), ``chance`` (accuracy
        of a uniform guess), ``nll`` (mean -log p of the right option, p the softmax over the options' scores)
        and ``ece``, both None where options are ruled out, ``invalid`` (share without a valid answer),
        ``seconds``, ``tokens``.

    Raises:
        ResultsError: there are none, or a score is not a number.
    """
    n = len(predictions)
    if n == 0:
        raise ResultsError(
            f"{where} holds no predictions, so there is nothing to measure; "
            f"give the task a test split of at least one example"
        )
    gold = np.array(predictions["gold"], dtype=np.int64)
    predicted = np.array(predictions["predicted"].astype("Int64").fillna(-1), dtype=np.int64)
    correct = predicted == gold
    low, high = wilson_interval(int(correct.sum()), n)
    scores = [np.asarray(row, dtype=np.float64) for row in predictions["scores"]]
    for index, row in enumerate(scores):
        if np.isnan(row).any():
            raise ResultsError(
                f"{where}, prediction {index}: the options' scores are {row.tolist()}; a score that is not a "
                f"number comes from damaged weights: train the adapter again, or set model.dtype to float32"
            )
    # `generate` rules options out altogether: there is a choice, but no likelihood
    scored = all(np.isfinite(row).all() for row in scores)
    nll, ece = _likelihood(scores, gold, predicted) if scored else (None, None)
    return {
        "n": n,
        "accuracy": float(correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "chance": float(np.mean([1 / len(row) for row in scores])),
        "nll": nll,
        "ece": ece,
        "invalid": float((predicted < 0).mean()),
        "seconds": float(predictions["seconds"].sum()),
        "tokens": int(predictions["tokens"].sum()),
    }


def measure_draws(predictions: pd.DataFrame, where: str = "predictions") -> dict[str, Any]:
    """Measures of a method that is random: the mean over its draws, and how far they are apart.

    Several draws are told apart by a column ``draw``; every draw answers all questions.

    Returns:
        As :func:`measure`, with ``draws`` and ``accuracy_spread``, the standard deviation over draws (0 for one
        draw). ``n`` counts questions, once each; the interval is that of the mean accuracy on so many questions.
        ``seconds`` and ``tokens`` are of one draw.

    Raises:
        ResultsError: as :func:`measure`, or draws answered different numbers of questions.
    """
    if "draw" not in predictions or predictions.empty:
        return {**measure(predictions, where), "draws": 1, "accuracy_spread": 0.0}
    parts = [measure(frame, f"{where}, draw {draw}") for draw, frame in predictions.groupby("draw")]
    n = parts[0]["n"]
    if any(part["n"] != n for part in parts):
        counts = ", ".join(str(part["n"]) for part in parts)
        raise ResultsError(
            f"{where}: the draws answered {counts} questions; all have to answer the same ones: make them again"
        )
    mean: dict[str, Any] = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        mean[name] = None if None in values else float(np.mean(values))
    low, high = wilson_interval(round(mean["accuracy"] * n), n)
    accuracies = [part["accuracy"] for part in parts]
    return {
        **mean,
        "n": n,
        "accuracy_low": low,
        "accuracy_high": high,
        "tokens": round(mean["tokens"]),
        "draws": len(parts),
        "accuracy_spread": float(np.std(accuracies, ddof=1)) if len(parts) > 1 else 0.0,
    }


def _likelihood(
    scores: Sequence[NDArray[np.float64]], gold: NDArray[np.int64], predicted: NDArray[np.int64]
) -> tuple[float, float]:
    nll, confidence = [], []
    for row, right, said in zip(scores, gold, predicted, strict=True):
        log_p = log_softmax(row)
        nll.append(-float(log_p[right]))
        confidence.append(float(np.exp(log_p[said] if said >= 0 else log_p.max())))
    return float(np.mean(nll)), calibration_error(confidence, predicted == gold)
