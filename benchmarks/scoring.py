"""Scoring options against lm-evaluation-harness's ``hf`` backend: the same items, prompt strings, mode and dtype.

The peer is asked what its evaluator would ask it: ``HFLM.loglikelihood`` with one (context, continuation) request an
option. It tokenizes, orders, groups and batches on its own, at the best of several batch sizes, found on items of
their own. The two sides take turns, one block of items at a time.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.material import PROMPT, Settings, peer_model, require, suite_examples
from benchmarks.measure import Result, Row, Spread, compared, now
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.prompting import answer_texts, render_prompt
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.parameters import PromptParameters, ScoringMode, ScoringParameters
from degaml_kedro.tasks.example import Example

BATCH_SIZES = (8, 16, 32)


@dataclass
class Comparison:
    """Examples per second of both sides, block by block, and what they answered, item by item."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    ours_predicted: list[int] = field(default_factory=list)
    peer_predicted: list[int] = field(default_factory=list)
    gold: list[int] = field(default_factory=list)

    def accuracies(self) -> tuple[float, float]:
        """Ours, the peer's."""
        count = len(self.gold)
        right = [
            sum(p == g for p, g in zip(predicted, self.gold, strict=True)) / count
            for predicted in (self.ours_predicted, self.peer_predicted)
        ]
        return right[0], right[1]

    def agreement(self) -> float:
        """Share of items that both answer alike."""
        pairs = zip(self.ours_predicted, self.peer_predicted, strict=True)
        return sum(a == b for a, b in pairs) / len(self.gold)


def run(settings: Settings) -> Result:
    """Text and letter mode."""
    require("lm_eval")
    base = settings.base()
    block, blocks = settings.either(80, 4), settings.either(6, 1)
    tuning = settings.either(32, 2)
    examples = suite_examples(tuning + (blocks + 1) * block)
    rows: list[Row] = []
    details: dict[str, Any] = {"items": blocks * block, "dtype": str(base.dtype)}
    modes: tuple[ScoringMode, ...] = ("text", "letter")
    model = peer_model(base)
    for mode in modes:
        # letters only mean something where the prompt says which is which
        prompt = PROMPT if mode == "text" else PROMPT.model_copy(update={"options": "lines"})
        harness, speeds = tuned_harness(base, model, examples[:tuning], prompt, mode)
        found = compare(base, harness, examples[tuning:], prompt, mode, block)
        ours, peer = found.accuracies()
        target = 2.0 if not settings.quick else None
        rows += [
            compared(
                f"scoring, {mode}, lm-evaluation-harness hf (batch size {harness.batch_size})",
                "examples/s",
                found.ours,
                found.peer,
                at_least=target,
            ),
            Row(
                f"scoring, {mode}: same answer",
                "of items",
                Spread.of([found.agreement()]),
                at_least=None if settings.quick else 0.99,
            ),
            Row(
                f"scoring, {mode}: accuracy {ours:.3f}, harness {peer:.3f}, apart",
                "points",
                Spread.of([abs(ours - peer) * 100]),
                at_most=None if settings.quick else 0.5,
            ),
        ]
        details[mode] = {
            "batch_sizes": speeds,
            "accuracy_ours": ours,
            "accuracy_peer": peer,
            "agreement": found.agreement(),
        }
    return Result("scoring", rows, details)


def open_harness(base: BaseModel, model: Any, batch_size: int, **options: Any) -> Any:
    """The harness's Hugging Face backend on a model that is loaded already."""
    with quiet():
        from lm_eval.models.huggingface import HFLM

        return HFLM(
            pretrained=model,
            tokenizer=base.tokenizer,
            batch_size=batch_size,
            max_length=base.context_length,
            **options,
        )


def tuned_harness(
    base: BaseModel,
    model: Any,
    examples: Sequence[Example],
    prompt: PromptParameters,
    mode: ScoringMode,
) -> tuple[Any, dict[int, float]]:
    """The backend at its fastest batch size, and the examples per second of each that was tried."""
    speeds: dict[int, float] = {}
    harnesses = {size: open_harness(base, model, size) for size in BATCH_SIZES}
    for harness in harnesses.values():
        ask_harness(base, harness, examples[: max(BATCH_SIZES)], prompt, mode)
        break  # one pass is warm-up enough for all: they share the model
    for size, harness in harnesses.items():
        began = now(base.device)
        ask_harness(base, harness, examples, prompt, mode)
        speeds[size] = len(examples) / (now(base.device) - began)
    return harnesses[max(speeds, key=speeds.__getitem__)], speeds


def ask_harness(
    base: BaseModel,
    harness: Any,
    examples: Sequence[Example],
    prompt: PromptParameters,
    mode: ScoringMode,
) -> list[list[float]]:
    """Log-likelihood of every option of every example, through the harness's own path."""
    from lm_eval.api.instance import Instance

    requests, counts = [], []
    for example in examples:
        context = render_prompt(example, prompt, base)
        answers = answer_texts(example, mode, prompt)
        counts.append(len(answers))
        requests += [
            Instance(request_type="loglikelihood", doc={}, arguments=(context, answer), idx=i)
            for i, answer in enumerate(answers)
        ]
    values = iter(harness.loglikelihood(requests, disable_tqdm=True))
    return [[next(values)[0] for _ in range(count)] for count in counts]


def compare(
    base: BaseModel,
    harness: Any,
    examples: Sequence[Example],
    prompt: PromptParameters,
    mode: ScoringMode,
    block: int,
) -> Comparison:
    """Both sides on one block after another; the first block only warms up."""
    scoring = ScoringParameters(mode=mode)
    found = Comparison()
    for first in range(0, len(examples), block):
        items = examples[first : first + block]
        began = now(base.device)
        predictions = score_examples(base, items, prompt, scoring)
        between = now(base.device)
        scores = ask_harness(base, harness, items, prompt, mode)
        ended = now(base.device)
        if first == 0:
            continue
        found.ours.append(len(items) / (between - began))
        found.peer.append(len(items) / (ended - between))
        found.gold += [example.gold for example in items]
        found.ours_predicted += [
            -1 if prediction.predicted is None else prediction.predicted
            for prediction in predictions
        ]
        found.peer_predicted += [max(range(len(s)), key=s.__getitem__) for s in scores]
    return found


@contextlib.contextmanager
def quiet() -> Any:
    """The harness's advice on its own options is not about the benchmark."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
