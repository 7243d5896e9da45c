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
from degaml_kedro.strategies.registry import Offered, family
from degaml_kedro.strategies.seen import Prompts
from degaml_kedro.strategies.state import AdaptedState, Steering
from degaml_kedro.strategies.ttt import prompt_sequences
from degaml_kedro.strategies.workbench import StrategyError, Workbench

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
    bench: Workbench, state: AdaptedState, seen: Prompts, config: LatentSteps, seed: int
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
        vectors = [
            _task_vector(bench, state.members[i].adapter, seen, steering)
            for i in range(len(state.members))
        ]
        steering = replace(steering, vectors=torch.stack(vectors))
    return replace(state, steering=steering)


def _task_vector(bench: Workbench, adapter: Adapter, seen: Prompts, steering: Steering) -> Tensor:
    base = bench.base
    sequences = prompt_sequences(bench, seen)
    if not sequences:
        raise StrategyError("every prompt is one token long; there is nothing to predict in it")
    limit = max(1, _CELLS_AT_ONCE // base.head.shape[0])
    totals = accumulate(sequence.answer for sequence in sequences)
    taken = max(1, sum(total <= limit for total in totals))
    rows: list[int] = []
    targets: list[int] = []
    pack = pack_trees([TokenTree(s.ids) for s in sequences[:taken]], base.device, base.dtype)
    for sequence, start in zip(sequences[:taken], pack.starts, strict=True):
        rows.extend(range(start, start + sequence.answer))
        targets.extend(sequence.ids[1:])
    with torch.no_grad(), active_lora(base.activate_adapter(adapter)):
        hidden = base.hidden_states(pack)[rows]
    bench.meter.forward += pack.tokens
    return latent_vectors(
        hidden,
        [len(rows)],
        targets,
        base.head,
        steering.times,
        steering.learning_rate,
        _own_logits(base),
    )[0].cpu()


def _own_logits(base: BaseModel) -> Logits | None:
    """The library's logits, where the head is more than a matrix."""
    return None if base.readout is None else base.logits


def steer(steering: Steering, base: BaseModel, members: int) -> Steer:
    """What :func:`~degaml_kedro.llm.scoring.compare_options` calls with the hidden states of each batch.

    Args:
        steering: steps, or vectors.
        base: for its head.
        members: K; the questions come once for each.
    """

    def vectors(
        hidden: Tensor, starts: Sequence[int], questions: Sequence[EncodedQuestion]
    ) -> Tensor:
        if steering.vectors is not None:
            each = steering.vectors.to(hidden.device)
            return each.repeat_interleave(len(questions) // members, dim=0)
        rows: list[int] = []
        targets: list[int] = []
        for start, question in zip(starts, questions, strict=True):
            rows.extend(range(start, start + len(question.prompt) - 1))
            targets.extend(question.prompt[1:])
        counts = [len(question.prompt) - 1 for question in questions]
        return latent_vectors(
            hidden[rows],
            counts,
            targets,
            base.head,
            steering.times,
            steering.learning_rate,
            _own_logits(base),
        )

    return vectors


def latent_vectors(
    hidden: Tensor,
    counts: Sequence[int],
    targets: Sequence[int],
    head: Tensor,
    times: int,
    learning_rate: float,
    logits: Logits | None = None,
) -> Tensor:
    """SLOT's vectors, one for every run of rows; no two of them depend on each other.

    Args:
        hidden: final hidden states that predict a token, [R, H], in the model's dtype.
        counts: how many of the rows belong to each vector, in order; they add up to R.
        targets: the token that each row should predict, [R].
        head: [V, H], in the model's dtype.
        times: AdamW steps.
        learning_rate: of these steps.
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
                    _chunk_vectors(*some, head, times, learning_rate)
                    if logits is None
                    else _chunk_vectors_of(*some, logits, times, learning_rate)
                )
                first, chunk = rows.stop, []
            if count is not None:
                chunk.append(count)
        return torch.cat(found) if found else hidden.new_zeros(0, hidden.shape[1]).float()


def _chunk_vectors(
    hidden: Tensor,
    counts: Sequence[int],
    targets: Tensor,
    head: Tensor,
    times: int,
    learning_rate: float,
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
    optimizer = torch.optim.AdamW(
        [delta], lr=learning_rate, eps=_EPS, weight_decay=_WEIGHT_DECAY, foreach=False
    )
    for step in range(1, times + 1):
        if step == 1:
            chances = torch.stack([part.T @ (1 / part.sum(dim=1)) for part in parts])
        else:
            tilt = (delta.to(head.dtype) @ head.T).float()
            tilt.sub_(tilt.amax(dim=1, keepdim=True)).exp_()
            rows = []
            begin = 0
            for index, part in enumerate(parts):
                summed = _summed_odds(part, tilt[index])
                if summed is None:
                    states = hidden[begin : begin + len(part)]
                    summed = _summed_slowly(states, delta[index], head)
                rows.append(summed)
                begin += len(part)
            chances = torch.stack(rows)
        delta.grad = (chances.to(head.dtype) @ head).float().sub_(wanted).mul_(share)
        optimizer.step()
    return delta


def _chunk_vectors_of(
    hidden: Tensor,
    counts: Sequence[int],
    targets: Tensor,
    logits_of: Logits,
    times: int,
    learning_rate: float,
) -> Tensor:
    """The same for a head that is more than a matrix: through the library's logits."""
    # what was made for inference is part of no gradient: all is made here, or copied
    with torch.inference_mode(False), torch.enable_grad():
        size = torch.tensor(counts, device=hidden.device)
        owner = torch.arange(len(counts), device=hidden.device).repeat_interleave(size)
        share = (1 / size.clamp(min=1).float())[owner]
        states, goal = hidden.float().clone(), targets.clone()
        delta = states.new_zeros(len(counts), states.shape[1], requires_grad=True)
        optimizer = torch.optim.AdamW(
            [delta], lr=learning_rate, eps=_EPS, weight_decay=_WEIGHT_DECAY, foreach=False
        )
        for _ in range(times):
            optimizer.zero_grad()
            logits = logits_of(states + delta[owner])
            losses = torch.nn.functional.cross_entropy(logits, goal, reduction="none")
            (losses * share).sum().backward()
            optimizer.step()
    return delta.detach()


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
