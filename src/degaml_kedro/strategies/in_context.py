"""``context``: the support examples in the prompt, on top of whatever adapter there is (not in the paper).

    log p(y | x, D) = log p_θ(y | x_1 y_1 … x_k y_k x) + w log p_e(y | x, D) + constant

p_e is a logistic regression on the prompt encoder's embeddings of the examples D
(:mod:`degaml_kedro.llm.sentence_head`); w is 0 unless ``encoder`` says otherwise. It has a word only on questions of a
closed set: those whose options were all answers in D.

The language model is not trained. Every member of the state gets the demonstrations, and is asked behind them from then
on; what else strategies do to it (train, mix, steer) is done to the questions alone, without them.

The last demonstration stands nearest to the question. As many stand there as fit in the model's context in front of
that question; those that come last in the choice are dropped first.

Shapes: N demonstrations to choose from, Q questions, C width of the prompt encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.special import log_softmax
from torch import Tensor

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import Parameters
from degaml_kedro.llm.in_context import encode_in_context, fitting, shuffled
from degaml_kedro.llm.prompting import without_options
from degaml_kedro.llm.scoring import AskedQuestions
from degaml_kedro.llm.sentence_head import SentenceHead
from degaml_kedro.strategies.context import Context, StrategyError
from degaml_kedro.strategies.observations import Labeled
from degaml_kedro.strategies.registry import Offered, family
from degaml_kedro.strategies.state import (
    MAX_ENCODER_WEIGHT,
    MAX_POOL,
    MAX_SHOTS,
    AdaptedState,
    Demonstrations,
    Order,
)
from degaml_kedro.tasks.example import Example, Question

# scikit-learn's C of the encoder's classifier, chosen on development tasks
_REGULARIZATION = 100.0

# of a question, by option
EncoderWord = list[float] | None


class InContext(Parameters):
    """How many demonstrations, and which; and what the encoder's word counts beside the model's."""

    shots: Annotated[int, Field(ge=1, le=MAX_SHOTS), Offered(5, 10, 20, 40)]
    order: Order
    encoder: Annotated[float, Field(ge=0, le=MAX_ENCODER_WEIGHT), Offered(0.0, 2.0)] = 0.0


@family("context", "show the answered examples", InContext)
def refine(
    context: Context, state: AdaptedState, seen: Labeled, config: InContext, seed: int
) -> AdaptedState:
    """Put the examples, the first 1000, in front of every question that a member is asked, in place of earlier ones.

    Raises:
        StrategyError: the encoder is asked for, and there is none.
    """
    shown = demonstrate(context, seen, config.shots, config.order, config.encoder, seed)
    members = tuple(replace(member, demonstrations=shown) for member in state.members)
    return replace(state, members=members)


def demonstrate(
    context: Context, seen: Labeled, shots: int, order: Order, encoder: float, seed: int
) -> Demonstrations:
    """The examples, the first 1000, as demonstrations.

    Raises:
        StrategyError: the encoder is asked for, and there is none.
    """
    own = derive_seed(seed, "context")
    shown = Demonstrations(seen.examples[:MAX_POOL], shots, order, own, encoder)
    if shown.needs_encoder:
        _embedder(context)
    return shown


def ask_in_context(
    context: Context, shown: Demonstrations, questions: Sequence[Question]
) -> AskedQuestions:
    """Questions behind as many demonstrations as fit; every question by itself.

    Raises:
        StrategyError: the nearest are asked for, and there is no encoder.
        PromptError: a question alone is longer than the model's context.
    """
    base, prompt, mode = context.base, context.prompt, context.scoring.answers
    room = context.scoring.room
    if room:
        questions = without_options(questions)
    pool, shared = shown.examples, shown.order != "nearest"
    if shared:
        pool = shuffled(pool, shown.seed) if shown.order == "random" else pool
        choices = [pool[: shown.shots]] * len(questions)
    else:
        embed = _embedder(context)
        # both are of length 1: the order of Euclidean distances too
        alike = embed(questions) @ embed([Question.of(one) for one in pool]).T  # [Q, N]
        ranks = alike.argsort(dim=1, descending=True, stable=True)[:, : shown.shots].tolist()
        choices = [tuple(pool[place] for place in row) for row in ranks]

    def fit(choice: Sequence[Example], some: Sequence[Question]) -> int:
        return fitting(base, choice, some, prompt, mode, len(choice), room)

    if not shared or (questions and fit(choices[0], questions) < len(choices[0])):
        choices = [
            choice[: fit(choice, [question])]
            for choice, question in zip(choices, questions, strict=True)
        ]
    if not shared:
        choices = [choice[::-1] for choice in choices]
    return encode_in_context(base, questions, choices, prompt, mode, shared, room)


def encoder_words(
    context: Context, shown: Demonstrations, questions: Sequence[Question]
) -> list[EncoderWord]:
    """What the encoder's classifier says of questions: w log p_e by option, or None where it has no word.

    Raises:
        StrategyError: there is no encoder.
    """
    embed = _embedder(context)
    answers = [example.options[example.gold] for example in shown.examples]
    states = embed([Question.of(example) for example in shown.examples])
    head = SentenceHead.fit(states, answers, _REGULARIZATION)
    told = shown.encoder_weight * head.log_probabilities(embed(questions))
    found: list[EncoderWord] = []
    for question, row in zip(questions, told.tolist(), strict=True):
        of_class = dict(zip(head.classes, row, strict=True))
        known = all(option in of_class for option in question.options)
        found.append([of_class[option] for option in question.options] if known else None)
    return found


def with_encoder(
    scores: Sequence[tuple[float, ...]], words: Sequence[EncoderWord]
) -> list[tuple[float, ...]]:
    """The model's option scores with the encoder's word added, where it has one."""
    return [
        row if word is None else tuple(float(one) for one in log_softmax(row) + np.array(word))
        for row, word in zip(scores, words, strict=True)
    ]


def _embedder(context: Context) -> Callable[[Sequence[Question]], Tensor]:
    if context.embed is None:
        raise StrategyError(
            "the prompt encoder finds the nearest demonstrations and has a word of its own, and there is none here; "
            "use the order given or random, and encoder 0"
        )
    return context.embed
