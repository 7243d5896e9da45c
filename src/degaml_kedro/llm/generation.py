"""Answers that are written: greedy continuations of prompts, in batches.

Shapes: R rows of a batch, C hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import logsumexp
from torch import Tensor

from degaml_kedro.common.progress import Progress
from degaml_kedro.config.schema import PromptParameters, ScoringParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.extraction import extract_answer
from degaml_kedro.llm.general import row_batches, steered
from degaml_kedro.llm.packing import TokenTree, pack_trees
from degaml_kedro.llm.prompting import EncodedQuestion, end_token
from degaml_kedro.tasks.example import Example, Question

# vectors that are added to final hidden states, [Q, C] in float32, one for every question in all of its positions; it
# is given the hidden states [T, C] of questions, each one's first row, and the questions
Steer = Callable[[Tensor, Sequence[int], Sequence[EncodedQuestion]], Tensor]


@dataclass(frozen=True)
class Writing:
    """What a model wrote.

    Attributes:
        ids: its tokens, with the end token where it ended by itself; at least one.
        text: the same, without special tokens and blanks around it.
        tokens: that the model computed for it.
    """

    ids: tuple[int, ...]
    text: str
    tokens: int


def write_texts(
    base: BaseModel,
    encoded: Sequence[EncodedQuestion],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    steer: Steer | None = None,
    own: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[Writing]:
    """What the model writes behind prompts, under the adapter that is active in this thread.

    It ends at the end token, at the end of the chat's turn, after ``max_new_tokens``, or (an open answer to a plain
    prompt) where the next question begins. ``own`` is where each question's own tokens begin in its prompt, for
    ``steer``.
    """
    found: dict[int, Writing] = {}
    own = [0] * len(encoded) if own is None else own
    stop = prompt.plain_prefix.strip() if prompt.format == "plain" and scoring.is_open else ""
    ends = sorted(_end_tokens(base, prompt))
    # what is masked; some tokenizers have no token for it
    pad = base.tokenizer.pad_token_id or 0
    lengths = [len(one.prompt) + scoring.max_new_tokens for one in encoded]
    for batch in row_batches(base.model, lengths, scoring.batch_tokens):
        prompts = [encoded[i].prompt for i in batch]
        model = base.model
        if steer is not None:
            model = steered(model, _vectors(base, prompts, [own[i] for i in batch], steer))
        width = max(map(len, prompts))
        ids = torch.full((len(batch), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        # left padding, whatever the tokenizer's own habit: new tokens must follow the prompt
        for row, tokens in enumerate(prompts):
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(base.device),
                attention_mask=mask.to(base.device),
                max_new_tokens=scoring.max_new_tokens,
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=ends or None,
            )
        for i, new in zip(batch, output[:, width:].tolist(), strict=True):
            found[i] = _writing(base, new, ends, stop, output.shape[1])
        if progress is not None:
            progress(len(found), len(encoded))
    return [found[i] for i in range(len(encoded))]


def group_answers(
    writings: Sequence[Writing],
    rows: Sequence[Sequence[float]],
    asked: Question | Example,
    scoring: ScoringParameters,
) -> tuple[list[list[int]], list[tuple[float, ...]]]:
    """Different texts that give the same answer as one, as likely as they are together, by each model's ``rows``.

    A text that no answer can be read from counts only where there is no other.

    Returns:
        Indices of the texts by answer, the likeliest first; and the answers' log-probabilities by model.
    """
    answers = [extract_answer(one.text, asked, scoring.extraction) for one in writings]
    groups: dict[int | str | None, list[int]] = {}
    for place, answer in enumerate(answers):
        groups.setdefault(answer, []).append(place)
    if len(groups) > 1:
        groups.pop(None, None)
    total = [sum(row[place] for row in rows) for place in range(len(writings))]
    places = [sorted(group, key=lambda place: -total[place]) for group in groups.values()]
    return places, [
        tuple(float(logsumexp([row[place] for place in group])) for group in places) for row in rows
    ]


def distinct(writings: Sequence[Writing]) -> list[Writing]:
    """The different ones, in order."""
    return list({one.ids: one for one in reversed(writings)}.values())[::-1]


def _end_tokens(base: BaseModel, prompt: PromptParameters) -> set[int]:
    own = base.model.generation_config.eos_token_id
    known = own if isinstance(own, list) else [own]
    found: set[Any] = {*known, base.tokenizer.eos_token_id, end_token(base, prompt)}
    return found - {None}


def _vectors(
    base: BaseModel, prompts: Sequence[Sequence[int]], own: Sequence[int], steer: Steer
) -> Tensor:
    """[R, C]: what is added to the hidden states of each prompt and of what follows it."""
    pack = pack_trees([TokenTree(tuple(tokens)) for tokens in prompts], base.device, base.dtype)
    rows: list[int] = []
    starts: list[int] = []
    tails = []
    for tokens, start, first in zip(prompts, pack.starts, own, strict=True):
        starts.append(len(rows))
        rows.extend(range(start + first, start + len(tokens)))
        tails.append(EncodedQuestion(tuple(tokens[first:]), ()))
    with torch.inference_mode():
        return steer(base.hidden_states(pack)[rows], starts, tails)


def _writing(
    base: BaseModel, new: Sequence[int], ends: Sequence[int], stop: str, tokens: int
) -> Writing:
    """The new tokens of a row up to its end, and their text up to where the next question begins."""
    end = next((place for place, token in enumerate(new) if token in ends), len(new) - 1)
    ids = tuple(new[: end + 1])
    text = _decoded(base, ids)
    if stop and stop in text:
        text = text[: text.index(stop)]
        while len(ids) > 1 and len(_decoded(base, ids[:-1])) >= len(text):
            ids = ids[:-1]
    return Writing(ids, text.strip(), tokens)


def _decoded(base: BaseModel, ids: Sequence[int]) -> str:
    return str(base.tokenizer.decode(list(ids), skip_special_tokens=True))
