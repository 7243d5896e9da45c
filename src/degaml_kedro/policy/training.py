"""The policy's learning step: supervised fine-tuning on the actions that were rewarded (F.2, ReST^EM).

    ψ <- argmax  Σ over rollouts with reward > 0 of  log π_ψ(action | state)

Loss on the action's tokens alone. The policy is a LoRA adapter of its base model; nothing else is changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import AnswerSequence, batch_indices, train_on_batches
from degaml_kedro.parameters import Phase, PolicyTraining, TrainingParameters
from degaml_kedro.policy.proposers import encode_decision
from degaml_kedro.progress import Progress
from degaml_kedro.seeds import derive_seed


@dataclass(frozen=True)
class PolicyStep:
    """What an iteration's learning came to.

    Attributes:
        adapter: the policy.
        rewarded: rollouts with a reward above 0.
        learned: how many of them it was trained on.
        steps: optimiser steps; 0 where nothing was rewarded and the policy is as it was.
        losses: of every step, in nats per action token.
        forward_tokens: that its model read.
        backward_tokens: that a gradient went back through.
        seconds: wall time.
    """

    adapter: Adapter
    rewarded: int
    learned: int
    steps: int
    losses: tuple[float, ...]
    forward_tokens: int
    backward_tokens: int
    seconds: float

    @property
    def tokens(self) -> int:
        """Both."""
        return self.forward_tokens + self.backward_tokens


def learn(
    base: BaseModel,
    start: Adapter,
    rows: Sequence[Mapping[str, Any]],
    settings: PolicyTraining,
    seed: int,
    progress: Progress | None = None,
) -> PolicyStep:
    """Train the policy on rewarded rollouts.

    Args:
        base: the policy's frozen model.
        start: where its adapter starts.
        rows: rollouts, rewarded or not.
        settings: epochs, learning rate, batch size.
        seed: decides what is taken where there are too many, and the order.
        progress: called with (steps done, steps in all).

    Returns:
        The step; with ``start`` itself where no rollout was rewarded.

    Raises:
        TrainingError: the loss stops being finite.
        PromptError: a state and its action are longer than the model's context.
    """
    began = time.perf_counter()
    rewarded = [row for row in rows if row["valid"] and row["reward"] > 0]
    chosen = _evenly(rewarded, settings.max_actions, seed)
    if not chosen:
        return PolicyStep(start, 0, 0, 0, (), 0, 0, time.perf_counter() - began)
    sequences = [encode_decision(base, str(row["state"]), str(row["action"])) for row in chosen]
    size = min(settings.batch_size, len(sequences))
    steps = math.ceil(settings.epochs * len(sequences) / size)
    training = TrainingParameters(
        phases=(Phase(steps=steps, learning_rate=settings.learning_rate),),
        batch_size=size,
        weight_decay=settings.weight_decay,
        max_gradient_norm=settings.max_gradient_norm,
    )
    own = derive_seed(seed, "policy batches")

    def batch(step: int) -> list[AnswerSequence]:
        return [sequences[i] for i in batch_indices(len(sequences), training, step, own)]

    adapter, losses, tokens = start, [], 0
    for step in train_on_batches(base, batch, training, start):
        adapter = step.adapter
        losses.append(step.loss)
        tokens += step.tokens
        if progress is not None:
            progress(step.step, steps)
    seconds = time.perf_counter() - began
    # every token of a batch goes forward and back once
    return PolicyStep(
        adapter, len(rewarded), len(chosen), steps, tuple(losses), tokens, tokens, seconds
    )


def _evenly(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Mapping[str, Any]]:
    """At most ``count`` rows, drawn in turn from every task, so that no task speaks for all."""
    if len(rows) <= count:
        return list(rows)
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    order = np.random.default_rng(derive_seed(seed, "rewarded")).permutation(len(rows))
    for place in order:
        row = rows[int(place)]
        by_task.setdefault(str(row["task"]), []).append(row)
    taken: list[Mapping[str, Any]] = []
    while len(taken) < count:
        for waiting in by_task.values():
            if waiting and len(taken) < count:
                taken.append(waiting.pop())
    return taken
