"""Fine-tuning on a task's support examples, from wherever a method starts."""

from __future__ import annotations

from collections.abc import Sequence

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines.compute import Clock
from degaml_kedro.baselines.learned import Learned
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import fine_tune
from degaml_kedro.parameters import (
    AdaptationSetting,
    Phase,
    PromptParameters,
    ScoringMode,
    TrainingParameters,
)
from degaml_kedro.tasks.example import Example


def train_on_support(
    method: str,
    base: BaseModel,
    start: Adapter,
    support: Sequence[Example],
    prompt: PromptParameters,
    mode: ScoringMode,
    setting: AdaptationSetting,
    seed: int,
) -> Learned:
    """AdamW on the support examples' answers, at one learning rate.

    Args:
        method: whose adaptation it is.
        base: the frozen model.
        start: where the adapter starts.
        support: the labelled examples.
        prompt: how an example becomes text.
        mode: what the answer is.
        setting: steps, learning rate and batch size; no steps leave the start as it is.
        seed: decides the order of the examples.

    Raises:
        TrainingError: there are no examples, or the loss stops being finite.
    """
    clock = Clock()
    adapter, records = start, []
    if setting.steps:
        training = TrainingParameters(
            phases=(Phase(steps=setting.steps, learning_rate=setting.learning_rate),),
            # a batch is never larger than what there is: an example twice in a batch is a higher rate in disguise
            batch_size=min(setting.batch_size, len(support)) or 1,
        )
        for step in fine_tune(base, support, prompt, mode, training, start, seed):
            clock.trained(step.tokens)
            adapter = step.adapter
            records.append({"step": step.step, "loss": step.loss})
    return Learned(method, adapter, {}, records, clock.compute, setting.model_dump(mode="json"))
