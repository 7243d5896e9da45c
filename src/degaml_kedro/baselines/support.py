"""Fine-tuning on a task's support examples, from wherever a method starts.

``no_meta_train_support`` starts from the initialization that all runs share, ``union_train`` from the pooled adapter.
"""

from __future__ import annotations

from collections.abc import Sequence

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines.compute import Clock
from degaml_kedro.baselines.learned import Learned
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import AnswerSequence, batch_indices, fine_tune
from degaml_kedro.parameters import (
    AdaptationSetting,
    AnswerForm,
    Phase,
    PromptParameters,
    TrainingParameters,
)
from degaml_kedro.tasks.example import Example


def _batch_size(setting: AdaptationSetting, count: int) -> int:
    """A batch is never larger than what there is: an example twice in a batch is a higher rate in disguise."""
    return min(setting.batch_size, count) or 1


def support_batches(
    sequences: Sequence[AnswerSequence], setting: AdaptationSetting, seed: int
) -> list[list[AnswerSequence]]:
    """A batch of the support examples for every step.

    The seed decides the order of the examples, of which there is at least one.
    """
    size = _batch_size(setting, len(sequences))
    # only the batch size is read; a plain gradient step's rate may be one that AdamW's may not
    order = TrainingParameters(phases=(Phase(steps=1, learning_rate=1.0),), batch_size=size)
    return [
        [sequences[i] for i in batch_indices(len(sequences), order, step, seed)]
        for step in range(1, setting.steps + 1)
    ]


def train_on_support(
    method: str,
    base: BaseModel,
    start: Adapter,
    support: Sequence[Example],
    prompt: PromptParameters,
    mode: AnswerForm,
    setting: AdaptationSetting,
    seed: int,
) -> Learned:
    """AdamW on the support examples' answers, at one learning rate.

    No steps leave the start as it is. The seed decides the order of the examples.

    Raises:
        TrainingError: there are no examples, or the loss stops being finite.
    """
    clock = Clock()
    adapter, records = start, []
    if setting.steps:
        training = TrainingParameters(
            phases=(Phase(steps=setting.steps, learning_rate=setting.learning_rate),),
            batch_size=_batch_size(setting, len(support)),
        )
        for step in fine_tune(base, support, prompt, mode, training, start, seed):
            clock.trained(step.tokens)
            adapter = step.adapter
            records.append({"step": step.step, "loss": step.loss})
    return Learned(method, adapter, {}, records, clock.compute, setting.model_dump(mode="json"))
