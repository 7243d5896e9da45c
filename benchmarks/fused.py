"""The fused decoder against the library's own modules, both packed: training and scoring, in turn in one process."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.material import PROMPT, SEED, Settings, SkippedError, suite_examples
from benchmarks.measure import Result, compared, now
from degaml_kedro.config.schema import LoraParameters, Phase, ScoringParameters, TrainingParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import fine_tune, initial_adapter
from degaml_kedro.llm.scoring import score_examples

STEPS, BATCH_SIZE, QUESTIONS = 6, 8, 64


def run(settings: Settings) -> Result:
    """Rates of both ways; the first turn of each does not count."""
    return compare(settings.base(), settings)


def compare(base: BaseModel, settings: Settings) -> Result:
    """The rates of a model's fused decoder and of its modules.

    Raises:
        SkippedError: it has none.
    """
    if base.fast is None or base.fast.stack is None:
        raise SkippedError(f"{base.name} has no fused decoder")
    without = replace(base, fast=replace(base.fast, stack=None))
    rows = []
    for name, unit, work in (
        (f"training, batch {BATCH_SIZE}, the library's modules", "steps/s", train),
        ("scoring, the library's modules", "questions/s", score),
    ):
        rates: dict[str, list[float]] = {"fused": [], "modules": []}
        for turn in range(settings.either(6, 2)):
            for side, model in (("fused", base), ("modules", without)):
                began = now(model.device)
                done = work(model, settings)
                if turn:
                    rates[side].append(done / (now(model.device) - began))
        rows.append(compared(name, unit, rates["fused"], rates["modules"]))
    return Result("fused", rows, {"dtype": str(base.dtype)})


def train(base: BaseModel, settings: Settings) -> int:
    """Take some steps; how many."""
    steps = settings.either(STEPS, 1)
    phases = (Phase(steps=steps, learning_rate=5e-4),)
    training = TrainingParameters(phases=phases, batch_size=BATCH_SIZE)
    examples = suite_examples(steps * BATCH_SIZE)
    start = initial_adapter(base, LoraParameters())
    return len(list(fine_tune(base, examples, PROMPT, "text", training, start, SEED)))


def score(base: BaseModel, settings: Settings) -> int:
    """Score some questions; how many."""
    examples = suite_examples(settings.either(QUESTIONS, 4))
    return len(score_examples(base, examples, PROMPT, ScoringParameters(mode="text"), None))
