"""Scoring options against lm-evaluation-harness's ``hf`` backend: the same items, prompt strings, mode and dtype.

The peer is asked what its evaluator would ask it: ``HFLM.loglikelihood`` with one (context, continuation) request an
option. It tokenizes, orders, groups and batches on its own, at the best of several batch sizes, found on items of
their own. The two sides take turns, one block of items at a time.

Speed is measured in the dtype that the project runs in. Whether the answers are the same is also asked in float32:
in bfloat16 an item whose options lie closer than the rounding goes either way, for the harness as well; its own
answers in the two dtypes say how often.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.material import PROMPT, Settings, peer_model, require, suite_examples
from benchmarks.measure import Result, Row, Spread, compared, now
from degaml_kedro.config.schema import PromptParameters, ScoringMode, ScoringParameters
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.prompting import answer_texts, encode_questions, render_prompt
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.tasks.example import Example

BATCH_SIZES = (8, 16, 32)


@dataclass
class Comparison:
    """Examples per second of both sides, block by block, and what they answered, item by item."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    our_answers: list[int] = field(default_factory=list)
    peer_answers: list[int] = field(default_factory=list)
    gold: list[int] = field(default_factory=list)


def run_text(settings: Settings) -> Result:
    """The options' texts."""
    return run(settings, "text", exact_blocks=5)


def run_letter(settings: Settings) -> Result:
    """Letters in brackets; longer prompts, so fewer items in float32."""
    return run(settings, "letter", exact_blocks=3)


def run(settings: Settings, mode: ScoringMode, exact_blocks: int) -> Result:
    """Speed and answers in the project's dtype, answers in float32.

    Args:
        settings: how thorough.
        mode: text or letter.
        exact_blocks: blocks of items that are asked in float32, which is several times slower.
    """
    require("lm_eval")
    base = settings.base()
    exact_base = load_base_model(settings.model.model_copy(update={"dtype": "float32"}))
    size, blocks = settings.either(48, 4), settings.either(5, 1)
    tuning = settings.either(24, 2)
    examples = suite_examples(tuning + size * (blocks + 1))
    items = examples[tuning:]
    prompt = prompt_for(mode)
    model = peer_model(base)
    speeds = tune(base, model, examples[:tuning], prompt, mode)
    batch_size = max(speeds, key=speeds.__getitem__)
    harness = open_harness(base, model, batch_size)
    found = compare(base, harness, items, prompt, mode, size, warm_up=True)
    # the items that counted above, so that the answers can be compared item by item
    counted = items[size:][: size * settings.either(exact_blocks, 1)]
    exact_harness = open_harness(exact_base, peer_model(exact_base), batch_size)
    exact = compare(exact_base, exact_harness, counted, prompt, mode, size)
    name = f"scoring, {mode}"
    rows = [
        compared(
            f"{name}, lm-evaluation-harness hf (batch size {batch_size})",
            "examples/s",
            found.ours,
            found.peer,
            at_least=None if settings.quick else 2.0,
        ),
        *same_answers(f"{name}, float32", exact, settings),
    ]
    details: dict[str, Any] = {"batch_sizes": speeds, "float32": accuracies(exact)}
    if base.dtype != torch.float32:
        short = str(base.dtype).removeprefix("torch.")
        rows += same_answers(f"{name}, {short}", found, settings)
        rows.append(_against_float32(f"{name}, {short}", found, exact))
        details[short] = accuracies(found)
    return Result(f"scoring_{mode}", rows, details)


def prompt_for(mode: ScoringMode) -> PromptParameters:
    """Letters only mean something where the prompt says which is which."""
    return PROMPT if mode == "text" else PROMPT.model_copy(update={"options": "lines"})


def same_answers(name: str, found: Comparison, settings: Settings) -> list[Row]:
    """How often both answer alike, and how far their accuracies are apart."""
    count = len(found.gold)
    ours, peer = accuracies(found)["ours"], accuracies(found)["harness"]
    return [
        Row(
            f"{name}: same answer as the harness (n = {count})",
            "of items",
            Spread.of([agreement(found.our_answers, found.peer_answers)]),
            at_least=None if settings.quick else 0.99,
        ),
        Row(
            f"{name}: accuracy {ours:.3f}, harness {peer:.3f}; apart",
            "points",
            Spread.of([abs(ours - peer) * 100]),
            at_most=None if settings.quick else 0.5,
        ),
    ]


def _against_float32(name: str, found: Comparison, exact: Comparison) -> Row:
    """Both sides' answers against the harness's in float32, on the items that both runs scored."""
    truth = exact.peer_answers
    count = len(truth)
    return Row(
        f"{name}: same answer as the harness in float32 (n = {count}; peer: the harness itself)",
        "of items",
        Spread.of([agreement(found.our_answers[:count], truth)]),
        Spread.of([agreement(found.peer_answers[:count], truth)]),
    )


def accuracies(found: Comparison) -> dict[str, float]:
    """Share of right answers of both sides, and how often they agree."""
    return {
        "ours": agreement(found.our_answers, found.gold),
        "harness": agreement(found.peer_answers, found.gold),
        "same_answer": agreement(found.our_answers, found.peer_answers),
        "items": len(found.gold),
    }


def agreement(some: Sequence[int], others: Sequence[int]) -> float:
    """Share of places where two lists hold the same; 1 for empty ones."""
    return sum(a == b for a, b in zip(some, others, strict=True)) / max(1, len(some))


def open_harness(base: BaseModel, model: Any, batch_size: int | str, **options: Any) -> Any:
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


def tune(
    base: BaseModel,
    model: Any,
    examples: Sequence[Example],
    prompt: PromptParameters,
    mode: ScoringMode,
) -> dict[int, float]:
    """Examples per second of the harness at each batch size."""
    harnesses = {size: open_harness(base, model, size) for size in BATCH_SIZES}
    speeds = {}
    ask_harness(base, harnesses[BATCH_SIZES[0]], examples, prompt, mode)  # warm-up
    for size, harness in harnesses.items():
        began = now(base.device)
        ask_harness(base, harness, examples, prompt, mode)
        speeds[size] = len(examples) / (now(base.device) - began)
    return speeds


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
        answers = answer_texts(example, ScoringParameters(mode=mode).answers, prompt)
        counts.append(len(answers))
        requests += [
            Instance(request_type="loglikelihood", doc={}, arguments=(context, answer), idx=i)
            for i, answer in enumerate(answers)
        ]
    values = iter(harness.loglikelihood(requests, disable_tqdm=True))
    return [[next(values)[0] for _ in range(count)] for count in counts]


def row_tokens(
    base: BaseModel, examples: Sequence[Example], prompt: PromptParameters, mode: ScoringMode
) -> int:
    """Tokens of prompt and answer, over all options of all examples."""
    form = ScoringParameters(mode=mode).answers
    encoded = encode_questions(base, examples, prompt, form)
    return sum(len(one.prompt) + len(answer) for one in encoded for answer in one.answers)


def compare(
    base: BaseModel,
    harness: Any,
    examples: Sequence[Example],
    prompt: PromptParameters,
    mode: ScoringMode,
    block: int,
    warm_up: bool = False,
) -> Comparison:
    """Both sides on one block of examples after another; with a warm-up the first block does not count."""
    scoring = ScoringParameters(mode=mode)
    found = Comparison()
    for first in range(0, len(examples), block):
        items = examples[first : first + block]
        began = now(base.device)
        predictions = score_examples(base, items, prompt, scoring)
        between = now(base.device)
        scores = ask_harness(base, harness, items, prompt, mode)
        ended = now(base.device)
        if warm_up and first == 0:
            continue
        found.ours.append(len(items) / (between - began))
        found.peer.append(len(items) / (ended - between))
        found.gold += [example.gold for example in items]
        found.our_answers += [-1 if p.predicted is None else p.predicted for p in predictions]
        found.peer_answers += [max(range(len(s)), key=s.__getitem__) for s in scores]
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's advice on options that are not ours."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
