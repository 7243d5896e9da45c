"""From an example to token ids: the prompt as the model reads it, and its possible answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from degaml_kedro.errors import DegamlError
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.parameters import PromptParameters, ScoringMode
from degaml_kedro.tasks.example import Example, Question, split_prompt


class PromptError(DegamlError):
    """An example that the model cannot be asked."""


@dataclass(frozen=True)
class EncodedQuestion:
    """Token ids of one question.

    Attributes:
        prompt: the prompt's tokens.
        answers: tokens of every option's answer, continuing the prompt.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def question_text(
    example: Example | Question, options: Literal["lines", "inline", "hidden"]
) -> str:
    """The question, with its options as the ``A: …`` lines it has, in one line, or not at all."""
    if options == "lines":
        return example.prompt
    stem, found = split_prompt(example.prompt)
    # an example without option lines (true or false) has nothing to list in another way
    if not found:
        return example.prompt
    return f"{stem} ({', '.join(found[:-1])} or {found[-1]})" if options == "inline" else stem


def render_prompt(example: Example | Question, prompt: PromptParameters, base: BaseModel) -> str:
    """The text the model reads before it answers.

    Args:
        example: the question.
        prompt: format, and how options are listed.
        base: for its chat template.

    Raises:
        PromptError: the chat format is asked for and the tokenizer has no chat template.
    """
    question = question_text(example, prompt.options)
    if prompt.format == "plain":
        system = f"{example.system}\n\n" if example.system else ""
        return f"{system}{prompt.plain_prefix}{question}{prompt.plain_suffix}"
    messages = [{"role": "user", "content": question}]
    if example.system:
        messages.insert(0, {"role": "system", "content": example.system})
    return render_chat(messages, base)


def render_chat(messages: Sequence[Mapping[str, str]], base: BaseModel) -> str:
    """A conversation as text, up to where the model's next turn begins.

    Args:
        messages: ``role`` and ``content`` of each turn so far.
        base: for its chat template.

    Raises:
        PromptError: the tokenizer has no chat template.
    """
    if base.tokenizer.chat_template is None:
        raise PromptError(
            f"prompt.format is 'chat', but the tokenizer of {base.name} has no chat template; "
            f"use 'plain' or an instruction-tuned model"
        )
    turns = [dict(message) for message in messages]
    return str(
        base.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    )


def answer_texts(
    example: Example | Question, mode: ScoringMode, prompt: PromptParameters
) -> tuple[str, ...]:
    """What the model may answer, one string an option: the option's text, or its label in brackets."""
    space = " " if prompt.format == "plain" else ""
    if mode == "text":
        return tuple(f"{space}{option}" for option in example.options)
    return tuple(f"{space}[{label}]" for label in example.labels)


def encode_questions(
    base: BaseModel,
    examples: Sequence[Example] | Sequence[Question],
    prompt: PromptParameters,
    mode: ScoringMode,
) -> list[EncodedQuestion]:
    """Tokenize questions with all their possible answers.

    Prompt and answer are tokenized together and cut at the prompt's own length, as lm-evaluation-harness does, so
    nothing is assumed about which token carries a letter.

    Args:
        base: for its tokenizer and context length.
        examples: what to encode.
        prompt: how examples become text.
        mode: what the answers are.

    Raises:
        PromptError: an example is longer than the model's context.
    """
    texts = [render_prompt(example, prompt, base) for example in examples]
    return encode_texts(base, examples, texts, prompt, mode)


def encode_texts(
    base: BaseModel,
    examples: Sequence[Example] | Sequence[Question],
    prompts: Sequence[str],
    prompt: PromptParameters,
    mode: ScoringMode,
) -> list[EncodedQuestion]:
    """Tokenize questions whose prompts are written already, with all their possible answers.

    Args:
        base: for its tokenizer and context length.
        examples: whose answers follow.
        prompts: what stands in front of the answers, one text an example.
        prompt: how answers become text.
        mode: what the answers are.

    Raises:
        PromptError: a prompt with its answer is longer than the model's context.
    """
    if not examples:
        return []
    answers = [answer_texts(example, mode, prompt) for example in examples]
    prompt_ids = token_ids(base, prompts, prompt)
    whole = [
        text + answer for text, options in zip(prompts, answers, strict=True) for answer in options
    ]
    whole_ids = iter(token_ids(base, whole, prompt))
    encoded = []
    for index, (ids, options) in enumerate(zip(prompt_ids, answers, strict=True)):
        every = [next(whole_ids) for _ in options]
        # a token may span the end of the prompt and the answer, and an answer is never without a token
        ids = ids[: min(common_start(ids, one[:-1]) for one in every)]
        tails = tuple(tuple(one[len(ids) :]) for one in every)
        longest = len(ids) + max(len(tail) for tail in tails)
        if longest > base.context_length:
            raise PromptError(
                f"example {index} is {longest} tokens long with its answer, the context of {base.name} is "
                f"{base.context_length}; shorten it or leave it out (it starts: {examples[index].prompt[:60]!r})"
            )
        encoded.append(EncodedQuestion(tuple(ids), tails))
    return encoded


def token_ids(base: BaseModel, texts: Sequence[str], prompt: PromptParameters) -> list[list[int]]:
    """Token ids of texts that something may follow: with what the tokenizer puts in front, without what it appends.

    Args:
        base: for its tokenizer.
        texts: as the model reads them.
        prompt: chat templates have written the special tokens themselves.
    """
    special = prompt.format == "plain"
    found: list[list[int]] = base.tokenizer(list(texts), add_special_tokens=special).input_ids
    if not special:
        return found
    bare, framed = (base.tokenizer("a", add_special_tokens=s).input_ids for s in (False, True))
    # the tokens of the text stand between what is put in front and what is appended
    front = next(
        (n for n in range(len(framed)) if framed[n : n + len(bare)] == bare),
        len(framed) - len(bare),
    )
    appended = len(framed) - len(bare) - front
    return [ids[: len(ids) - appended] for ids in found] if appended > 0 else found


def common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike.

    Example:
        >>> common_start((1, 2, 3), (1, 2, 4, 5))
        2
    """
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
