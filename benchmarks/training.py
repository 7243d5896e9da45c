"""LoRA training against Hugging Face Trainer + PEFT: the same model, batches, order, settings and start.

The two take turns step by step inside one run of the Trainer: after each of its steps, ours does the same step.
Time goes from the end of a step to the end of the next, so data loading counts on both sides; the peer's examples
are tokenized before the clock starts, ours once at the start of the run as always.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.material import PROMPT, SEED, Settings, peer_model, require, suite_examples
from benchmarks.measure import Result, Row, Spread, compared, now
from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.config.schema import LoraParameters, Phase, TrainingParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import FineTuneStep, batch_indices, fine_tune, initial_adapter
from degaml_kedro.llm.prompting import encode_questions
from degaml_kedro.tasks.example import Example

LEARNING_RATE = 5e-4
# first steps grow the allocator's pools and are not counted
WARM_UP = 2
# how the peer may hold and compute its adapter; the ratio in the table is to the fastest of them
PEERS = {
    "float32 adapter": {"autocast_adapter_dtype": True, "bf16": False},
    "float32 adapter, bf16 autocast": {"autocast_adapter_dtype": True, "bf16": True},
    "bfloat16 adapter": {"autocast_adapter_dtype": False, "bf16": False},
}


@dataclass
class Run:
    """Seconds, real (not padding) tokens and loss of every step of one side."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def rates(self) -> list[float]:
        """Tokens per second of the steps after the warm-up."""
        pairs = zip(self.tokens, self.seconds, strict=True)
        return [tokens / seconds for tokens, seconds in pairs][WARM_UP:]


def run(settings: Settings) -> Result:
    """Compare at batch 8, against every way the peer may run, and at batch 32 against the fastest."""
    require("accelerate", "peft")
    base = settings.base()
    rows: list[Row] = []
    details: dict[str, Any] = {"learning_rate": LEARNING_RATE, "dtype": str(base.dtype)}
    variants = dict(PEERS)
    if base.dtype == torch.float32:
        # without bfloat16 the variants are all the same
        variants = {"float32 adapter": PEERS["float32 adapter"]}
    plan = [(8, settings.either(10, 1), list(variants)), (32, settings.either(5, 1), [])]
    fastest = ""
    for batch_size, steps, names in plan:
        sides = {
            name: compare(base, batch_size, steps + WARM_UP, **variants[name])
            for name in names or [fastest]
        }
        fastest = min(sides, key=lambda name: Spread.of(sides[name][1].seconds[WARM_UP:]).median)
        for name, (ours, peer) in sides.items():
            row = compared(
                f"training, batch {batch_size}, Trainer + PEFT ({name})",
                "tokens/s",
                ours.rates(),
                peer.rates(),
                at_least=1.5 if name == fastest and not settings.quick else None,
            )
            rows.append(row)
            details[row.name] = {
                "loss_ours": ours.losses,
                "loss_peer": peer.losses,
                "largest_loss_difference": max(
                    abs(a - b) for a, b in zip(ours.losses, peer.losses, strict=True)
                ),
                "seconds_ours": ours.seconds,
                "seconds_peer": peer.seconds,
                "tokens": ours.tokens,
            }
    return Result("training", rows, details)


def compare(
    base: BaseModel, batch_size: int, steps: int, autocast_adapter_dtype: bool, bf16: bool
) -> tuple[Run, Run]:
    """Train ``steps`` steps on both sides in turn.

    Args:
        base: the model; the peer gets its own copy of the weights.
        batch_size: examples in a step.
        steps: of each side.
        autocast_adapter_dtype: PEFT's: hold the adapter in float32.
        bf16: the Trainer's: compute under autocast.
    """
    lora = LoraParameters()
    training = TrainingParameters(
        phases=(Phase(steps=steps, learning_rate=LEARNING_RATE),), batch_size=batch_size
    )
    examples = suite_examples(steps * batch_size)
    start = initial_adapter(base, lora)
    model = _peft_model(base, start, autocast_adapter_dtype)
    batches = [batch_indices(len(examples), training, step, SEED) for step in range(1, steps + 1)]
    rows = _peer_rows(base, examples)
    ours, peer = Run(), Run()
    peer.tokens = [sum(len(rows[i]["input_ids"]) for i in batch) for batch in batches]
    mine = fine_tune(base, examples, PROMPT, "text", training, start, SEED)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(
            base, model, [rows[i] for batch in batches for i in batch], training, bf16, folder
        )
        trainer.add_callback(_in_turns(base, mine, ours, peer))
        losses = _keep_losses(trainer)
        trainer.train()
    peer.losses = torch.stack(losses).tolist()
    if ours.tokens != peer.tokens:
        raise AssertionError("the two sides did not train on the same tokens")
    return ours, peer


def _peer_rows(base: BaseModel, examples: Sequence[Example]) -> list[dict[str, list[int]]]:
    rows = []
    encoded = encode_questions(base, examples, PROMPT, "text")
    for example, question in zip(examples, encoded, strict=True):
        answer = list(question.answers[example.gold])
        ids = [*question.prompt, *answer]
        rows.append(
            {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "labels": [-100] * len(question.prompt) + answer,
            }
        )
    return rows


def _peft_model(base: BaseModel, start: Adapter, autocast_adapter_dtype: bool) -> Any:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    model = peer_model(base)
    # a training run has no use for the cache, and would fill one
    model.config.use_cache = False
    config = LoraConfig(
        r=start.config.rank,
        lora_alpha=start.config.alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT asks Transformers for a property by its old name
        warnings.simplefilter("ignore", FutureWarning)
        wrapped: Any = get_peft_model(model, config, autocast_adapter_dtype=autocast_adapter_dtype)
    loaded: Any = set_peft_model_state_dict(wrapped, dict(start.tensors))
    if loaded.unexpected_keys:
        raise AssertionError(f"PEFT does not know {loaded.unexpected_keys[0]}")
    return wrapped


def _trainer(
    base: BaseModel,
    model: Any,
    rows: list[dict[str, list[int]]],
    training: TrainingParameters,
    bf16: bool,
    folder: str,
) -> Any:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=training.batch_size,
        max_steps=len(rows) // training.batch_size,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_gradient_norm,
        train_sampling_strategy="sequential",
        bf16=bf16,
        use_cpu=base.device.type == "cpu",
        dataloader_pin_memory=False,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(base.tokenizer, label_pad_token_id=-100),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _keep_losses(trainer: Any) -> list[Tensor]:
    """Every step's loss, noted without waiting for it."""
    losses: list[Tensor] = []
    compute = trainer.compute_loss

    def noted(*args: Any, **kwargs: Any) -> Any:
        loss = compute(*args, **kwargs)
        losses.append(loss.detach())
        return loss

    trainer.compute_loss = noted
    return losses


def _in_turns(base: BaseModel, mine: Iterator[FineTuneStep], ours: Run, peer: Run) -> Any:
    """A Trainer callback that takes our step after each of the peer's."""
    from transformers import TrainerCallback

    class InTurns(TrainerCallback):
        began = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = now(base.device)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ended = now(base.device)
            peer.seconds.append(ended - self.began)
            step = next(mine)
            self.began = now(base.device)
            ours.seconds.append(self.began - ended)
            ours.tokens.append(step.tokens)
            ours.losses.append(step.loss)

    return InTurns()
