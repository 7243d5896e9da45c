"""``ls``: a vector added to the final hidden states (F.1; SLOT, Hu et al., 2025).

    δ <- AdamW on  1/n Σ_t -log softmax(W (h_t + δ))[x_{t+1}]   over the prompt's own tokens, a few steps from δ = 0

Hidden states h are computed once; a step touches the LM head W alone, and not once a token. With z_t = W h_t,

    softmax(z_t + W δ) ∝ E_t ⊙ g,   E_t = exp(z_t - max z_t),   g = exp(W δ)
    gradient = 1/n (Wᵀ Σ_t p_t - Σ_t W[x_{t+1}]),   Σ_t p_t = g ⊙ Eᵀ (1 / (E g))

so a step costs W δ and Wᵀ p for one row a question, and two passes over E. δ enters every position alike, the answers'
too. It is made of the prompt alone: no option and no answer is read.

Shapes: R rows (prompt tokens with a next one), S vectors, V vocabulary, H width, K members, T tokens in a pack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.config.schema import Parameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.generation import Steer
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.packing import TokenTree, pack_trees
from degaml_kedro.llm.prompting import EncodedQuestion
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.observations import Prompts
from degaml_kedro.strategies.registry import Offered, family
from degaml_kedro.strategies.state import AdaptedState, Steering
from degaml_kedro.strategies.ttt import prompt_sequences

Logits = Callable[[Tensor], Tensor]

# floats of E held at once: 64 million are 256 MB
_CELLS_AT_ONCE = 1 << 26
# below it a float32 sum of products has lost digits to underflow
_SMALLEST = 1e-25
# SLOT's AdamW
_EPS, _WEIGHT_DECAY = 1e-5, 1e-8


class LatentSteps(Parameters):
    """Steps of the vector."""

    times: Annotated[int, Field(ge=1, le=10), Offered(1, 2, 3, 5, 8, 10)]
    learning_rate: Annotated[float, Field(ge=1e-3, le=1.0), Offered(0.001, 0.01, 0.03, 0.1, 0.3)]
    scope: Literal["sample", "task"] = "sample"


@family("ls", "steer the hidden states", LatentSteps)
def refine(
    context: Context, state: AdaptedState, seen: Prompts, config: LatentSteps, seed: int
) -> AdaptedState:
    """Put a vector on the final hidden states, in place of an earlier one.

    With scope ``sample`` nothing is computed yet: every question gets a vector of its own when it is asked. With scope
    ``task`` one vector a member is made from the prompts now, from as many as fit into memory at once.

    Raises:
        StrategyError: no prompt is longer than one token.
    """
    del seed
    steering = Steering(config.times, config.learning_rate, config.scope)
    if config.scope == "task":
        vectors = [_task_vector(context, one.adapter, seen, steering) for one in state.members]
        steering = replace(steering, vectors=torch.stack(vectors))
    return replace(state, steering=steering)


def _task_vector(context: Context, adapter: Adapter, seen: Prompts, steering: Steering) -> Tensor:
    base = context.base
    sequences = prompt_sequences(context, seen)
    limit = max(1, _CELLS_AT_ONCE // base.head.shape[0])
    totals = accumulate(sequence.answer for sequence in sequences)
    taken = max(1, sum(total <= limit for total in totals))
    prompts = [sequence.ids for sequence in sequences[:taken]]
    pack = pack_trees([TokenTree(ids) for ids in prompts], base.device, base.dtype)
    with torch.no_grad(), active_lora(base.activate_adapter(adapter)):
        hidden = base.hidden_states(pack)
    context.meter.forward += pack.tokens
    return _prompt_vectors(steering, base, hidden, pack.starts, prompts)[0].cpu()


def steer(steering: Steering, base: BaseModel, members: int) -> Steer:
    """What :func:`~degaml_kedro.llm.scoring.compare_options` calls with the hidden states of each batch.

    The questions come once for each of K members.
    """

    def vectors(
        hidden: Tensor, starts: Sequence[int], questions: Sequence[EncodedQuestion]
    ) -> Tensor:
        if steering.vectors is not None:
            each = steering.vectors.to(hidden.device)
            return each.repeat_interleave(len(questions) // members, dim=0)
        return _prompt_vectors(steering, base, hidden, starts, [one.prompt for one in questions])

    return vectors


def _prompt_vectors(
    steering: Steering,
    base: BaseModel,
    hidden: Tensor,
    starts: Sequence[int],
    prompts: Sequence[Sequence[int]],
) -> Tensor:
    """Vectors of prompts whose rows in ``hidden`` begin at ``starts``: one of all for scope ``task``, else one each."""
    rows: list[int] = []
    targets: list[int] = []
    for start, ids in zip(starts, prompts, strict=True):
        rows.extend(range(start, start + len(ids) - 1))
        targets.extend(ids[1:])
    counts = [len(rows)] if steering.scope == "task" else [len(ids) - 1 for ids in prompts]
    # the library's logits, where the head is more than a matrix
    logits = None if base.readout is None else base.logits
    return latent_vectors(hidden[rows], counts, targets, steering, base.head, logits)


def latent_vectors(
    hidden: Tensor,
    counts: Sequence[int],
    targets: Sequence[int],
    steering: Steering,
    head: Tensor,
    logits: Logits | None = None,
) -> Tensor:
    """SLOT's vectors, one for every run of rows; no two of them depend on each other.

    Args:
        hidden: final hidden states that predict a token, [R, H], in the model's dtype.
        counts: how many of the rows belong to each vector, in order; they add up to R.
        targets: the token that each row should predict, [R].
        steering: the steps.
        head: [V, H], in the model's dtype.
        logits: of hidden states, where the head is more than a matrix; else None.

    Returns:
        float32 [S, H]; zeros where a vector has no rows.
    """
    with torch.no_grad():
        goal = torch.tensor(targets, device=hidden.device, dtype=torch.long)
        found = []
        first = 0
        limit = max(1, _CELLS_AT_ONCE // head.shape[0])
        chunk: list[int] = []
        for count in [*counts, None]:
            if chunk and (count is None or sum(chunk) + count > limit):
                rows = slice(first, first + sum(chunk))
                some = hidden[rows], chunk, goal[rows]
                found.append(
                    _chunk_vectors(*some, steering, head)
                    if logits is None
                    else _chunk_vectors_of(*some, steering, logits)
                )
                first, chunk = rows.stop, []
            if count is not None:
                chunk.append(count)
        return torch.cat(found) if found else hidden.new_zeros(0, hidden.shape[1]).float()


def _chunk_vectors(
    hidden: Tensor, counts: Sequence[int], targets: Tensor, steering: Steering, head: Tensor
) -> Tensor:
    size = torch.tensor(counts, device=hidden.device)
    owner = torch.arange(len(counts), device=hidden.device).repeat_interleave(size)
    share = 1 / size.clamp(min=1)[:, None].float()
    wide = hidden.shape[1]
    wanted = torch.zeros(len(counts), wide, dtype=torch.float32, device=hidden.device)
    wanted.index_add_(0, owner, head[targets].float())

    # E, in place of the logits
    odds = (hidden @ head.T).float()
    odds.sub_(odds.amax(dim=1, keepdim=True)).exp_()
    parts = odds.split(list(counts))

    # every element is on its own in AdamW, so that one optimizer serves all vectors
    delta = torch.zeros(len(counts), wide, dtype=torch.float32, device=hidden.device)
    optimizer = _adamw(delta, steering)
    for step in range(1, steering.times + 1):
        if step == 1:
            chances = torch.stack([part.T @ (1 / part.sum(dim=1)) for part in parts])
        else:
            tilt = (delta.to(head.dtype) @ head.T).float()
            tilt.sub_(tilt.amax(dim=1, keepdim=True)).exp_()
            rows = []
            for part, states, own, vector in zip(
                parts, hidden.split(list(counts)), tilt, delta, strict=True
            ):
                summed = _summed_odds(part, own)
                rows.append(_summed_slowly(states, vector, head) if summed is None else summed)
            chances = torch.stack(rows)
        delta.grad = (chances.to(head.dtype) @ head).float().sub_(wanted).mul_(share)
        optimizer.step()
    return delta


def _chunk_vectors_of(
    hidden: Tensor, counts: Sequence[int], targets: Tensor, steering: Steering, logits_of: Logits
) -> Tensor:
    """The same for a head that is more than a matrix: through the library's logits."""
    # what was made for inference is part of no gradient: all is made here, or copied
    with torch.inference_mode(False), torch.enable_grad():
        size = torch.tensor(counts, device=hidden.device)
        owner = torch.arange(len(counts), device=hidden.device).repeat_interleave(size)
        share = (1 / size.clamp(min=1).float())[owner]
        states, goal = hidden.float().clone(), targets.clone()
        delta = states.new_zeros(len(counts), states.shape[1], requires_grad=True)
        optimizer = _adamw(delta, steering)
        for _ in range(steering.times):
            optimizer.zero_grad()
            logits = logits_of(states + delta[owner])
            losses = torch.nn.functional.cross_entropy(logits, goal, reduction="none")
            (losses * share).sum().backward()
            optimizer.step()
    return delta.detach()


def _adamw(delta: Tensor, steering: Steering) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [delta], steering.learning_rate, eps=_EPS, weight_decay=_WEIGHT_DECAY, foreach=False
    )


def _summed_odds(odds: Tensor, tilt: Tensor) -> Tensor | None:
    """Σ_t p_t, [V], of rows E [n, V] tilted by g [V]; None where the sums underflow."""
    sums = odds @ tilt
    if len(sums) and not bool(sums.min() > _SMALLEST):
        return None
    return (odds.T @ (1 / sums)).mul_(tilt)


def _summed_slowly(hidden: Tensor, delta: Tensor, head: Tensor) -> Tensor:
    """The same from the logits themselves, for vectors that turn the distribution upside down."""
    logits = (hidden.float() + delta) @ head.float().T
    return torch.softmax(logits, dim=-1).sum(dim=0)
