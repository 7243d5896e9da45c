"""The policy's learning step: supervised fine-tuning on the actions that were rewarded (F.2, ReST^EM).

    ψ <- argmax  Σ over rollouts with reward > 0 of  log π_ψ(action | state)

Loss on the action's tokens alone. The policy is a LoRA adapter of its base model; nothing else is changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.common.progress import Progress
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import Phase, PolicyTraining, TrainingParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import AnswerSequence, batch_indices, train_on_batches
from degaml_kedro.policy.proposers import encode_decision


def learn(
    base: BaseModel,
    start: Adapter,
    rows: Sequence[Mapping[str, Any]],
    settings: PolicyTraining,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Adapter, dict[str, Any]]:
    """Train the policy's adapter on the rewarded ones among rollouts; the seed decides their order, and which of many.

    Returns:
        The adapter, ``start`` itself where no rollout was rewarded; and a record: ``learned``, how many rollouts it was
        trained on, ``steps``, the optimiser's, ``losses`` of every step in nats per action token, ``tokens``,
        ``forward_tokens`` and ``backward_tokens``, and ``seconds``.

    Raises:
        TrainingError: the loss stops being finite.
        PromptError: a state and its action are longer than the model's context.
    """
    began = time.perf_counter()
    rewarded = [row for row in rows if row["valid"] and row["reward"] > 0]
    chosen = _evenly(rewarded, settings.max_actions, seed)
    if not chosen:
        return start, _record(0, [], 0, began)
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

    last, losses, tokens = None, list[float](), 0
    for step in train_on_batches(base, batch, training, start):
        last, tokens = step, tokens + step.tokens
        losses.append(step.loss)
        if progress is not None:
            progress(step.step, steps)
    adapter = start if last is None else last.adapter
    return adapter, _record(len(chosen), losses, tokens, began)


def _record(learned: int, losses: list[float], tokens: int, began: float) -> dict[str, Any]:
    return {
        "learned": learned,
        "steps": len(losses),
        "losses": losses,
        # every token of a batch goes forward and back once
        "tokens": 2 * tokens,
        "forward_tokens": tokens,
        "backward_tokens": tokens,
        "seconds": time.perf_counter() - began,
    }


def _evenly(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Mapping[str, Any]]:
    """At most ``count`` rows, drawn in turn from every task, so that no task speaks for all."""
    if len(rows) <= count:
        return list(rows)
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    order = np.random.default_rng(derive_seed(seed, "rewarded")).permutation(len(rows))
    for row in (rows[int(place)] for place in order):
        by_task.setdefault(str(row["task"]), []).append(row)
    turns = zip_longest(*(reversed(own) for own in by_task.values()))
    return [row for turn in turns for row in turn if row is not None][:count]
