"""What an adapted state answers: adapters, contexts, vote and vector put together.

Shapes: K members, Q questions, O options.
"""

from __future__ import annotations

from collections.abc import Sequence

from degaml_kedro.llm.in_context import QuestionsInContext, compare_in_context
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.scoring import (
    OptionScores,
    Prediction,
    Progress,
    compare_options,
    predictions_of,
)
from degaml_kedro.strategies.in_context import (
    EncoderWord,
    ask_in_context,
    encoder_words,
    with_encoder,
)
from degaml_kedro.strategies.latent import steer
from degaml_kedro.strategies.scaling import combine, route
from degaml_kedro.strategies.state import ROUTERS, AdaptedState, Member
from degaml_kedro.strategies.workbench import StrategyError, Workbench
from degaml_kedro.tasks.example import Example, Question


def answer_questions(
    bench: Workbench,
    state: AdaptedState,
    questions: Sequence[Question],
    progress: Progress | None = None,
) -> OptionScores:
    """Score the options of questions under an adapted state.

    Args:
        bench: the model.
        state: who answers.
        questions: without their answers.
        progress: called with (questions done, questions in all).

    Returns:
        One row of scores a question, as of one adapter.

    Raises:
        StrategyError: a router is asked and there is no encoder, or no prompt batch to compare with; or a context that
            needs an encoder, without one.
        PromptError: a question is longer than the model's context.
        ModelError: an adapter does not fit the model, or members differ in shape.
    """
    if not questions:
        return OptionScores([[]], [])
    if state.vote is None:
        found = _compare(bench, state, range(len(state.members)), questions, progress)
    elif state.vote.method in ROUTERS:
        found = _routed(bench, state, questions, progress)
    else:
        every = _compare(bench, state, range(len(state.members)), questions, progress)
        pooled = [
            combine(rows, state.vote.method, state.vote.weights)
            for rows in zip(*every.scores, strict=True)
        ]  # by question
        found = OptionScores([pooled], every.tokens)
    bench.meter.forward += sum(found.tokens)
    return found


def predict(
    bench: Workbench,
    state: AdaptedState,
    examples: Sequence[Example],
    progress: Progress | None = None,
) -> list[Prediction]:
    """Predictions for examples; their answers are only put beside what was predicted.

    Args:
        bench: the model.
        state: who answers.
        examples: what is asked.
        progress: called with (examples done, examples in all).
    """
    questions = [Question.of(example) for example in examples]
    found = answer_questions(bench, state, questions, progress)
    return predictions_of(examples, found.scores[0], found.tokens, bench.prompt, bench.scoring)


def _compare(
    bench: Workbench,
    state: AdaptedState,
    chosen: Sequence[int],
    questions: Sequence[Question],
    progress: Progress | None = None,
) -> OptionScores:
    """Scores by some of the members: in one pass by those without a context, in one for each of the others."""
    together = [i for i in chosen if state.members[i].context is None]
    passes = [together] if together else []
    passes += [[i] for i in chosen if state.members[i].context is not None]
    rows: dict[int, list[tuple[float, ...]]] = {}
    tokens = [0] * len(questions)
    encoded: dict[int, QuestionsInContext] = {}
    words: dict[int, list[EncoderWord]] = {}
    for number, some in enumerate(passes):
        told = bench.watched(_share(progress, number, len(passes)))
        steering = state.steering
        added = None if steering is None else steer(steering.of(some), bench.base, len(some))
        first = state.members[some[0]]
        if first.context is None:
            adapters = [state.members[i].adapter for i in some]
            found = compare_options(
                bench.base, questions, bench.prompt, bench.scoring, adapters, added, told
            )
        else:
            # members often share a context, and tokenizing takes its time
            key = id(first.context)
            if key not in encoded:
                encoded[key] = ask_in_context(bench, first.context, questions)
            with active_lora(bench.base.activate_adapter(first.adapter)):
                found = compare_in_context(
                    bench.base,
                    encoded[key],
                    bench.prompt,
                    bench.scoring,
                    first.memory,
                    added,
                    told,
                )
            if first.context.encoder_weight > 0:
                if key not in words:
                    words[key] = encoder_words(bench, first.context, questions)
                scores = with_encoder(found.scores[0], words[key])
                found = OptionScores([scores], found.tokens)
        rows.update(zip(some, found.scores, strict=True))
        tokens = [a + b for a, b in zip(tokens, found.tokens, strict=True)]
    return OptionScores([rows[i] for i in chosen], tokens)


def _share(progress: Progress | None, number: int, of: int) -> Progress | None:
    """Progress of one pass as a part of all of them."""
    if progress is None or of == 1:
        return progress
    return lambda done, total: progress((number * total + done) // of, total)


def _routed(
    bench: Workbench,
    state: AdaptedState,
    questions: Sequence[Question],
    progress: Progress | None,
) -> OptionScores:
    """Every question is asked of the member that the router picks for it."""
    if bench.embed is None or state.vote is None:
        raise StrategyError("a router needs the prompt encoder, and there is none here")
    members: list[Member] = list(state.members)
    if any(member.prompts is None for member in members):
        raise StrategyError(
            f"{state.vote.method} compares prompt batches, and an adapter here was not generated from one"
        )
    picked = route(members, state.vote, bench.embed(questions))
    scores: list[tuple[float, ...]] = [()] * len(questions)
    tokens = [0] * len(questions)
    done = 0
    for member in sorted(set(picked)):
        places = [place for place, own in enumerate(picked) if own == member]
        part = _compare(bench, state, [member], [questions[place] for place in places])
        for place, row, count in zip(places, part.scores[0], part.tokens, strict=True):
            scores[place], tokens[place] = row, count
        done += len(places)
        if progress is not None:
            progress(done, len(questions))
    return OptionScores([scores], tokens)
