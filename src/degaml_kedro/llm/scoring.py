"""Scoring answers: which option a model prefers, in three modes.

``letter`` and ``text`` compare log p(answer | prompt) over the options, the answer being ``[A]`` or the option's
text. A prompt is computed once for all its options: they hang on it as branches of one token tree. Log-probabilities
are only computed in rows that predict an answer token, and where every option is one token that ends there, only
those few columns of the vocabulary are computed. ``generate`` decodes greedily and reads the answer off the text
(:mod:`~degaml_kedro.llm.extraction`); a likelihood is then that of the generated text.

Shapes: T tokens in a pack, R rows that predict an answer token, V vocabulary, C hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter, PeftModuleAdapter
from degaml_kedro.common.progress import Progress
from degaml_kedro.config.schema import PromptParameters, ScoringParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.extraction import extract_answer, right_answer
from degaml_kedro.llm.generation import Steer, Writing, write_texts
from degaml_kedro.llm.lora import ActiveLora, active_lora
from degaml_kedro.llm.packing import Prefix, TokenTree, batches_by_length, pack_trees
from degaml_kedro.llm.peft_module import through_peft
from degaml_kedro.llm.prompting import (
    EncodedQuestion,
    answer_texts,
    check_options,
    common_start,
    encode_questions,
    without_options,
)
from degaml_kedro.tasks.example import Example, Question

# full-vocabulary rows held at once: 256 rows of 150,000 float32 logits are 150 MB
_ROWS_AT_ONCE = 256
# pairs of a computed token and one of the prefix that attention holds at once, by head
_PAIRS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Prediction:
    """What a model answered to one example.

    Attributes:
        option_scores: log-probability of each option's answer, normalised as asked, up to a constant that the
            options of the example share; in ``generate`` mode that of the text for the option that it gives, -inf for
            the others. Where answers are texts, the options are the right answer and any other.
        predicted: index of the best option; None when the generated text gives no answer.
        text: the predicted answer, or what was generated.
        log_probability: of the generated text, normalised as asked; None where options were compared.
    """

    option_scores: tuple[float, ...]
    predicted: int | None
    gold: int
    text: str
    tokens: int
    log_probability: float | None = None


@dataclass(frozen=True)
class WrittenAnswer:
    """An answer that was written, with its log-probability, normalised as asked."""

    text: str
    log_probability: float
    tokens: int


def score_examples(
    base: BaseModel,
    examples: Sequence[Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    adapter: Adapter | None = None,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Score examples under the base model or under an adapter; one prediction an example, in order.

    Raises:
        PromptError: an example is longer than the model's context.
        ModelError: the adapter does not fit the model.
    """
    if not examples:
        return []
    if isinstance(adapter, PeftModuleAdapter):
        base, adapter = through_peft(base, adapter), None
    if scoring.mode == "generate":
        with active_lora(base.activate_adapter(adapter)):
            written = write_answers(base, examples, prompt, scoring, progress)
        every = [[one] for one in written]
        found = compare_options(base, examples, prompt, scoring, (adapter,), written=every)
        return graded(examples, written_answers(written, found), scoring)
    compared = compare_options(base, examples, prompt, scoring, (adapter,), None, progress)
    return predictions_of(examples, compared.scores[0], compared.tokens, prompt, scoring)


def write_answers(
    base: BaseModel,
    questions: Sequence[Question | Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    progress: Progress | None = None,
) -> list[Writing]:
    """What the model writes as answers to questions, under the adapter that is active in this thread.

    Raises:
        PromptError: a question is longer than the model's context.
    """
    asked = without_options(questions)
    encoded = encode_questions(base, asked, prompt, scoring.answers, scoring.room)
    return write_texts(base, encoded, prompt, scoring, progress=progress)


def predictions_of(
    examples: Sequence[Example],
    scores: Sequence[Sequence[float]],
    tokens: Sequence[int],
    prompt: PromptParameters,
    scoring: ScoringParameters,
) -> list[Prediction]:
    """Predictions from the options' scores: the best one is the answer."""
    found = []
    for example, row, count in zip(examples, scores, tokens, strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        text = answer_texts(example, scoring.answers, prompt)[best].strip()
        found.append(Prediction(tuple(row), best, example.gold, text, count))
    return found


def graded(
    examples: Sequence[Example], answers: Sequence[WrittenAnswer], scoring: ScoringParameters
) -> list[Prediction]:
    """Predictions from what was written: what of it is the answer, and whether that is right.

    Raises:
        ExtractionError: a right answer is none of the kind that is compared.
    """
    found = []
    for example, answer in zip(examples, answers, strict=True):
        right = right_answer(example, scoring.extraction)
        given = extract_answer(answer.text, example, scoring.extraction)
        if isinstance(right, int):
            options, gold, predicted = len(example.labels), right, given
        else:
            options, gold = 2, 0
            predicted = None if given is None else int(given != right)
        scores = tuple(
            answer.log_probability if option == predicted else -math.inf
            for option in range(options)
        )
        assert predicted is None or isinstance(predicted, int)
        found.append(
            Prediction(scores, predicted, gold, answer.text, answer.tokens, answer.log_probability)
        )
    return found


def written_answers(written: Sequence[Writing], compared: OptionScores) -> list[WrittenAnswer]:
    """What one model wrote, with its log-probability under that model."""
    return [
        WrittenAnswer(one.text, row[0], one.tokens + tokens)
        for one, row, tokens in zip(written, compared.scores[0], compared.tokens, strict=True)
    ]


@dataclass(frozen=True)
class OptionScores:
    """How several adapters score the options of questions.

    Attributes:
        scores: by adapter, then by question, of each option: its answer's log-probability, normalised as asked, up
            to a constant that the options of the question share.
        tokens: computed for each question, by all adapters together.
    """

    scores: list[list[tuple[float, ...]]]
    tokens: list[int]


@dataclass(frozen=True)
class AskedQuestions:
    """Questions in tokens, each behind its demonstrations where it has some.

    Attributes:
        encoded: the questions; a prompt begins with the demonstrations.
        own: where each question's own tokens begin in its prompt.
        head: tokens of the demonstrations that all questions share, but for those left out; empty where there are none.
        written: by question, texts that are scored in place of options; None for the options.
    """

    questions: Sequence[Question | Example]
    encoded: list[EncodedQuestion]
    own: list[int]
    head: tuple[int, ...] = ()
    written: Sequence[Sequence[Writing]] | None = None

    def answered(self, written: Sequence[Sequence[Writing]]) -> AskedQuestions:
        """The same with texts in place of options."""
        encoded = [
            replace(one, answers=tuple(text.ids for text in some))
            for one, some in zip(self.encoded, written, strict=True)
        ]
        return replace(self, encoded=encoded, written=written)


def compare_options(
    base: BaseModel,
    questions: Sequence[Question | Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    adapters: Sequence[Adapter | None] = (None,),
    steer: Steer | None = None,
    progress: Progress | None = None,
    active: ActiveLora | None = None,
    written: Sequence[Sequence[Writing]] | None = None,
) -> OptionScores:
    """Score the options of questions under one adapter or under several in one pass.

    Args:
        adapters: of one shape; None alone is the base model itself.
        steer: changes final hidden states before answers are read off.
        active: what the model computes with, ready made, in place of an adapter.
        written: by question, texts that are scored in place of its options; their scores are log-probabilities as
            they are.

    Raises:
        PromptError: a question is longer than the model's context, or has no options and no texts.
        ModelError: an adapter does not fit the model, or the adapters differ in shape.
    """
    first = adapters[0]
    if isinstance(first, PeftModuleAdapter) and len(adapters) == 1 and steer is None:
        base, adapters = through_peft(base, first), (None,)
    if written is None:
        check_options(questions)
        encoded = encode_questions(base, questions, prompt, scoring.answers)
        asked = AskedQuestions(questions, encoded, [0] * len(encoded))
    else:
        encoded = encode_questions(base, without_options(questions), prompt, scoring.answers)
        asked = AskedQuestions(questions, encoded, [0] * len(encoded)).answered(written)
    with active_lora(base.activate_adapters(adapters) if active is None else active):
        return compare_encoded(base, asked, prompt, scoring, len(adapters), steer, progress)


def compare_encoded(
    base: BaseModel,
    asked: AskedQuestions,
    prompt: PromptParameters,
    scoring: ScoringParameters,
    adapters: int = 1,
    steer: Steer | None = None,
    progress: Progress | None = None,
    prefix: Prefix | None = None,
) -> OptionScores:
    """Score the options of questions in tokens, under the ``adapters`` that are active in this thread.

    Prompts may begin as a prefix does that was computed before.
    """
    encoded, own, written = asked.encoded, asked.own, asked.written
    if written is None:
        texts = [answer_texts(one, scoring.answers, prompt) for one in asked.questions]
    else:
        texts = [tuple(one.text for one in some) for some in written]
    few_columns = scoring.normalization == "none" and written is None
    limit = scoring.batch_tokens // adapters
    known: tuple[int, ...] = ()
    if prefix is not None:
        known = prefix.tokens
        limit = min(limit, max(1, _PAIRS_AT_ONCE // len(known)))
    behind = [
        min(start, common_start(question.prompt, known))
        for question, start in zip(encoded, own, strict=True)
    ]
    trees = [
        question_tree(replace(question, prompt=question.prompt[start:]))
        for question, start in zip(encoded, behind, strict=True)
    ]
    scores: list[list[tuple[float, ...]]] = [[()] * len(trees) for _ in range(adapters)]
    done = 0
    for batch in batches_by_length([len(tree) for tree in trees], limit):
        # every adapter has its own copy of the batch: adapter by adapter, question by question
        places = batch * adapters
        pack = pack_trees(
            [trees[i] for i in places], base.device, base.dtype, prefix, [behind[i] for i in places]
        )
        tails = [replace(encoded[i], prompt=encoded[i].prompt[own[i] :]) for i in places]
        rows = [
            range(start + own[i] - behind[i], start + len(trees[i]))
            for i, start in zip(places, pack.starts, strict=True)
        ]
        starts = list(accumulate((len(part) for part in rows[:-1]), initial=0))
        with torch.inference_mode():
            hidden = base.hidden_states(pack)[[row for part in rows for row in part]]
            if steer is not None:
                hidden = added(hidden, starts, steer(hidden, starts, tails))
            sums = answer_log_probabilities(hidden, base, starts, tails, few_columns)
        for place, totals in enumerate(sums):
            adapter, i = place // len(batch), places[place]
            scores[adapter][i] = tuple(
                total / answer_length(text, answer, scoring.normalization)
                for total, text, answer in zip(totals, texts[i], encoded[i].answers, strict=True)
            )
        done += len(batch)
        if progress is not None:
            progress(done, len(trees))
    return OptionScores(scores, [len(tree) * adapters for tree in trees])


def added(hidden: Tensor, starts: Sequence[int], vectors: Tensor) -> Tensor:
    """Hidden states [T, C] with a vector [Q, C] added to all rows of its question, which begin at ``starts``.

    In float32: half precision would round the vector away against large states.
    """
    sizes = torch.tensor([*starts, len(hidden)]).diff()
    return hidden.float() + vectors.repeat_interleave(sizes.to(vectors.device), dim=0)


def answer_length(text: str, answer: tuple[int, ...], normalization: str) -> float:
    """What an answer's log-probability is divided by: characters, tokens, or nothing."""
    if normalization == "characters":
        # the option's own length, without the space that joins it to the prompt
        return max(1, len(text.strip()))
    return len(answer) if normalization == "tokens" else 1.0


def question_tree(example: EncodedQuestion) -> TokenTree:
    """The prompt and the answers' common tokens, then each answer's own but the last, which predicts nothing."""
    shared = min(common_start(example.answers[0], answer) for answer in example.answers)
    if all(len(answer) == shared for answer in example.answers):
        shared -= 1  # one answer, or equal ones: the last token is still only predicted
    branches = tuple(answer[shared:-1] for answer in example.answers)
    return TokenTree(example.prompt + example.answers[0][:shared], branches)


def answer_log_probabilities(
    hidden: Tensor,
    base: BaseModel,
    starts: Sequence[int],
    questions: Sequence[EncodedQuestion],
    few_columns: bool,
) -> list[list[float]]:
    """Summed log p(answer | prompt) of every option of every question, from hidden states [T, C].

    A question's token tree (:func:`question_tree`) has the rows from its start on. With ``few_columns`` a constant that
    its options share may be left out.
    """
    rows: list[int] = []  # row of the pack that predicts
    targets: list[int] = []  # the token it should predict
    owners: list[tuple[int, int]] = []  # (example, option) that the log-probability belongs to
    sums = [[0.0] * len(question.answers) for question in questions]
    for index, (question, start) in enumerate(zip(questions, starts, strict=True)):
        prefix = len(question_tree(question).prefix)
        shared = prefix - len(question.prompt)
        last = start + prefix - 1
        tails = [answer[shared:] for answer in question.answers]
        if few_columns and base.readout is None and all(len(tail) == 1 for tail in tails):
            columns = base.head[[tail[0] for tail in tails]]
            sums[index] = (columns.float() @ hidden[last].float()).tolist()
            continue
        branch = start + prefix
        for option, (answer, tail) in enumerate(zip(question.answers, tails, strict=True)):
            for position in range(shared):
                rows.append(start + len(question.prompt) - 1 + position)
                targets.append(answer[position])
                owners.append((index, option))
            for position, token in enumerate(tail):
                rows.append(last if position == 0 else branch + position - 1)
                targets.append(token)
                owners.append((index, option))
            branch += max(0, len(tail) - 1)
    if rows:
        values = _token_log_probabilities(hidden, base, rows, targets)
        for (index, option), value in zip(owners, values, strict=True):
            sums[index][option] += value
    return sums


def _token_log_probabilities(
    hidden: Tensor, base: BaseModel, rows: Sequence[int], targets: Sequence[int]
) -> list[float]:
    """Log softmax(head h)[target] for (row of T, target of V) pairs; a row that several share is computed once."""
    unique, owner = torch.unique(torch.tensor(rows), return_inverse=True)
    wanted = torch.tensor(targets)
    # while another thread loads a model, the process's default may be that model's type
    values = torch.empty(len(rows), dtype=torch.float32)
    for first in range(0, len(unique), _ROWS_AT_ONCE):
        chunk = hidden[unique[first : first + _ROWS_AT_ONCE]]
        logits = base.logits(chunk)
        (pairs,) = torch.where((owner >= first) & (owner < first + _ROWS_AT_ONCE))
        local, tokens = owner[pairs] - first, wanted[pairs]
        if base.readout is None:
            # the wanted logits again in float32: bfloat16 rounds a logit of 16 to 0.06, and answers are closer than
            # that. in the normaliser such errors average out
            picked = torch.linalg.vecdot(chunk.float()[local], base.head[tokens].float())
        else:
            picked = logits[local, tokens]
        values[pairs] = (picked - logits.logsumexp(dim=-1)[local]).cpu()
    found: list[float] = values.tolist()
    return found
