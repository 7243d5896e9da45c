"""From an example to token ids: the prompt as the model reads it, and its possible answers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.config.schema import AnswerForm, PromptParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.tasks.example import Example, Question, shorten, split_prompt


class PromptError(DegamlError):
    """An example that the model cannot be asked."""


@dataclass(frozen=True)
class EncodedQuestion:
    """Token ids of one question.

    Attributes:
        answers: tokens of every option's answer, continuing the prompt; none where it is written, not chosen.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def question_text(
    example: Example | Question, options: Literal["lines", "inline", "hidden"]
) -> str:
    """The question, with its options as the ``A: …`` lines it has, in one line, or not at all."""
    stem = example.question
    # an example without option lines (open, true or false) has nothing to list in another way
    if options == "lines" or stem == example.prompt:
        return example.prompt
    *others, last = example.options or split_prompt(example.prompt)[1]
    return f"{stem} ({', '.join(others)} or {last})" if options == "inline" else stem


def render_prompt(example: Example | Question, prompt: PromptParameters, base: BaseModel) -> str:
    """The text the model reads before it answers.

    Raises:
        PromptError: the chat format is asked for and the tokenizer has no chat template.
    """
    question = question_text(example, prompt.options)
    if prompt.format == "plain":
        system = f"{example.system}\n\n" if example.system else ""
        return f"{system}{prompt.plain_prefix}{question}{prompt.plain_suffix}"
    return render_chat([*system_turn(example), {"role": "user", "content": question}], base)


def system_turn(example: Example | Question) -> list[dict[str, str]]:
    """The turns that a conversation begins with: the system's message, where there is one."""
    return [{"role": "system", "content": example.system}] if example.system else []


def render_chat(messages: Sequence[Mapping[str, str]], base: BaseModel) -> str:
    """A conversation as text, up to where the model's next turn begins.

    Where the template has no place for the system's message, it stands in front of the user's first.

    Raises:
        PromptError: the tokenizer has no chat template, or one that cannot be used.
    """
    if base.tokenizer.chat_template is None:
        raise PromptError(
            f"prompt.format is 'chat', but the tokenizer of {base.name} has no chat template; "
            f"use 'plain' or an instruction-tuned model"
        )
    first, *rest = messages
    if first["role"] == "system":
        with contextlib.suppress(PromptError):
            text = _by_template(base, messages, opened=True)
            if first["content"].strip() in text:
                return text
        joined = f"{first['content']}\n\n{rest[0]['content']}"
        messages = [{"role": "user", "content": joined}, *rest[1:]]
    return _by_template(base, messages, opened=True)


def _by_template(base: BaseModel, messages: Sequence[Mapping[str, str]], opened: bool) -> str:
    turns = [dict(message) for message in messages]
    template = base.tokenizer.apply_chat_template
    try:
        return str(template(turns, tokenize=False, add_generation_prompt=opened))
    # of the sandbox in which templates run, too
    except TemplateError as error:
        raise PromptError(
            f"the chat template of {base.name} cannot be used: {error}; mend it, or set prompt.format to 'plain'"
        ) from error


def answer_texts(
    example: Example | Question, mode: AnswerForm, prompt: PromptParameters
) -> tuple[str, ...]:
    """What the model may answer, one string an option: the option's text, or its label in brackets.

    Raises:
        PromptError: a letter is asked for, and the example has no options.
    """
    space = " " if prompt.format == "plain" else ""
    if not example.options:
        return ()
    if mode == "letter" and not example.labels:
        raise PromptError(_no_options(example))
    if mode == "text":
        return tuple(f"{space}{option}" for option in example.options)
    return tuple(f"{space}[{label}]" for label in example.labels)


def check_options(questions: Sequence[Question | Example]) -> None:
    """Refuse open questions where options are compared.

    Raises:
        PromptError: there is one.
    """
    for one in questions:
        if not one.labels:
            raise PromptError(_no_options(one))


def _no_options(example: Example | Question) -> str:
    return (
        f"the question {shorten(example.prompt)} has no options that could be compared; its answer has to be written: "
        f"set the task's scoring to {{mode: generate, extraction: text}}, or number, or a regular expression"
    )


def without_options(questions: Sequence[Question | Example]) -> list[Question]:
    """Questions whose answers are written: nothing is to be chosen, whatever options their prompts list."""
    return [Question(one.prompt, one.system, (), one.labels) for one in questions]


def end_token(base: BaseModel, prompt: PromptParameters) -> int | None:
    """The token that ends an answer: the one that the chat template ends a turn with, else the tokenizer's own."""
    tokenizer, mark = base.tokenizer, "answer"
    if prompt.format == "chat" and tokenizer.chat_template is not None:
        turns = [{"role": role, "content": mark} for role in ("user", "assistant")]
        text = _by_template(base, turns, opened=False)
        behind = tokenizer(text.rpartition(mark)[2].lstrip(), add_special_tokens=False).input_ids
        # not all of them are among the tokenizer's special ids, or marked as special; added blanks are none
        added: Any = tokenizer.added_tokens_decoder
        if behind and behind[0] in added and added[behind[0]].content.strip():
            return int(behind[0])
    return None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)


def closing_tokens(
    base: BaseModel, example: Example | Question, prompt: PromptParameters
) -> tuple[int, ...]:
    """The end token where it is a part of the answer, which the model must learn to write.

    It closes a chat turn, and an open answer: nothing else says where that ends.
    """
    if prompt.format != "chat" and example.labels:
        return ()
    end = end_token(base, prompt)
    return () if end is None else (end,)


def encode_questions(
    base: BaseModel,
    examples: Sequence[Question | Example],
    prompt: PromptParameters,
    mode: AnswerForm,
    room: int = 0,
    prompts: Sequence[str] | None = None,
) -> list[EncodedQuestion]:
    """Tokenize questions with all their possible answers.

    Prompt and answer are tokenized together and cut at the prompt's own length, as lm-evaluation-harness does, so
    nothing is assumed about which token carries a letter.

    ``room`` tokens are kept free behind every prompt. ``prompts`` stand in front of the answers, one text an example,
    in place of the question alone.

    Raises:
        PromptError: a prompt with its answer is longer than the model's context.
    """
    if prompts is None:
        prompts = [render_prompt(example, prompt, base) for example in examples]
    if not examples:
        return []
    answers = [answer_texts(example, mode, prompt) for example in examples]
    prompt_ids = token_ids(base, prompts, prompt)
    whole = [
        text + answer for text, options in zip(prompts, answers, strict=True) for answer in options
    ]
    whole_ids = iter(token_ids(base, whole, prompt))
    encoded, too_long = [], dict[int, int]()
    for index, (ids, options) in enumerate(zip(prompt_ids, answers, strict=True)):
        every = [next(whole_ids) for _ in options]
        # a token may span the end of the prompt and the answer, and an answer is never without a token
        ids = ids[: min((common_start(ids, one[:-1]) for one in every), default=len(ids))]
        tails = tuple(tuple(one[len(ids) :]) for one in every)
        longest = len(ids) + max(room, *(len(tail) for tail in tails), 0)
        if longest > base.context_length:
            too_long[index] = longest
        encoded.append(EncodedQuestion(tuple(ids), tails))
    if too_long:
        raise PromptError(_too_long(too_long, examples, base))
    return encoded


def _too_long(
    lengths: Mapping[int, int], examples: Sequence[Question | Example], base: BaseModel
) -> str:
    """Which examples are longer than the context; of many the first ten places."""
    first, longest = next(iter(lengths)), max(lengths.values())
    told = f"the context of {base.name} is {base.context_length}"
    starts = f"starts: {examples[first].prompt[:60]!r}"
    if len(lengths) == 1:
        return (
            f"example {first} is {longest} tokens long with its answer, {told}; shorten it or leave it out "
            f"(it {starts})"
        )
    places = ", ".join(map(str, list(lengths)[:10])) + ", …" * (len(lengths) > 10)
    return (
        f"{len(lengths)} examples ({places}) are up to {longest} tokens long with their answers, {told}; shorten them "
        f"or leave them out (the first {starts})"
    )


def token_ids(base: BaseModel, texts: Sequence[str], prompt: PromptParameters) -> list[list[int]]:
    """Token ids of texts that something may follow: with what the tokenizer puts in front, without what it appends.

    Chat templates have written the special tokens themselves.

    Raises:
        PromptError: the tokenizer has tokens that the model does not embed, and one of them stands in a text.
    """
    if not texts:
        return []
    special = prompt.format == "plain"
    found: list[list[int]] = base.tokenizer(list(texts), add_special_tokens=special).input_ids
    embedded = base.model.get_input_embeddings().weight.shape[0]
    if (most := max(map(max, filter(None, found)), default=0)) >= embedded:
        raise PromptError(
            f"the tokenizer of {base.name} writes the token {most} ({base.tokenizer.convert_ids_to_tokens(most)!r}), "
            f"and its model embeds {embedded:,}, numbered from 0: they are of two models, or tokens were added to one "
            "of them alone (`model.resize_token_embeddings`, then save both)"
        )
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
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
