"""Whether a method is as often right as it is sure: the reliability diagram behind the calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from degaml_kedro.results.measures import CALIBRATION_BINS, calibration_error, wilson_interval


@dataclass(frozen=True)
class Reliability:
    """A method's answers by how sure it was of them.

    Attributes:
        bins: a row a bin, empty ones too: ``lower`` and ``upper`` (a bin holds its upper edge), ``n``, ``confidence``
            and ``accuracy`` (means; NaN in an empty bin), ``accuracy_low`` and ``accuracy_high`` (95 %, Wilson's).
        n: answers that have a confidence.
        left_out: answers that have none, because options were ruled out.
        ece: expected calibration error of all ``n`` answers together, which is not the mean of the tasks' errors; None
            if there is none.
    """

    bins: pd.DataFrame
    n: int
    left_out: int
    ece: float | None


def reliability(answers: pd.DataFrame, bins: int = CALIBRATION_BINS) -> Reliability:
    """One method's answers in bins of equal width, as :func:`calibration_error` has them (Guo et al., 2017).

    Args:
        answers: a row an answer, with ``right`` (0 or 1) and ``confidence`` (NaN: none): a ``Run``'s, of one method.
        bins: how many.
    """
    confidence = answers["confidence"].to_numpy(dtype=np.float64, na_value=np.nan)
    known = ~np.isnan(confidence)
    p = confidence[known]
    right = answers["right"].to_numpy(dtype=np.float64)[known]
    # as calibration_error places them
    place = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    rows = []
    for number in range(bins):
        inside = place == number
        n = int(inside.sum())
        ends = wilson_interval(round(float(right[inside].sum())), n) if n else (np.nan, np.nan)
        rows.append(
            {
                "lower": number / bins,
                "upper": (number + 1) / bins,
                "n": n,
                "confidence": float(p[inside].mean()) if n else np.nan,
                "accuracy": float(right[inside].mean()) if n else np.nan,
                "accuracy_low": ends[0],
                "accuracy_high": ends[1],
            }
        )
    return Reliability(
        bins=pd.DataFrame(rows),
        n=len(p),
        left_out=int((~known).sum()),
        ece=calibration_error(p, right, bins) if len(p) else None,
    )
