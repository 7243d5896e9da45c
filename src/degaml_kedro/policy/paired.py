"""Whether a few examples can tell two strategies apart: folds of the support set, and a paired test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import wilcoxon

from degaml_kedro.tasks.example import Example, shares_options

# with fewer differences no ranking of them is rarer than 1 in 20
_FEWEST = 5
# nats that an example's likelihood differs by from one batch to another
_SAME = 1e-4


def deal_folds(examples: Sequence[Example], count: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Every example's place in one of a few folds of almost the same size.

    Where all examples share one set of options, the folds share out each right answer evenly. There are never more
    folds than examples.
    """
    rng = np.random.default_rng(seed)
    order = [int(place) for place in rng.permutation(len(examples))]
    if shares_options(examples):
        order.sort(key=lambda place: examples[place].options[examples[place].gold])
    count = min(count, len(examples))
    return tuple(tuple(order[fold::count]) for fold in range(count))


def preference_p_value(after: Sequence[float], before: Sequence[float]) -> float:
    """P of the one-sided Wilcoxon signed-rank test that examples are likelier answered right after than before; or 1.

    Ranks and not means: log-likelihoods have long tails, and one question on which an overconfident strategy is very
    wrong would decide a test of the mean. Of the hypothesis that neither is better the test asks that differences be
    symmetric about 0. It is exact up to 50 examples without ties. Examples that do not differ are left out, and with
    fewer than five others nothing can be told.

    Args:
        after: log p(right answer) by example, in nats; -inf is a value.
        before: the same of what it is compared with.

    Example:
        >>> preference_p_value([-0.1, -0.2, -0.3, -0.4, -0.5], [-1, -2, -3, -4, -5]) == 1 / 2**5
        True
        >>> preference_p_value([-0.1, -0.2, -0.3, -0.4], [-1, -2, -3, -4])
        1.0
    """
    pairs = [(a, b) for a, b in zip(after, before, strict=True) if a != b]
    gains = [a - b for a, b in pairs if abs(a - b) > _SAME]
    if len(gains) < _FEWEST:
        return 1.0
    return float(wilcoxon(gains, alternative="greater").pvalue)
