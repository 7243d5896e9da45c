"""Scoring answers: which option a model prefers, in three modes.

``letter`` and ``text`` compare log p(answer | prompt) over the options, the answer being ``[A]`` or the option's
text. A prompt is computed once for all its options: they hang on it as branches of one token tree. Log-probabilities
are only computed in rows that predict an answer token, and where every option is one token that ends there, only
those few columns of the vocabulary are computed. ``generate`` decodes greedily and reads the option off the text.

Shapes: T tokens in a pack, R rows that predict an answer token, V vocabulary, C hidden width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter, PeftModuleAdapter
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.lora import ActiveLora, active_lora
from degaml_kedro.llm.packing import TokenTree, pack_trees
from degaml_kedro.llm.peft_module import through_peft
from degaml_kedro.llm.prompting import EncodedQuestion, answer_texts, encode_questions
from degaml_kedro.parameters import PromptParameters, ScoringParameters
from degaml_kedro.tasks.example import Example, Question

Progress = Callable[[int, int], None]
# changes final hidden states [T, C] of questions, given each one's first row, before answers are read off
Steer = Callable[[Tensor, Sequence[int], Sequence[EncodedQuestion]], Tensor]

# full-vocabulary rows held at once: 256 rows of 150,000 float32 logits are 150 MB
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Prediction:
    """What a model answered to one example.

    Attributes:
        option_scores: log-probability of each option's answer, normalised as asked, up to a constant that the
            options of the example share; in ``generate`` mode 0 for the chosen option, -inf for the others.
        predicted: index of the best option; None when the generated text names none.
        gold: index of the right one.
        text: the predicted answer, or what was generated.
        tokens: tokens the model computed for this example.
    """

    option_scores: tuple[float, ...]
    predicted: int | None
    gold: int
    text: str
    tokens: int


def score_examples(
    base: BaseModel,
    examples: Sequence[Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    adapter: Adapter | None = None,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Score examples under the base model or under an adapter.

    Args:
        base: the frozen model.
        examples: what to score.
        prompt: how an example becomes text.
        scoring: mode, normalisation and batch size in tokens.
        adapter: LoRA weights to apply; None scores the base model itself.
        progress: called with (examples done, examples in all) after every batch.

    Returns:
        One prediction an example, in order.

    Raises:
        PromptError: an example is longer than the model's context.
        ModelError: the adapter does not fit the model.
    """
    if not examples:
        return []
    if isinstance(adapter, PeftModuleAdapter):
        base, adapter = through_peft(base, adapter), None
    if scoring.mode == "generate":
        with torch.inference_mode(), active_lora(base.activate_adapter(adapter)):
            return _generate(base, examples, prompt, scoring, progress)
    compared = compare_options(base, examples, prompt, scoring, (adapter,), None, progress)
    return predictions_of(examples, compared.scores[0], compared.tokens, prompt, scoring)


def predictions_of(
    examples: Sequence[Example],
    scores: Sequence[Sequence[float]],
    tokens: Sequence[int],
    prompt: PromptParameters,
    scoring: ScoringParameters,
) -> list[Prediction]:
    """Predictions from the options' scores: the best one is the answer.

    Args:
        examples: what was asked.
        scores: of every example's options.
        tokens: computed for each.
        prompt: how an example became text.
        scoring: the mode.
    """
    found = []
    for example, row, count in zip(examples, scores, tokens, strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        text = answer_texts(example, scoring.mode, prompt)[best].strip()
        found.append(Prediction(tuple(row), best, example.gold, text, count))
    return found


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


def compare_options(
    base: BaseModel,
    questions: Sequence[Example] | Sequence[Question],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    adapters: Sequence[Adapter | None] = (None,),
    steer: Steer | None = None,
    progress: Progress | None = None,
    active: ActiveLora | None = None,
) -> OptionScores:
    """Score the options of questions under one adapter or under several in one pass.

    Args:
        base: the frozen model.
        questions: what to ask; answers are not read.
        prompt: how a question becomes text.
        scoring: ``letter`` or ``text``, normalisation and batch size in tokens.
        adapters: of one shape; None alone is the base model itself.
        steer: changes final hidden states before answers are read off.
        progress: called with (questions done, questions in all) after every batch.
        active: what the model computes with, ready made, in place of an adapter.

    Raises:
        PromptError: a question is longer than the model's context.
        ModelError: an adapter does not fit the model, or the adapters differ in shape.
    """
    first = adapters[0]
    if isinstance(first, PeftModuleAdapter) and len(adapters) == 1 and steer is None:
        base, adapters = through_peft(base, first), (None,)
    encoded = encode_questions(base, questions, prompt, scoring.mode)
    trees = [question_tree(question) for question in encoded]
    count = len(adapters)
    scores: list[list[tuple[float, ...]]] = [[()] * len(questions) for _ in adapters]
    done = 0
    with (
        torch.inference_mode(),
        active_lora(base.activate_adapters(adapters) if active is None else active),
    ):
        for batch in batches_by_length(
            [len(tree) for tree in trees], scoring.batch_tokens // count
        ):
            # every adapter has its own copy of the batch: adapter by adapter, question by question
            asked = [encoded[i] for i in batch] * count
            pack = pack_trees([trees[i] for i in batch] * count, base.device, base.dtype)
            hidden = base.hidden_states(pack)
            if steer is not None:
                hidden = steer(hidden, pack.starts, asked)
            sums = answer_log_probabilities(
                hidden,
                base,
                pack.starts,
                asked,
                few_columns=scoring.normalization == "none",
            )
            for place, totals in enumerate(sums):
                adapter, i = place // len(batch), batch[place % len(batch)]
                scores[adapter][i] = normalized_scores(
                    totals, questions[i], encoded[i], prompt, scoring
                )
            done += len(batch)
            if progress is not None:
                progress(done, len(questions))
    return OptionScores(scores, [len(tree) * count for tree in trees])


def normalized_scores(
    totals: Sequence[float],
    question: Example | Question,
    encoded: EncodedQuestion,
    prompt: PromptParameters,
    scoring: ScoringParameters,
) -> tuple[float, ...]:
    """A question's summed log-probabilities by option, each divided by its answer's length.

    Args:
        totals: of the options' answers.
        question: whose they are.
        encoded: the same in tokens.
        prompt: how answers become text.
        scoring: what is divided by.
    """
    texts = answer_texts(question, scoring.mode, prompt)
    return tuple(
        total / answer_length(text, answer, scoring.normalization)
        for total, text, answer in zip(totals, texts, encoded.answers, strict=True)
    )


def answer_length(text: str, answer: tuple[int, ...], normalization: str) -> float:
    """What an answer's log-probability is divided by: characters, tokens, or nothing."""
    if normalization == "characters":
        # the option's own length, without the space that joins it to the prompt
        return max(1, len(text.strip()))
    return len(answer) if normalization == "tokens" else 1.0


def _shared(answers: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all answers have in common."""
    count = 0
    for column in zip(*answers, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


def question_tree(example: EncodedQuestion) -> TokenTree:
    """The prompt and the answers' common tokens, then each answer's own but the last, which predicts nothing."""
    shared = _shared(example.answers)
    if all(len(answer) == shared for answer in example.answers):
        shared -= 1  # one answer, or equal ones: the last token is still only predicted
    branches = tuple(answer[shared:-1] for answer in example.answers)
    return TokenTree(example.prompt + example.answers[0][:shared], branches)


def batches_by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that the first batch shows the peak memory."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    total = 0
    for index in order:
        if batch and total + lengths[index] > tokens:
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += lengths[index]
    if batch:
        yield batch


def answer_log_probabilities(
    hidden: Tensor,
    base: BaseModel,
    starts: Sequence[int],
    questions: Sequence[EncodedQuestion],
    few_columns: bool,
) -> list[list[float]]:
    """Summed log p(answer | prompt) of every option of every question.

    Args:
        hidden: [T, C].
        base: for its head.
        starts: row of each question's first token; its token tree's rows follow (:func:`question_tree`).
        questions: in that order.
        few_columns: whether a constant that a question's options share may be left out.
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
    """Log softmax(head h)[target] for (row, target) pairs; a row that several pairs share is computed once.

    Args:
        hidden: [T, C].
        base: for its head.
        rows: indices into T.
        targets: indices into V.
    """
    unique = sorted(set(rows))
    place = {row: i for i, row in enumerate(unique)}
    wanted: list[list[int]] = [[] for _ in unique]
    for pair, row in enumerate(rows):
        wanted[place[row]].append(pair)
    values = [0.0] * len(rows)
    for first in range(0, len(unique), _ROWS_AT_ONCE):
        chunk = unique[first : first + _ROWS_AT_ONCE]
        logits = base.logits(hidden[chunk])
        normalizers = logits.logsumexp(dim=-1)
        pairs = [pair for i in range(len(chunk)) for pair in wanted[first + i]]
        local = [place[rows[pair]] - first for pair in pairs]
        wanted_tokens = [targets[pair] for pair in pairs]
        if base.readout is None:
            # the wanted logits again in float32: bfloat16 rounds a logit of 16 to 0.06, and answers are closer than
            # that. in the normaliser such errors average out
            picked = torch.linalg.vecdot(
                hidden[chunk].float()[local], base.head[wanted_tokens].float()
            )
        else:
            picked = logits[local, wanted_tokens]
        picked = picked - normalizers[local]
        for pair, value in zip(pairs, picked.tolist(), strict=True):
            values[pair] = value
    return values


def _generate(
    base: BaseModel,
    examples: Sequence[Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    progress: Progress | None,
) -> list[Prediction]:
    encoded = encode_questions(base, examples, prompt, "letter")
    pad = base.tokenizer.pad_token_id
    predictions: list[Prediction | None] = [None] * len(examples)
    done = 0
    lengths = [len(example.prompt) + scoring.max_new_tokens for example in encoded]
    for batch in batches_by_length(lengths, scoring.batch_tokens):
        width = max(len(encoded[i].prompt) for i in batch)
        ids = torch.full((len(batch), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        # left padding, whatever the tokenizer's own habit: new tokens must follow the prompt
        for row, i in enumerate(batch):
            ids[row, width - len(encoded[i].prompt) :] = torch.tensor(encoded[i].prompt)
            mask[row, width - len(encoded[i].prompt) :] = 1
        output = base.model.generate(
            input_ids=ids.to(base.device),
            attention_mask=mask.to(base.device),
            max_new_tokens=scoring.max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
        )
        texts = base.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        for i, text in zip(batch, texts, strict=True):
            chosen = extract_option(text, examples[i].labels)
            scores = tuple(
                0.0 if option == chosen else -math.inf for option in range(len(examples[i].labels))
            )
            predictions[i] = Prediction(
                scores, chosen, examples[i].gold, text.strip(), output.shape[1]
            )
        done += len(batch)
        if progress is not None:
            progress(done, len(examples))
    return [prediction for prediction in predictions if prediction is not None]


def extract_option(text: str, labels: Sequence[str]) -> int | None:
    """The first option named in a text: in brackets if any is, else standing alone.

    Args:
        text: what the model wrote.
        labels: the options' labels, ``A`` or ``True``.

    Returns:
        The option's index, or None.

    Example:
        >>> extract_option("The answer is [B].", ("A", "B"))
        1
        >>> extract_option("B, because A is wrong", ("A", "B"))
        1
        >>> extract_option("Apples", ("A", "B")) is None
        True
    """
    names = "|".join(re.escape(label) for label in labels)
    for pattern in (rf"\[\s*({names})\s*\]", rf"(?<![\w'])({names})(?![\w'])"):
        match = re.search(pattern, text)
        if match:
            return list(labels).index(match.group(1))
    return None
