"""What an adapted state answers: adapters, demonstrations, vote and vector put together.

Shapes: K members, Q questions, O options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from degaml_kedro.common.progress import Progress
from degaml_kedro.llm.generation import Steer, Writing, distinct, group_answers, write_texts
from degaml_kedro.llm.in_context import compare_in_context
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.prompting import encode_questions, without_options
from degaml_kedro.llm.scoring import (
    AskedQuestions,
    OptionScores,
    Prediction,
    WrittenAnswer,
    compare_options,
    graded,
    predictions_of,
)
from degaml_kedro.strategies.context import Context, StrategyError
from degaml_kedro.strategies.in_context import (
    EncoderWord,
    ask_in_context,
    encoder_words,
    with_encoder,
)
from degaml_kedro.strategies.latent import steer
from degaml_kedro.strategies.scaling import combine, route
from degaml_kedro.strategies.state import ROUTERS, AdaptedState, Demonstrations
from degaml_kedro.tasks.example import Example, Question

T = TypeVar("T")


def answer_questions(
    context: Context,
    state: AdaptedState,
    questions: Sequence[Question],
    progress: Progress | None = None,
) -> OptionScores:
    """Score the options of questions under an adapted state.

    Returns:
        One row of scores a question, as of one adapter.

    Raises:
        StrategyError: a router is asked and there is no encoder, or no prompt batch to compare with; or demonstrations
            that need an encoder, without one; or answers are written.
        PromptError: a question is longer than the model's context.
        ModelError: an adapter does not fit the model, or members differ in shape.
    """
    if context.scoring.mode == "generate":
        raise StrategyError(
            "answers are written (scoring.mode 'generate'), and no options are compared; set it to 'letter' or 'text'"
        )
    if not questions:
        return OptionScores([[]], [])

    def compare(
        members: Sequence[int], asked: Sequence[Question], told: Progress | None
    ) -> list[tuple[tuple[float, ...], int]]:
        part = _compare(context, state, members, asked, told)
        return [
            (_combined(state, rows), tokens)
            for tokens, *rows in zip(part.tokens, *part.scores, strict=True)
        ]

    scores, tokens = zip(*_by_route(context, state, questions, compare, progress), strict=True)
    context.meter.forward += sum(tokens)
    return OptionScores([list(scores)], list(tokens))


def _combined(state: AdaptedState, rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """One question's option scores [O], from those of the members that were asked, [K, O]."""
    if state.vote is None or state.vote.method in ROUTERS:
        return rows[0]
    return combine(rows, state.vote.method, state.vote.weights)


def predict(
    context: Context,
    state: AdaptedState,
    examples: Sequence[Example],
    progress: Progress | None = None,
) -> list[Prediction]:
    """Predictions for examples; their answers are only put beside what was predicted."""
    questions = [Question.of(example) for example in examples]
    if context.scoring.mode == "generate":
        return graded(examples, write_answers(context, state, questions, progress), context.scoring)
    found = answer_questions(context, state, questions, progress)
    return predictions_of(examples, found.scores[0], found.tokens, context.prompt, context.scoring)


def write_answers(
    context: Context,
    state: AdaptedState,
    questions: Sequence[Question],
    progress: Progress | None = None,
) -> list[WrittenAnswer]:
    """Answers to questions that an adapted state writes.

    Several members that answer together each write a text, and each one's likelihood of all of these texts decides.

    Raises:
        StrategyError: as :func:`answer_questions`.
        PromptError: a question with room for its answer is longer than the model's context.
        ModelError: an adapter does not fit the model, or members differ in shape.
    """

    def write(
        members: Sequence[int], asked: Sequence[Question], told: Progress | None
    ) -> list[WrittenAnswer]:
        every = [
            _write(context, state, member, asked, _share(told, number, len(members)))
            for number, member in enumerate(members)
        ]
        written = [distinct(some) for some in zip(*every, strict=True)]
        compared = _compare(context, state, members, asked, written=written)
        found = []
        for place, question in enumerate(asked):
            own = [some[place] for some in every]
            rows = [row[place] for row in compared.scores]
            tokens = sum(one.tokens for one in own) + compared.tokens[place]
            found.append(_agreed(context, state, question, own, written[place], rows, tokens))
        return found

    answers = _by_route(context, state, questions, write, progress)
    context.meter.forward += sum(answer.tokens for answer in answers)
    return answers


def _agreed(
    context: Context,
    state: AdaptedState,
    question: Question,
    own: Sequence[Writing],
    written: Sequence[Writing],
    rows: Sequence[Sequence[float]],
    tokens: int,
) -> WrittenAnswer:
    """What members answer together: of own texts [K], the different ones [O] and their log-probabilities [K, O]."""
    if len(rows) == 1:
        return WrittenAnswer(own[0].text, rows[0][0], tokens)
    assert state.vote is not None
    groups, scores = group_answers(written, rows, question, context.scoring)
    texts = [written[group[0]] for group in groups]
    place_of = {written[i].ids: place for place, group in enumerate(groups) for i in group}
    said = [place_of[one.ids] for one in own if one.ids in place_of]
    pooled = combine(scores, state.vote.method, state.vote.weights, said)
    best = max(range(len(pooled)), key=pooled.__getitem__)
    return WrittenAnswer(texts[best].text, pooled[best], tokens)


def _write(
    context: Context,
    state: AdaptedState,
    number: int,
    questions: Sequence[Question],
    progress: Progress | None,
) -> list[Writing]:
    """What one member writes, behind its demonstrations where it has some."""
    base, prompt, scoring, own = context.base, context.prompt, context.scoring, None
    member, vectors = state.members[number], _vectors(context, state, [number])
    if member.demonstrations is None:
        asked = without_options(questions)
        encoded = encode_questions(base, asked, prompt, scoring.answers, scoring.room)
    else:
        behind = ask_in_context(context, member.demonstrations, questions)
        encoded, own = behind.encoded, behind.own
    with active_lora(base.activate_adapter(member.adapter)):
        return write_texts(base, encoded, prompt, scoring, vectors, own, context.watched(progress))


def _compare(
    context: Context,
    state: AdaptedState,
    chosen: Sequence[int],
    questions: Sequence[Question],
    progress: Progress | None = None,
    written: Sequence[Sequence[Writing]] | None = None,
) -> OptionScores:
    """Scores by the chosen members: in one pass by those without demonstrations, in one for each of the others.

    ``written`` has texts by question, which are scored in place of its options.
    """
    base, prompt, scoring = context.base, context.prompt, context.scoring
    together = [i for i in chosen if state.members[i].demonstrations is None]
    passes = [together] if together else []
    passes += [[i] for i in chosen if state.members[i].demonstrations is not None]
    rows: dict[int, list[tuple[float, ...]]] = {}
    tokens = [0] * len(questions)

    # members often share demonstrations, and tokenizing takes its time
    @cache
    def behind(shown: Demonstrations) -> AskedQuestions:
        asked = ask_in_context(context, shown, questions)
        return asked if written is None else asked.answered(written)

    @cache
    def words(shown: Demonstrations) -> list[EncoderWord]:
        return encoder_words(context, shown, questions)

    for number, some in enumerate(passes):
        told = context.watched(_share(progress, number, len(passes)))
        vectors, first = _vectors(context, state, some), state.members[some[0]]
        shown = first.demonstrations
        if shown is None:
            adapters = [state.members[i].adapter for i in some]
            found = compare_options(
                base, questions, prompt, scoring, adapters, vectors, told, written=written
            )
        else:
            with active_lora(base.activate_adapter(first.adapter)):
                found = compare_in_context(
                    base, behind(shown), prompt, scoring, first.memory, vectors, told
                )
            if shown.encoder_weight > 0 and written is None:
                scores = with_encoder(found.scores[0], words(shown))
                found = OptionScores([scores], found.tokens)
        rows.update(zip(some, found.scores, strict=True))
        tokens = [a + b for a, b in zip(tokens, found.tokens, strict=True)]
    return OptionScores([rows[i] for i in chosen], tokens)


def _vectors(context: Context, state: AdaptedState, members: Sequence[int]) -> Steer | None:
    if state.steering is None:
        return None
    return steer(state.steering.of(members), context.base, len(members))


def _share(progress: Progress | None, number: int, of: int) -> Progress | None:
    """Progress of one pass as a part of all of them."""
    if progress is None or of == 1:
        return progress
    return lambda done, total: progress((number * total + done) // of, total)


def _by_route(
    context: Context,
    state: AdaptedState,
    questions: Sequence[Question],
    ask: Callable[[Sequence[int], Sequence[Question], Progress | None], list[T]],
    progress: Progress | None,
) -> list[T]:
    """What ``ask`` gives for each question, asked of the member that a router picks for it, or of all members."""
    members = state.members
    routes = {tuple(range(len(members))): list(range(len(questions)))}
    if state.vote is not None and state.vote.method in ROUTERS:
        if context.embed is None:
            raise StrategyError("a router needs the prompt encoder, and there is none here")
        if any(member.prompts is None for member in members):
            raise StrategyError(
                f"{state.vote.method} compares prompt batches, and an adapter here was not generated from one"
            )
        picked = route(members, state.vote, context.embed(questions))
        routes = {
            (member,): [place for place, own in enumerate(picked) if own == member]
            for member in sorted(set(picked))
        }
    found: dict[int, T] = {}
    for chosen, places in routes.items():
        told = progress if len(routes) == 1 else None
        some = ask(chosen, [questions[place] for place in places], told)
        found.update(zip(places, some, strict=True))
        if progress is not None and len(routes) > 1:
            progress(len(found), len(questions))
    return [found[place] for place in range(len(questions))]
