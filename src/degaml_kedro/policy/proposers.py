"""Who proposes strategies: uniform draws, and a language model that writes actions under a grammar.

The model's text is decoded token by token, each one drawn from those that the grammar allows. What the grammar leaves
no choice about (``","learning_rate":``) is written without asking the model, in the tokens it was trained on, and
computed together with the next choice: an action takes as many steps as it has choices, not as it has tokens.

Shapes: B rows, T tokens, K new tokens of a step, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import AnswerSequence
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.packing import TokenTree, pack_trees
from degaml_kedro.llm.prompting import PromptError
from degaml_kedro.policy.actions import ActionSpace

MAX_NEW_TOKENS = 200
# prompts computed at once: their keys and values are kept until the last one has its action
_ROWS_AT_ONCE = 32

Source = Literal["policy", "uniform", "tabular", "fallback", "search"]


class ProposalError(DegamlError):
    """A policy that cannot propose."""


@dataclass(frozen=True)
class Proposal:
    """A strategy somebody proposes, not yet checked.

    Attributes:
        prompt: what the policy read, or would have read.
        source: who wrote it; ``fallback`` for what was best on meta-train tasks, ``search`` for what puts a round's
            trials together.
        tokens: the prompt's and the text's, which the policy's model reads and never goes back through; 0 where no
            model was asked.
    """

    text: str
    prompt: str
    source: Source
    tokens: int


class Proposer(Protocol):
    """Proposes strategies."""

    def propose(self, prompts: Sequence[str], seed: int) -> list[Proposal]:
        """One proposal a prompt, in order; the same seed gives the same ones."""


@dataclass(frozen=True)
class UniformProposer:
    """Draws from the action space, whatever the prompt says."""

    space: ActionSpace

    def propose(self, prompts: Sequence[str], seed: int) -> list[Proposal]:
        """One draw a prompt."""
        return [_draw(self.space, prompt, seed, row) for row, prompt in enumerate(prompts)]


def _draw(space: ActionSpace, prompt: str, seed: int, row: int) -> Proposal:
    """A draw by chance; the families take turns over the rows, from one that the seed draws."""
    rng = np.random.default_rng(derive_seed(seed, "uniform", str(row)))
    turn = derive_seed(seed, "families") + row
    return Proposal(space.draw(rng, turn).text, prompt, "uniform", 0)


@dataclass(frozen=True, eq=False)
class PolicyProposer:
    """A language model that reads prompts and writes actions.

    Attributes:
        adapter: the policy; None is the model as it came.
        space: what may be written: the offered values, so that every text is a valid action.
        temperature: of the softmax over the allowed tokens; 0 takes the likeliest.
        exploration: share of rows that are uniform draws instead.
        check: called before every step of the model; what it raises ends the writing.
    """

    base: BaseModel
    adapter: Adapter | None
    space: ActionSpace
    temperature: float = 1.0
    exploration: float = 0.0
    check: Callable[[], None] | None = None

    def propose(self, prompts: Sequence[str], seed: int) -> list[Proposal]:
        """One proposal a prompt, written by the model, or drawn where it is explored.

        A row's chance depends on the seed and the row's number alone, not on the other rows.

        Raises:
            PromptError: a prompt leaves no room for an action in the model's context.
            ProposalError: the model's scores are not numbers, or its tokenizer cannot be constrained.
            ModelError: the adapter does not fit the model.
        """
        found: dict[int, Proposal] = {}
        asked: dict[int, str] = {}
        for number, prompt in enumerate(prompts):
            chance = np.random.default_rng(derive_seed(seed, "exploration", str(number))).random()
            if chance < self.exploration:
                found[number] = _draw(self.space, prompt, seed, number)
            else:
                asked[number] = prompt
        if asked:
            found |= self._write(asked, seed)
        return [found[number] for number in range(len(prompts))]

    def _write(self, prompts: Mapping[int, str], seed: int) -> dict[int, Proposal]:
        """What the model writes, by the number of the row, which its chance depends on."""
        base = self.base
        grammar = LLMatcher.grammar_from_lark(self.space.grammar())
        matcher = LLMatcher(_grammar_tokenizer(base), grammar, log_level=0)
        if matcher.is_error():
            raise ProposalError(f"the grammar of actions failed: {matcher.get_error()}")
        rows = [
            _Row(
                prompt=_prompt_ids(base, prompt, MAX_NEW_TOKENS),
                matcher=matcher.deep_copy(),
                generator=torch.Generator().manual_seed(derive_seed(seed, "policy", str(number))),
            )
            for number, prompt in prompts.items()
        ]
        with torch.inference_mode(), active_lora(base.activate_adapter(self.adapter)):
            for first in range(0, len(rows), _ROWS_AT_ONCE):
                _decode(base, rows[first : first + _ROWS_AT_ONCE], self.temperature, self.check)
        found = {}
        for (number, prompt), row in zip(prompts.items(), rows, strict=True):
            text = base.tokenizer.decode(
                row.written, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            tokens = len(row.prompt) + len(row.written)
            found[number] = Proposal(str(text), prompt, "policy", tokens)
        return found


def encode_decision(base: BaseModel, prompt: str, action_text: str) -> AnswerSequence:
    """A prompt and the action that was right there, as the policy is trained on it.

    The two are tokenized apart, since that is how the policy continues a prompt.

    Raises:
        PromptError: both together are longer than the model's context.
    """
    answer = tuple(base.tokenizer(action_text, add_special_tokens=False).input_ids)
    if base.tokenizer.eos_token_id is not None:
        answer = (*answer, base.tokenizer.eos_token_id)
    return AnswerSequence(_prompt_ids(base, prompt, len(answer)) + answer, len(answer))


# --- decoding -------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Row:
    """One text being written: the prompt's tokens, those so far, and how many of these the model has computed."""

    prompt: tuple[int, ...]
    matcher: LLMatcher
    generator: torch.Generator
    written: list[int] = field(default_factory=list)
    computed: int = 0

    @property
    def done(self) -> bool:
        return self.matcher.is_stopped() or len(self.written) >= MAX_NEW_TOKENS

    def take(self, tokens: Sequence[int]) -> None:
        """Write tokens that the grammar allows."""
        if not self.matcher.consume_tokens(list(tokens)):
            raise ProposalError(f"the grammar of actions failed: {self.matcher.get_error()}")
        self.written.extend(tokens)
        del self.written[MAX_NEW_TOKENS:]

    def take_forced(self) -> None:
        """Write what the grammar leaves no choice about."""
        if not self.done:
            self.take(self.matcher.compute_ff_tokens())

    def choose(self, logits: Tensor, temperature: float) -> None:
        """Write one token, by logits, float32 [V], on the CPU; temperature 0 takes the likeliest."""
        allowed = torch.from_numpy(_allowed(self.matcher, len(logits)))
        scores = logits[allowed]
        if not scores.isfinite().all():
            raise ProposalError(
                "the policy's scores are not numbers; its adapter's weights may have diverged, train it anew"
            )
        if len(allowed) == 1 or temperature == 0:
            choice = scores.argmax()
        else:
            # the largest becomes 0 first, so that no temperature is too small to divide by
            chances = ((scores - scores.max()) / temperature).softmax(dim=0)
            choice = torch.multinomial(chances, 1, generator=self.generator)
        self.take([int(allowed[choice])])


def _decode(
    base: BaseModel, rows: Sequence[_Row], temperature: float, check: Callable[[], None] | None
) -> None:
    """Write the rows' texts, all rows at once, under the adapter that is active in this thread."""
    for row in rows:
        row.take_forced()
    tokens = [[*row.prompt, *row.written] for row in rows]
    mask = torch.zeros(len(rows), 0, dtype=torch.long)
    cache: Any = None
    # what other layers than attention keep of a row is not ours to continue; beyond the window the length of its
    # neighbours may decide how a row's positions are turned
    longest = max(len(row.prompt) for row in rows) + MAX_NEW_TOKENS
    cached = base.fast is not None and base.fast.fits(longest)
    while not all(row.done for row in rows):
        if check is not None:
            check()
        for row in rows:
            row.computed = len(row.written)
        if cached:
            ids, fresh = _left_padded(tokens, base.tokenizer.pad_token_id or 0)
            mask = torch.cat([mask, fresh], dim=1)
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            output = base.model.base_model(
                input_ids=ids.to(base.device),
                attention_mask=mask.to(base.device),
                position_ids=positions.to(base.device),
                past_key_values=cache,
                use_cache=True,
            )
            cache, hidden = output.past_key_values, output.last_hidden_state[:, -1]
        else:
            whole = [TokenTree((*row.prompt, *row.written)) for row in rows]
            pack = pack_trees(whole, base.device, base.dtype)
            ends = [start + len(one) - 1 for start, one in zip(pack.starts, whole, strict=True)]
            hidden = base.hidden_states(pack)[ends]
        # the head here, on the last tokens: the model's own `logits_to_keep` copies the head once a row
        logits = base.logits(hidden).cpu()
        for row, scores in zip(rows, logits, strict=True):
            if not row.done:
                row.choose(scores, temperature)
                row.take_forced()
        tokens = [row.written[row.computed :] for row in rows]


def _left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens and their mask, [B, K]: a row's last token stands in the last column, a finished row is all padding."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        if row:
            ids[index, -len(row) :] = torch.tensor(row)
            mask[index, -len(row) :] = 1
    return ids, mask


def _allowed(matcher: LLMatcher, vocabulary: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The tokens that the grammar allows next, in order."""
    bits = llguidance.numpy.allocate_token_bitmask(1, vocabulary)
    llguidance.numpy.fill_next_token_bitmask(matcher, bits)
    flags = np.unpackbits(bits[0].view(np.uint8), bitorder="little")[:vocabulary]
    return np.flatnonzero(flags)


_TOKENIZERS: WeakKeyDictionary[BaseModel, LLTokenizer] = WeakKeyDictionary()
_BUILDING = threading.Lock()


def _grammar_tokenizer(base: BaseModel) -> LLTokenizer:
    """The grammar library's view of a model's vocabulary, built once: it takes a third of a second and more."""
    with _BUILDING:
        if base not in _TOKENIZERS:
            if not isinstance(base.tokenizer, PreTrainedTokenizerFast):
                raise ProposalError(
                    f"the tokenizer of {base.name} is a slow one, which cannot be held to a grammar; "
                    f"name another model for the policy"
                )
            _TOKENIZERS[base] = llguidance.hf.from_tokenizer(
                base.tokenizer, n_vocab=base.head.shape[0]
            )
        return _TOKENIZERS[base]


def _prompt_ids(base: BaseModel, prompt: str, answer: int) -> tuple[int, ...]:
    """A prompt's tokens, checked to leave room for an answer of that many."""
    ids = tuple(base.tokenizer(prompt, add_special_tokens=True).input_ids)
    if len(ids) + answer > base.context_length:
        raise PromptError(
            f"the policy's prompt is {len(ids)} tokens long and its action up to {answer}, the context of "
            f"{base.name} is {base.context_length}; show fewer examples, or enable fewer families"
        )
    return ids
