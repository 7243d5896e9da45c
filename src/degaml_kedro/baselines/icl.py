"""``icl``: in-context learning, the support examples in the prompt (ours, not in the paper).

    p(y | x, D) = p_θ(y | x_1 y_1 ... x_k y_k x),    θ frozen

The order of the demonstrations is a shuffle that the seed decides; a smaller number of them is a beginning of the
same shuffle, and the last one stands nearest to the query. A query comes without its answer, and a demonstration
that reads like it is left out for it: its answer would be the query's.

Scoring many queries behind the same demonstrations costs little more than the queries alone: all texts of a batch
are laid out as one token trie (``llm/trie.py``), which computes the demonstrations once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch

from degaml_kedro.baselines.learned import BaselineError, Progress
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import AnswerSequence
from degaml_kedro.llm.prompting import (
    EncodedQuestion,
    answer_texts,
    encode_texts,
    question_text,
    render_chat,
    render_prompt,
)
from degaml_kedro.llm.scoring import (
    Prediction,
    answer_length,
    answer_log_probabilities,
    predictions_of,
    question_tree,
)
from degaml_kedro.llm.trie import TokenTrie
from degaml_kedro.parameters import (
    InContextSetting,
    PromptParameters,
    ScoringMode,
    ScoringParameters,
)
from degaml_kedro.seeds import derive_seed
from degaml_kedro.tasks.example import Example, Question

logger = logging.getLogger(__name__)

# what a text may gain or lose in tokens where another one stands in front of it
_SEAM = 8
# a batch holds as many tokens as this many of its longest prompts, and this many more: attention in one group grows
# with the square of its length, so the largest batch is not the fastest
_PROMPTS, _TOKENS = 2, 512


def adapt(support: Sequence[Example], setting: InContextSetting, seed: int) -> tuple[Example, ...]:
    """The demonstrations: the first ``shots`` of the support examples in the seed's order.

    Args:
        support: the task's labeled examples.
        setting: how many are shown.
        seed: decides the order; a task and a run have one each.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "icl"))
    order = torch.randperm(len(support), generator=generator).tolist()
    return tuple(support[index] for index in order[: setting.shots])


def fitting(
    base: BaseModel,
    demonstrations: Sequence[Example],
    questions: Sequence[Question],
    prompt: PromptParameters,
    mode: ScoringMode,
    shots: int,
) -> int:
    """How many demonstrations, from the first on, fit in front of every question with any of its answers.

    Args:
        base: for its tokenizer and context length.
        demonstrations: in order.
        questions: all that will be asked.
        prompt: how examples become text.
        mode: what answers are.
        shots: how many are wanted.

    Returns:
        0 to ``shots``; also 0 where a question alone is too long, which scoring refuses by name.

    Raises:
        PromptError: the chat format is asked for and the tokenizer has no chat template.
    """
    wanted = min(shots, len(demonstrations))
    if not questions or wanted == 0:
        return wanted
    alone = _longest(base, questions, (), prompt, mode)
    # the same stands in front of all, so only those that are longest alone can be longest
    asked = [q for q, n in zip(questions, alone, strict=True) if n + _SEAM >= max(alone)]

    def fits(count: int) -> bool:
        lengths = _longest(base, asked, demonstrations[:count], prompt, mode)
        return max(lengths) <= base.context_length

    if fits(wanted):
        return wanted
    most, too_many = 0, wanted
    while too_many - most > 1:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if fits(middle) else (most, middle)
    logger.info(
        "%d of %d demonstrations fit in the %d tokens of %s in front of the longest question",
        most,
        wanted,
        base.context_length,
        base.name,
    )
    return most


def predict(
    base: BaseModel,
    demonstrations: Sequence[Example],
    examples: Sequence[Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answers to examples behind demonstrations, as many of them as fit.

    Scores are those of every long prompt by itself (``llm/scoring.py``).

    Args:
        base: the frozen model.
        demonstrations: what :func:`adapt` chose.
        examples: what to ask; their answers are only compared with in the end.
        prompt: how examples become text.
        scoring: ``letter`` or ``text``, normalization and batch size in tokens.
        progress: called with (examples done, examples in all) after every batch.

    Returns:
        One prediction an example, in order. ``tokens`` is what no other example needed, and a share of the rest.

    Raises:
        BaselineError: the mode is ``generate``.
        PromptError: an example alone is longer than the model's context.
    """
    if scoring.mode == "generate":
        raise BaselineError(
            "icl compares the options' likelihoods and cannot run with scoring.mode 'generate'; "
            "use 'letter' or 'text', or leave icl out of the methods"
        )
    mode = scoring.mode
    questions = [Question.of(example) for example in examples]
    count = fitting(base, demonstrations, questions, prompt, mode, len(demonstrations))
    encoded = _encoded(base, questions, [demonstrations[:count]] * len(questions), prompt, mode)
    scores: list[tuple[float, ...]] = [()] * len(questions)
    tokens = [0] * len(questions)
    done = 0
    for batch in _batches(encoded, scoring.batch_tokens):
        sums, counts = _scored(base, [encoded[i] for i in batch], scoring)
        for i, totals, computed in zip(batch, sums, counts, strict=True):
            texts = answer_texts(questions[i], mode, prompt)
            scores[i] = tuple(
                total / answer_length(text, answer, scoring.normalization)
                for total, text, answer in zip(totals, texts, encoded[i].answers, strict=True)
            )
            tokens[i] = computed
        done += len(batch)
        if progress is not None:
            progress(done, len(questions))
    return predictions_of(examples, scores, tokens, prompt, scoring)


def in_context_prompt(
    base: BaseModel,
    question: Question,
    demonstrations: Sequence[Example],
    prompt: PromptParameters,
    mode: ScoringMode,
) -> str:
    """Demonstrations with their answers, then the question: text that the model's answer continues.

    ``plain`` puts a blank line between them. ``chat`` makes every demonstration a turn of the user and one of the
    assistant, with the question's system message once in front.

    Args:
        base: for its chat template.
        question: what is asked; whoever makes the prompt does not know its answer.
        demonstrations: in order; one that reads like the question is left out.
        prompt: how an example becomes text.
        mode: what an answer is: the option's text, or its label in brackets.

    Raises:
        PromptError: the chat format is asked for and the tokenizer has no chat template.
    """
    asked = question_text(question, prompt.options)
    kept = [shown for shown in demonstrations if question_text(shown, prompt.options) != asked]
    return _text(base, question, kept, prompt, mode)


def in_context_sequences(
    base: BaseModel,
    examples: Sequence[Example],
    demonstrations: Sequence[Sequence[Example]],
    prompt: PromptParameters,
    mode: ScoringMode,
) -> list[AnswerSequence]:
    """Examples to train on, each behind demonstrations of its own; the loss is on the example's answer alone.

    Args:
        base: for its tokenizer.
        examples: what to encode.
        demonstrations: for every example, what stands in front of it; one that reads like it is left out.
        prompt: how an example becomes text.
        mode: what the answer is: the option's text, or its label in brackets.

    Raises:
        PromptError: an example with its demonstrations is longer than the model's context.
    """
    questions = [Question.of(example) for example in examples]
    encoded = _encoded(base, questions, demonstrations, prompt, mode)
    end = base.tokenizer.eos_token_id
    # as in answer_sequences: the end token closes a chat turn and is part of what the model must learn to write
    closing = (end,) if prompt.format == "chat" and end is not None else ()
    answers = [
        question.answers[example.gold] + closing
        for question, example in zip(encoded, examples, strict=True)
    ]
    return [
        AnswerSequence(question.prompt + answer, len(answer))
        for question, answer in zip(encoded, answers, strict=True)
    ]


def _text(
    base: BaseModel,
    question: Question,
    demonstrations: Sequence[Example],
    prompt: PromptParameters,
    mode: ScoringMode,
) -> str:
    answers = [answer_texts(shown, mode, prompt)[shown.gold] for shown in demonstrations]
    solved = list(zip(demonstrations, answers, strict=True))
    if prompt.format == "plain":
        parts = [render_prompt(shown, prompt, base) + answer for shown, answer in solved]
        return "\n\n".join([*parts, render_prompt(question, prompt, base)])
    turns = [{"role": "system", "content": question.system}] if question.system else []
    for shown, answer in solved:
        turns.append({"role": "user", "content": question_text(shown, prompt.options)})
        turns.append({"role": "assistant", "content": answer})
    turns.append({"role": "user", "content": question_text(question, prompt.options)})
    return render_chat(turns, base)


def _encoded(
    base: BaseModel,
    questions: Sequence[Question],
    demonstrations: Sequence[Sequence[Example]],
    prompt: PromptParameters,
    mode: ScoringMode,
) -> list[EncodedQuestion]:
    """Tokens of questions behind their demonstrations, tokenized as the whole texts that they are."""
    texts = [
        in_context_prompt(base, question, shown, prompt, mode)
        for question, shown in zip(questions, demonstrations, strict=True)
    ]
    return encode_texts(base, questions, texts, prompt, mode)


def _longest(
    base: BaseModel,
    questions: Sequence[Question],
    demonstrations: Sequence[Example],
    prompt: PromptParameters,
    mode: ScoringMode,
) -> list[int]:
    """Tokens of every question behind the demonstrations, with the longest of its answers."""
    texts = []
    for question in questions:
        # with all of them, whichever the question leaves out: others do not
        text = _text(base, question, demonstrations, prompt, mode)
        texts.append([text + answer for answer in answer_texts(question, mode, prompt)])
    whole = [text for options in texts for text in options]
    ids = base.tokenizer(whole, add_special_tokens=prompt.format == "plain").input_ids
    lengths = iter(len(row) for row in ids)
    return [max(next(lengths) for _ in options) for options in texts]


def _batches(questions: Sequence[EncodedQuestion], most: int) -> Iterator[list[int]]:
    """Indices in batches of at most so many tokens, those together whose prompts begin alike."""
    longest = max((len(question.prompt) for question in questions), default=0)
    limit = min(most, _PROMPTS * longest + _TOKENS)
    batch: list[int] = []
    trie = TokenTrie()
    for index in sorted(range(len(questions)), key=lambda i: questions[i].prompt):
        tree = question_tree(questions[index])
        if batch and len(trie) + trie.missing(tree) > limit:
            yield batch
            batch, trie = [], TokenTrie()
        trie.add(tree)
        batch.append(index)
    if batch:
        yield batch


def _scored(
    base: BaseModel, questions: Sequence[EncodedQuestion], scoring: ScoringParameters
) -> tuple[list[list[float]], list[int]]:
    """Every option's log p(answer | prompt), and the tokens computed for each question."""
    trie = TokenTrie()
    paths = [trie.add(question_tree(question)) for question in questions]
    # answers are read off from the prompt's last token on
    ends = [EncodedQuestion(question.prompt[-1:], question.answers) for question in questions]
    rows = [
        path[len(question.prompt) - 1 :] for path, question in zip(paths, questions, strict=True)
    ]
    starts = list(accumulate((len(part) for part in rows[:-1]), initial=0))
    with torch.inference_mode():
        hidden = base.hidden_states(trie.pack(base.device, base.dtype))
        sums = answer_log_probabilities(
            hidden[[row for part in rows for row in part]],
            base.head,
            starts,
            ends,
            few_columns=scoring.normalization == "none",
        )
    users = Counter(row for path in paths for row in set(path))
    own = [sum(users[row] == 1 for row in set(path)) for path in paths]
    share, left = divmod(len(trie) - sum(own), len(questions))
    return sums, [count + share + (place < left) for place, count in enumerate(own)]
