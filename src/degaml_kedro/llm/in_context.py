"""In-context learning: solved examples in front of the question, as one text that the model continues.

    p(y | x, D) = p_θ(y | x_1 y_1 ... x_k y_k x),    θ frozen, under whatever adapter is active

The last demonstration stands nearest to the question. A question comes without its answer, and a demonstration that
reads like it is left out for it: its answer would be the question's.

Demonstrations that stand in front of many questions are computed once: their keys and values are a
:class:`~degaml_kedro.llm.packing.Prefix`, which every question continues from where its own tokens differ. Texts are
tokenized whole, so that scores are those of every whole prompt by itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import torch

from degaml_kedro.common.progress import Progress
from degaml_kedro.config.schema import AnswerForm, PromptParameters, ScoringParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import AnswerSequence, answer_sequences
from degaml_kedro.llm.generation import Steer
from degaml_kedro.llm.packing import Prefix
from degaml_kedro.llm.prompting import (
    answer_texts,
    check_options,
    common_start,
    encode_questions,
    question_text,
    render_chat,
    render_prompt,
    system_turn,
    token_ids,
)
from degaml_kedro.llm.scoring import AskedQuestions, OptionScores, compare_encoded
from degaml_kedro.tasks.example import Example, Question

# what a text may gain or lose in tokens where another one stands in front of it
_SEAM = 8


def shuffled(examples: Sequence[Example], seed: int) -> tuple[Example, ...]:
    """Examples in an order that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator).tolist()
    return tuple(examples[index] for index in order)


def fitting(
    base: BaseModel,
    demonstrations: Sequence[Example],
    questions: Sequence[Question | Example],
    prompt: PromptParameters,
    mode: AnswerForm,
    shots: int,
    room: int = 0,
) -> int:
    """How many demonstrations, from the first on, fit in front of every question with any of its answers.

    ``room`` tokens are kept free behind every question. It is 0, too, where a question alone is too long: scoring
    refuses it by name.

    Raises:
        PromptError: the chat format is asked for and the tokenizer has no chat template.
    """
    wanted = min(shots, len(demonstrations))
    if not questions or wanted == 0:
        return wanted
    alone = _longest(base, questions, (), prompt, mode, room)
    # the same stands in front of all, so only those that are longest alone can be longest
    asked = [q for q, n in zip(questions, alone, strict=True) if n + _SEAM >= max(alone)]

    def fits(count: int) -> bool:
        lengths = _longest(base, asked, demonstrations[:count], prompt, mode, room)
        return max(lengths) <= base.context_length

    if fits(wanted):
        return wanted
    return bisect_left(range(1, wanted), True, key=lambda count: not fits(count))


def in_context_prompt(
    base: BaseModel,
    question: Question | Example,
    demonstrations: Sequence[Example],
    prompt: PromptParameters,
    mode: AnswerForm,
) -> str:
    """Demonstrations with their answers, then the question: text that the model's answer continues.

    ``plain`` puts a blank line between them. ``chat`` makes every demonstration a turn of the user and one of the
    assistant, with the question's system message once in front. One that reads like the question is left out.
    """
    asked = question_text(question, prompt.options)
    kept = [shown for shown in demonstrations if question_text(shown, prompt.options) != asked]
    return _text(base, question, kept, prompt, mode)


def in_context_sequences(
    base: BaseModel,
    examples: Sequence[Example],
    demonstrations: Sequence[Sequence[Example]],
    prompt: PromptParameters,
    mode: AnswerForm,
) -> list[AnswerSequence]:
    """Examples to train on, each behind demonstrations of its own; the loss is on the example's answer alone.

    Raises:
        PromptError: an example with its demonstrations is longer than the model's context.
    """
    texts = _prompts(base, examples, demonstrations, prompt, mode)
    return answer_sequences(base, examples, prompt, mode, texts)


class PrefixMemory:
    """The prefix that was read last, for whoever asks under the same adapter again; one at most.

    A copy of it is empty: it goes with an adapter that may be changed, and a file has no use for it.
    """

    def __init__(self) -> None:
        self._known: tuple[BaseModel, Prefix] | None = None

    def __reduce__(self) -> tuple[type[PrefixMemory], tuple[()]]:
        """How it is copied, deeply too."""
        return PrefixMemory, ()

    def read(self, base: BaseModel, head: tuple[int, ...]) -> tuple[Prefix, int]:
        """A prefix that begins with the head, but for its last few tokens, and the tokens computed for it."""
        if self._known is not None:
            owner, prefix = self._known
            # where the head meets the question, its tokens may depend on the question
            if owner is base and common_start(prefix.tokens, head) >= len(head) - _SEAM:
                return prefix, 0
        prefix = base.read_prefix(head)
        self._known = base, prefix
        return prefix, len(head)


def encode_in_context(
    base: BaseModel,
    questions: Sequence[Question],
    demonstrations: Sequence[Sequence[Example]],
    prompt: PromptParameters,
    mode: AnswerForm,
    shared: bool,
    room: int = 0,
) -> AskedQuestions:
    """Questions behind their demonstrations, tokenized as the whole texts that they are.

    ``shared``: all questions have the same demonstrations, or as many of them, from the first on, as fit. ``room``
    tokens are kept free behind every question.

    Raises:
        PromptError: a prompt with its answer is longer than the model's context.
    """
    whole_texts = _prompts(base, questions, demonstrations, prompt, mode)
    encoded = encode_questions(base, questions, prompt, mode, room, whole_texts)
    if not questions:
        return AskedQuestions(questions, encoded, [])
    texts = [render_prompt(question, prompt, base) for question in questions]
    alone = token_ids(base, texts, prompt)
    own = [_own_start(question.prompt, ids) for question, ids in zip(encoded, alone, strict=True)]
    head: tuple[int, ...] = ()
    if shared:
        # whichever that question leaves out: others do not
        most = max(range(len(questions)), key=lambda place: len(demonstrations[place]))
        text = _text(base, questions[most], demonstrations[most], prompt, mode)
        (whole,) = token_ids(base, [text], prompt)
        head = tuple(whole[: _own_start(whole, alone[most])])
    return AskedQuestions(questions, encoded, own, head)


def compare_in_context(
    base: BaseModel,
    asked: AskedQuestions,
    prompt: PromptParameters,
    scoring: ScoringParameters,
    memory: PrefixMemory,
    steer: Steer | None = None,
    progress: Progress | None = None,
) -> OptionScores:
    """Score the options of questions behind demonstrations, under the adapter that is active in this thread.

    ``memory`` is this adapter's: the demonstrations that it read are not computed again. A question's tokens are its
    own, and a share of the demonstrations where they were computed now.
    """
    if not asked.questions:
        return OptionScores([[]], [])
    if asked.written is None:
        check_options(asked.questions)
    prefix, fresh = memory.read(base, asked.head) if asked.head else (None, 0)
    found = compare_encoded(base, asked, prompt, scoring, 1, steer, progress, prefix)
    share, left = divmod(fresh, len(found.tokens))
    tokens = [count + share + (place < left) for place, count in enumerate(found.tokens)]
    return replace(found, tokens=tokens)


def _text(
    base: BaseModel,
    question: Question | Example,
    demonstrations: Sequence[Example],
    prompt: PromptParameters,
    mode: AnswerForm,
) -> str:
    answers = [answer_texts(shown, mode, prompt)[shown.gold] for shown in demonstrations]
    solved = list(zip(demonstrations, answers, strict=True))
    if prompt.format == "plain":
        parts = [render_prompt(shown, prompt, base) + answer for shown, answer in solved]
        return "\n\n".join([*parts, render_prompt(question, prompt, base)])
    turns = system_turn(question)
    for shown, answer in solved:
        turns.append({"role": "user", "content": question_text(shown, prompt.options)})
        turns.append({"role": "assistant", "content": answer})
    turns.append({"role": "user", "content": question_text(question, prompt.options)})
    return render_chat(turns, base)


def _prompts(
    base: BaseModel,
    questions: Sequence[Question | Example],
    demonstrations: Sequence[Sequence[Example]],
    prompt: PromptParameters,
    mode: AnswerForm,
) -> list[str]:
    return [
        in_context_prompt(base, question, shown, prompt, mode)
        for question, shown in zip(questions, demonstrations, strict=True)
    ]


def _longest(
    base: BaseModel,
    questions: Sequence[Question | Example],
    demonstrations: Sequence[Example],
    prompt: PromptParameters,
    mode: AnswerForm,
    room: int,
) -> list[int]:
    """Tokens of every question behind the demonstrations, with the longest of its answers or the room kept for one."""
    texts = []
    for question in questions:
        # with all of them, whichever the question leaves out: others do not
        text = _text(base, question, demonstrations, prompt, mode)
        texts.append([text + answer for answer in answer_texts(question, mode, prompt)] or [text])
    whole = [text for options in texts for text in options]
    lengths = iter(len(row) for row in token_ids(base, whole, prompt))
    return [max(next(lengths) for _ in options) + room for options in texts]


def _own_start(whole: Sequence[int], alone: Sequence[int]) -> int:
    """Where a question's own tokens begin in its prompt: what ends as the question does alone; at least one token."""
    return min(len(whole) - common_start(whole[::-1], alone[::-1]), len(whole) - 1)
