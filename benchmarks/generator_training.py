"""A training step of the generator from stored prompt states, against the ancestor's: the encoder in every step.

Both sides are ``generator.training.train_generator`` with the same decoder, objective, pairs, noise and optimiser, in
turn in one run, step by step; a step's losses must agree. Only where a prompt's states come from differs:

- ours reads them from the file that the pipeline writes, which counts;
- the peer runs the encoder on all prompts of the step in one batch. The ancestor (Drag-and-Drop LLMs) pads every
  prompt to the condition's length; a second peer runs the project's own ``encode``, without padding and in batches
  of like length: the best that scheme can do. Neither has dropout or keeps a graph, and both run in the dtype the
  project encodes in, bfloat16 where the processor multiplies in it, which is the encoder's fastest. The padded one's
  prompts are tokenized before the clock starts.

What encoding every prompt once costs ours is not in its steps; the details say what it took.

Two conditions: the embedded profile's, with the decoder in float32 as that profile trains it and in bfloat16 like the
encoder; and the paper's number and length of prompts on the same grid at batch 1, in bfloat16 as the paper's profiles
train. Under the paper's own decoder, whose step takes minutes here, the encoder is a small part: no scheme gains much.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
Precision = Literal["auto", "float32", "bfloat16", "float16"]
# N, L, the pairs of a step, the decoder's precision
Plan = tuple[int, int, int, Precision]


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


def run_profile(settings: Settings) -> Result:
    """The embedded profile's condition and batch, in both precisions."""
    size = sizes(settings.quick)
    condition = (size.prompts, size.encoder.tokens, size.variant.training.batch_size)
    own: Precision = size.variant.training.precision
    precisions: list[Precision] = [own]
    if own == "float32" and encoder_of(settings).model.dtype == torch.bfloat16:
        precisions.append("bfloat16")
    plans = [(*condition, precision) for precision in precisions]
    return _run("generator_training", settings, plans, settings.either(8, 1))


def run_paper(settings: Settings) -> Result:
    """The paper's prompts, on the same grid."""
    size = sizes(settings.quick)
    prompts, tokens = (size.prompts, 96) if settings.quick else _PAPER_CONDITION
    half = encoder_of(settings).model.dtype == torch.bfloat16
    plans: list[Plan] = [(prompts, tokens, 1, "bfloat16" if half else "float32")]
    return _run("generator_training_paper", settings, plans, settings.either(3, 1))


def _run(benchmark: str, settings: Settings, plans: Sequence[Plan], steps: int) -> Result:
    rows: list[Row] = []
    details: dict[str, Any] = {
        "encoder_dtype": str(encoder_of(settings).model.dtype),
        "threads": torch.get_num_threads(),
    }
    for plan in plans:
        prompts, tokens, pairs, precision = plan
        for padded in (True, False):
            turns, extra = compare(settings, plan, steps + WARM_UP, padded)
            row = turns.row(
                f"generator's step, {prompts} prompts of {tokens} tokens, batch {pairs}, {precision}, against the "
                f"encoder in it, {'padded as the ancestor' if padded else 'without padding'}",
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
    return Result(benchmark, rows, details)


def compare(
    settings: Settings, plan: Plan, steps: int, padded: bool
) -> tuple[Turns, dict[str, Any]]:
    """Train both sides in turn.

    Args:
        settings: which model, decoder and encoder.
        plan: N, L, the pairs of a step, and the decoder's precision.
        steps: of each side.
        padded: the peer pads every prompt to L.

    Returns:
        The steps, and what is worth keeping besides.
    """
    prompts, tokens, batch, precision = plan
    size, encoder, grid = sizes(settings.quick), encoder_of(settings), grid_of(settings)
    condition = ConditionSize(prompts, tokens, encoder.width)
    checkpoints = noise_checkpoints(grid, _CHECKPOINTS, SEED)
    training = size.variant.training.model_copy(
        update={"batch_size": batch, "steps": steps, "precision": precision}
    )
    count = max(prompts, settings.either(size.encoder.train_prompts, 2 * prompts))
    texts = {name: prompts_of(name, count, settings) for name in _TASKS}
    asked: list[str] = []
    made: list[States] = []
    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        began = now(encoder.model.device)
        stored = _stored(encoder, texts, tokens, Path(folder))
        once = now(encoder.model.device) - began
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
                Accelerator(cpu=encoder.model.device.type == "cpu"),
            )
            for side in (noted, handed)
        )
        prepare = _padded if padded else _not_padded
        for _ in range(steps):
            asked.clear()
            began = now(encoder.model.device)
            step = next(mine)
            turns.ours.append(now(encoder.model.device) - began)
            turns.losses_ours.append(step.record.loss)
            encode = prepare(encoder, asked, tokens)
            began = now(encoder.model.device)
            states, lengths = encode()
            made.extend(zip(states.split(prompts), lengths.split(prompts), strict=True))
            step = next(theirs)
            turns.peer.append(now(encoder.model.device) - began)
            turns.losses_peer.append(step.record.loss)
            if not math.isclose(turns.losses_ours[-1], turns.losses_peer[-1], rel_tol=0.01):
                raise AssertionError("the two sides did not learn the same")
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
            input_ids=ids.to(encoder.model.device), attention_mask=mask.to(encoder.model.device)
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
