"""A context whose fresh adapters come from a generator, and the state that adaptation starts from.

The generator is frozen here: adapters are made without a gradient, and nothing writes to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from degaml_kedro.config.schema import EncoderParameters, PromptParameters, ScoringParameters
from degaml_kedro.generator.examples import ExampleGenerator
from degaml_kedro.generator.generator import Generator
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.prompting import question_text
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.state import AdaptedState, Member
from degaml_kedro.tasks.example import Question


def generated_context(
    base: BaseModel,
    prompt: PromptParameters,
    scoring: ScoringParameters,
    generator: Generator,
    embeddings: PromptEmbeddings,
    among: Sequence[int],
    encoder: EncoderParameters,
    writer: ExampleGenerator | None = None,
) -> Context:
    """A context for one task, whose adapters are made from the prompts ``among`` the embeddings.

    The encoder reads questions, for what compares them with prompts or examples; it is loaded when it is asked.
    ``writer`` reads examples, for the family ``written``.

    Raises:
        GeneratorError: the generator belongs to another base model or encoder.
    """
    generator.check_base_model(base.name, base.fingerprint)
    generator.check_embeddings(embeddings)
    generator.to(base.device)

    @torch.no_grad()
    def draw(seed: int, number: int) -> Member:
        rows = generator.draw_prompts(embeddings, seed, number, among)
        return Member(generator.generate(*embeddings.rows(rows)), embeddings.sentences(rows))

    return Context(base, prompt, scoring, draw, question_embedder(encoder), writer)


def read_questions(encoder: EncoderParameters, questions: Sequence[Question]) -> PromptEmbeddings:
    """The states of questions, as generators and routers read them."""
    reader, texts = load_prompt_encoder(encoder), _texts(encoder, questions)
    return reader.encode(texts, encoder.tokens, encoder.batch_tokens)


def count_truncated(encoder: EncoderParameters, questions: Sequence[Question]) -> int:
    """How many questions are longer than what is read of them."""
    return load_prompt_encoder(encoder).too_long(_texts(encoder, questions), encoder.tokens)


def _texts(encoder: EncoderParameters, questions: Sequence[Question]) -> list[str]:
    return [question_text(question, encoder.options) for question in questions]


def question_embedder(encoder: EncoderParameters) -> Callable[[Sequence[Question]], Tensor]:
    """What gives routers the sentence embeddings of questions, float32 [Q, C]; it loads the encoder when asked."""

    @torch.no_grad()
    def embed(questions: Sequence[Question]) -> Tensor:
        return read_questions(encoder, questions).sentences(range(len(questions)))

    return embed


def generated_state(context: Context, seed: int, number: int = 0) -> AdaptedState:
    """Where adaptation starts: one generated adapter; the seed and the number of the draw decide its prompts."""
    assert context.draw is not None
    return AdaptedState((context.draw(seed, number),))
