"""Steering's steps from cached hidden states, against running the whole model in each step.

Both peers are ours but for the steps, so that nothing else is compared: the same packed model, the same questions in
one batch, the same AdamW, the answers read off in the same way.

- the whole model in each step: hidden states of the prompts again, without a gradient (the vector comes after them, so
  nothing of the model has to be differentiated), then the LM head on all prompt tokens, and backward to the vectors.
- hidden states cached, and the LM head on all prompt tokens in every step: SLOT's published way.

The answers alone, without any step, are timed as well, for the details.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.material import Settings
from benchmarks.measure import Result, now
from benchmarks.strategies import (
    context_for,
    members_of,
    task_examples,
    times_as_long,
    tokens_of,
)
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.generation import Steer
from degaml_kedro.llm.packing import TokenTree, pack_trees
from degaml_kedro.llm.prompting import EncodedQuestion
from degaml_kedro.llm.scoring import OptionScores, compare_options
from degaml_kedro.strategies.answering import answer_questions
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.latent import _EPS, _WEIGHT_DECAY
from degaml_kedro.strategies.state import AdaptedState, Member, Steering
from degaml_kedro.tasks.example import Question

STEERING = Steering(times=5, learning_rate=0.03)
QUESTIONS = 64


def run(settings: Settings) -> Result:
    """Take turns, after one that does not count."""
    context = context_for(settings.base())
    member = members_of(context, 1)[0]
    examples = task_examples(settings.either(QUESTIONS, 4))
    questions = [Question.of(example) for example in examples]
    turns = settings.either(3, 1)
    sides = sides_of(context, member, questions)
    device = context.base.device
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, OptionScores] = {}
    for turn in range(turns + 1):
        for name, side in sides.items():
            began = now(device)
            found[name] = side()
            if turn:
                seconds[name].append(now(device) - began)
    about = f"{STEERING.times} latent steps, {len(questions)} questions"
    rows = [
        times_as_long(
            f"{about}; the whole model in each step",
            seconds["ours"],
            seconds["whole model"],
            at_least=None if settings.quick else 5.0,
        ),
        times_as_long(
            f"{about}; hidden states cached, the LM head on every token in each step",
            seconds["ours"],
            seconds["whole head"],
        ),
    ]
    details = {
        **tokens_of(settings, found["ours"].tokens),
        "seconds": seconds,
        "largest_difference": {
            name: largest_difference(found["ours"], found[name])
            for name in ("whole model", "whole head")
        },
    }
    return Result("latent_steps", rows, details)


def sides_of(
    context: Context, member: Member, questions: Sequence[Question]
) -> dict[str, Callable[[], OptionScores]]:
    """Ours and the peers, each a call that scores all options."""
    steered = AdaptedState((member,), steering=STEERING)

    def by(steer: Steer | None) -> OptionScores:
        return compare_options(
            context.base, questions, context.prompt, context.scoring, (member.adapter,), steer
        )

    return {
        "ours": lambda: answer_questions(context, steered, questions),
        "whole model": lambda: by(slow_steer(context.base, again=True)),
        "whole head": lambda: by(slow_steer(context.base, again=False)),
        "no steps": lambda: by(None),
    }


def slow_steer(base: BaseModel, again: bool) -> Steer:
    """What :func:`~degaml_kedro.strategies.latent.steer` does, every step in full.

    Args:
        base: the model.
        again: whether the whole model is run in each step, not only its head.
    """

    def vectors(
        hidden: Tensor, starts: Sequence[int], questions: Sequence[EncodedQuestion]
    ) -> Tensor:
        # scoring runs without gradients; tensors made here may have one
        with torch.inference_mode(False):
            counts = [len(question.prompt) - 1 for question in questions]
            targets = torch.tensor([token for q in questions for token in q.prompt[1:]])
            targets = targets.to(hidden.device)
            size = torch.tensor(counts, device=hidden.device)
            owner = torch.arange(len(counts), device=hidden.device).repeat_interleave(size)
            share = (1 / size.float())[owner]
            rows = [s + i for s, n in zip(starts, counts, strict=True) for i in range(n)]
            # the prompts alone, without their last tokens: these predict nothing that is known
            trees = [TokenTree(question.prompt[:-1]) for question in questions]
            alone = pack_trees(trees, base.device, base.dtype)
            states = hidden[rows].clone()
            delta = torch.zeros(len(counts), hidden.shape[1], device=hidden.device)
            delta.requires_grad_()
            optimizer = torch.optim.AdamW(
                [delta],
                lr=STEERING.learning_rate,
                eps=_EPS,
                weight_decay=_WEIGHT_DECAY,
                foreach=False,
            )
            for _ in range(STEERING.times):
                if again:
                    with torch.no_grad():
                        states = base.hidden_states(alone)
                with torch.enable_grad():
                    moved = (states.float() + delta[owner]).to(base.head.dtype)
                    logits = (moved @ base.head.T).float()
                    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
                    (losses * share).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            return delta.detach()

    return vectors


def largest_difference(one: OptionScores, other: OptionScores) -> float:
    """Between the scores of two sides; a question's options share a constant, which does not count."""
    return max(
        abs((a - mine[0]) - (b - theirs[0]))
        for mine, theirs in zip(one.scores[0], other.scores[0], strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )
