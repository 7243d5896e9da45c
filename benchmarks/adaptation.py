"""Twenty short examples to an adapted model, as a person waits for it, against plain PEFT on the same twenty answers.

Ours is ``Session.adapt`` with the shipped pair and its own budget: the base model is asked, an adapter is generated,
strategies are proposed and tried, the best is carried out. The peer does what one does without all this: a fresh LoRA
of the same rank on all linear layers, AdamW, ten times over the examples. Both find the model loaded and have the same
examples, and take turns, a task that the pair has not seen at a time. How well both answer other questions of the
task is in the details: a fast adaptation that learned nothing would be no use.

The page is the one of ``demo``: from the loaded model until the server has answered with all that a browser asks for
first. What the browser does with it is tested in tests/demo.

    python -m benchmarks.adaptation [--quick]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.generator_material import (
    encoder_of,
    fresh_generator,
    grid_of,
    noise_checkpoints,
    sizes,
)
from benchmarks.material import SEED, Settings, SkippedError, peer_model, require
from benchmarks.measure import Result, Row, Spread, now, table
from benchmarks.strategies import profile, times_as_long
from degaml_kedro.adaptation import Accuracy, Progress
from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.checkpoint.folder import PairSettings, TrainedPair, save_pair
from degaml_kedro.checkpoint.hub import SHIPPED, load_trained_pair
from degaml_kedro.generator.decoders.build import ConditionSize
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.prompting import encode_questions
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.session import Session
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.ready import ready_task

# none of them was trained on
TASKS = ("tenant_desks", "tenant_topics", "word_language", "element_symbol", "number_parity")
SUPPORT = 20
OTHERS = 40
WHOLE_SECONDS, FIRST_SECONDS, PAGE_SECONDS = 60.0, 5.0, 3.0

EPOCHS, BATCH, LEARNING_RATE = 10, 4, 5e-4


def run(settings: Settings) -> Result:
    """Adapt to a task after the other, on both sides in turn, then start the page."""
    require("peft")
    with tempfile.TemporaryDirectory() as folder:
        source = _pair_folder(settings, Path(folder))
        session = Session(load_trained_pair(source))
        rows, details = _adaptations(settings, session)
        page = _page_seconds(source)
        if page is None:
            details["page"] = "gradio is not installed"
        else:
            limit = None if settings.quick else PAGE_SECONDS
            rows.append(
                Row("the page's server, model loaded", "s", Spread.of([page]), at_most=limit)
            )
    return Result("adaptation", rows, details)


def _adaptations(settings: Settings, session: Session) -> tuple[list[Row], dict[str, Any]]:
    base = load_base_model(session.trained.settings.model)
    support, others = settings.either(SUPPORT, 4), settings.either(OTHERS, 4)
    ours, first, peer = [], [], []
    stages: list[dict[str, float]] = []
    details: list[dict[str, Any]] = []
    for number, name in enumerate(TASKS[: settings.either(len(TASKS), 2)]):
        examples, asked = ready_task(name).draw(support, others, SEED)
        watch = _Watch()
        began, processor = now(base.device), time.process_time()
        adapted = session.adapt(examples, seed=SEED + number, progress=watch)
        ours.append(now(base.device) - began)
        busy = time.process_time() - processor
        first.append(watch.first)
        stages.append(dict(adapted.report.seconds))
        tuned, seconds = _plain_peft(base, session, examples)
        peer.append(seconds)
        details.append(
            {
                "task": name,
                "strategy": list(adapted.report.strategy),
                "tried": len(adapted.report.tried),
                "seconds": ours[-1],
                # of all threads: on a machine that is shared it says what the wall time cannot
                "processor_seconds": busy,
                "seconds_peer": seconds,
                "seconds_by_stage": stages[-1],
                "base": session.score(asked).as_json(),
                "ours": adapted.score(asked).as_json(),
                "peer": _accuracy(base, session, asked, tuned).as_json(),
            }
        )
    limits: tuple[float | None, ...] = (WHOLE_SECONDS, FIRST_SECONDS)
    if settings.quick:
        limits = (None, None)
    name = f"{support} examples to an adapted model"
    rows = [
        times_as_long(f"{name}, against plain PEFT, {EPOCHS} epochs", ours, peer),
        Row("… the slowest", "s", Spread.of([max(ours)]), at_most=limits[0]),
        Row("… the first one of the process", "s", Spread.of(ours[:1]), at_most=limits[0]),
        Row("… until the first result", "s", Spread.of(first), at_most=limits[1]),
        Row("… the slowest of these", "s", Spread.of([max(first)]), at_most=limits[1]),
    ]
    # the order of the stages is the report's
    rows += [
        Row(f"… {stage}", "s", Spread.of([each[stage] for each in stages])) for stage in stages[0]
    ]
    summary = {
        side: statistics.mean(each[side]["accuracy"] for each in details)
        for side in ("base", "ours", "peer")
    }
    whole = {
        "dtype": str(base.dtype),
        "threads": torch.get_num_threads(),
        "examples": support,
        "asked": others,
        "mean_accuracy": summary,
        "peer_steps": EPOCHS * -(-support // BATCH),
        "limits": {"whole": WHOLE_SECONDS, "first": FIRST_SECONDS, "page": PAGE_SECONDS},
        "tasks": details,
    }
    return rows, whole


class _Watch:
    """When the first number could be shown."""

    def __init__(self) -> None:
        self.first = float("inf")

    def __call__(self, progress: Progress) -> None:
        if progress.report.base_support is not None:
            self.first = min(self.first, progress.seconds)


# --- the peer -------------------------------------------------------------------------------------


def _plain_peft(
    base: BaseModel, session: Session, examples: Sequence[Example]
) -> tuple[Adapter, float]:
    """A fresh LoRA, fine-tuned on the answers; its weights, and the seconds without loading the model."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    shape = session.trained.generator.adapter
    model = peer_model(base)
    model.config.use_cache = False
    began = now(base.device)
    rows = _rows(base, session, examples)
    torch.manual_seed(SEED)
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT asks Transformers for a property by its old name
        warnings.simplefilter("ignore", FutureWarning)
        # in the model's dtype: the fastest way that PEFT has (benchmarks/training.py)
        wrapped: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    order = torch.Generator().manual_seed(SEED)
    wrapped.train()
    for _ in range(EPOCHS):
        shuffled = torch.randperm(len(rows), generator=order).tolist()
        for start in range(0, len(rows), BATCH):
            batch = _padded([rows[i] for i in shuffled[start : start + BATCH]], base)
            loss = wrapped(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    seconds = now(base.device) - began
    tensors = {
        key: tensor.detach().float().cpu()
        for key, tensor in get_peft_model_state_dict(wrapped).items()
    }
    return Adapter(shape, tensors), seconds


def _rows(
    base: BaseModel, session: Session, examples: Sequence[Example]
) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels: the prompt does not count."""
    settings = session.trained.settings
    encoded = encode_questions(base, examples, settings.prompt, settings.scoring.answers)
    rows = []
    for example, question in zip(examples, encoded, strict=True):
        answer = list(question.answers[example.gold])
        rows.append(([*question.prompt, *answer], [-100] * len(question.prompt) + answer))
    return rows


def _padded(
    rows: Sequence[tuple[list[int], list[int]]], base: BaseModel
) -> dict[str, torch.Tensor]:
    width, pad = max(len(ids) for ids, _ in rows), base.tokenizer.pad_token_id
    batch = {
        "input_ids": [[*ids, *[pad] * (width - len(ids))] for ids, _ in rows],
        "attention_mask": [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows],
        "labels": [[*labels, *[-100] * (width - len(labels))] for _, labels in rows],
    }
    return {name: torch.tensor(values, device=base.device) for name, values in batch.items()}


def _accuracy(
    base: BaseModel, session: Session, asked: Sequence[Example], adapter: Adapter
) -> Accuracy:
    settings = session.trained.settings
    return Accuracy.of(score_examples(base, asked, settings.prompt, settings.scoring, adapter))


# --- the page -------------------------------------------------------------------------------------


def _page_seconds(source: str | None) -> float | None:
    """From the loaded model until the page, its configuration and its style are answered; None without Gradio."""
    if importlib.util.find_spec("gradio") is None:
        return None
    # imports belong to the program's start, not to the page's
    from demo.app import DemoApp

    from demo import DemoSettings

    began = time.perf_counter()
    app = DemoApp(DemoSettings(port=0, pairs=(("benchmark", source),)))
    try:
        _, url, _ = app.launch(prevent_thread_lock=True, quiet=True)
        for part in ("", "config", "theme.css"):
            with urllib.request.urlopen(f"{url}{part}", timeout=60) as answer:
                answer.read()
        return time.perf_counter() - began
    finally:
        app.close(verbose=False)


def _pair_folder(settings: Settings, folder: Path) -> str | None:
    """None for the shipped pair; when quick, the folder of an untrained one."""
    if not settings.quick:
        if not SHIPPED.is_dir():
            raise SkippedError("the trained pair is not there; run `make shipped`")
        return None
    save_pair(_tiny_pair(settings), folder / "pair")
    return str(folder / "pair")


def _tiny_pair(settings: Settings) -> TrainedPair:
    size, own, encoder = sizes(True), profile(), encoder_of(settings)
    condition = ConditionSize(size.prompts, size.encoder.tokens, encoder.width)
    generator = fresh_generator(
        settings, condition, noise_checkpoints(grid_of(settings), 2, SEED), encoder
    )
    policy = {
        "families": {"lora": {}, "ls": {"times": [1, 1]}},
        "rollouts": {"count": 1},
        "training": {"epochs": 1, "learning_rate": 1e-3},
        "search": {"rounds": 1, "proposals": 2},
    }
    made = {"model": settings.model, "encoder": size.encoder, "policy": policy}
    return TrainedPair(
        name="untrained",
        generator=generator,
        policy=None,
        settings=PairSettings.model_validate(
            {**made, "prompt": own.prompt, "scoring": own.scoring}
        ),
    )


def main() -> int:
    """Print the table and what it leaves out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptation")
    parser.add_argument("--quick", action="store_true", help="a tiny random model: checks the code")
    try:
        result = run(Settings(quick=parser.parse_args().quick))
    except SkippedError as reason:
        print(f"skipped: {reason}")
        return 0
    print(table([result]))
    mean = result.details["mean_accuracy"]
    print(f"\nmean accuracy on {result.details['asked']} other questions a task: ", end="")
    print(", ".join(f"{side} {share:.2f}" for side, share in mean.items()))
    for one in result.details["tasks"]:
        told = " ".join(one["strategy"]) or "nothing carried out"
        print(
            f"{one['task']}: {one['base']['accuracy']:.2f} → {one['ours']['accuracy']:.2f} in {one['seconds']:.1f} s "
            f"(PEFT {one['peer']['accuracy']:.2f} in {one['seconds_peer']:.1f} s); {told}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
