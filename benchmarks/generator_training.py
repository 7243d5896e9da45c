"""A training step of the generator from stored prompt states, against the ancestor's: the encoder in every step.

Both sides are ``generator.training.train_generator`` with the same decoder, objective, pairs, noise and optimiser, in
turn in one run, step by step; a step's losses must agree. Only where a prompt's states come from differs:

- ours reads them from the file that the pipeline writes, which counts;
- the peer runs the encoder on all prompts of the step in one batch. The ancestor (Drag-and-Drop LLMs) pads every
  prompt to the condition's length; a second peer runs the project's own ``encode``, without padding and in batches
  of like length: the best that scheme can do. Neither has dropout or keeps a graph, and both run in the dtype the
  project encodes in, bfloat16 where the processor multiplies in it, which is the encoder's fastest. The padded one's
  prompts are tokenized before the clock starts. The decoder trains in float32 on both sides.

What encoding every prompt once costs ours is not in its steps; the details say what it took.

Two conditions: the embedded profile's, and the paper's number and length of prompts on the same grid, at batch 1.
Under the paper's own decoder, whose step takes minutes here, the encoder is a small part: no scheme gains much there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.generator_material import (
    encoder_of,
    fresh_generator,
    grid_of,
    noise_checkpoints,
    prompts_of,
    sizes,
)
from benchmarks.material import SEED, Settings
from benchmarks.measure import Result, Row, Spread, now
from degaml_kedro.generator.decoders.build import ConditionSize
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.generator.prompt_encoder import PromptEncoder
from degaml_kedro.generator.training import TrainingTask, train_generator
from degaml_kedro.io.prompt_embeddings import read_prompt_embeddings, write_prompt_embeddings

WARM_UP = 2
_TASKS = ("from_roman", "kind_member", "unit_measures", "who_owns")
_CHECKPOINTS = 4
# N and L of the paper's flow
_PAPER_CONDITION = (128, 384)

# states [P, L, C] and lengths [P] of some prompts
States = tuple[Tensor, Tensor]


@dataclass
class Turns:
    """Seconds of every step of both sides, and their losses."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    losses_ours: list[float] = field(default_factory=list)
    losses_peer: list[float] = field(default_factory=list)

    def row(self, name: str, at_least: float | None) -> Row:
        """How many times as long the peer's steps take, without the warm-up."""
        ours, peer = self.ours[WARM_UP:], self.peer[WARM_UP:]
        ratios = [theirs / own for own, theirs in zip(ours, peer, strict=True)]
        return Row(name, "s", Spread.of(ours), Spread.of(peer), Spread.of(ratios), at_least)


@dataclass(eq=False)
class Drawn:
    """Stored states that note which prompts a step asked for."""

    stored: PromptEmbeddings
    prompts: Sequence[str]
    asked: list[str]

    def draw(self, *arguments: Any) -> Tensor:
        """As the stored ones."""
        return self.stored.draw(*arguments)

    def rows(self, indices: Tensor) -> States:
        """As the stored ones."""
        self.asked.extend(self.prompts[index] for index in indices.tolist())
        return self.stored.rows(indices)


@dataclass(eq=False)
class Encoded:
    """States that the step's encoder made, handed out in the order in which ours asked for them."""

    stored: PromptEmbeddings
    made: list[States]

    def draw(self, *arguments: Any) -> Tensor:
        """As the stored ones: the same pairs have the same prompts on both sides."""
        return self.stored.draw(*arguments)

    def rows(self, indices: Tensor) -> States:
        """What was made of them in this step."""
        return self.made.pop(0)


def run(settings: Settings) -> Result:
    """Compare under both conditions, against both peers."""
    size, encoder = sizes(settings.quick), encoder_of(settings)
    batch = size.variant.training.batch_size
    plans = [(size.prompts, size.encoder.tokens, batch, settings.either(8, 1))]
    if settings.quick:
        plans.append((size.prompts, 2 * size.encoder.tokens, 1, 1))
    else:
        plans.append((*_PAPER_CONDITION, 1, 3))
    rows: list[Row] = []
    details: dict[str, Any] = {
        "encoder_dtype": str(encoder.dtype),
        "decoder_dtype": "torch.float32",
        "threads": torch.get_num_threads(),
    }
    for prompts, tokens, pairs, steps in plans:
        for padded in (True, False):
            turns, extra = compare(settings, prompts, tokens, pairs, steps + WARM_UP, padded)
            how = "padded, as the ancestor's" if padded else "not padded"
            row = turns.row(
                f"generator's step, {prompts} prompts of {tokens} tokens, batch {pairs}; encoder in it, {how}",
                at_least=5.0 if padded and not settings.quick else None,
            )
            rows.append(row)
            details[row.name] = {
                "seconds_ours": turns.ours,
                "seconds_peer": turns.peer,
                "losses_ours": turns.losses_ours,
                "losses_peer": turns.losses_peer,
                **extra,
            }
    return Result("generator_training", rows, details)


def compare(
    settings: Settings, prompts: int, tokens: int, batch: int, steps: int, padded: bool
) -> tuple[Turns, dict[str, Any]]:
    """Train both sides in turn.

    Args:
        settings: which model, decoder and encoder.
        prompts: N.
        tokens: L.
        batch: pairs of a step.
        steps: of each side.
        padded: the peer pads every prompt to L.

    Returns:
        The steps, and what is worth keeping besides.
    """
    size, encoder, grid = sizes(settings.quick), encoder_of(settings), grid_of(settings)
    condition = ConditionSize(prompts, tokens, encoder.width)
    checkpoints = noise_checkpoints(grid, _CHECKPOINTS, SEED)
    training = size.variant.training.model_copy(update={"batch_size": batch, "steps": steps})
    count = max(prompts, settings.either(size.encoder.train_prompts, 2 * prompts))
    texts = {name: prompts_of(name, count, settings) for name in _TASKS}
    asked: list[str] = []
    made: list[States] = []
    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        began = now(encoder.device)
        stored = _stored(encoder, texts, tokens, Path(folder))
        once = now(encoder.device) - began
        noted = {name: Drawn(part, texts[name], asked) for name, part in stored.items()}
        handed = {name: Encoded(part, made) for name, part in stored.items()}
        mine, theirs = (
            train_generator(
                fresh_generator(settings, condition, checkpoints, encoder),
                [
                    TrainingTask(name, part, range(count), checkpoints.__getitem__, _CHECKPOINTS)  # type: ignore[arg-type]
                    for name, part in side.items()
                ],
                training,
                SEED,
                Accelerator(cpu=encoder.device.type == "cpu"),
            )
            for side in (noted, handed)
        )
        prepare = _padded if padded else _not_padded
        for _ in range(steps):
            asked.clear()
            began = now(encoder.device)
            step = next(mine)
            turns.ours.append(now(encoder.device) - began)
            turns.losses_ours.append(step.record.loss)
            encode = prepare(encoder, asked, tokens)
            began = now(encoder.device)
            states, lengths = encode()
            made.extend(zip(states.split(prompts), lengths.split(prompts), strict=True))
            step = next(theirs)
            turns.peer.append(now(encoder.device) - began)
            turns.losses_peer.append(step.record.loss)
    lengths = torch.cat([part.lengths for part in stored.values()]).float()
    extra = {
        "tokens_a_prompt": lengths.mean().item(),
        "seconds_to_encode_all_once": once,
        "prompts_encoded_once": count * len(_TASKS),
    }
    return turns, extra


def _stored(
    encoder: PromptEncoder, texts: dict[str, list[str]], tokens: int, folder: Path
) -> dict[str, PromptEmbeddings]:
    """Every prompt encoded once, written and opened as the pipeline does."""
    found = {}
    for name, prompts in texts.items():
        path = folder / f"{name}.safetensors"
        write_prompt_embeddings(encoder.encode(prompts, tokens), path)
        found[name] = read_prompt_embeddings(path)
    return found


def _padded(encoder: PromptEncoder, prompts: Sequence[str], tokens: int) -> Callable[[], States]:
    """The ancestor's way: every prompt filled up to L, all of a step in one batch."""
    inputs: Any = encoder.tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=tokens,
        return_tensors="pt",
    )
    ids, mask = inputs["input_ids"], inputs["attention_mask"]

    @torch.no_grad()
    def encode() -> States:
        output = encoder.model(
            input_ids=ids.to(encoder.device), attention_mask=mask.to(encoder.device)
        )
        return output.last_hidden_state, mask.sum(dim=1)

    return encode


def _not_padded(
    encoder: PromptEncoder, prompts: Sequence[str], tokens: int
) -> Callable[[], States]:
    """The project's own way to encode, each different prompt of the step once; it tokenizes as well."""

    def encode() -> States:
        made = encoder.encode(prompts, tokens)
        return made.rows(range(len(made)))

    return encode
