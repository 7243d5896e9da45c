"""What an adapted state answers: adapters, vote and vector put together.

Shapes: K members, Q questions, O options.
"""

from __future__ import annotations

from collections.abc import Sequence

from degaml_kedro.llm.scoring import (
    OptionScores,
    Prediction,
    Progress,
    compare_options,
    predictions_of,
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
        StrategyError: a router is asked and there is no encoder, or no prompt batch to compare with.
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
    """Scores by some of the members, all in one pass."""
    adapters = [state.members[i].adapter for i in chosen]
    added = None
    if state.steering is not None:
        added = steer(state.steering.of(chosen), bench.base.head, len(adapters))
    return compare_options(
        bench.base,
        questions,
        bench.prompt,
        bench.scoring,
        adapters,
        added,
        bench.watched(progress),
    )


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
