"""Health checks of a generator while it trains: errors by module and layer, norms, and what its adapters answer.

Shapes: T tokens, r rank, k token width, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from degaml_kedro.adapters.scales import TokenScales
from degaml_kedro.config.schema import PromptParameters, ScoringParameters
from degaml_kedro.generator.generator import Generator
from degaml_kedro.generator.training import TrainingTask
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.tasks.example import Example

WHOLE = "all"


@dataclass(frozen=True)
class HealthCheck:
    """One line of a generator's health: of a task's whole adapter, or of one module's matrix in one layer.

    Attributes:
        step: of the training, counted from 1.
        task: whose prompts the adapter was made from.
        held_out: the generator never saw the task.
        layer: -1 for the whole adapter.
        relative_error: ||made - last checkpoint|| / ||last checkpoint|| in normalised units; 1 is what the mean
            over trajectories scores.
        norm_ratio: ||made|| / ||last checkpoint||, in the same units.
        accuracy: of the made adapter on validation questions; None where it was not scored.
    """

    step: int
    task: str
    held_out: bool
    layer: int = -1
    module: str = WHOLE
    matrix: str = WHOLE
    relative_error: float | None = None
    norm_ratio: float | None = None
    accuracy: float | None = None
    questions: int = 0

    def as_row(self) -> dict[str, Any]:
        """For a table."""
        return asdict(self)


def slot_errors(made: Tensor, wanted: Tensor, scales: TokenScales) -> tuple[Tensor, Tensor]:
    """Relative errors and norm ratios of normalised tokens [T, r, k] by slot, and of the whole adapter at the end.

    Returns:
        float64 [S + 1] each; infinite where a slot of ``wanted`` is all zeros and that of ``made`` is not.
    """
    slots, mask = scales.grid.token_slots(), scales.grid.mask()

    def squares(tokens: Tensor) -> Tensor:
        by_token = (tokens.double() * mask).square().sum(dim=(1, 2))
        by_slot = by_token.new_zeros(len(scales.grid.slots)).index_add_(0, slots, by_token)
        return torch.cat([by_slot, by_slot.sum()[None]])

    size = squares(wanted).sqrt()
    return _ratio(squares(made - wanted).sqrt(), size), _ratio(squares(made).sqrt(), size)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below == 0, torch.where(above == 0, 0.0, torch.inf), above / below)


def check_generator(
    generator: Generator,
    task: TrainingTask,
    step: int,
    seed: int,
    held_out: bool,
    adapter_questions: tuple[BaseModel, Sequence[Example], PromptParameters, ScoringParameters]
    | None = None,
) -> list[HealthCheck]:
    """Generate an adapter for a task, compare it with its trajectory's last checkpoint, and ask it questions if any.

    Returns:
        The line of the whole adapter, then one a layer, module and matrix where the task has checkpoints.
    """
    source = torch.Generator().manual_seed(seed)
    chosen = task.embeddings.draw(generator.decoder.condition.prompts, source, task.rows)
    training = generator.decoder.training
    generator.decoder.eval()
    made = generator.tokens(*task.embeddings.rows(chosen), task.state).cpu()
    generator.decoder.train(training)
    whole = HealthCheck(step, task.name, held_out)
    if adapter_questions is not None:
        base, examples, prompt, scoring = adapter_questions
        predictions = score_examples(base, examples, prompt, scoring, generator.assemble(made))
        right = sum(p.predicted == p.gold for p in predictions)
        accuracy = right / max(1, len(predictions))
        whole = replace(whole, accuracy=accuracy, questions=len(predictions))
    if task.checkpoints is None:
        return [whole]
    wanted = generator.scales.normalize(task.checkpoints(task.checkpoint_count - 1).float())
    errors, ratios = (found.tolist() for found in slot_errors(made, wanted, generator.scales))
    lines = [replace(whole, relative_error=errors[-1], norm_ratio=ratios[-1])]
    for slot, error, ratio in zip(generator.grid.slots, errors[:-1], ratios[:-1], strict=True):
        place = (slot.layer, slot.module, slot.matrix)
        lines.append(HealthCheck(step, task.name, held_out, *place, error, ratio))
    return lines
