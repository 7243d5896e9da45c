"""``tts``: test-time scaling, several adapters from several prompt batches (F.1; Zhang et al., 2025).

Routers pick one member k a question q, the one whose prompt batch {e_1 … e_N} is nearest to the question's embedding:

    avg_sim_score     argmin_k mean_i d(e_q, e_i)        avg_prompt_embed   argmin_k d(e_q, mean_i e_i)

Ensembles ask all members, in one batched forward pass, and combine p_k(o | q) over the options o:

    max_confidence    the member with the largest max_o p_k
    majority_vote     the option that most members prefer; ties by the next
    sum_logprobs      argmax_o sum_k w_k log p_k(o | q); without weights w_k = 1 / K, a likelihood of one question

Answers that are written take the place of options: all that members write to a question, p_k being a member's
likelihood of a text, of all texts that give one answer together. ``majority_vote`` counts what each one wrote itself.

Shapes: K members, N prompts in a batch, Q questions, C width of the prompt encoder, O options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import log_softmax
from torch import Tensor

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import Parameters
from degaml_kedro.strategies.context import Context, StrategyError
from degaml_kedro.strategies.observations import Prompts
from degaml_kedro.strategies.registry import Offered, family
from degaml_kedro.strategies.state import (
    ROUTERS,
    AdaptedState,
    Distance,
    Member,
    Steering,
    Vote,
    VoteMethod,
)

Scores = NDArray[np.float64]


class Scaling(Parameters):
    """How many members there are, and how they answer together."""

    num_prompt_batches: Annotated[int, Field(ge=1, le=20), Offered(2, 3, 4, 6, 8, 12, 20)]
    method: VoteMethod
    distance: Distance = "euclidean"


@family("tts", "ask several adapters", Scaling)
def refine(
    context: Context, state: AdaptedState, seen: Prompts, config: Scaling, seed: int
) -> AdaptedState:
    """Put fresh adapters beside those that are there, or keep the first ones, until there are as many as asked for.

    Raises:
        StrategyError: there is no generator to make adapters, or a router has no prompt batch to compare with.
    """
    del seen
    members = list(state.members[: config.num_prompt_batches])
    own = derive_seed(seed, "tts")
    while len(members) < config.num_prompt_batches:
        if context.draw is None:
            raise StrategyError("there is no generator here that could make more adapters")
        context.check_time()
        members.append(context.draw(own, len(members)))
    vote = Vote(config.method, config.distance)
    if vote.method in ROUTERS and any(member.prompts is None for member in members):
        raise StrategyError(
            f"{config.method} compares prompt batches, and an adapter here was not generated from one"
        )
    return replace(
        state, members=tuple(members), vote=vote, steering=_spread(state.steering, len(members))
    )


def _spread(steering: Steering | None, members: int) -> Steering | None:
    """A task's vectors for more members: those that are new get the mean of the others'."""
    if steering is None or steering.vectors is None:
        return steering
    vectors = steering.vectors[:members]
    fresh = vectors.mean(dim=0, keepdim=True).expand(members - len(vectors), -1)
    return replace(steering, vectors=torch.cat([vectors, fresh]))


def route(members: Sequence[Member], vote: Vote, questions: Tensor) -> list[int]:
    """The member that answers each question.

    Args:
        members: K, each with the embeddings of its prompt batch [N, C].
        questions: sentence embeddings [Q, C].

    Returns:
        Indices of members, [Q]; the first of equals.
    """
    columns = []
    for member in members:
        assert member.prompts is not None
        if vote.method == "avg_prompt_embed":
            center = member.prompts.mean(dim=0, keepdim=True)
            columns.append(_distances(questions, center, vote.distance)[:, 0])
        else:
            columns.append(_distances(questions, member.prompts, vote.distance).mean(dim=1))
    chosen: list[int] = torch.stack(columns, dim=1).argmin(dim=1).tolist()
    return chosen


def _distances(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    """[Q, N] between rows of a [Q, C] and of b [N, C]."""
    if distance == "cosine":
        normal = torch.nn.functional.normalize
        return 1 - normal(a, dim=-1) @ normal(b, dim=-1).T
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def combine(
    scores: Sequence[Sequence[float]],
    method: str,
    weights: Sequence[float] | None = None,
    said: Sequence[int] | None = None,
) -> tuple[float, ...]:
    """One question's options scored by all members together.

    Args:
        scores: log-probabilities by member, [K, O], each member's up to a constant of its own.
        weights: of the members, [K], for ``sum_logprobs``; None counts them alike.
        said: of answers that were written: the place of every member's own, [K], for ``majority_vote``. Their scores
            are log-probabilities as they are.

    Returns:
        Log-probabilities [O] whose largest is the ensemble's answer.

    Raises:
        StrategyError: the method is none of an ensemble.
    """
    log_p: Scores = np.asarray(scores, dtype=np.float64)
    if said is None:
        log_p = log_softmax(log_p, axis=1)
    summed = log_p.mean(axis=0) if weights is None else np.asarray(weights) @ log_p
    pooled: Scores = log_softmax(summed) if said is None else summed
    if method == "sum_logprobs":
        found = pooled
    elif method == "max_confidence":
        found = log_p[log_p.max(axis=1).argmax()]
    elif method == "majority_vote":
        chosen = log_p.argmax(axis=1) if said is None else np.asarray(said)
        votes = np.bincount(chosen, minlength=log_p.shape[1])
        # the pooled probabilities are worth one vote together, so they decide between equals
        share = np.exp(pooled) + 1e-12
        # where one of them is 1, rounding hides the others' order and a whole vote: the winner is ahead all the same
        share[max(range(len(votes)), key=lambda option: (votes[option], pooled[option]))] += 1e-9
        found = np.log((votes + share) / (len(log_p) + 1))
    else:
        raise StrategyError(f"'{method}' is no ensemble")
    return tuple(found.tolist())
