"""``ensemble``: the best strategies that were tried so far, asked together (an extension, not in the paper).

Log-linear pooling of K members' probabilities of a question's options o:

    log p(o | q) = sum_k w_k log p_k(o | q) - log Z(q),   w_k >= 0,  sum_k w_k = 1

Weights are equal, or those that make the right answers likeliest, by what each member answered to examples that it had
not seen the answers of (stacking; Wolpert, 1992). Members of different families come first: they err on different
questions.

Of answers that were written only the one that a member gave is known to it: any other counts as a hundredth as likely.

Shapes: K members, N examples, O options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from degaml_kedro.config.schema import Parameters
from degaml_kedro.strategies.context import Context, StrategyError
from degaml_kedro.strategies.observations import Candidate, Candidates
from degaml_kedro.strategies.registry import family
from degaml_kedro.strategies.state import AdaptedState, Vote

Scores = NDArray[np.float64]
# how likely an answer that was not written is, beside the one that was
_NOT_WRITTEN = 0.01


class Pooling(Parameters):
    """How many of the best candidates answer together, and what each one's word weighs."""

    members: Annotated[int, Field(ge=2, le=3)]
    weights: Literal["equal", "fitted"]


@family("ensemble", "ask the best tried so far together", Pooling)
def refine(
    context: Context, state: AdaptedState, seen: Candidates, config: Pooling, seed: int
) -> AdaptedState:
    """Put the best candidates' adapters together.

    Raises:
        StrategyError: there are fewer than two candidates, or a candidate's state is not one adapter alone.
    """
    del context, state, seed
    gold = [example.gold for example in seen.examples]
    members = _best(seen.tried, gold, config.members)
    if len(members) < 2:
        raise StrategyError(
            f"an ensemble puts together what was tried before it from the same state: it needs 2 candidates of one "
            f"adapter each, and has {len(members)}"
        )
    weights = None
    if config.weights == "fitted":
        weights = fit_weights([member.scores for member in members], gold)
    states = [member.refined() for member in members]
    if not all(is_candidate(one) for one in states):
        raise StrategyError(
            "a member of the ensemble has several adapters, a vote or a vector of its own"
        )
    return AdaptedState(
        tuple(one.members[0] for one in states), Vote("sum_logprobs", weights=weights)
    )


def is_candidate(state: AdaptedState) -> bool:
    """Whether a state can be a member: one adapter, and neither a vote nor a vector of its own."""
    return len(state.members) == 1 and state.vote is None and state.steering is None


def fit_weights(
    scores: Sequence[Sequence[Sequence[float]]], gold: Sequence[int]
) -> tuple[float, ...]:
    """The pooling weights [K] under which right answers are likeliest: a concave maximum over the simplex.

    Args:
        scores: log-probabilities by member, example and option, [K][N][O], up to a constant of the question's own.
        gold: indices of the right options, [N].
    """
    # by example: [K, O]
    logs: list[Scores] = [
        np.stack([_log_probabilities(row) for row in rows]) for rows in zip(*scores, strict=True)
    ]

    def loss(weights: Scores) -> tuple[float, Scores]:
        total, slope = 0.0, np.zeros(len(weights))
        for rows, right in zip(logs, gold, strict=True):
            pooled = weights @ rows
            total -= log_softmax(pooled)[right]
            slope += rows @ softmax(pooled) - rows[:, right]
        return float(total) / len(logs), slope / len(logs)

    count = len(scores)
    found = minimize(
        loss,
        np.full(count, 1 / count),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
    )
    # a ten-thousandth is more than twenty examples can tell, and less than solvers differ by
    weights = np.clip(found.x, 0.0, 1.0)
    return tuple(float(weight) for weight in np.round(weights / weights.sum(), 4))


def _log_probabilities(scores: Sequence[float]) -> Scores:
    """Log-probabilities of a question's options, none of them 0."""
    row: Scores = np.asarray(scores, dtype=np.float64)
    known = row[np.isfinite(row)]
    least = known.max() + np.log(_NOT_WRITTEN) if len(known) else 0.0
    found: Scores = log_softmax(np.where(np.isneginf(row), least, row))
    return found


def _best(tried: Sequence[Candidate], gold: Sequence[int], count: int) -> list[Candidate]:
    """The likeliest candidates, those of a family that is not there yet first."""

    def likelihood(candidate: Candidate) -> float:
        pairs = zip(candidate.scores, gold, strict=True)
        return float(np.mean([_log_probabilities(row)[right] for row, right in pairs]))

    # the earlier of equals
    left = sorted(tried, key=likelihood, reverse=True)
    chosen: list[Candidate] = []
    while left and len(chosen) < count:
        known = {candidate.family for candidate in chosen}
        following = next((one for one in left if one.family not in known), left[0])
        left.remove(following)
        chosen.append(following)
    return chosen
