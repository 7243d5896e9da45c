"""What an adapted state answers: adapters, contexts, vote and vector put together.

Shapes: K members, Q questions, O options.
"""

from __future__ import annotations

from collections.abc import Sequence

from degaml_kedro.common.progress import Progress
from degaml_kedro.llm.generation import Writing, distinct, group_answers, write_texts
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
from degaml_kedro.strategies.in_context import (
    EncoderWord,
    ask_in_context,
    encoder_words,
    with_encoder,
)
from degaml_kedro.strategies.latent import steer
from degaml_kedro.strategies.scaling import combine, route
from degaml_kedro.strategies.state import ROUTERS, AdaptedState
from degaml_kedro.strategies.workbench import StrategyError, Workbench
from degaml_kedro.tasks.example import Example, Question


def answer_questions(
    bench: Workbench,
    state: AdaptedState,
    questions: Sequence[Question],
    progress: Progress | None = None,
) -> OptionScores:
    """Score the options of questions under an adapted state.

    Returns:
        One row of scores a question, as of one adapter.

    Raises:
        StrategyError: a router is asked and there is no encoder, or no prompt batch to compare with; or a context that
            needs an encoder, without one; or answers are written.
        PromptError: a question is longer than the model's context.
        ModelError: an adapter does not fit the model, or members differ in shape.
    """
    if bench.scoring.mode == "generate":
        raise StrategyError(
            "answers are written (scoring.mode 'generate'), and no options are compared; set it to 'letter' or 'text'"
        )
    if not questions:
        return OptionScores([[]], [])
    routes = _routes(bench, state, questions)
    scores: dict[int, tuple[float, ...]] = {}
    tokens: dict[int, int] = {}
    for members, places in routes:
        asked = [questions[place] for place in places]
        alone = progress if len(routes) == 1 else None
        part = _compare(bench, state, members, asked, alone)
        for number, place in enumerate(places):
            rows = [row[number] for row in part.scores]
            tokens[place] = part.tokens[number]
            if state.vote is None or state.vote.method in ROUTERS:
                scores[place] = rows[0]
            else:
                scores[place] = combine(rows, state.vote.method, state.vote.weights)
        if progress is not None and len(routes) > 1:
            progress(len(scores), len(questions))
    bench.meter.forward += sum(tokens.values())
    every = range(len(questions))
    return OptionScores([[scores[place] for place in every]], [tokens[place] for place in every])


def predict(
    bench: Workbench,
    state: AdaptedState,
    examples: Sequence[Example],
    progress: Progress | None = None,
) -> list[Prediction]:
    """Predictions for examples; their answers are only put beside what was predicted."""
    questions = [Question.of(example) for example in examples]
    if bench.scoring.mode == "generate":
        return graded(examples, write_answers(bench, state, questions, progress), bench.scoring)
    found = answer_questions(bench, state, questions, progress)
    return predictions_of(examples, found.scores[0], found.tokens, bench.prompt, bench.scoring)


def write_answers(
    bench: Workbench,
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
    found: dict[int, WrittenAnswer] = {}
    routes = _routes(bench, state, questions)
    for members, places in routes:
        asked = [questions[place] for place in places]
        every = [
            _write(
                bench,
                state,
                member,
                asked,
                _share(progress, number, len(members)) if len(routes) == 1 else None,
            )
            for number, member in enumerate(members)
        ]
        written = [distinct(some) for some in zip(*every, strict=True)]
        compared = _compare(bench, state, members, asked, written=written)
        for number, place in enumerate(places):
            own = [some[number] for some in every]
            rows = [row[number] for row in compared.scores]
            tokens = sum(one.tokens for one in own) + compared.tokens[number]
            found[place] = _agreed(bench, state, asked[number], own, written[number], rows, tokens)
        if progress is not None:
            progress(len(found), len(questions))
    answers = [found[place] for place in range(len(questions))]
    bench.meter.forward += sum(answer.tokens for answer in answers)
    return answers


def _agreed(
    bench: Workbench,
    state: AdaptedState,
    question: Question,
    own: Sequence[Writing],
    written: Sequence[Writing],
    rows: Sequence[Sequence[float]],
    tokens: int,
) -> WrittenAnswer:
    """What members answer together.

    Args:
        bench: for what of a text is the answer.
        state: for the vote.
        question: which.
        own: what each member wrote, [K].
        written: the different texts, [O].
        rows: each member's log-probabilities of them, [K, O].
        tokens: computed for all of it.
    """
    groups, scores = group_answers(written, rows, question, bench.scoring)
    if len(rows) == 1:
        return WrittenAnswer(own[0].text, rows[0][0], tokens)
    assert state.vote is not None
    texts = [written[group[0]] for group in groups]
    place_of = {written[i].ids: place for place, group in enumerate(groups) for i in group}
    said = [place_of[one.ids] for one in own if one.ids in place_of]
    pooled = combine(scores, state.vote.method, state.vote.weights, said)
    best = max(range(len(pooled)), key=pooled.__getitem__)
    return WrittenAnswer(texts[best].text, pooled[best], tokens)


def _write(
    bench: Workbench,
    state: AdaptedState,
    member: int,
    questions: Sequence[Question],
    progress: Progress | None,
) -> list[Writing]:
    """What one member writes, behind its demonstrations where it has some."""
    one, own = state.members[member], None
    if one.context is None:
        encoded = encode_questions(
            bench.base,
            without_options(questions),
            bench.prompt,
            bench.scoring.answers,
            bench.scoring.room,
        )
    else:
        asked = ask_in_context(bench, one.context, questions)
        encoded, own = asked.encoded, asked.own
    vectors = None if state.steering is None else steer(state.steering.of([member]), bench.base, 1)
    with active_lora(bench.base.activate_adapter(one.adapter)):
        return write_texts(
            bench.base, encoded, bench.prompt, bench.scoring, vectors, own, bench.watched(progress)
        )


def _compare(
    bench: Workbench,
    state: AdaptedState,
    chosen: Sequence[int],
    questions: Sequence[Question],
    progress: Progress | None = None,
    written: Sequence[Sequence[Writing]] | None = None,
) -> OptionScores:
    """Scores by the chosen members: in one pass by those without a context, in one for each of the others.

    ``written`` has texts by question, which are scored in place of its options.
    """
    together = [i for i in chosen if state.members[i].context is None]
    passes = [together] if together else []
    passes += [[i] for i in chosen if state.members[i].context is not None]
    rows: dict[int, list[tuple[float, ...]]] = {}
    tokens = [0] * len(questions)
    encoded: dict[int, AskedQuestions] = {}
    words: dict[int, list[EncoderWord]] = {}
    for number, some in enumerate(passes):
        told = bench.watched(_share(progress, number, len(passes)))
        steering = state.steering
        added = None if steering is None else steer(steering.of(some), bench.base, len(some))
        first = state.members[some[0]]
        if first.context is None:
            adapters = [state.members[i].adapter for i in some]
            found = compare_options(
                bench.base,
                questions,
                bench.prompt,
                bench.scoring,
                adapters,
                added,
                told,
                written=written,
            )
        else:
            # members often share a context, and tokenizing takes its time
            key = id(first.context)
            if key not in encoded:
                asked = ask_in_context(bench, first.context, questions)
                encoded[key] = asked if written is None else asked.answered(written)
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
            if first.context.encoder_weight > 0 and written is None:
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


def _routes(
    bench: Workbench, state: AdaptedState, questions: Sequence[Question]
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Members, and the places of the questions that they answer together: the one that a router picks, or all."""
    members = state.members
    if state.vote is None or state.vote.method not in ROUTERS:
        return [(range(len(members)), range(len(questions)))]
    if bench.embed is None:
        raise StrategyError("a router needs the prompt encoder, and there is none here")
    if any(member.prompts is None for member in members):
        raise StrategyError(
            f"{state.vote.method} compares prompt batches, and an adapter here was not generated from one"
        )
    picked = route(members, state.vote, bench.embed(questions))
    return [
        ([member], [place for place, own in enumerate(picked) if own == member])
        for member in sorted(set(picked))
    ]
